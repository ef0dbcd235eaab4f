"""Counts and distributions that fade: of the last seconds, the last minute, the last hour.

A `Counter` counts how often things happened, a `Digest` how large measurements were. Each holds
one *component* per time scale. New items enter the first; every `shift`, a part of each component
flows on to the next one, slower the longer its interval is, and the last one keeps what it gets.
Nothing here reads a clock: whoever owns a counter calls `shift` at regular times (a ``Server``
every five seconds), and it is these calls that give the intervals their meaning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

__all__ = ["Counter", "Digest", "DigestType"]

# A fifth of the first component moves on with each shift, whatever its interval is.
_FIRST_FRACTION = 0.2


def _fractions(intervals: Sequence[float]) -> Iterator[float]:
    """The share of each component but the last that one shift moves to the next."""
    for interval in intervals[:-1]:
        yield _FIRST_FRACTION * intervals[0] / interval


class Counter:
    """Counts hashable things over several time scales at once.

    Parameters
    ----------
    intervals
        The scales, in seconds, in growing order.

    Attributes
    ----------
    components
        One mapping of item → count per interval; ``components[0]`` is the running count. Counts
        are whole numbers until the first `shift`.

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

    # Invariant: `shift` moves counts between components and neither makes nor loses any, so that
    # `size()` is the number of `add` calls (apart from rounding).
    __slots__ = ("components", "intervals")

    def __init__(self, intervals: Sequence[float] = (5, 60, 3600)) -> None:
        self.intervals = intervals
        self.components: list[defaultdict[Hashable, float]] = [defaultdict(int) for _ in intervals]

    def add(self, item: Hashable) -> None:
        """Count ``item`` once."""
        self.components[0][item] += 1

    def shift(self) -> None:
        """Let a part of each component flow on to the next longer interval."""
        for i, fraction in enumerate(_fractions(self.intervals)):
            source, target = self.components[i], self.components[i + 1]
            for item, count in source.items():
                moved = fraction * count
                source[item] = count - moved
                target[item] += moved

    def size(self) -> float:
        """How many items were counted, over all intervals."""
        return sum(sum(component.values()) for component in self.components)


class _Digest:
    """Estimates the distribution of numbers over several time scales at once.

    It is there only where the libraries ``crick`` and ``numpy`` are installed; otherwise the name
    ``distributed.counter.Digest`` is None.

    Parameters
    ----------
    intervals
        The scales, in seconds, in growing order.

    Attributes
    ----------
    components
        One ``crick.TDigest`` per interval; ask it for ``quantile(0.99)``.
    """

    # Invariant: as for `Counter`, with weights in place of counts.
    __slots__ = ("components", "intervals")

    def __init__(self, intervals: Sequence[float] = (5, 60, 3600)) -> None:
        # crick brings numpy along, which a process that never makes a digest need not pay for.
        crick = import_module("crick")
        self.intervals = intervals
        self.components: list[Any] = [crick.TDigest() for _ in intervals]

    def add(self, item: float) -> None:
        """Take in one number."""
        self.components[0].add(item)

    def update(self, seq: Any) -> None:
        """Take in an array of numbers."""
        self.components[0].update(seq)

    def shift(self) -> None:
        """Let a part of each component flow on to the next longer interval."""
        for i, fraction in enumerate(_fractions(self.intervals)):
            source = self.components[i]
            self.components[i + 1].merge(source.scale(fraction))
            self.components[i] = source.scale(1 - fraction)

    def size(self) -> float:
        """How many numbers were taken in, over all intervals."""
        return sum(component.size() for component in self.components)


_Digest.__name__ = _Digest.__qualname__ = "Digest"

DigestType: TypeAlias = _Digest

# crick needs numpy, but does not always bring it along.
Digest: type[_Digest] | None = (
    _Digest if find_spec("crick") is not None and find_spec("numpy") is not None else None
)
