"""A stream of small messages on one comm, written in batches.

Writing each message of a stream (heartbeats, task states, …) separately is slow.  `BatchedSend`
accepts messages one by one, synchronously, and writes them as lists.  The peer reads lists, as
`Server.handle_stream` does.

When a batch leaves
    Messages sent in one iteration of the event loop leave together, at its end.  While a write is
    in progress, messages gather for the next batch.  So batches grow when the loop is busy or the
    peer is slow, and a message alone does not wait.

When a batch waits for the interval
    A batch of one message takes about 40 µs of CPU time (sender and receiver together), but a
    message in a large batch only 3 µs.  This matters if writing small batches is most of what an
    event loop does.  Therefore the streams of an event loop share a budget: the time in which they
    write may be half of the time that passes.  Each stream also has a budget of its own, a fifth of
    the time (:mod:`distributed.base.budget`).  While one of the two is used up, a stream writes at
    most one batch per interval.  A stream that sends less often than once per interval still does
    not wait, since its batches would not grow.

No message is skipped: the messages that the peer has read are always a prefix of the messages that
were sent.

When the connection breaks
    A write ends when the kernel has accepted the bytes, and the kernel discards those that it has
    not delivered when the connection breaks.  Therefore a peer whose `Server.handle_stream` reads
    the stream acknowledges it (:mod:`distributed.comm.acknowledgements`), and the stream keeps its
    messages until then.

    All other peers acknowledge nothing: those that run the original, those that read the comm
    themselves, and those over ``inproc://``.  Towards them, what the kernel has accepted counts as
    delivered, although it may be lost.
"""

from __future__ import annotations

import asyncio
import reprlib
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod

from distributed.base import config
from distributed.base.arguments import check_duration
from distributed.base.budget import Account, Budget, budget_of
from distributed.base.callables import call_alive
from distributed.base.event_loop import asyncio_loop_of
from distributed.base.logs import get_logger
from distributed.base.quantities import parse_bytes
from distributed.comm.core import Comm, CommClosedError
from distributed.comm.delivery import ASK_AFTER_BYTES, Delivery
from distributed.protocol.families import check_families
from distributed.protocol.sizes import rough_size

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

__all__ = ["BatchedSend", "Budget", "rough_size"]

logger = get_logger(__name__)

#: Minimum number of bytes of a batch whose time no budget counts: its content takes the time.
LARGE_BATCH_BYTES = 65_536

#: Maximum number of bytes of a batch that is kept in the log of recent messages.
LOGGED_BATCH_BYTES = 1_000_000

#: The tasks of `BatchedSend.close`.  The event loop has only weak references to tasks.
_closing: set[asyncio.Task[None]] = set()


