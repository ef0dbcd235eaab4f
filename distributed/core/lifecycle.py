"""Start and close an object once, in order and within a bounded time.

:class:`LifeCycle` decides the order and handles failures.  Subclasses say what starting and
closing mean, in :meth:`LifeCycle.start_unsafe` and :meth:`LifeCycle._close_unsafe`.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar, final

from tornado.ioloop import IOLoop

from distributed.base import config
from distributed.base.arguments import check_duration
from distributed.base.logs import get_logger
from distributed.core.status import Status

logger = get_logger("distributed.core")

T = TypeVar("T")


class LifeCycle:
    """An object that is started, runs on an event loop, and is closed."""

    #: Maximum time for starting, in seconds or as a string such as ``"2 minutes"``;
    #: None for no maximum.
    death_timeout: float | str | None = None

    # `_status` moves init → running → closing → closed, or init → closing → failed.  Subclasses may
    # set other states in between.
    def __init__(self) -> None:
        #: A unique name: ``"ClassName-<uuid>"``.
        self.id = f"{type(self).__name__}-{uuid.uuid4()}"
        #: The thread in which the object was started; 0 before that.
        self.thread_id = 0
        # The monotonic time at which it was started, in seconds; None before that.
        self._started_at: float | None = None
        self._status = Status.init
        # Held while start_unsafe() runs, so that concurrent calls of start() wait for it.
        self._start_lock = asyncio.Lock()
        # The error that each later call of start() raises.  Set once, with Status.failed.
        self._start_failure: Exception | None = None
        # The status at the end of close(): closed, or failed if start_unsafe() raised.
        self._last_status = Status.closed
        # Set by the first call of close(), and never reset.
        self._close_begun = False
        # Set by the first call of drain() or close(), and never reset.
        self._refuses_requests = False
        # The time (of time.monotonic) when drain() cancels what still runs; None before drain().
        self._drain_deadline: float | None = None
        # Set at the end of the first call of close(), also if that call fails.
        self._event_finished = asyncio.Event()
        # What enter_async_context() has entered.
        self._contexts = AsyncExitStack()
        # None until io_loop is first read or set.
        self._io_loop: IOLoop | None = None

    @property
    def io_loop(self) -> IOLoop:
        """The event loop of this object; by default the one that is current at first use."""
        if self._io_loop is None:
            self._io_loop = IOLoop.current()
        return self._io_loop

    @io_loop.setter
    def io_loop(self, value: IOLoop | None) -> None:
        self._io_loop = value

    loop = io_loop

    @property
    def status(self) -> Status:
        """The current state."""
        return self._status

    @status.setter
    def status(self, value: Status) -> None:
        if not isinstance(value, Status):
            raise TypeError(f"Expected Status; got {value!r}")
        self._status = value

    @property
    def _is_open(self) -> bool:
        """Whether the object is neither closing, nor closed, nor failed to start."""
        return not self._close_begun and self._status not in (Status.closed, Status.failed)

    def _cancels_current_task(self) -> bool:
        """Return whether a CancelledError is meant for the current task.

        If False, something that the task awaited was cancelled, and the task continues.
        """
        task = asyncio.current_task()
        return self._close_begun or (task is not None and task.cancelling() > 0)

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
            If :meth:`start_unsafe` raises; its exception is the cause.  The object is then closed
            and has ``Status.failed``.
        asyncio.TimeoutError
            If starting takes longer than :attr:`death_timeout`.  The object is then closed too.
        """
        if self._status is Status.running:
            return self
        async with self._start_lock:
            if self._start_failure is not None:
                raise self._start_failure
            if self._status is not Status.init:
                return self
            name = type(self).__name__
            timeout = check_duration("death_timeout", self.death_timeout)
            limit = asyncio.timeout(timeout)
            try:
                async with limit:
                    self._io_loop = IOLoop.current()
                    self.thread_id = threading.get_ident()
                    self._started_at = monotonic()
                    await self.start_unsafe()
            except Exception as exc:
                if limit.expired():
                    failure: Exception = TimeoutError(f"{name} start timed out after {timeout}s.")
                else:
                    failure = RuntimeError(f"{name} failed to start.")
                failure.__cause__ = exc
                self._last_status = Status.failed
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
        if not self._close_begun:
            self._last_status = Status.failed
            await self.close(reason=f"failure-to-start-{type(failure)}")
        # Otherwise, close() may be waiting for this task: waiting for it would be a deadlock.
        if self._event_finished.is_set():
            # Subclasses may have set the status at the end of their close().
            self.status = self._last_status

    async def start_unsafe(self) -> Self:
        """Do the work of starting.  Subclasses override this method and call it.

        Only :meth:`start` calls it, at most once.
        """
        return self

    async def enter_async_context(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter a context, which :meth:`close` leaves at its end; the last one first.

        For what the object needs while it runs; :meth:`start_unsafe` calls this method.

        Returns
        -------
        object
            What the context manager returns.

        Raises
        ------
        RuntimeError
            If the object is being closed.
        """
        if self._close_begun:
            raise RuntimeError(f"{self.id} is closed, and enters no context")
        result = await self._contexts.enter_async_context(context)
        if self._event_finished.is_set():
            # It was closed meanwhile.
            await self._contexts.aclose()
        return result

    async def drain(self, timeout: float | str | None = None) -> bool:
        """Refuse new requests, and wait until those in progress have finished.

        Call :meth:`close` afterwards; :func:`distributed.core.serve` calls both.  One-way streams
        continue until :meth:`close`, because requests in progress may need their messages.
        Subclasses may extend this method, to end work that has no end of its own.

        Parameters
        ----------
        timeout
            Maximum time, in seconds or as a string such as ``"500ms"``.  Handlers that still run
            then are cancelled, and their callers get an error.  The default is the value of
            ``distributed.server.shutdown-timeout``.

        Returns
        -------
        bool
            Whether everything finished in time.
        """
        seconds = check_duration("timeout", timeout)
        if seconds is None:
            seconds = config.get_timedelta("distributed.server.shutdown-timeout") or 0
        if self._close_begun:
            await self._event_finished.wait()
            return True
        self._refuses_requests = True
        self.status = Status.closing_gracefully
        self._drain_deadline = monotonic() + seconds
        return await self._drain_unsafe(self._drain_deadline)

    async def _drain_unsafe(self, deadline: float) -> bool:
        """Do the work of :meth:`drain`, until a time of ``time.monotonic``."""
        return True

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        """Close, or wait for the end of a close that is in progress.

        A handler of a server that is being closed does not wait: the close waits for that handler.

        Parameters
        ----------
        timeout
            Seconds before running work is cancelled; by default about one.
        reason
            The reason, for the log.
        """
        # Parsed first, so that an invalid timeout raises before anything is closed.
        grace = check_duration("timeout", timeout)
        if self._close_begun:
            if not self._close_waits_for_current_task():
                await self._event_finished.wait()
            return
        self._close_begun = self._refuses_requests = True
        if self._status is not Status.closing_gracefully:
            self.status = Status.closing
        logger.debug("Closing %s%s", self.id, f": {reason}" if reason else "")
        try:
            try:
                await self._close_unsafe(grace)
            finally:
                await self._contexts.aclose()
        finally:
            self.status = self._last_status
            self._event_finished.set()

    def _close_waits_for_current_task(self) -> bool:
        """Return whether :meth:`_close_unsafe` waits for the end of the current task."""
        return False

    async def _close_unsafe(self, timeout: float | None) -> None:
        """Do the work of closing; called once, by :meth:`close`."""

    async def finished(self) -> None:
        """Wait until this object is closed."""
        await self._event_finished.wait()
