"""A comm over a Tornado ``IOStream``.

All transports over byte streams share :class:`StreamComm`; they differ in how they open a stream
(see :mod:`distributed.comm.tcp`).  :mod:`distributed.comm.message_stream` reads and writes whole
messages, and :mod:`distributed.comm.framed` converts errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from tornado.iostream import IOStream, StreamClosedError

from distributed.base.event_loop import asyncio_loop_of
from distributed.base.logs import get_logger
from distributed.base.text import shown
from distributed.base.traffic import Traffic
from distributed.comm.control import pack_control
from distributed.comm.core import CommClosedError
from distributed.comm.framed import FramedComm
from distributed.comm.inline_future import InlineFuture
from distributed.comm.message_stream import MessageStream
from distributed.comm.sockets import peer_has_left
from distributed.protocol.framing import Buffer, Frames, Limits, pack_message

logger = get_logger(__name__)


class SharedWriting(Protocol):
    """The part of :class:`~distributed.comm.sharing.Sharing` that a comm uses."""

    #: Number of writes that have not begun to send; later ones wait for them.
    delayed: int

    @property
    def is_waiting(self) -> bool: ...

    def may_share(self) -> bool: ...

    def start_write(
        self, comm: StreamComm, frames: Sequence[Buffer]
    ) -> tuple[int, Awaitable[Any] | None] | None: ...


class StreamComm(FramedComm):
    """A comm over an established byte stream.

    Parameters
    ----------
    stream
        The stream.  The comm owns it from now on.
    local_addr, peer_addr
        The addresses of both ends, as URI.
    deserialize
        See :class:`~distributed.comm.core.Comm`.
    """

    stream: MessageStream | None
    # The shared memory in messages; None if the peer does not take part.
    _sharing: SharedWriting | None = None

    def __init__(
        self, stream: MessageStream, local_addr: str, peer_addr: str, deserialize: bool = True
    ):
        super().__init__(local_addr, peer_addr, deserialize)
        #: None once this side has closed the comm.
        self.stream = stream
        self._decoder = stream.decoder
        self._decoder.shard = self._shard
        self._decoder.limits = self._handshake_limits
        self._loop: asyncio.AbstractEventLoop = asyncio_loop_of(stream.io_loop)
        stream.notice_end()

    def complete_handshake(self, local: dict[str, Any], remote: Any) -> None:
        super().complete_handshake(local, remote)
        # A write that waits may receive a message before the next read.
        self._decoder.limits = self._limits
        if self.stream is not None:
            self.stream.controls = self.controls

    def _start_read(self, limits: Limits) -> Frames | InlineFuture:
        stream = self.stream
        if stream is None:
            raise CommClosedError(f"cannot read: {self!r}")
        self._decoder.limits = limits
        return stream.read_message()

    def count_in(self, traffic: Traffic) -> None:
        super().count_in(traffic)
        self._decoder.traffic = traffic

    def _start_write(self, frames: Sequence[Buffer]) -> tuple[int, Awaitable[Any] | None]:
        stream = self.stream
        if stream is None:
            raise CommClosedError(f"cannot write: {self!r}")
        sharing = self._sharing
        if sharing is not None and (sharing.delayed or (len(frames) > 1 and sharing.may_share())):
            started = sharing.start_write(self, frames)
            if started is not None:
                return started
        buffers, nbytes = pack_message(frames, self._shard)
        rest = stream.send(buffers, nbytes)
        if rest is None:
            return nbytes, None
        self.watch_peer()
        # Cancelling a future of Tornado breaks its stream.
        return nbytes, self.traffic.wait(asyncio.shield(rest))

    def post_control(self, kind: str, *args: Any, ordered: bool = False) -> bool:
        stream = self.stream
        if stream is None or stream._closed:
            return False
        # A failed send would close the stream, although messages of the peer may be unread.
        if not ordered and (stream.writing() or peer_has_left(stream.socket)):
            return False
        buffers, nbytes = pack_message([b"", pack_control(kind, ordered, args)])
        self.traffic.bytes_sent += nbytes
        try:
            stream.send(buffers, nbytes)
        except StreamClosedError:
            # Wakes the reader.
            self.abort()
            return False
        return True

    def receive_controls(self) -> None:
        if self.stream is not None and not self.stream._closed:
            self.stream.receive_controls()

    # The keep-alive

    def is_writing(self) -> bool:
        sharing = self._sharing
        return self.stream is not None and (
            self.stream.writing() or (sharing is not None and sharing.is_waiting)
        )

    def unread(self) -> object:
        if self.stream is None or not self.stream._held or self.controls is None:
            return None
        return self.controls.unread_count

    def progress(self) -> tuple[Any, ...]:
        stream = self.stream
        if stream is None:
            return ()
        sent = stream._total_write_done_index if stream.writing() else 0
        return sent, stream._read_buffer_size, *self._decoder.position

    def give_up(self, error: TimeoutError) -> None:
        if self.stream is not None:
            self.stream.close(exc_info=error)

    @property
    def has_unread(self) -> bool:
        stream = self.stream
        return stream is not None and (
            stream._read_buffer_size > 0 or len(stream._held) > 0 or self._decoder.in_message
        )

    @property
    def is_idle(self) -> bool:
        # As the default, but without further calls: each request checks its comm.
        stream = self.stream
        return not (
            stream is None
            or stream._closed
            or stream._read_buffer_size
            or stream._held
            or self._decoder.in_message
            or self._loop.is_closed()
        )

    def notify_end(self, callback: Callable[[], object] | None) -> None:
        if self.stream is not None:
            self.stream.on_end = callback

    async def close(self) -> None:
        self._is_open = False
        stream, self.stream = self.stream, None
        if stream is None or stream.closed():
            return
        stream.on_end = None
        try:
            if stream.writing():
                # Cancelling a future of Tornado breaks its stream.
                async with asyncio.timeout(self._linger):
                    await asyncio.shield(stream.write(b""))
        except (TimeoutError, StreamClosedError) as exc:
            logger.info("Closed %r before all written data was sent: %r", self, exc)
        finally:
            _close_stream(stream)

    def abort(self) -> None:
        self._is_open = False
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.on_end = None
            _close_stream(stream)

    def closed(self) -> bool:
        stream = self.stream
        # A stream is of no use after its event loop is closed.
        return stream is None or stream._closed or self._loop.is_closed()

    def __del__(self) -> None:
        stream = self.__dict__.get("stream")
        if stream is not None and not stream.closed():
            logger.warning("Closing dangling stream in %r", self)
            _close_stream(stream)

    def _closed_error(self, exc: Exception) -> CommClosedError:
        error = getattr(exc, "real_error", None)
        if error is not None:
            return CommClosedError(f"in {self!r}: {type(error).__name__}: {shown(error)}")
        if self._decoder.in_message:
            return CommClosedError(f"in {self!r}: the peer closed in the middle of a message")
        return CommClosedError(f"in {self!r}: Stream is closed")


def _close_stream(stream: IOStream) -> None:
    """Close *stream*, even if its event loop is closed already."""
    if asyncio_loop_of(stream.io_loop).is_closed():
        stream.close_fd()
    else:
        stream.close()
