"""The ``tcp://`` transport: how its streams are opened, accepted and tuned.

Built on Tornado's ``TCPClient`` and ``TCPServer``.  What happens on an open
stream is :mod:`distributed.comm.stream`'s business.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from typing import Any, ClassVar

from tornado import netutil
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient
from tornado.tcpserver import TCPServer

from distributed import config
from distributed.comm.addressing import (
    get_tcp_server_address,
    parse_host_port,
    unparse_host_port,
)
from distributed.comm.core import (
    BaseListener,
    CommClosedError,
    CommHandler,
    Connector,
    Listener,
    call_comm_handler,
)
from distributed.comm.registry import Backend
from distributed.comm.stream import StreamComm
from distributed.comm.utils import ensure_concrete_host
from distributed.utils import ensure_ip, get_ip, get_ipv6

logger = logging.getLogger(__name__)

#: Tornado's bound on what a stream holds of incoming data.  It would also apply to
#: memory that a message is read into, whose size the framing bounds; of data that
#: nobody reads Tornado takes one chunk and then leaves the rest to the kernel.
MAX_BUFFER_SIZE = sys.maxsize

#: Probes that keep-alive sends, evenly spaced, before it gives a peer up.
_KEEPALIVE_PROBES = 10

#: How often to look for a port that is free for IPv4 and IPv6 both.
_BIND_ATTEMPTS = 10


def set_tcp_timeout(stream: IOStream) -> None:
    """Let the kernel give up a peer that has gone silently.

    Sets keep-alive and, where the platform has it, the user timeout of the
    stream's socket such that a dead peer is noticed within
    ``distributed.comm.timeouts.tcp``, whether or not there is data to send.
    """
    seconds = config.get_timedelta("distributed.comm.timeouts.tcp")
    if not seconds:
        return
    sock = stream.socket
    interval = max(1, round(seconds / (_KEEPALIVE_PROBES + 1)))
    idle = max(1, round(seconds - interval * _KEEPALIVE_PROBES))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "darwin":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPALIVE, idle)
    elif hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.SOL_TCP, socket.TCP_KEEPIDLE, idle)
    if hasattr(socket, "TCP_KEEPINTVL"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.SOL_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def get_stream_address(stream: IOStream) -> str:
    """Return the local address of *stream* as ``host:port``.

    Returns ``"<closed>"`` where it has none any more.
    """
    if stream.closed():
        return "<closed>"
    try:
        return unparse_host_port(*stream.socket.getsockname()[:2])
    except OSError:
        # The peer was gone before anybody asked.
        return "<closed>"


class TCP(StreamComm):
    """A comm over a TCP connection."""


async def _getaddrinfo(
    host: str, port: int, *, family: int = 0, type: int = socket.SOCK_STREAM
) -> list[tuple[int, Any]]:
    """Resolve *host*, in a thread only where it is a name rather than an IP address.

    Returns
    -------
    list of (family, socket address)
    """
    try:
        found = socket.getaddrinfo(
            host, port, family, type, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=type)
    return [(entry[0], entry[4]) for entry in found]


class _Resolver(netutil.Resolver):
    """Spares numeric addresses the way through a thread."""

    def initialize(self) -> None:
        pass

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        return await _getaddrinfo(host, port, family=family)


class _Client(TCPClient):
    """Remembers the streams it made: one that is cancelled just as it has connected forgets it."""

    def __init__(self) -> None:
        super().__init__(resolver=_Resolver())
        self.streams: list[IOStream] = []

    def _create_stream(self, *args: Any, **kwargs: Any) -> tuple[IOStream, Any]:
        stream, connected = super()._create_stream(*args, **kwargs)
        self.streams.append(stream)
        return stream, connected

    def close_streams(self) -> None:
        for stream in self.streams:
            stream.close()


class BaseTCPConnector(Connector):
    """What connectors over TCP share."""

    comm_class: ClassVar[type[StreamComm]]
    prefix: ClassVar[str]

    def _get_connect_args(self, **connection_args: Any) -> dict[str, Any]:
        """Return what ``TCPClient.connect`` needs besides the address."""
        return {}

    async def connect(
        self, address: str, deserialize: bool = True, **connection_args: Any
    ) -> StreamComm:
        """Open a connection to *address*, ``host:port``.

        Raises
        ------
        OSError
            If the connection cannot be made.
        """
        host, port = parse_host_port(address)
        client = _Client()
        try:
            stream = await client.connect(
                host,
                port,
                max_buffer_size=MAX_BUFFER_SIZE,
                **self._get_connect_args(**connection_args),
            )
            set_tcp_timeout(stream)
            local = self.prefix + get_stream_address(stream)
            return self.comm_class(stream, local, self.prefix + address, deserialize)
        except BaseException as exc:
            client.close_streams()
            if not isinstance(exc, StreamClosedError):
                raise
            reason = exc if exc.real_error is None else exc.real_error
            raise CommClosedError(
                f"cannot connect to {self.prefix}{address}: {type(reason).__name__}: {reason}"
            ) from reason


class TCPConnector(BaseTCPConnector):
    """Opens TCP connections."""

    prefix = "tcp://"
    comm_class = TCP


def _bind_sockets(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listen at *port* of each address that *host* stands for; all of them if it is empty.

    Raises
    ------
    OSError
        If one of the addresses cannot be bound; none is then.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = sorted({(entry[0], str(entry[4][0])) for entry in found})
    for attempt in range(_BIND_ATTEMPTS):
        sockets: list[socket.socket] = []
        try:
            for family, address in addresses:
                # The port that the first one was given is the others' too.
                wanted = sockets[0].getsockname()[1] if sockets else port
                try:
                    sock = socket.create_server((address, wanted), family=family, backlog=backlog)
                except OSError as exc:
                    if sockets and exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        # Names resolve to IPv6 addresses also where there is no IPv6.
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


class BaseTCPListener(BaseListener):
    """What listeners over TCP share.

    Parameters
    ----------
    address
        ``host:port``; an empty host stands for all interfaces, no port or port
        0 for any that is free.
    comm_handler
        Called with each new comm after its handshake.
    deserialize, allow_offload
        See :class:`~distributed.comm.core.Comm`.
    default_host
        The host by which this listener is contacted where it listens on all
        interfaces.
    default_port
        The port to use where the address has none.
    connection_args
        What the transport needs besides.
    """

    comm_class: ClassVar[type[StreamComm]]
    prefix: ClassVar[str]

    def __init__(
        self,
        address: str,
        comm_handler: CommHandler,
        deserialize: bool = True,
        allow_offload: bool = True,
        default_host: str | None = None,
        default_port: int = 0,
        **connection_args: Any,
    ):
        super().__init__()
        self.ip, self.port = parse_host_port(address, default_port)
        self.default_host = default_host
        self.comm_handler = comm_handler
        self.deserialize = deserialize
        self.allow_offload = allow_offload
        self.server_args = self._get_server_args(**connection_args)
        self.tcp_server: TCPServer | None = None
        self.bound_address: tuple[str, int] | None = None

    def _get_server_args(self, **connection_args: Any) -> dict[str, Any]:
        """Return what ``TCPServer`` needs besides."""
        return {}

    async def start(self) -> None:
        """Bind the address and start to accept connections.

        Raises
        ------
        OSError
            If the address cannot be bound.
        """
        if self.tcp_server is not None:
            return
        backlog = int(config.get("distributed.comm.socket-backlog"))
        server = TCPServer(max_buffer_size=MAX_BUFFER_SIZE, **self.server_args)
        server.handle_stream = self._handle_stream  # type: ignore[method-assign]
        try:
            sockets = _bind_sockets(self.ip, self.port, backlog)
        except OSError as exc:
            where = self.prefix + unparse_host_port(self.ip, self.port)
            raise OSError(exc.errno, f"cannot listen at {where}: {exc.strerror}") from exc
        server.add_sockets(sockets)
        self.tcp_server = server
        self.bound_address = get_tcp_server_address(server)[:2]

    def stop(self) -> None:
        """Stop accepting connections; those in their handshake are aborted."""
        server, self.tcp_server = self.tcp_server, None
        if server is not None:
            server.stop()
        self.abort_handshaking_comms()

    async def _handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        peer = self.prefix + unparse_host_port(*address[:2])
        local = self.prefix + get_stream_address(stream)
        logger.debug("Incoming connection from %s to %s", peer, self.contact_address)
        set_tcp_timeout(stream)
        comm = self.comm_class(stream, local, peer, self.deserialize)
        comm.allow_offload = self.allow_offload
        try:
            await self.on_connection(comm)
        except CommClosedError as exc:
            logger.info("Connection from %s to %s failed before it began: %s", peer, local, exc)
            return
        await call_comm_handler(self.comm_handler, comm)

    def get_host_port(self) -> tuple[str, int]:
        """Return the address that is bound.

        Raises
        ------
        ValueError
            If the listener was not started.
        """
        if self.bound_address is None:
            raise ValueError(f"invalid operation on non-started {type(self).__name__}")
        return self.bound_address

    @property
    def listen_address(self) -> str:
        return self.prefix + unparse_host_port(*self.get_host_port())

    @property
    def contact_address(self) -> str:
        host, port = self.get_host_port()
        host = ensure_concrete_host(host, default_host=self.default_host)
        return self.prefix + unparse_host_port(host, port)


class TCPListener(BaseTCPListener):
    """Accepts TCP connections."""

    prefix = "tcp://"
    comm_class = TCP


class BaseTCPBackend(Backend):
    """What backends over TCP share; each names its classes."""

    _connector_class: ClassVar[type[Connector]]
    _listener_class: ClassVar[type[BaseTCPListener]]

    def get_connector(self) -> Connector:
        return self._connector_class()

    def get_listener(
        self, loc: str, handle_comm: CommHandler, deserialize: bool, **connection_args: Any
    ) -> Listener:
        return self._listener_class(loc, handle_comm, deserialize, **connection_args)

    def get_address_host(self, loc: str) -> str:
        return parse_host_port(loc)[0]

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        return parse_host_port(loc)

    def resolve_address(self, loc: str) -> str:
        host, port = parse_host_port(loc)
        return unparse_host_port(ensure_ip(host), port)

    def get_local_address_for(self, loc: str) -> str:
        host, _ = parse_host_port(loc)
        host = ensure_ip(host)
        local = get_ipv6(host) if ":" in host else get_ip(host)
        return unparse_host_port(local)


class TCPBackend(BaseTCPBackend):
    """The backend of ``tcp://``."""

    _connector_class = TCPConnector
    _listener_class = TCPListener
