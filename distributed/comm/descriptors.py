"""A socket that passes file descriptors beside the bytes of a stream (``SCM_RIGHTS``, unix(7)).

The kernel binds descriptors to the bytes that one sendmsg() call sends: a receiver gets them with
the first of these bytes, and a recvmsg() call does not return bytes after them.  The kernel closes
them if the receiver calls recv() instead.  So a :class:`DescriptorSocket`, whose `recv_into` calls
recvmsg(), may take the place of a socket below a Tornado stream at any time.

Receiving costs a fifth more than with recv(), so only connections that need it have such a socket;
see :mod:`distributed.comm.sharing`.
"""

from __future__ import annotations

import array
import errno
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from distributed.base.short_queue import AnyQueue, ShortQueue, grown
from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import Buffer
from distributed.protocol.shared_frames import Descriptors

__all__ = ["DescriptorSocket"]

#: Maximum number of descriptors of one sendmsg() call (SCM_MAX_FD of Linux).
MAX_DESCRIPTORS: Final = 253

_INT = array.array("i").itemsize
_SPACE: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT) if hasattr(socket, "CMSG_SPACE") else 0


class _Attached(NamedTuple):
    """Descriptors to send with the byte at a position of the stream."""

    position: int
    descriptors: Sequence[int]
    #: An object that keeps the descriptors open.
    owner: Any


class DescriptorSocket(socket.socket):
    """A socket that takes the place of another one, and passes descriptors.

    Parameters
    ----------
    sock
        A connected Unix domain socket, which becomes unusable.
    received
        The received descriptors are added to this object.
    """

    def __init__(self, sock: socket.socket, received: Descriptors) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.setblocking(False)
        self._received = received
        # Number of bytes sent since this object was made.
        self._sent = 0
        # What is to be sent with later bytes, in order.
        self._attached: AnyQueue[_Attached] = ShortQueue()

    def attach(self, descriptors: Sequence[int], owner: Any, after: int) -> None:
        """Send descriptors with the first byte that follows the next *after* bytes.

        Parameters
        ----------
        descriptors
            At most `MAX_DESCRIPTORS` file descriptors.
        owner
            An object that keeps them open; it is kept until they were sent.
        after
            Number of bytes that wait to be sent before.
        """
        self._attached.append(_Attached(self._sent + after, descriptors, owner))
        self._attached = grown(self._attached)

    def send_with(self, buffers: Sequence[Buffer], descriptors: Sequence[int]) -> int:
        """Send bytes, and descriptors with the first of them; return the number of bytes.

        Raises
        ------
        OSError
            If nothing was sent.
        """
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        sent = super().sendmsg(buffers, [rights])
        self._sent += sent
        return sent

    # Methods that Tornado and `MessageStream` call

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive bytes, and keep the descriptors that come with them.

        Raises
        ------
        OSError
            Also if the descriptors cannot be received, or are too many.
        """
        memory = memoryview(buffer)[:nbytes] if nbytes else buffer
        count, ancillary, state, _ = self.recvmsg_into(
            [memory], _SPACE, flags | socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i", data[: len(data) // _INT * _INT])
                try:
                    self._received.add(numbers)
                except FramingError as exc:
                    raise OSError(errno.EPROTO, str(exc)) from None
        if state & socket.MSG_CTRUNC:
            raise OSError(
                errno.EMFILE, "file descriptors of the peer were lost: this process has too many"
            )
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        """Send bytes, up to the next one that descriptors are attached to.

        Descriptors that are attached to the first byte are sent with it.

        Raises
        ------
        BlockingIOError
            If nothing can be sent now.
        """
        attached = self._attached
        if not attached:
            sent = super().send(data, flags)
            self._sent += sent
            return sent
        here = attached[0].position == self._sent
        if len(attached) > here:
            data = memoryview(data)[: attached[here].position - self._sent]
        if not here:
            sent = super().send(data, flags)
            self._sent += sent
            return sent
        try:
            sent = self.send_with([data], attached[0].descriptors)
        except OSError as exc:
            if exc.errno != errno.ETOOMANYREFS:
                raise
            # Too many descriptors of this user wait to be received.  Unlike a message that waits
            # for the socket alone, this one is tried again in each turn of the event loop.
            raise BlockingIOError(errno.EAGAIN, str(exc)) from exc
        attached.popleft()
        return sent

    def sendmsg(self, buffers: Any, *args: Any) -> int:
        """Send the bytes of several buffers, or of the first one if descriptors are attached."""
        if self._attached:
            return self.send(buffers[0])
        sent = super().sendmsg(buffers, *args)
        self._sent += sent
        return sent

    def close(self) -> None:
        """Close the socket, and all descriptors that were received and not used."""
        super().close()
        self._received.close()
        self._attached.clear()
