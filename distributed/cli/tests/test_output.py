"""Values as JSON and as text; progress."""

from __future__ import annotations

import datetime
import io
import json

import pytest

from distributed.cli.output import as_json, as_text
from distributed.cli.progress import Progress


class Silent:
    def __str__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (10**30, 10**30),
        (float("nan"), "nan"),
        (float("-inf"), "-Infinity"),
        ((1, [2]), [1, [2]]),
        ({None: 1, True: 2, 1.5: 3, (1, 2): 4}, {"null": 1, "true": 2, "1.5": 3, "(1, 2)": 4}),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (b"\0", {"type": "bytes", "base64": "AA=="}),
        (memoryview(b"ab"), {"type": "memoryview", "base64": "YWI="}),
        (1j, {"type": "complex", "text": "1j"}),
    ],
)
def test_any_value_has_a_form_in_json(value, expected):
    assert json.loads(as_json(value)) == expected
    json.loads(as_json([value]))
    assert as_text(value)


def test_arrays_are_shown_with_type_and_shape():
    numpy = pytest.importorskip("numpy")
    assert json.loads(as_json(numpy.arange(3, dtype="u1"))) == {
        "type": "numpy.ndarray",
        "dtype": "uint8",
        "shape": [3],
        "values": [0, 1, 2],
    }
    large = json.loads(as_json(numpy.zeros(10_000)))
    assert "values" not in large
    assert large["text"].startswith("[0. 0. 0.")
    assert as_json(numpy.float64(2.5)) == "2.5"
    assert as_text({"x": numpy.arange(3, dtype="u1")}) == (
        '{"x": "<numpy.ndarray of shape (3,), uint8: [0 1 2]>"}'
    )


def test_an_object_whose_text_fails_is_shown_by_its_type():
    assert "Silent that cannot be shown: ZeroDivisionError" in as_json(Silent())
    assert "Silent that cannot be shown" in as_text(Silent())


def test_a_value_that_is_nested_too_deeply_is_cut():
    value = []
    for _ in range(10_000):
        value = [value]
    assert len(as_json(value)) < 20_000


def test_text_of_several_lines_keeps_them_and_has_no_control_characters():
    class Table:
        def __str__(self):
            return "a b\n1 2 \x1b[2J"

    assert as_text(Table()) == "a b\n1 2 \\x1b[2J"


def test_large_containers_have_a_line_for_each_part():
    text = as_text({"numbers": list(range(40)), "x": 1})
    assert json.loads(text) == {"numbers": list(range(40)), "x": 1}
    assert all(len(line) <= 80 for line in text.splitlines())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def draw(stream, items, total, key):
    time = [0.0]
    with Progress(total, key, stream, lambda: time[0]) as progress:
        for item in items:
            progress.clear()
            time[0] += 0.2
            progress.update(item)
    return stream.getvalue()


def test_progress_in_a_terminal_is_one_line_that_is_drawn_again():
    text = draw(Terminal(), [{"done": 1}, {"done": 2}, {}], 4, "done")
    assert text.count("\n") == 1
    assert " 25%  1 of 4, 5/s, 0.2 s" in text
    assert text.split("\r\x1b[K")[-1] == f"[{'#' * 15}{' ' * 15}]  50%  2 of 4, 3.33/s, 0.6 s\n"


def test_progress_in_a_file_is_one_line_at_the_end():
    assert draw(io.StringIO(), "abc", None, None) == "3 done, 5/s, 0.6 s\n"


def test_progress_that_exceeds_the_total_is_complete():
    assert "100%  3 of 2" in draw(io.StringIO(), "abc", 2, None)
