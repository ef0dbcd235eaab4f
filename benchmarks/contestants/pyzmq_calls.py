"""ZeroMQ on asyncio: request and reply sockets, with messages in msgpack."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import msgpack
import zmq
import zmq.asyncio

from benchmarks.contestants.channel import Channel, call_async, run


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


def make_call(socket: zmq.asyncio.Socket) -> Callable[[], Awaitable[int]]:
    async def add() -> int:
        await socket.send(msgpack.packb({"x": 1, "y": 2}))
        result: int = msgpack.unpackb(await socket.recv())
        return result

    return add


async def call() -> None:
    context = zmq.asyncio.Context()

    async def connect(address: str) -> zmq.asyncio.Socket:
        socket = context.socket(zmq.REQ)
        socket.connect(address)
        return socket

    async def close(socket: zmq.asyncio.Socket) -> None:
        socket.close()

    await call_async(connect, make_call, close)


if __name__ == "__main__":
    run(serve if sys.argv[1] == "serve" else call, "asyncio")
