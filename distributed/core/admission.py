"""Limits on the connections of a server: in all, from one host, without a request, and refused."""

from __future__ import annotations

import asyncio
from collections import Counter

from distributed.base import config
from distributed.base.logs import get_logger
from distributed.comm import Comm, get_address_host

logger = get_logger("distributed.core")

#: Seconds after a refusal was logged in which further ones are only counted.
_SILENCE = 10.0


class Admission:
    """A count of the comms of a server, by which it refuses further ones.

    Parameters
    ----------
    limit
        Maximum number of comms; None for no maximum.
    limit_per_host
        Maximum number of comms from one host; None for no maximum.
    idle
        Seconds without a request before a comm is closed; None for no maximum.
    """

    # `_counts[host]` is the number of comms in `_hosts` with that host, and is above 0.
    def __init__(
        self, limit: int | None = None, limit_per_host: int | None = None, idle: float | None = None
    ) -> None:
        self.limit = limit
        self.limit_per_host = limit_per_host
        self.idle = idle
        # Admitted comm → host of the peer, or None if there is no limit per host.
        self._hosts: dict[Comm, str | None] = {}
        self._counts: Counter[str] = Counter()
        #: Reason → number of comms that were refused.
        self.refused = {"max-connections": 0, "max-connections-per-host": 0, "closing": 0}

    @classmethod
    def configured(cls) -> Admission:
        """Return an `Admission` with the limits of the configuration."""
        return cls(
            config.get_int("distributed.comm.max-connections"),
            config.get_int("distributed.comm.max-connections-per-host"),
            config.get_timedelta("distributed.comm.timeouts.idle"),
        )

    def enter(self, comm: Comm) -> str | None:
        """Admit *comm* and return None, or return the reason for refusing it."""
        if self.limit is not None and len(self._hosts) >= self.limit:
            self.refused["max-connections"] += 1
            return (
                f"it has {len(self._hosts)} connections, as many as "
                "'distributed.comm.max-connections' allows"
            )
        if self.limit_per_host is None:
            self._hosts[comm] = None
            return None
        host = get_address_host(comm.peer_address)
        count = self._counts[host]
        if count >= self.limit_per_host:
            self.refused["max-connections-per-host"] += 1
            return (
                f"it has {count} connections from {host}, as many as "
                "'distributed.comm.max-connections-per-host' allows"
            )
        self._hosts[comm] = host
        self._counts[host] = count + 1
        return None

    def leave(self, comm: Comm) -> None:
        """Stop counting *comm*, if it was admitted."""
        host = self._hosts.pop(comm, None)
        if host is not None:
            self._counts[host] -= 1
            if not self._counts[host]:
                del self._counts[host]


class Refusals:
    """The refused comms that wait for a request, so that its answer tells the reason.

    A comm that sends no request is aborted after a while, or if there are too many: the oldest
    first, since an honest peer sends its request soon.

    Parameters
    ----------
    limit
        Maximum number of comms that wait; None for no maximum.
    timeout
        Maximum number of seconds for which a comm waits; None for no maximum.
    """

    # A comm is in `_waiting` between `enter` and `leave`, unless it was aborted.
    def __init__(self, limit: int | None = None, timeout: float | None = None) -> None:
        self.limit = limit
        self.timeout = timeout
        # Oldest first; a dict serves as ordered set.
        self._waiting: dict[Comm, None] = {}
        # Time at which a refusal was last logged, and the number of refusals since then.
        self._logged = float("-inf")
        self._unlogged = 0

    @classmethod
    def configured(cls) -> Refusals:
        """Return `Refusals` with the limits of the configuration."""
        return cls(
            config.get_int("distributed.comm.max-refusals"),
            config.get_timedelta("distributed.comm.timeouts.refusal"),
        )

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, comm: Comm) -> None:
        """Let *comm* wait, and abort the one that has waited for the longest time if needed."""
        self._waiting[comm] = None
        if self.limit is not None and len(self._waiting) > self.limit:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.abort()

    def leave(self, comm: Comm) -> None:
        """Note that *comm* does not wait any more."""
        self._waiting.pop(comm, None)

    def log(self, message: str, peer: str) -> None:
        """Log a refusal, but not each of many."""
        now = asyncio.get_running_loop().time()
        if now - self._logged < _SILENCE:
            self._unlogged += 1
            return
        more = f", and {self._unlogged} others since the last report" if self._unlogged else ""
        self._logged, self._unlogged = now, 0
        logger.warning("%s (from %s%s)", message, peer, more, extra={"peer": peer})
