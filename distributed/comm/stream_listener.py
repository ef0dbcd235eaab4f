"""The listener that all transports over byte streams share.

:class:`StreamListener` makes a comm of each socket that it accepts, does the handshake and calls
the handler.  :mod:`distributed.comm.tcp` and :mod:`distributed.comm.unix` say how the listening
sockets are made, which stream a socket gets, and what the addresses are.
"""

from __future__ import annotations

import itertools
import logging
import math
import select
import socket
import struct
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, ClassVar

from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

from distributed.base.logs import get_logger
from distributed.comm.core import (
    BaseListener,
    CommHandler,
    FatalCommClosedError,
    call_comm_handler,
)
from distributed.comm.framed import FramedComm
from distributed.comm.message_stream import MessageStream
from distributed.comm.sockets import MAX_BUFFER_SIZE, ListeningSocket

logger = get_logger(__name__)

#: Offsets in struct tcp_info of linux/tcp.h: tcpi_last_data_recv (u32, milliseconds) and, since
#: Linux 4.1, tcpi_bytes_received (u64).
_LAST_DATA_RECEIVED, _BYTES_RECEIVED = 52, 128

#: Milliseconds in which a peer's bytes may still be on their way from the socket to the handshake.
_RECENT = 100

#: Maximum number of connections that are compared to close one of them.  Comparing all would take
#: longer the more there are.
_COMPARED = 64


def log_failed_connection(peer: str, local: str, exc: OSError) -> None:
    """Log once that the handshake with a peer that connected from *peer* to *local* failed."""
    # A peer that disconnects is normal; a peer that can never connect needs attention.
    level = logging.WARNING if isinstance(exc, FatalCommClosedError) else logging.INFO
    message = "Connection from %s to %s failed before it began: %s"
    logger.log(level, message, peer, local, exc, extra={"peer": peer})


def _is_readable(sock: socket.socket) -> bool:
    """Return whether the peer has sent bytes that were not received, or has disconnected."""
    readable = select.poll()
    readable.register(sock, select.POLLIN)
    return bool(readable.poll(0))


def _silence(sock: socket.socket) -> float:
    """Return the milliseconds since the peer has sent anything; infinity if it never did.

    It is also infinity if the system does not tell.
    """
    if sys.platform != "linux" or sock.family == socket.AF_UNIX:
        return math.inf
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
    if len(info) < _BYTES_RECEIVED + 8 or not any(info[_BYTES_RECEIVED:]):
        return math.inf
    return float(struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)[0])


class StreamListener(BaseListener):
    """A listener that accepts sockets and makes a comm of each.

    Parameters
    ----------
    comm_handler
        Called with each new comm after its handshake.
    deserialize, allow_offload
        See :class:`~distributed.comm.core.Comm`.
    """

    prefix: ClassVar[str]
    comm_class: ClassVar[Callable[..., FramedComm]]

    def __init__(self, comm_handler: CommHandler, deserialize: bool, allow_offload: bool):
        super().__init__()
        self.comm_handler = comm_handler
        self.deserialize = deserialize
        self.allow_offload = allow_offload
        #: The server that accepts connections; None before start() and after stop().
        self.tcp_server: TCPServer | None = None

    def _accept_on(self, server: TCPServer, sockets: Sequence[socket.socket]) -> None:
        """Let *server* accept connections on listening *sockets*."""
        server.add_sockets(
            [ListeningSocket(sock, self._make_room, self.prefix) for sock in sockets]
        )
        self.tcp_server = server

    def _unfinished(self) -> Iterator[tuple[IOStream, Callable[[], object]]]:
        """Yield the streams whose handshake is in progress, oldest first, and how to close each."""
        for comm in self._handshaking:
            stream = getattr(comm, "stream", None)
            if stream is not None:
                yield stream, comm.abort

    def _make_room(self) -> bool:
        """Close a connection because file descriptors ran out; return whether there was one.

        A peer whose connect() has returned has sent its part of the handshake, but this side may
        not have looked at it yet.  Therefore a connection is closed only if nothing has arrived
        just now: first one that has sent nothing at all.  Among equals it is the oldest, since
        honest peers are done soon.
        """
        close_waiting = None
        for stream, close in itertools.islice(self._unfinished(), _COMPARED):
            if stream.closed() or _is_readable(stream.socket):
                continue
            silence = _silence(stream.socket)
            if silence == math.inf:
                close()
                return True
            if silence > _RECENT and close_waiting is None:
                close_waiting = close
        if close_waiting is None:
            return False
        close_waiting()
        return True

    def _open_stream(self, sock: socket.socket) -> MessageStream:
        """Return the stream for a new connection."""
        return MessageStream(sock, max_buffer_size=MAX_BUFFER_SIZE)

    def _addresses_of(self, sock: socket.socket, address: Any) -> tuple[str, str]:
        """Return the local and the peer's address of an accepted socket, as URIs."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop accepting connections, and abort those in their handshake."""
        server, self.tcp_server = self.tcp_server, None
        if server is not None:
            server.stop()
        self.abort_handshaking_comms()

    def _handle_socket(self, sock: socket.socket, address: Any) -> Coroutine[Any, Any, None] | None:
        """Register the comm of an accepted socket and return the coroutine that serves it.

        This is not a coroutine function, so that `_make_room` finds the comm while more sockets
        are accepted in the same event-loop iteration.  Otherwise it would close an honest peer.
        """
        if self.tcp_server is None:
            # The listener stopped after this socket was accepted.
            sock.close()
            return None
        local, peer = self.prefix, "a peer"
        try:
            local, peer = self._addresses_of(sock, address)
            logger.debug("Incoming connection from %s to %s", peer, local)
            comm = self.comm_class(self._open_stream(sock), local, peer, self.deserialize)
        except OSError as exc:
            sock.close()
            log_failed_connection(peer, local, exc)
            return None
        comm.allow_offload = self.allow_offload
        self._handshaking[comm] = None
        return self._serve_comm(comm, local, peer)

    async def _serve_comm(self, comm: FramedComm, local: str, peer: str) -> None:
        try:
            await self.on_connection(comm)
        except OSError as exc:
            log_failed_connection(peer, local, exc)
            return
        await call_comm_handler(self.comm_handler, comm)
