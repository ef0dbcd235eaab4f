"""The delay of an event loop: how late its timers are.

A timer is late while a callback or a step of a coroutine runs, so its delay is also the time that a
message waits before it is handled.  The measurement wakes the event loop some times per second;
therefore it runs only while an object wants it, inside of `measuring`.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from distributed.telemetry.request_counts import LATENCY_BOUNDS

__all__ = ["LoopDelay", "delay_of", "measuring"]

#: Seconds between two measurements.
INTERVAL = 0.2


class LoopDelay:
    """The delays of one event loop since they were first measured.

    Attributes
    ----------
    last, longest, total
        The newest delay, the longest and the sum of all, in seconds; None before the first.
    buckets
        Number of delays per bucket; see `LATENCY_BOUNDS`.
    """

    # Invariant: `_timer` is set if and only if `_users` is above 0.
    __slots__ = ("_loop", "_timer", "_users", "buckets", "last", "longest", "total")

    def __init__(self) -> None:
        self.last: float | None = None
        self.longest: float | None = None
        self.total = 0.0
        self.buckets = [0] * (len(LATENCY_BOUNDS) + 1)
        self._users = 0
        # The loop has a reference to this object, in its timer; the registry has one to the loop.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def count(self) -> int:
        """Number of measurements."""
        return sum(self.buckets)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Measure from now on, for one more user."""
        self._users += 1
        if self._users == 1:
            self._loop = loop
            self._schedule()

    def stop(self) -> None:
        """Stop to measure for one user; the values stay."""
        self._users -= 1
        if not self._users:
            assert self._timer is not None
            self._timer.cancel()
            self._timer = self._loop = None

    def _schedule(self) -> None:
        assert self._loop is not None
        due = self._loop.time() + INTERVAL
        self._timer = self._loop.call_at(due, self._measure, due)

    def _measure(self, due: float) -> None:
        assert self._loop is not None
        # Timers may run early by the resolution of the loop's clock.
        delay = max(self._loop.time() - due, 0.0)
        self.last = delay
        self.longest = delay if self.longest is None else max(self.longest, delay)
        self.total += delay
        self.buckets[bisect_left(LATENCY_BOUNDS, delay)] += 1
        self._schedule()


#: Event loop → its delays.
_delays: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopDelay] = WeakKeyDictionary()


def delay_of(loop: asyncio.AbstractEventLoop) -> LoopDelay:
    """Return the delays of an event loop."""
    return _delays.setdefault(loop, LoopDelay())


@contextmanager
def measuring() -> Iterator[LoopDelay]:
    """Measure the delay of the running event loop inside of this context.

    Examples
    --------
    >>> async def main():
    ...     with measuring() as delay:
    ...         await asyncio.sleep(0.5)
    ...         return delay.count
    >>> asyncio.run(main()) >= 1
    True
    """
    loop = asyncio.get_running_loop()
    delay = delay_of(loop)
    delay.start(loop)
    try:
        yield delay
    finally:
        delay.stop()
