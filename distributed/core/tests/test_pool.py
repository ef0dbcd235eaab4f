"""Connections that a ``ConnectionPool`` shares among calls."""

from __future__ import annotations

import asyncio
import gc
import math
from contextlib import suppress
from typing import Any

import pytest

from distributed import core
from distributed.core import Comm, CommClosedError, ConnectionPool, PooledRPCCall, Status, connect
from distributed.tests.servers import TCP, TRANSPORTS, Gate, serving
from distributed.utils_test import async_poll_for, captured_logger, gen_test, inc


class SlowConnect:
    """A replacement of ``connect`` whose attempts wait until the test decides their outcome."""

    def __init__(self) -> None:
        self.attempts: list[str] = []
        self.made: list[Comm] = []
        self._proceed: list[asyncio.Future[None]] = []
        self._more = asyncio.Condition()

    async def __call__(self, addr: str, *args: Any, **kwargs: Any) -> Comm:
        proceed = asyncio.get_running_loop().create_future()
        async with self._more:
            self.attempts.append(addr)
            self._proceed.append(proceed)
            self._more.notify_all()
        await proceed
        comm = await connect(addr, *args, **kwargs)
        self.made.append(comm)
        return comm

    async def begun(self, count: int) -> None:
        """Wait until *count* attempts have begun."""
        async with self._more:
            await self._more.wait_for(lambda: len(self.attempts) >= count)

    def succeed(self, attempt: int) -> None:
        self._proceed[attempt].set_result(None)

    def fail(self, attempt: int, error: Exception) -> None:
        self._proceed[attempt].set_exception(error)


@pytest.fixture
def slow(monkeypatch):
    attempts = SlowConnect()
    monkeypatch.setattr(core, "connect", attempts)
    return attempts


async def waiting(pool: ConnectionPool, addr: str, **kwargs: Any) -> asyncio.Task[Comm]:
    """Start to connect while no place is free, and return the task once it waits for one."""
    count = pool._pending_count
    task = asyncio.create_task(pool.connect(addr, **kwargs))
    while pool._pending_count == count:
        await asyncio.sleep(0)
    return task


# Calls


@TRANSPORTS
@gen_test()
async def test_calls_go_to_many_servers_over_one_pool(transport):
    async with (
        serving(transport, {"name": lambda: "one"}) as one,
        serving(transport, {"name": lambda: "two"}) as two,
        ConnectionPool() as pool,
    ):
        answers = await asyncio.gather(*(pool(s.address).name() for s in (one, two, one, two)))
        assert answers == ["one", "two", "one", "two"]
        assert {addr: len(comms) for addr, comms in pool.available.items()} == {
            one.address: 2,
            two.address: 2,
        }


@gen_test()
async def test_an_address_is_given_in_one_argument_or_in_two():
    async with serving(TCP, {"inc": inc}) as server, ConnectionPool() as pool:
        for remote in (
            pool(server.address),
            pool(f"127.0.0.1:{server.port}"),
            pool(("127.0.0.1", server.port)),
            pool(ip="127.0.0.1", port=server.port),
        ):
            assert isinstance(remote, PooledRPCCall)
            assert remote.address == remote.addr == server.address
            assert await remote.inc(x=1) == 2
        assert pool.open == 1


@TRANSPORTS
@gen_test()
async def test_closing_a_pooled_rpc_leaves_the_connections_to_the_pool(transport):
    async with serving(transport, {"inc": inc}) as server, ConnectionPool() as pool:
        async with pool(server.address) as remote:
            assert await remote.inc(x=1) == 2
        await remote.close_rpc()
        remote.close_rpc()
        assert pool.open == 1
        assert await remote.inc(x=1) == 2


@gen_test()
async def test_a_call_whose_address_is_removed_while_it_connects_names_its_method(slow):
    async with serving() as server, ConnectionPool() as pool:
        call = asyncio.create_task(pool(server.address).foo())
        await slow.begun(1)
        pool.remove(server.address, reason="worker-7 is gone")
        with pytest.raises(CommClosedError, match="'foo' before comm was established") as caught:
            await call
        assert "worker-7 is gone" in str(caught.value.__cause__)


