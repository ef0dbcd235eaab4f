"""``rpc``: an object whose attributes are the operations of one server."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Never, Self

from distributed.base.arguments import (
    check_duration,
    check_flag,
    check_limit,
    unexpected_keyword_of,
)
from distributed.base.logs import get_logger
from distributed.comm import Comm
from distributed.comm.arguments import OBJECT_HINT, SecuritySettings, check_connection_args
from distributed.core.calls import RPCClosed, coerce_to_address
from distributed.core.host import connect
from distributed.core.idle import IdleTimeout
from distributed.core.interceptors import Interceptor, check_interceptors
from distributed.core.operations import RemoteCalls, discard
from distributed.core.status import Status
from distributed.core.tasks import NoOpAwaitable
from distributed.protocol.families import check_families

__all__ = ["rpc"]

logger = get_logger("distributed.core")


class rpc(RemoteCalls):
    """Calls of one server; each attribute is one of the server's operations.

    Each of several overlapping calls uses its own connection, up to *limit*; further calls wait.
    Connections stay open for later calls, which use the one that was used last.  An idle connection
    closes after ``distributed.comm.timeouts.pool-idle``, which is unlimited by default.

    Parameters
    ----------
    arg
        The server's address, or ``(host, port)``.
    comm
        An open comm to the server, to be used first.
    deserialize
        See :class:`~distributed.comm.core.Comm`.
    timeout
        Maximum time for connecting, in seconds or with a unit (``"500ms"``); by default
        ``distributed.comm.timeouts.connect``.
    connection_args
        Additional arguments for the transport, such as ``ssl_context``.
    serializers, deserializers
        Names of the serialization families to use and to accept.
    limit
        Maximum number of overlapping calls, and thus of connections.
    interceptors
        Functions around each call; see :mod:`distributed.core.interceptors`.
    security
        A `Security` object, in place of the arguments of *connection_args* that it gives.

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown or invalid.

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

    #: All ``rpc`` objects that are not closed.
    active: ClassVar[weakref.WeakSet[rpc]] = weakref.WeakSet()
    _comm_name = "rpc"
    _call_name = "rpc.__getattr__.<locals>.send_recv_from_rpc"

    # Invariant: a comm in use has the value False in `comms`.  `_recent` only tells the order
    # of idle comms: it may lack idle comms, and may contain comms that are not idle any more.
    # No call waits while fewer than `limit` calls have a comm or open one.
    def __init__(
        self,
        arg: str | tuple[str, int],
        comm: Comm | None = None,
        deserialize: bool = True,
        timeout: float | str | None = None,
        connection_args: Mapping[str, Any] | None = None,
        serializers: Sequence[str] | None = None,
        deserializers: Sequence[str] | None = None,
        *,
        limit: float = 512,
        security: SecuritySettings | None = None,
        interceptors: Sequence[Interceptor] = (),
        **unknown: Never,
    ) -> None:
        if unknown:
            raise unexpected_keyword_of(rpc.__init__, unknown, OBJECT_HINT)
        check_duration("timeout", timeout)
        check_families("serializers", serializers)
        check_families("deserializers", deserializers)
        check_limit("limit", limit)
        check_flag("deserialize", deserialize)
        self.connection_args = check_connection_args(connection_args, security)
        self.status: Status = Status.running
        # Every comm not yet found closed → whether it is idle.
        self.comms: dict[Comm, bool] = {}
        # Comms that became idle, the one used last at the end → when each became idle.
        self._recent: dict[Comm, float] = {}
        # None if idle comms stay open.
        self._idle_timeout = IdleTimeout.configured(self._close_idle)
        self.address = coerce_to_address(arg)
        self.timeout = timeout
        self.deserialize = deserialize
        self.serializers = serializers
        self.deserializers = serializers if deserializers is None else deserializers
        # Every comm made by or given to this object that still exists; for debugging.
        self._created: weakref.WeakSet[Comm] = weakref.WeakSet()
        self.limit = limit
        self.interceptors = check_interceptors(interceptors)
        # Number of calls that have a comm or open one.
        self._calls = 0
        # The futures of the calls that wait, in order of arrival.
        self._waiting: deque[asyncio.Future[None]] = deque()
        if comm is not None:
            self.comms[comm] = True
            self._created.add(comm)
        rpc.active.add(self)

    async def live_comm(self) -> Comm:
        """Return an open comm, in use until the caller sets ``comms[comm] = True``.

        Raises
        ------
        RPCClosed
            If this object is closed.
        OSError
            If connecting fails or times out.
        """
        self._check_open()
        idle = self._take_idle()
        if idle is not None:
            return idle
        comm = await connect(
            self.address, self.timeout, deserialize=self.deserialize, **self.connection_args
        )
        try:
            self._check_open()
        except RPCClosed:
            comm.abort()
            raise
        comm.name = "rpc"
        self.comms[comm] = False
        self._created.add(comm)
        if self._idle_timeout is not None:
            # The caller may mark the comm as idle without calling _release().
            self._idle_timeout.begin()
        return comm

    async def _acquire(self) -> Comm:
        if self._calls >= self.limit:
            await self._wait_for_place()
        else:
            self._calls += 1
        try:
            return await self.live_comm()
        except BaseException:
            self._leave_place()
            raise

    def _take(self) -> Comm | None:
        if self.status is Status.closed or self._calls >= self.limit:
            return None
        comm = self._take_idle()
        if comm is not None:
            self._calls += 1
        return comm

    async def _wait_for_place(self) -> None:
        """Wait until the place of another call is given to this one."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                # The place was given to this call before it was cancelled.
                self._leave_place()
            raise

    def _leave_place(self) -> None:
        """Give the place of a call to the next one that waits."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._calls -= 1

    def _take_idle(self) -> Comm | None:
        while True:
            while self._recent:
                comm = self._recent.popitem()[0]
                if self.comms.get(comm):
                    if comm.is_idle:
                        self.comms[comm] = False
                        return comm
                    discard(comm)
                    del self.comms[comm]
            self._note_idle()
            if not self._recent:
                return None

    def _note_idle(self) -> None:
        """Add the comms to `_recent` that callers of live_comm() have marked as idle."""
        timeout = self._idle_timeout
        now = 0.0 if timeout is None else timeout.clock()
        for comm, idle in self.comms.items():
            if idle:
                self._recent.setdefault(comm, now)

    def _close_idle(self, since: float) -> bool:
        """Close the comms that became idle at *since* or before.

        Returns
        -------
        bool
            Whether others are idle, or will be without a call of _release().
        """
        old = [comm for comm, when in self._recent.items() if when <= since]
        for comm in old:
            del self._recent[comm]
        expired = [comm for comm in old if self.comms.get(comm)]
        for comm in expired:
            del self.comms[comm]
        self._note_idle()
        for comm in expired:
            comm.abort()
        return len(self.comms) > self._calls

    def _check_open(self) -> None:
        if self.status is Status.closed:
            raise RPCClosed(f"rpc to {self.address} is closed")

    def _release(self, comm: Comm) -> None:
        if self._waiting:
            self._leave_place()
        else:
            self._calls -= 1
        if comm not in self.comms:
            comm.abort()
        elif comm.closed():
            del self.comms[comm]
        else:
            self.comms[comm] = True
            timeout = self._idle_timeout
            self._recent[comm] = 0.0 if timeout is None else timeout.begin()

    def close_comms(self) -> None:
        """Close all connections; calls in progress fail."""
        comms = list(self.comms)
        self.comms.clear()
        self._recent.clear()
        for comm in comms:
            comm.abort()

    def close_rpc(self) -> NoOpAwaitable:
        """Close this object and its connections; calls in progress fail."""
        if self.status is not Status.closed:
            rpc.active.discard(self)
            self.status = Status.closed
            self.close_comms()
            if self._idle_timeout is not None:
                self._idle_timeout.stop()
            for place in self._waiting:
                # The call finds that this object is closed.
                if not place.done():
                    self._calls += 1
                    place.set_result(None)
            self._waiting.clear()
        return NoOpAwaitable()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close_rpc()

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
