"""A pool of connections to many servers, limited in number and shared by all calls.

:class:`PoolState` holds the state: which connections are idle, in use or being opened, and which
calls wait for one.  It does no I/O, except that it closes idle connections.
:class:`ConnectionPool` opens connections and closes the pool; :class:`PooledRPCCall` calls one
server over them.

Theory of operation: the pool has *limit* places.  Each connection, also one being opened, takes
one.  A call takes an idle connection to its server if there is one.  Otherwise it waits in a queue
for an idle connection or a free place; an idle connection to another server is closed to free a
place.  ``PoolState._settle`` is the only method that serves this queue.

Among several idle connections, a call takes the one that was used last: its buffers, its window and
the caches of the processor are warm.  One that was used long ago is closed first.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, ClassVar, Never, Self

from distributed.base.arguments import (
    check_duration,
    check_flag,
    check_limit,
    unexpected_keyword_of,
)
from distributed.base.logs import get_logger
from distributed.base.text import shown
from distributed.base.traffic import Traffic
from distributed.comm import Comm, CommClosedError
from distributed.comm.arguments import OBJECT_HINT, SecuritySettings, check_connection_args
from distributed.core.calls import addr_from_args
from distributed.core.host import connect
from distributed.core.idle import IdleTimeout
from distributed.core.interceptors import Interceptor, check_interceptors
from distributed.core.operations import RemoteCalls, discard
from distributed.core.status import Status
from distributed.core.tasks import NoOpAwaitable
from distributed.protocol.families import check_families

__all__ = ["ConnectionPool", "PoolState", "PooledRPCCall"]

logger = get_logger("distributed.core")


class PoolState:
    """The connections of a pool, and the calls that wait for one.

    Parameters
    ----------
    limit
        Maximum number of connections that are open or being opened at a time.
    """

    # Invariants:
    # * The sum of `open` and `_connecting_count` is at most `limit`.
    # * A connection is in `available` or in `occupied`, never in both.
    # * `_recent` only tells the order of the connections in `available`, which callers may change:
    #   it may lack some of them, and may contain others.
    # * No call waits while a place is free or a connection is idle: each method that frees a
    #   connection or a place calls _settle().
    def __init__(self, limit: float) -> None:
        check_limit("limit", limit)
        self.limit = limit
        # Address → idle connections.  Callers that look up an address leave an empty set.
        self.available: defaultdict[str, set[Comm]] = defaultdict(set)
        # Address → the same connections, the one used last at the end → when each became idle.
        self._recent: dict[str, dict[Comm, float]] = {}
        # Address → connections in use.
        self.occupied: defaultdict[str, set[Comm]] = defaultdict(set)
        #: The places, for code that expects the semaphore of the original.
        self.semaphore = Places(self)
        # Address and future of each waiting call, in order of arrival.  The result is an idle
        # connection, or None for a place.
        self._waiting: deque[tuple[str, asyncio.Future[Comm | None]]] = deque()
        # Number of places taken by connections being opened.
        self._connecting_count = 0
        #: Number of all calls that had to wait, and the time that those took which have ended.
        self.waits, self.seconds_waited = 0, 0.0
        # None if idle connections stay open.
        self._idle_timeout = IdleTimeout.configured(self._close_idle)

    @property
    def active(self) -> int:
        """Number of connections in use."""
        return sum(map(len, self.occupied.values()))

    @property
    def open(self) -> int:
        """Number of connections in use or idle."""
        return self.active + sum(map(len, self.available.values()))

    @property
    def _n_connecting(self) -> int:
        """Number of connections being opened."""
        return self._connecting_count

    @property
    def _pending_count(self) -> int:
        """Number of calls that wait for a connection or a place."""
        return len(self._waiting)

    @property
    def _free(self) -> float:
        """Number of free places."""
        return self.limit - self.open - self._connecting_count

    def _validate(self) -> None:
        """Raise AssertionError if an invariant does not hold."""
        idle = [comm for comms in self.available.values() for comm in comms]
        used = [comm for comms in self.occupied.values() for comm in comms]
        assert len(set(idle) | set(used)) == len(idle) + len(used)
        assert self._connecting_count >= 0
        assert self._free >= 0, self
        assert not self._waiting or (self._free < 1 and not idle), self

    async def _wait_for_place(self, addr: str) -> Comm | None:
        """Wait for an idle connection to *addr*, or for a place to open one.

        Returns
        -------
        Comm or None
            The connection, in use; or None for a place.  The caller must then call
            :meth:`_leave_place` when the attempt to connect has ended.
        """
        ready: asyncio.Future[Comm | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((addr, ready))
        self._settle()
        if ready.done():
            return ready.result()
        begin = perf_counter()
        self.waits += 1
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
        finally:
            self.seconds_waited += perf_counter() - begin

    def _leave_place(self) -> None:
        """Stop counting one connection as being opened, and serve waiting calls."""
        self._connecting_count -= 1
        self._settle()

    def _take_idle(self, addr: str) -> Comm | None:
        """Take an open idle connection to *addr* into use, or return None if there is none.

        The connection is the one that was used last.
        """
        idle = self.available.get(addr)
        recent = self._recent.get(addr)
        comm = None
        while idle and comm is None:
            if not recent:
                comm = idle.pop()
            else:
                comm = recent.popitem()[0]
                if comm not in idle:
                    comm = None
                    continue
                idle.discard(comm)
            if not comm.is_idle:
                discard(comm)
                comm = None
        if idle is not None and not idle:
            del self.available[addr]
            self._recent.pop(addr, None)
        if comm is not None:
            self.occupied[addr].add(comm)
        return comm

    def _settle(self) -> None:
        """Give idle connections and free places to waiting calls, in order of arrival."""
        while self._waiting:
            addr, ready = self._waiting[0]
            if not ready.done():
                comm = self._take_idle(addr)
                if comm is None:
                    if self._free < 1 and not self._evict():
                        return
                    self._connecting_count += 1
                ready.set_result(comm)
            self._waiting.popleft()

    def _evict(self) -> bool:
        """Close one idle connection to free its place; return False if there is none."""
        addr = next((addr for addr, idle in self.available.items() if idle), None)
        if addr is None:
            return False
        idle = self.available[addr]
        # Of those to this address, the one that was not used for the longest time.
        oldest = next((comm for comm in self._recent.get(addr, ()) if comm in idle), None)
        comm = next(iter(idle)) if oldest is None else oldest
        self._forget(addr, [comm])
        comm.abort()
        return True

    def _forget(self, addr: str, comms: Iterable[Comm]) -> None:
        """Remove idle connections to *addr*, without closing them."""
        idle, recent = self.available[addr], self._recent.get(addr, {})
        for comm in comms:
            idle.discard(comm)
            recent.pop(comm, None)
        if not idle:
            del self.available[addr]
            self._recent.pop(addr, None)

    def _close_idle(self, since: float) -> bool:
        """Close the connections that became idle at *since* or before.

        Returns
        -------
        bool
            Whether others are idle.
        """
        expired = []
        for addr, recent in list(self._recent.items()):
            old = [comm for comm, when in recent.items() if when <= since]
            # A caller may have taken others from `available`.
            expired += [comm for comm in old if comm in self.available[addr]]
            self._forget(addr, old)
        for comm in expired:
            comm.abort()
        if self._waiting:
            self._settle()
        return bool(self._recent)

    def reuse(self, addr: str, comm: Comm) -> None:
        """Return a connection, open or closed, that :meth:`connect` gave out."""
        used = self.occupied.get(addr)
        if used is None or comm not in used:
            # Its address was removed, the pool was closed, or it was returned before.
            return
        used.discard(comm)
        if not used:
            del self.occupied[addr]
        if not comm.closed():
            self.available[addr].add(comm)
            timeout = self._idle_timeout
            now = 0.0 if timeout is None else timeout.begin()
            recent = self._recent.get(addr)
            if recent is None:
                self._recent[addr] = {comm: now}
            else:
                recent[comm] = now
        if self._waiting:
            self._settle()

    def collect(self) -> None:
        """Close all idle connections."""
        logger.debug("Closing the idle connections of %r", self)
        idle = [comm for comms in self.available.values() for comm in comms]
        self.available.clear()
        self._recent.clear()
        for comm in idle:
            comm.abort()
        self._settle()


class Places:
    """Read-only view of the places of a pool, with the interface of a semaphore."""

    def __init__(self, pool: PoolState):
        self._pool = weakref.proxy(pool)

    @property
    def _value(self) -> float:
        """Number of free places."""
        return self._pool._free

    def locked(self) -> bool:
        """Return whether all places are taken."""
        return self._pool._free < 1


class PooledRPCCall(RemoteCalls):
    """Calls of one server over the connections of a pool.

    Calling a :class:`ConnectionPool` returns one.  It is used like :class:`~distributed.core.rpc`.
    """

    _comm_name = "ConnectionPool"
    _call_name = "PooledRPCCall.__getattr__.<locals>.send_recv_from_rpc"

    def __init__(
        self,
        addr: str,
        pool: ConnectionPool,
        serializers: Sequence[str] | None = None,
        deserializers: Sequence[str] | None = None,
    ) -> None:
        # Those of the pool were checked when it was created.
        if serializers is not pool.serializers:
            check_families("serializers", serializers)
        if deserializers is not pool.deserializers:
            check_families("deserializers", deserializers)
        self.addr = addr
        self.pool = pool
        self.serializers = serializers
        self.deserializers = serializers if deserializers is None else deserializers

    @property
    def interceptors(self) -> tuple[Interceptor, ...]:  # type: ignore[override]
        """The interceptors of the pool."""
        return self.pool.interceptors

    @property
    def address(self) -> str:  # type: ignore[override]
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
        """Do nothing, because the connections belong to the pool."""
        return NoOpAwaitable()

    def __repr__(self) -> str:
        return f"<pooled rpc to {self.addr!r}>"


class ConnectionPool(PoolState):
    """Connections to many servers, shared among calls and limited in number.

    Parameters
    ----------
    limit
        Maximum number of connections that are open or being opened at a time.  A call that needs
        one more closes an idle connection, or waits.  Idle connections also close after
        ``distributed.comm.timeouts.pool-idle``, which is unlimited by default.
    deserialize, timeout, connection_args, serializers, deserializers
        As for :class:`~distributed.core.rpc`.
    allow_offload
        Whether expensive (de)serialization may run in a thread.
    server
        The server that owns this pool, if any.
    interceptors
        Functions around each call; see :mod:`distributed.core.interceptors`.
    security
        As for :class:`~distributed.core.rpc`.

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown or invalid.

    Attributes
    ----------
    available, occupied : dict
        The idle connections and the connections in use: address → set of comms.
    status : Status
        init, running or closed.

    Examples
    --------
    >>> async def add(*addresses):
    ...     async with ConnectionPool(limit=100) as pool:
    ...         return await asyncio.gather(*(pool(addr).add(x=1, y=2) for addr in addresses))
    """

    #: All pools that still exist.
    _instances: ClassVar[weakref.WeakSet[ConnectionPool]] = weakref.WeakSet()

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
        *,
        security: SecuritySettings | None = None,
        interceptors: Sequence[Interceptor] = (),
        **unknown: Never,
    ) -> None:
        if unknown:
            raise unexpected_keyword_of(ConnectionPool.__init__, unknown, OBJECT_HINT)
        super().__init__(limit)
        check_duration("timeout", timeout)
        check_families("serializers", serializers)
        check_families("deserializers", deserializers)
        check_flag("deserialize", deserialize)
        self.deserialize = deserialize
        self.serializers = serializers
        self.allow_offload = allow_offload
        self.deserializers = serializers if deserializers is None else deserializers
        self.connection_args = check_connection_args(connection_args, security)
        self.timeout = timeout
        self.server = weakref.ref(server) if server is not None else None
        self.interceptors = check_interceptors(interceptors)
        self.status = Status.init
        # Address → tasks that wait for a place or connect → why remove() cancelled the task; None
        # if it did not.
        self._connecting: defaultdict[str, dict[asyncio.Task[Comm], str | None]]
        self._connecting = defaultdict(dict)
        # Maximum number of seconds that close() waits for these tasks.
        self._connecting_close_timeout = 5.0
        # Every comm made by this pool that still exists; for debugging.
        self._created: weakref.WeakSet[Comm] = weakref.WeakSet()
        #: Transport → the traffic of all comms that used it.
        self.traffic: defaultdict[str, Traffic] = defaultdict(Traffic)
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
            Host and port, instead of *addr*.
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
        """Allow the pool to connect, unless it is closed."""
        if self.status is Status.init:
            self.status = Status.running
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def connect(self, addr: str, timeout: float | str | None = None) -> Comm:
        """Return a connection to *addr*, idle or new; return it to the pool by :meth:`reuse`.

        Parameters
        ----------
        addr
            The address.
        timeout
            Maximum time for connecting, not counting the wait for a place; by default that of the
            pool.

        Raises
        ------
        RuntimeError
            If the pool is not running.
        CommClosedError
            If the pool is closed, or the address removed, while this waits.
        OSError
            If connecting fails or times out.
        """
        if self.status is not Status.running:
            state = "closed"
            if self.status is Status.init:
                state = "closed as long as it, or its server, is not started with 'await'"
            raise RuntimeError(f"ConnectionPool is {state}; cannot connect to {shown(addr)}")
        if timeout is not None:
            check_duration("timeout", timeout)
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
                raise CommClosedError(f"{reason} (connecting to {shown(addr)})") from None
            if task.done() and not task.cancelled() and task.exception() is None:
                # Cancelled after the task made the connection, but before it was returned.
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
            comm = await connect(
                addr,
                self.timeout if timeout is None else timeout,
                deserialize=self.deserialize,
                **self.connection_args,
            )
            task = asyncio.current_task()
            assert task is not None
            reason = self._connecting.get(addr, {}).get(task, "The call was cancelled.")
            if reason is not None:
                # connect() ignored the cancellation.
                comm.abort()
                raise CommClosedError(f"{reason} (connecting to {shown(addr)})")
            comm.name = "ConnectionPool"
            comm.count_in(self.traffic[comm.local_address.partition("://")[0]])
            comm.allow_offload = self.allow_offload
            self._created.add(comm)
            self.occupied[addr].add(comm)
        finally:
            self._leave_place()
        return comm

    def remove(self, addr: str, *, reason: str = "Address removed.") -> None:
        """Close all connections to *addr*: idle, in use, or being opened.

        Parameters
        ----------
        addr
            The address.
        reason
            Error message for the calls that wait for a connection to *addr*.
        """
        comms = self.available.pop(addr, set()) | self.occupied.pop(addr, set())
        self._recent.pop(addr, None)
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
        if self._idle_timeout is not None:
            self._idle_timeout.stop()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=self._connecting_close_timeout)
            if pending:
                logger.warning("Pending connections refuse to end: %s", pending)
