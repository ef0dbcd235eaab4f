"""ZeroMQ on asyncio: request and reply sockets, with messages in msgpack."""

from __future__ import annotations

import asyncio
import sys

import msgpack
import zmq
import zmq.asyncio

from benchmarks.contestants.channel import Channel, Result, run
from benchmarks.contestants.timing import repeat_async


async def answer(socket: zmq.asyncio.Socket) -> None:
    while True:
        request = msgpack.unpackb(await socket.recv())
        await socket.send(msgpack.packb(request["x"] + request["y"]))


async def serve() -> None:
    channel = Channel()
    with zmq.asyncio.Context() as context, context.socket(zmq.REP) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        answering = asyncio.create_task(answer(socket))
        channel.write({"addresses": {"tcp": f"tcp://127.0.0.1:{port}"}})
        await channel.answer_async({})
        answering.cancel()


async def call() -> None:
    channel = Channel()
    context = zmq.asyncio.Context()
    opened: dict[str, zmq.asyncio.Socket] = {}

    async def sequential(address: str, seconds: float) -> Result:
        if address not in opened:
            opened[address] = context.socket(zmq.REQ)
            opened[address].connect(address)
        socket = opened[address]

        async def add() -> int:
            await socket.send(msgpack.packb({"x": 1, "y": 2}))
            result: int = msgpack.unpackb(await socket.recv())
            return result

        assert await add() == 3
        return await repeat_async(add, seconds)

    async def rest() -> Result:
        for socket in opened.values():
            socket.close()
        opened.clear()
        return {}

    channel.write({})
    await channel.answer_async({"sequential": sequential, "rest": rest})


if __name__ == "__main__":
    run(serve if sys.argv[1] == "serve" else call, "asyncio")
