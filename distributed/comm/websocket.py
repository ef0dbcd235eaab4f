"""Websockets as comms need them: Tornado's, with bounds and reasons.

What Tornado's websockets leave open is settled here: how much may arrive before somebody reads it
(:class:`Inbox`), what becomes of a peer that speaks no HTTP (:func:`expect_http`), that a
connection which is given up is closed, and what its end means (:func:`explanation`).

This module knows neither messages nor comms.  :mod:`distributed.comm.ws` makes comms of the
websockets that it opens, and of those that a server has accepted.
"""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
import sys
from collections import deque
from collections.abc import Callable
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

#: Bound on what HTTP sends besides websockets: headers, or the text of an error.
HTTP_LIMIT = 64 * 1024
#: How HTTP begins, of which not all may have arrived yet.
HTTP_REQUEST = re.compile(rb"[A-Z]{1,8}(?: |\Z)")
HTTP_ANSWER = re.compile(rb"H(?:T(?:T(?:P(?:/.{0,3})?)?)?)?\Z", re.DOTALL)

#: Bytes that may have arrived without being read until the peer has to wait.
_READ_AHEAD = 256 * 1024
#: What a websocket message costs besides its bytes.
_OVERHEAD = 64

#: Answers to a request for a websocket that will not be others the next time.
_FINAL_ANSWERS = frozenset({200, 400, 401, 403, 405, 407, 410, 426, 501, 505})


def handshake_limit() -> int:
    """Return the largest websocket message that is taken before the handshake is done, in bytes."""
    limit = config.get_bytes("distributed.comm.max-handshake-size")
    return sys.maxsize if limit is None else limit


class NotHTTP(ConnectionAbortedError):
    """A peer's first bytes are not HTTP."""


