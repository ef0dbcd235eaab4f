"""Periodic callbacks that share one timer per event loop and interval.

Each server has periodic callbacks of its own. If each had a timer of its own as well, a process
with a thousand servers would wake a thousand times per interval. Here all callbacks of the same
interval run one after the other when their timer expires, and the timer ends with its last
callback.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary, WeakValueDictionary

from tornado.ioloop import IOLoop, PeriodicCallback

from distributed.base.logs import get_logger

__all__ = ["SharedCallback"]

# Tornado's logger for exceptions in callbacks.
logger = get_logger("tornado.application")


class _Timer:
    """The timer of all started callbacks of one event loop and interval."""

    # Invariant: the timer runs while `callbacks` is not empty.
    def __init__(self, interval: float) -> None:
        # In the order in which they were started.
        self.callbacks: dict[SharedCallback, None] = {}
        self._timer = PeriodicCallback(self._run, interval)

    def add(self, callback: SharedCallback) -> None:
        self.callbacks[callback] = None
        if not self._timer.is_running():
            self._timer.start()

    def remove(self, callback: SharedCallback) -> None:
        self.callbacks.pop(callback, None)
        if not self.callbacks:
            self._timer.stop()

    def _run(self) -> None:
        for callback in list(self.callbacks):
            # A callback before this one may have stopped it.
            if callback in self.callbacks:
                try:
                    callback.callback()
                except Exception:
                    logger.exception("Exception in callback %r", callback.callback)


# Event loop → interval in milliseconds → timer. Only the started callbacks keep a timer alive.
_timers: WeakKeyDictionary[IOLoop, WeakValueDictionary[float, _Timer]] = WeakKeyDictionary()


class SharedCallback(PeriodicCallback):
    """A Tornado ``PeriodicCallback`` without a timer of its own.

    Parameters
    ----------
    callback
        A plain function without arguments. An exception is logged, and the next call is made.
    interval
        Milliseconds between two calls. The first call is made after at most this time.
    """

    def __init__(self, callback: Callable[[], None], interval: float) -> None:
        super().__init__(callback, interval)
        # The timer while this is started, otherwise None.
        self._timer: _Timer | None = None

    def start(self) -> None:
        """Call the function regularly from now on, on the current event loop."""
        self.stop()
        self.io_loop = IOLoop.current()
        timers = _timers.setdefault(self.io_loop, WeakValueDictionary())
        timer = timers.get(self.callback_time)
        if timer is None:
            timer = timers[self.callback_time] = _Timer(self.callback_time)
        self._timer = timer
        timer.add(self)

    def stop(self) -> None:
        """Make no more calls until the next `start`."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.remove(self)

    def is_running(self) -> bool:
        """Return whether this is started and not stopped."""
        return self._timer is not None
