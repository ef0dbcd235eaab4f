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
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from distributed.comm import Comm, CommClosedError, connect
from distributed.core.calls import (
    RemoteCalls,
    addr_from_args,
)
from distributed.core.host import replaceable
from distributed.core.status import Status
from distributed.core.tasks import NoOpAwaitable

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
    def __init__(self, limit: float) -> None:
        if not isinstance(limit, int | float) or not limit >= 1:
            raise ValueError(f"the limit of a pool must be a number from 1, got {limit!r}")
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
    def _free(self) -> float:
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
    def _value(self) -> float:
        """The number of free places."""
        return self._pool._free

    def locked(self) -> bool:
        """Return whether no place is free."""
        return self._pool._free <= 0


class PooledRPCCall(RemoteCalls):
    """Calls one server over the connections of a pool.

    Made by calling a :class:`ConnectionPool`; otherwise used like :class:`rpc`.
    """

    _comm_name = "ConnectionPool"

    def __init__(
        self,
        addr: str,
        pool: ConnectionPool,
        serializers: Sequence[str] | None = None,
        deserializers: Sequence[str] | None = None,
    ) -> None:
        self.addr = addr
        self.pool = pool
        self.serializers = serializers
        self.deserializers = serializers if deserializers is None else deserializers

    @property
    def address(self) -> str:
        """The server's address."""
        return self.addr

    def _take(self) -> Comm | None:
        pool = self.pool
        return pool._take_idle(self.addr) if pool.status is Status.running else None

    async def _acquire(self) -> Comm:
        return await self.pool.connect(self.addr)

    def _release(self, comm: Comm) -> None:
        comm.name = "ConnectionPool"
        self.pool.reuse(self.addr, comm)

    def close_rpc(self) -> NoOpAwaitable:
        """Do nothing: the connections are the pool's."""
        return NoOpAwaitable()

    async def __aenter__(self) -> PooledRPCCall:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def __repr__(self) -> str:
        return f"<pooled rpc to {self.addr!r}>"


