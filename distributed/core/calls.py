"""A remote call over any comm: one request, and its answer or error.

:func:`send_recv` makes one call on a given comm.  :class:`RemoteCalls` turns attributes into calls;
its subclasses ``rpc`` and ``PooledRPCCall`` decide which comm each call uses.  The address helpers
accept all forms in which callers name a server.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, Self

from distributed.base.text import shown_repr
from distributed.comm import Comm, CommClosedError, normalize_address, unparse_host_port
from distributed.core.errors.messages import exception_from
from distributed.core.tasks import NoOpAwaitable
from distributed.protocol.families import check_families

__all__ = ["RPCClosed", "RemoteCalls", "addr_from_args", "coerce_to_address", "send_recv"]


class RPCClosed(OSError):
    """Raised by a call through an ``rpc`` object that is closed."""

    # The original's module: both this package and the original can unpickle the error.
    __module__ = "distributed.core"


def coerce_to_address(o: str | tuple[str, int | None] | list[Any]) -> str:
    """Return the normalized form of *o*, an address or ``(host, port)``.

    Examples
    --------
    >>> coerce_to_address(("127.0.0.1", 8786)), coerce_to_address("127.0.0.1:8786")
    ('tcp://127.0.0.1:8786', 'tcp://127.0.0.1:8786')
    """
    if isinstance(o, list | tuple):
        o = unparse_host_port(*o)
    if not isinstance(o, str):
        raise TypeError(
            f"expected str, got {type(o).__name__!r}: {shown_repr(o)} is not an address"
        )
    return normalize_address(o)


def addr_from_args(
    addr: str | tuple[str, int | None] | None = None,
    ip: str | None = None,
    port: int | None = None,
) -> str:
    """Return the address given either as *addr* or as *ip* and *port*.

    Raises
    ------
    TypeError
        If both forms or neither are given.
    """
    if (addr is None) == (ip is None) or (addr is not None and port is not None):
        raise TypeError(f"expected either addr or ip and port, got {addr=}, {ip=}, {port=}")
    if addr is None:
        assert ip is not None
        addr = (ip, port)
    return coerce_to_address(addr)


async def send_recv(
    comm: Comm,
    *,
    reply: bool = True,
    serializers: Sequence[str] | None = None,
    deserializers: Sequence[str] | None = None,
    **kwargs: Any,
) -> Any:
    """Send one request over *comm* and return the answer.

    Parameters
    ----------
    comm
        An open comm with no request in progress.
    reply
        Whether the server sends an answer.  If false, return None once the request is written.
    serializers
        Names of the serialization families to use for the request.
    deserializers
        Names of the serialization families to accept in the answer; by default *serializers*.
    kwargs
        The request: ``op`` and the handler's keyword arguments.  With ``close=True`` the comm is
        closed after the answer.

    Raises
    ------
    Exception
        The handler's exception.  If *comm* does not deserialize, an `Exception` with its text.
    OSError
        If the connection breaks.  *comm* is then closed, as after a cancellation or a timeout.
    RuntimeError
        If a request is already in progress on *comm*.  Both requests fail, because the answers
        could not be told apart.

    Examples
    --------
    >>> async def add(comm):
    ...     return await send_recv(comm, op="add", x=1, y=2)
    """
    msg = {**kwargs, "reply": reply}
    if deserializers is None:
        deserializers = serializers
    if deserializers is not None:
        if type(deserializers) is str:
            check_families("deserializers", deserializers)
        msg["serializers"] = deserializers
    try:
        await comm.write(msg, serializers=serializers, on_error="raise")
        response = await comm.read(deserializers=deserializers) if reply else None
    except (OSError, RuntimeError, asyncio.CancelledError):
        # A late answer would be mistaken for the answer to the next request on this comm, or to
        # the request that is already in progress on it.
        comm.abort()
        raise
    if kwargs.get("close"):
        await comm.close()
    # Not isinstance(): answers may be subclasses of dict whose methods differ, such as a matrix.
    if type(response) is dict and response.get("status") == "uncaught-error":
        unpickle = comm.allow_pickle and comm.deserialize
        raise exception_from(response, peer=comm.peer_address, unpickle=unpickle)
    return response


class RemoteCalls(ABC):
    """Base of the objects whose attributes are remote calls."""

    #: Names of the serialization families to use for requests; None for the defaults.
    serializers: Sequence[str] | None
    #: Names of the serialization families to accept in answers; None for the defaults.
    deserializers: Sequence[str] | None
    #: First part of a comm's name during a call, before a dot and the operation.
    _comm_name: ClassVar[str]
    #: Qualified name of the coroutines of calls.
    _call_name: ClassVar[str]

    @abstractmethod
    def _take(self) -> Comm | None:
        """Take an idle open comm into use and return it; return None if there is none."""

    @abstractmethod
    async def _acquire(self) -> Comm:
        """Take an open comm into use, connecting or waiting if necessary, and return it."""

    @abstractmethod
    def _release(self, comm: Comm) -> None:
        """Accept a comm, open or closed, after its call."""

    @abstractmethod
    def close_rpc(self) -> NoOpAwaitable:
        """Close this object; the result may be awaited."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close_rpc()

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name.startswith("__"):
            # Python and its tools look these up; they are not operations.
            raise AttributeError(name)

        async def send_recv_from_rpc(**kwargs: Any) -> Any:
            if self.serializers is not None and kwargs.get("serializers") is None:
                kwargs["serializers"] = self.serializers
            if self.deserializers is not None and kwargs.get("deserializers") is None:
                kwargs["deserializers"] = self.deserializers
            try:
                comm = self._take()
                if comm is None:
                    comm = await self._acquire()
            except RPCClosed as exc:
                raise type(exc)(f"{_failed(name)} before comm was established.") from exc
            except CommClosedError as exc:
                raise type(exc)(f"{_failed(name)} before comm was established: {exc}") from exc
            try:
                comm.name = f"{self._comm_name}.{name}"
                return await send_recv(comm, op=name, **kwargs)
            except (RPCClosed, CommClosedError) as exc:
                if not comm.closed():
                    # The handler raised it, about one of its own connections.
                    raise
                raise type(exc)(f"{_failed(name)} using comm {comm!r}.") from exc
            finally:
                self._release(comm)

        # The original's name: tools that list coroutines and tasks look for it.
        send_recv_from_rpc.__qualname__ = self._call_name
        return send_recv_from_rpc


def _failed(name: str) -> str:
    return f"Exception while trying to call remote method {name!r}"
