"""A limit: Tornado's `IOStream` with an eight-byte length and msgpack; no comms, no dispatch."""

from __future__ import annotations

import struct
import sys
from collections.abc import Awaitable, Callable

import msgpack
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient
from tornado.tcpserver import TCPServer

from benchmarks.contestants.channel import Channel, call_async, run

HEADER = struct.Struct("<Q")


async def read(stream: IOStream) -> dict[str, int]:
    (size,) = HEADER.unpack(await stream.read_bytes(HEADER.size))
    message: dict[str, int] = msgpack.unpackb(await stream.read_bytes(size))
    return message


async def write(stream: IOStream, message: dict[str, int]) -> None:
    data = msgpack.packb(message)
    await stream.write(HEADER.pack(len(data)) + data)


class Adder(TCPServer):
    async def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        stream.set_nodelay(True)
        try:
            while True:
                message = await read(stream)
                await write(stream, {"result": message["x"] + message["y"]})
        except StreamClosedError:
            pass


async def serve() -> None:
    channel = Channel()
    server = Adder()
    server.listen(0, "127.0.0.1")
    (sock,) = server._sockets.values()
    channel.write({"addresses": {"tcp": str(sock.getsockname()[1])}})
    await channel.answer_async({})
    server.stop()


async def connect(address: str) -> IOStream:
    stream = await TCPClient().connect("127.0.0.1", int(address))
    stream.set_nodelay(True)
    return stream


def make_call(stream: IOStream) -> Callable[[], Awaitable[int]]:
    async def add() -> int:
        await write(stream, {"x": 1, "y": 2})
        return (await read(stream))["result"]

    return add


async def close(stream: IOStream) -> None:
    stream.close()


async def call() -> None:
    await call_async(connect, make_call, close)


if __name__ == "__main__":
    run(serve if sys.argv[1] == "serve" else call, "asyncio")
