"""gRPC on asyncio: a unary method, whose messages are msgpack rather than protocol buffers."""

from __future__ import annotations

import sys
from typing import Any

import grpc
import msgpack

from benchmarks.contestants.channel import Channel, Result, run
from benchmarks.contestants.timing import repeat_async

SERVICE, METHOD = "Calculator", "Add"


async def add(request: dict[str, int], context: Any) -> int:
    return request["x"] + request["y"]


async def serve() -> None:
    channel = Channel()
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(add, msgpack.unpackb, msgpack.packb)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel.write({"addresses": {"tcp": f"127.0.0.1:{port}"}})
    await channel.answer_async({})
    await server.stop(None)


async def call() -> None:
    channel = Channel()
    opened: dict[str, Any] = {}

    async def sequential(address: str, seconds: float) -> Result:
        if address not in opened:
            opened[address] = grpc.aio.insecure_channel(address)
        remote_add = opened[address].unary_unary(
            f"/{SERVICE}/{METHOD}", msgpack.packb, msgpack.unpackb
        )
        assert await remote_add({"x": 1, "y": 2}) == 3
        return await repeat_async(lambda: remote_add({"x": 1, "y": 2}), seconds)

    async def rest() -> Result:
        for each in opened.values():
            await each.close()
        opened.clear()
        return {}

    channel.write({})
    await channel.answer_async({"sequential": sequential, "rest": rest})


if __name__ == "__main__":
    run(serve if sys.argv[1] == "serve" else call, "asyncio")
