"""TLS under a byte stream: the stream itself, and what its failures mean.

:class:`TLSStream` is Tornado's, but connects in two steps and keeps what goes wrong instead of
logging it. The functions tell from an error of OpenSSL, which names neither the peer nor a setting,
what a person has to change, and recognize peers of which one speaks TLS and the other does not.

This module knows no comms: :mod:`distributed.comm.tcp` makes comms of these streams, and logs.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Mapping
from typing import Any, Final

from tornado.iostream import SSLIOStream, StreamClosedError

from distributed.comm.message_stream import TLSMessageStream

#: What a server answers to a peer that does not speak TLS, where OpenSSL would say nothing: a
#: fatal alert, "protocol_version" (RFC 8446, section 6).
_ALERT: Final = bytes([21, 3, 3, 0, 2, 2, 70])

#: How OpenSSL calls bytes that are no TLS.
_NOT_TLS: Final = frozenset(
    {
        "HTTPS_PROXY_REQUEST",
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNEXPECTED_MESSAGE",
        "UNKNOWN_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)

_NO_COMMON_VERSION: Final = frozenset(
    {
        "NO_PROTOCOLS_AVAILABLE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "VERSION_TOO_LOW",
    }
)

_NO_COMMON_CIPHER: Final = frozenset({"NO_CIPHERS_AVAILABLE", "NO_SHARED_CIPHER"})

#: What a peer's alert says of the certificate that this side has shown.
_REFUSED_HERE: Final = {
    "SSLV3_ALERT_BAD_CERTIFICATE": "bad, such as one for another host",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "not acceptable",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "of a kind that it does not support",
    "TLSV1_ALERT_ACCESS_DENIED": "not allowed to connect",
    "TLSV1_ALERT_DECRYPT_ERROR": "not the one that belongs to the key",
    "TLSV1_ALERT_UNKNOWN_CA": "of an authority that it does not know",
}

_NO_WAY_FOR_PEER: Final = "SSLV3_ALERT_HANDSHAKE_FAILURE"
_NO_CERTIFICATE_THERE: Final = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
_NO_CERTIFICATE_HERE: Final = "TLSV13_ALERT_CERTIFICATE_REQUIRED"

#: Errors of OpenSSL's verification (x509_vfy.h) and what to do about them.
_ADVICE: Final = {
    9: "compare the clocks of both hosts",
    10: "it has to be renewed",
    18: "this side does not know its authority ('distributed.comm.tls.ca-file')",
    19: "this side does not know its authority ('distributed.comm.tls.ca-file')",
    20: "this side does not know its authority ('distributed.comm.tls.ca-file')",
    21: "this side does not know its authority ('distributed.comm.tls.ca-file')",
    62: "the connection argument server_hostname says which name to expect",
    64: "the connection argument server_hostname says which name to expect",
}


class TLSStream(TLSMessageStream):
    """A TLS stream over a socket that is connected already, or by :meth:`connect`."""

    def connect(self, address: Any, server_hostname: str | None = None) -> Any:
        """Connect the socket; the TLS handshake begins by itself as soon as that is done.

        Unlike Tornado's this does not wait for the handshake: an attempt at one of several
        addresses has succeeded once the peer is reached, whatever it then says.
        """
        self._server_hostname = server_hostname
        return super(SSLIOStream, self).connect(address)

    async def shake_hands(self) -> None:
        """Wait until the TLS handshake is done.

        Raises
        ------
        OSError
            If it fails.
        """
        # Of a stream that is closed already Tornado's future would never be done.
        if not self.closed():
            # Tornado does not expect anyone to cancel its futures.
            await asyncio.shield(self.wait_for_handshake())
        # It may also have been closed since that future was done.
        if self.closed():
            raise StreamClosedError(self.error)

    def _do_ssl_handshake(self) -> None:
        # Tornado's own logs what goes wrong. Here it is the error with which the stream is closed,
        # and logged by whoever knows whose connection this is.
        self._handshake_reading = self._handshake_writing = False
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._handshake_reading = True
        except ssl.SSLWantWriteError:
            self._handshake_writing = True
        except (OSError, AttributeError) as exc:
            # AttributeError: it was reset before there was anything to do a handshake with.
            if self.socket.server_side and getattr(exc, "reason", None) in _NOT_TLS:
                self._send_alert()
            self.close(exc_info=exc)
        else:
            super()._do_ssl_handshake()

    # Tornado's hook for which errors are not to be logged; they come to the reader or writer.
    def _is_connreset(self, exc: BaseException) -> bool:
        return isinstance(exc, ssl.SSLError) or super()._is_connreset(exc)

    # Tornado's hook for how bytes are written.
    def write_to_fd(self, data: memoryview) -> int:
        try:
            return super().write_to_fd(data)
        except OSError as exc:
            # With TLS 1.3 a client may write before it has read that its certificate is refused.
            raise self._alert_received() or exc from None

    def _alert_received(self) -> ssl.SSLError | None:
        """Return what a peer said before it closed the connection, if it said anything."""
        try:
            self.socket.recv(1)
        except ssl.SSLError as exc:
            return exc if is_final(exc) else None
        except OSError:
            return None
        return None

    def _send_alert(self) -> None:
        """Tell a peer that does not speak TLS what it ran into."""
        # Past the SSLSocket's methods, which would encrypt.
        try:
            socket.socket.send(self.socket, _ALERT)
            # With data unread the kernel would reset the connection, alert and all.
            socket.socket.recv(self.socket, 2**16)
        except OSError:
            # It is gone, and needs no answer.
            return


def open_tls_stream(
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
) -> TLSStream:
    """Return a stream that begins TLS over a connected socket, which it takes over.

    Raises
    ------
    OSError
        If the peer is gone already; the socket is closed.
    """
    try:
        # Of a peer that is gone the next call would lose the socket.
        sock.getpeername()
        wrapped = context.wrap_socket(
            sock,
            server_side=server_side,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
        )
        return TLSStream(wrapped, ssl_options=context, max_buffer_size=sys.maxsize)
    finally:
        # Of the socket nothing is left if all went well.
        sock.close()


def speaks_tls(data: bytes) -> bool:
    """Whether the first bytes from a peer begin a TLS connection, or are an alert that refuses one.

    Examples
    --------
    >>> speaks_tls(bytes([22, 3, 1, 2, 0, 1])), speaks_tls(bytes([21, 3, 3, 0, 2, 2, 70]))
    (True, True)
    >>> speaks_tls(b"GET / HTTP/1.1")
    False
    """
    if len(data) < 6 or data[1] != 3 or data[2] > 4:
        return False
    client_hello = data[0] == 22 and data[5] == 1
    alert = data[0] == 21 and data[3:5] == b"\0\2"
    return client_hello or alert


def is_final(exc: BaseException) -> bool:
    """Whether trying again will not help against a failure of TLS."""
    return isinstance(exc, ssl.SSLError) and not isinstance(
        exc, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError
    )


def explain(exc: ssl.SSLError) -> str:
    """What went wrong and what to do about it, followed by OpenSSL's own word for it."""
    return f"{_explanation(exc)} (OpenSSL: {exc.reason or exc.strerror or exc})"


