"""TLS under a byte stream: the stream itself, and what its errors mean.

:class:`TLSStream` is Tornado's TLS stream, whose errors are raised to the caller instead of being
logged.  The functions turn errors
of OpenSSL, which name neither the peer nor a setting, into advice, and detect that only one of two
peers speaks TLS.

This module does not import comms: :mod:`distributed.comm.tcp` makes comms of these streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Mapping
from typing import Any, Final

from tornado.iostream import IOStream, StreamClosedError

from distributed.comm.message_stream import TLSMessageStream

#: The answer of a server to a peer that does not speak TLS, for which OpenSSL sends nothing: the
#: fatal alert "protocol_version" (RFC 8446, section 6).
_ALERT: Final = bytes([21, 3, 3, 0, 2, 2, 70])

#: OpenSSL's reasons when the received bytes are not TLS.  OpenSSL 3.2 and newer give the reason
#: RECORD_LAYER_FAILURE for any invalid record after the first.
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

#: OpenSSL's reasons, after the handshake, when the received bytes are not what the peer encrypted.
_NOT_FROM_PEER: Final = _NOT_TLS | {"DECRYPTION_FAILED_OR_BAD_RECORD_MAC"}

#: The peer's alert about the certificate of this side → the end of "it is ...".
_REFUSED_HERE: Final = {
    "SSLV3_ALERT_BAD_CERTIFICATE": "bad, such as one for another host",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "not acceptable",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "of a kind that the peer does not support",
    "TLSV1_ALERT_ACCESS_DENIED": "not allowed to connect",
    "TLSV1_ALERT_DECRYPT_ERROR": "not the one that belongs to the key",
    "TLSV1_ALERT_UNKNOWN_CA": "issued by an authority that the peer does not know",
}

#: OpenSSL's reason → what it means and what to change.
_EXPLANATIONS: Final = {
    **dict.fromkeys(
        _NOT_TLS,
        "the peer does not speak TLS; is it at a tcp:// address, and not at a tls:// one?",
    ),
    **{
        reason: f"the peer does not accept the certificate of this side: it is {fault}"
        for reason, fault in _REFUSED_HERE.items()
    },
    **dict.fromkeys(
        (
            "NO_PROTOCOLS_AVAILABLE",
            "TLSV1_ALERT_PROTOCOL_VERSION",
            "UNSUPPORTED_PROTOCOL",
            "VERSION_TOO_LOW",
        ),
        "both sides have no TLS version in common ('distributed.comm.tls.min-version' and "
        "'.max-version')",
    ),
    **dict.fromkeys(
        ("NO_CIPHERS_AVAILABLE", "NO_SHARED_CIPHER"),
        "both sides have no TLS cipher in common ('distributed.comm.tls.ciphers')",
    ),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer found nothing to agree on: both sides have no TLS "
    "cipher in common ('distributed.comm.tls.ciphers'), or it demands a certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer demands a certificate, and this side has none",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer sent no certificate",
}

_UNKNOWN_AUTHORITY: Final = "this side does not know its authority ('distributed.comm.tls.ca-file')"
_OTHER_NAME: Final = "the connection argument server_hostname says which name to expect"

#: Error code of OpenSSL's verification (x509_vfy.h) → advice.
_ADVICE: Final = {
    9: "compare the clocks of both hosts",
    10: "it has to be renewed",
    **dict.fromkeys((18, 19, 20, 21), _UNKNOWN_AUTHORITY),
    **dict.fromkeys((62, 64), _OTHER_NAME),
}


class TLSStream(TLSMessageStream):
    """A TLS stream over a connected socket."""

    async def do_handshake(self) -> None:
        """Wait until the TLS handshake has completed.

        Raises
        ------
        StreamClosedError
            If it fails; ``real_error`` is the reason.
        """
        # For a stream that is already closed, Tornado's future would never be done.
        if not self.closed():
            if self._state is None:
                # The peer had disconnected when the stream was made, so Tornado began nothing.
                self._add_io_state(self.io_loop.WRITE)
            # The error is also that of the stream, which is closed by it.
            with contextlib.suppress(OSError, AttributeError):
                # Tornado's futures must not be cancelled.
                await asyncio.shield(self.wait_for_handshake())
        # It may also have been closed after that future was done.
        if self.closed():
            raise StreamClosedError(self.error)

    # A private method of Tornado's that logs errors.  Here the stream is closed with the error,
    # and the code that knows both addresses logs it.
    def _do_ssl_handshake(self) -> None:
        self._handshake_reading = self._handshake_writing = False
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._handshake_reading = True
        except ssl.SSLWantWriteError:
            self._handshake_writing = True
        except (OSError, AttributeError) as exc:
            # AttributeError: the connection was reset before the TLS session object existed.
            if self.socket.server_side and getattr(exc, "reason", None) in _NOT_TLS:
                self._send_alert()
            self.close(exc_info=exc)
        else:
            super()._do_ssl_handshake()

    # A private method of Tornado's: errors for which it returns true are raised, but not logged.
    def _is_connreset(self, exc: BaseException) -> bool:
        return isinstance(exc, ssl.SSLError) or super()._is_connreset(exc)

    # Tornado's hook to write bytes to the socket.
    def write_to_fd(self, data: memoryview) -> int:
        try:
            return super().write_to_fd(data)
        except OSError as exc:
            # With TLS 1.3, a client may write before it has read the alert that refuses its
            # certificate.
            raise self._received_alert() or exc from None

    def _received_alert(self) -> ssl.SSLError | None:
        """Return the alert that the peer sent before it closed the connection, if it sent one."""
        try:
            self.socket.recv(1)
        except ssl.SSLError as exc:
            return exc if is_final(exc) else None
        except OSError:
            return None
        return None

    def _send_alert(self) -> None:
        """Tell a peer that does not speak TLS that this side does."""
        # The methods of the SSLSocket would encrypt, so those of its base class are called.
        try:
            socket.socket.send(self.socket, _ALERT)
            # If data stayed unread, the kernel would reset the connection and discard the alert.
            socket.socket.recv(self.socket, 2**16)
        except OSError:
            # The peer has disconnected.
            return


def open_tls_stream(
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
) -> TLSStream:
    """Return a stream that starts TLS over a connected socket, which it takes over.

    Raises
    ------
    OSError
        If the peer has already disconnected; the socket is closed.
    """
    try:
        # Raise if the peer has already disconnected: `wrap_socket` may not.
        sock.getpeername()
        wrapped = context.wrap_socket(
            sock,
            server_side=server_side,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
        )
        return TLSStream(wrapped, ssl_options=context, max_buffer_size=sys.maxsize)
    except OSError as exc:
        _close_half_made(exc)
        raise
    finally:
        # `wrap_socket` has detached the file descriptor, and this does nothing, unless it failed
        # before that.
        sock.close()


def _close_half_made(exc: OSError) -> None:
    """Close the socket that a failed `wrap_socket` leaves to the garbage collector.

    It fails after it has taken the file descriptor if the peer disconnects at that moment.  Only
    the frames of the error refer to its new socket.
    """
    traceback = exc.__traceback__
    while traceback is not None:
        made = traceback.tb_frame.f_locals.get("self")
        if isinstance(made, ssl.SSLSocket):
            made.close()
        traceback = traceback.tb_next


def tls_info(stream: IOStream) -> dict[str, Any]:
    """Return the peer's certificate and the cipher of a TLS stream; empty once it is closed."""
    if stream.closed():
        return {}
    sock: Any = stream.socket
    return {"peercert": sock.getpeercert(), "cipher": sock.cipher()}


