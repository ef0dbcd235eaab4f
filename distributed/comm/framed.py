"""The base class of comms whose messages travel as frames.

:class:`FramedComm` connects :mod:`distributed.protocol`, which converts messages to frames and
back, with a transport, which moves the frames.  It allows one reader at a time, gives other tasks a
turn while a peer sends without a pause, and accepts only small, plain messages in the handshake.
Any failure on the way closes the comm.  The transports are in :mod:`distributed.comm.stream` and
:mod:`distributed.comm.ws_comm`.
"""

from __future__ import annotations

import asyncio
import functools
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Any, ClassVar

import msgpack
from tornado.iostream import StreamClosedError

from distributed.base.event_loop import offload
from distributed.base.text import shown
from distributed.comm.busy_polling import BusyPolling
from distributed.comm.core import Comm, CommClosedError
from distributed.comm.offloading import (
    LARGE_BYTES,
    LARGE_HEAD,
    ExpensiveMessageError,
    pack_bytes,
    read_in_thread,
    reading_budget,
    weigh,
)
from distributed.comm.settings import CommSettings
from distributed.protocol.core import UnfinishedMessageError, dumps, loads
from distributed.protocol.exceptions import DeserializationError, FramingError, MessageError
from distributed.protocol.framing import Buffer, Limits

#: Maximum number of messages that are read in a row without giving other tasks a turn.
UNINTERRUPTED_READS = 64
#: Maximum number of items of an array in a handshake.  msgpack allocates an array before it reads
#: the items, so nested arrays that claim many items would take up to a thousand times their size.
_HANDSHAKE_ITEMS = 1000


