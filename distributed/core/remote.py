"""``rpc``: an object whose attributes are the operations of one server."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from distributed.comm import Comm, connect
from distributed.core.calls import (
    RemoteCalls,
    RPCClosed,
    coerce_to_address,
)
from distributed.core.host import replaceable
from distributed.core.status import Status
from distributed.core.tasks import NoOpAwaitable

logger = logging.getLogger(__name__)


__all__ = ["rpc"]


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
        serializers: Sequence[str] | None = None,
        deserializers: Sequence[str] | None = None,
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    async def __aenter__(self) -> Self:
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
