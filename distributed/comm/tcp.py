"""The ``tcp://`` and ``tls://`` transports: their comms, connectors and listeners.

What happens on an open stream is :mod:`distributed.comm.stream`'s business, how
sockets are opened :mod:`distributed.comm.sockets`'s, and what TLS does
:mod:`distributed.comm.tls`'s.
"""

from __future__ import annotations

import logging
import socket
import ssl
from typing import Any, ClassVar

from tornado.iostream import StreamClosedError
from tornado.tcpserver import TCPServer

from distributed.base import config
from distributed.base.host_addresses import ensure_ip, get_ip, get_ipv6
from distributed.comm.addressing import (
    ensure_concrete_host,
    get_tcp_server_address,
    is_unspecified,
    parse_host_port,
    unparse_host_port,
)
from distributed.comm.core import (
    BaseListener,
    Comm,
    CommClosedError,
    CommHandler,
    Connector,
    FatalCommClosedError,
    Listener,
    call_comm_handler,
)
from distributed.comm.message_stream import MessageStream
from distributed.comm.registry import Backend
from distributed.comm.sockets import (
    MAX_BUFFER_SIZE,
    OPTIONS_ARE_INHERITED,
    Client,
    ListeningSocket,
    SocketServer,
    _getaddrinfo,
    bind_sockets,
    get_socket_address,
    get_stream_address,
    set_tcp_timeout,
    set_up,
)
from distributed.comm.stream import StreamComm
from distributed.comm.tls import (
    TLSStream,
    expect_tls_context,
    explain,
    is_final,
    open_tls_stream,
    refuse_unencrypted,
    speaks_tls,
)
from distributed.protocol.exceptions import FramingError

__all__ = [
    "MAX_BUFFER_SIZE",
    "TCP",
    "TLS",
    "BaseTCPBackend",
    "BaseTCPConnector",
    "BaseTCPListener",
    "TCPBackend",
    "TCPConnector",
    "TCPListener",
    "TLSBackend",
    "TLSConnector",
    "TLSListener",
    "_getaddrinfo",
    "get_stream_address",
    "set_tcp_timeout",
]

logger = logging.getLogger(__name__)


class TCP(StreamComm):
    """A comm over a TCP connection."""

    @property
    def same_host(self) -> bool:
        # Mostly told without taking the addresses apart.
        host = self._local_addr.rpartition(":")[0]
        return host == self._peer_addr.rpartition(":")[0] or super().same_host

    def _closed_error(self, exc: Exception) -> CommClosedError:
        return self._peer_speaks_tls() or super()._closed_error(exc)

    def _invalid_error(self, exc: FramingError) -> CommClosedError:
        return self._peer_speaks_tls() or super()._invalid_error(exc)

    def _peer_speaks_tls(self) -> CommClosedError | None:
        if not self._decoder.in_message or not speaks_tls(self._decoder.pending):
            return None
        return FatalCommClosedError(
            f"in {self!r}: the peer speaks TLS, and this side does not; is it at a tls:// address, "
            "and not at a tcp:// one?"
        )


class TLS(TCP):
    """A comm over a TLS connection."""

    # State.  `_extra_info` is filled when the TLS handshake is done.
    _extra_info: dict[str, Any]

    def __init__(
        self, stream: MessageStream, local_addr: str, peer_addr: str, deserialize: bool = True
    ):
        super().__init__(stream, local_addr, peer_addr, deserialize)
        self._extra_info = {}

    @property
    def extra_info(self) -> dict[str, Any]:
        """``peercert``, as `ssl.SSLSocket.getpeercert` has it, and ``cipher``, as its `cipher`."""
        return self._extra_info

    @property
    def channel_binding(self) -> bytes | None:
        """The client's "Finished" of the TLS handshake (``tls-unique``, RFC 5929)."""
        stream = self.stream
        if not isinstance(stream, TLSStream) or stream.closed():
            return None
        return stream.socket.get_channel_binding("tls-unique")

    async def shake_tls_hands(self) -> None:
        """Wait until the TLS handshake is done.

        Raises
        ------
        CommClosedError
            If it fails; the comm is closed.
        FatalCommClosedError
            If it would fail again.
        """
        stream = self.stream
        if not isinstance(stream, TLSStream):
            raise CommClosedError(f"closed before the TLS handshake was done: {self!r}")
        try:
            await stream.shake_hands()
        except StreamClosedError as exc:
            self.abort()
            raise self._closed_error(exc) from exc.real_error
        except (OSError, AttributeError) as exc:
            self.abort()
            raise self._closed_error(StreamClosedError(exc)) from exc
        except BaseException:
            self.abort()
            raise
        self._extra_info = {
            "peercert": stream.socket.getpeercert(),
            "cipher": stream.socket.cipher(),
        }

    def _closed_error(self, exc: Exception) -> CommClosedError:
        reason = getattr(exc, "real_error", None)
        if not isinstance(reason, ssl.SSLError):
            return super()._closed_error(exc)
        if is_final(reason):
            return FatalCommClosedError(f"in {self!r}: {explain(reason)}")
        if not self._extra_info:
            return CommClosedError(f"in {self!r}: {explain(reason)}")
        # The peer is gone without the farewell that is TLS's own, as all peers here do.
        return super()._closed_error(StreamClosedError())


