"""Connections that a ``ConnectionPool`` shares out among calls."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from distributed import core
from distributed.core import (
    Comm,
    CommClosedError,
    ConnectionPool,
    PooledRPCCall,
    Server,
    Status,
    connect,
)
from distributed.protocol import Serialized, to_serialize
from distributed.utils_test import async_poll_for, captured_logger, gen_test, inc

over_each_transport = pytest.mark.parametrize("listen_at", ["tcp://127.0.0.1:0", "inproc://"])


@asynccontextmanager
async def serving(
    listen_at: str = "inproc://", **handlers: Callable[..., Any]
) -> AsyncIterator[Server]:
    async with Server(handlers) as server:
        await server.listen(listen_at)
        yield server


class SlowConnect:
    """Stands in for ``connect``: each attempt waits until the test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attempts: list[str] = []
        self.made: list[Comm] = []
        self._proceed: list[asyncio.Future[None]] = []
        self._more = asyncio.Condition()
        monkeypatch.setattr(core, "connect", self)

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
        """Wait until so many attempts were begun."""
        async with self._more:
            await self._more.wait_for(lambda: len(self.attempts) >= count)

    def succeed(self, attempt: int) -> None:
        self._proceed[attempt].set_result(None)

    def fail(self, attempt: int, error: Exception) -> None:
        self._proceed[attempt].set_exception(error)


async def waiting(pool: ConnectionPool, addr: str, **kwargs: Any) -> asyncio.Task[Comm]:
    """Begin to connect where there is no place, and return once that call waits."""
    count = pool._pending_count
    task = asyncio.create_task(pool.connect(addr, **kwargs))
    while pool._pending_count == count:
        await asyncio.sleep(0)
    return task


# Calls


@over_each_transport
@gen_test()
async def test_calls_go_to_many_servers_over_one_pool(listen_at):
    async with (
        serving(listen_at, who=lambda: "one") as one,
        serving(listen_at, who=lambda: "two") as two,
        ConnectionPool() as pool,
    ):
        answers = await asyncio.gather(*(pool(s.address).who() for s in (one, two, one, two)))
        assert answers == ["one", "two", "one", "two"]
        assert {addr: len(comms) for addr, comms in pool.available.items()} == {
            one.address: 2,
            two.address: 2,
        }


@gen_test()
async def test_a_server_is_named_in_one_argument_or_in_two():
    async with serving("tcp://127.0.0.1:0", inc=inc) as server, ConnectionPool() as pool:
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


@over_each_transport
@gen_test()
async def test_a_pooled_rpc_works_in_a_with_block_and_leaves_the_connections_to_the_pool(listen_at):
    async with serving(listen_at, inc=inc) as server, ConnectionPool() as pool:
        async with pool(server.address) as remote:
            assert await remote.inc(x=1) == 2
        await remote.close_rpc()
        remote.close_rpc()
        assert pool.open == 1
        assert await remote.inc(x=1) == 2


@over_each_transport
@gen_test()
async def test_a_call_that_breaks_tells_method_and_comm(listen_at):
    async with (
        serving(listen_at, leave=lambda comm: comm.abort(), inc=inc) as server,
        ConnectionPool() as pool,
    ):
        remote = pool(server.address)
        with pytest.raises(CommClosedError) as caught:
            await remote.leave()
        assert "'leave' using comm" in str(caught.value)
        assert "ConnectionPool.leave" in str(caught.value)
        assert pool.open == 0
        assert await remote.inc(x=1) == 2


@over_each_transport
@gen_test()
async def test_a_remote_error_leaves_the_connection_in_the_pool(listen_at):
    def fail():
        raise CommClosedError("in <TCP to a third server>")

    async with serving(listen_at, fail=fail, inc=inc) as server, ConnectionPool() as pool:
        remote = pool(server.address)
        await remote.inc(x=1)
        (comm,) = pool.available[server.address]
        with captured_logger("distributed.core.requests"), pytest.raises(CommClosedError) as caught:
            await remote.fail()
        assert str(caught.value) == "in <TCP to a third server>"
        assert pool.available == {server.address: {comm}}


