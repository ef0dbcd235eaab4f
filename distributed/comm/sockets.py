"""Sockets and their streams: opening, listening and options.

:mod:`distributed.comm.happy_eyeballs` finds the address of a host that answers.  The comms,
connectors and listeners that use these sockets are in :mod:`distributed.comm.tcp`, ``ws`` and
``unix``.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import select
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

from distributed.base.host_addresses import host_of
from distributed.base.logs import get_logger
from distributed.comm.addressing import unparse_host_port
from distributed.comm.exceptions import CommClosedError
from distributed.comm.happy_eyeballs import connect_socket, connect_to_host
from distributed.comm.message_stream import MessageStream
from distributed.comm.settings import settings
from distributed.comm.tls import open_tls_stream

logger = get_logger(__name__)

#: Tornado's maximum number of received bytes in a stream.  It would also limit the memory that a
#: message is read into, which the framing limits.  If no task reads, Tornado buffers one chunk, and
#: leaves the rest to the kernel.
MAX_BUFFER_SIZE = sys.maxsize

#: Number of keep-alive probes, evenly spaced, before the kernel gives a peer up.
_KEEPALIVE_PROBES = 10

#: Whether an accepted socket inherits the options of the listening one.
OPTIONS_ARE_INHERITED = sys.platform == "linux"

#: Errors of ``accept()`` if file descriptors, or memory of the kernel, are exhausted.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

#: Seconds before a listener accepts connections again after that, and before it logs again.
_EXHAUSTION_PAUSE, _EXHAUSTION_SILENCE = 0.1, 60.0

#: Maximum number of connections that are accepted in one callback of the event loop, and seconds
#: since the last callback within which only one is accepted.
_ACCEPTED_AT_ONCE, _SOON = 128, 0.0005

#: Maximum number of attempts to find a port that is free for both IPv4 and IPv6.
_BIND_ATTEMPTS = 10


def set_tcp_timeout(stream: IOStream) -> None:
    """Make the kernel close the connection of *stream* if its peer is dead.

    Keep-alive and, if the platform has it, the user timeout of the socket are set so that a dead
    peer is detected within ``distributed.comm.timeouts.tcp``, even without data to send.
    """
    if not stream.closed():
        _set_timeout(stream.socket)


def set_up(sock: socket.socket) -> None:
    """Make a TCP socket send small messages at once, and detect a dead peer.

    If `OPTIONS_ARE_INHERITED`, the options of a listening socket hold for those that it accepts.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _set_timeout(sock)


def _set_timeout(sock: socket.socket) -> None:
    seconds = settings().tcp_timeout
    if seconds:
        for level, option, value in _timeout_options(seconds):
            sock.setsockopt(level, option, value)


@functools.lru_cache(maxsize=8)
def _timeout_options(seconds: float) -> list[tuple[int, int, int]]:
    interval = max(1, round(seconds / (_KEEPALIVE_PROBES + 1)))
    idle = max(1, round(seconds - interval * _KEEPALIVE_PROBES))
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if sys.platform == "darwin":
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPALIVE, idle))
    elif hasattr(socket, "TCP_KEEPIDLE"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle))
    if hasattr(socket, "TCP_KEEPINTVL"):
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval))
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES))
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000)))
    return options


def get_stream_address(stream: IOStream) -> str:
    """Return the local address of *stream* as ``host:port``.

    It is ``"<closed>"`` if the peer has disconnected, and this side has not noticed it yet.  No
    comm has such an address: see `get_socket_address`.

    Raises
    ------
    CommClosedError
        If *stream* is closed.
    """
    if stream.closed():
        raise CommClosedError(f"the stream is closed and has no address: {stream!r}")
    try:
        return get_socket_address(stream.socket)
    except CommClosedError:
        return "<closed>"


def get_socket_address(sock: socket.socket) -> str:
    """Return the local address of *sock* as ``host:port``.

    Raises
    ------
    CommClosedError
        If the peer has disconnected, where the system then gives no address.
    """
    try:
        address = sock.getsockname()
    except OSError as exc:
        raise CommClosedError("the peer closed the connection") from exc
    return unparse_host_port(host_of(address), address[1])


def peer_has_left(sock: socket.socket) -> bool:
    """Return whether the peer has ended its side of the connection, even behind unread data.

    Where the system cannot tell, as on macOS, this returns false.
    """
    if not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def peer_loc(address: Any) -> str:
    """Return the *address* of an accepted socket's peer as ``host:port``.

    Raises
    ------
    CommClosedError
        If the peer has disconnected, where the system then gives no address.
    """
    if not address:
        raise CommClosedError("the peer closed the connection before it was accepted")
    return unparse_host_port(host_of(address), address[1])


class Client:
    """A client that opens streams: TLS streams if it has an *ssl_context*.

    If the context checks host names, the peers' certificates have to be for *server_hostname*.
    """

    def __init__(
        self, ssl_context: ssl.SSLContext | None = None, server_hostname: str | None = None
    ) -> None:
        self.ssl_context = ssl_context
        self.server_hostname = server_hostname

    async def open(self, host: str, port: int) -> MessageStream:
        """Return a stream that is connected to *host*; its TLS handshake may be in progress.

        Raises
        ------
        OSError
            If the name does not resolve, or the host cannot be reached.
        ValueError
            If *host* cannot be the name of a host.
        """
        if _is_ipv4(host):
            sock = await connect_socket(socket.AF_INET, (host, port))
        else:
            sock = await connect_to_host(host, port)
        if self.ssl_context is None:
            return MessageStream(sock, max_buffer_size=MAX_BUFFER_SIZE)
        return open_tls_stream(sock, self.ssl_context, server_hostname=self.server_hostname)


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return False
    except ValueError as exc:
        # A null character, at which the system would end the name.
        raise ValueError(f"{host!r} cannot be the name of a host: {exc}") from exc
    return True


