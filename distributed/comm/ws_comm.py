"""A comm over an open websocket.

A message is one websocket message with the number of its frames (u64, little-endian), followed by
one websocket message for each frame.  All are binary and uncompressed, as in the original.

:mod:`distributed.comm.ws` opens and accepts websockets; :mod:`distributed.protocol` makes frames.
"""

from __future__ import annotations

import asyncio
import struct
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError

from distributed.base.logs import get_logger
from distributed.comm.control import (
    MAX_CONTROL_SIZE,
    MAX_UNREAD_CONTROLS,
    control_content,
    control_text,
    pack_control,
)
from distributed.comm.core import CommClosedError, FatalCommClosedError
from distributed.comm.framed import UNINTERRUPTED_READS, FramedComm
from distributed.comm.settings import CommSettings
from distributed.comm.sockets import MAX_BUFFER_SIZE, peer_has_left
from distributed.comm.tls import channel_binding, tls_info
from distributed.comm.websocket import (
    Protocol,
    described,
    explanation,
    forget_outcome,
)
from distributed.comm.websocket_rules import (
    FINAL_CLOSE_CODES,
    INVALID_DATA,
    REFUSED,
    TOO_BIG,
    UNSUPPORTED_DATA,
)
from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import Buffer, Limits

logger = get_logger(__name__)

_COUNT = struct.Struct("<Q")


class _Refused(FramingError):
    """An invalid message, with the close code for the peer."""

    def __init__(self, close_code: int, reason: str):
        super().__init__(reason)
        self.close_code = close_code


#: Maximum number of bytes to buffer in the stream before waiting for it; the buffer is a copy.
_WRITE_AHEAD = 8 * 2**20
#: Seconds to wait for the peer's close frame.
_CLOSING_TIMEOUT = 1.0


