"""This project and the original: one program for both, since both have the same interface.

``serve`` runs a `Server` that listens on every available transport, ``call`` runs the client.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.contestants.anatomy import MessageTimer
from benchmarks.contestants.channel import Channel, Result, run
from benchmarks.contestants.core_load import (
    calls_beside_large_values,
    compressible,
    send_over,
    use_compression,
)
from benchmarks.contestants.timing import repeat_async, repeat_together, summary
from distributed.batched import BatchedSend
from distributed.core import Comm, ConnectionPool, Server, connect, rpc, send_recv
from distributed.protocol import Serialize, to_serialize
from distributed.security import Security

Call = Callable[[], Awaitable[Any]]

#: Bytes of each array in a message of many arrays.
SMALL_ARRAY = 800

#: Number of messages that are sent over a `BatchedSend` before waiting for them to be handled, and
#: in one iteration of the event loop.
BATCHED, BURST = 20_000, 100

#: Number of items in a stream.
STREAMED = 10_000

#: Number of calls in the burst before `Client.after_burst`, and the seconds that each takes.
CALLERS, PAUSE = 64, 0.1

#: Number of connections that are opened concurrently for `Client.open_idle`.
OPENING = 50


def add(x: int, y: int) -> int:
    return x + y


def echo_data(data: Any) -> Any:
    return data


def echo_array(data: Any) -> Any:
    return to_serialize(data)


def echo_arrays(data: Any) -> Any:
    return [to_serialize(array) for array in data]


async def pause() -> None:
    await asyncio.sleep(PAUSE)


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


class MessageCounter:
    """A counter of the messages of a stream, which can wait for a number of them."""

    def __init__(self) -> None:
        self.count = 0
        self.wanted = 0
        self.reached = asyncio.Event()

    def add_message(self, key: str, nbytes: int, type: str) -> None:
        self.count += 1
        if self.count == self.wanted:
            self.reached.set()

    async def wait_for(self, count: int) -> int:
        """Wait until *count* messages were handled; return the number and start again at 0."""
        self.wanted = count
        if self.count < count:
            await self.reached.wait()
        self.reached.clear()
        handled, self.count, self.wanted = self.count, 0, 0
        return handled


def security(certificates: Path) -> Security:
    files = {
        f"tls_{role}_{part}": str(certificates / f"{part}.pem")
        for role in ("client", "scheduler")
        for part in ("cert", "key")
    }
    return Security(tls_ca_file=str(certificates / "ca.pem"), require_encryption=False, **files)


async def make_server() -> Server:
    counter = MessageCounter()
    timers: list[MessageTimer] = []

    def start_timer() -> None:
        timers.append(MessageTimer().__enter__())

    def stop_timer() -> dict[str, float]:
        timer = timers.pop()
        timer.__exit__()
        return timer.medians()

    def more_handlers(count: int) -> int:
        server.handlers.update({f"more-{i}": add for i in range(count)})
        return len(server.handlers)

    handlers: dict[str, Callable[..., Any]] = {
        "add": add,
        "echo_data": echo_data,
        "echo_array": echo_array,
        "echo_arrays": echo_arrays,
        "wait_for_messages": counter.wait_for,
        "more_handlers": more_handlers,
        "numbers": numbers,
        "pause": pause,
        "use_compression": use_compression,
        "start_timer": start_timer,
        "stop_timer": stop_timer,
    }
    server = Server(handlers, stream_handlers={"message": counter.add_message})
    await server
    return server


async def listen_everywhere(server: Server, certificates: Path) -> dict[str, str]:
    """Listen on each transport that the library has; return scheme → address."""
    listen_args = security(certificates).get_listen_args("scheduler")
    addresses = {}
    for name, where in (
        *((scheme, f"{scheme}://127.0.0.1:0") for scheme in ("tcp", "tls", "ws")),
        ("unix", "unix://"),
        # Peers on one host do not compress; clients connect to this from another address.
        ("tcp to another host", "tcp://127.0.0.2:0"),
    ):
        scheme = where.partition(":")[0]
        try:
            await server.listen(where, **(listen_args if scheme == "tls" else {}))
        except ValueError:  # the library does not have this scheme
            continue
        addresses[name] = server.listeners[-1].contact_address
    return addresses


async def serve(options: argparse.Namespace) -> None:
    channel = Channel()
    server = await make_server()
    addresses = await listen_everywhere(server, options.certificates)
    channel.write({"addresses": addresses})
    await channel.answer_async({})
    await server.close()


class Client:
    """The client; its public methods are the commands.

    Connections that a command opens stay open until `close_all`, so that repeating the command does
    not measure the opening. The connections of `open_idle` stay open until the process ends.
    """

    def __init__(self, certificates: Path):
        self.tls_args = security(certificates).get_connection_args("client")
        # (purpose, address) → the object to close at `close_all`
        self._opened: dict[Any, Any] = {}
        self._idle: list[Comm] = []

    def _args(self, address: str) -> dict[str, Any]:
        return self.tls_args if address.startswith("tls:") else {}

    async def _resolve(self, address: str) -> str:
        """Return the address to connect to; for ``inproc``, make a server in this process."""
        if address != "inproc":
            return address
        if address not in self._opened:
            self._opened[address] = server = await make_server()
            await server.listen("inproc://")
        return str(self._opened[address].address)

    async def _remote(self, address: str) -> Any:
        address = await self._resolve(address)
        key = "remote", address
        if key not in self._opened:
            self._opened[key] = rpc(address, connection_args=self._args(address))
        return self._opened[key]

    async def sequential(self, address: str, seconds: float) -> Result:
        """Make small calls one after the other."""
        remote = await self._remote(address)
        return await repeat_async(lambda: remote.add(x=1, y=2), seconds)

    async def anatomy(self, address: str, seconds: float, size: int) -> Result:
        """Measure the parts of a call on both sides: a small call, or one that echoes an array."""
        remote = await self._remote(address)
        array = to_serialize(np.zeros(size // 8))
        call = (lambda: remote.echo_array(data=array)) if size else (lambda: remote.add(x=1, y=2))
        await remote.start_timer()
        with MessageTimer() as timer:
            # The timer starts a measurement at the end of the previous call.
            await call()
            result = await repeat_async(call, seconds)
        sides = {"client": timer.medians(), "server": await remote.stop_timer()}
        return result | {
            f"{side} {what}": value
            for side, medians in sides.items()
            for what, value in medians.items()
        }

    async def call_many(self, address: str, count: int) -> Result:
        """Make *count* small calls."""
        remote = await self._remote(address)
        for _ in range(count):
            await remote.add(x=1, y=2)
        return {}

    async def add_handlers(self, address: str, count: int) -> Result:
        """Add *count* handlers to the server."""
        remote = await self._remote(address)
        return {"handlers": await remote.more_handlers(count=count)}

    async def pooled(self, address: str, seconds: float, callers: int) -> Result:
        """Make small calls concurrently over a pool of connections."""
        address = await self._resolve(address)
        key = "pool", address
        if key not in self._opened:
            pool = await ConnectionPool(limit=512, connection_args=self._args(address))
            self._opened[key] = pool
        remote = self._opened[key](address)
        return await repeat_together([lambda: remote.add(x=1, y=2)] * callers, seconds)

    async def taking_turns(self, address: str, seconds: float, callers: int) -> Result:
        """Make small calls concurrently over one connection, on which the callers take turns."""
        address = await self._resolve(address)
        key = "comm", address
        if key not in self._opened:
            self._opened[key] = await connect(address, **self._args(address))
        comm, turn = self._opened[key], asyncio.Lock()

        async def call() -> None:
            async with turn:
                await send_recv(comm, op="add", x=1, y=2)

        return await repeat_together([call] * callers, seconds)

    async def payload(self, address: str, seconds: float, size: int, kind: str) -> Result:
        """Echo *size* bytes, as bytes or as an array."""
        remote = await self._remote(address)
        if kind == "bytes":
            data: Any = bytes(range(256)) * (size // 256) + bytes(size % 256)
            message, call = data, remote.echo_data
        else:
            data = np.arange(size, dtype="u1")
            message, call = to_serialize(data), remote.echo_array
        answers: list[Any] = []

        async def exchange() -> None:
            answers[:] = []
            answers.append(await call(data=message))

        result = await repeat_async(exchange, seconds)
        (answer,) = answers
        while isinstance(answer, Serialize):  # the original's inproc leaves it wrapped
            answer = answer.data
        assert type(answer) is type(data), type(answer)
        assert len(answer) == size, len(answer)
        assert all(answer[i] == data[i] for i in (0, size // 2, size - 1))
        return result

    async def shared_memory(self, address: str, seconds: float, size: int) -> Result:
        """Echo an array in shared memory, which the original does not have."""
        from distributed import shared

        remote = await self._remote(address)
        data = shared.empty(size, "u1")
        data[:] = 1
        answers: list[Any] = []

        async def exchange() -> None:
            answers[:] = [await remote.echo_array(data=to_serialize(data))]

        result = await repeat_async(exchange, seconds)
        assert np.shares_memory(answers[0], data)
        return result

    async def floats(self, address: str, seconds: float, count: int, wrapped: bool) -> Result:
        """Send a list of floats, plain or in `to_serialize`, and receive it as plain values."""
        remote = await self._remote(address)
        values = [float(i) for i in range(count)]
        data = to_serialize(values) if wrapped else values
        return await repeat_async(lambda: remote.echo_data(data=data), seconds)

    async def after_burst(self, address: str, seconds: float, size: int) -> Result:
        """Echo an array over a pool after a burst of calls, and over one connection."""
        address = await self._resolve(address)
        data = to_serialize(np.zeros(size, dtype="u1"))
        calls: list[Call] = []
        for callers in (1, CALLERS):
            key = f"pool after {callers}", address
            if key not in self._opened:
                pool = await ConnectionPool(connection_args=self._args(address))
                self._opened[key] = pool
                await asyncio.gather(*(pool(address).pause() for _ in range(callers)))
                assert pool.open == callers, pool
            remote = self._opened[key](address)
            calls.append(lambda remote=remote: remote.echo_array(data=data))  # type: ignore[misc]
        one_connection, after_burst = calls
        # A faster or slower moment of the machine affects both.
        before = await repeat_async(one_connection, seconds / 4)
        result = await repeat_async(after_burst, seconds / 2)
        after = await repeat_async(one_connection, seconds / 4)
        count = before["count"] + after["count"]
        taken = before["count"] / before["rate"] + after["count"] / after["rate"]
        return result | {"one connection": count / taken}

    async def cold(self, address: str, seconds: float, size: int) -> Result:
        """Echo an array as the first call on a new connection."""
        address = await self._resolve(address)
        data = to_serialize(np.zeros(size, dtype="u1"))
        times: list[float] = []
        end = perf_counter() + seconds
        while perf_counter() < end or not times:
            remote = rpc(address, connection_args=self._args(address))
            comm = await remote.live_comm()
            remote.comms[comm] = True
            begin = perf_counter()
            await remote.echo_array(data=data)
            times.append(perf_counter() - begin)
            assert list(remote.comms) == [comm]
            await remote.close_rpc()
        return summary(times, sum(times))

    async def nested(self, address: str, seconds: float, count: int) -> Result:
        """Echo a message of many small nested values."""
        remote = await self._remote(address)
        data = [{"id": i, "range": [i, i + 1], "name": "some value"} for i in range(count)]
        return await repeat_async(lambda: remote.echo_data(data=data), seconds)

    async def arrays(self, address: str, seconds: float, count: int) -> Result:
        """Echo a message of many small arrays."""
        remote = await self._remote(address)
        data = [to_serialize(np.full(SMALL_ARRAY // 8, float(i))) for i in range(count)]
        return await repeat_async(lambda: remote.echo_arrays(data=data), seconds)

    async def batched(self, address: str, seconds: float) -> Result:
        """Send small messages over a `BatchedSend`, and wait until all are handled."""
        remote = await self._remote(address)
        address = await self._resolve(address)
        key = "stream", address
        if key not in self._opened:
            comm = await connect(address, **self._args(address))
            await comm.write({"op": "connection_stream", "reply": False})
            stream = self._opened[key] = BatchedSend(interval="2ms")
            stream.start(comm)
        stream = self._opened[key]

        async def send() -> None:
            for i in range(BATCHED):
                stream.send({"op": "message", "key": f"task-{i}", "nbytes": 28, "type": "int"})
                if i % BURST == 0:
                    await asyncio.sleep(0)
            handled = await remote.wait_for_messages(count=BATCHED)
            assert handled == BATCHED, handled

        result = await repeat_async(send, seconds)
        return result | {"rate": result["rate"] * BATCHED, "count": result["count"] * BATCHED}

    async def streams(self, address: str, seconds: float, count: int) -> Result:
        """Send small messages over *count* streams at once, and wait until all are handled."""
        remote = await self._remote(address)
        streams = []
        for i in range(count):
            key = "stream", address, i
            if key not in self._opened:
                comm = await connect(await self._resolve(address), **self._args(address))
                await comm.write({"op": "connection_stream", "reply": False})
                self._opened[key] = BatchedSend(interval="2ms")
                self._opened[key].start(comm)
            streams.append(self._opened[key])
        return await send_over(streams, remote, seconds)

    async def compressed(self, address: str, seconds: float, size: int, codec: str) -> Result:
        """Make small calls while arrays of *size* bytes are sent, compressed, and echoed."""
        await (await self._remote(address)).use_compression(name=codec)
        use_compression(codec)
        key = "compressed", codec
        if key not in self._opened:
            # After a pause of the event loop, more connections would measure how fast they open.
            self._opened[key] = await ConnectionPool(limit=32)
        remote = self._opened[key](address)
        data = to_serialize(compressible(size))
        return await calls_beside_large_values(
            lambda: remote.add(x=1, y=2), lambda: remote.echo_array(data=data), seconds
        )

    async def streamed(self, address: str, seconds: float) -> Result:
        """Receive the small items of a streaming answer, which the original does not have."""
        remote = await self._remote(address)

        async def receive() -> None:
            expected = 0
            async for number in remote.numbers.stream(count=STREAMED):
                assert number == expected, number
                expected += 1
            assert expected == STREAMED, expected

        result = await repeat_async(receive, seconds)
        return result | {"rate": result["rate"] * STREAMED, "count": result["count"] * STREAMED}

    async def connections(self, address: str, seconds: float, callers: int) -> Result:
        """Open connections, with the handshake, and close them."""
        address = await self._resolve(address)

        async def once() -> None:
            comm = await connect(address, **self._args(address))
            await comm.close()

        return await repeat_together([once] * callers, seconds)

    async def open_idle(self, address: str, count: int) -> Result:
        """Open connections until there are *count* idle ones, and use each once."""
        address = await self._resolve(address)
        missing = count - len(self._idle)

        async def open_some(number: int) -> None:
            for _ in range(number):
                comm = await connect(address, **self._args(address))
                self._idle.append(comm)
                await send_recv(comm, op="add", x=1, y=2)

        shares = [missing // OPENING + (i < missing % OPENING) for i in range(OPENING)]
        await asyncio.gather(*map(open_some, shares))
        return {"idle": len(self._idle)}

    async def close_all(self) -> Result:
        """Close the connections that commands opened, except those of `open_idle`."""
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
