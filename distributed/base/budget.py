"""What the streams of one event loop share: a budget of time, and counts.

See :mod:`distributed.batched`.
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

__all__ = ["STREAM_SHARE", "Account", "Budget", "budget_of"]

#: Share of an event loop's time in which its streams write batches without waiting.
WRITING_SHARE = 0.5

#: Share of that time in which one stream does.
STREAM_SHARE = 0.2

#: Maximum time that counts as passed without a write, in seconds: the length of a burst of batches.
SAVED_SECONDS = 0.01


class Account:
    """Time in which batches may be written without waiting.

    It grows by *share* of the time that passes, up to `SAVED_SECONDS` of passed time.

    Examples
    --------
    >>> account = Account(share=0.5)
    >>> account.take(begin=1.0, end=1.05)
    >>> account.is_empty(now=1.05), account.is_empty(now=1.1)
    (True, False)
    """

    # The time at which the account is full again: the generic cell rate algorithm (ITU-T I.371),
    # which needs one number instead of an amount and the time of its last update.
    __slots__ = ("_full_at", "_share")

    def __init__(self, share: float) -> None:
        self._share = share
        self._full_at = 0.0

    def is_empty(self, now: float) -> bool:
        """Return whether batches have to wait at this time, in seconds on the loop's clock."""
        return self._full_at - now > SAVED_SECONDS

    def take(self, begin: float, end: float) -> None:
        """Subtract the time of a write."""
        full_at = max(self._full_at, begin) + (end - begin) / self._share
        # Limit the debt, since a write may wait for a slow peer while the loop does other work.
        self._full_at = min(full_at, end + 2 * SAVED_SECONDS)


class Budget(Account):
    """The time in which the streams of one event loop may write without waiting.

    Attributes
    ----------
    streams
        The streams that were started on the event loop and still exist.
    batches, messages
        Number of batches that they have written, and of messages in these.
    """

    __slots__ = ("__weakref__", "batches", "messages", "streams")

    def __init__(self) -> None:
        super().__init__(WRITING_SHARE)
        self.streams: WeakSet[Any] | tuple[()] = ()
        self.batches = self.messages = 0

    def add(self, stream: Any) -> None:
        """Note that *stream* shares this budget."""
        if not isinstance(self.streams, WeakSet):
            self.streams = WeakSet()
        self.streams.add(stream)


#: event loop → the budget of its streams
_budgets: WeakKeyDictionary[asyncio.AbstractEventLoop, Budget] = WeakKeyDictionary()


def budget_of(loop: asyncio.AbstractEventLoop) -> Budget:
    """Return the budget of an event loop."""
    budget = _budgets.get(loop)
    if budget is None:
        budget = _budgets[loop] = Budget()
    return budget
