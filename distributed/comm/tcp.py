"""The ``tcp://`` and ``tls://`` transports: their comms, connectors, listeners and backends.

The modules below do the rest: :mod:`distributed.comm.stream` moves messages over an open stream,
:mod:`distributed.comm.stream_listener` accepts connections, :mod:`distributed.comm.sockets` opens
sockets, and :mod:`distributed.comm.tls` encrypts.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any, ClassVar

from tornado.iostream import StreamClosedError
from tornado.tcpclient import TCPClient

from distributed.base.host_addresses import ensure_ip, get_ip, get_ipv6, host_of
from distributed.base.text import shown
from distributed.comm.addressing import (
    ensure_concrete_host,
    get_tcp_server_address,
    is_unspecified,
    parse_host_port,
    unparse_host_port,
)
from distributed.comm.arguments import CONNECT, LISTEN, check_keywords
from distributed.comm.attempts import enter_stage
from distributed.comm.core import (
    Comm,
    CommClosedError,
    CommHandler,
    Connector,
    FatalCommClosedError,
    Listener,
)
from distributed.comm.framed import FramedComm
from distributed.comm.happy_eyeballs import _getaddrinfo, tcp_client
from distributed.comm.message_stream import MessageStream
from distributed.comm.registry import Backend
from distributed.comm.settings import settings
from distributed.comm.sockets import (
    MAX_BUFFER_SIZE,
    OPTIONS_ARE_INHERITED,
    Client,
    SocketServer,
    bind_sockets,
    get_socket_address,
    get_stream_address,
    peer_loc,
    set_tcp_timeout,
    set_up,
)
from distributed.comm.stream import StreamComm
from distributed.comm.stream_listener import StreamListener
from distributed.comm.tls import (
    TLSStream,
    channel_binding,
    expect_tls_context,
    explain,
    is_final,
    open_tls_stream,
    refuse_unencrypted,
    speaks_tls,
    tls_info,
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


class TCP(StreamComm):
    """A comm over a TCP connection."""

    @property
    def same_host(self) -> bool:
        # Equal strings answer this for most connections, without parsing the addresses.
        host = self._local_addr.rpartition(":")[0]
        return host == self._peer_addr.rpartition(":")[0] or super().same_host

    def _closed_error(self, exc: Exception) -> CommClosedError:
        return self._peer_speaks_tls() or super()._closed_error(exc)

    def _invalid_error(self, exc: FramingError) -> CommClosedError:
        return self._peer_speaks_tls() or super()._invalid_error(exc)

    def _peer_speaks_tls(self) -> CommClosedError | None:
        """Return the error to raise if the peer's bytes are TLS, else None."""
        if not self._decoder.in_message or not speaks_tls(self._decoder.pending):
            return None
        return FatalCommClosedError(
            f"in {self!r}: the peer speaks TLS, and this side does not; is it at a tls:// address, "
            "and not at a tcp:// one?"
        )


class TLS(TCP):
    """A comm over a TLS connection."""

    def __init__(
        self, stream: MessageStream, local_addr: str, peer_addr: str, deserialize: bool = True
    ):
        super().__init__(stream, local_addr, peer_addr, deserialize)
        # Empty until the TLS handshake has completed.
        self._extra_info: dict[str, Any] = {}

    @property
    def extra_info(self) -> dict[str, Any]:
        """``peercert`` and ``cipher``, as `ssl.SSLSocket.getpeercert` and `cipher` return them."""
        return self._extra_info

    @property
    def channel_binding(self) -> bytes | None:
        return None if self.stream is None else channel_binding(self.stream)

    async def do_tls_handshake(self) -> None:
        """Wait until the TLS handshake has completed.

        Raises
        ------
        CommClosedError
            If it fails; the comm is closed.
        FatalCommClosedError
            If it fails in a way that trying again cannot change.
        """
        stream = self.stream
        if not isinstance(stream, TLSStream):
            raise CommClosedError(f"closed before the TLS handshake was done: {self!r}")
        enter_stage("in the TLS handshake")
        try:
            await stream.do_handshake()
        except BaseException as exc:
            self.abort()
            if isinstance(exc, StreamClosedError):
                raise self._closed_error(exc) from exc.real_error
            raise
        self._extra_info = tls_info(stream)

    def _closed_error(self, exc: Exception) -> CommClosedError:
        reason = getattr(exc, "real_error", None)
        if not isinstance(reason, ssl.SSLError):
            return super()._closed_error(exc)
        if is_final(reason):
            text = explain(reason, established=bool(self._extra_info))
            return FatalCommClosedError(f"in {self!r}: {text}")
        if not self._extra_info:
            return CommClosedError(f"in {self!r}: {explain(reason)}")
        # The peer closed without a TLS close_notify alert, as all peers of this package do.
        return super()._closed_error(StreamClosedError())


