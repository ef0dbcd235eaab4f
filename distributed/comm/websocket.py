"""Tornado's websockets with the limits and error reasons that comms need.

This module adds four things to Tornado's websockets: a limit on unread bytes (:class:`Inbox`), an
immediate error if the peer does not speak HTTP (:func:`expect_http`), a client whose connection is
closed when the attempt is cancelled (:class:`ClientConnection`), and the reason why a connection
ended (:func:`explanation`).

It does not import comms: :mod:`distributed.comm.ws` makes comms of these websockets.
"""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketError,
    WebSocketProtocol,
    WebSocketProtocol13,
)

from distributed.base import config
from distributed.comm.tls import explain, is_final, speaks_tls

#: Maximum size of HTTP headers, and of the body of an HTTP error, in bytes.
HTTP_LIMIT = 64 * 1024
#: The start of an HTTP request, and that of an answer, as far as it was received.
HTTP_REQUEST = re.compile(rb"[A-Z]{1,8}(?: |\Z)")
HTTP_ANSWER = re.compile(rb"H(?:T(?:T(?:P(?:/.{0,3})?)?)?)?\Z", re.DOTALL)

#: Maximum number of received bytes that are not read yet, before receiving is paused.
_READ_AHEAD = 256 * 1024
#: Bytes of memory for a websocket message in addition to its data.
_OVERHEAD = 64

#: HTTP status codes after which another request for a websocket would fail as well.
_FINAL_ANSWERS = frozenset({200, 400, 401, 403, 405, 407, 410, 426, 501, 505})


def handshake_limit() -> int:
    """Return the maximum size of a websocket message before the handshake is done, in bytes."""
    limit = config.get_bytes("distributed.comm.max-handshake-size")
    return sys.maxsize if limit is None else limit


class NotHTTP(ConnectionAbortedError):
    """A peer's first bytes are not HTTP."""


def expect_http(
    stream: IOStream,
    beginning: re.Pattern[bytes],
    refuse: Callable[[NotHTTP], None] | None = None,
) -> None:
    """Close *stream* at once if its first bytes do not match *beginning*.

    Tornado would wait for the end of a line, which a peer with another protocol may never send.
    Before the stream is closed, *refuse* is called with the error.
    """
    # `read_from_fd` is Tornado's hook to read from a socket; over TLS it returns decrypted bytes.
    read_from_fd = stream.read_from_fd

    def read_first(buf: bytearray | memoryview) -> int | None:
        count = read_from_fd(buf)
        if count:
            first = bytes(buf[:8])[:count]
            if not beginning.match(first):
                reason = "the peer does not speak HTTP" + " but TLS" * speaks_tls(first)
                failure = NotHTTP(errno.ECONNABORTED, reason)
                if refuse is not None:
                    refuse(failure)
                raise failure
            del stream.read_from_fd
        return count

    stream.read_from_fd = read_first  # type: ignore[method-assign]