@gen_test()
async def test_a_server_calls_others_through_its_pool():
    async with serving(TCP, {"inc": inc}) as one, serving() as two:
        assert two.rpc.server() is two
        assert await two.rpc(one.address).inc(x=1) == 2
        assert (two.outgoing_comms_open, two.outgoing_comms_active) == (1, 0)


# Start and close


@gen_test()
async def test_a_pool_is_started_by_awaiting_it():
    async with serving(handlers={"inc": inc}) as server:
        pool = ConnectionPool()
        assert pool.status is Status.init
        await pool
        assert pool.status is Status.running
        assert await pool(server.address).inc(x=1) == 2
        await pool.close()
        assert pool.status is Status.closed


@gen_test()
async def test_a_pool_that_is_not_running_refuses_calls():
    pool = ConnectionPool()
    with pytest.raises(RuntimeError, match=r"ConnectionPool is closed as long as .* not started"):
        await pool("tcp://127.0.0.1:1").foo()
    await pool.close()
    with pytest.raises(RuntimeError, match=r"ConnectionPool is closed; cannot connect to tcp://"):
        await pool.connect("tcp://127.0.0.1:1")


@TRANSPORTS
@gen_test()
async def test_close_closes_connections_idle_and_in_use(transport):
    async with serving(transport) as server:
        async with ConnectionPool() as pool:
            used = await pool.connect(server.address)
            idle = await pool.connect(server.address)
            pool.reuse(server.address, idle)
        assert used.closed()
        assert idle.closed()
        assert (pool.open, pool.active) == (0, 0)
        pool.reuse(server.address, used)
        assert pool.open == 0
        pool._validate()


@gen_test()
async def test_close_can_be_repeated():
    async with serving() as server, ConnectionPool() as pool:
        await pool.connect(server.address)
        await asyncio.gather(pool.close(), pool.close())
        await pool.close()
        assert pool.open == 0


@gen_test()
async def test_close_fails_the_calls_that_connect_or_wait(slow):
    async with serving() as server:
        pool = await ConnectionPool(limit=1)
        connecting = asyncio.create_task(pool.connect(server.address))
        await slow.begun(1)
        waits = await waiting(pool, server.address)
        await pool.close()
        assert (pool._connecting_count, pool._pending_count) == (0, 0)
        for call in (connecting, waits):
            with pytest.raises(CommClosedError, match="ConnectionPool clos"):
                await call
        assert not pool._connecting
        assert len(slow.attempts) == 1
        assert not slow.made


