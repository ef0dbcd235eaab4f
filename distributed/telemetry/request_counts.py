"""Counts and latencies of the requests that a server receives, by operation and outcome.

Counting one request takes two readings of a clock and a few additions: see :doc:`metrics`.  Only
operations that have a handler get counts of their own, so a peer cannot make their number grow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from distributed.base.text import shown

__all__ = [
    "LATENCY_BOUNDS",
    "OUTCOMES",
    "REJECTIONS",
    "SHORT",
    "OperationCounts",
    "RequestCounts",
]

#: Upper bounds of the buckets of latencies, in seconds; a last bucket has no bound.
LATENCY_BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

#: The first of these bounds, in seconds.
SHORT = LATENCY_BOUNDS[0]

#: The ways in which a request whose handler was started can end.
OUTCOMES = ("ok", "error", "timeout", "cancelled", "disconnected")

#: The reasons for which no handler is started.
REJECTIONS = ("unknown-op", "blocked", "closing", "malformed")

#: Number of failures that are kept.
KEPT_ERRORS = 100

#: Maximum numbers of characters that are kept of a name, and of the text of an error.
_NAME_LENGTH, _MESSAGE_LENGTH = 200, 1000

QUANTILES = (0.5, 0.9, 0.99)


class OperationCounts:
    """The requests of one operation that have ended.

    Attributes
    ----------
    buckets
        Number of requests per bucket of latency; see `LATENCY_BOUNDS`.
    seconds
        The sum of the latencies.
    failures
        Outcome → number of requests, for the outcomes other than ``"ok"``.

    Examples
    --------
    >>> counts = OperationCounts()
    >>> counts.add(0.003)
    >>> counts.add(0.2, "error")
    >>> counts.outcomes()["ok"], counts.outcomes()["error"]
    (1, 1)
    """

    __slots__ = ("buckets", "failures", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(LATENCY_BOUNDS) + 1)
        self.seconds = 0.0
        self.failures: dict[str, int] = {}

    def add(self, seconds: float, failure: str | None = None) -> None:
        """Count a request that has ended after *seconds*.

        For a request that has succeeded, `Requests` does this without a call.
        """
        self.buckets[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.seconds += seconds
        if failure is not None:
            self.failures[failure] = self.failures.get(failure, 0) + 1

    def outcomes(self) -> dict[str, int]:
        """Return the number of requests per outcome."""
        failures = self.failures
        return {
            "ok": sum(self.buckets) - sum(failures.values()),
            **{outcome: failures.get(outcome, 0) for outcome in OUTCOMES[1:]},
        }


class RequestCounts:
    """What one server counts about requests.

    Attributes
    ----------
    operations
        Operation → its counts.
    rejected
        Reason → number of requests for which no handler was started.
    errors, errors_total
        The newest failures of handlers, the oldest first, and the number of all.
    answers, items, conversations
        Number of streaming calls in progress, of all items that were sent, and of conversations in
        progress.
    """

    def __init__(self) -> None:
        self.operations: dict[str, OperationCounts] = {}
        self.rejected = dict.fromkeys(REJECTIONS, 0)
        self.errors: deque[dict[str, Any]] = deque(maxlen=KEPT_ERRORS)
        self.errors_total = 0
        self.answers = self.items = self.conversations = 0

    def of(self, op: str) -> OperationCounts:
        """Return the counts of an operation that has a handler."""
        counts = self.operations.get(op)
        if counts is None:
            counts = self.operations[op] = OperationCounts()
        return counts

    def note_error(self, op: Any, peer: str, exc: BaseException) -> None:
        """Keep a failure, as texts that are safe to show."""
        self.errors_total += 1
        self.errors.append(
            {
                "time": time(),
                "op": shown(op, _NAME_LENGTH),
                "peer": shown(peer, _NAME_LENGTH),
                "type": shown(type(exc).__qualname__, _NAME_LENGTH),
                "message": shown(exc, _MESSAGE_LENGTH),
            }
        )


def quantile(
    share: float, buckets: Sequence[int], bounds: Sequence[float] = LATENCY_BOUNDS
) -> float | None:
    """Estimate a quantile of a distribution in buckets; None if it is empty.

    Inside of a bucket the values count as evenly distributed, as in Prometheus'
    ``histogram_quantile``; above the last bound, the result is that bound.

    Examples
    --------
    >>> quantile(0.5, [0, 10, 0], bounds=[1.0, 2.0])
    1.5
    """
    total = sum(buckets)
    if not total:
        return None
    rank = share * total
    below = 0
    for i, number in enumerate(buckets[:-1]):
        if number and below + number >= rank:
            lower = bounds[i - 1] if i else 0.0
            return lower + (bounds[i] - lower) * (rank - below) / number
        below += number
    return bounds[-1]


def described(
    counts: Mapping[str, OperationCounts], in_progress: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Return the counts of operations as plain values: see :mod:`distributed.core.figures`."""
    return {
        op: with_sums(
            {
                "outcomes": one.outcomes(),
                "in_progress": in_progress.get(op, 0),
                "seconds": one.seconds,
                "buckets": list(one.buckets),
            }
        )
        # A copy: another thread may serve requests.
        for op, one in list(counts.items())
    }


def with_sums(operation: dict[str, Any]) -> dict[str, Any]:
    """Add what follows from the other values of an operation."""
    outcomes, buckets = operation["outcomes"], operation["buckets"]
    operation["count"] = sum(outcomes.values())
    operation["errors"] = operation["count"] - outcomes["ok"]
    operation["quantiles"] = {f"{share:g}": quantile(share, buckets) for share in QUANTILES}
    return operation
