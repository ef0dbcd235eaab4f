"""How many connections a server keeps, in all and from one host, and for how long.

:class:`Admission` counts and says no; what a refused peer is told, and by whom,
is :mod:`distributed.core.requests`'s business.
"""

from __future__ import annotations

from collections import Counter

from distributed.base import config
from distributed.comm import Comm, get_address_host


class Admission:
    """Counts the comms of a server.

    Parameters
    ----------
    limit
        How many comms there may be; None for any number.
    limit_per_host
        How many there may be from one host.
    idle
        After how many seconds without a request a comm is closed; None for never.
    """

    # State.  `_hosts`: each admitted comm → the host it came from, or None where
    # that does not matter; `_counts`: host → how many of them came from there.
    def __init__(
        self, limit: int | None = None, limit_per_host: int | None = None, idle: float | None = None
    ) -> None:
        self.limit = limit
        self.limit_per_host = limit_per_host
        self.idle = idle
        self._hosts: dict[Comm, str | None] = {}
        self._counts: Counter[str] = Counter()

    @classmethod
    def configured(cls) -> Admission:
        """Return one with the limits of the configuration."""
        return cls(
            config.get_int("distributed.comm.max-connections"),
            config.get_int("distributed.comm.max-connections-per-host"),
            config.get_timedelta("distributed.comm.timeouts.idle"),
        )

    def enter(self, comm: Comm) -> str | None:
        """Admit *comm* and return None, or return why not."""
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
        """Forget *comm*."""
        host = self._hosts.pop(comm, None)
        if host is not None:
            self._counts[host] -= 1
            if not self._counts[host]:
                del self._counts[host]