@over_each_transport
@gen_test()
async def test_a_cancelled_call_closes_its_connection_and_the_next_gets_its_own_answer(listen_at):
    entered, release = asyncio.Event(), asyncio.Event()

    async def wait(key):
        entered.set()
        await release.wait()
        return key

    async with serving(listen_at, wait=wait) as server, ConnectionPool(limit=1) as pool:
        remote = pool(server.address)
        call = asyncio.create_task(remote.wait(key="cancelled"))
        await entered.wait()
        (comm,) = pool.occupied[server.address]
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert comm.closed()
        assert pool.open == 0
        release.set()
        assert await remote.wait(key="own") == "own"


@over_each_transport
@gen_test()
async def test_a_call_cancelled_at_any_moment_spoils_no_other_call(listen_at):
    async with serving(listen_at) as server, ConnectionPool(limit=1) as pool:
        remote = pool(server.address)
        finished = False
        moments = 0
        while not finished:
            call = asyncio.create_task(remote.echo(data="cancelled"))
            for _ in range(moments):
                await asyncio.sleep(0)
            finished = not call.cancel()
            moments += 1
            await asyncio.wait([call])
            assert await remote.echo(data=moments) == moments
            assert (pool.open, pool.active, pool._connecting_count) == (1, 0, 0)
            pool._validate()
        assert call.result() == "cancelled"
        assert moments > 3


@gen_test()
async def test_a_call_through_a_closed_pool_is_a_runtime_error():
    pool = ConnectionPool()
    with pytest.raises(RuntimeError, match="ConnectionPool is closed"):
        await pool("tcp://127.0.0.1:1").foo()


@gen_test()
async def test_a_call_whose_address_is_removed_while_it_connects_tells_its_method(monkeypatch):
    slow = SlowConnect(monkeypatch)
    async with serving() as server, ConnectionPool() as pool:
        call = asyncio.create_task(pool(server.address).foo())
        await slow.begun(1)
        pool.remove(server.address, reason="worker-7 is gone")
        with pytest.raises(CommClosedError, match="'foo' before comm was established") as caught:
            await call
        assert "worker-7 is gone" in str(caught.value.__cause__)


@gen_test()
async def test_a_server_calls_others_through_its_pool():
    async with serving("tcp://127.0.0.1:0", inc=inc) as one, serving() as two:
        assert two.rpc.server() is two
        assert await two.rpc(one.address).inc(x=1) == 2
        assert (two.outgoing_comms_open, two.outgoing_comms_active) == (1, 0)


@pytest.mark.parametrize("name", ["__array__", "__len__", "__no_such_protocol__"])
def test_the_protocols_of_the_language_are_no_remote_calls(name):
    with pytest.raises(AttributeError, match=name):
        getattr(ConnectionPool()("tcp://127.0.0.1:1"), name)


# Life


@gen_test()
async def test_a_pool_is_started_by_awaiting_it():
    async with serving(inc=inc) as server:
        pool = ConnectionPool()
        assert pool.status is Status.init
        await pool
        assert pool.status is Status.running
        assert await pool(server.address).inc(x=1) == 2
        await pool.close()
        assert pool.status is Status.closed


@gen_test()
async def test_a_pool_that_was_not_started_refuses_to_connect():
    pool = ConnectionPool()
    with pytest.raises(RuntimeError, match=r"ConnectionPool is closed as long as .* not started"):
        await pool.connect("tcp://127.0.0.1:1")


@gen_test()
async def test_a_closed_pool_refuses_to_connect():
    async with serving() as server:
        async with ConnectionPool() as pool:
            pool.reuse(server.address, await pool.connect(server.address))
        with pytest.raises(RuntimeError, match="ConnectionPool is closed"):
            await pool.connect(server.address)


