"""Signals that ask a process to end: the first one gracefully, the second one at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["StopRequest", "end_process"]

#: The signals of Ctrl-C, and of service managers, container runtimes and ``kill``.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: The requests that a signal sets.  While there is one, `_on_signal` handles the signals.
_requests: list[StopRequest] = []


def end_process(code: int, clean_up: Callable[[], object] = lambda: None) -> None:
    """End this process without waiting for anything.

    Parameters
    ----------
    code
        The exit code.
    clean_up
        Called before; its errors are ignored, since it may interrupt any other function.
    """
    try:
        clean_up()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


class StopRequest:
    """Whether a signal has asked this process to end.

    Parameters
    ----------
    clean_up
        Called before a second signal ends the process.
    """

    # `signum` is set once, by a signal handler in the main thread.  `_event` is set afterwards, by
    # a callback of the event loop.
    def __init__(self, clean_up: Callable[[], object] = lambda: None) -> None:
        #: The number of the first signal; None before that.
        self.signum: int | None = None
        self._clean_up = clean_up
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        # Called when the first signal arrives, in the event loop.
        self._callbacks: list[Callable[[], object]] = []

    @property
    def name(self) -> str:
        """The name of the first signal."""
        return "" if self.signum is None else signal.Signals(self.signum).name

    async def wait(self) -> None:
        """Wait until a signal has arrived."""
        await self._event.wait()

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM; not in a thread other than the main one, which gets none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Any] = {}
        if not _requests:
            previous = {number: signal.getsignal(number) for number in _SIGNALS}
        _requests.append(self)
        try:
            for number in previous:
                # Not `add_signal_handler` of the event loop: its callbacks do not run while a
                # handler blocks the loop, and then a second signal must still end the process.
                signal.signal(number, _on_signal)
            yield
        finally:
            _requests.remove(self)
            for number, handler in previous.items():
                # None: not set from Python, so Python cannot set it again.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def calling(self, callback: Callable[[], object]) -> Iterator[None]:
        """Call *callback* in the event loop if a signal arrives in this context, or has arrived."""
        if self._event.is_set():
            callback()
        self._callbacks.append(callback)
        try:
            yield
        finally:
            self._callbacks.remove(callback)

    def _arrived(self) -> None:
        self._event.set()
        for callback in list(self._callbacks):
            callback()

    def _set(self, signum: int) -> None:
        self.signum = signum
        self._loop.call_soon_threadsafe(self._arrived)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    if all(request.signum is not None for request in _requests):
        end_process(128 + signum, _clean_up_all)
    for request in _requests:
        if request.signum is None:
            request._set(signum)


def _clean_up_all() -> None:
    # A further signal does not run this again.
    for number in _SIGNALS:
        signal.signal(number, lambda signum, frame: os._exit(128 + signum))
    for request in _requests:
        request._clean_up()
