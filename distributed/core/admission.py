"""Limits on the connections of a server: in all, from one host, and without a request."""

from __future__ import annotations

from collections import Counter

from distributed.base import config
from distributed.comm import Comm, get_address_host


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
