"""What comms and listeners count."""

from __future__ import annotations

from time import monotonic
from typing import Any

from distributed.base.traffic import UNCOUNTED, Traffic
from distributed.comm.auth import AuthenticationError

__all__ = ["UNCOUNTED", "CountedComm", "CountingListener", "HandshakeCounts"]


class CountedComm:
    """A comm whose messages are counted once it has an owner.

    Attributes
    ----------
    traffic
        The counts of the owner; those of the handshake are in none.
    owned_since
        The monotonic time of `count_in`, in seconds; None before it.
    """

    traffic: Traffic
    owned_since: float | None = None

    def count_in(self, traffic: Traffic) -> None:
        """Count messages and bytes in *traffic* from now on."""
        self.traffic = traffic
        self.owned_since = monotonic()


class HandshakeCounts:
    """How the handshakes of a listener have ended.

    Attributes
    ----------
    accepted
        Number of connections that have completed the handshake.
    timeout, authentication, other
        Numbers of those that have not, by reason.
    """

    __slots__ = ("accepted", "authentication", "other", "timeout")

    def __init__(self) -> None:
        self.accepted = self.timeout = self.authentication = self.other = 0

    def count_failure(self, exc: BaseException, late: bool) -> None:
        """Count a handshake that failed with *exc*; *late* if its time was used up."""
        if late:
            self.timeout += 1
        elif isinstance(exc.__cause__, AuthenticationError):
            self.authentication += 1
        else:
            self.other += 1


class CountingListener:
    """A listener that counts handshakes."""

    handshakes: HandshakeCounts
    _handshaking: dict[Any, None]

    @property
    def unfinished_handshakes(self) -> int:
        """The number of connections whose handshake is in progress."""
        return len(self._handshaking)
