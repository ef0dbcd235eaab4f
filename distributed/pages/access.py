"""Decide which HTTP requests get the pages of a server.

Operation names, errors and the addresses of peers are not for everyone.  There are three cases:

* The server has a token.  A program sends it as ``Authorization: Bearer …``.  A browser sends it
  once, in a form or as ``?token=…``, and gets a cookie.  The cookie is a digest of the token: it
  stays valid when the server restarts, and the token cannot be computed from it.
* The server's TLS context requires certificates.  TLS has refused all other clients already.
* Neither.  Then only clients on this host get the pages, unless the server is told otherwise.

In the last case a page of another site may try to use the user's browser.  It can make its own
name resolve to 127.0.0.1 ("DNS rebinding"); the ``Host`` header then has that name, and is
refused.  In every case requests that a page of another site makes are refused.

This module does no I/O.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import urlsplit

from tornado.httputil import HTTPHeaders

from distributed.base.text import shown

__all__ = ["Access", "Refusal", "host_of_header", "is_loopback"]

#: What the cookie of a browser is a digest of, under the token.
_COOKIE_MESSAGE = b"cookie of distributed.pages, version 1"


class Refusal(NamedTuple):
    """The reason why a request is refused."""

    status: int
    reason: str
    #: Whether the client gave a wrong token, rather than none.
    wrong_token: bool = False


def is_loopback(host: str) -> bool:
    """Return whether *host*, a name or an IP address, is reached from this host only.

    Examples
    --------
    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "", "10.0.0.1")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def host_of_header(value: str) -> str | None:
    """Return the host of a ``Host`` header, in lower case; None if it is malformed.

    Examples
    --------
    >>> [host_of_header(value) for value in ("LocalHost:8787", "[::1]:8787", "a b", "")]
    ['localhost', '::1', None, None]
    """
    try:
        parts = urlsplit(f"//{value}")
        _ = parts.port
    except ValueError:
        return None
    if parts.netloc != value or "@" in value or not parts.hostname or " " in value:
        return None
    return parts.hostname


class Access:
    """The rules for the requests to one server.

    Parameters
    ----------
    token
        The token that clients must know; None if there is none.
    encrypted
        Whether the port uses TLS.
    allowed_hosts
        Names by which browsers reach the server, besides IP addresses, ``localhost`` and the name
        of this host; ``"*"`` for any name.

    Examples
    --------
    >>> from tornado.httputil import HTTPHeaders
    >>> access = Access("s3cr3t-and-long-enough")
    >>> access.check("GET", HTTPHeaders({"Host": "127.0.0.1", "Authorization": "Bearer wrong"}))
    Refusal(status=401, reason='the token is wrong', wrong_token=True)
    """

    def __init__(
        self,
        token: str | bytes | None = None,
        *,
        encrypted: bool = False,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        self._token = token.encode() if isinstance(token, str) else token
        self._encrypted = encrypted
        self._allowed_hosts = {"localhost", socket.gethostname().lower()} | {
            host.lower() for host in allowed_hosts
        }
        #: The value of the cookie of a browser that has sent the token; None without a token.
        self.cookie: str | None = None
        if self._token is not None:
            self.cookie = hmac.new(self._token, _COOKIE_MESSAGE, "sha256").hexdigest()

    @property
    def needs_token(self) -> bool:
        """Whether clients have to know a token."""
        return self._token is not None

    def knows_token(self, token: str | bytes) -> bool:
        """Return whether *token* is the right one, in a time that does not depend on it."""
        if self._token is None:
            return False
        given = token.encode(errors="surrogateescape") if isinstance(token, str) else token
        # Digests have one length, and compare_digest() would reveal that of the token.
        return hmac.compare_digest(
            hmac.digest(self._token, given, "sha256"),
            hmac.digest(self._token, self._token, "sha256"),
        )

    def check_origin(self, method: str, headers: HTTPHeaders) -> Refusal | None:
        """Return why the page that makes a request may not make it, or None."""
        if not self.needs_token and not self._encrypted:
            refusal = self._check_host(headers.get("Host", ""))
            if refusal is not None:
                return refusal
        site = headers.get("Sec-Fetch-Site")
        is_foreign = site in ("cross-site", "same-site") and not (
            # A link on another site may lead to these pages.
            method == "GET" and headers.get("Sec-Fetch-Mode") == "navigate"
        )
        origin = headers.get("Origin")
        # A proxy may have changed the scheme, and "null" stands for an origin that is kept secret.
        if origin is not None and urlsplit(origin).netloc != headers.get("Host", ""):
            is_foreign = True
        if is_foreign:
            return Refusal(403, "a page of another site made this request")
        return None

    def check(self, method: str, headers: HTTPHeaders, cookie: str | None = None) -> Refusal | None:
        """Return why a request is refused, or None.

        Parameters
        ----------
        method, headers
            Those of the request.
        cookie
            The value of the cookie that the client sent, or None.
        """
        refusal = self.check_origin(method, headers)
        if refusal is not None or self.cookie is None:
            return refusal
        scheme, _, credentials = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self.knows_token(credentials.strip()):
                return None
            return Refusal(401, "the token is wrong", wrong_token=True)
        if cookie is not None:
            if hmac.compare_digest(cookie.encode(), self.cookie.encode()):
                return None
            return Refusal(401, "the cookie is not valid", wrong_token=True)
        return Refusal(401, "this server requires its token: Authorization: Bearer …")

    def _check_host(self, header: str) -> Refusal | None:
        host = host_of_header(header)
        if host is None:
            return Refusal(400, "the Host header is missing or malformed")
        try:
            # The page of an IP address is that of this server: no name was resolved.
            ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            pass
        else:
            return None
        if host in self._allowed_hosts or "*" in self._allowed_hosts:
            return None
        return Refusal(
            421,
            f"this server is not {shown(host, 100)}; if that is a name of it, add it to "
            "allowed_hosts of Pages()",
        )
