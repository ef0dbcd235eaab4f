"""The word check that ``make lint`` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "plain_english.py"

PLANTED = {
    "comment": ("x.py", "x = 1\n# closed by whoever opened it\n", 2, "whoever"),
    "two lines of a comment": ("x.py", "\n# a socket is\n# no stream\n", 2, "is no"),
    "comment after a blank line": ("x.py", "# One.\n\n# Closed by whoever.\n", 3, "whoever"),
    "string": ("x.py", 'x = "nobody listens"\n', 1, "nobody"),
    "f-string": ("x.py", "y = 1\nx = f'{y} begins anew'\n", 2, "anew"),
    "docstring": (
        "x.py",
        '"""First line.\n\nIt knows\nnothing of frames.\n"""\n',
        3,
        "knows nothing",
    ),
    "test name": ("x.py", "\ndef test_it_goes_on():\n    pass\n", 2, "goes on"),
    "rst": ("x.rst", "Title\n=====\n\nText, and so many bytes.\n", 4, "so many"),
}

INNOCENT = {
    "other names": ("x.py", "class Nobody:\n    def who(self, he):\n        self.anew = he\n"),
    "code in prose": ("x.py", "# ``who`` and `nobody` are names of variables\n"),
    "allowed phrases": ("x.py", "# users who wait; there is no lock; it is no longer open\n"),
    "ordinary words": ("x.rst", "What goes on the wire; renewed, amended, whole, shed, wholly.\n"),
}


def check(directory: Path, name: str, text: str) -> subprocess.CompletedProcess[str]:
    (directory / name).write_text(text)
    command = [sys.executable, str(SCRIPT), name]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("name", "text", "line", "word"), PLANTED.values(), ids=PLANTED)
def test_a_planted_word_is_reported_with_its_line_and_a_suggestion(
    tmp_path, name, text, line, word
):
    run = check(tmp_path, name, text)
    assert run.stdout.startswith(f"{name}:{line}: {word!r} → ")
    assert run.returncode == 1


@pytest.mark.parametrize(("name", "text"), INNOCENT.values(), ids=INNOCENT)
def test_code_and_ordinary_phrases_are_not_reported(tmp_path, name, text):
    run = check(tmp_path, name, text)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
