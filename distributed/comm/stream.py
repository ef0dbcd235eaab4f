"""A comm over a Tornado ``IOStream``.

All transports whose connections are byte streams share :class:`StreamComm`; they
differ in how a stream is opened (see :mod:`distributed.comm.tcp`).  The layout
of messages on the stream is :mod:`distributed.protocol.framing`'s business, what
is in them :mod:`distributed.protocol`'s; this module only moves bytes, and sees
to it that whatever goes wrong on the way closes the comm.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import Any

import msgpack
from tornado.iostream import IOStream, StreamClosedError

from distributed import config
from distributed.comm.core import Comm, CommClosedError
from distributed.comm.utils import from_frames, to_frames
from distributed.protocol.exceptions import FramingError, MessageError
from distributed.protocol.framing import Buffer, Limits, MessageDecoder, pack_message

logger = logging.getLogger(__name__)

#: So many messages that need no waiting are read before others get their turn.
_UNINTERRUPTED_READS = 64


def _no_op() -> None:
    """Stand in as close callback: a stream with one notices its end while idle."""


class StreamComm(Comm):
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

    # State.  `stream` is None once this side has closed the comm.  `_decoder`
    # holds what has arrived and was not read yet.  `_reading` is true while a
    # read is under way.  `_served` counts the messages read without waiting.
    # `_context`, made with the handshake, is passed to serializers.
    stream: IOStream | None

    def __init__(self, stream: IOStream, local_addr: str, peer_addr: str, deserialize: bool = True):
        super().__init__(deserialize)
        self._local_addr = local_addr
        self._peer_addr = peer_addr
        self.stream = stream
        self._linger = config.get_timedelta("distributed.comm.timeouts.tcp")
        self._shard = config.get_bytes("distributed.comm.shard")
        self._decoder = MessageDecoder(
            Limits(
                max_message_size=config.get_bytes("distributed.comm.max-message-size"),
                max_frames=config.get("distributed.comm.max-frames"),
            ),
            shard=self._shard,
        )
        key = "distributed.comm.max-handshake-size"
        self._handshake_limits = Limits(
            config.get_bytes(key), max_frames=1, size_key=key, frames_key=None
        )
        self._loop: asyncio.AbstractEventLoop = stream.io_loop.asyncio_loop  # type: ignore[attr-defined]
        self._reading = False
        self._served = 0
        self._context: dict[str, Any] | None = None
        self._finalizer = weakref.finalize(self, _close_dangling, stream, repr(self))
        self._finalizer.atexit = False
        stream.set_nodelay(True)
        stream.set_close_callback(_no_op)

    @property
    def local_address(self) -> str:
        return self._local_addr

    @property
    def peer_address(self) -> str:
        return self._peer_addr

    def _agree(self, local: dict[str, Any], remote: Any) -> None:
        super()._agree(local, remote)
        self._context = {
            "sender": self.local_info,
            "recipient": self.remote_info,
            **self.handshake_options,
        }

    async def read(self, deserializers: Any = None) -> Any:
        frames = await self._read_frames()
        try:
            return await from_frames(
                frames,
                deserialize=self.deserialize,
                deserializers=deserializers,
                allow_offload=self.allow_offload,
                policy=self.load_policy,
            )
        except asyncio.CancelledError:
            # Who read on would take the next message for this one.
            self.abort()
            raise

    async def _read_frames(self) -> list[memoryview]:
        """Read the frames of one message."""
        stream = self.stream
        if stream is None:
            raise CommClosedError(f"cannot read: {self!r}")
        if self._reading:
            raise RuntimeError(f"another coroutine is already reading from {self!r}")
        decoder = self._decoder
        self._reading = True
        waited = False
        try:
            while (frames := decoder.next_message()) is None:
                memory, partial = decoder.wanted()
                arrival = stream.read_into(memory, partial=partial)  # type: ignore[arg-type]
                waited = waited or not arrival.done()  # type: ignore[attr-defined]
                decoder.received(await arrival)
            if waited:
                self._served = 0
            else:
                self._served += 1
                if self._served >= _UNINTERRUPTED_READS:
                    self._served = 0
                    await asyncio.sleep(0)
        except StreamClosedError as exc:
            self.abort()
            raise self._closed_error(exc) from exc
        except FramingError as exc:
            self.abort()
            raise self._invalid_error(exc) from exc
        except BaseException:
            # Cancelled, most likely.  Who read on would get the rest of a message.
            self.abort()
            raise
        finally:
            self._reading = False
        return frames

    async def write_handshake(self, msg: dict[str, Any]) -> None:
        await self._write_buffers(pack_message([msgpack.packb(msg)])[0])

    async def read_handshake(self) -> Any:
        decoder = self._decoder
        limits, decoder.limits = decoder.limits, self._handshake_limits
        try:
            frames = await self._read_frames()
        finally:
            decoder.limits = limits
        try:
            return msgpack.unpackb(frames[0], use_list=False, strict_map_key=True)
        except Exception as exc:
            raise MessageError(f"a handshake is plain msgpack: {exc}") from exc

    async def write(self, msg: Any, serializers: Any = None, on_error: str | None = None) -> int:
        if self.stream is None:
            raise CommClosedError(f"cannot write: {self!r}")
        frames = await to_frames(
            msg,
            allow_offload=self.allow_offload,
            serializers=serializers,
            on_error="message" if on_error is None else on_error,
            context=self._context,
            frame_split_size=self._shard,
        )
        buffers, nbytes = pack_message(frames, self._shard)
        await self._write_buffers(buffers)
        return nbytes

    async def _write_buffers(self, buffers: list[Buffer]) -> None:
        """Write the parts of one message and wait until they have left."""
        stream = self.stream
        if stream is None:
            raise CommClosedError(f"cannot write: {self!r}")
        try:
            for buffer in buffers:
                sent = stream.write(buffer)  # type: ignore[arg-type]
            if not sent.done() or sent.exception() is not None:
                # Tornado does not expect anyone to cancel its futures.
                await asyncio.shield(sent)
        except StreamClosedError as exc:
            self.abort()
            raise self._closed_error(exc) from exc
        except BaseException:
            # Cancelled, most likely, with a part of the message sent.
            self.abort()
            raise

    async def close(self) -> None:
        stream, self.stream = self.stream, None
        self._finalizer.detach()
        if stream is None or stream.closed():
            return
        try:
            if stream.writing():
                async with asyncio.timeout(self._linger):
                    await stream.write(b"")
        except (TimeoutError, StreamClosedError) as exc:
            logger.info("Closed %r before all that was written had left: %r", self, exc)
        finally:
            _close_stream(stream)

    def abort(self) -> None:
        stream, self.stream = self.stream, None
        self._finalizer.detach()
        if stream is not None:
            _close_stream(stream)

    def closed(self) -> bool:
        stream = self.stream
        # A stream whose loop was closed can do no more than be closed.
        return stream is None or stream.closed() or self._loop.is_closed()

    def _invalid_error(self, exc: FramingError) -> CommClosedError:
        """Tell what arrived instead of a message."""
        return CommClosedError(f"received no valid message in {self!r}: {exc}")

    def _closed_error(self, exc: StreamClosedError) -> CommClosedError:
        """Tell why the stream came to its end."""
        if exc.real_error is not None:
            return CommClosedError(
                f"in {self!r}: {type(exc.real_error).__name__}: {exc.real_error}"
            )
        if self._decoder.in_message:
            return CommClosedError(f"in {self!r}: the peer closed in the middle of a message")
        return CommClosedError(f"in {self!r}: Stream is closed")


def _close_stream(stream: IOStream) -> None:
    """Close *stream*, also after the loop that it was made on."""
    if stream.io_loop.asyncio_loop.is_closed():  # type: ignore[attr-defined]
        stream.close_fd()
    else:
        stream.close()


def _close_dangling(stream: IOStream, comm: str) -> None:
    """Close the stream of a comm that was forgotten."""
    if not stream.closed():
        logger.warning("Closing dangling stream in %s", comm)
        _close_stream(stream)
