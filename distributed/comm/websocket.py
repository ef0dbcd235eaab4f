"""Tornado's websockets with the limits and error reasons that comms need.

This module adds five things to Tornado's websockets: a limit on unread bytes
(:mod:`distributed.comm.websocket_inbox`), the rules of RFC 6455 with their close codes
(:class:`Protocol`), an immediate error if the peer does not speak HTTP (:func:`expect_http`), a
client whose connection is closed when the attempt is cancelled (:class:`ClientConnection`), and the
reason why a connection ended (:func:`explanation`).

It does not import comms: :mod:`distributed.comm.ws` makes comms of these websockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.util import _websocket_mask
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketError,
    WebSocketProtocol,
    WebSocketProtocol13,
)

from distributed.base.text import shown
from distributed.comm.settings import settings
from distributed.comm.tls import explain, is_final, speaks_tls
from distributed.comm.websocket_inbox import Inbox
from distributed.comm.websocket_pings import Turns, turns_of_loop
from distributed.comm.websocket_rules import (
    FINAL_CLOSE_CODES,
    TOO_BIG,
    Violation,
    check_close,
    check_header,
    check_text,
    close_reason,
)

#: Maximum size of HTTP headers, and of the body of an HTTP error, in bytes.
HTTP_LIMIT = 64 * 1024
#: The start of an HTTP request, and that of an answer, as far as it was received.
HTTP_REQUEST = re.compile(rb"[A-Z]{1,8}(?: |\Z)")
HTTP_ANSWER = re.compile(rb"H(?:T(?:T(?:P(?:/.{0,3})?)?)?)?\Z", re.DOTALL)

#: Maximum number of bytes of a closed connection that are received, and discarded, at once.
_DISCARDED = 64 * 1024
#: Seconds until a connection is closed whose peer violated the protocol.  The peer may still read
#: the close frame until then.
_LINGER = 0.5

#: HTTP status codes from 400 to 499 that ask for another request, at once or later.
_TEMPORARY_ANSWERS = frozenset({404, 408, 421, 425, 429})


def handshake_limit() -> int:
    """Return the maximum size of a websocket message before the handshake is done, in bytes."""
    limit = settings().handshake_limits.max_message_size
    return sys.maxsize if limit is None else limit


class NotHTTP(ConnectionAbortedError):
    """A peer's first bytes are not HTTP."""


class RefusedAtOnce(ConnectionAbortedError):
    """A server has accepted a websocket and closed it with a code before it was used."""

    def __init__(self, close_code: int, reason: str):
        super().__init__(errno.ECONNABORTED, reason)
        self.close_code = close_code


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


