"""The HTTP port of the pages: one of their own, or that of a ``ws://`` listener.

The clients of a port are limited in number, time and size.  Each connection carries one request,
so that no client keeps one open without using it.  The only lasting connections are those of
browsers that watch the live page.
"""

from __future__ import annotations

import ssl
from typing import Any

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.routing import Rule
from tornado.web import Application

from distributed.base.host_addresses import host_of
from distributed.base.logs import get_logger
from distributed.comm import unparse_host_port
from distributed.comm.addressing import get_tcp_server_addresses
from distributed.comm.settings import settings as comm_settings
from distributed.comm.sockets import ListeningSocket, bind_sockets, peer_loc, set_tcp_timeout
from distributed.comm.ws import WSListener
from distributed.pages.handlers import Paths
from distributed.pages.settings import Settings

__all__ = ["OwnPort", "SharedPort"]

logger = get_logger(__name__)

#: Maximum number of bytes of a request's body; the only body is a form with the token.
_MAX_BODY_SIZE = 4096


class _PagesServer(HTTPServer):
    """An HTTP server with a maximum number of connections."""

    # `silent` has the streams whose request has not arrived yet, in the order of their connections;
    # each is also the stream of one of Tornado's `_connections`.  Tornado calls initialize() with
    # the arguments of the constructor; these two attributes are set after that.
    max_connections: int | None
    silent: dict[IOStream, None]

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Serve a new connection, or close it if there are too many."""
        try:
            peer = peer_loc(address)
            set_tcp_timeout(stream)
        except OSError:
            # The client has disconnected.
            stream.close()
            return
        limit = self.max_connections
        if limit is not None and len(self._connections) >= limit and not self.make_room():
            logger.info(
                "Closed an HTTP connection from %s: there are %d, and that is the maximum "
                "('distributed.pages.max-connections')",
                peer,
                limit,
            )
            stream.close()
            return
        self.silent[stream] = None
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        """Forget a connection that has ended."""
        super().on_close(server_conn)
        assert isinstance(server_conn, HTTP1ServerConnection)
        self.heard(server_conn.stream)

    def heard(self, stream: IOStream) -> None:
        """Note that the request of a connection has arrived."""
        self.silent.pop(stream, None)

    def make_room(self) -> bool:
        """Close the oldest connection without a request; return whether there was one."""
        for stream in self.silent:
            if not stream.closed():
                self.heard(stream)
                stream.close()
                return True
        return False


class OwnPort:
    """A port that only the pages use.

    Parameters
    ----------
    host, port
        Where to listen; port 0 for any free one.
    settings
        The limits.
    ssl_context
        The TLS context; None for a port without TLS.

    Raises
    ------
    OSError
        If the address cannot be bound.
    """

    def __init__(
        self, host: str, port: int, settings: Settings, ssl_context: ssl.SSLContext | None
    ) -> None:
        self.ssl_context = ssl_context
        self._settings = settings
        self._server: _PagesServer | None = None
        try:
            self._sockets = bind_sockets(host, port, comm_settings().socket_backlog)
        except OSError as exc:
            where = f"http://{unparse_host_port(host, port)}"
            reason = exc.strerror or str(exc)
            raise type(exc)(exc.errno, f"cannot serve pages at {where}: {reason}") from exc
        #: The host and the port of each socket.
        self.addresses = [
            (host_of(name), name[1]) for name in (sock.getsockname() for sock in self._sockets)
        ]

    @property
    def encrypted(self) -> bool:
        """Whether the port uses TLS."""
        return self.ssl_context is not None

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return 0 if self._server is None else len(self._server._connections)

    def start(self, application: Application, paths: Paths) -> None:
        """Let *application* answer all requests."""
        limits = self._settings
        self._server = _PagesServer(
            application,
            no_keep_alive=True,
            ssl_options=self.ssl_context,
            max_header_size=limits.max_header_size,
            max_body_size=_MAX_BODY_SIZE,
            idle_connection_timeout=limits.timeout,
            body_timeout=limits.timeout,
        )
        self._server.max_connections = limits.max_connections
        self._server.silent = {}
        make_room = self._server.make_room
        self._server.add_sockets(
            [ListeningSocket(sock, make_room, "http://") for sock in self._sockets]
        )
        self._sockets = []

    def heard(self, stream: IOStream) -> None:
        """Note that a request has arrived."""
        if self._server is not None:
            self._server.heard(stream)

    def stop(self) -> None:
        """Stop accepting connections."""
        for sock in self._sockets:
            sock.close()
        if self._server is not None:
            self._server.stop()

    async def close(self) -> None:
        """Close all connections."""
        if self._server is not None:
            await self._server.close_all_connections()


class SharedPort:
    """The port of a ``ws://`` or ``wss://`` listener, or of the application that it shares."""

    def __init__(self, listener: WSListener) -> None:
        server = listener.server
        assert server is not None, "the listener was stopped"
        options = server.ssl_options
        self.encrypted = listener.encrypted
        self.ssl_context = options if isinstance(options, ssl.SSLContext) else listener.ssl_context
        self.addresses = [
            (host_of(name), name[1])
            for name in get_tcp_server_addresses(server)
            if listener.bound_address is None or name[1] == listener.bound_address[1]
        ]
        self._listener = listener
        self._application = server.request_callback
        # None before start().
        self._paths: Paths | None = None
        # The connections with a request for a page in progress.
        self._streams: set[IOStream] = set()

    @property
    def connections(self) -> int:
        """The number of open connections that have made a request for a page."""
        return sum(not stream.closed() for stream in self._streams)

    def start(self, application: Application, paths: Paths) -> None:
        """Let *application* answer the requests for *paths* that do not open a websocket."""
        assert isinstance(self._application, Application)
        self._paths = paths
        self._application.add_handlers(".*", [Rule(paths, application)])

    def heard(self, stream: IOStream) -> None:
        """Note that a request has arrived."""
        self._listener.release(stream)
        self._streams = {each for each in self._streams if not each.closed()} | {stream}

    def stop(self) -> None:
        """Answer no more requests."""
        if self._paths is not None:
            self._paths.is_open = False

    async def close(self) -> None:
        """Close the connections with a request for a page."""
        for stream in self._streams:
            stream.close()
