"""One-way streams of messages: read them from a comm and call their handlers.

Handlers start in the order of the messages.  A plain function ends before the next handler starts.
A coroutine runs in a task of its own, concurrently with later handlers; if too many run, the
stream is not read until one of them ends.  A handler that fails ends its stream, because later
messages may depend on the failed one, and the peer has to notice.

A peer decides how many messages one batch has.  So other tasks run each `TURN` seconds while
batches are handled.  Streams that handle batches at the same time share these seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from itertools import islice
from operator import length_hint
from time import monotonic, perf_counter
from typing import Any, Protocol

from distributed.base import config
from distributed.base.logs import get_logger
from distributed.base.text import shown_repr
from distributed.comm.core import Comm, CommClosedError
from distributed.core.conversations import unwrapped
from distributed.core.errors.text import safe_repr
from distributed.core.mistakes import bad_call, do_not_fit
from distributed.core.receipts import Receipts, Sessions, receipts_for

logger = get_logger("distributed.core")


#: Maximum number of seconds for which the handlers of batches run before other tasks do.
TURN = 0.003

#: Number of messages of a batch after which the time is compared with `TURN`, which takes time too.
_CHECKED_AFTER = 8


#: Maximum number of seconds for reading the messages that have arrived when streams are drained.
_ARRIVED = 0.1


class StreamServer(Protocol):
    """The attributes of a server that :class:`Streams` uses."""

    stream_handlers: dict[str, Callable[..., Any]]
    _close_begun: bool
    _refuses_requests: bool

    @property
    def _name_in_messages(self) -> str: ...


class _EndOfStream(Exception):
    """A stream ends, but not because its comm was closed."""


class _Stream:
    """The state of one stream."""

    def __init__(self, comm: Comm, receipts: Receipts | None) -> None:
        self.comm = comm
        # None if the peer wants no acknowledgements.
        self.receipts = receipts
        # Whether the stream waits for its next message.
        self.idle = False
        # Number of reads that have returned a message.
        self.reads = 0
        # The coroutine handlers that have not ended.
        self.running: set[asyncio.Task[Any]] = set()
        # The error of the first handler that failed; `Streams._end` raises it once.
        self.failure: BaseException | None = None
        # Whether nothing will raise `failure` any more.
        self.ended = False
        # The future that the reader awaits while it waits for handlers, else None.
        self._change: asyncio.Future[None] | None = None

    def must_end(self) -> bool:
        """Return whether no more messages may be handled, although some were read."""
        return self.failure is not None or (self.receipts is not None and self.receipts.left)

    def wake(self) -> None:
        """Wake the reader if it waits for handlers."""
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    async def change(self) -> None:
        """Wait until `wake` is called."""
        self._change = asyncio.get_running_loop().create_future()
        try:
            await self._change
        finally:
            self._change = None


class Streams:
    """The streams that one server receives."""

    # A task is in `_tasks` and in `running` of its stream from its start until it has ended.
    def __init__(self, server: StreamServer):
        self._server = server
        # Maximum number of coroutine handlers of one stream that run at a time; None for no
        # maximum.
        limit = config.get_int("distributed.comm.max-stream-handlers")
        self._limit = None if limit is None else max(limit, 1)
        #: Whether `drain` has cancelled a handler.
        self.cut_short = False
        # Whether streams end before their next message; never reset.
        self._ending = False
        # Number of streams that let other tasks run before they handle more messages.
        self._paused = 0
        # The sessions of acknowledged streams.
        self._sessions = Sessions()
        # The streams that have not ended.
        self._streams: set[_Stream] = set()
        # Each coroutine handler that runs → its stream and its op.
        self._tasks: dict[asyncio.Task[Any], tuple[_Stream, Any]] = {}
        #: Numbers of all streams so far, of those whose handler failed, and of their messages.
        self.opened = self.failed = self.messages = 0

    async def handle(self, comm: Comm, extra: Mapping[str, Any] | None = None) -> None:
        """Call stream handlers with the messages from *comm* until the stream ends; close *comm*.

        See ``Server.handle_stream``.
        """
        server = self._server
        extra = dict(extra or {})
        comm.name = comm.name or "stream"
        if server._refuses_requests:
            # Its handler started before that: waiting for a stream without an end would be useless.
            await comm.close()
            return
        fields = {"peer": comm.peer_address}
        logger.info("Starting established connection to %s", comm.peer_address, extra=fields)
        receipts = receipts_for(comm, self._sessions)
        stream = _Stream(comm, receipts)
        self._streams.add(stream)
        self.opened += 1
        # Seconds for which handlers of batches may still run before other tasks do.  Reading need
        # not let them run, since messages that have arrived already are read at once.
        turn, turn_ends = TURN, 0.0
        try:
            try:
                # Not `while not comm.closed()`: messages that arrived before the end are read.
                while not self._ending:
                    stream.idle = True
                    try:
                        msgs = await comm.read()
                    finally:
                        stream.idle = False
                    stream.reads += 1
                    is_list = isinstance(msgs, tuple | list)
                    batch = iter(msgs if is_list else (msgs,))
                    self.messages += len(msgs) if is_list else 1
                    if is_list and receipts is not None:
                        if receipts.left:
                            # The read had received this batch before it was left.
                            raise _EndOfStream
                        receipts.batch, receipts.size = batch, len(msgs)
                    is_batch = is_list and len(msgs) > 1
                    if is_batch:
                        turn_ends = perf_counter() + turn / (1 + self._paused)
                    while True:
                        # Receipts count a message as handled once it is taken from the iterator, so
                        # the stream does not pause between that and the call of the handler.
                        for msg in islice(batch, _CHECKED_AFTER):
                            op = msg.pop("op", None) if isinstance(msg, dict) else None
                            handler = (
                                server.stream_handlers.get(op) if isinstance(op, str) else None
                            )
                            if handler is None or op == "close-stream":
                                if self._ends_stream(comm, op, msg):
                                    raise _EndOfStream
                                continue
                            try:
                                result = handler(**{**extra, **msg}) if extra else handler(**msg)
                            except (KeyboardInterrupt, SystemExit):
                                raise
                            except BaseException as exc:  # noqa: BLE001  (raised later)
                                if do_not_fit(exc, handler, (), {**extra, **msg}):
                                    exc = bad_call(exc, f"stream handler of op {op!r}")
                                self._failed(stream, op, exc)
                                raise _EndOfStream from None
                            if result is not None and asyncio.iscoroutine(result):
                                await self._start(stream, op, result)
                                if stream.must_end():
                                    raise _EndOfStream
                        if not length_hint(batch):
                            break
                        if perf_counter() > turn_ends:
                            turn_ends = perf_counter() + await self._pause(stream)
                    if receipts is not None and receipts.batch is not None:
                        receipts.end_batch()
                    if is_batch:
                        turn = turn_ends - perf_counter()
                        if turn < 0:
                            turn = await self._pause(stream)
                    # Release the memory of these messages before the next one arrives.
                    msgs = batch = msg = result = None
            except _EndOfStream:
                pass
            except CommClosedError as exc:
                if stream.failure is None:
                    peer = comm.peer_address
                    logger.info("Connection to %s has been closed.", peer, extra=fields)
                    logger.debug("Stream to %s ended: %s", server._name_in_messages, exc)
            finally:
                if receipts is not None:
                    receipts.close()
                await comm.close()
            await self._end(stream)
        except BaseException:
            stream.ended = True
            self._cancel_handlers(stream)
            raise
        finally:
            stream.ended = True
            self._streams.discard(stream)

    async def _pause(self, stream: _Stream) -> float:
        """Let other tasks run, and return the seconds for which the handlers may run then."""
        self._paused += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._paused -= 1
        if stream.must_end():
            raise _EndOfStream
        return TURN / (1 + self._paused)

    async def _start(self, stream: _Stream, op: Any, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run the coroutine of a handler in a task, and return when it has started."""
        task = asyncio.create_task(coroutine, name=f"stream handler {op}")
        self._tasks[task] = stream, op
        stream.running.add(task)
        task.add_done_callback(self._done)
        # The task starts now, before the handler of the next message.
        await asyncio.sleep(0)
        limit = self._limit
        while limit is not None and len(stream.running) >= limit and not self._server._close_begun:
            await stream.change()

    def _done(self, task: asyncio.Task[Any]) -> None:
        stream, op = self._tasks.pop(task)
        stream.running.discard(task)
        if not task.cancelled():
            if (exc := task.exception()) is not None:
                self._failed(stream, op, exc)
        elif stream.failure is None and not stream.ended and not self._ending:
            self._failed(stream, op, asyncio.CancelledError())
        stream.wake()

    def _failed(self, stream: _Stream, op: Any, exc: BaseException) -> None:
        """Let the error of a handler end its stream."""
        name, peer = self._server._name_in_messages, stream.comm.peer_address
        what = f"stream handler of op {shown_repr(op)} in {name}, called with a message from {peer}"
        if not isinstance(exc, Exception):
            # A CancelledError from handle_stream() would look as if its caller was cancelled, a
            # GeneratorExit as if it was closed.
            cancelled = isinstance(exc, asyncio.CancelledError)
            error = RuntimeError(
                f"The {what}, {'was cancelled' if cancelled else f'raised {safe_repr(exc)}'}"
            )
            error.__cause__ = exc
            exc = error
        else:
            try:
                exc.add_note(f"In the {what}")
            except Exception:
                logger.warning("%s accepts no note", type(exc), exc_info=True)
        if stream.failure is not None or stream.ended or isinstance(exc, CommClosedError):
            # The error is not raised, or is mistaken for one about the comm of the stream.
            logger.error("Exception in the %s", what, exc_info=exc, extra={"peer": peer, "op": op})
        if stream.failure is None and not stream.ended:
            self.failed += 1
            stream.failure = exc
            # Ends a read that is in progress.
            stream.comm.abort()

    async def _end(self, stream: _Stream) -> None:
        """Wait for the handlers of a stream, and raise the error of one that failed.

        If a handler failed, the others are cancelled.  If the server closes, it ends them.
        """
        cancelled = False
        while stream.running and not self._server._close_begun:
            if stream.failure is not None and not cancelled:
                cancelled = True
                self._cancel_handlers(stream)
            await stream.change()
        stream.ended = True
        if stream.failure is not None:
            try:
                raise stream.failure
            finally:
                # Its traceback has this frame.
                stream.failure = None

    def _cancel_handlers(self, stream: _Stream) -> None:
        # A closing server cancels them itself, except the one that closes it.
        if not self._server._close_begun:
            for task in stream.running:
                task.cancel()

    def _ends_stream(self, comm: Comm, op: Any, msg: Any) -> bool:
        """Return whether a message without a handler ends the stream; log it if it does not."""
        if isinstance(op, str) and op == "close-stream":
            fields = {"peer": comm.peer_address}
            logger.info(
                "Received 'close-stream' from %s; closing.", comm.peer_address, extra=fields
            )
            return True
        # "OK" answers the request that turned this comm into a stream.
        if not (isinstance(msg, str) and msg == "OK"):
            logger.info(
                "%s has no stream handler for op %r in the stream from %s, and ignores %r",
                self._server._name_in_messages,
                op,
                comm.peer_address,
                msg,
                extra={"peer": comm.peer_address, "op": op},
            )
        return False

    def comms(self) -> set[Comm]:
        """Return the comms of the streams, as the server got them."""
        return {unwrapped(stream.comm) for stream in self._streams}

    def runs_here(self) -> bool:
        """Return whether the current task is that of a coroutine handler."""
        return asyncio.current_task() in self._tasks

    async def drain(self, deadline: float) -> None:
        """End the streams, and wait until their handlers have ended.

        Messages that have arrived are handled.  Handlers that still run at the *deadline* (of
        ``time.monotonic``) are cancelled.
        """
        # In one iteration the event loop passes on what has arrived, and in the next a reader runs.
        quiet, reads, until = 0, -1, min(deadline, monotonic() + _ARRIVED)
        while quiet < 2 and monotonic() < until:
            await asyncio.sleep(0)
            before, reads = reads, sum(stream.reads for stream in self._streams)
            unread = any(stream.comm.has_unread for stream in self._streams)
            quiet = 0 if unread or reads != before else quiet + 1
        self._ending = True
        me = asyncio.current_task()
        # Not abort(): data that was written to the peer is still sent.
        closing = [asyncio.create_task(each.comm.close()) for each in self._streams if each.idle]
        tasks = [*closing, *(task for task in self._tasks if task is not me)]
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=max(deadline - monotonic(), 0))
        for task in left:
            if task in self._tasks:
                stream, op = self._tasks[task]
                peer = stream.comm.peer_address
                logger.warning("The server closes, and cancels stream handler %s of %s", op, peer)
                self.cut_short = True
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1)

    def abort_idle(self) -> None:
        """End the streams that wait, without calling any handler."""
        self._ending = True
        for stream in list(self._streams):
            stream.wake()
            if stream.idle:
                stream.comm.abort()

    async def finish(self, grace: float) -> None:
        """Let coroutine handlers finish within *grace* seconds, then cancel them."""
        me = asyncio.current_task()
        if running := [task for task in self._tasks if task is not me]:
            await asyncio.wait(running, timeout=grace)
        left = {task for task in self._tasks if task is not me}
        for task in left:
            task.cancel()
        if left:
            _, left = await asyncio.wait(left, timeout=max(grace, 1))
        for task in left:
            logger.error("A stream handler does not end although it was cancelled: %s", task)
