"""Challenge and response: two peers prove that they know a token, without sending it.

This module creates and checks the data; :mod:`distributed.comm.handshake` sends it.

Each side sends a random nonce.  Then the client, and the server only if the client's proof was
right, sends HMAC-SHA256 under the token over its role, both nonces and, on TLS, the channel
binding::

    client                                            server
      | -- hello, nonce ----------------------------->  |
      | <---------------------------- hello, nonce  --  |
      | -- HMAC(token, "client", nonces, channel) --->  |  checks, or refuses
      | <-- HMAC(token, "server", nonces, channel) ---  |
      checks, or disconnects

The role keeps a side from accepting its own proof, the nonces prevent replay, and the channel
binding keeps a man in the middle from forwarding the proofs.  The server sends its proof last, so a
client without the token gets nothing to test guesses against.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from distributed.base import config
from distributed.base.arguments import warn_of_guessable
from distributed.comm.settings import check_configuration

#: Size of a nonce, in bytes.
NONCE_SIZE = 32
#: The name of this challenge and response, in case there will be another.
SCHEME = "hmac-sha256"

Role = Literal["client", "server"]


class AuthenticationError(ValueError):
    """The peer does not know the token, or requires one and this side has none."""


def configured_token() -> str | None:
    """Return the token of the configuration, or None.

    It is the value of ``distributed.comm.auth.token``, or the content of the file
    ``distributed.comm.auth.token-file`` without surrounding white space.

    Raises
    ------
    ValueError
        If the token is not text, or is empty.
    OSError
        If the file cannot be read.
    """
    key = "distributed.comm.auth.token"
    # Not the last valid settings: the last valid token may have been none.
    configured = check_configuration()
    token = configured.token
    if token is None:
        key = "distributed.comm.auth.token-file"
        path = configured.token_file
        if path is None:
            return None
        try:
            token = Path(path).expanduser().read_text().strip()
        except OSError as exc:
            where = config.source(key, path)
            what = f"cannot read the token of {key!r} (from {where}): {exc.strerror}"
            raise type(exc)(exc.errno, what, path) from exc
        except UnicodeDecodeError as exc:
            raise ValueError(f"the token of {key!r}, in the file {path!r}, is not text") from exc
    if not token.strip():
        raise ValueError(f"the token of {key!r}, in the file {path!r}, must not be empty")
    warn_of_guessable(token, f" ({key!r})", stacklevel=4)
    return token


def choose_token(given: str | bytes | None) -> str | bytes | None:
    """Return the *given* token, or by default that of the configuration, or None.

    Raises
    ------
    TypeError, ValueError
        If it is neither text nor bytes, or is empty.
    """
    if given is None:
        return configured_token()
    if not isinstance(given, str | bytes):
        raise TypeError(f"a token is text or bytes, not {type(given).__name__}")
    if not given.strip():
        raise ValueError("a token must not be empty: every peer would know it")
    warn_of_guessable(given, stacklevel=3)
    return given


class Authentication:
    """One side of one challenge and response.

    Parameters
    ----------
    token
        The shared secret.
    role
        Which side this is.
    channel
        The channel binding: bytes that only the two ends of this connection know; None if the
        transport has none.

    Examples
    --------
    >>> client, server = Authentication("abc", "client"), Authentication("abc", "server")
    >>> client.receive_challenge(server.challenge())
    >>> server.receive_challenge(client.challenge())
    >>> server.check(client.proof())
    >>> client.check(server.proof())
    >>> client.check(client.proof())
    Traceback (most recent call last):
      ...
    distributed.comm.auth.AuthenticationError: the token is wrong
    """

    def __init__(self, token: str | bytes, role: Role, channel: bytes | None = None) -> None:
        self.role: Role = role
        self._token = token.encode() if isinstance(token, str) else token
        self._channel = channel
        self._nonce = secrets.token_bytes(NONCE_SIZE)
        # None until the peer's challenge was received.
        self._peer_nonce: bytes | None = None

    def __repr__(self) -> str:
        return f"<Authentication as {self.role}>"

    @property
    def hint(self) -> str:
        """What else can have caused the refusal of a right token, for an error; often empty."""
        if self._channel is None:
            return ""
        return " (or a proxy ends TLS between the two sides: a token does not pass such a proxy)"

    def challenge(self) -> dict[str, Any]:
        """Return the challenge of this side, a part of its first message."""
        return {"scheme": SCHEME, "nonce": self._nonce}

    def receive_challenge(self, challenge: Any) -> None:
        """Keep the peer's challenge.

        Raises
        ------
        AuthenticationError
            If there is none, or it is invalid or of another scheme.
        """
        if challenge is None:
            raise AuthenticationError(
                "it has no token, and one is required here ('distributed.comm.auth.token')"
            )
        nonce = challenge.get("nonce") if isinstance(challenge, dict) else None
        if not isinstance(nonce, bytes) or len(nonce) != NONCE_SIZE:
            raise AuthenticationError("its challenge is not valid")
        if challenge.get("scheme") != SCHEME:
            raise AuthenticationError(f"it does not authenticate by {SCHEME}")
        self._peer_nonce = nonce

    def proof(self) -> bytes:
        """Return the proof that this side knows the token."""
        return self._digest(self.role)

    def check(self, proof: Any) -> None:
        """Check the peer's proof.

        Raises
        ------
        AuthenticationError
            If the peer does not know the token.
        """
        other: Role = "server" if self.role == "client" else "client"
        if not isinstance(proof, bytes) or not hmac.compare_digest(proof, self._digest(other)):
            raise AuthenticationError("the token is wrong")

    def _digest(self, role: Role) -> bytes:
        assert self._peer_nonce is not None, "no challenge was received"
        nonces = [self._nonce, self._peer_nonce]
        if self.role == "server":
            nonces.reverse()
        # Every part but the last has a fixed size for its role, so different parts cannot make the
        # same message.
        message = role.encode() + b"".join(nonces) + (self._channel or b"")
        return hmac.digest(self._token, message, "sha256")


class Penalties:
    """Delays for hosts whose peers sent wrong proofs; each failure doubles the delay.

    Honest peers on the same host, or behind the same proxy, have to wait as well.  The maximum is
    short, so that an attacker there cannot lock them out.

    Parameters
    ----------
    first, longest
        Seconds to wait after the first failure, and at most.
    forgotten_after
        Seconds without a failure after which the failures of a host are forgotten.
    max_hosts
        Maximum number of hosts to remember; the host whose last failure is oldest is forgotten
        first.

    Examples
    --------
    >>> penalties = Penalties(first=0.5, longest=4)
    >>> penalties.delay("10.0.0.1")
    0.0
    >>> for _ in range(3):
    ...     penalties.failed("10.0.0.1")
    >>> penalties.delay("10.0.0.1"), penalties.delay("10.0.0.2")
    (2.0, 0.0)
    """

    def __init__(
        self,
        first: float = 0.1,
        longest: float = 1.0,
        forgotten_after: float = 300.0,
        max_hosts: int = 1000,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._first = first
        self._longest = longest
        self._forgotten_after = forgotten_after
        self._max_hosts = max_hosts
        self._clock = clock
        # Host → (number of failures, time of the last one), in the order of these times.
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def delay(self, host: str) -> float:
        """Return the number of seconds that a peer from *host* waits for its answer."""
        count, last = self._failures.get(host, (0, 0.0))
        if not count or self._clock() - last > self._forgotten_after:
            return 0.0
        return float(min(self._longest, self._first * 2 ** min(count - 1, 30)))

    def failed(self, host: str) -> None:
        """Count a wrong or missing proof of a peer from *host*."""
        count, last = self._failures.pop(host, (0, 0.0))
        now = self._clock()
        if now - last > self._forgotten_after:
            count = 0
        self._failures[host] = (count + 1, now)
        if len(self._failures) > self._max_hosts:
            self._failures.popitem(last=False)
