"""Parsing of durations (``"500ms"``) and sizes (``"64MiB"``)."""

from __future__ import annotations

import math
import numbers
import re
from datetime import timedelta
from typing import Literal, overload

__all__ = ["parse_bytes", "parse_timedelta"]

_SECONDS = {
    unit: seconds
    for units, seconds in [
        (("ns", "nanosecond", "nanoseconds"), 1e-9),
        (("us", "microsecond", "microseconds"), 1e-6),
        (("ms", "millisecond", "milliseconds"), 1e-3),
        (("s", "second", "seconds"), 1),
        (("m", "minute", "minutes"), 60),
        (("h", "hour", "hours"), 3600),
        (("d", "day", "days"), 86400),
        (("w", "week", "weeks"), 604800),
    ]
    for unit in units
}

_BYTES = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, letter in enumerate("kmgtp", start=1)
    for prefix, base in [(letter, 1000), (letter + "i", 1024)]
    for suffix in ("", "b")
}

_QUANTITY = re.compile(r"(?P<number>.*?)\s*(?P<unit>[^\W\d_]*)", re.DOTALL)


def _split_quantity(text: str, kind: str, example: str) -> tuple[float, str]:
    """Return the number and the unit in *text*; one of them may be missing (then 1.0 or "")."""
    match = _QUANTITY.fullmatch(text.replace(" ", "").strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"Could not interpret {text!r} as a {kind}: expected e.g. {example}")
    number, unit = match.group("number", "unit")
    try:
        value = float(number) if number else 1.0
    except ValueError:
        raise ValueError(
            f"Could not interpret {text!r} as a {kind}: {number!r} is not a number; "
            f"expected e.g. {example}"
        ) from None
    return value, unit


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@overload
def parse_timedelta(s: None, default: str | Literal[False] = "seconds") -> None: ...
@overload
def parse_timedelta(
    s: float | str | timedelta, default: str | Literal[False] = "seconds"
) -> float: ...
@overload
def parse_timedelta(
    s: float | str | timedelta | None, default: str | Literal[False] = "seconds"
) -> float | None: ...
def parse_timedelta(
    s: float | str | timedelta | None, default: str | Literal[False] = "seconds"
) -> float | None:
    """Convert a duration to seconds.

    Parameters
    ----------
    s : float, str, timedelta or None
        A number with an optional unit: ns, us, ms, s, m, h, d, w or their long names, in any case.
        "minute" means "1 minute".  None is returned as None.
    default : str or False
        The unit of a number without one; False makes the unit mandatory.

    Returns
    -------
    float
        Seconds, as an `int` if it is a whole number.

    Raises
    ------
    ValueError
        If *s* is not a duration, or is negative or not finite.
    TypeError
        If *s* is of another type, or *default* is neither a string nor False.

    Examples
    --------
    >>> parse_timedelta("500ms")
    0.5
    >>> parse_timedelta("2 minutes")
    120
    >>> parse_timedelta(1.5)
    1.5
    >>> parse_timedelta("10", default="ms")
    0.01
    """
    if s is None:
        return None
    example = "'500ms', '30s', '2 minutes' or 1.5"
    if isinstance(s, timedelta):
        value, unit = s.total_seconds(), "s"
    elif isinstance(s, str):
        value, unit = _split_quantity(s, "duration", example)
    elif _is_number(s):
        value, unit = float(s), ""
    else:
        raise TypeError(
            f"Could not interpret {s!r} of type {type(s).__name__} as a duration: "
            f"expected e.g. {example}"
        )
    if not unit:
        if default is False:
            raise ValueError(f"Missing time unit: {s!r}; expected e.g. '500ms' or '2 minutes'")
        if not isinstance(default, str):
            raise TypeError(f"default must be str or False, got {default!r}")
        unit = default
    try:
        seconds = value * _SECONDS[unit.lower()]
    except KeyError:
        raise ValueError(
            f"Invalid time unit {unit!r} in {s!r}: valid units are {', '.join(_SECONDS)}"
        ) from None
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"A duration must be finite and not negative, got {s!r}")
    return int(seconds) if seconds == int(seconds) else seconds


def parse_bytes(s: float | str) -> int:
    """Convert a size to a number of bytes.

    Parameters
    ----------
    s : float or str
        A number with an optional unit: B, kB, MB, GB, TB, PB (powers of 1000), KiB, MiB, GiB, TiB,
        PiB (powers of 1024), in any case, with or without the final B.  "MiB" means "1 MiB".
        Fractions of a byte are dropped.

    Raises
    ------
    ValueError
        If *s* is not a size, or is not finite.
    TypeError
        If *s* is neither a number nor a string.

    Examples
    --------
    >>> parse_bytes("64MiB")
    67108864
    >>> parse_bytes("10 kB")
    10000
    >>> parse_bytes(4096)
    4096
    """
    example = "'64MiB', '10 kB' or 4096"
    if isinstance(s, str):
        value, unit = _split_quantity(s, "number of bytes", example)
    elif isinstance(s, int) and not isinstance(s, bool):
        return s
    elif _is_number(s):
        value, unit = float(s), ""
    else:
        raise TypeError(
            f"Could not interpret {s!r} of type {type(s).__name__} as a number of bytes: "
            f"expected e.g. {example}"
        )
    try:
        size = value * _BYTES[unit.lower()]
    except KeyError:
        raise ValueError(
            f"Could not interpret {unit!r} in {s!r} as a byte unit: "
            "valid units are B, kB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB"
        ) from None
    if not math.isfinite(size):
        raise ValueError(f"A number of bytes must be finite, got {s!r}")
    return int(size)
