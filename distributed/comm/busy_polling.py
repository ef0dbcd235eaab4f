"""Polling of sockets before the event loop sleeps (``distributed.comm.busy-poll``).

The kernel takes longer to wake a sleeping process than a small call takes here.  With busy
polling, an event loop does not sleep for some time after a task began to wait for a message: it
asks the system again and again which sockets are ready.  All connections, timers and callbacks of
the loop have their turns meanwhile, so other callers do not wait for a busy one.  The price is a
core that is busy for that time.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from weakref import WeakKeyDictionary

from distributed.comm.settings import CommSettings

__all__ = ["BusyPolling"]


class BusyPolling:
    """Busy polling in one event loop, in which all its methods are called."""

    #: Return the current time in seconds; a method, so that a test can replace it.
    clock = staticmethod(perf_counter)

    # Invariant: exactly while `is_polling`, a call of _poll() is in the queue of the loop.
    # There is no reference to the loop, since it is the key of this object in `_polling`.
    def __init__(self) -> None:
        # When to stop.
        self._end = 0.0
        #: Whether the event loop polls.
        self.is_polling = False

    @classmethod
    def configured(cls, settings: CommSettings) -> tuple[BusyPolling, float] | None:
        """Return the object for the running event loop, and the seconds of *settings*.

        Returns None if busy polling is off.
        """
        seconds = settings.busy_poll
        if not seconds:
            return None
        loop = asyncio.get_running_loop()
        polling = _polling.get(loop)
        if polling is None:
            polling = _polling[loop] = cls()
        return polling, seconds

    def poll_for(self, seconds: float) -> None:
        """Poll for at least *seconds* from now on."""
        self._end = max(self._end, self.clock() + seconds)
        if not self.is_polling:
            self.is_polling = True
            asyncio.get_running_loop().call_soon(self._poll)

    def _poll(self) -> None:
        if self.clock() < self._end:
            # As long as a callback is in its queue, an event loop polls instead of sleeping.
            asyncio.get_running_loop().call_soon(self._poll)
        else:
            self.is_polling = False


# Event loop → its busy polling.
_polling: WeakKeyDictionary[asyncio.AbstractEventLoop, BusyPolling] = WeakKeyDictionary()