class ConnectionPool(PoolState):
    """Connections to many servers, shared out among calls and bounded in number.

    Parameters
    ----------
    limit
        How many connections may be open, or being opened, at a time.  A call
        that needs one more takes the place of an idle one, or waits.
    deserialize, timeout, connection_args, serializers, deserializers
        As for :class:`rpc`.
    allow_offload
        Whether expensive (de)serialization may run in a thread.
    server
        The server whose pool this is.

    Attributes
    ----------
    available, occupied : dict
        The open connections that are idle, and those in use: address → set of comms.
    status : Status
        init, running or closed.

    Examples
    --------
    >>> async def add(*addresses):
    ...     async with ConnectionPool(limit=100) as pool:
    ...         return await asyncio.gather(*(pool(addr).add(x=1, y=2) for addr in addresses))
    """

    _instances: ClassVar[weakref.WeakSet[ConnectionPool]] = weakref.WeakSet()

    # State, besides that of PoolState: `_connecting` are the tasks that wait for a
    # place or connect, by address, each with the reason for which it was called
    # off, if it was.

    def __init__(
        self,
        limit: float = 512,
        deserialize: bool = True,
        serializers: Sequence[str] | None = None,
        allow_offload: bool = True,
        deserializers: Sequence[str] | None = None,
        connection_args: Mapping[str, Any] | None = None,
        timeout: float | str | None = None,
        server: object = None,
    ) -> None:
        super().__init__(limit)
        self.deserialize = deserialize
        self.serializers = serializers
        self.allow_offload = allow_offload
        self.deserializers = serializers if deserializers is None else deserializers
        self.connection_args = dict(connection_args or {})
        self.timeout = timeout
        self.server = weakref.ref(server) if server is not None else None
        self.status = Status.init
        self._connecting: defaultdict[str, dict[asyncio.Task[Comm], str | None]]
        self._connecting = defaultdict(dict)
        self._connecting_close_timeout = 5.0
        self._created: weakref.WeakSet[Comm] = weakref.WeakSet()
        self._instances.add(self)

    def __repr__(self) -> str:
        return (
            f"<ConnectionPool: open={self.open}, active={self.active}, "
            f"connecting={self._connecting_count}>"
        )

    def __call__(
        self,
        addr: str | tuple[str, int | None] | None = None,
        ip: str | None = None,
        port: int | None = None,
    ) -> PooledRPCCall:
        """Return an object whose attributes are the operations of a server.

        Parameters
        ----------
        addr
            The server's address, or ``(host, port)``.
        ip, port
            The same in two.
        """
        return PooledRPCCall(
            addr_from_args(addr, ip, port),
            self,
            serializers=self.serializers,
            deserializers=self.deserializers,
        )

    def __await__(self) -> Generator[Any, None, Self]:
        return self.start().__await__()

    async def start(self) -> Self:
        """Make the pool ready to be used."""
        if self.status is Status.init:
            self.status = Status.running
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def connect(self, addr: str, timeout: float | str | None = None) -> Comm:
        """Return a connection to *addr*, idle or new; give it back with :meth:`reuse`.

        Parameters
        ----------
        addr
            The address.
        timeout
            Time for making a connection; waiting for a place does not count.

        Raises
        ------
        RuntimeError
            If the pool is not running.
        CommClosedError
            If the pool is closed or the address removed meanwhile.
        OSError
            If no connection can be made.
        """
        if self.status is not Status.running:
            state = "closed"
            if self.status is Status.init:
                state = "closed as long as it, or its server, is not started with 'await'"
            raise RuntimeError(f"ConnectionPool is {state}; cannot connect to {addr}")
        comm = self._take_idle(addr)
        if comm is not None:
            return comm
        me = asyncio.current_task()
        cancelled_before = me.cancelling() if me is not None else 0
        task = asyncio.create_task(self._connect(addr, timeout), name=f"connect to {addr}")
        self._connecting[addr][task] = None
        try:
            return await task
        except asyncio.CancelledError:
            reason = self._connecting[addr][task]
            cancelled = me is not None and me.cancelling() > cancelled_before
            if reason is not None and not cancelled:
                raise CommClosedError(f"{reason} (connecting to {addr})") from None
            if task.done() and not task.cancelled() and task.exception() is None:
                # Cancelled after the connection was made, but before it was taken.
                self.reuse(addr, task.result())
            raise
        finally:
            del self._connecting[addr][task]
            if not self._connecting[addr]:
                del self._connecting[addr]

    async def _connect(self, addr: str, timeout: float | str | None) -> Comm:
        """Wait for an idle connection to *addr* or for a place, then connect."""
        comm = await self._wait_for_place(addr)
        if comm is not None:
            return comm
        try:
            comm = await replaceable("connect", connect)(
                addr,
                self.timeout if timeout is None else timeout,
                deserialize=self.deserialize,
                **self.connection_args,
            )
            task = asyncio.current_task()
            assert task is not None
            reason = self._connecting.get(addr, {}).get(task, "Nobody waits any more.")
            if reason is not None:
                # It was called off, but did not heed that.
                comm.abort()
                raise CommClosedError(f"{reason} (connecting to {addr})")
            comm.name = "ConnectionPool"
            comm.allow_offload = self.allow_offload
            self._created.add(comm)
            self.occupied[addr].add(comm)
        finally:
            self._leave_place()
        return comm

    def remove(self, addr: str, *, reason: str = "Address removed.") -> None:
        """Close all connections to *addr*, also those in use and being made.

        Parameters
        ----------
        addr
            The address.
        reason
            What the calls that are concerned are told.
        """
        comms = self.available.pop(addr, set()) | self.occupied.pop(addr, set())
        for comm in comms:
            comm.abort()
        tasks = self._connecting.get(addr, {})
        for task in tasks:
            if tasks[task] is None and task.cancel():
                tasks[task] = reason
        self._settle()

    async def close(self) -> None:
        """Close the pool and all its connections; calls in progress fail."""
        self.status = Status.closed
        tasks = [task for tasks in self._connecting.values() for task in tasks]
        for addr in {*self._connecting, *self.available, *self.occupied}:
            self.remove(addr, reason="ConnectionPool closing.")
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=self._connecting_close_timeout)
            if pending:
                logger.warning("Pending connections refuse to end: %s", pending)