class Protocol(WebSocketProtocol13):
    """A websocket protocol that has an inbox, checks all frames, and sends pings without answers.

    Tornado accepts frames without a mask.  It disconnects after an invalid frame without a close
    frame, so that the peer does not learn the reason.
    """

    # With Tornado's attributes, these would be more than instances of a class can have without a
    # dict of their own, which takes 1.5 kB.
    __slots__ = ("_begun", "_linger_timer", "_pings", "inbox")

    def __init__(self, handler: Any, mask_outgoing: bool, params: Any, inbox: Inbox) -> None:
        super().__init__(handler, mask_outgoing, params)
        self.inbox = inbox
        # Sends the pings, if they are configured.
        self._pings: Turns | None = None
        # The opcode and the received part of a fragmented message, if one has begun.
        self._begun: tuple[int, bytearray] | None = None
        # Closes the stream; set once the peer has violated the protocol.
        self._linger_timer: asyncio.TimerHandle | None = None

    @property
    def limit(self) -> int:
        """The maximum size of a received websocket message, in bytes."""
        return self.params.max_message_size

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.params.max_message_size = sys.maxsize if limit is None else limit

    def start_pinging(self) -> None:
        interval = settings().tcp_timeout
        if interval:
            self._pings = turns_of_loop(interval / 2)
            self._pings.add(self)

    def bytes_sent(self) -> int | None:
        return None if self.stream.writing() else self._wire_bytes_out

    def send_ping(self) -> None:
        self.write_ping(b"")

    # Receiving

    async def _receive_frame(self) -> None:
        try:
            await self._receive_valid_frame()
        except Violation as violation:
            self._refuse(violation)
            try:
                await self._discard()
            finally:
                self._abort()

    async def _receive_valid_frame(self) -> None:
        """Receive a frame, and handle it or the message that it ends.

        Raises
        ------
        Violation
            If the peer violates the protocol.
        """
        first, second = await self._read_bytes(2)
        mask_bit = 0 if self.mask_outgoing else 0x80
        begun = self._begun
        if first != 0x82 or second & 0x80 != mask_bit or begun is not None:
            # It is not the usual frame, which is a whole binary message.
            check_header(first, second, mask_bit, begun is not None)
        length = second & 0x7F
        if length == 126:
            length = int.from_bytes(await self._read_bytes(2), "big")
        elif length == 127:
            length = int.from_bytes(await self._read_bytes(8), "big")
        opcode = first & 0x0F
        is_data = opcode < 0x8
        size = length if begun is None or not is_data else length + len(begun[1])
        if size > self.limit:
            raise Violation(TOO_BIG, "message too big")
        if mask_bit:
            mask = await self._read_bytes(4)
            data = _websocket_mask(mask, await self._read_bytes(length))
        else:
            data = await self._read_bytes(length)
        if is_data:
            if begun is not None:
                opcode = begun[0]
                begun[1].extend(data)
            elif not first & 0x80:
                self._begun = opcode, bytearray(data)
            if not first & 0x80:
                return
            if begun is not None:
                data = bytes(begun[1])
                self._begun = None
            if opcode == 0x1:
                check_text(data)
        elif opcode == 0x8:
            check_close(data)
        handled = self._handle_message(opcode, data)
        if handled is not None:
            await handled

    # Closing

    def refuse(self, code: int, reason: str) -> None:
        """Close the connection, with *code*, because of a message that the peer sent.

        The peer gets a moment to read the close frame, even if :meth:`abandon` is called.
        """
        if self.inbox.violation is None and not self.is_closing():
            self._refuse(Violation(code, reason))

    def _refuse(self, violation: Violation) -> None:
        # If this side or the peer has sent a close frame before, it stands.
        if self.inbox.violation is None and not self.is_closing():
            self.inbox.violation = violation
        if self._linger_timer is None:
            loop = asyncio.get_running_loop()
            self._linger_timer = loop.call_later(_LINGER, self._abort)
        self.close(violation.code, close_reason(violation.reason))
        self.inbox.end()

    def _end_output(self) -> None:
        """Let the peer see the end of the connection after the close frame, so that it disconnects.

        Over TLS, or if the peer does not read, the connection ends after `_LINGER` seconds.
        """
        stream = self.stream
        if not stream.closed() and not stream.writing() and not isinstance(stream, SSLIOStream):
            with contextlib.suppress(OSError):  # the peer has disconnected
                stream.socket.shutdown(socket.SHUT_WR)

    async def _discard(self) -> None:
        """Receive and discard data until the peer disconnects or `_linger_timer` ends.

        If unread data was left, the kernel would reset the connection, and the peer might lose the
        close frame.
        """
        self._end_output()
        with contextlib.suppress(StreamClosedError):
            while True:
                await self.stream.read_bytes(_DISCARDED, partial=True)
                await asyncio.sleep(0)

    def abandon(self) -> None:
        """Close the connection at once, or soon if the peer has yet to read why."""
        self.inbox.drop()
        if self._linger_timer is None:
            self.stream.close()

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        if self._pings is not None:
            self._pings.discard(self)
        super().close(code, reason)
        if self._linger_timer is not None and self.stream.closed():
            self._linger_timer.cancel()


