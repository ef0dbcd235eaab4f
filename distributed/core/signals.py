"""Signals that ask a process to end: the first one gracefully, the second one at once."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Never

__all__ = ["StopRequest", "end_process", "end_with_parent", "exit_without_threads"]

#: The signals of Ctrl-C, and of service managers, container runtimes and ``kill``.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Seconds for writing what a process that ends at once has logged and printed.
_LAST_WORDS = 1.0

#: The requests that a signal sets.  While there is one, `_on_signal` handles the signals.
_requests: list[StopRequest] = []


def end_process(code: int, last_words: Callable[[], object] = lambda: None) -> Never:
    """End this process, without waiting for its tasks and threads.

    Parameters
    ----------
    code
        The exit code.
    last_words
        Called before, in a thread: it may log a line.
    """

    def speak() -> None:
        last_words()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()

    try:
        # In a thread, because the output may be blocked, or locked by the code that a signal has
        # interrupted.
        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        speaker.join(_LAST_WORDS)
    finally:
        os._exit(code)


def exit_without_threads(code: int) -> Never:
    """End this process as ``sys.exit`` does, but without waiting for threads that still run.

    The functions that are registered with :mod:`atexit` are called.

    Parameters
    ----------
    code
        The exit code, such as :func:`run` returns.
    """
    atexit._run_exitfuncs()
    end_process(code)


def end_with_parent() -> None:
    """End this process gracefully when its standard input ends, as if it got SIGTERM.

    For a child process whose standard input is a pipe that its parent keeps open: the kernel closes
    the pipe when the parent ends, even if that is killed.  Call this function before :func:`run`.

    Examples
    --------
    >>> import subprocess
    >>> def start():
    ...     return subprocess.Popen(["python", "child.py"], stdin=subprocess.PIPE)
    """

    def wait() -> None:
        # Not by sys.stdin: its lock would be held when the interpreter ends.  Not in the event
        # loop, which may be blocked.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


class StopRequest:
    """Whether a signal has asked this process to end.

    Parameters
    ----------
    at_signal
        Called when the first signal arrives, even while the event loop is blocked.
    clean_up
        Called before a second signal ends the process.
    """

    # `signum` is set once, by a signal handler in the main thread.  `_event` is set afterwards, in
    # the event loop.
    def __init__(self, at_signal: Callable[[], object], clean_up: Callable[[], object]) -> None:
        #: The number of the first signal; None before that.
        self.signum: int | None = None
        self._at_signal = at_signal
        self._clean_up = clean_up
        self._event = asyncio.Event()
        # None until bind() is called.
        self._loop: asyncio.AbstractEventLoop | None = None
        # Called when the first signal arrives, in the event loop.
        self._callbacks: list[Callable[[], object]] = []

    @property
    def name(self) -> str:
        """The name of the first signal."""
        return "no signal" if self.signum is None else signal.Signals(self.signum).name

    def bind(self) -> None:
        """Tell the running event loop about the signal."""
        self._loop = asyncio.get_running_loop()
        if self.signum is not None:
            self._event.set()

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
        self._at_signal()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    if all(request.signum is not None for request in _requests):
        try:
            _clean_up_all()
        finally:
            end_process(128 + signum)
    for request in _requests:
        if request.signum is None:
            request._set(signum)


def _clean_up_all() -> None:
    # A further signal does not run this again.
    for number in _SIGNALS:
        signal.signal(number, lambda signum, frame: os._exit(128 + signum))
    for request in _requests:
        request._clean_up()