class BatchedSend:
    """Sender of messages on a comm, in batches.

    A message is written at the end of the current event-loop iteration, in one batch with all
    others sent in this iteration.  It waits while a write is in progress and, if this stream or the
    streams of this event loop spend much of the time on small batches, at most for the interval;
    the module's docstring gives the rule.

    Messages sent before `start` wait in ``buffer``.  If the comm breaks, the undelivered messages
    are in ``buffer``, in order; a `start` with another comm sends them first.

    A peer that reads the comm with `Server.handle_stream`, over a socket and with this package,
    acknowledges the messages.  Then ``buffer`` also gets the messages that were written and not
    acknowledged, a `start` on another comm to the same server skips those that it has handled, and
    each message is handled exactly once while both processes live.  If a new process has taken the
    place of the server, it gets the messages that the old one had not acknowledged.  The messages
    themselves are kept, not copies: do not change a message after `send`.

    Towards all other peers, a message counts as delivered when the system has accepted it.  If the
    comm breaks during a write, the whole batch counts as undelivered, although the peer may have
    read it.

    A message that cannot be serialized ends the stream.  The messages before it are delivered, the
    error is logged, the comm is closed, the message is dropped, and those after it stay in
    ``buffer``.  Continuing without the message would leave a gap that the peer cannot notice.

    All methods must be called on the event loop on which `start` was called.

    Parameters
    ----------
    interval : float or str
        Maximum time for which messages wait in order to be sent together, after the start of the
        previous batch, in milliseconds or with a unit (``"2ms"``); 0 to never wait.
    loop : tornado.ioloop.IOLoop, optional
        The loop that writes the batches; by default the loop that runs when `start` is called.
    serializers : sequence of str, optional
        Passed to `Comm.write`.
    max_buffer_size : int or str, optional
        Approximate size in bytes of the waiting messages, including the batch being written, from
        which on `send` raises; 0 for no limit.  By default
        ``distributed.comm.batched.max-buffer-size``.

    Attributes
    ----------
    comm : Comm or None
        The comm last passed to `start`.
    buffer : list
        Messages that wait to be written, and those that came back when the comm broke.
    unacknowledged : int
        Number of messages that were written to a peer that acknowledges, and are not acknowledged.
        Nothing more is written while they take ``max_buffer_size`` bytes.
    message_count, batch_count, byte_count : int
        Number of messages accepted by `send`, and of batches and bytes written.
    recent_message_log : collections.deque
        The last ``distributed.admin.low-level-log-length`` batches that were written, with
        ``"large-message"`` in place of each batch larger than 1 MB.
    buffered_bytes : int
        Approximate size of the messages that wait or are being written.
    next_deadline : float or None
        Time until which the next batch may wait, on the clock of the event loop: the start of the
        previous batch plus the interval; None before the first.

    Examples
    --------
    >>> async def report(address):
    ...     stream = BatchedSend(interval="2ms")
    ...     stream.send({"op": "hello"})
    ...     stream.start(await connect(address))
    ...     stream.send({"op": "heartbeat"}, {"op": "heartbeat"})
    ...     await stream.close()
    """

    # Invariants:
    # * `_writer` runs exactly while there are messages to write and an open comm to write them to.
    #   An idle stream therefore leaves no task when it is deleted or its comm breaks.
    # * `buffered_bytes` is the sum of rough_size() of `buffer` and of the batch being written.
    def __init__(
        self,
        interval: float | str,
        loop: IOLoop | None = None,
        serializers: Sequence[str] | None = None,
        *,
        max_buffer_size: int | str | None = None,
    ) -> None:
        if max_buffer_size is None:
            max_buffer_size = config.get_bytes("distributed.comm.batched.max-buffer-size") or 0
        try:
            self.max_buffer_size = parse_bytes(max_buffer_size)
        except (ValueError, TypeError) as exc:
            raise type(exc)(f"max_buffer_size={max_buffer_size!r}: {exc}") from None
        if self.max_buffer_size < 0:
            raise ValueError(
                f"max_buffer_size={max_buffer_size!r} is negative; 0 stands for no limit"
            )
        check_families("serializers", serializers)
        if interval is None:
            raise TypeError(
                "interval must be a number of milliseconds or a text such as '2ms', not None"
            )
        self.interval = check_duration("interval", interval, default="ms") or 0
        self.loop = loop
        self.serializers = serializers
        self.comm: Comm | None = None
        self.buffer: list[Any] = []
        self.buffered_bytes = 0
        self.message_count = 0
        self.batch_count = 0
        self.byte_count = 0
        self.recent_message_log: deque[Any] = deque(
            maxlen=config.get_int("distributed.admin.low-level-log-length")
        )
        self.next_deadline: float | None = None
        # Set by close(): batches no longer wait for the interval.
        self.please_stop = False
        # The loop that runs `_writer`; None before start().
        self._asyncio_loop: asyncio.AbstractEventLoop | None = None
        # Shared by the streams of `_asyncio_loop`.
        self._budget = Budget()
        # The time in which this stream may write without waiting; replaced by start().
        self._account = Account(1)
        # The task that writes batches, running or done.
        self._writer: asyncio.Task[None] | None = None
        # Whether start() was called and `_writer` is not running, so that send() must start it.
        self._idle = False
        # Ends the writer's wait for the interval; None while it does not wait.
        self._pause: asyncio.Future[None] | None = None
        # Wakes the calls of drain(), which then check the size again; None before the first.
        self._drained: asyncio.Future[None] | None = None
        # Whether send() raises although `comm` may still be open.
        self._ended = False
        # The error that ended the stream, if a message could not be serialized.
        self._failure: BaseException | None = None
        # The messages that were written and not acknowledged.
        self._delivery = Delivery(partial(call_alive, WeakMethod(self._notified)))
        # The comm that these were written to, which is not always `comm`; None before the first.
        self._opened_on: Comm | None = None
        # Whether `_writer` has to open the session of `_delivery` on `comm` first.
        self._must_open = False
        # Whether a batch is being written.
        self._is_writing = False
        # Number of messages of a failed write that `_delivery` keeps.
        self._kept = 0
        # Number of calls of abort(): a batch of an earlier epoch is not returned to `buffer`.
        self._epoch = 0

    def __repr__(self) -> str:
        if self.closed():
            return "<BatchedSend: closed>"
        return f"<BatchedSend: {len(self.buffer)} in buffer>"

    def start(self, comm: Comm) -> None:
        """Start to send on this comm, beginning with the messages in the buffer.

        Parameters
        ----------
        comm : Comm
            An open comm whose peer reads lists of messages.  No other code may write to it.

        Raises
        ------
        RuntimeError
            An earlier comm is still open, so messages could arrive out of order.
        """
        if self.comm is not None and self.comm is not comm and not self.closed():
            raise RuntimeError(
                f"BatchedSend is still sending on {self.comm!r}; close or abort it before "
                f"starting on {comm!r}"
            )
        self._asyncio_loop = (
            asyncio.get_running_loop() if self.loop is None else asyncio_loop_of(self.loop)
        )
        self._budget = budget_of(self._asyncio_loop)
        self._account = self._budget.add(self)
        if comm is not self.comm:
            self._take_back()
            self._must_open = True
        self.comm = comm
        self.please_stop = self._ended = False
        self.next_deadline = self._failure = None
        if self._writer is None:
            self._idle = True
        self._wake()

    def send(self, *msgs: Any) -> None:
        """Accept messages, to be written in this order with the next batch.

        Parameters
        ----------
        *msgs
            Any number of messages.

        Raises
        ------
        CommClosedError
            The comm is closed.  None of the messages was accepted.
        BufferError
            Too many bytes wait already, because the peer reads slowly.  None of the messages was
            accepted.  ``await drain()`` waits until there is room.
        """
        comm = self.comm
        if self._ended or (comm is not None and comm.closed()):
            raise self._closed_error() from self._failure
        if 0 < self.max_buffer_size <= self.buffered_bytes:
            raise BufferError(
                f"about {self.buffered_bytes:,} bytes of messages wait to be sent on {comm!r}; the "
                f"limit is {self.max_buffer_size:,} ('distributed.comm.batched.max-buffer-size'): "
                "await drain() before sending more"
            )
        self.buffered_bytes += rough_size(msgs[0]) if len(msgs) == 1 else sum(map(rough_size, msgs))
        self.message_count += len(msgs)
        self.buffer += msgs
        if self._idle:
            self._wake()

    async def drain(self) -> None:
        """Wait until the waiting messages take at most half of the maximum size.

        Raises
        ------
        CommClosedError
            The comm is closed, so no more messages will be written.
        """
        while 0 < self.max_buffer_size < 2 * self.buffered_bytes:
            if self.closed():
                raise self._closed_error() from self._failure
            if self._drained is None or self._drained.done():
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def _wake_drain(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def close(self, timeout: float | str | None = None) -> asyncio.Future[None]:
        """Flush the buffer without waiting for the interval, then close the comm.

        If the peer acknowledges, its acknowledgement is awaited too, for at most 30 s (5 s if it is
        not known yet whether it does).

        This starts at once, whether or not the returned future is awaited.  Messages sent during
        the flush are written too; after it, `send` raises.  If the comm breaks during the flush,
        the unwritten messages stay in the buffer.

        Parameters
        ----------
        timeout : float or str, optional
            Maximum time for the flush, in seconds or with a unit; unlimited by default.

        Returns
        -------
        asyncio.Future
            Done when the comm is closed.  Cancelling it aborts the comm.  Its exception is a
            `TimeoutError` if the flush took longer: the comm was aborted, and the unwritten
            messages are in the buffer.
        """
        seconds = check_duration("timeout", timeout)
        loop = asyncio.get_running_loop()
        self.please_stop = True
        self._wake()
        comm = self.comm
        closing = loop.create_task(self._flush_and_close(comm, seconds), name="BatchedSend.close")
        _closing.add(closing)
        closing.add_done_callback(partial(self._close_ended, comm))
        return closing

    def _close_ended(self, comm: Comm | None, closing: asyncio.Task[None]) -> None:
        _closing.discard(closing)
        if closing.cancelled():
            # Perhaps before its first step.
            self._end(comm)
            if comm is not None:
                comm.abort()
        elif (exc := closing.exception()) is not None:
            # If the caller does not await the future, this is the only report.
            logger.info("Closing a stream failed: %s", exc)

    async def _flush_and_close(self, comm: Comm | None, seconds: float | None) -> None:
        if comm is not None and not await self._flush(comm, seconds):
            self._end(comm)
            comm.abort()
            if self._writer is not None and not self._writer.done():
                await asyncio.wait({self._writer})
            raise TimeoutError(
                f"BatchedSend could not deliver {len(self.buffer)} messages on {comm!r} "
                f"within {seconds} s; the comm was aborted"
            )
        self._end(comm)
        self._wake_drain()
        if left := len(self.buffer) + self.unacknowledged:
            logger.info("Closing with %d messages not delivered on %r", left, comm)
        if comm is not None:
            await comm.close()

    async def _flush(self, comm: Comm, seconds: float | None) -> bool:
        """Wait until all messages are delivered or *comm* is closed; return whether it was in time.

        Messages that the peer does not acknowledge within `Delivery.patience` are left.  The writer
        may call this too, for what it has written.
        """
        now = asyncio.get_running_loop().time
        end = None if seconds is None else now() + seconds
        # The time since which only acknowledgements are missing.
        begun = None
        while True:
            writer = self._writer
            if writer not in (None, asyncio.current_task()) and not writer.done():
                # asyncio.wait() does not cancel the writer when this task is cancelled.
                await asyncio.wait({writer}, timeout=None if end is None else max(end - now(), 0))
                if not writer.done():
                    return False
            sent = self._delivery.sent
            if self.comm is not comm or comm.closed() or sent is None or not sent.count:
                return True
            begun = now() if begun is None else begun
            limit = begun + self._delivery.patience()
            if now() >= limit or (end is not None and now() >= end):
                if not sent.confirmed:
                    self._delivery.forget()
                return now() >= limit or not sent.confirmed
            comm.post_control("ask", ordered=True)
            await self._delivery.change((limit if end is None else min(limit, end)) - now())

    def _end(self, comm: Comm | None) -> None:
        """Let `send` raise, unless the stream was started again with another comm."""
        if self.comm is comm:
            self._ended = True

    def abort(self) -> None:
        """Close the comm at once and discard the buffer."""
        self._epoch += 1
        self._ended = self.please_stop = True
        self.buffer.clear()
        self.buffered_bytes = 0
        self._delivery.forget()
        self._wake_drain()
        if self.comm is not None:
            self.comm.abort()
        self._wake()

    def closed(self) -> bool:
        """Return whether `send` raises, because either side closed the comm or it broke."""
        return self._ended or (self.comm is not None and self.comm.closed())

    def _closed_error(self) -> CommClosedError:
        if self._failure is not None:
            return CommClosedError(
                f"Comm {self.comm!r} was closed because a message could not be serialized: "
                f"{self._failure}"
            )
        return CommClosedError(f"Comm {self.comm!r} already closed.")

    def _wake(self) -> None:
        """End the writer's pause, or start the writer if there are messages to write."""
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)
        if self._idle and self._has_work():
            assert self._asyncio_loop is not None
            self._idle = False
            self._writer = self._asyncio_loop.create_task(self._run(), name="BatchedSend")
            self._writer.add_done_callback(self._writer_ended)

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        # A task cancelled before its first step does not reach the `finally` of _run().
        if writer is self._writer:
            self._idle = True
        self._wake_drain()

    def _has_work(self) -> bool:
        if not self.buffer or self.comm is None or self.closed():
            return False
        sent = self._delivery.sent
        return sent is None or not (sent.confirmed and 0 < self.max_buffer_size <= sent.nbytes)

    async def _run(self) -> None:
        """Write batches until the buffer is empty or the comm is closed."""
        loop = asyncio.get_running_loop()
        try:
            while self._has_work():
                now = loop.time()
                deadline = self.next_deadline
                if (
                    deadline is not None
                    and now < deadline
                    and not self.please_stop
                    and self._account.is_empty(now)
                ):
                    await self._wait_until(deadline)
                    if not self._has_work():
                        return
                    now = loop.time()
                if self._must_open:
                    await self._open()
                    continue
                self.next_deadline = now + self.interval
                assert self.comm is not None
                limit = self._delivery.batch_limit
                if limit is None:
                    batch, self.buffer = self.buffer, []
                    size = self.buffered_bytes
                else:
                    batch = self.buffer[:limit]
                    del self.buffer[:limit]
                    size = sum(map(rough_size, batch))
                written = self.byte_count
                await self._deliver(batch, size, self.comm)
                if self.byte_count - written < LARGE_BATCH_BYTES:
                    self._account.take(now, loop.time())
        finally:
            self._idle = True

    async def _wait_until(self, deadline: float) -> None:
        """Wait for this time, or for `_wake`."""
        loop = asyncio.get_running_loop()
        self._pause = loop.create_future()
        timer = loop.call_at(deadline, self._wake)
        try:
            await self._pause
        finally:
            timer.cancel()
            self._pause = None

    async def _deliver(self, batch: list[Any], size: int, comm: Comm) -> None:
        """Write a batch, and return the messages that could not be written to the buffer."""
        epoch = self._epoch
        done = 0
        self._is_writing = True
        try:
            try:
                await self._write(batch, comm, size)
                done = len(batch)
            except Exception as exc:
                if _is_broken(comm, exc) or len(batch) == 1:
                    raise
                # One of the messages cannot be serialized, and none has been written.
                for msg in batch:
                    await self._write([msg], comm, rough_size(msg))
                    done += 1
        except Exception as exc:
            if _is_broken(comm, exc):
                comm.abort()
                logger.info("Comm closed while writing a batch to %r: %s", comm, exc)
            else:
                bad = batch[done]
                done += 1
                logger.exception(
                    "Closing %r: message %s of the stream could not be serialized and is dropped; "
                    "%d messages after it are not delivered",
                    comm,
                    reprlib.repr(bad),
                    len(batch) - done + len(self.buffer),
                )
                if self.comm is comm and self._epoch == epoch:
                    self._ended, self._failure = True, exc
                await self._flush(comm, None)
                await comm.close()
        finally:
            self._is_writing = False
            if self._epoch == epoch:
                left = batch[done + self._kept :]
                self.buffered_bytes += sum(map(rough_size, left)) - size
                self.buffer[:0] = left
                if not self._delivery.is_open:
                    self._take_back()
                self._wake_drain()

    async def _write(self, batch: list[Any], comm: Comm, size: int) -> None:
        """Write a batch of about *size* bytes."""
        self._kept = 0
        sent = self._delivery.sent
        if sent is not None:
            # The acknowledgement may arrive before the write has ended.
            sent.add(batch, size)
        try:
            nbytes = await comm.write(batch, serializers=self.serializers, on_error="raise")
        except BaseException:
            self._kept = self._delivery.failed(batch, comm)
            raise
        if sent is not None and sent.unasked >= ASK_AFTER_BYTES:
            self._delivery.ask(comm)
        self.batch_count += 1
        self._budget.batches += 1
        self._budget.messages += len(batch)
        self.byte_count += nbytes
        self.recent_message_log.append(batch if nbytes < LOGGED_BATCH_BYTES else "large-message")

    @property
    def unacknowledged(self) -> int:
        return 0 if self._delivery.sent is None else self._delivery.sent.count

    async def _open(self) -> None:
        """Open the session of this stream on the comm, and drop what the peer has handled."""
        comm, epoch = self.comm, self._epoch
        assert comm is not None
        self._opened_on = comm
        try:
            handled = await self._delivery.open(comm, self.buffer)
        except BaseException:
            # The writer was cancelled.
            self._must_open = True
            raise
        if self.comm is comm:
            self._must_open = False
        if handled and self._epoch == epoch:
            self.buffered_bytes -= sum(map(rough_size, self.buffer[:handled]))
            del self.buffer[:handled]
            self._wake_drain()

    def _take_back(self) -> None:
        """Return the messages that were not acknowledged to the buffer, if their comm is closed."""
        if self._is_writing or self._opened_on is None or not self._opened_on.closed():
            return
        messages = self._delivery.take_back()
        self.buffered_bytes += sum(map(rough_size, messages))
        self.buffer[:0] = messages

    def _notified(self) -> None:
        """Handle an acknowledgement or the end of the connection."""
        self._take_back()
        self._wake()


def _is_broken(comm: Comm, exc: Exception) -> bool:
    """Return whether a write failed because of the comm and not because of the message."""
    return isinstance(exc, CommClosedError) or comm.closed()
