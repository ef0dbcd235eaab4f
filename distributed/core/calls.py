"""What a remote call is, whatever connection it goes over.

One request and its answer on a comm (:func:`send_recv`), objects whose attributes
are remote operations (:class:`RemoteCalls`), and the forms in which callers name
a server.  Where the comms come from is :mod:`distributed.core`'s business.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar

from distributed.comm import Comm, CommClosedError, normalize_address, unparse_host_port
from distributed.core.errors.messages import exception_from


class RPCClosed(OSError):
    """A call was made through an ``rpc`` object that is closed."""

    # Where the original has it, so that a peer of either kind finds it.
    __module__ = "distributed.core"


def coerce_to_address(o: str | tuple[str, int | None] | list[Any]) -> str:
    """Return the address that *o*, an address or ``(host, port)``, stands for.

    Examples
    --------
    >>> coerce_to_address(("127.0.0.1", 8786)), coerce_to_address("127.0.0.1:8786")
    ('tcp://127.0.0.1:8786', 'tcp://127.0.0.1:8786')
    """
    if isinstance(o, list | tuple):
        o = unparse_host_port(*o)
    if not isinstance(o, str):
        raise TypeError(f"expected an address or (host, port), got {o!r}")
    return normalize_address(o)


def addr_from_args(
    addr: str | tuple[str, int | None] | None = None,
    ip: str | None = None,
    port: int | None = None,
) -> str:
    """Return the address that is given by either *addr* or *ip* and *port*.

    Raises
    ------
    TypeError
        If it is given in both ways or in none.
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
        An open comm on which nothing is in progress.
    reply
        Whether the other side is to answer; None is returned if not.
    serializers
        Names of the serialization families to use for the request.
    deserializers
        Names of those to accept in the answer; by default *serializers*.
    kwargs
        The request: ``op`` and the handler's keyword arguments.  With
        ``close=True`` the comm is closed after the answer.

    Raises
    ------
    Exception
        Whatever the handler raised.
    OSError
        If the connection breaks; *comm* is closed then, as it is when the call
        is cancelled or times out.
    RuntimeError
        If a request is already in progress on *comm*; both fail then, since
        neither could tell which answer is whose.

    Examples
    --------
    >>> async def add(comm):
    ...     return await send_recv(comm, op="add", x=1, y=2)
    """
    msg = {**kwargs, "reply": reply}
    if deserializers is None:
        deserializers = serializers
    if deserializers is not None:
        msg["serializers"] = deserializers
    try:
        await comm.write(msg, serializers=serializers, on_error="raise")
        response = await comm.read(deserializers=deserializers) if reply else None
    except (OSError, RuntimeError, asyncio.CancelledError):
        # Whatever still arrives must not be taken for the answer to another call,
        # nor must this answer where another coroutine reads from the comm already.
        comm.abort()
        raise
    if kwargs.get("close"):
        await comm.close()
    if isinstance(response, dict) and response.get("status") == "uncaught-error":
        raise exception_from(response, peer=comm.peer_address, unpickle=comm.allow_pickle)
    return response


class RemoteCalls(ABC):
    """Turns attributes into remote calls."""

    serializers: Sequence[str] | None
    deserializers: Sequence[str] | None
    # What a comm is named during a call, before a dot and the operation.
    _comm_name: ClassVar[str]

    @abstractmethod
    def _take(self) -> Comm | None:
        """Return an open comm on which nothing is in progress, if there is one already."""

    @abstractmethod
    async def _acquire(self) -> Comm:
        """Return such a comm, however long that takes."""

    @abstractmethod
    def _release(self, comm: Comm) -> None:
        """Take back a comm, open or closed."""

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name.startswith("__"):
            # Protocols of the language and of tools, not operations.
            raise AttributeError(name)

        async def remote_call(**kwargs: Any) -> Any:
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
                    # The handler raised it, about a connection of its own.
                    raise
                raise type(exc)(f"{_failed(name)} using comm {comm!r}.") from exc
            finally:
                self._release(comm)

        # For who forgets to await it, or passes arguments without their names.
        remote_call.__qualname__ = f"{type(self).__name__}.{name}"
        return remote_call


def _failed(name: str) -> str:
    return f"Exception while trying to call remote method {name!r}"
