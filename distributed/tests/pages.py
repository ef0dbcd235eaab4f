"""Run the Python code of a documentation page: ``python -W error -m distributed.tests.pages PAGE``.

The code is in ``.. code-block:: python`` of reStructuredText, or ```` ```python ```` of Markdown.
The blocks of a page run in order and share one namespace.  The output of a block with ``>>>``
prompts must equal the output on the page, in which ``...`` stands for any text; log messages do not
count.  Blocks in other languages do not run.  The module `terminals` runs pages that are typed into
terminals.  Each block must name one of `LANGUAGES`, so that a
misspelled language cannot hide code from the test.
"""

from __future__ import annotations

import doctest
import logging
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: The languages that code blocks may have. Only "python" runs.
LANGUAGES = {"python", "console", "text", "yaml", "ini", "toml"}

_RST_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. (?:code-block|code|sourcecode)::[ ]*(?P<language>\S*)[ ]*\n"
    r"(?P<options>(?:(?P=indent) +:[\w-]+:.*\n)*)"
    r"(?P<body>(?:(?P=indent) +\S.*\n?|[ ]*\n)*)",
    re.MULTILINE,
)
_MARKDOWN_BLOCK = re.compile(
    r"^(?P<fence>```+)(?P<language>[^\n]*)\n(?P<body>(?:.*\n)*?)(?P=fence)[ ]*$", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    language: str
    line: int  #: line number of its first line of code, from 1
    source: str
    caption: str = ""


def blocks(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page, in order."""
    text = page.read_text()
    pattern = _MARKDOWN_BLOCK if page.suffix == ".md" else _RST_BLOCK
    for match in pattern.finditer(text):
        body = match["body"]
        empty = len(body) - len(body.lstrip("\n"))
        line = text.count("\n", 0, match.start("body") + empty) + 1
        options = match["options"] if page.suffix == ".rst" else ""
        caption = re.search(r":caption: *(.*)", options)
        source = textwrap.dedent(body).strip("\n") + "\n"
        yield Block(match["language"].strip(), line, source, caption[1] if caption else "")


def section(page: Path, heading: str) -> str:
    """Return the text below a heading of a page, up to the next heading of the same level or above.

    Headings are underlined by "=", and those below them by "-".
    """
    text = page.read_text()
    match = re.search(rf"^{re.escape(heading)}\n(=+|-+)\n", text, re.MULTILINE)
    if match is None:
        raise LookupError(f"{page} has no heading {heading!r}")
    levels = "=" if match[1][0] == "=" else "=-"
    end = re.compile(rf"^\S[^\n]*\n[{levels}]{{3,}}\n", re.MULTILINE).search(text, match.end())
    return text[match.end() : end.start() if end else len(text)]


def rows(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the last list-table of a section, without the header; [] without a table.

    Each row is a list of its cells, with single spaces between words.
    """
    _, table, text = section(page, heading).rpartition(".. list-table::")
    if not table:
        return []
    text = re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0]
    return [
        [" ".join(cell.split()) for cell in re.split(r"^     -(?:\s|$)", row, flags=re.MULTILINE)]
        for row in re.split(r"^   \* - ", text, flags=re.MULTILINE)[2:]
    ]


def items(page: Path, heading: str) -> list[list[str]]:
    """Return the items of the bulleted lists in a section, each as a row of one cell."""
    found = re.findall(r"^\* (.*\n(?:  .*\n)*)", section(page, heading), re.MULTILINE)
    return [[" ".join(item.split())] for item in found]


def run(page: Path) -> None:
    """Run the Python blocks of a page.

    Raises
    ------
    AssertionError
        If the output differs from the page.
    Exception
        Any exception of the page's code; its traceback names the line of the page.
    """
    logging.getLogger("distributed").addHandler(logging.NullHandler())
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            if ">>> " in block.source:
                _run_session(page, block, namespace)
            else:
                source = "\n" * (block.line - 1) + block.source
                exec(compile(source, page, "exec"), namespace)


def _run_session(page: Path, block: Block, namespace: dict[str, object]) -> None:
    session = doctest.DocTestParser().get_doctest(
        block.source, namespace, page.name, str(page), block.line - 1
    )
    session.globs = namespace  # not a copy: blocks share the namespace
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    if runner.run(session, out=report.append, clear_globs=False).failed:
        raise AssertionError("".join(report))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
