"""How a server comes to life and how it ends.

:class:`LifeCycle` knows the order of things, not what they are: it starts once
whoever asks and however many ask, bounds that in time, turns a failure into a
closed server and one clear error, and closes once.  What starting and closing
mean is in the hooks :meth:`LifeCycle.start_unsafe` and :meth:`LifeCycle._close_unsafe`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self, final

from tornado.ioloop import IOLoop

from distributed.base.quantities import parse_timedelta
from distributed.core.status import Status

logger = logging.getLogger(__name__)


class LifeCycle:
    """An object that is started, runs on an event loop, and is closed.

    Attributes
    ----------
    id
        A name that no other object has, ``"ClassName-<uuid>"``.
    thread_id
        The thread in which it was started, 0 before.
    death_timeout
        Time that starting may take, in seconds or like ``"2 minutes"``; None
        (the default) for any.
    """

    # State.  `_status` moves init -> running -> closing -> closed, or to failed
    # if it did not start; subclasses may set it in between.  `_start_failure` is
    # set once, with failed.  `_close_begun` is set by the first call of close(),
    # `_event_finished` at its end, whatever happened.
    death_timeout: float | str | None = None

    def __init__(self) -> None:
        self.id = f"{type(self).__name__}-{uuid.uuid4()}"
        self.thread_id = 0
        self._status = Status.init
        self._start_lock = asyncio.Lock()
        self._start_failure: Exception | None = None
        self._close_begun = False
        self._event_finished = asyncio.Event()
        self._io_loop: IOLoop | None = None

    @property
    def io_loop(self) -> IOLoop:
        """The loop on which this object lives: the one that first ran it."""
        if self._io_loop is None:
            self._io_loop = IOLoop.current()
        return self._io_loop

    @io_loop.setter
    def io_loop(self, value: IOLoop | None) -> None:
        self._io_loop = value

    @property
    def loop(self) -> IOLoop:
        """The same as :attr:`io_loop`."""
        return self.io_loop

    @loop.setter
    def loop(self, value: IOLoop | None) -> None:
        self.io_loop = value

    @property
    def status(self) -> Status:
        """Where in its life this object is."""
        return self._status

    @status.setter
    def status(self, value: Status) -> None:
        if not isinstance(value, Status):
            raise TypeError(f"expected a member of Status, got {value!r}")
        self._status = value

    def __await__(self) -> Generator[Any, None, Self]:
        return self.start().__await__()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @final
    async def start(self) -> Self:
        """Start, unless that has happened already, and return self.

        Subclasses override :meth:`start_unsafe`.

        Raises
        ------
        RuntimeError
            If :meth:`start_unsafe` raises; that is the cause.  The object is
            closed then and its status failed.
        asyncio.TimeoutError
            If it takes longer than :attr:`death_timeout`; likewise.
        """
        if self._status is Status.running:
            return self
        async with self._start_lock:
            if self._start_failure is not None:
                raise self._start_failure
            if self._status is not Status.init:
                return self
            name = type(self).__name__
            timeout = parse_timedelta(self.death_timeout)
            limit = asyncio.timeout(timeout)
            try:
                async with limit:
                    self._io_loop = IOLoop.current()
                    self.thread_id = threading.get_ident()
                    await self.start_unsafe()
            except Exception as exc:
                if limit.expired():
                    failure: Exception = TimeoutError(f"{name} start timed out after {timeout}s.")
                else:
                    failure = RuntimeError(f"{name} failed to start.")
                failure.__cause__ = exc
                await self._fail_to_start(failure)
                raise failure from exc
            except BaseException:
                await self._fail_to_start(
                    RuntimeError(f"{name} failed to start: it was cancelled.")
                )
                raise
            if self._status is Status.init:
                self.status = Status.running
        return self

    async def _fail_to_start(self, failure: Exception) -> None:
        self._start_failure = failure
        if self._close_begun:
            # Whoever closes may be waiting for this.
            return
        await self.close(reason=f"failure-to-start-{type(failure)}")
        self.status = Status.failed

    async def start_unsafe(self) -> Self:
        """Do what starting takes.  Subclasses override this and call it.

        Only :meth:`start` calls it, which sees to it that it runs once.
        """
        return self

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        """Close.  Returns when all is closed, whoever began with it.

        Parameters
        ----------
        timeout
            Time in seconds that running work is given to finish before it is
            cancelled; by default about one second.
        reason
            Why, for the log.
        """
        # Whoever configures may write "2s"; whoever writes what cannot be understood
        # learns that before anything is closed.
        grace = None if timeout is None else parse_timedelta(timeout)
        if self._close_begun:
            await self._event_finished.wait()
            return
        self._close_begun = True
        if self._status is not Status.closing_gracefully:
            self.status = Status.closing
        logger.debug("Closing %s%s", self.id, f": {reason}" if reason else "")
        try:
            await self._close_unsafe(grace)
        finally:
            self.status = Status.closed
            self._event_finished.set()

    async def _close_unsafe(self, timeout: float | None) -> None:
        """Do what closing takes; called once."""

    async def finished(self) -> None:
        """Wait until this object is closed."""
        await self._event_finished.wait()
