"""How many connections a server keeps, for how long, and what it answers while it closes."""

from __future__ import annotations

import asyncio

import pytest

from distributed.base import config
from distributed.comm import CommClosedError, connect
from distributed.core import Server, Status, rpc, send_recv
from distributed.core.admission import Admission
from distributed.utils_test import async_poll_for, captured_logger, gen_test


@gen_test()
async def test_a_connection_above_the_limit_is_answered_by_an_error_and_closed():
    with config.set({"distributed.comm.max-connections": 2}):
        server = Server({})
    async with server:
        await server.listen("tcp://127.0.0.1:0")
        first, second = [await connect(server.address) for _ in range(2)]
        for comm in (first, second):
            assert await send_recv(comm, op="echo", data=1) == 1
        third = await connect(server.address)
        reason = r"2 connections.*'distributed.comm.max-connections'"
        with captured_logger("distributed") as log, pytest.raises(OSError, match=reason):
            await send_recv(third, op="echo", data=1)
        assert log.getvalue().count("refuses a connection") == 1
        with pytest.raises(CommClosedError):
            await third.read()
        assert await send_recv(first, op="echo", data=2) == 2
        await first.close()
        await async_poll_for(lambda: server.incoming_comms_open == 1, timeout=10)
        fourth = await connect(server.address)
        assert await send_recv(fourth, op="echo", data=3) == 3
        for comm in (second, third, fourth):
            await comm.close()


@gen_test()
async def test_connections_are_counted_by_host():
    with config.set({"distributed.comm.max-connections-per-host": 1}):
        server = Server({})
    async with server:
        await server.listen("tcp://127.0.0.1:0")
        await server.listen("inproc://")
        over_tcp = await connect(server.listeners[0].contact_address)
        assert await send_recv(over_tcp, op="echo", data=1) == 1
        another = await connect(server.listeners[0].contact_address)
        with pytest.raises(OSError, match=r"from 127\.0\.0\.1.*max-connections-per-host"):
            await send_recv(another, op="echo", data=1)
        elsewhere = await connect(server.listeners[1].contact_address)
        assert await send_recv(elsewhere, op="echo", data=1) == 1
        for comm in (over_tcp, another, elsewhere):
            await comm.close()


def test_who_leaves_makes_room():
    class Comm:
        peer_address = "tcp://10.0.0.1:5000"

    admission = Admission(limit=10, limit_per_host=1)
    one, two = Comm(), Comm()
    assert admission.enter(one) is None
    assert admission.enter(two) is not None
    admission.leave(two)
    assert admission.enter(two) is not None
    admission.leave(one)
    assert admission.enter(two) is None


@gen_test()
async def test_an_idle_connection_is_closed_after_a_while_and_a_busy_one_is_not():
    release = asyncio.Event()

    async def wait():
        await release.wait()
        return "done"

    with config.set({"distributed.comm.timeouts.idle": "50ms"}):
        server = Server({"wait": wait})
    async with server:
        await server.listen("tcp://127.0.0.1:0")
        idle, busy = [await connect(server.address) for _ in range(2)]
        assert await send_recv(idle, op="echo", data=1) == 1
        call = asyncio.create_task(send_recv(busy, op="wait"))
        with pytest.raises(CommClosedError):
            await idle.read()
        release.set()
        assert await call == "done"
        await busy.close()


@gen_test()
async def test_a_closing_server_finishes_what_it_does_and_refuses_what_is_new():
    entered, release = asyncio.Event(), asyncio.Event()

    async def work():
        entered.set()
        await release.wait()
        return "finished"

    server = await Server({"work": work})
    await server.listen("tcp://127.0.0.1:0")
    busy, other = [await connect(server.address) for _ in range(2)]
    assert await send_recv(other, op="echo", data=1) == 1
    call = asyncio.create_task(send_recv(busy, op="work"))
    await entered.wait()
    closing = asyncio.create_task(server.close(timeout=60))
    while server.status is not Status.closing:
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="is closing and refuses new requests"):
        await send_recv(other, op="echo", data=1)
    release.set()
    assert await call == "finished"
    await closing
    assert other.closed() or await is_closed(other)
    await busy.close()
    await other.close()


async def is_closed(comm):
    with pytest.raises(CommClosedError):
        await comm.read()
    return True


@gen_test()
async def test_what_does_not_finish_in_time_is_cancelled():
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def work():
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    server = await Server({"work": work})
    await server.listen("tcp://127.0.0.1:0")
    async with rpc(server.address) as remote:
        call = asyncio.create_task(remote.work())
        await entered.wait()
        await server.close(timeout=0.01)
        assert cancelled.is_set()
        with pytest.raises(CommClosedError, match="'work'"):
            await call


@gen_test()
async def test_a_server_on_which_nothing_runs_closes_at_once():
    server = await Server({})
    await server.listen("tcp://127.0.0.1:0")
    comms = [await connect(server.address) for _ in range(5)]
    for comm in comms:
        await send_recv(comm, op="echo", data=1)
    await asyncio.wait_for(server.close(timeout=1000), 30)
    for comm in comms:
        assert await is_closed(comm)
        await comm.close()
