"""A comm over a websocket.

A message is a websocket message with the number of its frames (u64, little-endian), and then one
for each frame, all binary and not compressed, as the original has it.  What is in the frames is
:mod:`distributed.protocol`'s business, how websockets come about :mod:`distributed.comm.ws`'s.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import weakref
from collections.abc import Coroutine, Sequence
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError

from distributed.comm.core import CommClosedError, FatalCommClosedError
from distributed.comm.framed import UNINTERRUPTED_READS, FramedComm
from distributed.comm.settings import CommSettings
from distributed.comm.sockets import MAX_BUFFER_SIZE
from distributed.comm.websocket import Protocol, explanation, forget_outcome
from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import Buffer, Limits

logger = logging.getLogger(__name__)

_COUNT = struct.Struct("<Q")

#: Bytes of a message that are handed to the stream at a time.  Each is copied, masked or not.
_WRITE_AHEAD = 8 * 2**20
#: Time that a peer has to confirm that a websocket is closed, in seconds.
_CLOSING_TIMEOUT = 1.0


class WS(FramedComm):
    """A comm over a websocket.

    Parameters
    ----------
    protocol
        The open websocket.  The comm owns it from now on.
    local_addr, peer_addr
        The addresses of both ends, as URI.
    deserialize
        See :class:`~distributed.comm.core.Comm`.
    """

    # State, besides that of FramedComm.  `_protocol` is None once this side has closed the comm.
    # `_inbox` holds what has arrived, and `_accepted` says what may arrive at the moment.
    # `_in_message` is true while a read has a part of a message.  `_writing` is held by who writes,
    # `_read` and `_written` count the messages read and written in a row without waiting.
    _end_of_connection = (StreamClosedError, WebSocketClosedError)
    _protocol: Protocol | None

    def __init__(
        self, protocol: Protocol, local_addr: str, peer_addr: str, deserialize: bool = True
    ):
        super().__init__(local_addr, peer_addr, deserialize)
        self._protocol = protocol
        self._stream = protocol.stream
        self._inbox = protocol.inbox
        self._abandon = protocol.abandon
        self._accepted = self._handshake_limits
        protocol.limit = self._accepted.max_message_size
        self._in_message = False
        self._writing = asyncio.Lock()
        self._read = self._written = 0
        self._extra_info = self._get_extra_info()
        self._finalizer = weakref.finalize(self, _close_dangling, protocol, repr(self))
        self._finalizer.atexit = False
        self._stream.max_buffer_size = MAX_BUFFER_SIZE
        self._stream.set_nodelay(True)

    def _get_extra_info(self) -> dict[str, Any]:
        return {}

    @property
    def extra_info(self) -> dict[str, Any]:
        return self._extra_info

    def _choose_shard(self, configured: CommSettings) -> int | None:
        return configured.websocket_shard

    def complete_handshake(self, local: dict[str, Any], remote: Any) -> None:
        super().complete_handshake(local, remote)
        self._accepted = self._limits
        if self._protocol is not None:
            self._protocol.limit = self._limits.max_message_size
        self._inbox.open()

    async def _start_read(self, limits: Limits) -> list[Buffer]:
        if self._protocol is None:
            raise CommClosedError(f"cannot read: {self!r}")
        head, waited = await self._inbox.get()
        count = _read_count(head, limits)
        self._in_message = True
        size = 0
        frames: list[Buffer] = []
        parts: list[bytes] = []
        while len(frames) < count:
            frame, had_to_wait = await self._inbox.get()
            if isinstance(frame, str):
                raise FramingError("a websocket message of text, where a frame is binary")
            waited = waited or had_to_wait
            size += len(frame)
            if limits.max_message_size is not None and size > limits.max_message_size:
                raise FramingError(_too_large(limits))
            if not frames:
                frames.append(frame)
                continue
            parts.append(frame)
            if len(frame) != self._shard or len(frames) + len(parts) == count:
                frames += _side_by_side(parts)
                parts = []
        self._in_message = False
        self._read = 0 if waited else self._read + 1
        if self._read >= UNINTERRUPTED_READS:
            self._read = 0
            await asyncio.sleep(0)
        return frames

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
                    await asyncio.shield(sent)
                    unsent = len(frame)
                sent = _send(protocol, frame)
            self._written += 1
            if protocol.stream.writing() or protocol.stream.closed():
                self._written = 0
                await asyncio.shield(sent)
            elif self._written >= UNINTERRUPTED_READS:
                self._written = 0
                await asyncio.sleep(0)

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
            # With unread data the kernel would reset the connection, and what the peer has not
            # read yet would be lost to it.
            async with asyncio.timeout(_CLOSING_TIMEOUT):
                await inbox.gone.wait()
        except (TimeoutError, StreamClosedError) as exc:
            if stream.writing():
                logger.info("Closed %r before all that was written had left: %r", self, exc)
        finally:
            stream.close()

    def abort(self) -> None:
        self._is_open = False
        self._protocol = None
        self._finalizer.detach()
        self._abandon()

    def closed(self) -> bool:
        protocol = self._protocol
        return protocol is None or protocol.is_closing()

    def _closed_error(self, exc: Exception) -> CommClosedError:
        inbox = self._inbox
        if inbox.too_large:
            error = CommClosedError(
                f"received no valid message in {self!r}: {_too_large(self._accepted)}"
            )
            error.__cause__ = FramingError(_too_large(self._accepted))
            return error
        if self._stream.error is not None:
            return failure(f"in {self!r}", self._stream.error)
        if inbox.close_code not in (None, 1000, 1001):
            return CommClosedError(
                f"in {self!r}: the peer closed with code {inbox.close_code} (RFC 6455, section "
                f"7.4.1): {inbox.close_reason or 'no reason given'}"
            )
        if self._in_message:
            return CommClosedError(f"in {self!r}: the peer closed in the middle of a message")
        return CommClosedError(f"in {self!r}: Stream is closed")


class WSS(WS):
    """A comm over a websocket over TLS."""

    def _get_extra_info(self) -> dict[str, Any]:
        sock: Any = self._stream.socket
        return {"peercert": sock.getpeercert(), "cipher": sock.cipher()}

    @property
    def extra_info(self) -> dict[str, Any]:
        """``peercert``, as `ssl.SSLSocket.getpeercert` has it, and ``cipher``, as its `cipher`."""
        return self._extra_info

    @property
    def channel_binding(self) -> bytes | None:
        """The client's "Finished" of the TLS handshake (``tls-unique``, RFC 5929)."""
        if self._stream.closed():
            return None
        sock: Any = self._stream.socket
        binding: bytes | None = sock.get_channel_binding("tls-unique")
        return binding


