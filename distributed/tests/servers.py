"""Servers under test, over every transport, and comms connected to them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest

from distributed import core
from distributed.core import Comm, Server
from distributed.utils_test import captured_logger, tls_security

TCP = "tcp://127.0.0.1:0"

#: An address to listen at for each transport.
ADDRESSES = [
    TCP,
    "inproc://",
    "unix://",
    "tls://127.0.0.1:0",
    "ws://127.0.0.1:0/path",
    "wss://127.0.0.1:0",
]

#: Runs a test with each of ADDRESSES as its argument ``transport``.
TRANSPORTS = pytest.mark.parametrize("transport", ADDRESSES)


def is_encrypted(address: str) -> bool:
    return address.startswith(("tls://", "wss://"))


def listen_args(address: str) -> dict[str, Any]:
    """Return the keyword arguments for listening at *address*: certificates, or none."""
    return tls_security().get_listen_args("scheduler") if is_encrypted(address) else {}


@contextlib.contextmanager
def trusting(address: str) -> Iterator[None]:
    """Replace ``core.connect``, so that calls from this process trust a server at *address*."""
    if not is_encrypted(address):
        yield
        return
    context = tls_security().get_connection_args("client")["ssl_context"]
    # Servers that do not encrypt can be called, too.
    args = {"ssl_context": context, "require_encryption": False}
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
    transport: str = "inproc://",
    handlers: Mapping[str, Callable[..., Any]] | None = None,
    cls: Callable[..., Server] = Server,
    **kwargs: Any,
) -> AsyncIterator[Any]:
    """Run a server that listens at *transport* and has *handlers*; *kwargs* are for *cls*."""
    async with cls(handlers or {}, **kwargs) as server:
        await server.listen(transport, **listen_args(transport))
        with trusting(transport):
            yield server


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Comm]:
    """Open a comm to *server*, and close it at the end."""
    comm = await core.connect(server.address)
    try:
        yield comm
    finally:
        await comm.close()


async def ask(comm: Comm, msg: Any) -> Any:
    """Write *msg* unchanged and return the answer."""
    await comm.write(msg)
    return await comm.read()


def quiet(level: int = logging.INFO) -> contextlib.AbstractContextManager[io.StringIO]:
    """Capture the log lines of errors that a test causes."""
    return captured_logger("distributed.core", level=level)


def explode() -> None:
    raise ZeroDivisionError("cannot be unpickled")


class Explosive:
    """An object that can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ()


async def assert_usable(comm: Comm) -> None:
    """Fail unless a request on *comm* gets its own answer."""
    assert await ask(comm, {"op": "echo", "data": "still there"}) == "still there"


class Gate:
    """A handler that reports each call, and returns once the test opens the gate.

    Calls with different values of *key* wait independently.

    Attributes
    ----------
    handle
        The handler; it returns its argument *key*.
    entered, cancelled : dict
        *key* → event that is set when the handler is called, or cancelled.

    Examples
    --------
    >>> async def test():
    ...     gate = Gate()
    ...     async with serving("inproc://", {"wait": gate.handle}) as server:
    ...         async with core.rpc(server.address) as remote:
    ...             call = await gate.enter(remote.wait())
    ...             gate.open()
    ...             await call
    """

    def __init__(self) -> None:
        self.entered: defaultdict[Any, asyncio.Event] = defaultdict(asyncio.Event)
        self.cancelled: defaultdict[Any, asyncio.Event] = defaultdict(asyncio.Event)
        self._opened: defaultdict[Any, asyncio.Event] = defaultdict(asyncio.Event)

    async def handle(self, key: Any = None) -> Any:
        self.entered[key].set()
        try:
            await self._opened[key].wait()
        except asyncio.CancelledError:
            self.cancelled[key].set()
            raise
        return key

    async def enter(self, call: Awaitable[Any], key: Any = None) -> asyncio.Future[Any]:
        """Start *call* as a task, and return the task once the handler runs."""
        task = asyncio.ensure_future(call)
        await self.entered[key].wait()
        return task

    def open(self, *keys: Any) -> None:
        """Let the handler return, for calls with *keys*, or without a key if none is given."""
        for key in keys or (None,):
            self._opened[key].set()
