"""Ten thousand calls or connections leak nothing; and short runs of ``make soak``.

Each of the first tests does a part of its work first, to create the objects that are created once.
It then measures the objects, memory, tasks and file descriptors that the rest adds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import sys
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from distributed.comm.core import Comm
from distributed.core import ConnectionPool, connect, rpc
from distributed.tests import soak
from distributed.tests.besieged import MB
from distributed.tests.servers import TCP, serving
from distributed.utils_test import async_poll_for, gen_test, inc

with contextlib.suppress(ImportError):
    # A server imports it after half a second, which may be after the first measurement.
    import psutil  # noqa: F401

over_tcp_and_inproc = pytest.mark.parametrize("listen_at", [TCP, "inproc://"])

#: Number of rounds before the first measurement.
WARM_UP = 1_000

#: Maximum increase, much less than one object or 1 kB for each round.
MORE_OBJECTS = 500
MORE_BYTES = 4 * 2**20


class Footprint(NamedTuple):
    """The resources that this process uses."""

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


async def assert_leaks_nothing(
    do: Callable[[int], Awaitable[None]], open_comms: int, rounds: int = 10_000
) -> None:
    """Fail if *rounds* rounds add resources, or do not end with *open_comms* open comms."""

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


@over_tcp_and_inproc
@gen_test(timeout=110)
async def test_ten_thousand_calls_leak_nothing(listen_at):
    async with serving(listen_at, {"inc": inc}) as server, rpc(server.address) as remote:

        async def call(i: int) -> None:
            assert await remote.inc(x=i) == i + 1

        await assert_leaks_nothing(call, open_comms=1)
        assert len(remote.comms) == 1


@over_tcp_and_inproc
@gen_test(timeout=110)
async def test_ten_thousand_calls_through_a_pool_leak_nothing(listen_at):
    async with serving(listen_at, {"inc": inc}) as server, ConnectionPool() as pool:

        async def call(i: int) -> None:
            assert await pool(server.address).inc(x=i) == i + 1

        await assert_leaks_nothing(call, open_comms=1)
        assert pool.open == 1


@over_tcp_and_inproc
@gen_test(timeout=110)
async def test_ten_thousand_connections_leak_nothing(listen_at):
    async with serving(listen_at) as server:

        async def connect_and_close(i: int) -> None:
            comm = await connect(server.address)
            await comm.close()

        await assert_leaks_nothing(connect_and_close, open_comms=0)


@over_tcp_and_inproc
@gen_test(timeout=110)
async def test_thousands_of_connections_of_a_pool_leak_nothing(listen_at):
    async with serving(listen_at, {"inc": inc}) as server, ConnectionPool(limit=2) as pool:

        async def call_and_collect(i: int) -> None:
            assert await pool(server.address).inc(x=i) == i + 1
            pool.collect()

        await assert_leaks_nothing(call_and_collect, open_comms=0, rounds=3000)
        assert not pool._connecting


# The program of ``make soak``

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

FLAT = {"memory": 50 * MB, "descriptors": 9, "tasks": 2, "blocks": 200_000}


def rounds_with(side, **growing):
    """Return nine rounds in which these resources of one side grow by a step each time."""
    rounds = []
    for i in range(9):
        used = {"server": dict(FLAT), "client": dict(FLAT)}
        for kind, step in growing.items():
            used[side][kind] += i * step
        rounds.append(soak.Round(1.0, soak.Counter(calls=1), 1, **used))
    return rounds


@linux
@gen_test(timeout=110)
async def test_a_short_run_of_make_soak(capsys):
    assert await soak.soak(calls=600, rounds=2, warm_up=1) == []
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4
    assert table[-1].startswith("600 calls")


@linux
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("kind", FLAT)
def test_the_soak_run_fails_if_something_grows_in_each_round(side, kind):
    step = {"memory": 10 * MB, "descriptors": 1, "tasks": 1, "blocks": 1_000}[kind]
    (failure,) = soak.growths(rounds_with(side, **{kind: step}))
    assert failure.startswith(f"{kind} of the {side} grew from ")
    assert soak.growths(rounds_with(side)) == []


@linux
@gen_test(timeout=110)
async def test_the_soak_run_fails_if_an_answer_is_wrong():
    async def wrong(**kwargs):
        return b"wrong"

    async with serving(TCP, {"echo": wrong}) as server, ConnectionPool() as pool:
        client = soak.Client(server.address, pool, random.Random(1))
        with pytest.raises(AssertionError, match="got b'wrong' in the place of"):
            await client.echo(1000)


@linux
def test_the_soak_run_fails_if_an_error_reached_no_caller():
    assert soak.is_fault("ERROR:asyncio:Task exception was never retrieved")
    assert not soak.is_fault("INFO:distributed.core:Connection has been closed")