def channel_binding(stream: IOStream) -> bytes | None:
    """Return the client's "Finished" message of the TLS handshake (``tls-unique``, RFC 5929).

    Returns None once *stream* is closed.
    """
    if stream.closed():
        return None
    sock: Any = stream.socket
    binding: bytes | None = sock.get_channel_binding("tls-unique")
    return binding


def speaks_tls(data: bytes) -> bool:
    """Return whether the first bytes from a peer are a TLS ClientHello or a fatal TLS alert.

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
    """Return whether *exc* is a TLS error that trying again cannot change."""
    if not isinstance(exc, ssl.SSLError):
        return False
    if isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
        return False
    # With OpenSSL 3.6, the end of the connection inside a record has this reason, but is not an
    # SSLEOFError.
    return getattr(exc, "reason", None) != "UNEXPECTED_EOF_WHILE_READING"


def explain(exc: ssl.SSLError, *, established: bool = False) -> str:
    """Return what went wrong and what to change, followed by OpenSSL's reason.

    Parameters
    ----------
    exc : ssl.SSLError
    established : bool
        Whether the TLS handshake had completed, so that the peer does speak TLS.
    """
    what = _explanation(exc, established)
    return f"{what} (OpenSSL: {exc.reason or exc.strerror or exc})"


def _explanation(exc: ssl.SSLError, established: bool) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        message = exc.verify_message.rstrip(".")
        advice = _ADVICE.get(exc.verify_code, "")
        return f"the peer's certificate is not accepted: {message}{advice and '; '}{advice}"
    if not is_final(exc):
        return "the peer closed during the TLS handshake; does it speak TLS?"
    if established and exc.reason in _NOT_FROM_PEER:
        return (
            "TLS failed after the handshake: the received bytes are not those that the peer "
            "encrypted; a program between both sides has changed or added bytes, or the peer has "
            "written to the socket without TLS"
        )
    return _EXPLANATIONS.get(exc.reason or "", "TLS failed")


def expect_tls_context(connection_args: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the ``ssl_context`` of the arguments of ``connect`` or ``listen``.

    Raises
    ------
    TypeError
        If they have none.
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
        An address of a transport that does not encrypt.
    connection_args
        The arguments.

    Raises
    ------
    RuntimeError
        If ``require_encryption`` is true in them.
    TypeError
        If they contain an ``ssl_context``, without ``require_encryption=False``.
    """
    required = connection_args.get("require_encryption")
    if required is None and connection_args.get("ssl_context") is not None:
        raise TypeError(
            f"{address!r} is of a transport that does not encrypt: it would ignore the "
            "ssl_context.  Use a tls:// or wss:// address, or allow unencrypted connections with "
            "require_encryption=False"
        )
    if required:
        raise RuntimeError(
            f"encryption required by Dask configuration, refusing communication from/to {address!r}"
        )
