"""Connections of an ``rpc`` object, and its end."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from distributed import core
from distributed.core import CommClosedError, RPCClosed, Status, connect, rpc
from distributed.tests.servers import TCP, TRANSPORTS, Gate, serving
from distributed.utils_test import async_poll_for, captured_logger, gen_test, inc

# Connections


@TRANSPORTS
@gen_test()
async def test_comms_tells_which_connections_are_idle(transport):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle}) as server,
        rpc(server.address) as remote,
    ):
        first = await gate.enter(remote.wait(key=1), 1)
        assert list(remote.comms.values()) == [False]
        second = await gate.enter(remote.wait(key=2), 2)
        assert list(remote.comms.values()) == [False, False]
        gate.open(1)
        await first
        assert list(remote.comms.values()) == [True, False]
        gate.open(2)
        await second
        assert list(remote.comms.values()) == [True, True]


@TRANSPORTS
@gen_test()
async def test_a_live_comm_is_in_use_until_it_is_marked_idle(transport):
    async with serving(transport, {"inc": inc}) as server, rpc(server.address) as remote:
        comm = await remote.live_comm()
        assert remote.comms == {comm: False}
        await remote.inc(x=1)
        assert len(remote.comms) == 2

        for other in list(remote.comms):
            remote.comms[other] = other is comm
        assert await remote.live_comm() is comm
        assert remote.comms[comm] is False


@TRANSPORTS
@gen_test()
async def test_a_given_comm_is_used_first(transport):
    async with serving(transport, {"inc": inc}) as server:
        comm = await core.connect(server.address)
        async with rpc(server.address, comm=comm) as remote:
            assert remote.comms == {comm: True}
            assert await remote.inc(x=1) == 2
            assert list(remote.comms) == [comm]
        assert comm.closed()


@TRANSPORTS
@gen_test()
async def test_calls_succeed_after_the_server_was_restarted_at_its_address(transport):
    async with serving(transport, {"inc": inc}) as server:
        address = server.address
        remote = rpc(address)
        await remote.inc(x=1)
        (stale,) = remote.comms
    await async_poll_for(stale.closed, period=0.001)
    async with serving(address, {"inc": inc}):
        assert await remote.inc(x=2) == 3
        assert stale not in remote.comms
        await remote.close_rpc()


@gen_test()
async def test_a_call_cancelled_while_it_connects_leaves_nothing_open():
    async with serving(TCP) as server, rpc(server.address) as remote:
        call = asyncio.create_task(remote.identity())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not remote.comms
        assert (await remote.identity())["id"] == server.id


@TRANSPORTS
@gen_test()
async def test_close_comms_closes_all_connections_and_the_next_call_opens_one(transport):
    gate = Gate()
    handlers = {"wait": gate.handle, "inc": inc}
    async with serving(transport, handlers) as server, rpc(server.address) as remote:
        call = await gate.enter(remote.wait())
        await asyncio.gather(*(remote.inc(x=x) for x in range(3)))
        comms = list(remote.comms)
        remote.close_comms()
        assert all(comm.closed() for comm in comms)
        assert not remote.comms
        assert remote.status is Status.running
        with pytest.raises(CommClosedError, match="'wait'"):
            await call
        assert await remote.inc(x=1) == 2
        assert len(remote.comms) == 1
        gate.open()


@pytest.mark.parametrize("given", ["127.0.0.1:{}", "tcp://127.0.0.1:{}", tuple, list])
@gen_test()
async def test_each_form_of_an_address_is_accepted(given):
    async with serving(TCP, {"inc": inc}) as server:
        port = server.port
        address = given.format(port) if isinstance(given, str) else given(["127.0.0.1", port])
        with rpc(address) as remote:
            assert remote.address == server.address
            assert await remote.inc(x=1) == 2


@gen_test()
async def test_the_repr_shows_the_address_and_the_number_of_comms():
    async with serving(handlers={"inc": inc}) as server, rpc(server.address) as remote:
        assert repr(remote) == f"<rpc to {server.address!r}, 0 comms>"
        await remote.inc(x=1)
        assert repr(remote) == f"<rpc to {server.address!r}, 1 comms>"


def test_an_rpc_can_be_used_on_one_loop_after_another():
    ready, stop = threading.Event(), threading.Event()
    address = ""

    async def serve():
        nonlocal address
        async with serving(TCP) as server:
            address = server.address
            ready.set()
            await async_poll_for(stop.is_set, timeout=30)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        remote = rpc(address)

        async def call(x):
            return await remote.echo(data=x)

        assert [asyncio.run(call(1)), asyncio.run(call(2))] == [1, 2]
        assert len(remote.comms) == 1
        remote.close_rpc()
    finally:
        stop.set()
        thread.join()


# Closing


@TRANSPORTS
@gen_test()
async def test_a_with_block_closes_the_rpc_at_its_end(transport):
    async with serving(transport, {"inc": inc}) as server:
        with rpc(server.address) as one:
            await one.inc(x=1)
            comms = list(one.comms)
        async with rpc(server.address) as another:
            await another.inc(x=1)
            comms += another.comms
        assert one.status is another.status is Status.closed
        assert [comm.closed() for comm in comms] == [True, True]


@TRANSPORTS
@gen_test()
async def test_close_rpc_closes_at_once_and_can_be_awaited_and_repeated(transport):
    async with serving(transport, {"inc": inc}) as server:
        remote = rpc(server.address)
        await remote.inc(x=1)
        (comm,) = remote.comms
        closing = remote.close_rpc()
        assert remote.status is Status.closed
        assert comm.closed()
        await closing
        await remote.close_rpc()
        assert remote.status is Status.closed


@TRANSPORTS
@gen_test()
async def test_close_rpc_fails_the_calls_in_progress(transport):
    gate = Gate()
    async with serving(transport, {"wait": gate.handle}) as server:
        remote = rpc(server.address)
        calls = [await gate.enter(remote.wait(key=i), i) for i in range(3)]
        comms = list(remote.comms)
        await remote.close_rpc()
        for call in calls:
            with pytest.raises(CommClosedError, match="'wait' using comm"):
                await call
        assert all(comm.closed() for comm in comms)
        assert not remote.comms
        gate.open(*range(3))


@gen_test()
async def test_close_rpc_fails_the_calls_that_connect_and_closes_their_comms(monkeypatch):
    gate = Gate()
    made = []

    async def slow_connect(*args, **kwargs):
        await gate.handle()
        made.append(await connect(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(core, "connect", slow_connect)
    async with serving(TCP, {"inc": inc}) as server:
        remote = rpc(server.address)
        call = await gate.enter(remote.inc(x=1))
        await remote.close_rpc()
        gate.open()
        with pytest.raises(RPCClosed, match="'inc' before comm was established"):
            await call
        assert [comm.closed() for comm in made] == [True]
        assert not remote.comms


@gen_test()
async def test_a_closed_rpc_refuses_calls_and_names_the_method():
    remote = rpc("tcp://127.0.0.1:1")
    await remote.close_rpc()
    with pytest.raises(RPCClosed) as caught:
        await remote.foo()
    assert str(caught.value) == (
        "Exception while trying to call remote method 'foo' before comm was established."
    )
    with pytest.raises(RPCClosed, match=r"tcp://127\.0\.0\.1:1"):
        await remote.live_comm()


@TRANSPORTS
@gen_test()
async def test_an_rpc_is_active_until_it_is_closed(transport):
    async with serving(transport, {"inc": inc}) as server:
        before = set(rpc.active)
        remote = rpc(server.address)
        assert set(rpc.active) - before == {remote}
        await remote.inc(x=1)
        await remote.close_rpc()
        assert set(rpc.active) == before


@TRANSPORTS
@gen_test()
async def test_an_rpc_deleted_while_open_aborts_its_comms_and_warns(transport):
    async with serving(transport, {"inc": inc}) as server:
        remote = rpc(server.address)
        await asyncio.gather(*(remote.inc(x=x) for x in range(3)))
        comms = list(remote.comms)
        with captured_logger("distributed.core") as log:
            del remote
            gc.collect()
        assert all(comm.closed() for comm in comms)
        assert f"rpc to {server.address} deleted with 3 open comms" in log.getvalue()


@TRANSPORTS
@gen_test()
async def test_an_rpc_deleted_after_it_was_closed_logs_nothing(transport):
    async with serving(transport, {"inc": inc}) as server:
        with captured_logger("distributed") as log:
            remote = rpc(server.address)
            await remote.inc(x=1)
            await remote.close_rpc()
            del remote
            gc.collect()
        assert log.getvalue() == ""


def test_an_rpc_deleted_before_it_connected_logs_nothing_and_is_not_active():
    before = len(rpc.active)
    with captured_logger("distributed") as log:
        rpc("tcp://127.0.0.1:1")
        gc.collect()
    assert log.getvalue() == ""
    assert len(rpc.active) == before


def test_an_rpc_whose_constructor_failed_is_deleted_without_an_error():
    with pytest.raises(TypeError):
        rpc(8786)
    gc.collect()