class SocketServer(TCPServer):
    """A server that accepts connections and passes each socket on.

    Parameters
    ----------
    handle
        Called with each socket and the address of its peer; returns a coroutine to run as a task,
        or None.
    """

    def __init__(
        self, handle: Callable[[socket.socket, Any], Coroutine[Any, Any, None] | None]
    ) -> None:
        super().__init__()
        self._handle = handle
        # The running calls of *handle*.
        self._handling: set[asyncio.Task[None]] = set()
        # Time at which the event loop last reported a connection.
        self._last_event = 0.0

    # Tornado would call `accept()` again after each connection, which nearly always fails, and make
    # an `IOStream`.
    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections on listening *sockets*."""
        loop = IOLoop.current()
        for sock in sockets:
            loop.add_handler(sock, self._accept, IOLoop.READ)
            self._sockets[sock.fileno()] = sock
            self._handlers[sock.fileno()] = functools.partial(loop.remove_handler, sock)

    def _accept(self, sock: socket.socket, events: int) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        # The event loop reports the next connection at once, unless it is busy.
        soon = now - self._last_event < _SOON
        self._last_event = now
        for _ in range(1 if soon else _ACCEPTED_AT_ONCE):
            try:
                connection, address = sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                # The peer has disconnected already.
                continue
            coroutine = self._handle(connection, address)
            if coroutine is not None:
                task = loop.create_task(coroutine)
                self._handling.add(task)
                task.add_done_callback(self._handled)

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._handling.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("Failed to handle a connection", exc_info=exc)


class ListeningSocket(socket.socket):
    """A listening socket that makes room for connections if file descriptors are exhausted.

    Tornado would call `accept()` again at once, and log an error each time.

    Parameters
    ----------
    sock
        A listening socket, which becomes unusable.
    make_room
        Closes the connection that matters least; returns whether there was one.
    prefix
        The scheme, for the log.
    """

    def __init__(self, sock: socket.socket, make_room: Callable[[], bool], prefix: str) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.setblocking(False)
        self._make_room = make_room
        self._prefix = prefix
        # Time at which exhaustion was last logged, or None.
        self._logged: float | None = None

    # `accept()` reads `family` and `type`; they are cached, since the originals are slow.
    @functools.cached_property
    def family(self) -> socket.AddressFamily:
        return super().family

    @functools.cached_property
    def type(self) -> socket.SocketKind:
        return super().type

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises
        ------
        BlockingIOError
            If there is none, or no room can be made.
        """
        while True:
            try:
                return super().accept()
            except OSError as exc:
                if exc.errno not in _EXHAUSTED:
                    raise
                self._log(exc)
                if not self._make_room():
                    self._pause()
                    raise BlockingIOError(errno.EAGAIN, str(exc)) from exc

    def _log(self, exc: OSError) -> None:
        now = asyncio.get_running_loop().time()
        if self._logged is None or now - self._logged > _EXHAUSTION_SILENCE:
            self._logged = now
            name = self.getsockname()
            logger.warning(
                "Too many connections to %s%s: %s.  The oldest unfinished handshakes are aborted, "
                "and new connections have to wait; does this process need a higher limit (ulimit "
                "-n), or a lower 'distributed.comm.max-connections'?",
                self._prefix,
                unparse_host_port(host_of(name), name[1]) if isinstance(name, tuple) else name,
                exc.strerror,
            )

    def _pause(self) -> None:
        """Stop accepting connections for a while."""
        loop = IOLoop.current()
        loop.update_handler(self, IOLoop.NONE)
        loop.call_later(_EXHAUSTION_PAUSE, self._resume, loop)

    def _resume(self, loop: IOLoop) -> None:
        if self.fileno() >= 0:
            loop.update_handler(self, IOLoop.READ)


def _listen(family: int, address: Any, backlog: int) -> socket.socket:
    return socket.create_server(address, family=family, backlog=backlog)


def bind_sockets(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Return sockets that listen at *port* of each address of *host*; of all if it is empty.

    Raises
    ------
    OSError
        If one of the addresses cannot be bound; then none is.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # The scope of a link-local address is in the third element after the host.
    addresses = sorted({(entry[0], str(entry[4][0]), *entry[4][2:]) for entry in found})
    for attempt in range(_BIND_ATTEMPTS):
        sockets: list[socket.socket] = []
        try:
            for family, address, *scope in addresses:
                # All sockets use the port that the first one was given.
                wanted = sockets[0].getsockname()[1] if sockets else port
                try:
                    sock = _listen(family, (address, wanted, *scope), backlog)
                except OSError as exc:
                    if sockets and exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        # Names resolve to IPv6 addresses even on hosts without IPv6.
                        continue
                    raise
                sock.setblocking(False)
                sockets.append(sock)
            return sockets
        except BaseException as exc:
            for sock in sockets:
                sock.close()
            taken = isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE
            if not (taken and sockets and port == 0 and attempt < _BIND_ATTEMPTS - 1):
                raise
    raise AssertionError("unreachable")