class Inbox:
    """The websocket messages that were received and are not read yet."""

    def __init__(self) -> None:
        #: Maximum number of unread bytes.  It is 0 until the handshake is done, so that each
        #: message is received only when it is read.
        self.room = 0
        #: Whether the peer sent a websocket message above the limit.
        self.too_large = False
        #: The peer's close code and reason, None if it sent none.
        self.close_code: int | None = None
        self.close_reason: str | None = None
        #: Set once Tornado has released the connection.
        self.gone = asyncio.Event()
        # Oldest first.
        self._messages: deque[str | bytes] = deque()
        # Memory of `_messages`, in bytes.
        self._size = 0
        #: Not None while a write waits: the peer's next message may then exceed `room`.  The
        #: function takes the unread websocket messages and their size in bytes, and returns whether
        #: they begin with a complete message, or an invalid one.
        self.is_complete: Callable[[Sequence[str | bytes], int], bool] | None = None
        # Whether the write is done, and only the rest of the message is received.
        self._ahead_ends = False
        # Whether no more messages are accepted.
        self._ended = False
        # The reader waits for it while there are no messages.
        self._reader: asyncio.Future[None] | None = None
        # Tornado waits for it, and does not receive, while there are too many messages.
        self._paused: asyncio.Future[None] | None = None
        #: Called when the connection ends other than by `drop`; None for no callback.
        self.on_end: Callable[[], object] | None = None

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: str | bytes) -> asyncio.Future[None] | None:
        """Add a message; return the future to await before receiving the next one, if any."""
        if self._ended:
            return None
        self._messages.append(message)
        self._size += len(message) + _OVERHEAD
        self._wake(self._reader)
        if self._size <= self.room or not self._holds_enough():
            return None
        self._paused = asyncio.get_running_loop().create_future()
        return self._paused

    async def get(self) -> tuple[str | bytes, bool]:
        """Return the next message, and whether this call waited for it.

        Raises
        ------
        StreamClosedError
            If the connection has ended and all messages were read.
        """
        waited = False
        while not self._messages:
            if self._ended:
                raise StreamClosedError
            self._wake(self._paused)
            waited = True
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._messages.popleft()
        self._size -= len(message) + _OVERHEAD
        if self._size < self.room // 2:
            self._wake(self._paused)
        return message, waited

    def open(self) -> None:
        """Allow messages to be received before they are read."""
        self.room = _READ_AHEAD
        self._wake(self._paused)

    def _holds_enough(self) -> bool:
        """Return whether `room` limits what is received now."""
        if self.is_complete is not None:
            size = self._size - _OVERHEAD * len(self._messages)
            if not self.is_complete(self._messages, size):
                return False
            if self._ahead_ends:
                self.is_complete = None
        return True

    def start_ahead(self, is_complete: Callable[[Sequence[str | bytes], int], bool]) -> None:
        """Begin to receive until *is_complete* returns true for the unread websocket messages."""
        self.is_complete = is_complete
        self._ahead_ends = False
        self.continue_ahead()

    def continue_ahead(self) -> None:
        """Receive again if the reader has taken a complete message and a write still waits."""
        if self.is_complete is None:
            return
        if self._ahead_ends:
            self.is_complete = None
        elif not self._holds_enough():
            self._wake(self._paused)

    def stop_ahead(self) -> None:
        """Limit the unread bytes by `room` again, after the message that has begun."""
        self._ahead_ends = True
        if not self._messages:
            self.is_complete = None

    def end(self) -> None:
        """Accept no more messages."""
        self._ended = True
        self._wake(self._reader)
        self._wake(self._paused)
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()

    def drop(self) -> None:
        """Accept no more messages, and discard the unread ones."""
        self._messages.clear()
        self.on_end = None
        self.end()

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Protocol(WebSocketProtocol13):
    """A websocket protocol that has an inbox, and that sends pings which need no answer."""

    #: Set by `adopt`.
    inbox: Inbox
    #: Runs while the websocket is open, if pings are configured.
    _ping_timer: asyncio.TimerHandle | None = None

    @property
    def limit(self) -> int:
        """The maximum size of a received websocket message, in bytes."""
        return self.params.max_message_size

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.params.max_message_size = sys.maxsize if limit is None else limit

    # Pings keep proxies from closing an idle connection.  Unlike Tornado's, they do not expect an
    # answer: a peer that is busy or does not read sends none, although it is still connected.  The
    # kernel detects a dead peer, as on any TCP connection: it does not acknowledge the pings.
    def start_pinging(self) -> None:
        interval = config.get_timedelta("distributed.comm.timeouts.tcp")
        if interval:
            self._schedule_ping(interval / 2)

    def _schedule_ping(self, interval: float) -> None:
        loop = asyncio.get_running_loop()
        self._ping_timer = loop.call_later(interval, self._ping, interval)

    def _ping(self, interval: float) -> None:
        if not self.is_closing():
            # Data that waits to be sent keeps the connection busy as well as a ping.
            if not self.stream.writing():
                self.write_ping(b"")
            self._schedule_ping(interval)

    def abandon(self) -> None:
        """Close the connection at once."""
        self.inbox.drop()
        self.stream.close()

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        # 1009 means "message too big".  If the peer closed first, this side only echoes its code.
        if code == 1009 and not self.client_terminated:
            self.inbox.too_large = True
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        super().close(code, reason)


