"""Sending arrays in shared memory as file descriptors, over ``unix://``.

Two peers agree upon the feature "shared" in the handshake.  Its parameter is the limits that a
receiver sets: the maximum number of regions in a message, and their total size in bytes.  What such
a message looks like is the business of :mod:`distributed.protocol.shared_frames`.

Connections are ordinary ones until the first such message, because receiving descriptors costs more
than receiving bytes alone.  The side that has one to send changes its socket to a
:class:`~distributed.comm.descriptors.DescriptorSocket`, and says so by the control message
"descriptors".  The other side does the same, and sends a descriptor with its answer, the *probe*.
So does the first side then.  A side sends descriptors of memory only after it has received a probe,
which a proxy between the two does not pass on.  The sender waits for one round trip, once in the
life of a connection.

With a threshold (``distributed.comm.shared.threshold``), larger buffers of ordinary memory are
copied into a region that is lent to the receiver; see :mod:`distributed.base.memory_pool`.

A comm that unpickles nothing does not offer the feature: its peers are not trusted, and could
change the memory after it was checked.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import os
import weakref
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeAlias

from tornado.iostream import StreamClosedError

from distributed.base.buffers import address_of
from distributed.base.event_loop import offload
from distributed.base.memory_pool import lend
from distributed.base.shared_memory import has_regions, is_supported
from distributed.comm.control import ControlledComm, common_handlers, pack_control
from distributed.comm.descriptors import DescriptorSocket
from distributed.comm.handshake import Endpoint, register_feature
from distributed.comm.message_stream import MAX_BUFFERS, MessageStream
from distributed.comm.settings import settings
from distributed.comm.stream import StreamComm
from distributed.protocol.framing import Buffer, pack_message
from distributed.protocol.shared_frames import (
    Copy,
    Descriptors,
    Lender,
    SharedMessage,
    ShareLimits,
    SharingDecoder,
    share,
)

__all__ = ["FEATURE", "Sharing"]

#: The name of the feature in the handshake.
FEATURE: Final = "shared"

#: The kind of the control message by which a side says that it receives descriptors.
_KIND: Final = "descriptors"

#: The control messages of this kind: a side receives descriptors; it does, and this one comes with
#: the probe; it does, and has no probe.
_RECEIVES, _PROBE, _NO_PROBE = (
    pack_control(_KIND, False, args) for args in ((), (True,), (False,))
)

#: Seconds between two checks whether both sides wait for each other to read.
_CHECK_INTERVAL: Final = 1.0


def _offer(comm: Endpoint) -> ShareLimits | None:
    if not comm.passes_descriptors or not comm.allow_pickle:
        return None
    return comm.configured.share_limits if is_supported() else None


def _agree(ours: Any, theirs: Any) -> tuple[int, int] | None:
    if not isinstance(theirs, tuple | list) or len(theirs) != 2:
        raise ValueError(f"expected two numbers, got {theirs!r:.100}")
    for number in theirs:
        if type(number) is not int or number < 0:
            raise ValueError(f"expected a number that is not negative, got {number!r:.100}")
    count, size = min(ours[0], theirs[0]), min(ours[1], theirs[1])
    return (count, size) if count and size else None


register_feature(FEATURE, _offer, _agree)


#: Number of bytes that are copied in the event loop; more are copied in a thread.
_COPIED_AT_ONCE: Final = 4 * 2**20

#: The result of `FramedComm._start_write`.
_Started: TypeAlias = tuple[int, Awaitable[Any] | None]


class Sharing:
    """The shared memory in the messages of one comm."""

    # `_enabled`, `_answered` and `_peer_enabled` or `_impossible` become true once.
    __slots__ = (
        "_answered",
        "_enabled",
        "_impossible",
        "_lend",
        "_limits",
        "_peer_enabled",
        "_threshold",
        "_turn",
        "_waiting",
        "delayed",
    )

    def __init__(self, comm: StreamComm, limits: tuple[int, int]) -> None:
        self._limits = ShareLimits(*limits)
        # Minimum size in bytes of a buffer that is copied into shared memory; None for never.
        self._threshold = settings().share_threshold
        reference = weakref.ref(comm)
        self._lend: Lender = functools.partial(lend, is_open=functools.partial(_is_open, reference))
        # Whether this side receives descriptors, and whether it has sent its probe.
        self._enabled = self._answered = False
        # Whether the peer gets descriptors, and whether it is known that it does not.
        self._peer_enabled = self._impossible = False
        # Done when the peer receives descriptors or the stream is closed; None if no write waits.
        self._waiting: asyncio.Future[None] | None = None
        #: Number of writes that have not begun to send; later ones wait for them.
        self.delayed = 0
        # Keeps these writes in order.
        self._turn = asyncio.Lock()

    @property
    def is_waiting(self) -> bool:
        """Whether a write waits until the peer receives descriptors."""
        return self._waiting is not None

    def may_share(self) -> bool:
        """Return whether a message with several frames may have shared ones."""
        return not self._impossible and (self._threshold is not None or has_regions())

    def start_write(self, comm: StreamComm, frames: Sequence[Buffer]) -> _Started | None:
        """Write a message if a part of it is in shared memory or is to be copied there.

        Otherwise, return None, unless an earlier write is delayed.  The result is that of
        `FramedComm._start_write`.
        """
        message = None
        if len(frames) > 1 and self.may_share():
            message = share(frames, self._limits, self._threshold, self._lend, comm._shard)
        if not self.delayed:
            if message is None:
                return None
            if self._peer_enabled and not message.copies:
                return self._send(comm, frames, message)
        nbytes = pack_message(frames if message is None else message.frames, comm._shard)[1]
        return nbytes, self._send_later(comm, frames, message, nbytes)

    async def _send_later(
        self,
        comm: StreamComm,
        frames: Sequence[Buffer],
        message: SharedMessage | None,
        expected: int,
    ) -> None:
        """Write a message after those before it.

        If it is shared, its copies are made first, and the peer has to receive descriptors.  Its
        *expected* size was counted already.
        """
        self.delayed += 1
        try:
            async with self._turn:
                nbytes, rest = await self._send_in_turn(comm, frames, message)
        finally:
            self.delayed -= 1
        comm.traffic.bytes_sent += nbytes - expected
        if rest is not None:
            await rest

    async def _send_in_turn(
        self, comm: StreamComm, frames: Sequence[Buffer], message: SharedMessage | None
    ) -> _Started:
        if message is None:
            return _send_bytes(comm, pack_message(frames, comm._shard)[0])
        self._enable(comm)
        if not await self._peer_receives(comm):
            return _send_unshared(comm, frames, message)
        if sum(len(copy.source) for copy in message.copies) > _COPIED_AT_ONCE:
            await offload(_make_copies, message.copies)
        else:
            _make_copies(message.copies)
        return self._send(comm, frames, message)

    async def _peer_receives(self, comm: StreamComm) -> bool:
        """Wait until the peer receives descriptors; return false if it may never do so.

        That is so if a message of the peer waits for a reader here: the peer may wait for that
        reader before it reads.
        """
        comm.watch_peer()
        while not self._peer_enabled:
            if self._impossible:
                return False
            stream = _open_stream(comm)
            self._waiting = asyncio.get_running_loop().create_future()
            stream.set_close_callback(self._wake)
            try:
                await asyncio.wait([self._waiting], timeout=_CHECK_INTERVAL)
            finally:
                self._waiting = None
                stream.set_close_callback(None)
            if not self._peer_enabled and comm.unread() is not None and not comm.is_reading:
                return False
        return True

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _send(self, comm: StreamComm, frames: Sequence[Buffer], message: SharedMessage) -> _Started:
        """Write a message; the peer receives descriptors."""
        self._enable(comm)
        buffers, nbytes = pack_message(message.frames, comm._shard)
        rest = _send_descriptors(comm, buffers, nbytes, message.descriptors, message.leases)
        if rest is None:
            return _send_unshared(comm, frames, message)
        return nbytes, _send_bytes(comm, rest)[1] if rest else None

    def _enable(self, comm: StreamComm) -> None:
        """Receive descriptors from now on, and tell the peer."""
        if not self._enabled:
            self._receive_descriptors(comm)
            # Not `post_control`: the peer waits for this, even if earlier data waits to be sent.
            _send_control(comm, _RECEIVES)

    def _receive_descriptors(self, comm: StreamComm) -> None:
        stream = _open_stream(comm)
        self._enabled = True
        # While the descriptors of one message wait, those of the next one may come.
        received = Descriptors(2 * self._limits.max_descriptors)
        stream.socket = DescriptorSocket(stream.socket, received)
        decoder = SharingDecoder(comm._decoder, received, self._limits, probe=_PROBE)
        stream.decoder = comm._decoder = decoder

    def _answer(self, comm: StreamComm) -> None:
        """Send the probe to the peer, which receives descriptors."""
        if self._answered:
            return
        if not self._enabled:
            self._receive_descriptors(comm)
        self._answered = True
        try:
            probe = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError:
            # There are too many open files.
            _send_control(comm, _NO_PROBE)
            return
        owner = Descriptors(1)
        owner.add([probe])
        buffers, nbytes = pack_message([b"", _PROBE])
        rest = _send_descriptors(comm, buffers, nbytes, [probe], owner)
        if rest is None:
            _send_control(comm, _NO_PROBE)
            return
        comm.traffic.bytes_sent += nbytes
        if rest:
            _open_stream(comm).send(rest, sum(map(len, rest)))

    def note_peer(self, comm: StreamComm, args: tuple[Any, ...]) -> None:
        """Note what the peer says: it receives descriptors."""
        try:
            self._answer(comm)
        except StreamClosedError:
            # Wakes the reader.
            comm.abort()
        if args:
            decoder = comm._decoder
            if args[0] is True and isinstance(decoder, SharingDecoder) and decoder.was_probed:
                self._peer_enabled = True
            else:
                self._impossible = True
        self._wake()


def _send_descriptors(
    comm: StreamComm, buffers: Sequence[Buffer], nbytes: int, descriptors: Sequence[int], owner: Any
) -> list[Buffer] | None:
    """Send the begin of a message with descriptors, and return the rest, which the caller sends.

    The result is None if too many descriptors of this user wait to be received; nothing was sent.
    *owner* keeps the descriptors open.
    """
    stream = _open_stream(comm)
    sock = stream.socket
    assert isinstance(sock, DescriptorSocket)
    waiting = stream.unsent_bytes
    sent = 0
    if not waiting:
        try:
            sent = sock.send_with(buffers[:MAX_BUFFERS], descriptors)
        except BlockingIOError:
            pass
        except OSError as exc:
            if exc.errno != errno.ETOOMANYREFS:
                raise stream.failed(exc) from exc
            return None
        if sent == nbytes:
            return []
    if not sent:
        sock.attach(descriptors, owner, after=waiting)
    return _without(buffers, sent)


def _send_control(comm: StreamComm, control: bytes) -> None:
    buffers, nbytes = pack_message([b"", control])
    comm.traffic.bytes_sent += nbytes
    _open_stream(comm).send(buffers, nbytes)


def _note_peer(comm: ControlledComm, args: tuple[Any, ...]) -> None:
    if isinstance(comm, StreamComm) and isinstance(comm._sharing, Sharing):
        comm._sharing.note_peer(comm, args)


common_handlers[_KIND] = _note_peer


def _open_stream(comm: StreamComm) -> MessageStream:
    stream = comm.stream
    if stream is None:
        raise StreamClosedError
    if stream.closed():
        raise StreamClosedError(real_error=stream.error)
    return stream


def _send_unshared(comm: StreamComm, frames: Sequence[Buffer], message: SharedMessage) -> _Started:
    """Write a message as bytes; its regions stay here."""
    for loan in message.loans:
        loan.give_back()
    return _send_bytes(comm, pack_message(frames, comm._shard)[0])


def _is_open(comm: weakref.ref[StreamComm]) -> bool:
    found = comm()
    return found is not None and not found.closed()


def _make_copies(copies: Sequence[Copy]) -> None:
    for target, source in copies:
        # It releases the GIL, which an assignment to a slice would hold.
        ctypes.memmove(address_of(target), address_of(memoryview(source)), len(source))


def _send_bytes(comm: StreamComm, buffers: Sequence[Buffer]) -> _Started:
    """Write *buffers*, and return what `FramedComm._start_write` returns."""
    nbytes = sum(map(len, buffers))
    rest = _open_stream(comm).send(buffers, nbytes)
    if rest is None:
        return nbytes, None
    comm.watch_peer()
    # Cancelling a future of Tornado breaks its stream.
    return nbytes, comm.traffic.wait(asyncio.shield(rest))


def _without(buffers: Sequence[Buffer], sent: int) -> list[Buffer]:
    """Return *buffers* without their first *sent* bytes."""
    rest: list[Buffer] = []
    for buffer in buffers:
        if sent < len(buffer):
            rest.append(memoryview(buffer)[sent:] if sent else buffer)
        sent = max(sent - len(buffer), 0)
    return rest
