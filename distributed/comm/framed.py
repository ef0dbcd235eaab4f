"""What comms have in common whose messages travel as frames.

:class:`FramedComm` is the way of a message between :mod:`distributed.protocol`,
which makes frames of it and understands them, and a transport, which moves them.
It sees to it that there is one reader at a time, that nobody is starved by a peer
who always has more to say, that the handshake is small and plain, and that
whatever goes wrong on the way closes the comm.  It knows no sockets; those are in
:mod:`distributed.comm.stream` and :mod:`distributed.comm.ws_comm`.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Any, ClassVar

import msgpack
from tornado.iostream import StreamClosedError

from distributed.base.event_loop import offload
from distributed.comm.core import Comm, CommClosedError
from distributed.comm.offloading import dumps_is_expensive, loads_is_expensive
from distributed.comm.settings import CommSettings, settings
from distributed.protocol.core import dumps, loads
from distributed.protocol.exceptions import FramingError, MessageError
from distributed.protocol.framing import Buffer, Limits

#: So many messages that need no waiting are read before others get their turn.
UNINTERRUPTED_READS = 64


class FramedComm(Comm):
    """A comm that sends and receives messages as frames.

    Parameters
    ----------
    local_addr, peer_addr
        The addresses of both ends, as URI.
    deserialize
        See :class:`~distributed.comm.core.Comm`.
    """

    # State.  `_is_open` is true until this side closes the comm; transports see to
    # that.  `_reading` is true while a read is under way.  `_unwaited` counts the
    # messages that were here already since others have had their turn.
    # `_context`, made with the handshake, is passed to serializers.

    #: What the transport raises where the connection has ended.
    _end_of_connection: ClassVar[tuple[type[Exception], ...]] = (StreamClosedError,)

    def __init__(self, local_addr: str, peer_addr: str, deserialize: bool = True):
        configured = settings()
        super().__init__(deserialize, configured.load_policy)
        self._local_addr = local_addr
        self._peer_addr = peer_addr
        self._linger = configured.tcp_timeout
        self._shard = self._choose_shard(configured)
        self._limits = configured.message_limits
        self._handshake_limits = configured.handshake_limits
        self._is_open = True
        self._reading = False
        self._unwaited = 0
        self._context: dict[str, Any] | None = None

    @property
    def local_address(self) -> str:
        return self._local_addr

    @property
    def peer_address(self) -> str:
        return self._peer_addr

    # What a transport does

    def _choose_shard(self, configured: CommSettings) -> int | None:
        """Return the size in bytes at which frames are split."""
        return configured.shard

    @abstractmethod
    def _start_read(self, limits: Limits) -> Sequence[Buffer] | Awaitable[Sequence[Buffer]]:
        """Return the frames of the next message, or what to await for them if they are not here.

        Raises
        ------
        CommClosedError
            If this side has closed the comm.
        FramingError
            If what arrives is no message within *limits*; now or when it is awaited.
        """

    @abstractmethod
    def _start_write(self, frames: Sequence[Buffer]) -> tuple[int, Awaitable[Any] | None]:
        """Write a message.

        Returns
        -------
        (nbytes, rest)
            Its size, and what to await until all of it has left; None if it has.

        Raises
        ------
        CommClosedError
            If this side has closed the comm.
        """

    @abstractmethod
    def _closed_error(self, exc: Exception) -> CommClosedError:
        """Tell why the connection has ended, of which *exc* is what the transport says."""

    def _invalid_error(self, exc: FramingError) -> CommClosedError:
        """Tell what arrived instead of a message."""
        return CommClosedError(f"received no valid message in {self!r}: {exc}")

    # What comes of it

    def complete_handshake(self, local: dict[str, Any], remote: Any) -> None:
        super().complete_handshake(local, remote)
        self._context = {
            "sender": self.local_info,
            "recipient": self.remote_info,
            **self.handshake_options,
        }

    async def read(self, deserializers: Sequence[str] | None = None) -> Any:
        if self._reading:
            raise self._busy_error()
        self._reading = True
        try:
            frames = self._start_read(self._limits)
            if type(frames) is not list:
                frames = await frames  # type: ignore[misc]
                self._unwaited = 0
            elif self._unwaited < UNINTERRUPTED_READS:
                self._unwaited += 1
            else:
                self._unwaited = 0
                await asyncio.sleep(0)
        except BaseException as exc:
            self._end(exc)
            raise
        finally:
            self._reading = False
        deserialize = self.deserialize
        if (
            len(frames) == 1  # as most messages have
            or not deserialize
            or not self.allow_offload
            or not loads_is_expensive(frames)
        ):
            return loads(frames, deserialize, deserializers, self.load_policy)
        try:
            return await offload(loads, frames, deserialize, deserializers, self.load_policy)
        except asyncio.CancelledError:
            # Who read on would take the next message for this one.
            self.abort()
            raise

    async def read_handshake(self) -> Any:
        if self._reading:
            raise self._busy_error()
        self._reading = True
        try:
            frames = self._start_read(self._handshake_limits)
            if type(frames) is not list:
                frames = await frames  # type: ignore[misc]
        except BaseException as exc:
            self._end(exc)
            raise
        finally:
            self._reading = False
        try:
            return msgpack.unpackb(frames[0], use_list=False, strict_map_key=True)
        except Exception as exc:
            raise MessageError(f"a handshake is plain msgpack: {exc}") from exc

    def _busy_error(self) -> Exception:
        """Tell why nobody can read while another does."""
        if self.closed():
            return CommClosedError(f"cannot read: {self!r}")
        return RuntimeError(f"another coroutine is already reading from {self!r}")

    async def write(
        self, msg: Any, serializers: Sequence[str] | None = None, on_error: str | None = None
    ) -> int:
        if not self._is_open:
            raise CommClosedError(f"cannot write: {self!r}")
        mode: Any = "message" if on_error is None else on_error
        context = self._context
        if self.allow_offload and dumps_is_expensive(msg, context):
            frames = await offload(dumps, msg, serializers, mode, context, self._shard)
        else:
            frames = dumps(msg, serializers, mode, context, self._shard)
        return await self._write_frames(frames)

    async def write_handshake(self, msg: dict[str, Any]) -> None:
        await self._write_frames([msgpack.packb(msg)])

    async def _write_frames(self, frames: Sequence[Buffer]) -> int:
        """Write the frames of a message, and return its size when all of it has left."""
        try:
            nbytes, rest = self._start_write(frames)
            if rest is not None:
                await rest
        except BaseException as exc:
            self._end(exc)
            raise
        return nbytes

    def _end(self, exc: BaseException) -> None:
        """End the comm for *exc*, and raise what that means.

        If it means nothing in particular the caller was cancelled, most likely, with a part of a
        message sent or received: whoever went on would send or get the rest of it.
        """
        if isinstance(exc, CommClosedError):
            # Only where this side has closed it; what was written may still be leaving.
            return
        error = None
        if isinstance(exc, self._end_of_connection):
            error = self._closed_error(exc)
        elif isinstance(exc, FramingError):
            error = self._invalid_error(exc)
        self.abort()
        if error is not None:
            try:
                raise error from (error.__cause__ or exc)
            finally:
                # Its traceback has this frame.
                del error, exc
