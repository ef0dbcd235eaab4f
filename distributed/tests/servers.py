"""Servers to test, over every transport within reach, and comms to talk to them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest

from distributed import core
from distributed.core import Comm, Server
from distributed.utils_test import tls_security

TCP = "tcp://127.0.0.1:0"

#: Parametrizes a test with the addresses to listen at.
ADDRESSES = [
    TCP,
    "inproc://",
    "unix://",
    "tls://127.0.0.1:0",
    "ws://127.0.0.1:0/path",
    "wss://127.0.0.1:0",
]

#: Parametrizes a test with the addresses to listen at.
TRANSPORTS = pytest.mark.parametrize("transport", ADDRESSES)


def is_encrypted(address: str) -> bool:
    return address.startswith(("tls://", "wss://"))


def listen_args(address: str) -> dict[str, Any]:
    """What it takes to listen at an address: certificates, if anything."""
    return tls_security().get_listen_args("scheduler") if is_encrypted(address) else {}


@contextlib.contextmanager
def trusting(address: str) -> Iterator[None]:
    """See that calls from within this process bring the certificates that *address* takes."""
    if not is_encrypted(address):
        yield
        return
    args = {"ssl_context": tls_security().get_connection_args("client")["ssl_context"]}
    before = core.connect

    async def connect(address: str, *positional: Any, **kwargs: Any) -> Comm:
        return await before(address, *positional, **{**args, **kwargs})

    core.connect = connect  # type: ignore[assignment]
    try:
        yield
    finally:
        core.connect = before


@contextlib.asynccontextmanager
async def serving(
    transport: str,
    handlers: Mapping[str, Callable[..., Any]] | None = None,
    cls: Callable[..., Server] = Server,
    **kwargs: Any,
) -> AsyncIterator[Any]:
    """A server that runs and listens."""
    async with cls(handlers or {}, **kwargs) as server:
        await server.listen(transport, **listen_args(transport))
        with trusting(transport):
            yield server


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Comm]:
    """A comm to a server."""
    comm = await core.connect(server.address)
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
