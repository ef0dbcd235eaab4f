"""This project and the original: one program for both, since both have the same interface.

As ``serve`` it is a `Server` over every transport that it can listen on, as ``call`` the client.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants.anatomy import Watch
from benchmarks.contestants.channel import Channel, Result, run
from benchmarks.contestants.timing import repeat_async, repeat_together
from distributed.batched import BatchedSend
from distributed.core import Comm, ConnectionPool, Server, connect, rpc, send_recv
from distributed.protocol import Serialize, to_serialize
from distributed.security import Security

Call = Callable[[], Awaitable[Any]]

#: Bytes of one array where there are many in a message.
SMALL_ARRAY = 800

#: Messages that are sent over a `BatchedSend` before it is waited for them, and in one turn of the
#: event loop.
BATCHED, BURST = 20_000, 100

#: Connections that are being opened at once where thousands are.
OPENING = 50


def add(x: int, y: int) -> int:
    return x + y


def back(data: Any) -> Any:
    return data


def back_array(data: Any) -> Any:
    return to_serialize(data)


def back_arrays(data: Any) -> Any:
    return [to_serialize(array) for array in data]


class Notes:
    """Counts the messages of a stream for one who waits until there are enough."""

    def __init__(self) -> None:
        self.count = 0
        self.wanted = 0
        self.enough = asyncio.Event()

    def note(self, key: str, nbytes: int, type: str) -> None:
        self.count += 1
        if self.count == self.wanted:
            self.enough.set()

    async def noted(self, count: int) -> int:
        self.wanted = count
        if self.count < count:
            await self.enough.wait()
        self.enough.clear()
        noted, self.count, self.wanted = self.count, 0, 0
        return noted


def security(certificates: Path) -> Security:
    files = {
        f"tls_{role}_{part}": str(certificates / f"{part}.pem")
        for role in ("client", "scheduler")
        for part in ("cert", "key")
    }
    return Security(tls_ca_file=str(certificates / "ca.pem"), require_encryption=False, **files)


async def make_server() -> Server:
    notes = Notes()

    watches: list[Watch] = []

    def watch() -> None:
        watches.append(Watch().__enter__())

    def watched() -> dict[str, float]:
        watch = watches.pop()
        watch.__exit__()
        return watch.medians()

    def more_handlers(count: int) -> int:
        server.handlers.update({f"more-{i}": add for i in range(count)})
        return len(server.handlers)

    handlers: dict[str, Callable[..., Any]] = {
        "add": add,
        "back": back,
        "back_array": back_array,
        "back_arrays": back_arrays,
        "noted": notes.noted,
        "more_handlers": more_handlers,
        "watch": watch,
        "watched": watched,
    }
    server = Server(handlers, stream_handlers={"note": notes.note})
    await server
    return server


async def listen_everywhere(server: Server, certificates: Path) -> dict[str, str]:
    """Listen over each transport that there is; scheme → address."""
    listen_args = security(certificates).get_listen_args("scheduler")
    addresses = {}
    for where in ("tcp://127.0.0.1:0", "tls://127.0.0.1:0", "ws://127.0.0.1:0", "unix://"):
        scheme = where.partition(":")[0]
        try:
            await server.listen(where, **(listen_args if scheme == "tls" else {}))
        except ValueError:  # not a scheme of this library
            continue
        addresses[scheme] = server.listeners[-1].contact_address
    return addresses


async def serve(options: argparse.Namespace) -> None:
    channel = Channel()
    server = await make_server()
    addresses = await listen_everywhere(server, options.certificates)
    channel.write({"addresses": addresses})
    await channel.answer_async({})
    await server.close()


class Client:
    """What a client is told to do; its public methods are commands.

    Whatever a command opens stays open, for the next command may be the same one again, until
    `rest`; that is, the first of two does not count. Only what `hold` opens stays for good.
    """

    # State: `_opened` are the things to close at `rest`, by what they are for; `_held` are idle
    # connections.

    def __init__(self, certificates: Path):
        self.tls_args = security(certificates).get_connection_args("client")
        self._opened: dict[Any, Any] = {}
        self._held: list[Comm] = []

    def args(self, address: str) -> dict[str, Any]:
        return self.tls_args if address.startswith("tls:") else {}

    async def reach(self, address: str) -> str:
        """Return an address to connect to; ``inproc`` is a server of this process' own."""
        if address != "inproc":
            return address
        if address not in self._opened:
            self._opened[address] = server = await make_server()
            await server.listen("inproc://")
        return str(self._opened[address].address)

    async def remote(self, address: str) -> Any:
        address = await self.reach(address)
        key = "remote", address
        if key not in self._opened:
            self._opened[key] = rpc(address, connection_args=self.args(address))
        return self._opened[key]

    async def sequential(self, address: str, seconds: float) -> Result:
        """One call after the other."""
        remote = await self.remote(address)
        return await repeat_async(lambda: remote.add(x=1, y=2), seconds)

    async def anatomy(self, address: str, seconds: float, size: int) -> Result:
        """What both sides do for a call: a small one, or one with an array there and back."""
        remote = await self.remote(address)
        array = to_serialize(np.zeros(size // 8))
        call = (lambda: remote.back_array(data=array)) if size else (lambda: remote.add(x=1, y=2))
        await remote.watch()
        with Watch() as watch:
            # What is done for a call begins with the end of another one.
            await call()
            result = await repeat_async(call, seconds)
        sides = {"client": watch.medians(), "server": await remote.watched()}
        return result | {
            f"{side} {what}": value for side, of in sides.items() for what, value in of.items()
        }

    async def many(self, address: str, count: int) -> Result:
        """So many calls."""
        remote = await self.remote(address)
        for _ in range(count):
            await remote.add(x=1, y=2)
        return {}

    async def handlers(self, address: str, count: int) -> Result:
        """Give the server more handlers."""
        remote = await self.remote(address)
        return {"handlers": await remote.more_handlers(count=count)}

    async def pooled(self, address: str, seconds: float, callers: int) -> Result:
        """Many callers who share a pool of connections."""
        address = await self.reach(address)
        key = "pool", address
        if key not in self._opened:
            pool = await ConnectionPool(limit=512, connection_args=self.args(address))
            self._opened[key] = pool
        remote = self._opened[key](address)
        return await repeat_together([lambda: remote.add(x=1, y=2)] * callers, seconds)

    async def taking_turns(self, address: str, seconds: float, callers: int) -> Result:
        """Many callers who take turns at one connection."""
        address = await self.reach(address)
        key = "comm", address
        if key not in self._opened:
            self._opened[key] = await connect(address, **self.args(address))
        comm, turn = self._opened[key], asyncio.Lock()

        async def call() -> None:
            async with turn:
                await send_recv(comm, op="add", x=1, y=2)

        return await repeat_together([call] * callers, seconds)

    async def payload(self, address: str, seconds: float, size: int, kind: str) -> Result:
        """So many bytes there and back again, as they are or as an array."""
        remote = await self.remote(address)
        if kind == "bytes":
            data: Any = bytes(range(256)) * (size // 256) + bytes(size % 256)
            message, call = data, remote.back
        else:
            data = np.arange(size, dtype="u1")
            message, call = to_serialize(data), remote.back_array
        answers: list[Any] = []

        async def exchange() -> None:
            answers[:] = []
            answers.append(await call(data=message))

        result = await repeat_async(exchange, seconds)
        (answer,) = answers
        while isinstance(answer, Serialize):  # as the original's inproc has it
            answer = answer.data
        assert type(answer) is type(data), type(answer)
        assert len(answer) == size, len(answer)
        assert all(answer[i] == data[i] for i in (0, size // 2, size - 1))
        return result

    async def nested(self, address: str, seconds: float, count: int) -> Result:
        """A message of many small nested values, there and back again."""
        remote = await self.remote(address)
        data = [{"id": i, "range": [i, i + 1], "name": "some value"} for i in range(count)]
        return await repeat_async(lambda: remote.back(data=data), seconds)

    async def arrays(self, address: str, seconds: float, count: int) -> Result:
        """A message of many small arrays, there and back again."""
        remote = await self.remote(address)
        data = [to_serialize(np.full(SMALL_ARRAY // 8, float(i))) for i in range(count)]
        return await repeat_async(lambda: remote.back_arrays(data=data), seconds)

    async def batched(self, address: str, seconds: float) -> Result:
        """Small messages over a `BatchedSend`, until they are handled."""
        remote = await self.remote(address)
        address = await self.reach(address)
        key = "stream", address
        if key not in self._opened:
            comm = await connect(address, **self.args(address))
            await comm.write({"op": "connection_stream", "reply": False})
            stream = self._opened[key] = BatchedSend(interval="2ms")
            stream.start(comm)
        stream = self._opened[key]

        async def send() -> None:
            for i in range(BATCHED):
                stream.send({"op": "note", "key": f"task-{i}", "nbytes": 28, "type": "int"})
                if i % BURST == 0:
                    await asyncio.sleep(0)
            noted = await remote.noted(count=BATCHED)
            assert noted == BATCHED, noted

        result = await repeat_async(send, seconds)
        return result | {"rate": result["rate"] * BATCHED, "count": result["count"] * BATCHED}

    async def connections(self, address: str, seconds: float, callers: int) -> Result:
        """Connections that are opened, with the handshake, and closed."""

        address = await self.reach(address)

        async def once() -> None:
            comm = await connect(address, **self.args(address))
            await comm.close()

        return await repeat_together([once] * callers, seconds)

    async def hold(self, address: str, count: int) -> Result:
        """Open connections, use each once, and keep them."""
        address = await self.reach(address)
        missing = count - len(self._held)

        async def open_some(number: int) -> None:
            for _ in range(number):
                comm = await connect(address, **self.args(address))
                self._held.append(comm)
                await send_recv(comm, op="add", x=1, y=2)

        shares = [missing // OPENING + (i < missing % OPENING) for i in range(OPENING)]
        await asyncio.gather(*map(open_some, shares))
        return {"held": len(self._held)}

    async def rest(self) -> Result:
        """Close what was opened."""
        for opened in reversed(self._opened.values()):
            if isinstance(opened, rpc):
                await opened.close_rpc()
            else:
                await opened.close()
        self._opened.clear()
        return {}


async def call(options: argparse.Namespace) -> None:
    channel = Channel()
    client = Client(options.certificates)
    channel.write({})
    names = [name for name in vars(Client) if not name.startswith("_")]
    await channel.answer_async({name: getattr(client, name) for name in names})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["serve", "call"])
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--certificates", type=Path, required=True)
    options = parser.parse_args()
    logging.getLogger("distributed").setLevel(logging.ERROR)
    side = serve if options.side == "serve" else call
    run(lambda: side(options), options.loop)