class WS(FramedComm):
    """A comm over a websocket.

    Parameters
    ----------
    protocol
        The open websocket, which the comm takes over.
    local_addr, peer_addr
        The addresses of both ends, as URI.
    deserialize
        See :class:`~distributed.comm.core.Comm`.
    """

    _end_of_connection = (StreamClosedError, WebSocketClosedError)

    def __init__(
        self, protocol: Protocol, local_addr: str, peer_addr: str, deserialize: bool = True
    ):
        super().__init__(local_addr, peer_addr, deserialize)
        # None once this side has closed the comm.
        self._protocol: Protocol | None = protocol
        # Parts of the protocol, which are still needed after that.
        self._stream = protocol.stream
        self._inbox = protocol.inbox
        self._abandon = protocol.abandon
        # The limits of the messages that the peer may send now: smaller until the handshake.
        self._accepted = self._handshake_limits
        protocol.limit = self._accepted.max_message_size
        # Whether a read has received a part of a message.
        self._in_message = False
        # Held while a message is written, since its websocket messages must stay together.
        self._writing = asyncio.Lock()
        # Number of messages read, and written, in a row without waiting.
        self._read = self._written = 0
        self._extra_info = self._get_extra_info()
        # Closes the websocket, with a warning, if this comm is garbage-collected while open.
        self._finalizer = weakref.finalize(self, _close_dangling, protocol, repr(self))
        self._finalizer.atexit = False
        self._stream.max_buffer_size = MAX_BUFFER_SIZE
        self._stream.set_nodelay(True)

    def _get_extra_info(self) -> dict[str, Any]:
        return {}

    @property
    def extra_info(self) -> dict[str, Any]:
        return self._extra_info

    @property
    def sock(self) -> Any:
        """Tornado's object for this end of the websocket; None once this side has closed it.

        A :class:`tornado.websocket.WebSocketClientConnection` or ``WebSocketHandler``.
        """
        return None if self._protocol is None else self._protocol.handler

    def _choose_shard(self, configured: CommSettings) -> int | None:
        return configured.websocket_shard

    def complete_handshake(self, local: dict[str, Any], remote: Any) -> None:
        super().complete_handshake(local, remote)
        self._accepted = self._limits
        if self._protocol is not None:
            self._protocol.limit = self._limits.max_message_size
        self._inbox.controls = self.controls
        self._inbox.open()

    async def _start_read(self, limits: Limits) -> list[Buffer]:
        if self._protocol is None:
            raise CommClosedError(f"cannot read: {self!r}")
        head, waited = await self._inbox.get()
        if isinstance(head, str):
            head, waited = await self._after_control(head)
        count = _read_count(head, limits)
        self._in_message = True
        size = 0
        frames: list[Buffer] = []
        parts: list[bytes] = []
        while len(frames) < count:
            frame, had_to_wait = await self._inbox.get()
            if isinstance(frame, str):
                frame, had_to_wait = await self._after_control(frame)
            if isinstance(frame, str):
                raise _Refused(
                    UNSUPPORTED_DATA, "a websocket message of text, where a frame is binary"
                )
            waited = waited or had_to_wait
            size += len(frame)
            if limits.max_message_size is not None and size > limits.max_message_size:
                raise _Refused(TOO_BIG, _too_large(limits))
            if not frames:
                frames.append(frame)
                continue
            parts.append(frame)
            if len(frame) != self._shard or len(frames) + len(parts) == count:
                frames += _side_by_side(parts)
                parts = []
        self._in_message = False
        self.traffic.bytes_received += size
        if self._inbox.is_complete is not None:
            self._inbox.continue_ahead()
        self._read = 0 if waited else self._read + 1
        if self._read >= UNINTERRUPTED_READS:
            self._read = 0
            await asyncio.sleep(0)
        return frames

    async def _after_control(self, part: str | bytes) -> tuple[str | bytes, bool]:
        """Let *part* take effect if it is a control message; return the next part instead.

        Also return whether this call waited for it.
        """
        waited = False
        while self.controls is not None and isinstance(part, str):
            self.controls.receive(control_content(part), in_order=True)
            part, had_to_wait = await self._inbox.get()
            waited = waited or had_to_wait
        return part, waited

    def post_control(self, kind: str, *args: Any, ordered: bool = False) -> bool:
        protocol = self._protocol
        if protocol is None or protocol.is_closing():
            return False
        # A failed send would close the stream, although messages of the peer may be unread.
        if not ordered and (self._stream.writing() or peer_has_left(self._stream.socket)):
            return False
        sent = protocol.write_message(control_text(pack_control(kind, ordered, args)))
        sent.add_done_callback(forget_outcome)
        return True

    def receive_controls(self) -> None:
        self._inbox.receive_controls()

    def _start_write(self, frames: Sequence[Buffer]) -> tuple[int, Coroutine[Any, Any, None]]:
        return sum(map(len, frames)), self._write_websocket(frames)

    async def _write_websocket(self, frames: Sequence[Buffer]) -> None:
        async with self._writing:
            protocol = self._protocol
            if protocol is None:
                raise CommClosedError(f"cannot write: {self!r}")
            if protocol.is_closing():
                raise WebSocketClosedError
            sent = _send(protocol, _COUNT.pack(len(frames)))
            unsent = 0
            for frame in frames:
                unsent += len(frame)
                if unsent > _WRITE_AHEAD:
                    await self._until(sent)
                    unsent = len(frame)
                sent = _send(protocol, frame)
            self._written += 1
            if protocol.stream.writing() or protocol.stream.closed():
                self._written = 0
                await self._until(sent)
            elif self._written >= UNINTERRUPTED_READS:
                self._written = 0
                await asyncio.sleep(0)

    async def _until(self, sent: asyncio.Future[None]) -> None:
        """Wait for *sent*; meanwhile, receive the peer's next message, even if it is large.

        Otherwise two peers that each write a large message before they read would wait for each
        other.
        """
        self.watch_peer()
        self._inbox.start_ahead(self._is_complete)
        try:
            # Cancelling a future of Tornado breaks its stream.
            await self.traffic.wait(asyncio.shield(sent))
        finally:
            self._inbox.stop_ahead()

    # The keep-alive

    def is_writing(self) -> bool:
        return self._protocol is not None and self._stream.writing()

    def unread(self) -> object:
        if not self._inbox.is_paused or self.controls is None:
            return None
        return self.controls.unread_count, len(self._inbox)

    def progress(self) -> tuple[Any, ...]:
        stream = self._stream
        sent = stream._total_write_done_index if stream.writing() else 0
        return sent, stream._read_buffer_size, len(self._inbox)

    def give_up(self, error: TimeoutError) -> None:
        self._stream.close(exc_info=error)

    @property
    def has_unread(self) -> bool:
        return self._in_message or len(self._inbox) > 0

    def notify_end(self, callback: Callable[[], object] | None) -> None:
        self._inbox.on_end = callback

    def _is_complete(self, parts: Sequence[str | bytes], size: int, texts: int) -> bool:
        """Return whether *parts*, of *size* bytes, begin with a complete message or an error.

        The control messages before and in that message do not count, unless there are too many.
        """
        limits = self._accepted
        if texts and (self.controls is None or texts > MAX_UNREAD_CONTROLS):
            return True
        if len(parts) == texts:
            return False
        head = parts[0] if not texts else next(part for part in parts if type(part) is not str)
        try:
            count = _read_count(head, limits)
        except FramingError:
            return True
        limit = limits.max_message_size
        if limit is not None and size > limit + len(head) + texts * MAX_CONTROL_SIZE:
            return True
        return len(parts) - texts > count

    async def close(self) -> None:
        self._is_open = False
        protocol, self._protocol = self._protocol, None
        self._finalizer.detach()
        inbox = self._inbox
        inbox.drop()
        stream = self._stream
        if protocol is None or stream.closed():
            return
        try:
            async with asyncio.timeout(self._linger):
                async with self._writing:
                    if stream.writing():
                        await stream.write(b"")
            protocol.close(1000)
            # If data stayed unread, the kernel would reset the connection, and the peer would lose
            # the messages that it has not read yet.
            async with asyncio.timeout(_CLOSING_TIMEOUT):
                await inbox.gone.wait()
        except (TimeoutError, StreamClosedError) as exc:
            if stream.writing():
                logger.info("Closed %r before all that was written had left: %r", self, exc)
        finally:
            self._abandon()

    def refuse(self, reason: str) -> None:
        """Close the comm because the peer may not use it; the peer's websocket gets *reason*."""
        if self._protocol is not None:
            self._protocol.refuse(REFUSED, reason)
        self.abort()

    def abort(self) -> None:
        self._is_open = False
        self._protocol = None
        self._finalizer.detach()
        self._abandon()

    def closed(self) -> bool:
        protocol = self._protocol
        return protocol is None or protocol.is_closing()

    def _invalid_error(self, exc: FramingError) -> CommClosedError:
        if self._protocol is not None:
            code = exc.close_code if isinstance(exc, _Refused) else INVALID_DATA
            self._protocol.refuse(code, str(exc))
        return super()._invalid_error(exc)

    def _closed_error(self, exc: Exception) -> CommClosedError:
        inbox = self._inbox
        violation = inbox.violation
        if violation is not None:
            too_big = violation.code == TOO_BIG
            cause = FramingError(_too_large(self._accepted) if too_big else described(violation))
            error = self._error_class(final=True)(f"received no valid message in {self!r}: {cause}")
            error.__cause__ = cause
            return error
        if self._stream.error is not None:
            return failure(self._stream.error, f"in {self!r}: ", established=True)
        if inbox.close_code not in (None, 1000, 1001):
            error_class = self._error_class(final=inbox.close_code in FINAL_CLOSE_CODES)
            return error_class(f"in {self!r}: the peer {inbox.closing()}")
        if self._in_message:
            return CommClosedError(f"in {self!r}: the peer closed in the middle of a message")
        return CommClosedError(f"in {self!r}: Stream is closed")

    def _error_class(self, final: bool) -> type[CommClosedError]:
        """Return the class of an error that another handshake would meet again if *final*."""
        in_handshake = self._context is None
        return FatalCommClosedError if final and in_handshake else CommClosedError


