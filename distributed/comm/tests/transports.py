"""The transports that the tests of comms run over.

Every test that takes the `transport` fixture runs over each transport in `TRANSPORTS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from distributed.comm import connect, listen
from distributed.comm.core import Comm, CommHandler, Listener
from distributed.utils_test import tls_security


@dataclass(frozen=True)
class Transport:
    """The addresses and arguments with which tests use a transport.

    Parameters
    ----------
    listen_at : str
        An address that gives each listener its own contact address.
    unused_address : callable
        Returns an address without a listener, at which a test may listen.
    serializes : bool
        Whether messages are converted to bytes: a read message shares no memory with the written
        one, and a large write waits for the reader.
    listen_args, connect_args : callable
        Return keyword arguments of `listen` and `connect`.
    """

    listen_at: str
    unused_address: Callable[[], str]
    serializes: bool = True
    listen_args: Callable[[], dict[str, Any]] = dict
    connect_args: Callable[[], dict[str, Any]] = dict

    async def listen(self, handler: CommHandler, address: str = "", **kwargs: Any) -> Listener:
        return await listen(address or self.listen_at, handler, **self.listen_args(), **kwargs)

    async def connect(self, address: str, **kwargs: Any) -> Comm:
        return await connect(address, **self.connect_args(), **kwargs)

    @asynccontextmanager
    async def listening(self, handler: CommHandler, **kwargs: Any) -> AsyncIterator[Listener]:
        """Listen for the duration of a block."""
        listener = await self.listen(handler, **kwargs)
        try:
            yield listener
        finally:
            await stop(listener)

    @asynccontextmanager
    async def pair(
        self, listen_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> AsyncIterator[tuple[Comm, Comm]]:
        """Yield the connecting and the accepted end of a new connection."""
        accepted: asyncio.Queue[Comm] = asyncio.Queue()
        async with self.listening(accepted.put, **(listen_kwargs or {})) as listener:
            client = await self.connect(listener.contact_address, **kwargs)
            try:
                server = await accepted.get()
                try:
                    yield client, server
                finally:
                    server.abort()
            finally:
                client.abort()


async def stop(listener: Listener) -> None:
    stopped = listener.stop()
    if inspect.isawaitable(stopped):
        await stopped


async def echo(comm: Comm) -> None:
    """Send each message back, until the peer closes."""
    with contextlib.suppress(OSError):
        while True:
            await comm.write(await comm.read())
    await comm.close()


def unused_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def _unused_tcp() -> str:
    return f"tcp://127.0.0.1:{unused_port()}"


def _unused_tls() -> str:
    return f"tls://127.0.0.1:{unused_port()}"


def _unused_ws() -> str:
    return f"ws://127.0.0.1:{unused_port()}"


def _unused_wss() -> str:
    return f"wss://127.0.0.1:{unused_port()}/a/path"


def _unused_unix() -> str:
    return f"unix://{tempfile.gettempdir()}/dask-test-{uuid.uuid4().hex}.sock"


def _unused_inproc() -> str:
    from distributed.comm.inproc import new_address

    return new_address()


TRANSPORTS = {
    "tcp": Transport("tcp://127.0.0.1:0", _unused_tcp),
    "tls": Transport(
        "tls://127.0.0.1:0",
        _unused_tls,
        listen_args=lambda: tls_security().get_listen_args("scheduler"),
        connect_args=lambda: tls_security().get_connection_args("client"),
    ),
    "ws": Transport("ws://127.0.0.1:0", _unused_ws),
    "wss": Transport(
        "wss://127.0.0.1:0/a/path",
        _unused_wss,
        listen_args=lambda: tls_security().get_listen_args("scheduler"),
        connect_args=lambda: tls_security().get_connection_args("client"),
    ),
    "unix": Transport("unix://", _unused_unix),
    "inproc": Transport("inproc://", _unused_inproc, serializes=False),
}
