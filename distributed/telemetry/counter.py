"""Counts and distributions over several time scales: the last seconds, minute and hour.

A `Counter` counts items, a `Digest` estimates the distribution of measurements. Each has one
*component* per time scale. New items enter the first component. Each `shift` moves a fraction of
every component to the next one; the longer the interval, the smaller the fraction. The last
component keeps its items. Nothing here reads a clock: the owner of a counter calls `shift`
regularly (a ``Server`` every five seconds).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

__all__ = ["Counter", "Digest", "DigestType"]

# Fraction of the first component that each shift moves, independent of its interval.
_FIRST_FRACTION = 0.2


def _fractions(intervals: Sequence[float]) -> Iterator[float]:
    """Yield the fraction of each component (except the last) that one shift moves to the next."""
    for interval in intervals[:-1]:
        yield _FIRST_FRACTION * intervals[0] / interval


class Counter:
    """Counts of hashable items over several time scales.

    Parameters
    ----------
    intervals
        The time scales in seconds, in increasing order.

    Attributes
    ----------
    components
        One mapping of item → count per interval. ``components[0]`` has the newest items. Counts
        are integers until the first `shift`.

    Examples
    --------
    >>> ops = Counter()
    >>> for op in ["identity", "add", "add"]:
    ...     ops.add(op)
    >>> dict(ops.components[0])
    {'identity': 1, 'add': 2}
    >>> ops.shift()
    >>> dict(ops.components[0])
    {'identity': 0.8, 'add': 1.6}
    >>> round(ops.size(), 6)
    3.0
    """

    # Invariant: `size()` is the number of `add` calls (apart from rounding), because `shift` only
    # moves counts between components.
    __slots__ = ("components", "intervals")

    def __init__(self, intervals: Sequence[float] = (5, 60, 3600)) -> None:
        self.intervals = intervals
        self.components: list[defaultdict[Hashable, float]] = [defaultdict(int) for _ in intervals]

    def add(self, item: Hashable) -> None:
        """Count ``item`` once."""
        self.components[0][item] += 1

    def shift(self) -> None:
        """Move a fraction of each component to the next longer interval."""
        for i, fraction in enumerate(_fractions(self.intervals)):
            source, target = self.components[i], self.components[i + 1]
            for item, count in source.items():
                moved = fraction * count
                source[item] = count - moved
                target[item] += moved

    def size(self) -> float:
        """Return the number of items counted, over all intervals."""
        return sum(sum(component.values()) for component in self.components)


class _Digest:
    """Estimated distributions of numbers over several time scales.

    Needs the libraries ``crick`` and ``numpy``; without them, ``distributed.counter.Digest`` is
    None.

    Parameters
    ----------
    intervals
        The time scales in seconds, in increasing order.

    Attributes
    ----------
    components
        One ``crick.TDigest`` per interval, with methods such as ``quantile(0.99)``.
    """

    # Invariant: that of `Counter`, for weights instead of counts.
    __slots__ = ("components", "intervals")

    def __init__(self, intervals: Sequence[float] = (5, 60, 3600)) -> None:
        # crick imports numpy, which is slow, so it is imported only if a digest is created.
        crick = import_module("crick")
        self.intervals = intervals
        self.components: list[Any] = [crick.TDigest() for _ in intervals]

    def add(self, item: float) -> None:
        """Add one number."""
        self.components[0].add(item)

    def update(self, seq: Any) -> None:
        """Add an array of numbers."""
        self.components[0].update(seq)

    def shift(self) -> None:
        """Move a fraction of each component to the next longer interval."""
        for i, fraction in enumerate(_fractions(self.intervals)):
            source = self.components[i]
            self.components[i + 1].merge(source.scale(fraction))
            self.components[i] = source.scale(1 - fraction)

    def size(self) -> float:
        """Return the number of numbers added, over all intervals."""
        return sum(component.size() for component in self.components)


_Digest.__name__ = _Digest.__qualname__ = "Digest"

DigestType: TypeAlias = _Digest

# crick needs numpy, but can be installed without it.
Digest: type[_Digest] | None = (
    _Digest if find_spec("crick") is not None and find_spec("numpy") is not None else None
)
