"""Calls by ``send_recv``, by ``rpc`` and through a pool, and the functions around them."""

from __future__ import annotations

import asyncio
import functools
import operator
import re
import ssl
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from distributed import core
from distributed.comm.core import FatalCommClosedError
from distributed.core import (
    Comm,
    CommClosedError,
    ConnectionPool,
    RPCClosed,
    _expects_comm,
    addr_from_args,
    coerce_to_address,
    connect,
    pingpong,
    raise_later,
    rpc,
    send_recv,
)
from distributed.protocol import Serialized, to_serialize
from distributed.tests.servers import TCP, TRANSPORTS, Explosive, Gate, connected, quiet, serving
from distributed.utils_test import async_poll_for, captured_logger, gen_test, inc


def fail(text):
    raise KeyError(text)


def leave(comm):
    comm.abort()


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


# send_recv


@TRANSPORTS
@gen_test()
async def test_send_recv_returns_the_answer(transport):
    async with serving(transport, {"inc": inc}) as server, connected(server) as comm:
        assert await send_recv(comm, op="inc", x=1) == 2
        assert await send_recv(comm, op="inc", x=2) == 3


@TRANSPORTS
@gen_test()
async def test_send_recv_without_reply_returns_before_the_handler(transport):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle, "inc": inc}) as server,
        connected(server) as comm,
    ):
        assert await send_recv(comm, op="wait", key="result", reply=False) is None
        await gate.entered["result"].wait()
        gate.open("result")
        # The handler's result was not sent: this is the answer to the next request.
        assert await send_recv(comm, op="inc", x=1) == 2


@TRANSPORTS
@pytest.mark.parametrize(
    ("kind", "args"),
    [(KeyError, ("no such key",)), (FileNotFoundError, (2, "No such file", "data.csv"))],
)
@gen_test()
async def test_send_recv_raises_the_handlers_error_and_leaves_the_comm_open(transport, kind, args):
    handlers = {"fail": lambda: raise_later(kind(*args))(), "inc": inc}
    async with serving(transport, handlers) as server, connected(server) as comm:
        with quiet(), pytest.raises(kind) as caught:
            await send_recv(comm, op="fail")
        assert repr(caught.value) == repr(kind(*args))
        assert str(caught.value) == str(kind(*args))
        assert "in raise_now" in shown(caught.value)
        assert await send_recv(comm, op="inc", x=1) == 2


@TRANSPORTS
@gen_test()
async def test_send_recv_with_close_closes_the_comm_after_the_answer(transport):
    async with serving(transport, {"inc": inc}) as server, connected(server) as comm:
        assert await send_recv(comm, op="inc", x=1, close=True) == 2
        assert comm.closed()


@TRANSPORTS
@gen_test()
async def test_send_recv_aborts_the_comm_when_the_peer_disconnects(transport):
    async with serving(transport, {"leave": leave}) as server, connected(server) as comm:
        with pytest.raises(CommClosedError):
            await send_recv(comm, op="leave")
        assert comm.closed()


@TRANSPORTS
@gen_test()
async def test_send_recv_aborts_the_comm_when_it_is_cancelled(transport):
    gate = Gate()
    async with serving(transport, {"wait": gate.handle}) as server, connected(server) as comm:
        call = await gate.enter(send_recv(comm, op="wait"))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert comm.closed()
        gate.open()


@TRANSPORTS
@gen_test()
async def test_send_recv_aborts_the_comm_when_it_times_out(transport):
    gate = Gate()
    async with serving(transport, {"wait": gate.handle}) as server, connected(server) as comm:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await send_recv(comm, op="wait")
        assert comm.closed()
        gate.open()


class NeverClosesItself(Comm):
    """A comm of another package, which stays open after each error."""

    local_address = peer_address = "tcp://10.0.0.1:1"

    def __init__(self, read):
        super().__init__()
        self._read = read
        self._closed = False

    async def read(self, deserializers=None):
        return await self._read()

    async def write(self, msg, serializers=None, on_error=None):
        return 1

    async def close(self):
        self._closed = True

    def abort(self):
        self._closed = True

    def closed(self):
        return self._closed


async def never_return():
    await asyncio.Event().wait()


