"""The ``ws://`` and ``wss://`` transports: how websockets are opened and accepted, through HTTP.

For where only HTTP gets through, or a port is shared with an HTTP application.  Built on Tornado's
websocket client and HTTP server.  What happens on an open websocket is
:mod:`distributed.comm.ws_comm`'s business, how a connection and its TLS come about that of
:mod:`distributed.comm.sockets` and :mod:`distributed.comm.tls`.

An address is ``ws://host:port`` or ``ws://host:port/path``; without a path it stands for ``/``.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.iostream import IOStream
from tornado.routing import Matcher, Rule
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketError, WebSocketHandler

from distributed.base import config
from distributed.comm.addressing import (
    get_tcp_server_addresses,
    parse_host_port,
    unparse_host_port,
)
from distributed.comm.core import (
    CommClosedError,
    CommHandler,
    Connector,
    FatalCommClosedError,
    call_comm_handler,
)
from distributed.comm.settings import settings
from distributed.comm.sockets import (
    MAX_BUFFER_SIZE,
    Client,
    ListeningSocket,
    bind_sockets,
    get_stream_address,
    set_tcp_timeout,
)
from distributed.comm.tcp import BaseTCPBackend, BaseTCPListener, TLSListener
from distributed.comm.tls import TLSStream, expect_tls_context, refuse_unencrypted
from distributed.comm.websocket import (
    HTTP_ANSWER,
    HTTP_LIMIT,
    HTTP_REQUEST,
    ClientConnection,
    Inbox,
    NotHTTP,
    Protocol,
    adopt,
    expect_http,
    explanation,
    handshake_limit,
)
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

logger = logging.getLogger(__name__)


def _split_path(loc: str) -> tuple[str, str]:
    """Split ``host:port/path`` into ``host:port`` and ``/path``.

    Examples
    --------
    >>> _split_path("127.0.0.1:8786/comm"), _split_path("[::1]:8786")
    (('127.0.0.1:8786', '/comm'), ('[::1]:8786', ''))
    """
    host_port, slash, path = loc.partition("/")
    return host_port, slash + path


class WSConnector(Connector):
    """Opens websockets.

    A connection argument is ``extra_conn_args``: keyword arguments of
    :class:`tornado.httpclient.HTTPRequest`, such as ``{"headers": {"Authorization": "…"}}`` for a
    proxy that asks for it.
    """

    prefix: ClassVar[str] = "ws://"
    comm_class: ClassVar[type[WS]] = WS

    def _make_client(self, address: str, connection_args: dict[str, Any]) -> Client:
        """Return what opens the stream to *address*."""
        refuse_unencrypted(self.prefix + address, connection_args)
        return Client()

    async def connect(self, address: str, deserialize: bool = True, **connection_args: Any) -> WS:
        """Open a websocket to *address*, ``host:port`` or ``host:port/path``.

        Raises
        ------
        OSError
            If the connection cannot be made.
        FatalCommClosedError
            If the peer does not speak HTTP, or refuses to open a websocket in a way that will not
            change.
        """
        where = self.prefix + address
        host_port, path = _split_path(address)
        host, port = parse_host_port(host_port)
        client = self._make_client(address, connection_args)
        stream = connection = None
        try:
            stream = await client.open(host, port)
            expect_http(stream, HTTP_ANSWER)
            if isinstance(stream, TLSStream):
                await stream.shake_hands()
            set_tcp_timeout(stream)
            # The stream is encrypted already if it is to be.
            url = f"ws://{unparse_host_port(host, port)}{path or '/'}"
            extra = connection_args.get("extra_conn_args") or {}
            request = HTTPRequest(
                **{"url": url, "connect_timeout": 0, "request_timeout": 0, **extra}
            )
            request.headers = HTTPHeaders(request.headers)
            connection = ClientConnection(stream, request)
            protocol = await connection.upgraded()
            local = self.prefix + get_stream_address(stream)
            return self.comm_class(protocol, local, where, deserialize)
        except BaseException as exc:
            if stream is not None:
                stream.close()
            if connection is not None:
                connection.inbox.drop()
            # AttributeError: it was reset before there was anything to do a TLS handshake with.
            if isinstance(exc, OSError | HTTPClientError | WebSocketError | AttributeError):
                raise failure(f"cannot connect to {where}", exc) from exc
            raise


class WSSConnector(WSConnector):
    """Opens websockets over TLS.

    Connection arguments are those of ``tls://``, ``ssl_context`` and ``server_hostname``, and
    ``extra_conn_args`` as of :class:`WSConnector`.
    """

    prefix = "wss://"
    comm_class = WSS

    def _make_client(self, address: str, connection_args: dict[str, Any]) -> Client:
        context = expect_tls_context(connection_args)
        host = connection_args.get("server_hostname")
        return Client(context, host or parse_host_port(_split_path(address)[0])[0] or None)


class WSHandler(WebSocketHandler):
    """Opens the server's side of a websocket for a :class:`WSListener`.

    Browsers may open websockets to other sites than the page's; Tornado refuses those, and it is
    left at that, since a comm is not safe in the hands of any page that somebody looks at.
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
    """Leads requests for websockets to a listener, until that has stopped."""

    # State.  `listener` is None once it has stopped; Tornado has no way to take a route back.
    def __init__(self, listener: WSListener, shared: bool) -> None:
        self.listener: WSListener | None = listener
        self._path = listener.path or "/"
        self._shared = shared

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        if self.listener is None or request.path != self._path:
            return None
        # The application may have a page there.
        if self._shared and request.headers.get("Upgrade", "").lower() != "websocket":
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


