"""What the streams of one event loop share: a budget of time, and counts.

See :mod:`distributed.batched`.
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

__all__ = ["Budget", "budget_of"]

#: Share of an event loop's time in which its streams write batches without waiting.
WRITING_SHARE = 0.5

#: Maximum time that counts as passed without a write, in seconds: the length of a burst of batches.
SAVED_SECONDS = 0.01


class Budget:
    """The time in which the streams of one event loop may write without waiting.

    It grows by `WRITING_SHARE` of the time that passes, up to `SAVED_SECONDS` of passed time.

    Attributes
    ----------
    streams
        The streams that were started on the event loop and still exist.
    batches, messages
        Number of batches that they have written, and of messages in these.

    Examples
    --------
    >>> budget = Budget()
    >>> budget.take(begin=1.0, end=1.05)
    >>> budget.is_empty(now=1.05), budget.is_empty(now=1.1)
    (True, False)
    """

    # The time at which the budget is full again: the generic cell rate algorithm (ITU-T I.371),
    # which needs one number instead of an amount and the time of its last update.
    __slots__ = ("__weakref__", "_full_at", "batches", "messages", "streams")

    def __init__(self) -> None:
        self._full_at = 0.0
        self.streams: WeakSet[Any] | tuple[()] = ()
        self.batches = self.messages = 0

    def add(self, stream: Any) -> None:
        """Note that *stream* shares this budget."""
        if not isinstance(self.streams, WeakSet):
            self.streams = WeakSet()
        self.streams.add(stream)

    def is_empty(self, now: float) -> bool:
        """Return whether streams have to wait at this time, in seconds on the loop's clock."""
        return self._full_at - now > SAVED_SECONDS

    def take(self, begin: float, end: float) -> None:
        """Subtract the time of a write."""
        full_at = max(self._full_at, begin) + (end - begin) / WRITING_SHARE
        # Limit the debt, since a write may wait for a slow peer while the loop does other work.
        self._full_at = min(full_at, end + 2 * SAVED_SECONDS)


#: event loop → the budget of its streams
_budgets: WeakKeyDictionary[asyncio.AbstractEventLoop, Budget] = WeakKeyDictionary()


def budget_of(loop: asyncio.AbstractEventLoop) -> Budget:
    """Return the budget of an event loop."""
    budget = _budgets.get(loop)
    if budget is None:
        budget = _budgets[loop] = Budget()
    return budget