async def break_down():
    raise ConnectionResetError("no route any more")


async def time_out():
    raise TimeoutError("no message")


@pytest.mark.parametrize(
    ("read", "error"),
    [(break_down, ConnectionResetError), (time_out, TimeoutError), (never_return, TimeoutError)],
)
@gen_test()
async def test_send_recv_does_not_rely_on_the_transport_to_close_the_comm(read, error):
    comm = NeverClosesItself(read)
    with pytest.raises(error):
        async with asyncio.timeout(0.01):
            await send_recv(comm, op="inc", x=1)
    assert comm.closed()


@TRANSPORTS
@gen_test()
async def test_two_requests_at_once_on_one_comm_fail_instead_of_swapping_answers(transport):
    async with serving(transport) as server, connected(server) as comm:
        first, second = await asyncio.gather(
            send_recv(comm, op="echo", data=1),
            send_recv(comm, op="echo", data=2),
            return_exceptions=True,
        )
        assert isinstance(first, CommClosedError)
        assert isinstance(second, RuntimeError)
        with pytest.raises(CommClosedError):
            await send_recv(comm, op="echo", data=3)


@gen_test()
async def test_values_that_cannot_be_converted_leave_the_comm_open():
    handlers = {"get": lambda: to_serialize(Explosive()), "inc": inc}
    async with serving(TCP, handlers) as server, connected(server) as comm:
        with pytest.raises(TypeError):
            await send_recv(comm, op="inc", x=to_serialize(object), serializers=["msgpack"])
        assert await send_recv(comm, op="inc", x=1) == 2
        with (
            captured_logger("distributed.protocol"),
            pytest.raises(Exception, match="cannot be unpickled"),
        ):
            await send_recv(comm, op="get")
        assert await send_recv(comm, op="inc", x=1) == 2


@gen_test()
async def test_an_error_is_raised_also_if_values_are_not_deserialized():
    async with serving(TCP, {"fail": fail}) as server:
        comm = await connect(server.address, deserialize=False)
        with quiet(), pytest.raises(Exception, match=r"^KeyError\('no such key'\)") as info:
            await send_recv(comm, op="fail", text="no such key")
        # Not unpickled: a scheduler may lack the class, and need not trust the worker.
        assert type(info.value) is Exception
        assert "in fail" in shown(info.value)
        await comm.close()


class Matrix(dict):
    """A dict whose methods take other arguments, like a matrix of scipy."""

    def get(self, key, default=0.0):
        raise IndexError("index must be a pair of numbers")


@TRANSPORTS
@gen_test()
async def test_an_answer_may_be_a_subclass_of_dict_with_other_methods(transport):
    async with (
        serving(transport, {"get": lambda: to_serialize(Matrix(a=1))}) as server,
        connected(server) as comm,
    ):
        answer = await send_recv(comm, op="get")
        assert type(answer) is Matrix
        assert dict(answer) == {"a": 1}


@gen_test()
async def test_a_matrix_of_scipy_is_an_answer():
    scipy = pytest.importorskip("scipy.sparse")
    matrix = scipy.dok_matrix((3, 3))
    matrix[1, 2] = 5.0
    async with (
        serving("inproc://", {"get": lambda: matrix}) as server,
        connected(server) as comm,
    ):
        assert (await send_recv(comm, op="get"))[1, 2] == 5.0


@gen_test()
async def test_the_server_learns_which_serializers_the_caller_accepts():
    def show(serializers=None):
        return serializers

    async with serving(TCP, {"show": show}) as server, connected(server) as comm:
        assert await send_recv(comm, op="show") is None
        both = ["msgpack", "pickle"]
        assert tuple(await send_recv(comm, op="show", serializers=both)) == ("msgpack", "pickle")
        answer = await send_recv(comm, op="show", serializers=both, deserializers=["msgpack"])
        assert tuple(answer) == ("msgpack",)


# rpc and pooled calls


@asynccontextmanager
async def by_rpc(address: str, limit: int = 0, **options: Any) -> AsyncIterator[Any]:
    async with rpc(address, **options) as remote:
        yield remote, lambda: set(remote.comms)


