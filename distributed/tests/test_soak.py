"""Ten thousand calls, and ten thousand connections, leave nothing behind.

Each test does a part of its work first, so that whatever is made once is there, and measures then
what the rest adds: objects, memory, tasks and descriptors.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from distributed.comm.core import Comm
from distributed.core import ConnectionPool, Server, connect, rpc
from distributed.utils_test import async_poll_for, gen_test, inc

over_each_transport = pytest.mark.parametrize("listen_at", ["tcp://127.0.0.1:0", "inproc://"])

WARM_UP = 1_000

#: Far below one object, or 1 kB, for each of the rounds.
MORE_OBJECTS = 500
MORE_BYTES = 4 * 2**20


class Footprint(NamedTuple):
    """What this process holds."""

    objects: int
    blocks: int
    resident: int
    descriptors: int

    @classmethod
    def measure(cls) -> Footprint:
        gc.collect()
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return cls(
            objects=len(gc.get_objects()),
            blocks=sys.getallocatedblocks(),
            resident=pages * os.sysconf("SC_PAGESIZE"),
            descriptors=len(os.listdir("/proc/self/fd")),
        )


async def assert_leaves_nothing(
    do: Callable[[int], Awaitable[None]], open_comms: int, rounds: int = 10_000
) -> None:
    """Fail if many rounds leave more than a few do; afterwards so many comms are open."""

    def at_rest() -> bool:
        # Both ends are in this process, and a task serves each connection.
        gc.collect()
        return (
            len(Comm._instances) == 2 * open_comms
            and len(asyncio.all_tasks()) <= tasks + open_comms
        )

    tasks = len(asyncio.all_tasks())
    for i in range(WARM_UP):
        await do(i)
    await async_poll_for(at_rest, period=0.001)
    before = Footprint.measure()
    for i in range(rounds):
        await do(i)
    await async_poll_for(at_rest, period=0.001)
    after = Footprint.measure()
    assert after.descriptors == before.descriptors
    assert after.objects - before.objects < MORE_OBJECTS
    assert after.blocks - before.blocks < 4 * MORE_OBJECTS
    assert after.resident - before.resident < MORE_BYTES


@over_each_transport
@gen_test(timeout=60)
async def test_ten_thousand_calls_leave_nothing_behind(listen_at):
    async with Server({"inc": inc}) as server:
        await server.listen(listen_at)
        async with rpc(server.address) as remote:

            async def call(i: int) -> None:
                assert await remote.inc(x=i) == i + 1

            await assert_leaves_nothing(call, open_comms=1)
            assert len(remote.comms) == 1


@over_each_transport
@gen_test(timeout=60)
async def test_ten_thousand_calls_through_a_pool_leave_nothing_behind(listen_at):
    async with Server({"inc": inc}) as server, ConnectionPool() as pool:
        await server.listen(listen_at)

        async def call(i: int) -> None:
            assert await pool(server.address).inc(x=i) == i + 1

        await assert_leaves_nothing(call, open_comms=1)
        assert pool.open == 1


@over_each_transport
@gen_test(timeout=60)
async def test_ten_thousand_connections_leave_nothing_behind(listen_at):
    async with Server({}) as server:
        await server.listen(listen_at)

        async def connect_and_close(i: int) -> None:
            comm = await connect(server.address)
            await comm.close()

        await assert_leaves_nothing(connect_and_close, open_comms=0)


@over_each_transport
@gen_test(timeout=60)
async def test_thousands_of_connections_of_a_pool_leave_nothing_behind(listen_at):
    async with Server({"inc": inc}) as server, ConnectionPool(limit=2) as pool:
        await server.listen(listen_at)

        async def call_and_collect(i: int) -> None:
            assert await pool(server.address).inc(x=i) == i + 1
            pool.collect()

        await assert_leaves_nothing(call_and_collect, open_comms=0, rounds=3000)
        assert not pool._connecting
