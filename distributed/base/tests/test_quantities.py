"""Parsing of durations and sizes."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest

from distributed.base.quantities import parse_bytes, parse_timedelta
from distributed.tests.environments import run_in

DURATIONS: list[tuple[Any, float]] = [
    (0, 0),
    (5, 5),
    (1.5, 1.5),
    ("500ms", 0.5),
    ("2 minutes", 120),
    ("2 minute", 120),
    ("1.5", 1.5),
    (" 3 h ", 10800),
    ("1e3", 1000),
    ("1e3 s", 1000),
    ("1e-3s", 0.001),
    ("5e3ms", 5),
    ("1E3 S", 1000),
    ("5", 5),
    ("0s", 0),
    ("s", 1),
    ("ms", 0.001),
    ("minutes", 60),
    ("5 m", 300),
    ("5 M", 300),
    ("5us", 5 * 1e-6),
    ("5ns", 5 * 1e-9),
    ("5 milliseconds", 0.005),
    ("5 microsecond", 5 * 1e-6),
    ("5 nanoseconds", 5 * 1e-9),
    ("1d", 86400),
    ("2 days", 172800),
    ("1 week", 604800),
    ("3 w", 1814400),
    ("5 Hours", 18000),
    ("1_000 s", 1000),
    ("1 000 s", 1000),
    ("5.s", 5),
    ("5\ts", 5),
]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_parse_timedelta_returns_seconds_and_whole_ones_as_an_int(text, seconds):
    assert parse_timedelta(text) == seconds
    assert isinstance(parse_timedelta(text), int) is float(seconds).is_integer()


def test_parse_timedelta_returns_none_for_none():
    assert parse_timedelta(None) is None


def test_parse_timedelta_accepts_a_timedelta():
    assert parse_timedelta(timedelta(minutes=2, milliseconds=500)) == 120.5


def test_parse_timedelta_accepts_any_real_number():
    number: Any = Fraction(3, 2)
    assert parse_timedelta(number) == 1.5


def test_a_fraction_may_begin_with_its_point():
    # Not one of DURATIONS, because the original does not accept it.
    assert parse_timedelta(".5s") == 0.5


@pytest.mark.parametrize(
    ("text", "default", "seconds"),
    [(5, "ms", 0.005), ("5", "minutes", 300), (0.5, "minutes", 30), ("5s", "ms", 5)],
)
def test_a_number_without_unit_has_the_default_unit(text, default, seconds):
    assert parse_timedelta(text, default=default) == seconds


@pytest.mark.parametrize("text", [5, "5", 0.5])
def test_the_unit_is_mandatory_if_the_default_is_false(text):
    with pytest.raises(ValueError, match=r"Missing time unit: '?(5|0\.5)"):
        parse_timedelta(text, default=False)


def test_the_default_unit_must_be_a_string():
    with pytest.raises(TypeError, match="default must be str or False, got None"):
        parse_timedelta(5, default=None)


@pytest.mark.parametrize("text", ["5 foo", "abc", "1 year", "5min", "5 µs", "inf", "nan", "1e"])
def test_an_invalid_time_unit_is_an_error_that_lists_valid_ones(text):
    with pytest.raises(ValueError, match=r"Invalid time unit '\w+' in .*valid units are .*ms"):
        parse_timedelta(text)


@pytest.mark.parametrize("text", ["1,5s", "1-5", "- - 5s", "1.2.3", "5s5"])
def test_an_invalid_number_in_a_duration_is_an_error_that_shows_it(text):
    with pytest.raises(ValueError, match=r"as a duration: .* is not a number; expected e\.g\."):
        parse_timedelta(text)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_string_is_not_a_duration(text):
    with pytest.raises(ValueError, match="Could not interpret"):
        parse_timedelta(text)


@pytest.mark.parametrize(
    "value", [-5, "-5s", "- 5 s", math.inf, math.nan, "1e309", timedelta(seconds=-1)]
)
def test_a_negative_or_infinite_duration_is_an_error(value):
    with pytest.raises(ValueError, match="A duration must be finite and not negative, got"):
        parse_timedelta(value)


@pytest.mark.parametrize("value", [True, b"5s", [], {}])
def test_other_types_are_not_durations(value):
    with pytest.raises(TypeError, match=r"as a duration: expected e\.g\. '500ms'"):
        parse_timedelta(value)


SIZES: list[tuple[Any, int]] = [
    (0, 0),
    (5, 5),
    (1.5, 1),
    (5.9, 5),
    ("64MiB", 67108864),
    ("64 mib", 67108864),
    ("10 kB", 10000),
    ("5", 5),
    ("B", 1),
    ("kB", 1000),
    ("MB", 10**6),
    ("-5kB", -5000),
    ("-1", -1),
    ("+5kB", 5000),
    ("1e6", 10**6),
    ("1e6 kB", 10**9),
    ("1e3 MiB", 1048576000),
    (".5GB", 500000000),
    ("1.7 B", 1),
    ("123B", 123),
    ("10 k", 10000),
    ("10 Ki", 10240),
    ("10 KiB", 10240),
    ("10M", 10**7),
    ("10G", 10**10),
    ("10T", 10**13),
    ("10P", 10**16),
    ("10PiB", 10 * 2**50),
    (" 5 kB ", 5000),
    ("5\tkB", 5000),
    ("1_000", 1000),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_parse_bytes_returns_a_number_of_bytes(text, size):
    assert parse_bytes(text) == size
    assert type(parse_bytes(text)) is int


@pytest.mark.parametrize("text", ["5 foo", "1 bytes", "10E", "inf", "nan", "1e", "0s"])
def test_an_invalid_byte_unit_is_an_error_that_lists_valid_ones(text):
    with pytest.raises(ValueError, match=r"as a byte unit: valid units are .*MiB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["1,000", "1e3e3", "1-5"])
def test_an_invalid_number_in_a_size_is_an_error_that_shows_it(text):
    with pytest.raises(ValueError, match=r"as a number of bytes: .* is not a number"):
        parse_bytes(text)


def test_an_empty_string_is_not_a_size():
    with pytest.raises(ValueError, match="Could not interpret ''"):
        parse_bytes("")


@pytest.mark.parametrize("value", [math.inf, math.nan, "1e309"])
def test_an_infinite_size_is_an_error(value):
    with pytest.raises(ValueError, match="must be finite"):
        parse_bytes(value)


@pytest.mark.parametrize("value", [None, True, b"5", []])
def test_other_types_are_not_sizes(value):
    with pytest.raises(TypeError, match=r"as a number of bytes: expected e\.g\. '64MiB'"):
        parse_bytes(value)


def test_the_original_parses_durations_and_sizes_to_the_same_values(original_python):
    durations = [text for text, _ in DURATIONS]
    sizes = [text for text, _ in SIZES]
    code = f"""
        import json
        from dask.utils import parse_bytes, parse_timedelta
        print(json.dumps([[parse_timedelta(t) for t in {durations}],
                          [parse_bytes(t) for t in {sizes}]]))
    """
    theirs = json.loads(run_in(original_python, code).stdout)
    assert theirs == [[parse_timedelta(t) for t in durations], [parse_bytes(t) for t in sizes]]
