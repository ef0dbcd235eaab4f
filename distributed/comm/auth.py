"""Two sides show each other that they know a token, without saying it.

Challenge and response, in both directions, as data: this module makes and checks
what goes into the handshake, :mod:`distributed.comm.core` sends it.

Each side sends a random nonce.  Then the client, and only if that was right the
server, sends HMAC-SHA256 under the token over its role, both nonces and, on TLS,
what is unique to the channel::

    client                                            server
      | -- hello, nonce ----------------------------->  |
      | <---------------------------- hello, nonce  --  |
      | -- HMAC(token, "client", nonces, channel) --->  |  checks, or refuses
      | <-- HMAC(token, "server", nonces, channel) ---  |
      checks, or leaves

The role keeps either side from being answered with its own proof, the nonces keep
an old proof from being right again, and the channel keeps somebody in the middle
from passing proofs on.  Whoever connects without the token learns nothing to try
guesses on, for the server proves itself last.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from distributed.comm.settings import settings

#: Bytes of a nonce.
NONCE_SIZE = 32
#: Which challenge and response this is, in case there will be another one.
SCHEME = "hmac-sha256"

Role = Literal["client", "server"]


class AuthenticationError(ValueError):
    """The other side does not know the token, or asks for one where there is none."""


def configured_token() -> str | None:
    """Return the token of the configuration, or None.

    It is the value of ``distributed.comm.auth.token``, or what is in the file
    that ``distributed.comm.auth.token-file`` names, without white space around.

    Raises
    ------
    ValueError
        If there is a token of another kind than text, or an empty one.
    OSError
        If the file cannot be read.
    """
    key = "distributed.comm.auth.token"
    configured = settings()
    token = configured.token
    if token is None:
        key = "distributed.comm.auth.token-file"
        path = configured.token_file
        if path is None:
            return None
        token = Path(path).expanduser().read_text().strip()
    if not isinstance(token, str) or not token:
        raise ValueError(f"the token of {key!r} must be text, and not empty")
    return token


def choose_token(given: str | bytes | None) -> str | bytes | None:
    """Return the *given* token, or the one of the configuration, or None.

    Raises
    ------
    TypeError, ValueError
        If it is neither text nor bytes, or empty.
    """
    if given is None:
        return configured_token()
    if not isinstance(given, str | bytes):
        raise TypeError(f"a token is text or bytes, not {type(given).__name__}")
    if not given:
        raise ValueError("an empty token would let anybody in")
    return given


class Authentication:
    """One side of one challenge and response.

    Parameters
    ----------
    token
        What both sides know.
    role
        Which side this is.
    channel
        Bytes that both ends of the connection have in common with nobody else,
        or None where the transport has none.

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

    # State.  `_peer_nonce` is set once the other side's challenge has come.
    def __init__(self, token: str | bytes, role: Role, channel: bytes | None = None) -> None:
        self.role: Role = role
        self._token = token.encode() if isinstance(token, str) else token
        self._channel = channel
        self._nonce = secrets.token_bytes(NONCE_SIZE)
        self._peer_nonce: bytes | None = None

    def __repr__(self) -> str:
        return f"<Authentication as {self.role}>"

    def challenge(self) -> dict[str, Any]:
        """Return what this side says first."""
        return {"scheme": SCHEME, "nonce": self._nonce}

    def receive_challenge(self, challenge: Any) -> None:
        """Take what the other side says first.

        Raises
        ------
        AuthenticationError
            If it asks for no token, or in a way that is not understood.
        """
        if challenge is None:
            raise AuthenticationError(
                "it knows no token, and one is required here ('distributed.comm.auth.token')"
            )
        nonce = challenge.get("nonce") if isinstance(challenge, dict) else None
        if not isinstance(nonce, bytes) or len(nonce) != NONCE_SIZE:
            raise AuthenticationError("its challenge is not understood")
        if challenge.get("scheme") != SCHEME:
            raise AuthenticationError(f"it authenticates other than by {SCHEME}")
        self._peer_nonce = nonce

    def proof(self) -> bytes:
        """Return the proof that this side knows the token."""
        return self._digest(self.role)

    def check(self, proof: Any) -> None:
        """Check the other side's proof.

        Raises
        ------
        AuthenticationError
            If the other side does not know the token.
        """
        other: Role = "server" if self.role == "client" else "client"
        if not isinstance(proof, bytes) or not hmac.compare_digest(proof, self._digest(other)):
            raise AuthenticationError("the token is wrong")

    def _digest(self, role: Role) -> bytes:
        assert self._peer_nonce is not None, "no challenge was received"
        nonces = [self._nonce, self._peer_nonce]
        if self.role == "server":
            nonces.reverse()
        # Every part but the last has a fixed size, so that no two messages are alike.
        message = role.encode() + b"".join(nonces) + (self._channel or b"")
        return hmac.digest(self._token, message, "sha256")


class Penalties:
    """How long hosts wait whose peers gave wrong proofs: twice as long each time.

    Those who know the token wait as well where they come from the same host, or through the same
    proxy.  Were it for long, anybody there could lock them out.

    Parameters
    ----------
    first, longest
        The delay after one failure, and after any number, in seconds.
    forgotten_after
        Time without a failure after which a host starts anew, in seconds.
    max_hosts
        How many hosts are remembered; the one that failed longest ago is
        forgotten first.

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

    # State.  `_failures`: host → (number of failures, time of the last), in the
    # order of these times.
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
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def delay(self, host: str) -> float:
        """Return how long a peer from *host* has to wait for its answer, in seconds."""
        count, last = self._failures.get(host, (0, 0.0))
        if not count or self._clock() - last > self._forgotten_after:
            return 0.0
        return float(min(self._longest, self._first * 2 ** min(count - 1, 30)))

    def failed(self, host: str) -> None:
        """Take note that a peer from *host* gave a wrong proof, or none."""
        count, last = self._failures.pop(host, (0, 0.0))
        now = self._clock()
        if now - last > self._forgotten_after:
            count = 0
        self._failures[host] = (count + 1, now)
        if len(self._failures) > self._max_hosts:
            self._failures.popitem(last=False)
