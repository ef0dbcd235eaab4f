"""Durations that were measured: their percentiles, and a histogram as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Bucket", "histogram", "histogram_lines", "in_units", "percentile", "summary"]

#: Maximum number of buckets of a histogram, and of characters of a bar.
_BUCKETS, _WIDTH = 12, 40
#: Minimum ratio of the bounds of a bucket.
_MIN_RATIO = 1.2


class Bucket(NamedTuple):
    """A range of a histogram."""

    start: float
    end: float
    number: int


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least *percent* of the samples do not exceed.

    Examples
    --------
    >>> percentile([1, 2, 3, 4], 50), percentile([1, 2, 3, 4], 99)
    (2, 4)
    """
    ordered = sorted(samples)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def histogram(samples: Sequence[float]) -> list[Bucket]:
    """Return buckets of a constant ratio, from the smallest sample to the largest.

    Examples
    --------
    >>> [bucket.number for bucket in histogram([1.0, 1.1, 3.0, 10.0])][:1]
    [2]
    """
    low, high = min(samples), max(samples)
    if low <= 0 or high / low < 1.001:
        return [Bucket(low, high, len(samples))]
    number = min(max(int(math.log(high / low, _MIN_RATIO)), 1), _BUCKETS)
    ratio = (high / low) ** (1 / number)
    counts = [0] * number
    for sample in samples:
        counts[min(int(math.log(sample / low, ratio)), number - 1)] += 1
    return [
        Bucket(low * ratio**i, min(low * ratio ** (i + 1), high), count)
        for i, count in enumerate(counts)
    ]


def histogram_lines(samples: Sequence[float]) -> list[str]:
    """Return the lines of a histogram for a person."""
    buckets = histogram(samples)
    most = max(bucket.number for bucket in buckets)
    return [
        f"{in_units(bucket.start):>9} to {in_units(bucket.end):>9}  "
        f"{bucket.number:>6}  {'#' * math.ceil(bucket.number / most * _WIDTH)}"
        for bucket in buckets
    ]


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Return the figures of samples, in seconds, for JSON."""
    return {
        "count": len(samples),
        "min": min(samples),
        "median": percentile(samples, 50),
        "mean": sum(samples) / len(samples),
        "p99": percentile(samples, 99),
        "max": max(samples),
    }


def in_units(seconds: float) -> str:
    """Return a duration with three digits and a unit.

    Examples
    --------
    >>> in_units(0.000123), in_units(0.0456), in_units(2)
    ('123 us', '45.6 ms', '2 s')
    """
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor or unit == "us":
            break
    return f"{seconds / factor:.3g} {unit}"
