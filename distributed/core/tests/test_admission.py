"""Limits on the connections of a server: in all, from one host, without a request, and refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from distributed.base import config
from distributed.comm import CommClosedError, connect
from distributed.core import Server, send_recv
from distributed.core.admission import Admission, Refusals
from distributed.tests.servers import TCP, Gate
from distributed.utils_test import async_poll_for, captured_logger, gen_test


@gen_test()
async def test_a_connection_above_the_limit_is_answered_by_an_error_and_closed():
    with config.set({"distributed.comm.max-connections": 2}):
        server = Server({})
    async with server:
        await server.listen(TCP)
        first, second = [await connect(server.address) for _ in range(2)]
        for comm in (first, second):
            assert await send_recv(comm, op="echo", data=1) == 1
        reason = r"2 connections.*'distributed.comm.max-connections'"
        with captured_logger("distributed") as log:
            third = await connect(server.address)
            with pytest.raises(OSError, match=reason):
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
        await server.listen(TCP)
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


def test_a_comm_that_leaves_makes_room_for_another():
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
async def test_an_idle_connection_times_out_and_a_busy_one_does_not():
    gate = Gate()
    with config.set({"distributed.comm.timeouts.idle": "50ms"}):
        server = Server({"wait": gate.handle})
    async with server:
        await server.listen(TCP)
        idle, busy = [await connect(server.address) for _ in range(2)]
        assert await send_recv(idle, op="echo", data=1) == 1
        call = await gate.enter(send_recv(busy, op="wait", key="done"), "done")
        with pytest.raises(CommClosedError):
            await idle.read()
        gate.open("done")
        assert await call == "done"
        await busy.close()


@asynccontextmanager
async def full_server(changes: dict[str, Any]) -> AsyncIterator[Server]:
    """Run a server that has as many connections as it may have, with changes of its settings."""
    with config.set({"distributed.comm.max-connections": 1, **changes}):
        server = Server({})
    async with server:
        await server.listen(TCP)
        only = await connect(server.address)
        assert await send_recv(only, op="echo", data=1) == 1
        yield server
        await only.close()


@gen_test()
async def test_of_too_many_refused_connections_the_oldest_is_closed_and_the_others_get_the_reason():
    async with full_server({"distributed.comm.max-refusals": 2}) as server:
        oldest, *others = [await connect(server.address) for _ in range(3)]
        with pytest.raises(CommClosedError):
            await oldest.read()
        for comm in others:
            with pytest.raises(OSError, match="max-connections"):
                await send_recv(comm, op="echo", data=1)
            await comm.close()


@gen_test()
async def test_a_refused_connection_that_stays_silent_is_closed():
    async with full_server({"distributed.comm.timeouts.refusal": "50ms"}) as server:
        comm = await connect(server.address)
        with pytest.raises(CommClosedError):
            await comm.read()


unpickled: list[int] = []


def note(number: int) -> None:
    unpickled.append(number)


class Payload:
    def __reduce__(self):
        return note, (1,)


@gen_test()
async def test_the_request_of_a_refused_connection_is_not_unpickled():
    unpickled.clear()
    async with full_server({}) as server:
        comm = await connect(server.address)
        with pytest.raises(OSError, match="max-connections"):
            await send_recv(comm, op="echo", data=Payload())
        await comm.close()
    assert not unpickled


@gen_test()
async def test_refusals_are_counted_in_the_log_rather_than_repeated(monkeypatch):
    refusals = Refusals()
    with captured_logger("distributed.core") as log:
        for _ in range(100):
            refusals.log("it refuses a connection", "tcp://10.0.0.1:5000")
        assert log.getvalue().count("it refuses a connection") == 1
        monkeypatch.setattr(refusals, "_logged", float("-inf"))
        refusals.log("it refuses a connection", "tcp://10.0.0.1:5000")
    assert "and 99 others since the last report" in log.getvalue()