def expect_http(
    stream: IOStream,
    beginning: re.Pattern[bytes],
    refuse: Callable[[NotHTTP], None] | None = None,
) -> None:
    """Close *stream* at once where its first bytes do not match *beginning*.

    HTTP would wait for the end of a line, which a peer that speaks something else may never send.
    *refuse* is called just before.
    """
    # `read_from_fd` is Tornado's hook for what brings a stream its bytes, decrypted if it is TLS.
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
    """What has arrived on a websocket and was not read yet."""

    # State.  `_messages` have arrived, and count for `_size` bytes.  `_reader` is awaited by who
    # reads while there are none, `_paused` by Tornado's receiving while there are too many.  After
    # `end` nothing arrives any more; `ended` is done once Tornado has let go of the connection.
    # `room` is 0 until the handshake is done: then each message waits until it is asked for.
    def __init__(self) -> None:
        self.room = 0
        self.too_large = False
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self.gone = asyncio.Event()
        self._messages: deque[str | bytes] = deque()
        self._size = 0
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        self._paused: asyncio.Future[None] | None = None

    def put(self, message: str | bytes) -> asyncio.Future[None] | None:
        """Take a message, and return what to wait for before the next one is received."""
        if self._ended:
            return None
        self._messages.append(message)
        self._size += len(message) + _OVERHEAD
        self._wake(self._reader)
        if self._size <= self.room:
            return None
        self._paused = asyncio.get_running_loop().create_future()
        return self._paused

    async def get(self) -> tuple[str | bytes, bool]:
        """Return the next message, and whether it had to be waited for.

        Raises
        ------
        StreamClosedError
            If there will be none.
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
        """Let messages arrive that nobody has asked for."""
        self.room = _READ_AHEAD
        self._wake(self._paused)

    def end(self) -> None:
        """Take no message any more."""
        self._ended = True
        self._wake(self._reader)
        self._wake(self._paused)

    def drop(self) -> None:
        """Take no message any more, and forget those that nobody has read."""
        self._messages.clear()
        self.end()

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Protocol(WebSocketProtocol13):
    """Keeps a connection busy, and what goes wrong with it in mind."""

    # State.  `_ping_timer` runs from when the websocket is open until it is closed.
    inbox: Inbox
    _ping_timer: asyncio.TimerHandle | None = None

    @property
    def limit(self) -> int:
        """The largest websocket message that is taken, in bytes."""
        return self.params.max_message_size

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.params.max_message_size = sys.maxsize if limit is None else limit

    # Pings keep proxies from closing a connection that is idle. Nobody waits for the answer: a
    # peer that is busy, or does not read, sends none, and is not gone. Who is gone the kernel
    # notices, as on any TCP connection, also since what it sends is not acknowledged.
    def start_pinging(self) -> None:
        interval = config.get_timedelta("distributed.comm.timeouts.tcp")
        if interval:
            self._schedule_ping(interval / 2)

    def _schedule_ping(self, interval: float) -> None:
        loop = asyncio.get_running_loop()
        self._ping_timer = loop.call_later(interval, self._ping, interval)

    def _ping(self, interval: float) -> None:
        if not self.is_closing():
            # What has not left yet is as good as a ping.
            if not self.stream.writing():
                self.write_ping(b"")
            self._schedule_ping(interval)

    def abandon(self) -> None:
        """Close the connection at once."""
        self.inbox.drop()
        self.stream.close()

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        # Not where it only confirms what the peer has said of ours.
        if code == 1009 and not self.client_terminated:
            self.inbox.too_large = True
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        super().close(code, reason)


def adopt(protocol: WebSocketProtocol | None, inbox: Inbox) -> Protocol | None:
    """Return *protocol* with what we add to it."""
    if not isinstance(protocol, WebSocketProtocol13):
        return None
    adopted = Protocol(protocol.handler, protocol.mask_outgoing, protocol.params)
    adopted.inbox = inbox
    return adopted


class _OpenStream:
    """Stands in for a ``TCPClient`` whose stream is connected already."""

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream

    async def connect(self, *args: Any, **kwargs: Any) -> IOStream:
        return self._stream

    def close(self) -> None:
        """Leave the stream to whoever opened it."""


class ClientConnection(WebSocketClientConnection):
    """Opens a websocket on a stream that is connected already.

    Tornado's ``websocket_connect`` would connect by itself, and give nobody the means to close what
    it is about when it is given up.
    """

    def __init__(self, stream: IOStream, request: HTTPRequest) -> None:
        self.inbox = Inbox()
        super().__init__(request, max_message_size=handshake_limit())
        self.tcp_client = _OpenStream(stream)  # type: ignore[assignment]
        self.max_body_size = HTTP_LIMIT
        self.stream = stream
        # It fails also where nobody waits for it any more.
        self.connect_future.add_done_callback(forget_outcome)

    def get_websocket_protocol(self) -> Protocol:
        protocol = adopt(super().get_websocket_protocol(), self.inbox)
        assert protocol is not None
        return protocol

    async def upgraded(self) -> Protocol:
        """Wait until the server has opened the websocket."""
        await asyncio.shield(self.connect_future)
        if not isinstance(self.protocol, Protocol):
            raise StreamClosedError(self.stream.error)
        return self.protocol

    async def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        # Tornado only asserts this, and logs a traceback.
        accept = WebSocketProtocol13.compute_accept_value(self.key)
        if isinstance(start_line, ResponseStartLine) and start_line.code == 101:
            if headers.get("Upgrade", "").lower() != "websocket":
                self._refuse("it switches to another protocol")
            elif headers.get("Sec-Websocket-Accept") != accept:
                self._refuse("its answer does not belong to the request")
            elif headers.get("Sec-WebSocket-Extensions"):
                self._refuse("it uses an extension that nobody has offered")
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
        # Its presence would mean that nobody has closed it.
        self.protocol = None


def forget_outcome(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def explanation(exc: BaseException) -> tuple[bool, str]:
    """Tell whether what has ended a connection would do so again, and what it was."""
    if isinstance(exc, StreamClosedError) and exc.real_error is not None:
        exc = exc.real_error
    if isinstance(exc, NotHTTP):
        return True, f"{exc.strerror}; compare the schemes of both addresses: ws, wss, tcp or tls"
    if isinstance(exc, HTTPClientError) and exc.code != 599:
        return exc.code in _FINAL_ANSWERS, f"the HTTP server answers {exc.code} {exc.message}"
    if isinstance(exc, WebSocketError):
        return True, f"the HTTP server opens no websocket: {exc}"
    if isinstance(exc, ssl.SSLError):
        return is_final(exc), explain(exc)
    return False, f"{type(exc).__name__}: {exc}"
