"""Text from peers, rendered for errors and logs."""

from __future__ import annotations

import sys

import pytest

from distributed.base import config
from distributed.base.text import shown, shown_exception, shown_lines, shown_repr

KEY = "distributed.admin.max-shown-length"


class Hostile:
    def __repr__(self):
        raise ValueError("no text")


@pytest.mark.parametrize("text", ["", "add", "größe", "日本 ok", "a\\b 'c'"])
def test_printable_text_is_shown_unchanged(text):
    assert shown(text) == text
    assert shown_lines(text, 100) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\tb\x00", r"a\r\tb\x00"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x85\u2028\u202e", r"\x85\u2028\u202e"),
        ("\udcff", r"\udcff"),
    ],
)
def test_other_characters_are_escaped(text, expected):
    assert shown(text) == expected
    assert shown_repr(text) == f"'{expected}'"


def test_the_middle_of_long_text_is_left_out():
    text = shown("a" * 5000 + "z" * 5000)
    assert len(text) == 1000
    assert text.startswith("aaa")
    assert "… 9,000 characters left out …" in text
    assert text.endswith("zzz")


def test_the_limit_is_configured():
    with config.set({KEY: 50}):
        assert len(shown("a" * 100)) == 50
        assert len(shown_repr("a" * 100)) == 50
    assert shown("a" * 100) == "a" * 100


@pytest.mark.parametrize("value", ["abc", [1], None])
def test_text_is_shown_also_if_the_limit_is_invalid(value):
    with config.set({KEY: value}):
        assert len(shown("a" * 2000)) == 1000


@pytest.mark.parametrize(
    "value",
    [
        b"x" * 10_000_000,
        bytearray(10_000_000),
        memoryview(bytes(10_000_000)),
        "x" * 10_000_000,
        ["x" * 1000] * 1_000_000,
        {("x" * 1000, i): "y" * 1000 for i in range(1000)},
        [[[[[[[["deep"]]]]]]]],
        range(10**9),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_large_value_is_shown_in_part(value):
    for text in (shown(value), shown_repr(value)):
        assert text.isprintable()
        assert 0 < len(text) <= 1000


@pytest.mark.parametrize("value", [Hostile(), [Hostile()], ValueError(Hostile())])
def test_a_value_that_raises_is_shown_by_its_type(value):
    assert "() raises" in shown(value) or "instance at" in shown(value)
    assert shown_repr(value)


def test_a_text_of_several_lines_keeps_them():
    assert shown_lines("a\n  b\x1b[2J\r\n\tc", 100) == "a\n  b\\x1b[2J\\r\n        c"
    assert len(shown_lines("a\n" * 1000, 100)) == 100


def caught(function):
    try:
        function()
    except (ValueError, RecursionError) as exc:
        return exc
    raise AssertionError("it raised no error")


def test_an_exception_is_shown_about_as_python_prints_it():
    def fail():
        try:
            raise KeyError("first")
        except KeyError as exc:
            raise ValueError("second") from exc

    lines = shown_exception(caught(fail), 10_000).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[2] == '    raise KeyError("first")'
    assert lines[3] == "KeyError: 'first'"
    assert lines[5] == ("The above exception was the direct cause of the following exception:")
    assert lines[-1] == "ValueError: second"


def test_no_text_in_an_exception_begins_at_the_margin():
    exc = ValueError("bad\nFORGED")
    exc.add_note("a note\nFORGED")
    exc.__cause__ = ExceptionGroup("group\nFORGED", [TypeError("x\nFORGED"), exc])
    text = shown_exception(exc, 10_000)
    assert "  FORGED" in text
    assert not [line for line in text.splitlines() if line.startswith("FORGED")]


def deep():
    def recurse(n):
        if n:
            recurse(n - 1)
        raise ValueError("x" * 100_000)

    return caught(lambda: recurse(sys.getrecursionlimit() // 2))


def chained():
    exc = ValueError("x" * 10_000)
    for _ in range(100):
        outer = ValueError("y" * 10_000)
        outer.__context__ = exc
        exc = outer
    return exc


def in_a_cycle():
    exc, other = ValueError("x"), ValueError("y")
    exc.__cause__, other.__cause__ = other, exc
    return exc


def noted():
    exc = ValueError("x")
    for _ in range(10_000):
        exc.add_note("n\n" * 1000)
    return exc


def nested():
    exc = ValueError("x")
    for _ in range(100):
        exc = ExceptionGroup("group", [exc] * 20)
    return exc


@pytest.mark.parametrize("make", [deep, chained, in_a_cycle, noted, nested])
def test_a_large_exception_is_shown_in_part(make):
    text = shown_exception(make(), 3000)
    assert 0 < len(text) <= 3000
    assert text.count("\n") < 300


def test_an_exception_with_hostile_attributes_is_shown():
    class Odd(Exception):
        __notes__ = property(lambda self: 1 / 0)

        def __str__(self):
            raise ValueError("no text")

    assert "Odd" in shown_exception(Odd(), 1000)