class BaseTCPConnector(Connector):
    """Base class of connectors over TCP; by default they do not encrypt."""

    comm_class: ClassVar[Callable[..., FramedComm]]
    prefix: ClassVar[str]
    #: The client whose ``resolver`` resolves the names of hosts; it is one for all connectors.
    client: ClassVar[TCPClient] = tcp_client
    #: The names of the connection arguments.
    keywords: ClassVar[frozenset[str]] = CONNECT

    def _make_client(self, address: str, connection_args: dict[str, Any]) -> Client:
        """Return the client that opens the stream to *address*, ``host:port``.

        Raises
        ------
        RuntimeError, TypeError
            If *connection_args* require encryption, or lack what encryption needs.
        """
        refuse_unencrypted(self.prefix + address, connection_args)
        return Client()

    async def connect(
        self, address: str, deserialize: bool = True, **connection_args: Any
    ) -> FramedComm:
        """Open a connection to *address*, ``host:port``.

        Raises
        ------
        OSError
            If the connection cannot be made.
        TypeError
            If a connection argument is unknown.
        ValueError
            If *address* has no host, or one that cannot exist.
        """
        where = self.prefix + address
        check_keywords(where, connection_args, self.keywords)
        host, port = parse_host_port(address)
        if not host:
            raise ValueError(
                f"cannot connect to {shown(where)}: it has no host; only listening addresses may "
                "omit it"
            )
        client = self._make_client(address, connection_args)
        stream = None
        try:
            stream = await client.open(host, port)
            set_up(stream.socket)
            local = self.prefix + get_socket_address(stream.socket)
            return self.comm_class(stream, local, where, deserialize)
        except BaseException as exc:
            if stream is not None:
                stream.close()
            if isinstance(exc, CommClosedError):
                raise CommClosedError(f"cannot connect to {shown(where)}: {exc}") from exc
            if isinstance(exc, OSError):
                raise CommClosedError(
                    f"cannot connect to {shown(where)}: {type(exc).__name__}: {exc}"
                ) from exc
            raise


def tls_client(address: str, connection_args: dict[str, Any]) -> Client:
    """Return the client that opens a TLS stream to *address*, ``host:port``.

    Raises
    ------
    TypeError
        If *connection_args* have no ``ssl_context``.
    """
    context = expect_tls_context(connection_args)
    host = connection_args.get("server_hostname") or parse_host_port(address)[0]
    return Client(context, host or None)


class TCPConnector(BaseTCPConnector):
    """A connector that opens TCP connections."""

    prefix = "tcp://"
    comm_class = TCP


class TLSConnector(BaseTCPConnector):
    """A connector that opens TLS connections.

    The connection arguments are ``ssl_context`` and ``server_hostname``, the name that the peer's
    certificate must have where the context checks names; by default the host of the address.
    """

    prefix = "tls://"
    comm_class = TLS

    def _make_client(self, address: str, connection_args: dict[str, Any]) -> Client:
        return tls_client(address, connection_args)

    async def connect(
        self, address: str, deserialize: bool = True, **connection_args: Any
    ) -> FramedComm:
        """Open a connection to *address*, ``host:port``, including the TLS handshake.

        Raises
        ------
        OSError
            If the connection cannot be made.
        FatalCommClosedError
            If one side does not trust the other, or the peer does not speak TLS.
        TypeError
            If there is no ``ssl_context``.
        """
        comm = await super().connect(address, deserialize, **connection_args)
        assert isinstance(comm, TLS)
        await comm.do_tls_handshake()
        return comm