class FramedComm(Comm):
    """A comm that sends and receives messages as frames.

    Parameters
    ----------
    local_addr, peer_addr
        The addresses of both ends, as URI.
    deserialize
        See :class:`~distributed.comm.core.Comm`.
    """

    #: The errors that the transport raises if the connection has ended.
    _end_of_connection: ClassVar[tuple[type[Exception], ...]] = (StreamClosedError,)

    carries_controls = True

    def __init__(self, local_addr: str, peer_addr: str, deserialize: bool = True):
        super().__init__(deserialize)
        configured = self.configured
        self._local_addr = local_addr
        self._peer_addr = peer_addr
        # Maximum number of seconds that close() waits for written data to be sent.
        self._linger = configured.tcp_timeout
        # Busy polling while a task waits for a message, and its seconds; None for none.
        self._busy_polling = BusyPolling.configured(configured)
        # The size at which frames are split, and the limits of received messages.
        self._shard = self._choose_shard(configured)
        self._limits = configured.message_limits
        self._handshake_limits = configured.handshake_limits
        # Whether this side has not closed the comm; the transport sets it to false.
        self._is_open = True
        # Whether a task is reading.
        self._reading = False
        # Number of messages read since the last time that the reader had to wait.
        self._unwaited = 0
        # The context of serializers; None before the handshake is complete.
        self._context: dict[str, Any] | None = None

    @property
    def local_address(self) -> str:
        return self._local_addr

    @property
    def peer_address(self) -> str:
        return self._peer_addr

    # The methods of a transport

    def _choose_shard(self, configured: CommSettings) -> int | None:
        """Return the size in bytes at which frames are split."""
        return configured.shard

    @abstractmethod
    def _start_read(self, limits: Limits) -> Sequence[Buffer] | Awaitable[Sequence[Buffer]]:
        """Return the frames of the next message as a list, or an awaitable of them.

        Raises
        ------
        CommClosedError
            If this side has closed the comm.
        FramingError
            If the peer sent an invalid message or one that exceeds *limits*; now or when the
            result is awaited.
        """

    @abstractmethod
    def _start_write(self, frames: Sequence[Buffer]) -> tuple[int, Awaitable[Any] | None]:
        """Write a message.

        Returns
        -------
        (nbytes, rest)
            Its size in bytes, and an awaitable that is done when the system has accepted all of
            it; None if that is so already.

        Raises
        ------
        CommClosedError
            If this side has closed the comm.
        """

    @abstractmethod
    def _closed_error(self, exc: Exception) -> CommClosedError:
        """Return the error to raise if the connection has ended and the transport raised *exc*."""

    def _invalid_error(self, exc: FramingError) -> CommClosedError:
        """Return the error to raise if the peer sent an invalid message."""
        return CommClosedError(f"received no valid message in {self!r}: {shown(exc)}")

    # Reading and writing

    @property
    def is_reading(self) -> bool:
        return self._reading

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
        while True:
            self._reading = True
            try:
                frames = self._start_read(self._limits)
                if type(frames) is not list:
                    if self._busy_polling is not None:
                        polling, seconds = self._busy_polling
                        polling.poll_for(seconds)
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
            # As in `MessageStream`, only a message of two frames is a control message.
            if len(frames) != 2 or len(frames[0]) or self.controls is None:
                break
            self.controls.receive(frames[1], in_order=True)
        self.traffic.messages_received += 1
        deserialize = self.deserialize
        budget = None
        # The first condition stands for the usual case.
        if (len(frames) > 1 or len(frames[0]) >= LARGE_HEAD) and self.allow_offload:
            budget = reading_budget(frames, deserialize)
        finish = None
        if budget != 0:
            try:
                return loads(frames, deserialize, deserializers, self.load_policy, budget)
            except UnfinishedMessageError as exc:
                finish = exc.finish
            except (EOFError, DeserializationError) as exc:
                self._end_if_truncated(exc)
                raise
        if finish is None:
            finish = functools.partial(loads, frames, deserialize, deserializers, self.load_policy)
        try:
            return await read_in_thread(finish, frames)
        except (EOFError, DeserializationError) as exc:
            self._end_if_truncated(exc)
            raise
        except asyncio.CancelledError:
            # A caller that kept reading would mistake the next message for this one.
            self.abort()
            raise

    def _end_if_truncated(self, exc: Exception) -> None:
        """Abort the comm and raise CommClosedError if *exc* is, or was caused by, an EOFError.

        The value's bytes end early, so bytes of the message were lost.
        """
        if isinstance(exc, EOFError) or isinstance(exc.__cause__, EOFError):
            # No variable refers to the new error, whose traceback refers to this frame.
            text = f"in {self!r}: aborted stream on truncated data: {shown(exc)}"
            self.abort()
            raise CommClosedError(text) from exc

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
            return msgpack.unpackb(
                frames[0], use_list=False, strict_map_key=True, max_array_len=_HANDSHAKE_ITEMS
            )
        except Exception as exc:
            raise MessageError(f"a handshake is plain msgpack: {shown(exc)}") from exc

    def _busy_error(self) -> Exception:
        """Return the error to raise if another task is reading."""
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
        if type(msg) is bytes and len(msg) >= LARGE_BYTES and self.allow_offload:
            return await self._write_frames([await pack_bytes(msg)])
        try:
            frames = dumps(
                msg, serializers, mode, context, self._shard, weigh if self.allow_offload else None
            )
        except ExpensiveMessageError:
            frames = None
        if frames is None:
            frames = await offload(dumps, msg, serializers, mode, context, self._shard)
        return await self._write_frames(frames)

    async def write_handshake(self, msg: dict[str, Any]) -> None:
        await self._write_frames([msgpack.packb(msg)])

    async def _write_frames(self, frames: Sequence[Buffer]) -> int:
        """Write a message and return its size in bytes once the system has accepted all of it."""
        try:
            nbytes, rest = self._start_write(frames)
            traffic = self.traffic
            traffic.messages_sent += 1
            traffic.bytes_sent += nbytes
            if rest is not None:
                await rest
        except BaseException as exc:
            self._end(exc)
            raise
        return nbytes

    def _end(self, exc: BaseException) -> None:
        """Abort the comm because of *exc*; raise the error that replaces *exc*, if there is one.

        If there is none, the caller was most likely cancelled in the middle of a message.  The comm
        is aborted, because the next read or write would continue in the middle of that message.
        """
        if isinstance(exc, CommClosedError):
            # This side has closed the comm; the last written data may still be on its way.
            return
        try:
            # No variable refers to the error; see `InlineFuture._take_error`.
            if isinstance(exc, self._end_of_connection):
                raise _caused_by(exc, self._closed_error(exc))
            if isinstance(exc, FramingError):
                raise _caused_by(exc, self._invalid_error(exc))
        finally:
            self.abort()


def _caused_by(exc: Exception, error: CommClosedError) -> CommClosedError:
    """Return *error*, whose cause is *exc* unless it has one."""
    if error.__cause__ is None:
        error.__cause__ = exc
    return error
