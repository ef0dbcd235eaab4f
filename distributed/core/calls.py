"""A remote call over any comm: one request, and its answer or error.

:func:`send_recv` makes one call on a given comm, in the protocol of the original.  :func:`call`
makes one on a comm that returns to a pool; :mod:`distributed.core.call_info` describes what it
adds if the peer has agreed to it.  The address helpers accept all forms in which callers name a
server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from distributed.base.text import shown_repr
from distributed.comm import Comm, normalize_address, unparse_host_port
from distributed.core.call_info import KEY, kind_of
from distributed.core.errors.messages import exception_from
from distributed.core.retries import not_executed, unmarked
from distributed.protocol.families import check_families

__all__ = [
    "RPCClosed",
    "RequestRefused",
    "addr_from_args",
    "coerce_to_address",
    "error_from",
    "send_recv",
]


class RPCClosed(OSError):
    """Raised by a call through an ``rpc`` object that is closed."""

    # The original's module: both this package and the original can unpickle the error.
    __module__ = "distributed.core"


class RequestRefused(RuntimeError, ConnectionRefusedError):
    """Raised by a call whose handler was not started, because the server is closing.

    The same request may be sent again, to another server.
    """

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
            name = "serializers" if deserializers is serializers else "deserializers"
            check_families(name, deserializers)
        msg["serializers"] = deserializers
    try:
        await comm.write(msg, serializers=serializers, on_error="raise")
        response = None
        if reply:
            if comm.peer_unwatched:
                comm.watch_answer()
            response = await comm.read(deserializers=deserializers)
    except (OSError, RuntimeError, asyncio.CancelledError):
        # A late answer would be mistaken for the answer to the next request on this comm, or to
        # the request that is already in progress on it.
        comm.abort()
        raise
    # Not isinstance(): answers may be subclasses of dict whose methods differ, such as a matrix.
    if type(response) is dict and KEY in response and KEY in kwargs:
        response = await _unwrap(comm, kwargs["op"], response, deserializers)
    if kwargs.get("close"):
        await comm.close()
    if type(response) is dict and response.get("status") == "uncaught-error":
        raise error_from(comm, response)
    return response


async def _unwrap(
    comm: Comm, op: str, message: dict[str, Any], deserializers: Sequence[str] | None
) -> Any:
    """Return the answer of a handler that has written it to its comm."""
    if kind_of(message) == "answer":
        return message["value"]
    try:
        if comm.peer_unwatched:
            comm.watch_answer()
        end = await comm.read(deserializers=deserializers)
    except (OSError, RuntimeError, asyncio.CancelledError):
        comm.abort()
        raise
    kind = kind_of(end)
    if kind == "end":
        return message["value"]
    if kind is not None:
        comm.abort()
        raise TypeError(
            f"the handler of {op!r} in {comm.peer_address} writes several messages to its comm: "
            f"call it by `async for message in remote.{op}.stream(...)`"
        )
    return end


def error_from(comm: Comm, response: dict[str, Any]) -> Exception:
    """Return the exception that the peer of *comm* has sent."""
    unpickle = comm.allow_pickle and comm.deserialize
    error = exception_from(response, peer=comm.peer_address, unpickle=unpickle)
    if response.get("denied") is True:
        return PermissionError(str(error))
    if response.get("refused") is True:
        return not_executed(RequestRefused(*error.args))
    # It may be marked because the handler could not make a call itself.
    return unmarked(error)