def adopt(protocol: WebSocketProtocol | None, inbox: Inbox) -> Protocol | None:
    """Return a `Protocol` with the parameters of Tornado's *protocol* and with *inbox*."""
    if not isinstance(protocol, WebSocketProtocol13):
        return None
    return Protocol(protocol.handler, protocol.mask_outgoing, protocol.params, inbox)


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
        # The protocol, also after the websocket was closed.
        self._opened: Protocol | None = None
        # It may fail after its waiter was cancelled, and asyncio would log the unread error.
        self.connect_future.add_done_callback(forget_outcome)

    def get_websocket_protocol(self) -> Protocol:
        protocol = adopt(super().get_websocket_protocol(), self.inbox)
        assert protocol is not None
        self._opened = protocol
        return protocol

    async def upgraded(self) -> Protocol:
        """Wait until the server has accepted the websocket, and return its protocol.

        Raises
        ------
        RefusedAtOnce
            If the server has already closed the websocket with a code, or violated its protocol.
        StreamClosedError
            If it has disconnected.
        """
        await asyncio.shield(self.connect_future)
        if isinstance(self.protocol, Protocol):
            return self.protocol
        inbox = self.inbox
        if inbox.violation is not None:
            raise RefusedAtOnce(inbox.violation.code, described(inbox.violation))
        if inbox.close_code not in (None, 1000, 1001):
            raise RefusedAtOnce(inbox.close_code, f"the peer {inbox.closing()}")
        raise StreamClosedError(self.stream.error)

    def abandon(self) -> None:
        """Close the connection at once, or soon if the peer has yet to read why."""
        if self._opened is not None:
            self._opened.abandon()
        else:
            self.stream.close()

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
            elif "upgrade" not in re.split(r"[\s,]+", headers.get("Connection", "").lower()):
                self._refuse("it does not upgrade the connection")
            elif headers.get("Sec-WebSocket-Extensions"):
                self._refuse("it uses an extension that was not offered")
            elif headers.get("Sec-WebSocket-Protocol", "") not in self._offered_subprotocols():
                self._refuse("it uses a subprotocol that was not offered")
            else:
                headers["Connection"] = "upgrade"
                await super().headers_received(start_line, headers)
            return
        await super().headers_received(start_line, headers)

    def _offered_subprotocols(self) -> list[str]:
        """Return the subprotocols that the server may choose, including none."""
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "")
        return ["", *(name.strip() for name in offered.split(","))]

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


def described(violation: Violation) -> str:
    """Return what rule a peer violated, for an error."""
    return f"{violation.reason} (RFC 6455; closed with code {violation.code})"


def forget_outcome(future: asyncio.Future[Any]) -> None:
    """Mark the error of a done *future* as read, so that asyncio does not log it."""
    if not future.cancelled():
        future.exception()


def _is_final_answer(status: int) -> bool:
    """Return whether another request for a websocket would get the same HTTP status code."""
    return status in (501, 505) or (status < 500 and status not in _TEMPORARY_ANSWERS)


def explanation(exc: BaseException, established: bool = False) -> tuple[bool, str]:
    """Return whether another attempt would fail with *exc* as well, and its reason as text."""
    if isinstance(exc, StreamClosedError) and exc.real_error is not None:
        exc = exc.real_error
    if isinstance(exc, NotHTTP):
        reason = shown(exc.strerror)
        return True, f"{reason}; compare the schemes of both addresses: ws, wss, tcp or tls"
    if isinstance(exc, RefusedAtOnce):
        return exc.close_code in FINAL_CLOSE_CODES, shown(exc.strerror)
    if isinstance(exc, HTTPClientError) and exc.code != 599:
        return _is_final_answer(
            exc.code
        ), f"the HTTP server answers {exc.code} {shown(exc.message)}"
    if isinstance(exc, WebSocketError):
        return True, f"the HTTP server does not open a websocket: {shown(exc)}"
    if isinstance(exc, ssl.SSLError):
        return is_final(exc), explain(exc, established=established)
    return False, f"{type(exc).__name__}: {shown(exc)}"