@asynccontextmanager
async def by_pool(address: str, limit: int = 512, **options: Any) -> AsyncIterator[Any]:
    def comms() -> set[Comm]:
        pool._validate()
        assert pool._connecting_count == 0
        return {c for books in (pool.available, pool.occupied) for cs in books.values() for c in cs}

    async with ConnectionPool(limit=limit, **options) as pool:
        yield pool(address), comms


#: Runs a test with functions that make a remote object, and a function that returns its comms.
CALLERS = pytest.mark.parametrize("calling", [by_rpc, by_pool])


@CALLERS
@TRANSPORTS
@gen_test()
async def test_an_attribute_calls_the_handler_of_that_name(transport, calling):
    async with (
        serving(transport, {"inc": inc}) as server,
        calling(server.address) as (remote, _),
    ):
        remote_inc = remote.inc
        assert await remote_inc(x=1) == 2
        assert await asyncio.gather(remote_inc(x=2), remote_inc(x=3)) == [3, 4]


@CALLERS
@TRANSPORTS
@gen_test()
async def test_consecutive_calls_share_one_connection(transport, calling):
    async with (
        serving(transport, {"inc": inc}) as server,
        calling(server.address) as (remote, comms),
    ):
        assert not comms()
        await remote.inc(x=1)
        (comm,) = comms()
        for x in range(10):
            await remote.inc(x=x)
        assert comms() == {comm}


@CALLERS
@TRANSPORTS
@gen_test()
async def test_overlapping_calls_open_a_connection_each_and_later_calls_reuse_them(
    transport, calling
):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle}) as server,
        calling(server.address) as (remote, comms),
    ):
        calls = [await gate.enter(remote.wait(key=i), i) for i in range(5)]
        opened = comms()
        assert len(opened) == 5
        gate.open(*range(5))
        assert await asyncio.gather(*calls) == [0, 1, 2, 3, 4]

        calls = [await gate.enter(remote.wait(key=i), i) for i in range(5, 10)]
        assert comms() == opened
        gate.open(*range(5, 10))
        assert await asyncio.gather(*calls) == [5, 6, 7, 8, 9]


@CALLERS
@TRANSPORTS
@gen_test()
async def test_two_hundred_calls_overlap(transport, calling):
    # No call is answered before all of them have arrived.
    barrier = asyncio.Barrier(200)
    async with (
        serving(transport, {"meet": barrier.wait}) as server,
        calling(server.address) as (remote, comms),
    ):
        answers = await asyncio.gather(*(remote.meet() for _ in range(200)))
        assert sorted(answers) == list(range(200))
        assert len(comms()) == 200


@CALLERS
@TRANSPORTS
@gen_test()
async def test_a_handler_that_waits_does_not_delay_others(transport, calling):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle, "inc": inc}) as server,
        calling(server.address) as (one, _),
        calling(server.address) as (another, _),
    ):
        call = await gate.enter(one.wait())
        assert await another.inc(x=1) == 2
        assert await one.inc(x=1) == 2
        assert not call.done()
        gate.open()
        await call


@CALLERS
@TRANSPORTS
@gen_test()
async def test_a_call_without_reply_returns_none_at_once(transport, calling):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle}) as server,
        calling(server.address) as (remote, _),
    ):
        assert await remote.wait(reply=False) is None
        await gate.entered[None].wait()
        gate.open()
        assert await remote.wait() is None


@CALLERS
@TRANSPORTS
@gen_test()
async def test_a_connection_closed_by_its_call_is_not_reused(transport, calling):
    async with (
        serving(transport, {"inc": inc}) as server,
        calling(server.address) as (remote, comms),
    ):
        assert await remote.inc(x=1, close=True) == 2
        assert not comms()
        assert await remote.inc(x=2) == 3


@CALLERS
@TRANSPORTS
@gen_test()
async def test_an_idle_connection_that_the_peer_closed_is_replaced(transport, calling):
    async with (
        serving(transport, {"inc": inc}) as server,
        calling(server.address) as (remote, comms),
    ):
        await asyncio.gather(*(remote.inc(x=x) for x in range(2)))
        stale = comms()
        for comm in list(server._comms):
            comm.abort()
        await async_poll_for(lambda: all(comm.closed() for comm in stale), period=0.001)
        assert await remote.inc(x=2) == 3
        assert not stale & comms()


