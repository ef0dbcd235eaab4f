"""xoscar: a method of an actor in the main process of an actor pool."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import xoscar

from benchmarks.contestants.channel import Channel, call_async, run

UID = "calculator"


class Calculator(xoscar.Actor):
    def add(self, x: int, y: int) -> int:
        return x + y


async def serve() -> None:
    channel = Channel()
    pool = await xoscar.create_actor_pool("127.0.0.1:0", n_process=0)
    await xoscar.create_actor(Calculator, address=pool.external_address, uid=UID)
    channel.write({"addresses": {"tcp": pool.external_address}})
    await channel.answer_async({})
    await pool.stop()


async def connect(address: str) -> Any:
    return await xoscar.actor_ref(address=address, uid=UID)


def make_call(reference: Any) -> Callable[[], Awaitable[Any]]:
    return lambda: reference.add(1, 2)


async def close(reference: Any) -> None:
    """Do nothing: xoscar keeps its connections until the process ends."""


async def call() -> None:
    await call_async(connect, make_call, close)


if __name__ == "__main__":
    run(serve if sys.argv[1] == "serve" else call, "asyncio")