def _explanation(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        advice = _ADVICE.get(exc.verify_code)
        message = exc.verify_message.rstrip(".")
        return f"the peer's certificate is not accepted: {message}" + (
            f"; {advice}" if advice else ""
        )
    reason = exc.reason or ""
    if not is_final(exc):
        return "the peer closed during the TLS handshake; does it speak TLS?"
    if reason in _NOT_TLS:
        return "the peer does not speak TLS; is it at a tcp:// address, and not at a tls:// one?"
    if reason in _REFUSED_HERE:
        return (
            "the peer does not accept the certificate of this side: it finds it "
            f"{_REFUSED_HERE[reason]}"
        )
    if reason == _NO_CERTIFICATE_HERE:
        return "the peer demands a certificate, and this side has none to show"
    if reason == _NO_CERTIFICATE_THERE:
        return "the peer has shown no certificate"
    if reason in _NO_COMMON_VERSION:
        return (
            "both sides have no TLS version in common ('distributed.comm.tls.min-version' and "
            "'.max-version')"
        )
    if reason == _NO_WAY_FOR_PEER:
        return (
            "the peer sees no way to agree: both sides have no TLS cipher in common "
            "('distributed.comm.tls.ciphers'), or it demands a certificate"
        )
    if reason in _NO_COMMON_CIPHER:
        return "both sides have no TLS cipher in common ('distributed.comm.tls.ciphers')"
    return "TLS failed"


def expect_tls_context(connection_args: Mapping[str, Any]) -> ssl.SSLContext:
    """The ``ssl_context`` among the arguments of ``connect`` or ``listen``.

    Raises
    ------
    TypeError
        If there is none.
    """
    context = connection_args.get("ssl_context")
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(
            "TLS expects a `ssl_context` argument of type ssl.SSLContext (perhaps check your TLS "
            "configuration? It needs both 'distributed.comm.tls.ca-file' and the certificate of "
            f"the role). Instead got {context!r}"
        )
    return context


def refuse_unencrypted(address: str, connection_args: Mapping[str, Any]) -> None:
    """Raise if the arguments of ``connect`` or ``listen`` require encryption.

    Parameters
    ----------
    address
        The address of a transport that does not encrypt.
    connection_args
        The arguments.

    Raises
    ------
    RuntimeError
        If ``require_encryption`` is true in them.
    """
    if connection_args.get("require_encryption"):
        raise RuntimeError(
            f"encryption required by Dask configuration, refusing communication from/to {address!r}"
        )
