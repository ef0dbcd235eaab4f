"""The foundations: servers that answer calls, and objects that make them.

``Server`` answers and calls, ``rpc`` calls one server over connections of its
own, ``ConnectionPool`` calls many over connections that it shares out.  What
answering takes is one module further (:mod:`distributed.core.server`); this one holds
the calling side and puts both together.  It knows addresses, operations and
comms, but neither how a comm moves a message nor how a message is encoded; what
one call is, is told in :mod:`distributed.core.calls`.

A call's way: ``rpc.add(x=1)`` → a free comm, or a new one → ``send_recv`` →
:meth:`Comm.write` … :meth:`Comm.read` → the result is returned, or the remote
exception raised, and the comm is free again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from distributed.base import config
from distributed.comm import Comm, CommClosedError, connect
from distributed.core.calls import (
    RemoteCalls,
    RPCClosed,
    addr_from_args,
    coerce_to_address,
)
from distributed.core.host import replaceable
from distributed.core.pool import PoolState
from distributed.core.requests import NoOpAwaitable
from distributed.core.server import BaseServer
from distributed.core.status import Status

logger = logging.getLogger(__name__)

_P = TypeVar("_P", bound="ConnectionPool")
_R = TypeVar("_R", bound="rpc")
_S = TypeVar("_S", bound="Server")

__all__ = ["ConnectionPool", "PooledRPCCall", "Server", "rpc"]


class rpc(RemoteCalls):
    """Calls one server; its attributes are the server's operations.

    Calls that overlap use connections of their own, which are kept for later
    calls.

    Parameters
    ----------
    arg
        The server's address, or ``(host, port)``.
    comm
        An open comm to begin with.
    deserialize
        See :class:`~distributed.comm.core.Comm`.
    timeout
        Time for making a connection, in seconds or like ``"500ms"``; by default
        ``distributed.comm.timeouts.connect``.
    connection_args
        What the transport needs besides.
    serializers, deserializers
        Names of the serialization families to use and to accept.

    Attributes
    ----------
    address : str
        The server's address.
    comms : dict
        The connections: comm → whether it is idle.
    status : Status
        running or closed.

    Examples
    --------
    >>> async def add(address):
    ...     async with rpc(address) as remote:
    ...         return await remote.add(x=1, y=2)
    """

    active: ClassVar[weakref.WeakSet[rpc]] = weakref.WeakSet()
    _comm_name = "rpc"

    # State.  `comms` are all comms that were not found closed, and whether they are
    # idle.  `_released` makes those quick to find: it has comms that were idle once,
    # the last one used last, but not necessarily all that are.
    def __init__(
        self,
        arg: str | tuple[str, int],
        comm: Comm | None = None,
        deserialize: bool = True,
        timeout: float | str | None = None,
        connection_args: Mapping[str, Any] | None = None,
        serializers: Any = None,
        deserializers: Any = None,
    ) -> None:
        self.status: Status = Status.running
        self.comms: dict[Comm, bool] = {}
        self._released: list[Comm] = []
        self.address = coerce_to_address(arg)
        self.timeout = timeout
        self.deserialize = deserialize
        self.serializers = serializers
        self.deserializers = serializers if deserializers is None else deserializers
        self.connection_args = dict(connection_args or {})
        self._created: weakref.WeakSet[Comm] = weakref.WeakSet()
        if comm is not None:
            self.comms[comm] = True
            self._created.add(comm)
        rpc.active.add(self)

    async def live_comm(self) -> Comm:
        """Return an open comm; it is in use until ``comms[comm] = True``.

        Raises
        ------
        RPCClosed
            If this object is closed.
        OSError
            If no connection can be made.
        """
        self._check_open()
        idle = self._take_idle()
        if idle is not None:
            return idle
        comm = await replaceable("connect", connect)(
            self.address,
            self.timeout,
            deserialize=self.deserialize,
            **self.connection_args,
        )
        try:
            self._check_open()
        except RPCClosed:
            comm.abort()
            raise
        comm.name = "rpc"
        self.comms[comm] = False
        self._created.add(comm)
        return comm

    _acquire = live_comm

    def _take(self) -> Comm | None:
        return self._take_idle() if self.status is not Status.closed else None

    def _take_idle(self) -> Comm | None:
        while True:
            while self._released:
                comm = self._released.pop()
                if self.comms.get(comm):
                    if not comm.closed():
                        self.comms[comm] = False
                        return comm
                    del self.comms[comm]
                    comm.abort()
            # Whoever took a comm by live_comm() only marks it.
            self._released += [comm for comm, idle in self.comms.items() if idle]
            if not self._released:
                return None

    def _check_open(self) -> None:
        if self.status is Status.closed:
            raise RPCClosed(f"rpc to {self.address} is closed")

    def _release(self, comm: Comm) -> None:
        if comm not in self.comms:
            comm.abort()
        elif comm.closed():
            del self.comms[comm]
        else:
            self.comms[comm] = True
            self._released.append(comm)

    def close_comms(self) -> None:
        """Close all connections; calls in progress fail."""
        comms = list(self.comms)
        self.comms.clear()
        self._released.clear()
        for comm in comms:
            comm.abort()

    def _close(self) -> None:
        if self.status is not Status.closed:
            rpc.active.discard(self)
            self.status = Status.closed
            self.close_comms()

    def close_rpc(self) -> NoOpAwaitable:
        """Close this object and its connections; calls in progress fail."""
        self._close()
        return NoOpAwaitable()

    def __enter__(self: _R) -> _R:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    async def __aenter__(self: _R) -> _R:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def __del__(self) -> None:
        status = self.__dict__.get("status")
        if status is None or status is Status.closed:
            return
        self.status = Status.closed
        still_open = [comm for comm in self.comms if not comm.closed()]
        if still_open:
            logger.warning(
                "rpc to %s deleted with %d open comms; call close_rpc(), or use it in a with block",
                self.address,
                len(still_open),
            )
            self.close_comms()

    def __repr__(self) -> str:
        return f"<rpc to {self.address!r}, {len(self.comms)} comms>"


class PooledRPCCall(RemoteCalls):
    """Calls one server over the connections of a pool.

    Made by calling a :class:`ConnectionPool`; otherwise used like :class:`rpc`.
    """

    _comm_name = "ConnectionPool"

    def __init__(
        self,
        addr: str,
        pool: ConnectionPool,
        serializers: Any = None,
        deserializers: Any = None,
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
        limit: int = 512,
        deserialize: bool = True,
        serializers: Any = None,
        allow_offload: bool = True,
        deserializers: Any = None,
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

    def __await__(self: _P) -> Generator[Any, None, _P]:
        return self.start().__await__()

    async def start(self: _P) -> _P:
        """Make the pool ready to be used."""
        if self.status is Status.init:
            self.status = Status.running
        return self

    async def __aenter__(self: _P) -> _P:
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


class Server(BaseServer):
    """A server: answers operations, and can call others.

    Subclasses such as a scheduler or a worker pass their operations as
    *handlers*, and override :meth:`start_unsafe` and :meth:`close`.

    Parameters
    ----------
    handlers
        Operations: name → function or coroutine function.  It is called with
        the keys of the request as keyword arguments; if its first parameter is
        named ``comm``, with the comm as that.  What it returns is the answer.
    blocked_handlers
        Names of operations that are refused; by default
        ``distributed.<class name>.blocked-handlers`` of the configuration.
    stream_handlers
        Operations of one-way streams; see :meth:`handle_stream`.
    connection_limit
        How many connections to other servers may be open at a time.
    deserialize, connection_args, serializers, deserializers, timeout
        For connections to other servers; see :class:`rpc`.
    local_directory
        Where to make the scratch directory.
    needs_workdir
        Whether the scratch directory is this server's own and locked.

    Attributes
    ----------
    handlers, stream_handlers : dict
        Operations by name; may be changed.
    rpc : ConnectionPool
        For calls to other servers: ``await self.rpc(address).op(...)``.
    allow_pickle : bool or None
        Of the class: whether what arrives pickled is unpickled; by default (None)
        as ``distributed.comm.allow-pickle`` says.
    status : Status
        Where in its life the server is.

    Examples
    --------
    >>> async def main():
    ...     async with Server({"add": lambda x, y: x + y}) as server:
    ...         await server.listen("tcp://127.0.0.1:0")
    ...         async with rpc(server.address) as remote:
    ...             return await remote.add(x=1, y=2)
    >>> asyncio.run(main())
    3
    """

    def __init__(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        blocked_handlers: Iterable[str] | None = None,
        stream_handlers: Mapping[str, Callable[..., Any]] | None = None,
        connection_limit: int = 512,
        deserialize: bool = True,
        serializers: Any = None,
        deserializers: Any = None,
        connection_args: Mapping[str, Any] | None = None,
        timeout: float | str | None = None,
        local_directory: str | os.PathLike[str] | None = None,
        needs_workdir: bool = True,
    ) -> None:
        configured = config.get_timedelta("distributed.admin.tick.limit")
        super().__init__(
            handlers,
            blocked_handlers=blocked_handlers,
            stream_handlers=stream_handlers,
            deserialize=deserialize,
            local_directory=local_directory,
            needs_workdir=needs_workdir,
            tick_limit=lambda: replaceable("tick_maximum_delay", configured),
        )
        self.connection_args = dict(connection_args or {})
        if self.allow_pickle is not None:
            self.connection_args.setdefault("allow_pickle", self.allow_pickle)
        self.rpc = ConnectionPool(
            limit=connection_limit,
            deserialize=deserialize,
            serializers=serializers,
            deserializers=deserializers,
            connection_args=self.connection_args,
            timeout=timeout,
            server=self,
        )

    async def start_unsafe(self: _S) -> _S:
        """Make the server ready.  Subclasses extend this to start themselves."""
        await super().start_unsafe()
        await self.rpc.start()
        return self

    async def _close_unsafe(self, timeout: float | None) -> None:
        try:
            await super()._close_unsafe(timeout)
        finally:
            await self.rpc.close()

    @property
    def outgoing_comms_open(self) -> int:
        """The number of connections to other servers."""
        return self.rpc.open

    @property
    def outgoing_comms_active(self) -> int:
        """The number of connections to other servers on which a call is in progress."""
        return self.rpc.active

    def get_connection_counters(self) -> dict[str, int]:
        """Return the numbers of connections, by kind."""
        return {
            name: getattr(self, name)
            for name in (
                "incoming_comms_open",
                "incoming_comms_active",
                "outgoing_comms_open",
                "outgoing_comms_active",
            )
        }