@pytest.fixture(params=[rpc, ConnectionPool()], ids=["rpc", "pool"])
def unconnected(request):
    """A remote object that has made no connection."""
    remote = request.param("tcp://127.0.0.1:1")
    yield remote
    remote.close_rpc()


def test_calls_have_the_names_of_the_original(unconnected):
    name = f"{type(unconnected).__name__}.__getattr__.<locals>.send_recv_from_rpc"
    assert unconnected.add.__name__ == "send_recv_from_rpc"
    assert unconnected.add.__qualname__ == name
    with pytest.raises(TypeError, match=rf"^{re.escape(name)}\(\) takes 0 positional arguments"):
        unconnected.add(1, 2)
    call = unconnected.add(x=1)
    assert call.__qualname__ == name
    call.close()


@pytest.mark.parametrize("name", ["__array__", "__len__", "__no_such_protocol__", "__deepcopy__"])
def test_special_methods_of_python_are_not_remote_calls(unconnected, name):
    with pytest.raises(AttributeError, match=name):
        getattr(unconnected, name)


def test_an_operation_with_a_private_name_is_a_remote_call(unconnected):
    assert callable(unconnected._private)


# Errors


@CALLERS
@TRANSPORTS
@gen_test()
async def test_an_operation_that_does_not_exist_is_an_error_that_names_it(transport, calling):
    async with serving(transport) as server, calling(server.address) as (remote, _):
        with quiet(), pytest.raises(ValueError, match="no_such_op") as caught:
            await remote.no_such_op()
        assert server.address in str(caught.value)


@CALLERS
@TRANSPORTS
@gen_test()
async def test_a_remote_error_is_raised_with_its_type_message_and_traceback(transport, calling):
    def divide(x, y):
        return x / y

    async with (
        serving(transport, {"divide": divide}) as server,
        calling(server.address) as (remote, _),
    ):
        with quiet(), pytest.raises(ZeroDivisionError) as caught:
            await remote.divide(x=1, y=0)
        assert str(caught.value) == "division by zero"
        assert "in divide" in shown(caught.value)
        assert "return x / y" in shown(caught.value)


@CALLERS
@TRANSPORTS
@pytest.mark.parametrize("kind", [ConnectionResetError, CommClosedError, RPCClosed])
@gen_test()
async def test_a_connection_error_of_the_handler_leaves_the_callers_connection_open(
    transport, calling, kind
):
    def fail():
        raise kind("in <TCP to a third server>")

    async with (
        serving(transport, {"fail": fail, "inc": inc}) as server,
        calling(server.address) as (remote, comms),
    ):
        await remote.inc(x=1)
        (comm,) = comms()
        with quiet(), pytest.raises(kind) as caught:
            await remote.fail()
        assert str(caught.value) == "in <TCP to a third server>"
        assert "in fail" in shown(caught.value)
        assert await remote.inc(x=1) == 2
        assert comms() == {comm}


@CALLERS
@TRANSPORTS
@gen_test()
async def test_a_call_whose_connection_breaks_names_method_and_comm(transport, calling):
    async with (
        serving(transport, {"leave": leave, "inc": inc}) as server,
        calling(server.address) as (remote, comms),
    ):
        await remote.inc(x=1)
        (comm,) = comms()
        with pytest.raises(CommClosedError) as caught:
            await remote.leave()
        comm.name = f"{remote._comm_name}.leave"  # as it was during the call
        assert str(caught.value) == (
            f"Exception while trying to call remote method 'leave' using comm {comm!r}."
        )
        assert comm.name in repr(comm)
        assert server.address in repr(comm)
        assert caught.value.__cause__ is not None
        assert comm.closed()
        assert not comms()
        assert await remote.inc(x=1) == 2


@CALLERS
@gen_test()
async def test_a_fatal_error_while_connecting_names_the_method(monkeypatch, calling):
    async def refuse(*args, **kwargs):
        raise FatalCommClosedError("not compatible")

    monkeypatch.setattr(core, "connect", refuse)
    async with calling("tcp://127.0.0.1:1") as (remote, _):
        with pytest.raises(FatalCommClosedError) as caught:
            await remote.foo()
    assert "'foo' before comm was established" in str(caught.value)
    assert str(caught.value.__cause__) == "not compatible"


