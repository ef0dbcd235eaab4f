"""The ``ws://`` and ``wss://`` transports: how websockets are opened and accepted.

For networks through which only HTTP passes, and for ports that are shared with an HTTP application.
Opening a websocket starts with an HTTP request; Tornado's websocket client and HTTP server do that
part.  :mod:`distributed.comm.ws_comm` moves messages over the open websocket, and
:mod:`distributed.comm.websocket` is the websocket itself.

An address is ``ws://host:port`` or ``ws://host:port/path``; the default path is ``/``.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, ClassVar

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.iostream import IOStream
from tornado.routing import Matcher, Rule
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketError, WebSocketHandler

from distributed.base.host_addresses import host_of
from distributed.base.logs import get_logger
from distributed.base.text import shown
from distributed.comm.addressing import (
    get_tcp_server_addresses,
    parse_host_port,
    unparse_host_port,
)
from distributed.comm.arguments import LISTEN, check_keywords
from distributed.comm.attempts import enter_stage
from distributed.comm.core import (
    Comm,
    CommClosedError,
    CommHandler,
    FatalCommClosedError,
    call_comm_handler,
)
from distributed.comm.settings import settings
from distributed.comm.sockets import (
    MAX_BUFFER_SIZE,
    Client,
    get_socket_address,
    peer_loc,
    set_tcp_timeout,
)
from distributed.comm.stream_listener import log_failed_connection
from distributed.comm.tcp import (
    BaseTCPBackend,
    BaseTCPConnector,
    BaseTCPListener,
    TLSListener,
    tls_client,
)
from distributed.comm.tls import TLSStream, expect_tls_context
from distributed.comm.websocket import (
    HTTP_ANSWER,
    HTTP_LIMIT,
    HTTP_REQUEST,
    ClientConnection,
    NotHTTP,
    Protocol,
    adopt,
    expect_http,
    handshake_limit,
)
from distributed.comm.websocket_inbox import Inbox
from distributed.comm.ws_comm import WS, WSS, failure

__all__ = [
    "WS",
    "WSS",
    "WSBackend",
    "WSConnector",
    "WSHandler",
    "WSListener",
    "WSSBackend",
    "WSSConnector",
    "WSSListener",
]

logger = get_logger(__name__)

#: Seconds for which the HTTP status 404 is retried.  An HTTP application may accept connections
#: shortly before a listener adds its path.
_NOT_FOUND_RETRIES = 2.0


def _split_path(loc: str) -> tuple[str, str]:
    """Split ``host:port/path`` into ``host:port`` and ``/path``.

    Examples
    --------
    >>> _split_path("127.0.0.1:8786/comm"), _split_path("[::1]:8786")
    (('127.0.0.1:8786', '/comm'), ('[::1]:8786', ''))
    """
    host_port, slash, path = loc.partition("/")
    return host_port, slash + path


class WSConnector(BaseTCPConnector):
    """A connector that opens websockets.

    The connection argument ``extra_conn_args`` holds keyword arguments of
    :class:`tornado.httpclient.HTTPRequest`, such as ``{"headers": {"Authorization": "…"}}`` for a
    proxy that requires them.  ``server_hostname`` is sent as ``Host`` header: by that name a proxy
    chooses the server behind it.
    """

    prefix = "ws://"
    comm_class: ClassVar[type[WS]] = WS
    # When the HTTP server first answered "not found" to this connector.
    _not_found_since: float | None = None

    async def connect(self, address: str, deserialize: bool = True, **connection_args: Any) -> WS:
        """Open a websocket to *address*, ``host:port`` or ``host:port/path``.

        Raises
        ------
        OSError
            If the connection cannot be made.
        ValueError
            If *address* has no host, or one that cannot exist.
        FatalCommClosedError
            If the peer does not speak HTTP, or its refusal to open a websocket is permanent.
        """
        where = self.prefix + address
        check_keywords(where, connection_args, self.keywords)
        host_port, path = _split_path(address)
        host, port = parse_host_port(host_port)
        if not host:
            raise ValueError(
                f"cannot connect to {shown(where)}: it has no host; only listening addresses may "
                "omit it"
            )
        client = self._make_client(host_port, connection_args)
        stream = connection = None
        try:
            stream = await client.open(host, port)
            expect_http(stream, HTTP_ANSWER)
            # Later, if the peer has disconnected, not every system gives the address.
            local = self.prefix + get_socket_address(stream.socket)
            if isinstance(stream, TLSStream):
                enter_stage("in the TLS handshake")
                await stream.do_handshake()
            enter_stage("opening the websocket")
            set_tcp_timeout(stream)
            # "ws" also for wss://: Tornado must not encrypt, since the stream already does.
            # The scope of a link-local address has no meaning at the other host (RFC 4007).
            url = f"ws://{unparse_host_port(host.partition('%')[0], port)}{path or '/'}"
            extra = connection_args.get("extra_conn_args") or {}
            request = HTTPRequest(
                **{"url": url, "connect_timeout": 0, "request_timeout": 0, **extra}
            )
            request.headers = HTTPHeaders(request.headers)
            if connection_args.get("server_hostname"):
                request.headers.setdefault("Host", connection_args["server_hostname"])
            connection = ClientConnection(stream, request)
            protocol = await connection.upgraded()
            return self.comm_class(protocol, local, where, deserialize)
        except BaseException as exc:
            if connection is not None:
                connection.abandon()
                connection.inbox.drop()
            elif stream is not None:
                stream.close()
            if isinstance(exc, OSError | HTTPClientError | WebSocketError):
                raise self._connect_error(exc, where) from exc
            raise

    def _connect_error(self, exc: BaseException, where: str) -> CommClosedError:
        # No variable of the caller refers to the error, whose traceback refers to the caller.
        error = failure(exc, f"cannot connect to {shown(where)}: ")
        return FatalCommClosedError(*error.args) if self._stays_not_found(exc) else error

    def _stays_not_found(self, exc: BaseException) -> bool:
        """Return whether the HTTP server has answered "not found" for longer than it may start."""
        if not isinstance(exc, HTTPClientError) or exc.code != 404:
            return False
        now = asyncio.get_running_loop().time()
        if self._not_found_since is None:
            self._not_found_since = now
        return now - self._not_found_since >= _NOT_FOUND_RETRIES


class WSSConnector(WSConnector):
    """A connector that opens websockets over TLS.

    The connection arguments are ``ssl_context`` and ``server_hostname`` of
    :class:`~distributed.comm.tcp.TLSConnector`, and ``extra_conn_args`` of :class:`WSConnector`.
    Without an ``ssl_context``, the peer's certificate has to be valid for the host, and issued by
    an authority that this system trusts, as in a browser.
    """

    prefix = "wss://"
    comm_class = WSS

    def _make_client(self, address: str, connection_args: dict[str, Any]) -> Client:
        if connection_args.get("ssl_context") is None:
            connection_args = {**connection_args, "ssl_context": ssl.create_default_context()}
        return tls_client(address, connection_args)


class WSHandler(WebSocketHandler):
    """The server's end of a websocket, for a :class:`WSListener`.

    A page in a browser may open websockets to other sites than its own.  Tornado refuses those by
    default, and so does this handler: no page that a user visits may send messages to a server.
    """

    listener: WSListener

    def initialize(self, listener: WSListener) -> None:
        self.listener = listener
        self.inbox = Inbox()

    @property
    def max_message_size(self) -> int:
        return handshake_limit()

    def get_websocket_protocol(self) -> Protocol | None:
        return adopt(super().get_websocket_protocol(), self.inbox)

    def open(self, *args: str, **kwargs: str) -> None:
        assert isinstance(self.ws_connection, Protocol)
        self.listener._accept(self.ws_connection)

    def on_message(self, message: str | bytes) -> asyncio.Future[None] | None:
        return self.inbox.put(message)

    def on_ws_connection_close(
        self, close_code: int | None = None, close_reason: str | None = None
    ) -> None:
        self.inbox.close_code, self.inbox.close_reason = close_code, close_reason
        self.inbox.end()
        self.inbox.gone.set()
        super().on_ws_connection_close(close_code, close_reason)


class _Route(Matcher):
    """A route of requests for websockets to a listener, until it stops."""

    def __init__(self, listener: WSListener, shared: bool) -> None:
        #: None once the listener has stopped: Tornado cannot remove a route.
        self.listener: WSListener | None = listener
        self._path = listener.path or "/"
        #: Whether the HTTP server also serves another application.
        self.shared = shared

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        if self.listener is None or request.path != self._path:
            return None
        # The application may have a page at the same path.
        if self.shared and request.headers.get("Upgrade", "").lower() != "websocket":
            return None
        return {"target_kwargs": {"listener": self.listener}}


def _log_answer(handler: RequestHandler) -> None:
    if handler.get_status() != 101:
        logger.info(
            "Answered %d to a request that opens no websocket here: %s %s (%s)",
            handler.get_status(),
            handler.request.method,
            handler.request.uri,
            handler.request.remote_ip,
        )


class _HTTPServer(HTTPServer):
    """The HTTP server of a listener that does not share its port."""

    #: Called with the stream of each connection that has ended.
    forget: Callable[[IOStream], object]

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        assert isinstance(server_conn, HTTP1ServerConnection)
        self.forget(server_conn.stream)


class WSListener(BaseTCPListener):
    """A listener for websockets, at an HTTP server of its own or at an existing one.

    Parameters
    ----------
    address
        ``host:port`` or ``host:port/path``.
    comm_handler, deserialize, allow_offload, default_host, default_port
        See :class:`~distributed.comm.tcp.BaseTCPListener`.
    http_server
        A :class:`tornado.httpserver.HTTPServer` that serves a :class:`tornado.web.Application` and
        already listens.  Its port is shared: *address* has the same port, or none.  This listener
        gets the requests for a websocket at its path; the application gets all others.

        By default the attribute ``http_server`` of the object whose method *comm_handler* is, if
        that server listens at the port of *address*; else a new server.

        An encrypted listener with an ``ssl_context`` makes the shared server use it, so that the
        application's pages are at ``https://`` and peers need the certificates that the context
        requires.
    connection_args
        Further arguments of the transport.
    """

    prefix = "ws://"
    comm_class: ClassVar[type[WS]] = WS
    encrypted: ClassVar[bool] = False
    keywords = LISTEN | {"http_server"}
    #: The TLS context of an encrypted listener; None if the shared HTTP server has its own.
    ssl_context: ssl.SSLContext | None = None

    def __init__(
        self,
        address: str,
        comm_handler: CommHandler,
        deserialize: bool = True,
        allow_offload: bool = True,
        default_host: str | None = None,
        default_port: int = 0,
        http_server: HTTPServer | None = None,
        **connection_args: Any,
    ):
        host_port, self.path = _split_path(address)
        if http_server is not None and not isinstance(http_server, HTTPServer):
            raise TypeError(
                f"http_server must be a tornado.httpserver.HTTPServer, not {http_server!r}"
            )
        self.http_server = http_server
        super().__init__(
            host_port,
            comm_handler,
            deserialize,
            allow_offload,
            default_host,
            default_port,
            **connection_args,
        )
        # Routes requests to this listener; None before start().
        self._route: _Route | None = None
        # Accepted streams without a websocket, oldest first → the timer that closes each.
        self._opening: dict[IOStream, asyncio.TimerHandle] = {}
        # Each does the handshake of a comm and then runs the handler.
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind the address, or join the shared HTTP server, and start to accept connections.

        Raises
        ------
        OSError
            If the address cannot be bound.
        ValueError
            If the shared HTTP server listens at another port, or if one of it and this listener
            encrypts and the other does not.
        TypeError
            If the shared HTTP server has no application to which a path can be added.
        """
        if self.tcp_server is not None:
            return
        shared = self._find_server()
        self._route = _Route(self, shared is not None)
        if shared is not None:
            self._join(shared)
            return
        application = Application([Rule(self._route, WSHandler)], log_function=_log_answer)
        server = _HTTPServer(
            application,
            max_buffer_size=MAX_BUFFER_SIZE,
            max_header_size=HTTP_LIMIT,
            max_body_size=HTTP_LIMIT,
        )
        server.handle_stream = self._handle_stream  # type: ignore[assignment]
        server.forget = self._forget
        self._accept_on(server, self._bind())
        bound = get_tcp_server_addresses(server)[0]
        self.bound_address = host_of(bound), bound[1]

    @property
    def server(self) -> HTTPServer | None:
        """The HTTP server that accepts the websockets, maybe shared; None unless started."""
        return self.tcp_server if isinstance(self.tcp_server, HTTPServer) else None

    @property
    def unfinished_handshakes(self) -> int:
        return super().unfinished_handshakes + len(self._opening)

    def _unfinished(self) -> Iterator[tuple[IOStream, Callable[[], object]]]:
        for stream in self._opening:
            yield stream, stream.close
        for comm in self._handshaking:
            assert isinstance(comm, WS)
            yield comm._stream, comm.abort

    def _find_server(self) -> HTTPServer | None:
        """Return the HTTP server to share, or None."""
        if self.http_server is not None:
            return self.http_server
        server = getattr(getattr(self.comm_handler, "__self__", None), "http_server", None)
        if not isinstance(server, HTTPServer) or not self.port:
            return None
        ports = [address[1] for address in get_tcp_server_addresses(server)]
        return server if self.port in ports else None

    def _join(self, server: HTTPServer) -> None:
        """Share the port of *server*."""
        application = server.request_callback
        if not isinstance(application, Application):
            raise TypeError(
                f"cannot listen at a path of {server!r}: it does not serve a "
                f"tornado.web.Application, but {application!r}"
            )
        encrypted = server.ssl_options is not None or self.ssl_context is not None
        if encrypted != self.encrypted:
            raise ValueError(
                f"{self.prefix} cannot share a port with an HTTP server that is "
                f"{'not ' if self.encrypted else ''}encrypted"
            )
        addresses = get_tcp_server_addresses(server)
        bound = [address for address in addresses if self.port in (0, address[1])]
        if not bound:
            ports = sorted({address[1] for address in addresses})
            raise ValueError(
                f"cannot listen at port {self.port} with an HTTP server that listens at {ports}"
            )
        assert self._route is not None
        if self.ssl_context is not None:
            # Tornado uses it for each connection that it accepts from now on.
            server.ssl_options = self.ssl_context
        application.add_handlers(".*", [Rule(self._route, WSHandler)])
        self.tcp_server = server
        self.bound_address = host_of(bound[0]), bound[0][1]

    def stop(self) -> None:
        """Stop accepting connections, and abort those in their handshake."""
        if self._route is not None:
            self._route.listener = None
            if self._route.shared:
                # The server belongs to the application.
                self.tcp_server = None
        for stream, timer in self._opening.items():
            timer.cancel()
            stream.close()
        self._opening.clear()
        super().stop()

    def _handle_stream(
        self, stream: IOStream, address: tuple[Any, ...]
    ) -> Coroutine[Any, Any, None] | None:
        """Start HTTP on a new connection to this listener's own server.

        This is not a coroutine function, so that `_make_room` finds the connection while more are
        accepted in the same event-loop iteration.  Otherwise it would close an honest peer.
        """
        peer = "a peer"
        try:
            peer = self.prefix + peer_loc(address)
            set_tcp_timeout(stream)
            stream = self._open_stream(stream.socket)
        except OSError as exc:
            stream.close()
            self._log_failure(peer, exc)
            return None
        self._opening[stream] = asyncio.get_running_loop().call_later(
            settings().handshake_timeout, self._give_up, stream, peer
        )
        return self._start_http(stream, address, peer)

    async def _start_http(self, stream: IOStream, address: tuple[Any, ...], peer: str) -> None:
        def refuse(reason: NotHTTP) -> None:
            self.handshakes.other += 1
            self._log_failure(peer, reason)
            stream.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        expect_http(stream, HTTP_REQUEST, refuse)
        if isinstance(stream, TLSStream):
            try:
                await stream.do_handshake()
            except OSError as exc:
                self._forget(stream)
                stream.close()
                if not isinstance(stream.error, NotHTTP):
                    self.handshakes.other += 1
                    self._log_failure(peer, exc)
                return
        if isinstance(self.tcp_server, HTTPServer):
            HTTPServer.handle_stream(self.tcp_server, stream, address)

    def release(self, stream: IOStream) -> None:
        """Leave a connection to an application that answers its request.

        This listener no longer closes it at the deadline for opening a websocket.
        """
        self._forget(stream)

    def _accept(self, protocol: Protocol) -> None:
        """Make a comm of a websocket that a peer has opened, and serve it."""
        stream = protocol.stream
        self._forget(stream)
        try:
            if stream.closed():
                raise CommClosedError("the peer closed the connection")
            set_tcp_timeout(stream)
            peer = self.prefix + peer_loc(stream.socket.getpeername())
            local = self.prefix + get_socket_address(stream.socket) + self.path
            comm = self.comm_class(protocol, local, peer, self.deserialize)
        except OSError as exc:
            self._log_failure("a peer", exc)
            protocol.abandon()
            return
        comm.allow_offload = self.allow_offload
        task = asyncio.create_task(self._serve(comm))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def do_handshake(self, comm: Comm, overrides: dict[str, Any] | None) -> None:
        try:
            await super().do_handshake(comm, overrides)
        except FatalCommClosedError as exc:
            if isinstance(comm, WS):
                comm.refuse(str(exc.__cause__ or exc))
            raise

    async def _serve(self, comm: WS) -> None:
        try:
            await self.on_connection(comm)
        except OSError as exc:
            self._log_failure(comm.peer_address, exc)
            return
        await call_comm_handler(self.comm_handler, comm)

    def _give_up(self, stream: IOStream, peer: str) -> None:
        """Close a stream because its peer has not opened a websocket in time."""
        del self._opening[stream]
        if not stream.closed():
            self.handshakes.timeout += 1
            reason = "no websocket was opened in time ('distributed.comm.timeouts.handshake')"
            self._log_failure(peer, CommClosedError(reason))
            stream.close()

    def _forget(self, stream: IOStream) -> None:
        """Cancel the timer of a stream."""
        timer = self._opening.pop(stream, None)
        if timer is not None:
            timer.cancel()

    def _log_failure(self, peer: str, exc: OSError) -> None:
        error = exc if isinstance(exc, CommClosedError) else failure(exc)
        log_failed_connection(peer, self.contact_address, error)


class WSSListener(WSListener):
    """A listener for websockets over TLS.

    It needs the connection argument ``ssl_context``, or an ``http_server`` that is encrypted.
    """

    prefix = "wss://"
    comm_class = WSS
    encrypted = True
    _open_stream = TLSListener._open_stream

    def _configure(self, address: str, connection_args: dict[str, Any]) -> None:
        if self.http_server is None or connection_args.get("ssl_context") is not None:
            self.ssl_context = expect_tls_context(connection_args)


class WSBackend(BaseTCPBackend):
    """The backend of ``ws://``."""

    _connector_class = WSConnector
    _listener_class = WSListener

    def get_address_host(self, loc: str) -> str:
        return super().get_address_host(_split_path(loc)[0])

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        return super().get_address_host_port(_split_path(loc)[0])

    def resolve_address(self, loc: str) -> str:
        host_port, path = _split_path(loc)
        return super().resolve_address(host_port) + path

    def get_local_address_for(self, loc: str) -> str:
        return super().get_local_address_for(_split_path(loc)[0])


class WSSBackend(WSBackend):
    """The backend of ``wss://``."""

    _connector_class = WSSConnector
    _listener_class = WSSListener
