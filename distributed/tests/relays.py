"""A relay between a client and a server that cuts its connections at random bytes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable

from distributed.comm.addressing import get_address_host_port

_RESET = struct.pack("ii", 1, 0)


class Relay:
    """A relay that forwards bytes, and cuts each connection at a byte that it chooses.

    Bytes behind that one are lost: the relay resets both of its connections.

    Parameters
    ----------
    target
        The address of a server.
    budget
        Returns, for each new connection, the numbers of bytes after which it is cut: from the
        client and from the server.

    Attributes
    ----------
    address
        The address for clients.
    cuts
        Number of connections that were cut.
    """

    def __init__(self, target: str, budget: Callable[[], tuple[int, int]]) -> None:
        self.address = ""
        self.cuts = 0
        self._target = target
        self._budget = budget
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        scheme, _, rest = self._target.partition("://")
        if scheme == "unix":
            path = f"{tempfile.gettempdir()}/dask-test-{uuid.uuid4().hex}.sock"
            listener = await asyncio.start_unix_server(self._accept, path)
            self.address = f"unix://{path}"
        else:
            listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            port = listener.sockets[0].getsockname()[1]
            _, slash, path = rest.partition("/")
            self.address = f"{scheme}://127.0.0.1:{port}{slash}{path}"
        try:
            yield self
        finally:
            listener.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._relay(reader, writer)
        except asyncio.CancelledError:
            # `running` has ended.  asyncio logs an error if this task is cancelled.
            pass
        finally:
            _reset(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._target.startswith("unix://"):
            opened = asyncio.open_unix_connection(self._target.removeprefix("unix://"))
        else:
            opened = asyncio.open_connection(*get_address_host_port(self._target))
        there_reader, there_writer = await opened
        up, down = self._budget()
        ways = [
            asyncio.create_task(self._forward(reader, there_writer, up)),
            asyncio.create_task(self._forward(there_reader, writer, down)),
        ]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            self.cuts += any(way.result() for way in done)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            _reset(there_writer)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int
    ) -> bool:
        """Forward *budget* bytes; return whether there were more."""
        try:
            while data := await reader.read(2**16):
                writer.write(data[:budget])
                await writer.drain()
                budget -= len(data)
                if budget < 0:
                    return True
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return False


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock.family != socket.AF_UNIX and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


def random_cuts(seed: int, up: int, down: int) -> Callable[[], tuple[int, int]]:
    """Return a budget for `Relay`: random numbers of bytes up to *up* and *down*."""
    rng = random.Random(seed)
    return lambda: (rng.randrange(up), rng.randrange(down))
