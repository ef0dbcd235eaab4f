"""Many small messages on one comm: gathered, and written a list at a time.

A stream of messages (heartbeats, task states, …) costs one write each unless they are gathered.
`BatchedSend` takes them one by one, synchronously, and writes what has gathered at most once per
interval.  The other end reads lists, as `Server.handle_stream` does.

It stands between the code that sends and `Comm.write`, and knows nothing of operations, addresses
or frames.  It never skips a message: what the peer has read is at any time a prefix of what was
sent, and what did not get through stays in `BatchedSend.buffer`.
"""

from __future__ import annotations

import asyncio
import logging
import reprlib
from collections import deque
from typing import TYPE_CHECKING, Any

from distributed.base import config
from distributed.base.buffers import nbytes
from distributed.base.event_loop import asyncio_loop_of
from distributed.base.quantities import parse_bytes, parse_timedelta
from distributed.comm.core import Comm, CommClosedError
from distributed.protocol import Serialize, Serialized

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

logger = logging.getLogger(__name__)

# A batch that takes more bytes than this is not kept in the log of recent messages.
LOGGED_BATCH_BYTES = 1_000_000


class BatchedSend:
    """Send messages on a comm in batches, at most one batch per interval.

    The first message after a pause of an interval or more goes out at once, together with those
    that are sent in the same turn of the event loop.  What is sent before `start` waits for it.
    When the comm breaks, the messages that were not delivered stay in ``buffer``, in order, and a
    `start` with another comm sends them first.  A batch during whose writing the comm breaks
    counts as not delivered, although the peer may have read it.

    A message that cannot be serialized ends the stream: those before it are delivered, the error
    is logged, the comm is closed, the message is dropped, and those after it stay in ``buffer``.
    To go on without it would leave the peer with a gap that it has no means of noticing.

    All methods belong to the event loop that `start` was called on.

    Parameters
    ----------
    interval : float or str
        Least time from the start of one batch to that of the next: milliseconds, or with a unit,
        such as ``"2ms"``.
    loop : tornado.ioloop.IOLoop, optional
        Where the batches are written from; the loop that runs when `start` is called if not given.
    serializers : list of str, optional
        Passed to `Comm.write`.
    max_buffer_size : int or str, optional
        About how many bytes of messages may wait, those that are being written included, before
        `send` raises; 0 for any number.  ``distributed.comm.batched.max-buffer-size`` if not given.

    Attributes
    ----------
    comm : Comm or None
        What was last given to `start`.
    buffer : list
        Messages that no write has taken yet, or that a failed write has put back.
    message_count, batch_count, byte_count : int
        Messages taken by `send`, batches and bytes handed over to comms.
    recent_message_log : collections.deque
        The last batches that were written, as many as ``distributed.admin.low-level-log-length``
        says; ``"large-message"`` stands for one that is too large to be kept.
    buffered_bytes : int
        About how large the messages are that wait or are being written.
    next_deadline : float or None
        When the next batch may go, on the clock of the event loop; None before the first.

    Examples
    --------
    >>> async def report(address):
    ...     stream = BatchedSend(interval="2ms")
    ...     stream.send({"op": "hello"})
    ...     stream.start(await connect(address))
    ...     stream.send({"op": "heartbeat"}, {"op": "heartbeat"})
    ...     await stream.close()
    """

    # Mutable state, changed by nothing but the methods of this class:
    #
    #   comm, buffer     as above
    #   buffered_bytes   the sum of rough_size() over the buffer and the batch being written
    #   _drained         what calls of `drain` wait for; done when it is worth another look
    #   _writer          the one background task; it runs exactly while there is work to do (a
    #                    buffer that is not empty and an open comm), so that an idle stream leaves
    #                    nothing behind when it is dropped or its comm breaks
    #   _idle            `start` was called and there is no such task: the next `send` wakes one
    #   _pause           what `_run` waits for between two batches, else None
    #   please_stop      `close` was called: batches no longer wait for their interval
    #   _ended           nothing more will be sent on `comm`: `send` raises
    #   _failure         why, where a message was the reason
    #   _epoch           counts `abort`s: a batch of an earlier epoch is not put back

    def __init__(
        self,
        interval: float | str,
        loop: IOLoop | None = None,
        serializers: list[str] | None = None,
        *,
        max_buffer_size: int | str | None = None,
    ) -> None:
        if max_buffer_size is None:
            max_buffer_size = config.get_bytes("distributed.comm.batched.max-buffer-size") or 0
        self.max_buffer_size = parse_bytes(max_buffer_size)
        if interval is None:
            raise TypeError(
                "interval is a number of milliseconds or a text such as '2ms', not None"
            )
        self.interval = parse_timedelta(interval, default="ms")
        self.loop = loop
        self.serializers = serializers
        self.comm: Comm | None = None
        self.buffer: list[Any] = []
        self.buffered_bytes = 0
        self._drained: asyncio.Future[None] | None = None
        self.message_count = 0
        self.batch_count = 0
        self.byte_count = 0
        self.recent_message_log: deque[Any] = deque(
            maxlen=config.get("distributed.admin.low-level-log-length")
        )
        self.next_deadline: float | None = None
        self.please_stop = False
        self._asyncio_loop: asyncio.AbstractEventLoop | None = None
        self._writer: asyncio.Task[None] | None = None
        self._idle = False
        self._pause: asyncio.Future[None] | None = None
        self._ended = False
        self._failure: BaseException | None = None
        self._epoch = 0

    def __repr__(self) -> str:
        if self.closed():
            return "<BatchedSend: closed>"
        return f"<BatchedSend: {len(self.buffer)} in buffer>"

    def start(self, comm: Comm) -> None:
        """Begin to send on this comm, with what is in the buffer.

        Parameters
        ----------
        comm : Comm
            An open comm whose other end reads lists of messages.  From now on nothing else may
            write to it.

        Raises
        ------
        RuntimeError
            An earlier comm is still open; messages could overtake each other.
        """
        if self.comm is not None and self.comm is not comm and not self.closed():
            raise RuntimeError(
                f"BatchedSend is still sending on {self.comm!r}; close or abort it before "
                f"starting on {comm!r}"
            )
        self._asyncio_loop = (
            asyncio.get_running_loop() if self.loop is None else asyncio_loop_of(self.loop)
        )
        self.comm = comm
        self.please_stop = self._ended = False
        self.next_deadline = self._failure = None
        if self._writer is None:
            self._idle = True
        self._wake()

    def send(self, *msgs: Any) -> None:
        """Take messages, to be written in this order with the next batch.

        Parameters
        ----------
        *msgs
            Any number of messages.

        Raises
        ------
        CommClosedError
            The comm is closed; none of the messages was taken.
        BufferError
            The peer does not keep up, and too much waits already; none of the messages was taken.
            ``await drain()`` to wait until there is room.
        """
        comm = self.comm
        if self._ended or (comm is not None and comm.closed()):
            raise self._closed_error() from self._failure
        if 0 < self.max_buffer_size <= self.buffered_bytes:
            raise BufferError(
                f"about {self.buffered_bytes:,} bytes of messages wait to be sent on {comm!r}, and "
                f"{self.max_buffer_size:,} may ('distributed.comm.batched.max-buffer-size'); "
                "await drain() before sending more"
            )
        self.buffered_bytes += rough_size(msgs[0]) if len(msgs) == 1 else sum(map(rough_size, msgs))
        self.message_count += len(msgs)
        self.buffer += msgs
        if self._idle:
            self._wake()

    async def drain(self) -> None:
        """Wait until at most half of what may wait does, so that `send` will not raise at once.

        Raises
        ------
        CommClosedError
            The comm is closed, so that nothing will leave any more.
        """
        while 0 < self.max_buffer_size < 2 * self.buffered_bytes:
            if self.closed():
                raise self._closed_error() from self._failure
            if self._drained is None or self._drained.done():
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def _tell_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def close(self, timeout: float | str | None = None) -> None:
        """Write what is in the buffer without waiting for the interval, then close the comm.

        If the comm breaks before all is written, the rest stays in the buffer.  Messages that are
        sent during the flush are part of it; after it, `send` raises.  When this is cancelled, the
        comm is aborted.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds, or with a unit; how long the flush may take.  Unlimited if not given.

        Raises
        ------
        TimeoutError
            The flush took longer; the comm was aborted and what was not written is in the buffer.
        """
        seconds = None if timeout is None else parse_timedelta(timeout)
        self.please_stop = True
        self._wake()
        comm, writer = self.comm, self._writer
        if writer is not None and not writer.done():
            try:
                # `wait`, since a cancellation of `close` is none of the task, which puts back
                # what it could not write.
                await asyncio.wait({writer}, timeout=seconds)
                if not writer.done() and comm is not None:
                    self._ended = True
                    comm.abort()
                    await asyncio.wait({writer})
                    raise TimeoutError(
                        f"BatchedSend could not deliver {len(self.buffer)} messages on {comm!r} "
                        f"within {seconds} s; the comm was aborted"
                    )
            except asyncio.CancelledError:
                self._ended = True
                if comm is not None:
                    comm.abort()
                raise
        self._ended = True
        self._tell_drained()
        if self.buffer:
            logger.info("Closing with %d messages not delivered on %r", len(self.buffer), comm)
        if comm is not None:
            await comm.close()

    def abort(self) -> None:
        """Close the comm at once and forget what is in the buffer."""
        self._epoch += 1
        self._ended = self.please_stop = True
        self.buffer.clear()
        self.buffered_bytes = 0
        self._tell_drained()
        if self.comm is not None:
            self.comm.abort()
        self._wake()

    def closed(self) -> bool:
        """Whether `send` would raise: closed by either end, or broken."""
        return self._ended or (self.comm is not None and self.comm.closed())

    def _closed_error(self) -> CommClosedError:
        if self._failure is not None:
            return CommClosedError(
                f"Comm {self.comm!r} was closed because a message could not be serialized: "
                f"{self._failure}"
            )
        return CommClosedError(f"Comm {self.comm!r} already closed.")

    def _wake(self) -> None:
        """See that the background task runs if there is something for it to do, and now."""
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)
        if self._idle and self._has_work():
            assert self._asyncio_loop is not None
            self._idle = False
            self._writer = self._asyncio_loop.create_task(self._run(), name="BatchedSend")
            self._writer.add_done_callback(self._writer_ended)

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        # For a task that was cancelled before its first step, which has seen no `finally`.
        if writer is self._writer:
            self._idle = True
        self._tell_drained()

    def _has_work(self) -> bool:
        return bool(self.buffer) and self.comm is not None and not self.closed()

    async def _run(self) -> None:
        """Write batches until the buffer is empty or the comm is closed."""
        try:
            while self._has_work():
                if not self.please_stop:
                    await self._wait_for_deadline()
                    if not self._has_work():
                        return
                assert self.comm is not None
                batch, self.buffer = self.buffer, []
                await self._deliver(batch, self.comm)
        finally:
            self._idle = True

    async def _wait_for_deadline(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self.next_deadline is not None and now < self.next_deadline:
            self._pause = loop.create_future()
            timer = loop.call_at(self.next_deadline, self._wake)
            try:
                await self._pause
            finally:
                timer.cancel()
                self._pause = None

    async def _deliver(self, batch: list[Any], comm: Comm) -> None:
        """Write a batch, or as much of it as can be written; put the rest back."""
        epoch = self._epoch
        size = self.buffered_bytes
        self.next_deadline = asyncio.get_running_loop().time() + self.interval
        done = 0
        try:
            try:
                await self._write(batch, comm)
                done = len(batch)
            except Exception as exc:
                if _is_broken(comm, exc) or len(batch) == 1:
                    raise
                # Some message cannot be serialized; nothing of the batch has left yet.
                for msg in batch:
                    await self._write([msg], comm)
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
                    "%d messages behind it are not delivered",
                    comm,
                    reprlib.repr(bad),
                    len(batch) - done + len(self.buffer),
                )
                if self.comm is comm and self._epoch == epoch:
                    self._ended, self._failure = True, exc
                await comm.close()
        finally:
            if self._epoch == epoch:
                left = batch[done:]
                self.buffered_bytes += sum(map(rough_size, left)) - size
                self.buffer[:0] = left
                self._tell_drained()

    async def _write(self, batch: list[Any], comm: Comm) -> None:
        nbytes = await comm.write(batch, serializers=self.serializers, on_error="raise")
        self.batch_count += 1
        self.byte_count += nbytes
        self.recent_message_log.append(batch if nbytes < LOGGED_BATCH_BYTES else "large-message")