@CALLERS
@gen_test()
async def test_a_call_of_a_server_that_is_gone_fails_after_the_timeout(calling):
    async with serving(TCP) as server:
        address = server.address
    async with calling(address, timeout="50ms") as (remote, _):
        with pytest.raises(OSError, match=f"Timed out trying to connect to {address}"):
            await remote.foo()


# Cancellation and timeouts


@CALLERS
@TRANSPORTS
@pytest.mark.parametrize("error", [asyncio.CancelledError, TimeoutError])
@gen_test()
async def test_a_cancelled_call_closes_its_connection_and_the_next_gets_its_own_answer(
    transport, calling, error
):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle}) as server,
        calling(server.address, limit=1) as (remote, comms),
    ):
        call = await gate.enter(remote.wait(key="late"), "late")
        (comm,) = comms()
        if error is asyncio.CancelledError:
            call.cancel()
        with pytest.raises(error):
            await asyncio.wait_for(call, 0.01)
        assert comm.closed()
        assert not comms()

        gate.open("late", "own")
        assert await remote.wait(key="own") == "own"


@CALLERS
@TRANSPORTS
@gen_test()
async def test_a_call_cancelled_at_any_step_does_not_affect_other_calls(transport, calling):
    async def echo(data):
        await asyncio.sleep(0)
        return data

    async with (
        serving(transport, {"echo": echo}) as server,
        calling(server.address, limit=1) as (remote, comms),
    ):
        finished = False
        steps = 0
        while not finished:
            call = asyncio.create_task(remote.echo(data="cancelled"))
            for _ in range(steps):
                await asyncio.sleep(0)
            finished = not call.cancel()
            steps += 1
            await asyncio.wait([call])
            assert await remote.echo(data=steps) == steps
            assert len(comms()) == 1
        assert call.result() == "cancelled"
        assert steps > 3


# Options


@CALLERS
@gen_test()
async def test_connect_is_looked_up_at_each_call(monkeypatch, calling):
    connected = []

    async def recording_connect(addr, *args, **kwargs):
        connected.append(addr)
        return await connect(addr, *args, **kwargs)

    async with serving(TCP, {"inc": inc}) as server, calling(server.address) as (remote, comms):
        await remote.inc(x=1)
        for comm in comms():
            comm.abort()
        monkeypatch.setattr(core, "connect", recording_connect)
        assert await remote.inc(x=1) == 2
        assert connected == [server.address]


@CALLERS
@gen_test()
async def test_options_are_passed_to_connect(monkeypatch, calling):
    async def refuse(addr, timeout=None, deserialize=True, **connection_args):
        raise LookupError(addr, timeout, deserialize, connection_args)

    monkeypatch.setattr(core, "connect", refuse)
    args = {"ssl_context": ssl.create_default_context()}
    options = {"timeout": "3s", "deserialize": False, "connection_args": args}
    async with calling("tcp://127.0.0.1:1", **options) as (remote, _):
        with pytest.raises(LookupError) as caught:
            await remote.foo()
    assert caught.value.args == ("tcp://127.0.0.1:1", "3s", False, args)


@CALLERS
@gen_test()
async def test_values_are_deserialized_by_default(calling):
    async with serving(TCP, {"get": lambda: {"x": to_serialize(123)}}) as server:
        async with calling(server.address) as (remote, _):
            assert await remote.get() == {"x": 123}
        async with calling(server.address, deserialize=False) as (remote, _):
            assert isinstance((await remote.get())["x"], Serialized)


@CALLERS
@gen_test()
async def test_serializers_limit_the_values_of_requests_and_a_call_can_override_them(calling):
    async with (
        serving(TCP, {"inc": inc}) as server,
        calling(server.address, serializers=["msgpack"]) as (remote, comms),
    ):
        assert remote.serializers == remote.deserializers == ["msgpack"]
        assert await remote.inc(x=1) == 2
        with pytest.raises(TypeError):
            await remote.inc(x=to_serialize(1j))
        assert len(comms()) == 1
        both = ["msgpack", "pickle"]
        answer = await remote.inc(x=to_serialize(1j), serializers=both, deserializers=both)
        assert answer == 1 + 1j


