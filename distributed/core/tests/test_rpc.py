"""Calls of one server through an ``rpc`` object."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from distributed import core
from distributed.comm.core import FatalCommClosedError
from distributed.core import (
    CommClosedError,
    RPCClosed,
    Server,
    Status,
    connect,
    rpc,
)
from distributed.protocol import Serialized, to_serialize
from distributed.tests.servers import ADDRESSES, listen_args, trusting
from distributed.utils_test import async_poll_for, captured_logger, gen_test, inc

over_each_transport = pytest.mark.parametrize("listen_at", ADDRESSES)


@asynccontextmanager
async def serving(
    listen_at: str = "tcp://127.0.0.1:0", **handlers: Callable[..., Any]
) -> AsyncIterator[Server]:
    async with Server(handlers) as server:
        await server.listen(listen_at, **listen_args(listen_at))
        with trusting(listen_at):
            yield server


class Gate:
    """A handler that says when it was called, and answers when it is told to."""

    def __init__(self) -> None:
        self.entered: defaultdict[Any, asyncio.Event] = defaultdict(asyncio.Event)
        self.opened: defaultdict[Any, asyncio.Event] = defaultdict(asyncio.Event)

    async def handle(self, key: Any = None) -> Any:
        self.entered[key].set()
        await self.opened[key].wait()
        return key

    async def enter(self, call: Any, key: Any = None) -> asyncio.Task[Any]:
        """Begin a call and wait until the handler runs."""
        task = asyncio.ensure_future(call)
        await self.entered[key].wait()
        return task

    def open(self, *keys: Any) -> None:
        for key in keys or (None,):
            self.opened[key].set()


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


# Calls


@over_each_transport
@gen_test()
async def test_an_attribute_calls_the_handler_of_that_name(listen_at):
    async with serving(listen_at, inc=inc) as server:
        with rpc(server.address) as remote:
            assert await remote.inc(x=1) == 2


@over_each_transport
@gen_test()
async def test_a_call_that_was_not_awaited_yet_can_be_kept_for_later(listen_at):
    async with serving(listen_at, inc=inc) as server, rpc(server.address) as remote:
        remote_inc = remote.inc
        assert await asyncio.gather(remote_inc(x=1), remote_inc(x=2)) == [2, 3]


@over_each_transport
@gen_test()
async def test_a_with_block_closes_the_rpc_at_its_end(listen_at):
    async with serving(listen_at, inc=inc) as server:
        with rpc(server.address) as remote:
            await remote.inc(x=1)
            comms = list(remote.comms)
        assert remote.status is Status.closed
        assert all(comm.closed() for comm in comms)


@over_each_transport
@gen_test()
async def test_an_async_with_block_closes_the_rpc_at_its_end(listen_at):
    async with serving(listen_at, inc=inc) as server:
        async with rpc(server.address) as remote:
            await remote.inc(x=1)
            comms = list(remote.comms)
        assert remote.status is Status.closed
        assert all(comm.closed() for comm in comms)


@over_each_transport
@gen_test()
async def test_calls_in_a_row_share_one_connection(listen_at):
    async with serving(listen_at, inc=inc) as server, rpc(server.address) as remote:
        assert not remote.comms
        await remote.inc(x=1)
        (comm,) = remote.comms
        for x in range(10):
            await remote.inc(x=x)
        assert list(remote.comms) == [comm]


@over_each_transport
@gen_test()
async def test_overlapping_calls_open_a_connection_each_and_later_ones_reuse_them(listen_at):
    gate = Gate()
    async with serving(listen_at, wait=gate.handle) as server, rpc(server.address) as remote:
        calls = [await gate.enter(remote.wait(key=i), i) for i in range(5)]
        comms = set(remote.comms)
        assert len(comms) == 5
        gate.open(*range(5))
        assert await asyncio.gather(*calls) == [0, 1, 2, 3, 4]

        calls = [await gate.enter(remote.wait(key=i), i) for i in range(5, 10)]
        assert set(remote.comms) == comms
        gate.open(*range(5, 10))
        assert await asyncio.gather(*calls) == [5, 6, 7, 8, 9]


@over_each_transport
@gen_test()
async def test_comms_tells_which_connections_are_idle(listen_at):
    gate = Gate()
    async with serving(listen_at, wait=gate.handle) as server, rpc(server.address) as remote:
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


@over_each_transport
@gen_test()
async def test_calls_need_one_connection_each_however_many_overlap(listen_at):
    # Nobody gets an answer before all of the calls have arrived.
    barrier = asyncio.Barrier(200)
    async with serving(listen_at, meet=barrier.wait) as server, rpc(server.address) as remote:
        answers = await asyncio.gather(*(remote.meet() for _ in range(200)))
        assert sorted(answers) == list(range(200))
        assert len(remote.comms) == 200


@over_each_transport
@gen_test()
async def test_overlapping_calls_take_no_longer_than_one(listen_at):
    async def work():
        await asyncio.sleep(0.2)

    async with serving(listen_at, work=work) as server, rpc(server.address) as remote:
        start = time.monotonic()
        await asyncio.gather(*(remote.work() for _ in range(200)))
        assert time.monotonic() - start < 2


@over_each_transport
@gen_test()
async def test_a_handler_that_waits_does_not_delay_others(listen_at):
    gate = Gate()
    async with (
        serving(listen_at, wait=gate.handle, inc=inc) as server,
        rpc(server.address) as one,
        rpc(server.address) as another,
    ):
        call = await gate.enter(one.wait())
        assert await another.inc(x=1) == 2
        assert await one.inc(x=1) == 2
        assert not call.done()
        gate.open()
        await call


@over_each_transport
@gen_test()
async def test_a_call_without_reply_returns_none_at_once(listen_at):
    gate = Gate()
    async with serving(listen_at, wait=gate.handle) as server, rpc(server.address) as remote:
        assert await remote.wait(reply=False) is None
        await gate.entered[None].wait()
        gate.open()
        assert await remote.wait() is None


@over_each_transport
@gen_test()
async def test_a_connection_closed_by_its_call_is_not_used_again(listen_at):
    async with serving(listen_at, inc=inc) as server, rpc(server.address) as remote:
        assert await remote.inc(x=1, close=True) == 2
        assert not remote.comms
        assert await remote.inc(x=2) == 3


def test_a_call_that_is_made_wrongly_is_named():
    with rpc("tcp://127.0.0.1:1") as remote:
        with pytest.raises(TypeError, match=r"^rpc\.add\(\) takes 0 positional arguments"):
            remote.add(1, 2)
        call = remote.add(x=1)
        with pytest.warns(RuntimeWarning, match=r"'rpc\.add' was never awaited"):
            del call


@over_each_transport
@gen_test()
async def test_an_operation_that_does_not_exist_is_an_error_that_names_it(listen_at):
    async with serving(listen_at) as server, rpc(server.address) as remote:
        with (
            captured_logger("distributed.core.requests"),
            pytest.raises(ValueError, match="no_such_op") as caught,
        ):
            await remote.no_such_op()
        assert server.address in str(caught.value)


# Connections


@over_each_transport
@gen_test()
async def test_a_live_comm_is_in_use_until_it_is_marked_idle(listen_at):
    async with serving(listen_at, inc=inc) as server, rpc(server.address) as remote:
        comm = await remote.live_comm()
        assert remote.comms == {comm: False}
        await remote.inc(x=1)
        assert len(remote.comms) == 2

        for other in list(remote.comms):
            remote.comms[other] = other is comm
        assert await remote.live_comm() is comm
        assert remote.comms[comm] is False


@over_each_transport
@gen_test()
async def test_a_comm_that_is_given_is_used_first(listen_at):
    async with serving(listen_at, inc=inc) as server:
        comm = await core.connect(server.address)
        async with rpc(server.address, comm=comm) as remote:
            assert remote.comms == {comm: True}
            assert await remote.inc(x=1) == 2
            assert list(remote.comms) == [comm]
        assert comm.closed()


@over_each_transport
@gen_test()
async def test_a_connection_that_died_while_idle_is_replaced(listen_at):
    async with serving(listen_at, inc=inc) as server, rpc(server.address) as remote:
        await remote.inc(x=1)
        (dead,) = remote.comms
        for comm in list(server._comms):
            comm.abort()
        await async_poll_for(dead.closed, period=0.001)
        assert await remote.inc(x=2) == 3
        assert dead not in remote.comms


@over_each_transport
@gen_test()
async def test_calls_go_on_after_the_server_was_restarted_at_its_address(listen_at):
    async with serving(listen_at, inc=inc) as server:
        address = server.address
        remote = rpc(address)
        await remote.inc(x=1)
        (stale,) = remote.comms
    await async_poll_for(stale.closed, period=0.001)
    async with serving(address, inc=inc):
        assert await remote.inc(x=2) == 3
        assert stale not in remote.comms
        await remote.close_rpc()


@over_each_transport
@gen_test()
async def test_close_comms_closes_all_connections_and_the_next_call_opens_one(listen_at):
    async with serving(listen_at, inc=inc) as server, rpc(server.address) as remote:
        await asyncio.gather(*(remote.inc(x=x) for x in range(3)))
        comms = list(remote.comms)
        remote.close_comms()
        assert all(comm.closed() for comm in comms)
        assert not remote.comms
        assert remote.status is Status.running
        assert await remote.inc(x=1) == 2


@over_each_transport
@gen_test()
async def test_close_comms_fails_the_calls_in_progress(listen_at):
    gate = Gate()
    async with (
        serving(listen_at, wait=gate.handle, inc=inc) as server,
        rpc(server.address) as remote,
    ):
        call = await gate.enter(remote.wait())
        remote.close_comms()
        with pytest.raises(CommClosedError, match="'wait'"):
            await call
        assert await remote.inc(x=1) == 2
        assert len(remote.comms) == 1
        gate.open()


# Closing


@over_each_transport
@gen_test()
async def test_close_rpc_closes_at_once(listen_at):
    async with serving(listen_at, inc=inc) as server:
        remote = rpc(server.address)
        await remote.inc(x=1)
        (comm,) = remote.comms
        remote.close_rpc()
        assert remote.status is Status.closed
        assert comm.closed()


@over_each_transport
@gen_test()
async def test_close_rpc_can_be_awaited_and_repeated(listen_at):
    async with serving(listen_at, inc=inc) as server:
        remote = rpc(server.address)
        await remote.inc(x=1)
        await remote.close_rpc()
        await remote.close_rpc()
        assert remote.status is Status.closed


@over_each_transport
@gen_test()
async def test_close_rpc_fails_the_calls_in_progress(listen_at):
    gate = Gate()
    async with serving(listen_at, wait=gate.handle) as server:
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
async def test_close_rpc_fails_the_calls_that_connect_and_closes_what_they_made(monkeypatch):
    connecting, proceed = asyncio.Event(), asyncio.Event()
    made = []

    async def slow_connect(*args, **kwargs):
        connecting.set()
        await proceed.wait()
        made.append(await connect(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(core, "connect", slow_connect)
    async with serving(inc=inc) as server:
        remote = rpc(server.address)
        call = asyncio.create_task(remote.inc(x=1))
        await connecting.wait()
        await remote.close_rpc()
        proceed.set()
        with pytest.raises(RPCClosed, match="'inc' before comm was established"):
            await call
        assert [comm.closed() for comm in made] == [True]
        assert not remote.comms


@gen_test()
async def test_a_call_through_a_closed_rpc_tells_its_method():
    remote = rpc("tcp://127.0.0.1:1")
    await remote.close_rpc()
    with pytest.raises(RPCClosed) as caught:
        await remote.foo()
    assert str(caught.value) == (
        "Exception while trying to call remote method 'foo' before comm was established."
    )


@gen_test()
async def test_a_closed_rpc_gives_no_comm():
    async with serving() as server:
        remote = rpc(server.address)
        await remote.close_rpc()
        with pytest.raises(RPCClosed, match=server.address):
            await remote.live_comm()


@over_each_transport
@gen_test()
async def test_rpcs_are_active_until_they_are_closed(listen_at):
    async with serving(listen_at, inc=inc) as server:
        before = set(rpc.active)
        remote = rpc(server.address)
        assert set(rpc.active) - before == {remote}
        await remote.inc(x=1)
        await remote.close_rpc()
        assert set(rpc.active) == before


def test_an_rpc_that_is_forgotten_is_not_active():
    before = len(rpc.active)
    rpc("tcp://127.0.0.1:1")
    gc.collect()
    assert len(rpc.active) == before


@over_each_transport
@gen_test()
async def test_an_rpc_deleted_while_open_aborts_its_comms_and_warns(listen_at):
    async with serving(listen_at, inc=inc) as server:
        remote = rpc(server.address)
        await asyncio.gather(*(remote.inc(x=x) for x in range(3)))
        comms = list(remote.comms)
        with captured_logger("distributed.core") as log:
            del remote
            gc.collect()
        assert all(comm.closed() for comm in comms)
        assert f"rpc to {server.address} deleted with 3 open comms" in log.getvalue()


@over_each_transport
@gen_test()
async def test_an_rpc_deleted_after_it_was_closed_is_silent(listen_at):
    async with serving(listen_at, inc=inc) as server:
        with captured_logger("distributed") as log:
            remote = rpc(server.address)
            await remote.inc(x=1)
            await remote.close_rpc()
            del remote
            gc.collect()
        assert log.getvalue() == ""


def test_an_rpc_that_never_connected_is_deleted_silently():
    with captured_logger("distributed") as log:
        rpc("tcp://127.0.0.1:1")
        gc.collect()
    assert log.getvalue() == ""


def test_an_rpc_that_could_not_be_made_is_deleted_silently():
    with pytest.raises(TypeError):
        rpc(8786)
    gc.collect()


# Errors


@over_each_transport
@gen_test()
async def test_a_remote_error_is_raised_with_its_type_message_and_traceback(listen_at):
    def divide(x, y):
        return x / y

    async with serving(listen_at, divide=divide) as server, rpc(server.address) as remote:
        with (
            captured_logger("distributed.core.requests"),
            pytest.raises(ZeroDivisionError) as caught,
        ):
            await remote.divide(x=1, y=0)
        assert str(caught.value) == "division by zero"
        assert "in divide" in shown(caught.value)
        assert "return x / y" in shown(caught.value)


@over_each_transport
@gen_test()
async def test_a_connection_is_used_on_after_a_remote_error(listen_at):
    def fail():
        raise ConnectionResetError("a connection of the handler's own")

    async with serving(listen_at, fail=fail, inc=inc) as server, rpc(server.address) as remote:
        await remote.inc(x=1)
        comms = dict(remote.comms)
        with captured_logger("distributed.core.requests"), pytest.raises(ConnectionResetError):
            await remote.fail()
        assert await remote.inc(x=1) == 2
        assert remote.comms == comms


@over_each_transport
@gen_test()
async def test_a_call_whose_connection_breaks_tells_method_and_comm(listen_at):
    async with (
        serving(listen_at, leave=lambda comm: comm.abort(), inc=inc) as server,
        rpc(server.address) as remote,
    ):
        await remote.inc(x=1)
        (comm,) = remote.comms
        with pytest.raises(CommClosedError) as caught:
            await remote.leave()
        assert str(caught.value) == (
            f"Exception while trying to call remote method 'leave' using comm {comm!r}."
        )
        assert "rpc.leave" in repr(comm)
        assert server.address in repr(comm)
        assert caught.value.__cause__ is not None
        assert not remote.comms
        assert await remote.inc(x=1) == 2


@over_each_transport
@pytest.mark.parametrize("kind", [CommClosedError, RPCClosed])
@gen_test()
async def test_a_closed_connection_of_the_handler_is_not_taken_for_the_callers(listen_at, kind):
    def fail():
        raise kind("in <TCP to a third server>")

    async with serving(listen_at, fail=fail, inc=inc) as server, rpc(server.address) as remote:
        await remote.inc(x=1)
        comms = dict(remote.comms)
        with captured_logger("distributed.core.requests"), pytest.raises(kind) as caught:
            await remote.fail()
        assert str(caught.value) == "in <TCP to a third server>"
        assert "in fail" in shown(caught.value)
        assert remote.comms == comms
        assert await remote.inc(x=1) == 2


@gen_test()
async def test_a_connection_that_is_refused_for_good_tells_the_method(monkeypatch):
    async def refuse(*args, **kwargs):
        raise FatalCommClosedError("no peer of ours")

    monkeypatch.setattr(core, "connect", refuse)
    with rpc("tcp://127.0.0.1:1") as remote, pytest.raises(FatalCommClosedError) as caught:
        await remote.foo()
    assert "'foo' before comm was established" in str(caught.value)
    assert str(caught.value.__cause__) == "no peer of ours"


@gen_test()
async def test_a_call_of_a_server_that_is_gone_fails_after_the_timeout():
    async with serving() as server:
        address = server.address
    with (
        rpc(address, timeout="50ms") as remote,
        pytest.raises(OSError, match=f"Timed out trying to connect to {address}"),
    ):
        await remote.foo()


# Calls that are given up


@over_each_transport
@gen_test()
async def test_a_cancelled_call_closes_its_connection_and_the_next_gets_its_own_answer(listen_at):
    gate = Gate()
    async with serving(listen_at, wait=gate.handle) as server, rpc(server.address) as remote:
        call = await gate.enter(remote.wait(key="cancelled"), "cancelled")
        (comm,) = remote.comms
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert comm.closed()
        assert not remote.comms

        gate.open("cancelled", "own")
        assert await remote.wait(key="own") == "own"


@over_each_transport
@gen_test()
async def test_a_call_that_timed_out_closes_its_connection_and_the_next_gets_its_own(listen_at):
    gate = Gate()
    async with serving(listen_at, wait=gate.handle) as server, rpc(server.address) as remote:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(remote.wait(key="late"), 0.05)
        assert not remote.comms
        gate.open("late", "own")
        assert await remote.wait(key="own") == "own"


@over_each_transport
@gen_test()
async def test_a_call_cancelled_at_any_moment_spoils_no_other_call(listen_at):
    async def echo(data):
        await asyncio.sleep(0)
        return data

    async with serving(listen_at, echo=echo) as server, rpc(server.address) as remote:
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
            assert len(remote.comms) == 1
        assert call.result() == "cancelled"
        assert moments > 3


@gen_test()
async def test_a_call_cancelled_while_it_connects_leaves_nothing_open():
    async with serving() as server:
        with rpc(server.address) as remote:
            call = asyncio.create_task(remote.identity())
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert not remote.comms
            assert (await remote.identity())["id"] == server.id


# Options


@gen_test()
async def test_connect_is_looked_up_at_each_call(monkeypatch):
    connected = []

    async def recording_connect(addr, *args, **kwargs):
        connected.append(addr)
        return await connect(addr, *args, **kwargs)

    async with serving(inc=inc) as server, rpc(server.address) as remote:
        await remote.inc(x=1)
        remote.close_comms()
        monkeypatch.setattr(core, "connect", recording_connect)
        assert await remote.inc(x=1) == 2
        assert connected == [server.address]


@gen_test()
async def test_timeout_and_connection_args_reach_connect(monkeypatch):
    async def refuse(addr, timeout=None, deserialize=True, **connection_args):
        raise LookupError(addr, timeout, deserialize, connection_args)

    monkeypatch.setattr(core, "connect", refuse)
    args = {"ssl_context": object()}
    with (
        rpc("tcp://127.0.0.1:1", timeout="3s", deserialize=False, connection_args=args) as remote,
        pytest.raises(LookupError) as caught,
    ):
        await remote.foo()
    assert caught.value.args == ("tcp://127.0.0.1:1", "3s", False, args)


@gen_test()
async def test_values_arrive_deserialized_unless_it_is_turned_off():
    async with serving(get=lambda: to_serialize(123)) as server:
        with rpc(server.address) as remote:
            assert await remote.get() == 123
        with rpc(server.address, deserialize=False) as remote:
            assert isinstance(await remote.get(), Serialized)


@gen_test()
async def test_serializers_limit_what_a_call_may_send():
    async with serving(inc=inc) as server, rpc(server.address, serializers=["msgpack"]) as remote:
        assert await remote.inc(x=1) == 2
        with pytest.raises(TypeError):
            await remote.inc(x=to_serialize(1j))
        assert len(remote.comms) == 1
        assert await remote.inc(x=1) == 2


@gen_test()
async def test_deserializers_limit_what_the_server_may_answer():
    async with (
        serving(get=lambda: to_serialize(1j), inc=inc) as server,
        rpc(server.address, deserializers=["msgpack"]) as remote,
    ):
        with captured_logger("distributed.core.requests"), pytest.raises(TypeError):
            await remote.get()
        assert await remote.inc(x=1) == 2


@gen_test()
async def test_a_call_may_choose_its_own_serializers():
    async with (
        serving(inc=inc) as server,
        rpc(server.address, serializers=["msgpack"]) as remote,
    ):
        both = ["msgpack", "pickle"]
        answer = await remote.inc(x=to_serialize(1j), serializers=both, deserializers=both)
        assert answer == 1 + 1j


# Names


@pytest.mark.parametrize(
    "given", ["127.0.0.1:{port}", "tcp://127.0.0.1:{port}", ("127.0.0.1",), ["127.0.0.1"]]
)
@gen_test()
async def test_every_form_of_an_address_is_understood(given):
    async with serving(inc=inc) as server:
        if isinstance(given, str):
            address = given.format(port=server.port)
        else:
            address = type(given)([*given, server.port])
        with rpc(address) as remote:
            assert remote.address == server.address
            assert await remote.inc(x=1) == 2


@gen_test()
async def test_the_repr_tells_the_address_and_the_number_of_comms():
    async with serving(inc=inc) as server, rpc(server.address) as remote:
        assert repr(remote) == f"<rpc to {server.address!r}, 0 comms>"
        await remote.inc(x=1)
        assert repr(remote) == f"<rpc to {server.address!r}, 1 comms>"


@pytest.mark.parametrize("name", ["__array__", "__len__", "__no_such_protocol__", "__deepcopy__"])
def test_the_protocols_of_the_language_are_no_remote_calls(name):
    with rpc("tcp://127.0.0.1:1") as remote, pytest.raises(AttributeError, match=name):
        getattr(remote, name)


def test_an_operation_whose_name_is_private_is_a_remote_call():
    with rpc("tcp://127.0.0.1:1") as remote:
        assert callable(remote._private)


def test_an_rpc_outlives_the_loop_that_its_comms_were_made_on():
    ready, stop = threading.Event(), threading.Event()
    address = ""

    async def serve():
        nonlocal address
        async with Server({}) as server:
            await server.listen("tcp://127.0.0.1:0")
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
