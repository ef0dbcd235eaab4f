"""gRPC on asyncio: a unary method with messages in msgpack instead of protocol buffers."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import msgpack

from benchmarks.contestants.channel import Channel, call_async, run

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


async def connect(address: str) -> Any:
    return grpc.aio.insecure_channel(address)


def make_call(channel: Any) -> Callable[[], Awaitable[Any]]:
    remote_add = channel.unary_unary(f"/{SERVICE}/{METHOD}", msgpack.packb, msgpack.unpackb)
    return lambda: remote_add({"x": 1, "y": 2})


async def call() -> None:
    await call_async(connect, make_call, lambda channel: channel.close())


if __name__ == "__main__":
    run(serve if sys.argv[1] == "serve" else call, "asyncio")
