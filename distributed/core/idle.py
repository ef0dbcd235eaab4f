"""The end of connections that no call has used for some time (``timeouts.pool-idle``).

`ConnectionPool` and `rpc` give out the connection that was used last, so those that a burst of
calls has left over stay idle.  :class:`IdleTimeout` has such connections closed.  It needs no timer
while no connection is idle, and the timers of all pools of an event loop are one.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from weakref import WeakMethod

from distributed.comm.settings import settings
from distributed.telemetry.timers import SharedCallback

__all__ = ["IdleTimeout"]

#: Number of times per timeout that connections are checked.  A connection is closed when it has
#: been idle for the timeout, and at most for this part of it longer.
CHECKS_PER_TIMEOUT = 4


class IdleTimeout:
    """The time after which the owner of connections closes those that are idle.

    Parameters
    ----------
    seconds
        The time.
    close_idle
        A method of the owner.  It closes the connections that have been idle since the given time,
        and returns whether it wants to be called again.  This object does not keep the owner alive.
    """

    #: Return the current time in seconds; a method, so that a test can replace it.
    clock = staticmethod(monotonic)

    def __init__(self, seconds: float, close_idle: Callable[[float], bool]) -> None:
        self.seconds = seconds
        self._close_idle = WeakMethod(close_idle)
        interval = seconds * 1000 / CHECKS_PER_TIMEOUT
        self._timer = SharedCallback(self.check, interval)

    @classmethod
    def configured(cls, close_idle: Callable[[float], bool]) -> IdleTimeout | None:
        """Return an object with the configured time, or None if idle connections stay open."""
        seconds = settings().pool_idle_timeout
        return None if seconds is None else cls(seconds, close_idle)

    @property
    def is_running(self) -> bool:
        """Whether connections are checked regularly."""
        return self._timer.is_running()

    def begin(self) -> float:
        """Check connections regularly from now on; return the current time."""
        if not self._timer.is_running():
            self._timer.start()
        return self.clock()

    def check(self) -> None:
        """Have connections closed that are idle for too long."""
        close_idle = self._close_idle()
        if close_idle is None or not close_idle(self.clock() - self.seconds):
            self.stop()

    def stop(self) -> None:
        """Check no more until the next `begin`."""
        self._timer.stop()