class WSListener(BaseTCPListener):
    """Accepts websockets, at an HTTP server of its own or at one that is there already.

    Parameters
    ----------
    address
        ``host:port`` or ``host:port/path``.
    comm_handler, deserialize, allow_offload, default_host, default_port
        See :class:`~distributed.comm.tcp.BaseTCPListener`.
    http_server
        A :class:`tornado.httpserver.HTTPServer` of a :class:`tornado.web.Application`, already
        listening: its port is shared, so that of *address* is the same, or left out.  Requests for
        a websocket at the path come here, all others go to the application.

        By default a server that is called ``http_server`` by the object whose method
        *comm_handler* is, if it listens at the port of *address*; else one is made.
    connection_args
        What the transport needs besides.
    """

    prefix = "ws://"
    comm_class: ClassVar[type[WS]] = WS  # type: ignore[assignment]
    encrypted: ClassVar[bool] = False

    # State.  `tcp_server` is the HTTP server while listening, and `_route` leads there.  `_opening`
    # are the streams on which there is no websocket yet, each with the timer that ends it.
    # `_tasks` go through the handshake and then run the handler.
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
        self._route: _Route | None = None
        self._opening: dict[IOStream, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def _configure(self, address: str, connection_args: dict[str, Any]) -> None:
        refuse_unencrypted(self.prefix + address, connection_args)

    async def start(self) -> None:
        """Bind the address, or join the HTTP server, and start to accept connections.

        Raises
        ------
        OSError
            If the address cannot be bound.
        ValueError
            If the HTTP server to be shared listens elsewhere, or is encrypted where this listener
            is not or the other way round.
        TypeError
            If the HTTP server has no application to which a path can be added.
        """
        if self.tcp_server is not None:
            return
        shared = self._find_server()
        self._route = _Route(self, shared is not None)
        if shared is not None:
            self._join(shared)
            return
        application = Application([Rule(self._route, WSHandler)], log_function=_log_answer)
        server = HTTPServer(
            application,
            max_buffer_size=MAX_BUFFER_SIZE,
            max_header_size=HTTP_LIMIT,
            max_body_size=HTTP_LIMIT,
        )
        server.handle_stream = self._handle_stream  # type: ignore[assignment]
        backlog = int(config.get("distributed.comm.socket-backlog"))
        try:
            sockets = bind_sockets(self.ip, self.port, backlog)
        except OSError as exc:
            where = self.prefix + unparse_host_port(self.ip, self.port) + self.path
            raise OSError(exc.errno, f"cannot listen at {where}: {exc.strerror}") from exc
        server.add_sockets(
            [ListeningSocket(sock, self._make_room, self.prefix) for sock in sockets]
        )
        self.tcp_server = server
        self.bound_address = get_tcp_server_addresses(server)[0][:2]

    def _make_room(self) -> bool:
        """Close the connection that has opened no websocket for longest; as for a handshake."""
        for stream in self._opening:
            if not stream.closed():
                stream.close()
                return True
        return self.abort_oldest_handshake()

    def _find_server(self) -> HTTPServer | None:
        """Return the HTTP server to be shared."""
        if self.http_server is not None:
            return self.http_server
        server = getattr(getattr(self.comm_handler, "__self__", None), "http_server", None)
        if not isinstance(server, HTTPServer) or not self.port:
            return None
        ports = [address[1] for address in get_tcp_server_addresses(server)]
        return server if self.port in ports else None

    def _join(self, server: HTTPServer) -> None:
        application = server.request_callback
        if not isinstance(application, Application):
            raise TypeError(
                f"cannot listen at a path of {server!r}: it serves no tornado.web.Application but "
                f"{application!r}"
            )
        if (server.ssl_options is not None) != self.encrypted:
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
        application.add_handlers(".*", [Rule(self._route, WSHandler)])
        self.tcp_server = server
        self.bound_address = bound[0][0], bound[0][1]

    def stop(self) -> None:
        """Stop accepting connections; those in their handshake are aborted."""
        server, self.tcp_server = self.tcp_server, None
        if self._route is not None:
            if server is not None and not self._route._shared:
                server.stop()
            self._route.listener = None
        for stream, timer in self._opening.items():
            timer.cancel()
            stream.close()
        self._opening.clear()
        self.abort_handshaking_comms()

    async def _handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Begin HTTP on a new connection to a server of our own."""
        peer = self.prefix + unparse_host_port(*address[:2])
        set_tcp_timeout(stream)

        def refuse(reason: NotHTTP) -> None:
            self._log_failure(peer, reason)
            stream.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        try:
            stream = self._open_stream(stream.socket)
            self._opening[stream] = asyncio.get_running_loop().call_later(
                settings().handshake_timeout, self._give_up, stream, peer
            )
            expect_http(stream, HTTP_REQUEST, refuse)
            if isinstance(stream, TLSStream):
                await stream.shake_hands()
        # AttributeError: it was reset before there was anything to do a handshake with.
        except (OSError, AttributeError) as exc:
            self._forget(stream)
            stream.close()
            if not isinstance(stream.error, NotHTTP):
                self._log_failure(peer, exc)
            return
        if isinstance(self.tcp_server, HTTPServer):
            HTTPServer.handle_stream(self.tcp_server, stream, address)

    def _accept(self, protocol: Protocol) -> None:
        """Take over a websocket that was opened here."""
        stream = protocol.stream
        self._forget(stream)
        set_tcp_timeout(stream)
        try:
            peer = unparse_host_port(*stream.socket.getpeername()[:2])
        except (OSError, AttributeError):
            # The peer was gone before anybody asked.
            protocol.abandon()
            return
        local = self.prefix + get_stream_address(stream) + self.path
        comm = self.comm_class(protocol, local, self.prefix + peer, self.deserialize)
        comm.allow_offload = self.allow_offload
        task = asyncio.create_task(self._serve(comm))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, comm: WS) -> None:
        try:
            await self.on_connection(comm)
        except OSError as exc:
            self._log_failure(comm.peer_address, exc)
            return
        await call_comm_handler(self.comm_handler, comm)

    def _give_up(self, stream: IOStream, peer: str) -> None:
        """Close a stream on which there is no websocket in time."""
        del self._opening[stream]
        if not stream.closed():
            logger.info(
                "Connection from %s to %s failed before it began: it opened no websocket within "
                "the time for a handshake ('distributed.comm.timeouts.handshake')",
                peer,
                self.contact_address,
            )
            stream.close()

    def _forget(self, stream: IOStream) -> None:
        timer = self._opening.pop(stream, None)
        if timer is not None:
            timer.cancel()

    def _log_failure(self, peer: str, exc: BaseException) -> None:
        if isinstance(exc, CommClosedError):
            final, reason = isinstance(exc, FatalCommClosedError), str(exc)
        else:
            final, reason = explanation(exc)
        # Somebody who goes away is no news, somebody who does not belong here is.
        logger.log(
            logging.WARNING if final else logging.INFO,
            "Connection from %s to %s failed before it began: %s",
            peer,
            self.contact_address,
            reason,
        )

    @property
    def listen_address(self) -> str:
        return super().listen_address + self.path

    @property
    def contact_address(self) -> str:
        return super().contact_address + self.path


class WSSListener(WSListener):
    """Accepts websockets over TLS.

    It needs the connection argument ``ssl_context``, or an ``http_server`` that is encrypted.
    """

    prefix = "wss://"
    comm_class = WSS
    encrypted = True
    _open_stream = TLSListener._open_stream

    def _configure(self, address: str, connection_args: dict[str, Any]) -> None:
        if self.http_server is None:
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