def _is_broken(comm: Comm, exc: Exception) -> bool:
    """Whether a write failed for the comm's sake, not for that of the message."""
    return isinstance(exc, CommClosedError) or comm.closed()


_FIXED_SIZE = frozenset({int, float, bool, type(None)})


def rough_size(msg: Any) -> int:
    """About how many bytes a message takes, told in less time than sending it takes.

    Texts and buffers count, on the surface of the message and one level below it.

    Examples
    --------
    >>> rough_size({"op": "data", "x": b"0" * 1000})
    1036
    """
    if type(msg) is not dict:
        return _value_size(msg)
    size = 16 * len(msg)
    for value in msg.values():
        kind = type(value)
        if kind is str or kind is bytes:
            size += len(value)
        elif kind not in _FIXED_SIZE:
            size += _value_size(value)
    return size


def _value_size(value: Any) -> int:
    if isinstance(value, Serialize):
        value = value.data
    if isinstance(value, Serialized):
        return sum(map(nbytes, value.frames))
    kind = type(value)
    if kind is str or kind is bytes or kind is bytearray:
        return len(value)
    if kind is dict or kind is list or kind is tuple or kind is set:
        items = value.values() if kind is dict else value
        return 16 * len(value) + sum(len(x) for x in items if type(x) is str or type(x) is bytes)
    # Asked of the type: an instance may answer to any attribute, as proxies do.
    size = value.nbytes if hasattr(kind, "nbytes") else 16
    return size if isinstance(size, int) else 16
