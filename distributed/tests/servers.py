"""Servers to test, over every transport within reach, and comms to talk to them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from distributed.core import Comm, Server, connect

TCP = "tcp://127.0.0.1:0"

#: Parametrizes a test with the addresses to listen at.
TRANSPORTS = pytest.mark.parametrize("transport", [TCP, "inproc://"])


@contextlib.asynccontextmanager
async def serving(
    transport: str,
    handlers: Mapping[str, Callable[..., Any]] | None = None,
    cls: Callable[..., Server] = Server,
    **kwargs: Any,
) -> AsyncIterator[Any]:
    """A server that runs and listens."""
    async with cls(handlers or {}, **kwargs) as server:
        await server.listen(transport)
        yield server


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Comm]:
    """A comm to a server."""
    comm = await connect(server.address)
    try:
        yield comm
    finally:
        await comm.close()


async def ask(comm: Comm, msg: Any) -> Any:
    """Write one message as it is and read the answer to it."""
    await comm.write(msg)
    return await comm.read()


async def assert_usable(comm: Comm) -> None:
    """Fail unless a request gets its own answer."""
    assert await ask(comm, {"op": "echo", "data": "still there"}) == "still there"
