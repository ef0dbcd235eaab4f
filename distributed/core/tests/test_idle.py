"""Which idle connection a call uses, and the end of those that no call uses for long."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import asynccontextmanager
from typing import Any

import pytest

import distributed.config
from distributed.core import Comm, ConnectionPool, Server, rpc
from distributed.core.idle import CHECKS_PER_TIMEOUT, IdleTimeout
from distributed.tests.servers import TCP, TRANSPORTS, Gate, quiet, serving
from distributed.utils_test import async_poll_for, captured_logger, gen_test

KEY = "distributed.comm.timeouts.pool-idle"

BOTH = pytest.mark.parametrize("pooled", [False, True], ids=["rpc", "pool"])


class Clock:
    """The time of all `IdleTimeout` objects, in place of that of the system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(IdleTimeout, "clock", lambda _: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Caller:
    """Calls of one server over a pool, or over an `rpc` object."""

    def __init__(self, server: Server, pooled: bool) -> None:
        self.owner: Any
        self.remote: Any
        if pooled:
            self.owner = ConnectionPool()
            self.remote = self.owner(server.address)
        else:
            self.owner = self.remote = rpc(server.address)
        self.used: set[Comm] = set()
        server.handlers["note"] = self.note

    @property
    def open(self) -> int:
        """Number of connections."""
        return self.owner.open if isinstance(self.owner, ConnectionPool) else len(self.owner.comms)

    @property
    def in_use(self) -> set[Comm]:
        """The connections that calls use."""
        if isinstance(self.owner, ConnectionPool):
            return {comm for comms in self.owner.occupied.values() for comm in comms}
        return {comm for comm, idle in self.owner.comms.items() if not idle}

    async def call(self) -> Comm:
        """Make a call while no other is made, and return the connection that it used."""
        self.used.clear()
        await self.remote.note()
        (comm,) = self.used
        return comm

    def note(self) -> None:
        """Note the connections in use: a handler, which runs in the same process."""
        self.used |= self.in_use

    async def overlap(self, count: int, gate: Gate) -> list[asyncio.Future[Any]]:
        """Make *count* calls that wait for *gate*."""
        return [await gate.enter(self.remote.wait(key=key), key) for key in range(count)]

    async def burst(self, count: int, gate: Gate) -> None:
        """Make *count* calls that overlap; the last one ends last."""
        calls = await self.overlap(count, gate)
        for key, call in enumerate(calls):
            gate.open(key)
            await call


@asynccontextmanager
async def calling(transport, pooled, idle=None):
    """Run a server, and a caller whose idle connections close after *idle*."""
    gate = Gate()
    with distributed.config.set({KEY: idle}):
        async with serving(transport, {"wait": gate.handle}) as server:
            caller = Caller(server, pooled)
            async with caller.owner:
                yield server, caller, gate


@TRANSPORTS
@BOTH
@gen_test()
async def test_sequential_calls_use_one_connection_after_64_overlapping_calls(transport, pooled):
    async with calling(transport, pooled) as (_, caller, gate):
        await caller.burst(64, gate)
        assert caller.open == 64
        assert len({await caller.call() for _ in range(100)}) == 1
        assert caller.open == 64


@BOTH
@gen_test()
async def test_a_few_overlapping_calls_use_the_connections_that_were_used_last(pooled):
    async with calling(TCP, pooled) as (_, caller, gate):
        await caller.burst(20, gate)
        for _ in range(10):
            await asyncio.gather(*(caller.remote.note() for _ in range(3)))
        assert len(caller.used) == 3


@gen_test()
async def test_a_waiting_call_gets_the_connection_that_was_used_last():
    async with serving(TCP) as server, ConnectionPool(limit=2) as pool:
        one, two = [await pool.connect(server.address) for _ in range(2)]
        waiting = asyncio.create_task(pool.connect(server.address))
        await async_poll_for(lambda: pool._pending_count == 1, period=0)
        pool.reuse(server.address, two)
        assert await waiting is two
        pool.reuse(server.address, one)
        pool.reuse(server.address, two)
        assert await pool.connect(server.address) is two


@gen_test()
async def test_the_connection_that_was_not_used_for_longest_is_closed_to_free_a_place():
    async with serving(TCP) as one, serving(TCP) as two, ConnectionPool(limit=3) as pool:
        comms = [await pool.connect(one.address) for _ in range(3)]
        for comm in comms:
            pool.reuse(one.address, comm)
        await pool.connect(two.address)
        assert [comm.closed() for comm in comms] == [True, False, False]
        # It counts as used again.
        assert await pool.connect(one.address) is comms[2]
        assert await pool.connect(one.address) is comms[1]
        for comm in (comms[2], comms[1]):
            pool.reuse(one.address, comm)
        await pool.connect(two.address)
        assert [comm.closed() for comm in comms] == [True, False, True]


@gen_test()
async def test_the_idle_connections_of_a_pool_are_plain_sets_that_callers_may_change():
    async with serving(TCP) as server, ConnectionPool(limit=4) as pool:
        address = server.address
        comms = [await pool.connect(address) for _ in range(4)]
        assert type(pool.occupied[address]) is set
        for comm in comms:
            pool.reuse(address, comm)
        assert type(pool.available[address]) is set
        # The caller takes one away, and replaces the set by one with the others.
        pool.available[address].discard(comms[3])
        pool.available[address] = {comms[0], comms[1]}
        pool.available[address].add(comms[2])
        assert {await pool.connect(address) for _ in range(3)} == set(comms[:3])
        for comm in comms[:3]:
            pool.reuse(address, comm)
        pool.available.pop(address)
        assert await pool.connect(address) not in comms
        pool._validate()
        for comm in comms:
            comm.abort()


# Closing of idle connections


@gen_test()
async def test_idle_connections_stay_open_by_default(clock):
    async with serving(TCP) as server, ConnectionPool() as pool, rpc(server.address) as remote:
        await remote.echo(data=1)
        await pool(server.address).echo(data=1)
        assert pool._idle_timeout is None
        assert remote._idle_timeout is None


@TRANSPORTS
@BOTH
@gen_test()
async def test_surplus_connections_close_and_the_used_one_stays_open(transport, pooled, clock):
    async with calling(transport, pooled, "10s") as (server, caller, gate):
        await caller.burst(8, gate)
        used = await caller.call()
        timeout = caller.owner._idle_timeout
        for _ in range(4):
            clock.now += 3
            assert await caller.call() == used
            timeout.check()
        assert caller.open == 1
        await async_poll_for(lambda: len(server._comms) == 1)
        # The same connection is still usable.
        assert await caller.call() == used
        # The last one closes, too.
        clock.now += 9.9
        timeout.check()
        assert caller.open == 1
        clock.now += 0.2
        timeout.check()
        assert caller.open == 0
        await async_poll_for(lambda: not server._comms)
        assert await caller.remote.echo(data="again") == "again"


@BOTH
@gen_test()
async def test_a_connection_in_use_is_never_closed(pooled, clock):
    async with calling(TCP, pooled, "1s") as (_, caller, gate):
        await caller.burst(5, gate)
        keys = "a", "b", "c"
        calls = [await gate.enter(caller.remote.wait(key=key), key) for key in keys]
        clock.now += 1000
        caller.owner._idle_timeout.check()
        assert caller.open == 3
        gate.open(*keys)
        assert await asyncio.gather(*calls) == ["a", "b", "c"]
        # Their time begins when they become idle.
        caller.owner._idle_timeout.check()
        assert caller.open == 3


@TRANSPORTS
@BOTH
@gen_test()
async def test_idle_connections_close_without_further_calls_and_the_timer_ends(transport, pooled):
    async with calling(transport, pooled, "10ms") as (server, caller, gate):
        await caller.burst(5, gate)
        await async_poll_for(lambda: caller.open == 0, period=0.002)
        await async_poll_for(lambda: not server._comms)
        assert not caller.owner._idle_timeout.is_running


@BOTH
@gen_test()
async def test_no_call_fails_while_connections_close_all_the_time(pooled):
    async with calling(TCP, pooled, "1ms") as (server, caller, _):

        async def pause(delay):
            await asyncio.sleep(delay)
            return delay

        server.handlers["pause"] = pause

        async def make_calls(number):
            for i in range(30):
                delay = (number + i) % 4 / 1000
                assert await caller.remote.pause(delay=delay) == delay
                await asyncio.sleep((number * i) % 5 / 1000)

        with captured_logger("distributed") as log:
            await asyncio.gather(*map(make_calls, range(8)))
        assert log.getvalue() == ""


@BOTH
@gen_test()
async def test_no_timer_runs_while_no_connection_is_idle(pooled, clock):
    async with calling(TCP, pooled, "10s") as (_, caller, gate):
        timeout = caller.owner._idle_timeout
        assert not timeout.is_running
        calls = await caller.overlap(2, gate)
        timeout.check()
        assert not timeout.is_running
        gate.open(0)
        await calls[0]
        assert timeout.is_running
        timeout.check()
        assert timeout.is_running
        again = await gate.enter(caller.remote.wait(key=2), 2)
        # It ends with the next check.
        timeout.check()
        assert not timeout.is_running
        for key in (1, 2):
            gate.open(key)
        await asyncio.gather(calls[1], again)
        assert timeout.is_running
    assert not timeout.is_running


@gen_test()
async def test_the_pools_of_an_event_loop_share_a_timer():
    def timers():
        return sum(not handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)

    with distributed.config.set({KEY: "1h"}):
        async with serving("inproc://") as server:
            owners = [rpc(server.address) for _ in range(10)]
            before = timers()
            for owner in owners:
                await owner.echo(data=1)
            assert timers() == before + 1
            for owner in owners:
                owner.close_rpc()
            assert timers() == before


@gen_test()
async def test_a_comm_that_a_caller_of_live_comm_marks_as_idle_is_closed(clock):
    with distributed.config.set({KEY: "10s"}):
        async with serving(TCP) as server, rpc(server.address) as remote:
            timeout = remote._idle_timeout
            comm = await remote.live_comm()
            clock.now += 100
            timeout.check()
            assert not comm.closed()
            assert timeout.is_running
            remote.comms[comm] = True
            timeout.check()
            clock.now += 9
            timeout.check()
            assert not comm.closed()
            clock.now += 1
            timeout.check()
            assert comm.closed()
            assert not remote.comms
            assert not timeout.is_running


@gen_test()
async def test_a_connection_that_a_caller_took_from_the_sets_of_a_pool_is_not_closed(clock):
    with distributed.config.set({KEY: "10s"}):
        async with serving(TCP) as server, ConnectionPool() as pool:
            comms = [await pool.connect(server.address) for _ in range(2)]
            for comm in comms:
                pool.reuse(server.address, comm)
            pool.available[server.address].remove(comms[0])
            clock.now += 11
            pool._idle_timeout.check()
            assert [comm.closed() for comm in comms] == [False, True]
            assert not pool.available
            comms[0].abort()


@gen_test()
async def test_a_pool_that_is_dropped_is_freed_and_its_timer_ends():
    with distributed.config.set({KEY: "1h"}):
        async with serving("inproc://") as server:
            pool = await ConnectionPool()
            await pool(server.address).echo(data=1)
            remote = rpc(server.address)
            await remote.echo(data=1)
            timeouts = [pool._idle_timeout, remote._idle_timeout]
            pool.collect()
            gone = [weakref.ref(pool), weakref.ref(remote)]
            with quiet():
                del pool, remote
                gc.collect()
            assert [ref() for ref in gone] == [None, None]
            for timeout in timeouts:
                timeout.check()
                assert not timeout.is_running


@gen_test()
async def test_connections_are_checked_several_times_per_timeout(monkeypatch):
    checks = []
    monkeypatch.setattr(IdleTimeout, "check", lambda self: checks.append(self.seconds))
    with distributed.config.set({KEY: "20ms"}):
        async with serving(TCP) as server, rpc(server.address) as remote:
            await remote.echo(data=1)
            assert remote._idle_timeout._timer.callback_time == 20 / CHECKS_PER_TIMEOUT
            await async_poll_for(lambda: len(checks) >= 3, period=0.001)


@gen_test()
async def test_the_timeout_is_that_of_the_configuration_when_the_object_is_made():
    with distributed.config.set({KEY: "2m"}):
        pool, remote = ConnectionPool(), rpc("inproc://nowhere")
    assert (pool._idle_timeout.seconds, remote._idle_timeout.seconds) == (120, 120)
    remote.close_rpc()