@gen_test()
async def test_close_waits_a_limited_time_for_an_attempt_that_ignores_cancellation(monkeypatch):
    gate = Gate()
    made = []

    async def stubborn_connect(*args, **kwargs):
        with suppress(asyncio.CancelledError):
            await gate.handle()
        await gate.handle()
        made.append(await connect(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(core, "connect", stubborn_connect)
    async with serving() as server:
        pool = await ConnectionPool()
        pool._connecting_close_timeout = 0.01
        call = await gate.enter(pool.connect(server.address))
        with captured_logger("distributed.core") as log:
            await pool.close()
        assert "Pending connections refuse to end" in log.getvalue()
        assert not call.done()

        gate.open()
        with pytest.raises(CommClosedError, match="ConnectionPool clos"):
            await call
        assert [comm.closed() for comm in made] == [True]
        assert (pool.open, pool._connecting_count) == (0, 0)


@gen_test()
async def test_a_pool_does_not_keep_its_server_alive():
    class Owner:
        pass

    owner = Owner()
    pool = ConnectionPool(server=owner)
    assert pool.server() is owner
    del owner
    gc.collect()
    assert pool.server() is None


def test_the_server_of_a_pool_is_optional():
    assert ConnectionPool().server is None


def test_pools_are_listed_until_they_are_deleted():
    before = len(ConnectionPool._instances)
    pool = ConnectionPool()
    assert pool in ConnectionPool._instances
    del pool
    gc.collect()
    assert len(ConnectionPool._instances) == before


# Connections in use and idle


@TRANSPORTS
@gen_test()
async def test_a_connection_is_occupied_until_it_is_returned(transport):
    async with serving(transport) as server, ConnectionPool() as pool:
        comm = await pool.connect(server.address)
        assert (pool.occupied, pool.available) == ({server.address: {comm}}, {})
        assert (pool.open, pool.active) == (1, 1)
        pool.reuse(server.address, comm)
        assert (pool.occupied, pool.available) == ({}, {server.address: {comm}})
        assert (pool.open, pool.active) == (1, 0)
        assert await pool.connect(server.address) is comm
        pool._validate()


@gen_test()
async def test_overlapping_calls_get_different_connections():
    async with serving() as server, ConnectionPool() as pool:
        one = await pool.connect(server.address)
        two = await pool.connect(server.address)
        assert one is not two
        pool.reuse(server.address, one)
        assert await pool.connect(server.address) is one


@TRANSPORTS
@gen_test()
async def test_a_connection_returned_closed_is_dropped(transport):
    async with serving(transport) as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        comm.abort()
        pool.reuse(server.address, comm)
        assert pool.open == 0
        assert not (await pool.connect(server.address)).closed()


@gen_test()
async def test_a_connection_returned_twice_counts_once():
    async with serving() as server, ConnectionPool() as pool:
        comm = await pool.connect(server.address)
        pool.reuse(server.address, comm)
        pool.reuse(server.address, comm)
        assert (pool.open, pool.active) == (1, 0)
        pool._validate()


@gen_test()
async def test_the_place_of_a_closed_idle_connection_is_used_for_another_server():
    async with (
        serving(handlers={"inc": inc}) as one,
        serving(handlers={"inc": inc}) as two,
        ConnectionPool(limit=1) as pool,
    ):
        await pool(one.address).inc(x=1)
        for comm in list(one._comms):
            comm.abort()
        assert await pool(two.address).inc(x=1) == 2


@gen_test()
async def test_pooled_connections_are_named_after_pool_and_operation():
    seen = []

    async with serving() as server, ConnectionPool() as pool:
        server.handlers["look"] = lambda: seen.extend(
            comm.name for comms in pool.occupied.values() for comm in comms
        )
        await pool(server.address).look()
        assert seen == ["ConnectionPool.look"]
        (comm,) = pool.available[server.address]
        assert comm.name == "ConnectionPool"


@gen_test()
async def test_the_repr_shows_the_numbers_of_connections():
    async with serving() as server, ConnectionPool() as pool:
        await pool.connect(server.address)
        pool.reuse(server.address, await pool.connect(server.address))
        assert repr(pool) == "<ConnectionPool: open=2, active=1, connecting=0>"


# The limit


@TRANSPORTS
@gen_test()
async def test_the_limit_holds_while_many_calls_overlap(transport):
    most = 0

    async def look():
        nonlocal most
        await asyncio.sleep(0)
        most = max(most, server.incoming_comms_open)

    async with serving(transport) as server, ConnectionPool(limit=5) as pool:
        server.handlers["look"] = look
        calls = [asyncio.create_task(pool(server.address).look()) for _ in range(50)]
        while not all(call.done() for call in calls):
            assert pool.open + pool._connecting_count <= 5
            await asyncio.sleep(0)
        await asyncio.gather(*calls)
        assert most == 5
        assert pool.open == 5
        pool._validate()


@gen_test()
async def test_calls_that_wait_for_a_place_are_counted(slow):
    async with serving() as server, ConnectionPool(limit=2) as pool:
        assert pool.semaphore._value == 2
        calls = [asyncio.create_task(pool.connect(server.address)) for _ in range(3)]
        await slow.begun(2)
        assert (pool.open, pool._connecting_count, pool._n_connecting) == (0, 2, 2)
        assert pool._pending_count == 1
        assert len(pool._connecting[server.address]) == 3
        assert pool.semaphore.locked()
        assert pool.semaphore._value == 0

        slow.succeed(0)
        await calls[0]
        assert (pool.open, pool._connecting_count, pool._pending_count) == (1, 1, 1)
        pool.reuse(server.address, calls[0].result())
        assert await calls[2] is calls[0].result()
        slow.succeed(1)
        await calls[1]
        assert (pool.open, pool._connecting_count, pool._pending_count) == (2, 0, 0)
        assert not pool._connecting
        assert pool.semaphore.locked()
        assert len(slow.attempts) == 2


@gen_test()
async def test_waiting_calls_are_served_in_order():
    async with serving() as one, serving() as two, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(one.address)
        addresses = [one.address, two.address, two.address, one.address]
        calls = [await waiting(pool, addr) for addr in addresses]
        pool.reuse(one.address, comm)
        for i, (addr, call) in enumerate(zip(addresses, calls, strict=True)):
            comm = await call
            assert not any(later.done() for later in calls[i + 1 :])
            pool.reuse(addr, comm)
        pool._validate()


@pytest.mark.parametrize("closed", [False, True])
@gen_test()
async def test_a_connection_returned_open_or_closed_serves_a_waiting_call(closed):
    async with serving() as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        call = await waiting(pool, server.address)
        if closed:
            comm.abort()
        pool.reuse(server.address, comm)
        assert (await call is comm) is not closed
        assert not call.result().closed()


@TRANSPORTS
@gen_test()
async def test_an_idle_connection_to_another_server_is_closed_to_free_a_place(transport):
    async with (
        serving(transport) as one,
        serving(transport) as two,
        ConnectionPool(limit=2) as pool,
    ):
        used = await pool.connect(one.address)
        idle = await pool.connect(one.address)
        pool.reuse(one.address, idle)
        comm = await pool.connect(two.address)
        assert idle.closed()
        assert not used.closed()
        assert pool.occupied == {one.address: {used}, two.address: {comm}}
        assert pool.open == 2


@gen_test()
async def test_looking_up_an_address_has_no_effect():
    async with serving() as one, serving() as two, ConnectionPool(limit=1) as pool:
        pool.reuse(one.address, await pool.connect(one.address))
        assert not pool.available["tcp://127.0.0.1:1"]
        assert not pool.occupied["tcp://127.0.0.1:1"]
        assert not pool._connecting["tcp://127.0.0.1:1"]
        pool.reuse(two.address, await pool.connect(two.address))
        assert pool.open == 1
        pool.remove("tcp://127.0.0.1:1")
        pool.collect()
        assert not pool.available["tcp://127.0.0.1:1"]
        comm = await pool.connect(one.address)
        waits = await waiting(pool, two.address)
        pool.reuse(one.address, comm)
        assert not (await waits).closed()
        pool._validate()


@gen_test()
async def test_a_raised_limit_applies_to_the_next_call():
    async with serving() as server, ConnectionPool(limit=1) as pool:
        await pool.connect(server.address)
        pool.limit = 2
        await pool.connect(server.address)
        assert pool.open == 2


# Connections that fail


@gen_test()
async def test_a_connection_that_fails_frees_its_place(slow):
    async with serving() as server, ConnectionPool(limit=1) as pool:
        failing = asyncio.create_task(pool.connect(server.address))
        await slow.begun(1)
        waits = await waiting(pool, server.address)
        slow.fail(0, OSError("unreachable"))
        with pytest.raises(OSError, match="unreachable"):
            await failing
        await slow.begun(2)
        slow.succeed(1)
        assert not (await waits).closed()
        assert pool.open == 1


@gen_test()
async def test_connecting_to_a_server_that_is_gone_fails_after_the_timeout():
    async with serving(TCP) as server:
        address = server.address
    async with ConnectionPool(limit=1, timeout="20ms") as pool:
        for kwargs in ({}, {"timeout": 0.02}):
            with pytest.raises(OSError, match="Timed out trying to connect"):
                await pool.connect(address, **kwargs)
            assert pool.semaphore._value == 1
            assert not pool._connecting


@gen_test()
async def test_the_timeout_does_not_include_the_wait_for_a_place(monkeypatch):
    timeouts = []

    async def recording_connect(addr, timeout=None, **kwargs):
        timeouts.append(timeout)
        return await connect(addr, timeout, **kwargs)

    monkeypatch.setattr(core, "connect", recording_connect)
    async with serving() as server, ConnectionPool(limit=1, timeout="7s") as pool:
        comm = await pool.connect(server.address)
        call = await waiting(pool, server.address, timeout="5s")
        comm.abort()
        pool.reuse(server.address, comm)
        await call
        assert timeouts == ["7s", "5s"]


# Cancelling


@gen_test()
async def test_a_call_cancelled_while_it_waits_leaves_the_queue():
    async with serving() as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        first = await waiting(pool, server.address)
        second = await waiting(pool, server.address)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert pool._pending_count == 1
        pool.reuse(server.address, comm)
        assert await second is comm
        assert not pool._connecting


@gen_test()
async def test_a_call_cancelled_while_it_connects_frees_its_place(slow):
    async with serving() as server, ConnectionPool(limit=1) as pool:
        call = asyncio.create_task(pool.connect(server.address))
        await slow.begun(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (pool.open, pool._connecting_count) == (0, 0)
        assert pool.semaphore._value == 1
        assert not pool._connecting


@gen_test()
async def test_a_call_cancelled_while_tcp_connects_leaves_nothing_open():
    async with serving(TCP) as server, ConnectionPool(limit=1) as pool:
        finished = False
        steps = 0
        while not finished:
            call = asyncio.create_task(pool.connect(server.address))
            for _ in range(steps):
                await asyncio.sleep(0)
            finished = not call.cancel()
            steps += 1
            await asyncio.wait([call])
            pool._validate()
            assert pool.active == finished
            assert pool._connecting_count == 0
            pool.collect()
        assert steps > 3


@pytest.mark.parametrize("closed", [False, True])
@gen_test()
async def test_a_call_cancelled_with_a_granted_connection_or_place_passes_it_to_the_next(closed):
    async with serving() as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        first = await waiting(pool, server.address)
        second = await waiting(pool, server.address)
        if closed:
            comm.abort()
        pool.reuse(server.address, comm)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second is comm) is not closed
        assert not second.result().closed()
        assert pool.open == pool.active == 1


@gen_test()
async def test_a_call_cancelled_after_its_connection_was_made_returns_it_to_the_pool(monkeypatch):
    async with serving() as server, ConnectionPool(limit=1) as pool:
        comm = await connect(server.address)
        made = asyncio.Event()

        async def quick_connect(*args, **kwargs):
            made.set()
            return comm

        monkeypatch.setattr(core, "connect", quick_connect)
        call = asyncio.create_task(pool.connect(server.address))
        await made.wait()
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert pool.available == {server.address: {comm}}
        pool._validate()


@gen_test()
async def test_many_waiting_calls_can_be_cancelled_together():
    async with serving() as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        calls = [asyncio.create_task(pool.connect(server.address)) for _ in range(5000)]
        await async_poll_for(lambda: pool._pending_count == 5000, period=0.001)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert pool._pending_count == 0
        pool.reuse(server.address, comm)
        assert await pool.connect(server.address) is comm


# remove and collect


@TRANSPORTS
@gen_test()
async def test_remove_closes_all_connections_to_an_address(transport):
    async with (
        serving(transport) as one,
        serving(transport) as two,
        ConnectionPool() as pool,
    ):
        used = await pool.connect(one.address)
        idle = await pool.connect(one.address)
        pool.reuse(one.address, idle)
        other = await pool.connect(two.address)
        pool.remove(one.address)
        assert used.closed()
        assert idle.closed()
        assert not other.closed()
        assert (pool.available, pool.occupied) == ({}, {two.address: {other}})

        pool.reuse(one.address, used)
        assert pool.open == 1
        assert not (await pool.connect(one.address)).closed()


@TRANSPORTS
@gen_test()
async def test_remove_fails_the_calls_in_progress(transport):
    gate = Gate()
    async with serving(transport, {"wait": gate.handle}) as server, ConnectionPool() as pool:
        call = await gate.enter(pool(server.address).wait())
        pool.remove(server.address)
        with pytest.raises(CommClosedError, match="'wait' using comm"):
            await call
        assert pool.open == 0
        gate.open()


@pytest.mark.parametrize("reason", [{}, {"reason": "worker-7 is gone"}])
@gen_test()
async def test_remove_fails_the_calls_that_connect_or_wait_with_its_reason(slow, reason):
    async with serving() as server, ConnectionPool(limit=1) as pool:
        connecting = asyncio.create_task(pool.connect(server.address))
        await slow.begun(1)
        waits = await waiting(pool, server.address)
        pool.remove(server.address, **reason)
        for call in (connecting, waits):
            with pytest.raises(CommClosedError, match=reason.get("reason", r"Address removed\.")):
                await call
        assert (pool._connecting_count, pool._pending_count) == (0, 0)
        assert not pool._connecting
        assert pool.semaphore._value == 1


@gen_test()
async def test_remove_fails_a_call_made_during_a_cancellation_with_its_reason(slow):
    async def clean_up(pool, addr):
        try:
            await asyncio.Event().wait()
        finally:
            await pool.connect(addr)

    async with serving() as server, ConnectionPool() as pool:
        task = asyncio.create_task(clean_up(pool, server.address))
        await asyncio.sleep(0)
        task.cancel()
        await slow.begun(1)
        pool.remove(server.address, reason="worker-7 is gone")
        with pytest.raises(CommClosedError, match="worker-7 is gone"):
            await task


@gen_test()
async def test_a_call_that_is_cancelled_and_removed_raises_cancelled_error(slow):
    async with serving() as server, ConnectionPool() as pool:
        for first, second in (("remove", "cancel"), ("cancel", "remove")):
            call = asyncio.create_task(pool.connect(server.address))
            await slow.begun(len(slow.attempts) + 1)
            for action in (first, second):
                if action == "remove":
                    pool.remove(server.address)
                else:
                    call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert pool._connecting_count == 0


@gen_test()
async def test_remove_does_not_affect_calls_of_other_addresses(slow):
    async with serving() as one, serving() as two, ConnectionPool(limit=1) as pool:
        removed = asyncio.create_task(pool.connect(one.address))
        await slow.begun(1)
        waits = await waiting(pool, two.address)
        pool.remove(one.address)
        with pytest.raises(CommClosedError):
            await removed
        await slow.begun(2)
        slow.succeed(1)
        assert not (await waits).closed()


@gen_test()
async def test_removing_a_connection_in_use_serves_a_waiting_call():
    async with serving() as one, serving() as two, ConnectionPool(limit=1) as pool:
        await pool.connect(one.address)
        waits = await waiting(pool, two.address)
        pool.remove(one.address)
        assert not (await waits).closed()
        assert set(pool.occupied) == {two.address}


@gen_test()
async def test_remove_closes_a_connection_that_was_just_granted():
    async with serving() as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        waits = await waiting(pool, server.address)
        pool.reuse(server.address, comm)
        pool.remove(server.address, reason="worker-7 is gone")
        with pytest.raises(CommClosedError, match="worker-7 is gone"):
            await waits
        assert comm.closed()
        assert pool.open == 0


@gen_test()
async def test_an_address_that_was_never_used_can_be_removed():
    async with ConnectionPool() as pool:
        pool.remove("tcp://127.0.0.1:1")
        assert pool.open == 0


@TRANSPORTS
@gen_test()
async def test_collect_closes_only_idle_connections(transport):
    async with serving(transport) as server, ConnectionPool() as pool:
        used = await pool.connect(server.address)
        idle = [await pool.connect(server.address) for _ in range(3)]
        for comm in idle:
            pool.reuse(server.address, comm)
        pool.collect()
        assert all(comm.closed() for comm in idle)
        assert not used.closed()
        assert (pool.open, pool.active) == (1, 1)


# Options


@gen_test()
async def test_options_of_the_pool_apply_to_its_connections():
    async with (
        serving() as server,
        ConnectionPool(deserialize=False, allow_offload=False) as pool,
    ):
        comm = await pool.connect(server.address)
        assert comm.allow_offload is False
        assert comm.deserialize is False


@pytest.mark.parametrize("limit", [0, -1, 0.5, math.nan, "5", None])
def test_a_limit_below_one_is_an_error(limit):
    with pytest.raises(ValueError, match="must be a number from 1"):
        ConnectionPool(limit=limit)


@pytest.mark.parametrize(("limit", "locked"), [(math.inf, False), (1.5, True)])
@gen_test()
async def test_a_limit_can_be_infinite_or_a_fraction(limit, locked):
    async with serving() as server, ConnectionPool(limit=limit) as pool:
        await pool.connect(server.address)
        assert pool.semaphore.locked() is locked
        pool._validate()