def _close_dangling(protocol: Protocol, comm: str) -> None:
    """Close the websocket of a comm that was forgotten."""
    if not protocol.is_closing():
        logger.warning("Closing dangling websocket in %s", comm)
    protocol.abandon()


def _read_count(head: str | bytes, limits: Limits) -> int:
    """Return the number of frames of a message, given its first websocket message."""
    if isinstance(head, str) or len(head) != _COUNT.size:
        raise FramingError(
            "a message begins with the number of its frames in 8 bytes, and not with "
            f"{len(head):,} {'characters' if isinstance(head, str) else 'bytes'}"
        )
    count: int = _COUNT.unpack(head)[0]
    limits.check_count(count)
    return count


def _side_by_side(parts: list[bytes]) -> list[memoryview]:
    """Give the parts of one buffer memory that may be written to, and merges without a copy."""
    memory = memoryview(bytearray().join(parts))
    frames = []
    start = 0
    for part in parts:
        frames.append(memory[start : start + len(part)])
        start += len(part)
    return frames


def _too_large(limits: Limits) -> str:
    if limits.max_message_size is None:
        return "a websocket message of more bytes than any memory has"
    return f"a message larger than {limits.size_key!r} allows: {limits.max_message_size:,} bytes"


def _send(protocol: Protocol, data: Any) -> asyncio.Future[None]:
    """Send a websocket message, and return what is done once it has left."""
    sent = protocol.write_message(data if type(data) is bytes else bytes(data), binary=True)
    # Of a message's futures only some are awaited.
    sent.add_done_callback(forget_outcome)
    return sent


def failure(where: str, exc: BaseException) -> CommClosedError:
    """Make the error for what has ended a connection."""
    final, reason = explanation(exc)
    failure = (FatalCommClosedError if final else CommClosedError)(f"{where}: {reason}")
    failure.__cause__ = exc
    return failure
