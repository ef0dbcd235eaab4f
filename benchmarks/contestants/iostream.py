"""A limit: Tornado's `IOStream`, eight bytes of length, and msgpack; no comms, no dispatch."""

from __future__ import annotations

import struct
import sys

import msgpack
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient
from tornado.tcpserver import TCPServer

from benchmarks.contestants.channel import Channel, Result, run
from benchmarks.contestants.timing import repeat_async

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


async def call() -> None:
    channel = Channel()
    streams: dict[str, IOStream] = {}

    async def sequential(address: str, seconds: float) -> Result:
        if address not in streams:
            streams[address] = await TCPClient().connect("127.0.0.1", int(address))
            streams[address].set_nodelay(True)
        stream = streams[address]

        async def add() -> None:
            await write(stream, {"x": 1, "y": 2})
            await read(stream)

        return await repeat_async(add, seconds)

    async def rest() -> Result:
        for stream in streams.values():
            stream.close()
        streams.clear()
        return {}

    channel.write({})
    await channel.answer_async({"sequential": sequential, "rest": rest})


if __name__ == "__main__":
    run(serve if sys.argv[1] == "serve" else call, "asyncio")
