"""The time in which the streams of an event loop may write without waiting, and their counts.

See :mod:`distributed.batched`.
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

__all__ = ["Account", "Budget", "budget_of"]

#: Maximum share of an event loop's time in which its streams write batches without waiting.
WRITING_SHARE = 0.5

#: Maximum share of an event loop's time in which one stream writes batches without waiting.
STREAM_SHARE = 0.2

#: Maximum time that counts as passed without a write, in seconds: the length of a burst of batches.
SAVED_SECONDS = 0.01

#: Maximum time that has to pass for one write, in seconds.
MAX_COST = SAVED_SECONDS / 2


class Account:
    """Time in which batches may be written without waiting.

    It grows by a share of the time that passes, up to that of `SAVED_SECONDS`.

    Parameters
    ----------
    share
        The share, between 0 and 1.
    whole
        An account of which this one is a part, or None.

    Examples
    --------
    >>> account = Account(share=0.5)
    >>> for begin in (1.0, 1.0005, 1.001, 1.0015):
    ...     account.take(begin, end=begin + 0.005)
    >>> account.is_empty(now=1.002), account.is_empty(now=1.02)
    (True, False)
    """

    # The time at which the account is full again: the generic cell rate algorithm (ITU-T I.371),
    # which needs one number instead of an amount and the time of its last update.
    __slots__ = ("_full_at", "_share", "_whole")

    def __init__(self, share: float, whole: Account | None = None) -> None:
        self._share = share
        self._whole = whole
        self._full_at = 0.0

    def is_empty(self, now: float) -> bool:
        """Return whether batches have to wait at this time, in seconds on the loop's clock."""
        if self._full_at - now > SAVED_SECONDS:
            return True
        return self._whole is not None and self._whole.is_empty(now)

    def take(self, begin: float, end: float) -> None:
        """Subtract the time of a write, in seconds on the loop's clock.

        A single write does not empty a full account: it took long because the peer is slow, or
        because other tasks or processes have run.
        """
        full_at = max(self._full_at, begin) + min((end - begin) / self._share, MAX_COST)
        # The debt is limited, too: all streams together may write more than their share.
        self._full_at = min(full_at, end + 2 * SAVED_SECONDS)
        if self._whole is not None:
            self._whole.take(begin, end)


class Budget:
    """The time in which the streams of one event loop may write without waiting.

    Attributes
    ----------
    streams
        The streams that were started on the event loop and still exist.
    batches, messages
        Number of batches that they have written, and of messages in these.
    """

    __slots__ = ("__weakref__", "_account", "batches", "messages", "streams")

    def __init__(self) -> None:
        self._account = Account(WRITING_SHARE)
        self.streams: WeakSet[Any] | tuple[()] = ()
        self.batches = self.messages = 0

    def add(self, stream: Any) -> Account:
        """Note that *stream* shares this budget, and return an account for it."""
        if not isinstance(self.streams, WeakSet):
            self.streams = WeakSet()
        self.streams.add(stream)
        return Account(STREAM_SHARE, self._account)


#: event loop → the budget of its streams
_budgets: WeakKeyDictionary[asyncio.AbstractEventLoop, Budget] = WeakKeyDictionary()


def budget_of(loop: asyncio.AbstractEventLoop) -> Budget:
    """Return the budget of an event loop."""
    budget = _budgets.get(loop)
    if budget is None:
        budget = _budgets[loop] = Budget()
    return budget