class BaseTCPListener(StreamListener):
    """Base class of listeners over TCP; by default they do not encrypt.

    Parameters
    ----------
    address
        ``host:port``.  An empty host means all interfaces; without a port, or with port 0, the
        system chooses a free one.
    comm_handler
        Called with each new comm after its handshake.
    deserialize, allow_offload
        See :class:`~distributed.comm.core.Comm`.
    default_host
        The host in the contact address of a listener on all interfaces.
    default_port
        The port to use if the address has none.
    connection_args
        Further arguments of the transport.
    """

    #: Path of the address; only websockets have one.
    path = ""
    #: The names of the connection arguments.
    keywords: ClassVar[frozenset[str]] = LISTEN

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
        super().__init__(comm_handler, deserialize, allow_offload)
        self.ip, self.port = parse_host_port(address, default_port)
        self.default_host = default_host
        check_keywords(self.prefix + address, connection_args, self.keywords)
        self._configure(address, connection_args)
        #: The host and port that are bound; None before start().
        self.bound_address: tuple[str, int] | None = None
        # The local address of every connection; None if connections have different ones.
        self._local_address: str | None = None

    def _configure(self, address: str, connection_args: dict[str, Any]) -> None:
        """Check and keep the connection arguments of the transport.

        Raises
        ------
        RuntimeError, TypeError
            If they require encryption, or lack what encryption needs.
        """
        refuse_unencrypted(self.prefix + address, connection_args)

    async def start(self) -> None:
        """Bind the address and start to accept connections.

        Raises
        ------
        OSError
            If the address cannot be bound.
        """
        if self.tcp_server is not None:
            return
        sockets = self._bind()
        for sock in sockets:
            set_up(sock)
        server = SocketServer(self._handle_socket)
        self._accept_on(server, sockets)
        bound = get_tcp_server_address(server)
        self.bound_address = host_of(bound), bound[1]
        if len(sockets) == 1 and not is_unspecified(self.bound_address[0]):
            self._local_address = self.listen_address

    def _bind(self) -> list[socket.socket]:
        """Return sockets that listen at the address."""
        try:
            return bind_sockets(self.ip, self.port, settings().socket_backlog)
        except OSError as exc:
            where = self.prefix + unparse_host_port(self.ip, self.port) + self.path
            raise OSError(exc.errno, f"cannot listen at {where}: {exc.strerror}") from exc

    def _addresses_of(self, sock: socket.socket, address: Any) -> tuple[str, str]:
        peer = self.prefix + peer_loc(address)
        return self._local_address or self.prefix + get_socket_address(sock), peer

    def _open_stream(self, sock: socket.socket) -> MessageStream:
        if not OPTIONS_ARE_INHERITED:
            set_up(sock)
        return super()._open_stream(sock)

    def get_host_port(self) -> tuple[str, int]:
        """Return the host and port that are bound.

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
        return self.prefix + unparse_host_port(*self.get_host_port()) + self.path

    @property
    def contact_address(self) -> str:
        host, port = self.get_host_port()
        if not self.ip and is_unspecified(host):
            # It is bound for both versions of IP.
            host = ""
        host = ensure_concrete_host(host, default_host=self.default_host)
        return self.prefix + unparse_host_port(host, port) + self.path


class TCPListener(BaseTCPListener):
    """A listener that accepts TCP connections."""

    prefix = "tcp://"
    comm_class = TCP


class TLSListener(BaseTCPListener):
    """A listener that accepts TLS connections; it needs the argument ``ssl_context``."""

    prefix = "tls://"
    comm_class = TLS

    def _configure(self, address: str, connection_args: dict[str, Any]) -> None:
        self.ssl_context = expect_tls_context(connection_args)

    def _open_stream(self, sock: socket.socket) -> MessageStream:
        if not OPTIONS_ARE_INHERITED:
            set_up(sock)
        return open_tls_stream(sock, self.ssl_context, server_side=True)

    async def do_handshake(self, comm: Comm, overrides: dict[str, Any] | None) -> None:
        assert isinstance(comm, TLS)
        await comm.do_tls_handshake()
        await super().do_handshake(comm, overrides)


class BaseTCPBackend(Backend):
    """Base class of backends over TCP; each names its connector and listener class."""

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