class BaseTCPConnector(Connector):
    """What connectors over TCP share."""

    comm_class: ClassVar[type[StreamComm]]
    prefix: ClassVar[str]

    def _make_client(self, address: str, connection_args: dict[str, Any]) -> Client:
        """Return what opens the stream to *address*."""
        raise NotImplementedError

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
        if not host:
            raise ValueError(
                f"cannot connect to {self.prefix}{address}: it names no host, "
                "as only an address to listen at may"
            )
        client = self._make_client(address, connection_args)
        try:
            stream = await client.open(host, port)
        except StreamClosedError as exc:
            reason = exc if exc.real_error is None else exc.real_error
            raise CommClosedError(
                f"cannot connect to {self.prefix}{address}: {type(reason).__name__}: {reason}"
            ) from reason
        if stream.closed() and not isinstance(stream.error, ssl.SSLError):
            # Of one that TLS has ended already the comm tells why.
            raise CommClosedError(
                f"cannot connect to {self.prefix}{address}: the peer closed the connection"
            ) from stream.error
        try:
            if not stream.closed():
                set_up(stream.socket)
            local = self.prefix + get_stream_address(stream)
            return self.comm_class(stream, local, self.prefix + address, deserialize)
        except BaseException:
            stream.close()
            raise


class TCPConnector(BaseTCPConnector):
    """Opens TCP connections."""

    prefix = "tcp://"
    comm_class = TCP

    def _make_client(self, address: str, connection_args: dict[str, Any]) -> Client:
        refuse_unencrypted(self.prefix + address, connection_args)
        return Client()


class TLSConnector(BaseTCPConnector):
    """Opens TLS connections.

    Connection arguments are ``ssl_context`` and, where that checks host names or the peer has
    several, ``server_hostname``; by default that is the host of the address.
    """

    prefix = "tls://"
    comm_class = TLS

    def _make_client(self, address: str, connection_args: dict[str, Any]) -> Client:
        context = expect_tls_context(connection_args)
        host = connection_args.get("server_hostname") or parse_host_port(address)[0]
        return Client(context, host or None)

    async def connect(
        self, address: str, deserialize: bool = True, **connection_args: Any
    ) -> StreamComm:
        """Open a connection to *address*, ``host:port``, TLS handshake included.

        Raises
        ------
        OSError
            If the connection cannot be made.
        FatalCommClosedError
            If the peer is not trusted, does not trust us, or does not speak TLS.
        TypeError
            If there is no ``ssl_context``.
        """
        comm = await super().connect(address, deserialize, **connection_args)
        assert isinstance(comm, TLS)
        await comm.shake_tls_hands()
        return comm


def log_failed_connection(peer: str, local: str, exc: OSError) -> None:
    """Log, once, that the handshake with who connected from *peer* to *local* has failed."""
    # Somebody who goes away is no news, somebody who does not belong here is.
    level = logging.WARNING if isinstance(exc, FatalCommClosedError) else logging.INFO
    logger.log(level, "Connection from %s to %s failed before it began: %s", peer, local, exc)


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

    # State.  `_local_address` is that of all connections, if all have the same.

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
        self._configure(address, connection_args)
        self.tcp_server: TCPServer | None = None
        self.bound_address: tuple[str, int] | None = None
        self._local_address: str | None = None

    def _configure(self, address: str, connection_args: dict[str, Any]) -> None:
        """Take note of the arguments that are the transport's own."""
        raise NotImplementedError

    def _open_stream(self, sock: socket.socket) -> MessageStream:
        """Return the stream on which to speak over a new connection."""
        return MessageStream(sock, max_buffer_size=MAX_BUFFER_SIZE)

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
        server = SocketServer(self._handle_socket)
        try:
            sockets = bind_sockets(self.ip, self.port, backlog)
        except OSError as exc:
            where = self.prefix + unparse_host_port(self.ip, self.port)
            raise OSError(exc.errno, f"cannot listen at {where}: {exc.strerror}") from exc
        for sock in sockets:
            set_up(sock)
        make_room = self.abort_oldest_handshake
        server.add_sockets([ListeningSocket(sock, make_room, self.prefix) for sock in sockets])
        self.tcp_server = server
        self.bound_address = get_tcp_server_address(server)[:2]
        if len(sockets) == 1 and not is_unspecified(self.bound_address[0]):
            self._local_address = self.listen_address

    def stop(self) -> None:
        """Stop accepting connections; those in their handshake are aborted."""
        server, self.tcp_server = self.tcp_server, None
        if server is not None:
            server.stop()
        self.abort_handshaking_comms()

    async def _handle_socket(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        if self.tcp_server is None:
            # Stopped since it was accepted.
            sock.close()
            return
        peer = self.prefix + unparse_host_port(*address[:2])
        local = self._local_address or self.prefix + get_socket_address(sock)
        logger.debug("Incoming connection from %s to %s", peer, local)
        try:
            if not OPTIONS_ARE_INHERITED:
                set_up(sock)
            stream = self._open_stream(sock)
            comm = self.comm_class(stream, local, peer, self.deserialize)
            comm.allow_offload = self.allow_offload
            await self.on_connection(comm)
        except OSError as exc:
            log_failed_connection(peer, local, exc)
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

    def _configure(self, address: str, connection_args: dict[str, Any]) -> None:
        refuse_unencrypted(self.prefix + address, connection_args)


class TLSListener(BaseTCPListener):
    """Accepts TLS connections; it needs the connection argument ``ssl_context``."""

    prefix = "tls://"
    comm_class = TLS

    def _configure(self, address: str, connection_args: dict[str, Any]) -> None:
        self.ssl_context = expect_tls_context(connection_args)

    def _open_stream(self, sock: socket.socket) -> MessageStream:
        return open_tls_stream(sock, self.ssl_context, server_side=True)

    async def do_handshake(self, comm: Comm, overrides: dict[str, Any] | None) -> None:
        assert isinstance(comm, TLS)
        await comm.shake_tls_hands()
        await super().do_handshake(comm, overrides)


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


class TLSBackend(BaseTCPBackend):
    """The backend of ``tls://``."""

    _connector_class = TLSConnector
    _listener_class = TLSListener