@over_each_transport
@gen_test()
async def test_close_closes_connections_idle_and_in_use(listen_at):
    async with serving(listen_at) as server:
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
async def test_close_fails_the_calls_that_connect_and_that_wait(monkeypatch):
    slow = SlowConnect(monkeypatch)
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
async def test_close_does_not_wait_forever_for_an_attempt_that_refuses_to_end(monkeypatch):
    begun, proceed = asyncio.Event(), asyncio.Event()
    made = []

    async def stubborn_connect(*args, **kwargs):
        begun.set()
        with suppress(asyncio.CancelledError):
            await proceed.wait()
        await proceed.wait()
        made.append(await connect(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(core, "connect", stubborn_connect)
    async with serving() as server:
        pool = await ConnectionPool()
        pool._connecting_close_timeout = 0.01
        call = asyncio.create_task(pool.connect(server.address))
        await begun.wait()
        with captured_logger("distributed.core") as log:
            await pool.close()
        assert "Pending connections refuse to end" in log.getvalue()
        assert not call.done()

        proceed.set()
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


def test_a_pool_needs_no_server():
    assert ConnectionPool().server is None


def test_pools_are_known_until_they_are_forgotten():
    before = len(ConnectionPool._instances)
    pool = ConnectionPool()
    assert pool in ConnectionPool._instances
    del pool
    gc.collect()
    assert len(ConnectionPool._instances) == before


# Who has which connection


@over_each_transport
@gen_test()
async def test_a_connection_is_occupied_until_it_is_given_back(listen_at):
    async with serving(listen_at) as server, ConnectionPool() as pool:
        comm = await pool.connect(server.address)
        assert (pool.occupied, pool.available) == ({server.address: {comm}}, {})
        assert (pool.open, pool.active) == (1, 1)
        pool.reuse(server.address, comm)
        assert (pool.occupied, pool.available) == ({}, {server.address: {comm}})
        assert (pool.open, pool.active) == (1, 0)
        assert await pool.connect(server.address) is comm
        pool._validate()


@gen_test()
async def test_connections_that_overlap_are_different_ones():
    async with serving() as server, ConnectionPool() as pool:
        one = await pool.connect(server.address)
        two = await pool.connect(server.address)
        assert one is not two
        pool.reuse(server.address, one)
        assert await pool.connect(server.address) is one


@over_each_transport
@gen_test()
async def test_a_connection_given_back_closed_is_forgotten(listen_at):
    async with serving(listen_at) as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        comm.abort()
        pool.reuse(server.address, comm)
        assert pool.open == 0
        assert not (await pool.connect(server.address)).closed()


@gen_test()
async def test_a_connection_given_back_twice_counts_once():
    async with serving() as server, ConnectionPool() as pool:
        comm = await pool.connect(server.address)
        pool.reuse(server.address, comm)
        pool.reuse(server.address, comm)
        assert (pool.open, pool.active) == (1, 0)
        pool._validate()


@over_each_transport
@gen_test()
async def test_an_idle_connection_that_the_peer_closed_is_not_handed_out(listen_at):
    async with serving(listen_at, inc=inc) as server, ConnectionPool(limit=2) as pool:
        await asyncio.gather(*(pool(server.address).inc(x=x) for x in range(2)))
        stale = set(pool.available[server.address])
        for comm in list(server._comms):
            comm.abort()
        await async_poll_for(lambda: all(comm.closed() for comm in stale), period=0.001)
        assert await pool(server.address).inc(x=1) == 2
        assert not stale & pool.available[server.address]


@gen_test()
async def test_the_place_of_an_idle_connection_that_the_peer_closed_goes_to_another_server():
    async with (
        serving(inc=inc) as one,
        serving(inc=inc) as two,
        ConnectionPool(limit=1) as pool,
    ):
        await pool(one.address).inc(x=1)
        for comm in list(one._comms):
            comm.abort()
        assert await pool(two.address).inc(x=1) == 2


@gen_test()
async def test_pooled_connections_bear_the_names_of_pool_and_operation():
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
async def test_the_repr_tells_the_numbers():
    async with serving() as server, ConnectionPool() as pool:
        await pool.connect(server.address)
        pool.reuse(server.address, await pool.connect(server.address))
        assert repr(pool) == "<ConnectionPool: open=2, active=1, connecting=0>"


# The limit


@over_each_transport
@gen_test()
async def test_the_limit_holds_while_many_calls_overlap(listen_at):
    most = 0

    async def look():
        nonlocal most
        await asyncio.sleep(0)
        most = max(most, server.incoming_comms_open)

    async with serving(listen_at) as server, ConnectionPool(limit=5) as pool:
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
async def test_calls_that_wait_for_a_place_are_counted(monkeypatch):
    slow = SlowConnect(monkeypatch)
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
async def test_waiting_calls_are_served_in_their_order():
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


@gen_test()
async def test_a_connection_given_back_serves_a_call_that_waits_for_it():
    async with serving() as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        call = await waiting(pool, server.address)
        pool.reuse(server.address, comm)
        assert await call is comm


@gen_test()
async def test_a_connection_given_back_closed_makes_room_for_a_call_that_waits():
    async with serving() as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        call = await waiting(pool, server.address)
        comm.abort()
        pool.reuse(server.address, comm)
        assert not (await call).closed()


@over_each_transport
@gen_test()
async def test_an_idle_connection_of_another_server_makes_room(listen_at):
    async with (
        serving(listen_at) as one,
        serving(listen_at) as two,
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
async def test_looking_for_an_address_in_the_pool_does_not_disturb_it():
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
async def test_a_limit_that_is_raised_is_used_by_the_next_call():
    async with serving() as server, ConnectionPool(limit=1) as pool:
        await pool.connect(server.address)
        pool.limit = 2
        await pool.connect(server.address)
        assert pool.open == 2


# Connections that fail


@gen_test()
async def test_a_connection_that_fails_frees_its_place(monkeypatch):
    slow = SlowConnect(monkeypatch)
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
    async with serving("tcp://127.0.0.1:0") as server:
        address = server.address
    async with ConnectionPool(limit=1, timeout="20ms") as pool:
        for kwargs in ({}, {"timeout": 0.02}):
            with pytest.raises(OSError, match="Timed out trying to connect"):
                await pool.connect(address, **kwargs)
            assert pool.semaphore._value == 1
            assert not pool._connecting


@gen_test()
async def test_the_time_spent_waiting_for_a_place_does_not_count(monkeypatch):
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
async def test_a_call_cancelled_while_it_waits_gives_up_its_turn():
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
async def test_a_call_cancelled_while_it_connects_frees_its_place(monkeypatch):
    slow = SlowConnect(monkeypatch)
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
    async with serving("tcp://127.0.0.1:0") as server, ConnectionPool(limit=1) as pool:
        finished = False
        moments = 0
        while not finished:
            call = asyncio.create_task(pool.connect(server.address))
            for _ in range(moments):
                await asyncio.sleep(0)
            finished = not call.cancel()
            moments += 1
            await asyncio.wait([call])
            pool._validate()
            assert pool.active == finished
            assert pool._connecting_count == 0
            pool.collect()
        assert moments > 3


@gen_test()
async def test_a_call_cancelled_with_a_granted_connection_gives_it_to_the_next():
    async with serving() as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        first = await waiting(pool, server.address)
        second = await waiting(pool, server.address)
        pool.reuse(server.address, comm)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second is comm
        assert pool.active == 1


@gen_test()
async def test_a_call_cancelled_with_a_granted_place_gives_it_to_the_next():
    async with serving() as server, ConnectionPool(limit=1) as pool:
        comm = await pool.connect(server.address)
        first = await waiting(pool, server.address)
        second = await waiting(pool, server.address)
        comm.abort()
        pool.reuse(server.address, comm)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not (await second).closed()
        assert pool.open == 1


@gen_test()
async def test_a_call_cancelled_with_its_connection_made_gives_that_to_the_pool(monkeypatch):
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
        async with asyncio.timeout(5):
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        assert pool._pending_count == 0
        pool.reuse(server.address, comm)
        assert await pool.connect(server.address) is comm


# remove and collect


@over_each_transport
@gen_test()
async def test_remove_closes_all_connections_to_an_address(listen_at):
    async with (
        serving(listen_at) as one,
        serving(listen_at) as two,
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


@over_each_transport
@gen_test()
async def test_remove_fails_the_calls_in_progress(listen_at):
    entered, release = asyncio.Event(), asyncio.Event()

    async def wait():
        entered.set()
        await release.wait()

    async with serving(listen_at, wait=wait) as server, ConnectionPool() as pool:
        call = asyncio.create_task(pool(server.address).wait())
        await entered.wait()
        pool.remove(server.address)
        with pytest.raises(CommClosedError, match="'wait' using comm"):
            await call
        assert pool.open == 0
        release.set()


@gen_test()
async def test_remove_tells_the_calls_that_connect_and_that_wait_the_reason(monkeypatch):
    slow = SlowConnect(monkeypatch)
    async with serving() as server, ConnectionPool(limit=1) as pool:
        connecting = asyncio.create_task(pool.connect(server.address))
        await slow.begun(1)
        waits = await waiting(pool, server.address)
        pool.remove(server.address, reason="worker-7 is gone")
        for call in (connecting, waits):
            with pytest.raises(CommClosedError, match="worker-7 is gone"):
                await call
        assert (pool._connecting_count, pool._pending_count) == (0, 0)
        assert not pool._connecting
        assert pool.semaphore._value == 1


@gen_test()
async def test_remove_has_a_reason_by_default(monkeypatch):
    slow = SlowConnect(monkeypatch)
    async with serving() as server, ConnectionPool() as pool:
        call = asyncio.create_task(pool.connect(server.address))
        await slow.begun(1)
        pool.remove(server.address)
        with pytest.raises(CommClosedError, match=r"Address removed\."):
            await call


@gen_test()
async def test_remove_tells_a_call_that_cleans_up_after_a_cancellation_the_reason(monkeypatch):
    slow = SlowConnect(monkeypatch)

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
async def test_a_call_that_is_cancelled_and_removed_is_cancelled(monkeypatch):
    slow = SlowConnect(monkeypatch)
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
async def test_remove_leaves_calls_of_other_addresses_alone(monkeypatch):
    slow = SlowConnect(monkeypatch)
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
async def test_remove_of_a_connection_in_use_makes_room_for_a_call_that_waits():
    async with serving() as one, serving() as two, ConnectionPool(limit=1) as pool:
        await pool.connect(one.address)
        waits = await waiting(pool, two.address)
        pool.remove(one.address)
        assert not (await waits).closed()
        assert set(pool.occupied) == {two.address}


@gen_test()
async def test_remove_takes_back_a_connection_that_was_just_granted():
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


@over_each_transport
@gen_test()
async def test_collect_closes_the_idle_connections_only(listen_at):
    async with serving(listen_at) as server, ConnectionPool() as pool:
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
async def test_connect_is_looked_up_at_each_call(monkeypatch):
    connected = []

    async def recording_connect(addr, *args, **kwargs):
        connected.append(addr)
        return await connect(addr, *args, **kwargs)

    async with serving(inc=inc) as server, ConnectionPool() as pool:
        await pool(server.address).inc(x=1)
        pool.collect()
        monkeypatch.setattr(core, "connect", recording_connect)
        assert await pool(server.address).inc(x=1) == 2
        assert connected == [server.address]


@gen_test()
async def test_options_reach_connect_and_the_comm(monkeypatch):
    seen = []

    async def recording_connect(addr, timeout=None, deserialize=True, **connection_args):
        seen.append((addr, timeout, deserialize, connection_args))
        return await connect(addr, timeout, deserialize)

    monkeypatch.setattr(core, "connect", recording_connect)
    args = {"ssl_context": object()}
    async with (
        serving() as server,
        ConnectionPool(
            timeout="3s", deserialize=False, allow_offload=False, connection_args=args
        ) as pool,
    ):
        comm = await pool.connect(server.address)
        assert seen == [(server.address, "3s", False, args)]
        assert comm.allow_offload is False
        assert comm.deserialize is False


@gen_test()
async def test_values_stay_serialized_where_the_pool_does_not_deserialize():
    async with (
        serving("tcp://127.0.0.1:0", get=lambda: to_serialize(123)) as server,
        ConnectionPool(deserialize=False) as pool,
    ):
        assert isinstance(await pool(server.address).get(), Serialized)


@gen_test()
async def test_serializers_of_the_pool_limit_what_its_calls_may_send():
    async with (
        serving("tcp://127.0.0.1:0", inc=inc) as server,
        ConnectionPool(serializers=["msgpack"]) as pool,
    ):
        remote = pool(server.address)
        assert remote.serializers == remote.deserializers == ["msgpack"]
        assert await remote.inc(x=1) == 2
        with pytest.raises(TypeError):
            await remote.inc(x=to_serialize(1j))
        assert pool.open == 1
        assert await remote.inc(x=1) == 2


@pytest.mark.parametrize("limit", [0, -1, "5", None, 2.5])
def test_a_limit_that_leaves_no_place_is_an_error(limit):
    with pytest.raises(ValueError, match="at least one connection"):
        ConnectionPool(limit=limit)