class WSS(WS):
    """A comm over a websocket over TLS; its `extra_info` is that of a TLS comm."""

    def _get_extra_info(self) -> dict[str, Any]:
        return tls_info(self._stream)

    @property
    def channel_binding(self) -> bytes | None:
        return channel_binding(self._stream)


def _close_dangling(protocol: Protocol, comm: str) -> None:
    """Close the websocket of a comm that was garbage-collected while open."""
    if not protocol.is_closing():
        logger.warning("Closing dangling websocket in %s", comm)
    protocol.abandon()


def _read_count(head: str | bytes, limits: Limits) -> int:
    """Return the number of frames of a message, given its first websocket message."""
    if isinstance(head, str) or len(head) != _COUNT.size:
        raise _Refused(
            UNSUPPORTED_DATA if isinstance(head, str) else INVALID_DATA,
            "a message starts with the number of its frames in 8 bytes, and not with "
            f"{len(head):,} {'characters' if isinstance(head, str) else 'bytes'}",
        )
    count: int = _COUNT.unpack(head)[0]
    limits.check_count(count)
    return count


def _side_by_side(parts: list[bytes]) -> list[bytearray | memoryview]:
    """Copy the parts of one buffer to writable memory where they can be merged without a copy."""
    if len(parts) == 1:
        # A view would take three times the memory of a small frame.
        return [bytearray(parts[0])]
    memory = memoryview(bytearray().join(parts))
    frames: list[bytearray | memoryview] = []
    start = 0
    for part in parts:
        frames.append(memory[start : start + len(part)])
        start += len(part)
    return frames


def _too_large(limits: Limits) -> str:
    if limits.max_message_size is None:
        return "a websocket message larger than any memory"
    return f"a message larger than {limits.size_key!r} allows: {limits.max_message_size:,} bytes"


def _send(protocol: Protocol, data: Any) -> asyncio.Future[None]:
    """Send a websocket message; the future is done once the stream has sent it."""
    sent = protocol.write_message(data if type(data) is bytes else bytes(data), binary=True)
    # The caller does not await every future, and asyncio would log the unread errors.
    sent.add_done_callback(forget_outcome)
    return sent


def failure(exc: BaseException, prefix: str = "", *, established: bool = False) -> CommClosedError:
    """Return the error to raise for *exc*, which has ended a connection.

    *established*: whether that was after both handshakes, of TLS and of the websocket.
    """
    final, reason = explanation(exc, established)
    error = (FatalCommClosedError if final else CommClosedError)(prefix + reason)
    error.__cause__ = exc
    return error