@CALLERS
@gen_test()
async def test_deserializers_limit_the_values_of_answers(calling):
    async with (
        serving(TCP, {"get": lambda: to_serialize(1j), "inc": inc}) as server,
        calling(server.address, deserializers=["msgpack"]) as (remote, _),
    ):
        with quiet(), pytest.raises(TypeError):
            await remote.get()
        assert await remote.inc(x=1) == 2


# Addresses


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("tcp://127.0.0.1:8786", "tcp://127.0.0.1:8786"),
        ("127.0.0.1:8786", "tcp://127.0.0.1:8786"),
        ("inproc://10.0.0.1/5/1", "inproc://10.0.0.1/5/1"),
        (("127.0.0.1", 8786), "tcp://127.0.0.1:8786"),
        (["127.0.0.1", 8786], "tcp://127.0.0.1:8786"),
        (("127.0.0.1", "8786"), "tcp://127.0.0.1:8786"),
        (("::1", 8786), "tcp://[::1]:8786"),
        (("127.0.0.1", None), "tcp://127.0.0.1"),
        (("127.0.0.1",), "tcp://127.0.0.1"),
    ],
)
def test_each_form_of_an_address_is_normalized(given, address):
    assert coerce_to_address(given) == address


@pytest.mark.parametrize("given", [8786, None, b"tcp://127.0.0.1:8786"])
def test_other_types_are_a_type_error(given):
    for function in (coerce_to_address, rpc):
        with pytest.raises(TypeError, match=r"expected str, got .* is not an address"):
            function(given)


@pytest.mark.parametrize(
    "given",
    [
        {"addr": "127.0.0.1:8786"},
        {"addr": ("127.0.0.1", 8786)},
        {"addr": "tcp://127.0.0.1:8786"},
        {"ip": "127.0.0.1", "port": 8786},
    ],
)
def test_an_address_is_given_in_one_argument_or_in_two(given):
    assert addr_from_args(**given) == "tcp://127.0.0.1:8786"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"port": 8786},
        {"addr": "127.0.0.1:8786", "ip": "127.0.0.1"},
        {"addr": "127.0.0.1:8786", "port": 8786},
    ],
)
def test_an_address_given_twice_or_not_at_all_is_a_type_error(given):
    with pytest.raises(TypeError, match="addr"):
        addr_from_args(**given)


@gen_test()
async def test_connecting_to_a_listening_address_without_a_host_is_an_error():
    with pytest.raises(ValueError, match="has no host"):
        await connect("tcp://:8888")


# Small functions


@gen_test()
async def test_pingpong_is_a_handler():
    async with serving(handlers={"ping": pingpong}) as server, rpc(server.address) as remote:
        assert await remote.ping() == b"pong"


def test_raise_later_accepts_any_arguments_and_raises():
    error = LookupError("much later")
    later = raise_later(error)
    with pytest.raises(LookupError) as caught:
        later(1, 2, three=3)
    assert caught.value is error


def test_an_rpc_closed_error_has_the_originals_module():
    assert RPCClosed.__module__ == "distributed.core"


async def coroutine_handler(comm, x):
    pass


class Handlers:
    def with_comm(self, comm, x):
        pass

    def without_comm(self, x, comm):
        pass

    @staticmethod
    def static(comm):
        pass

    def __call__(self, comm):
        pass


@pytest.mark.parametrize(
    ("func", "expected"),
    [
        (lambda comm: None, True),
        (lambda comm, x: None, True),
        (lambda comm=None: None, True),
        (lambda x, comm: None, False),
        (lambda x: None, False),
        (lambda: None, False),
        (lambda *args, **kwargs: None, False),
        (lambda stream: None, False),
        (coroutine_handler, True),
        (Handlers().with_comm, True),
        (Handlers().without_comm, False),
        (Handlers.static, True),
        (Handlers(), True),
        (functools.partial(coroutine_handler, x=1), True),
        (functools.partial(coroutine_handler, None), False),
        (pingpong, True),
        (operator.add, False),
        (dict, False),
    ],
)
def test_a_handler_gets_the_comm_if_its_first_parameter_has_that_name(
    func: Callable[..., Any], expected: bool
) -> None:
    assert _expects_comm(func) is expected