def adopt(protocol: WebSocketProtocol | None, inbox: Inbox) -> Protocol | None:
    """Return a `Protocol` with the parameters of Tornado's *protocol* and with *inbox*."""
    if not isinstance(protocol, WebSocketProtocol13):
        return None
    adopted = Protocol(protocol.handler, protocol.mask_outgoing, protocol.params)
    adopted.inbox = inbox
    return adopted


class _OpenStream:
    """A ``TCPClient`` that returns a stream that is already connected."""

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream

    async def connect(self, *args: Any, **kwargs: Any) -> IOStream:
        return self._stream

    def close(self) -> None:
        """Do nothing: the code that opened the stream closes it."""


class ClientConnection(WebSocketClientConnection):
    """The client's end of a websocket, opened on a stream that is already connected.

    Tornado's ``websocket_connect`` would open the connection itself, and a caller that is cancelled
    could not close it.
    """

    def __init__(self, stream: IOStream, request: HTTPRequest) -> None:
        self.inbox = Inbox()
        super().__init__(request, max_message_size=handshake_limit())
        self.tcp_client = _OpenStream(stream)  # type: ignore[assignment]
        self.max_body_size = HTTP_LIMIT
        self.stream = stream
        # It may fail after its waiter was cancelled, and asyncio would log the unread error.
        self.connect_future.add_done_callback(forget_outcome)

    def get_websocket_protocol(self) -> Protocol:
        protocol = adopt(super().get_websocket_protocol(), self.inbox)
        assert protocol is not None
        return protocol

    async def upgraded(self) -> Protocol:
        """Wait until the server has accepted the websocket, and return its protocol."""
        await asyncio.shield(self.connect_future)
        if not isinstance(self.protocol, Protocol):
            raise StreamClosedError(self.stream.error)
        return self.protocol

    async def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        # Tornado checks these headers with `assert`, and logs a traceback.
        accept = WebSocketProtocol13.compute_accept_value(self.key)
        if isinstance(start_line, ResponseStartLine) and start_line.code == 101:
            if headers.get("Upgrade", "").lower() != "websocket":
                self._refuse("it switches to another protocol")
            elif headers.get("Sec-Websocket-Accept") != accept:
                self._refuse("its answer does not belong to the request")
            elif headers.get("Sec-WebSocket-Extensions"):
                self._refuse("it uses an extension that was not offered")
            else:
                headers["Connection"] = "upgrade"
                await super().headers_received(start_line, headers)
            return
        await super().headers_received(start_line, headers)

    def _refuse(self, reason: str) -> None:
        if not self.connect_future.done():
            self.connect_future.set_exception(WebSocketError(reason))
        self.stream.close()

    def on_message(self, message: str | bytes) -> asyncio.Future[None] | None:
        return self.inbox.put(message)

    def on_connection_close(self) -> None:
        if not self.connect_future.done():
            self.connect_future.set_exception(StreamClosedError(self.stream.error))

    def on_ws_connection_close(
        self, close_code: int | None = None, close_reason: str | None = None
    ) -> None:
        self.inbox.close_code, self.inbox.close_reason = close_code, close_reason
        self.inbox.end()
        self.inbox.gone.set()
        # Tornado warns if a connection is garbage-collected while it has a protocol.
        self.protocol = None


def forget_outcome(future: asyncio.Future[Any]) -> None:
    """Mark the error of a done *future* as read, so that asyncio does not log it."""
    if not future.cancelled():
        future.exception()


def explanation(exc: BaseException) -> tuple[bool, str]:
    """Return whether another attempt would fail with *exc* as well, and its reason as text."""
    if isinstance(exc, StreamClosedError) and exc.real_error is not None:
        exc = exc.real_error
    if isinstance(exc, NotHTTP):
        return True, f"{exc.strerror}; compare the schemes of both addresses: ws, wss, tcp or tls"
    if isinstance(exc, HTTPClientError) and exc.code != 599:
        return exc.code in _FINAL_ANSWERS, f"the HTTP server answers {exc.code} {exc.message}"
    if isinstance(exc, WebSocketError):
        return True, f"the HTTP server does not open a websocket: {exc}"
    if isinstance(exc, ssl.SSLError):
        return is_final(exc), explain(exc)
    return False, f"{type(exc).__name__}: {exc}"
