"""Who has which connection of a pool: all of its state, and none of its I/O.

:class:`PoolState` keeps the books of a :class:`~distributed.core.ConnectionPool`:
connections that are idle, in use, or being made, and the calls that wait for one.
It never makes a connection, and closes only idle ones, to make room.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import defaultdict, deque

from distributed.comm import Comm

logger = logging.getLogger(__name__)


class PoolState:
    """Which connections there are, and which calls wait for one.

    Parameters
    ----------
    limit
        How many connections may be open, or being made, at a time.
    """

    # State.  A connection is either in `available` or in `occupied`, under its
    # address; a set that becomes empty is dropped.  `_connecting_count` places
    # are taken by connections being made; the rest of `limit` is free, which is
    # not kept anywhere.  `_waiting` are calls that need a place, in the order in
    # which they came.  Invariants: open + _connecting_count <= limit; nobody
    # waits while a place is free or a connection idle.  Only `_settle` gives
    # waiting calls what they need; whatever makes room calls it.
    def __init__(self, limit: int) -> None:
        if not isinstance(limit, int) or limit < 1:
            raise ValueError(f"a pool has place for at least one connection, not for {limit!r}")
        self.limit = limit
        self.available: defaultdict[str, set[Comm]] = defaultdict(set)
        self.occupied: defaultdict[str, set[Comm]] = defaultdict(set)
        self.semaphore = Places(self)
        self._waiting: deque[tuple[str, asyncio.Future[Comm | None]]] = deque()
        self._connecting_count = 0

    @property
    def active(self) -> int:
        """The number of connections in use."""
        return sum(map(len, self.occupied.values()))

    @property
    def open(self) -> int:
        """The number of connections in use or idle."""
        return self.active + sum(map(len, self.available.values()))

    @property
    def _n_connecting(self) -> int:
        """The number of connections being made."""
        return self._connecting_count

    @property
    def _pending_count(self) -> int:
        """The number of calls that wait for a place."""
        return len(self._waiting)

    @property
    def _free(self) -> int:
        return self.limit - self.open - self._connecting_count

    def _validate(self) -> None:
        """Raise AssertionError if the state contradicts itself."""
        idle = [comm for comms in self.available.values() for comm in comms]
        used = [comm for comms in self.occupied.values() for comm in comms]
        assert len(set(idle) | set(used)) == len(idle) + len(used)
        assert self._connecting_count >= 0
        assert self._free >= 0, self
        assert not self._waiting or (self._free == 0 and not idle), self

    async def _wait_for_place(self, addr: str) -> Comm | None:
        """Wait for an idle connection to *addr*, or for a place to make one.

        Returns
        -------
        Comm or None
            The connection, in use; or None, and :meth:`_leave_place` is to be
            called once the connection is made or could not be.
        """
        ready: asyncio.Future[Comm | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((addr, ready))
        self._settle()
        try:
            return await ready
        except asyncio.CancelledError:
            if ready.cancelled():
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not ready)
            elif (comm := ready.result()) is not None:
                self.reuse(addr, comm)
            else:
                self._leave_place()
            raise

    def _leave_place(self) -> None:
        """Give up the place of a connection that was being made."""
        self._connecting_count -= 1
        self._settle()

    def _take_idle(self, addr: str) -> Comm | None:
        """Take an open idle connection to *addr* into use, if there is one."""
        idle = self.available.get(addr)
        comm = None
        while idle and comm is None:
            comm = idle.pop()
            if comm.closed():
                comm.abort()
                comm = None
        if idle is not None and not idle:
            del self.available[addr]
        if comm is not None:
            self.occupied[addr].add(comm)
        return comm

    def _settle(self) -> None:
        """Give waiting calls the connections and places there are."""
        while self._waiting:
            addr, ready = self._waiting[0]
            if not ready.done():
                comm = self._take_idle(addr)
                if comm is None:
                    if self._free <= 0 and not self._evict():
                        return
                    self._connecting_count += 1
                ready.set_result(comm)
            self._waiting.popleft()

    def _evict(self) -> bool:
        """Close one idle connection to make room; return whether there was one."""
        # An onlooker who asks `available` for an address leaves an empty set there.
        addr = next((addr for addr, idle in self.available.items() if idle), None)
        if addr is None:
            return False
        comm = self.available[addr].pop()
        if not self.available[addr]:
            del self.available[addr]
        comm.abort()
        return True

    def reuse(self, addr: str, comm: Comm) -> None:
        """Take back a connection that :meth:`connect` gave, open or closed."""
        used = self.occupied.get(addr)
        if used is None or comm not in used:
            # Its address was removed, or the pool closed.
            return
        used.discard(comm)
        if not used:
            del self.occupied[addr]
        if not comm.closed():
            self.available[addr].add(comm)
        if self._waiting:
            self._settle()

    def collect(self) -> None:
        """Close all idle connections."""
        logger.debug("Closing the idle connections of %r", self)
        idle = [comm for comms in self.available.values() for comm in comms]
        self.available.clear()
        for comm in idle:
            comm.abort()
        self._settle()


class Places:
    """The places of a pool in the form of a semaphore, for those who look on."""

    def __init__(self, pool: PoolState):
        self._pool = weakref.proxy(pool)

    @property
    def _value(self) -> int:
        """The number of free places."""
        return self._pool._free

    def locked(self) -> bool:
        """Return whether no place is free."""
        return self._pool._free <= 0
