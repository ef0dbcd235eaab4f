"""One request and its answer on a comm, and the small functions around it."""

from __future__ import annotations

import asyncio
import functools
import operator
import traceback

import pytest

from distributed.core import (
    Comm,
    CommClosedError,
    RPCClosed,
    Server,
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
from distributed.utils_test import captured_logger, gen_test, inc

over_each_transport = pytest.mark.parametrize("listen_at", ["tcp://127.0.0.1:0", "inproc://"])


def fail(text):
    raise KeyError(text)


# send_recv


@over_each_transport
@gen_test()
async def test_send_recv_returns_the_answer(listen_at):
    async with Server({"inc": inc}) as server:
        await server.listen(listen_at)
        comm = await connect(server.address)
        assert await send_recv(comm, op="inc", x=1) == 2
        assert await send_recv(comm, op="inc", x=2) == 3
        await comm.close()


@over_each_transport
@gen_test()
async def test_send_recv_without_reply_returns_before_the_handler_is_done(listen_at):
    release = asyncio.Event()
    done = asyncio.Event()

    async def wait():
        await release.wait()
        done.set()

    async with Server({"wait": wait, "inc": inc}) as server:
        await server.listen(listen_at)
        comm = await connect(server.address)
        assert await send_recv(comm, op="wait", reply=False) is None
        assert not done.is_set()
        release.set()
        # The handler's result, None, was not sent: this is the answer to the next request.
        assert await send_recv(comm, op="inc", x=1) == 2
        assert done.is_set()
        await comm.close()


@over_each_transport
@gen_test()
async def test_send_recv_raises_what_the_handler_raised(listen_at):
    async with Server({"fail": fail}) as server:
        await server.listen(listen_at)
        comm = await connect(server.address)
        with captured_logger("distributed.core.requests"), pytest.raises(KeyError) as caught:
            await send_recv(comm, op="fail", text="no such key")
        assert caught.value.args == ("no such key",)
        assert "in fail" in "".join(traceback.format_exception(caught.value))
        assert not comm.closed()
        await comm.close()


@over_each_transport
@gen_test()
async def test_send_recv_leaves_the_comm_open_after_an_os_error_of_the_handler(listen_at):
    def lose_file():
        raise FileNotFoundError(2, "No such file", "data.csv")

    async with Server({"lose_file": lose_file, "inc": inc}) as server:
        await server.listen(listen_at)
        comm = await connect(server.address)
        with (
            captured_logger("distributed.core.requests"),
            pytest.raises(FileNotFoundError) as caught,
        ):
            await send_recv(comm, op="lose_file")
        assert caught.value.filename == "data.csv"
        assert await send_recv(comm, op="inc", x=1) == 2
        await comm.close()


@over_each_transport
@gen_test()
async def test_send_recv_with_close_closes_the_comm_after_the_answer(listen_at):
    async with Server({"inc": inc}) as server:
        await server.listen(listen_at)
        comm = await connect(server.address)
        assert await send_recv(comm, op="inc", x=1, close=True) == 2
        assert comm.closed()


@over_each_transport
@gen_test()
async def test_send_recv_aborts_the_comm_when_the_peer_goes_away(listen_at):
    async with Server({"leave": lambda comm: comm.abort()}) as server:
        await server.listen(listen_at)
        comm = await connect(server.address)
        with pytest.raises(CommClosedError):
            await send_recv(comm, op="leave")
        assert comm.closed()


@over_each_transport
@gen_test()
async def test_send_recv_closes_the_comm_when_it_is_cancelled(listen_at):
    started = asyncio.Event()

    async def never():
        started.set()
        await asyncio.Event().wait()

    async with Server({"never": never}) as server:
        await server.listen(listen_at)
        comm = await connect(server.address)
        call = asyncio.create_task(send_recv(comm, op="never"))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert comm.closed()
        await server.close(timeout=0)


@over_each_transport
@gen_test()
async def test_send_recv_aborts_the_comm_when_it_times_out(listen_at):
    async def never():
        await asyncio.Event().wait()

    async with Server({"never": never}) as server:
        await server.listen(listen_at)
        comm = await connect(server.address)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await send_recv(comm, op="never")
        assert comm.closed()
        await server.close(timeout=0)


class Undecided(Comm):
    """A comm of another package, which does not close itself whatever goes wrong in it."""

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


async def fall_silent():
    await asyncio.Event().wait()


async def break_down():
    raise ConnectionResetError("no route any more")


async def wait_too_long():
    raise TimeoutError("nothing arrived")


@pytest.mark.parametrize(
    ("read", "error"),
    [(break_down, ConnectionResetError), (wait_too_long, TimeoutError)],
)
@gen_test()
async def test_send_recv_does_not_rely_on_the_transport_to_close_a_broken_comm(read, error):
    comm = Undecided(read)
    with pytest.raises(error):
        await send_recv(comm, op="inc", x=1)
    assert comm.closed()


@gen_test()
async def test_send_recv_does_not_rely_on_the_transport_to_close_a_comm_that_is_given_up():
    comm = Undecided(fall_silent)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await send_recv(comm, op="inc", x=1)
    assert comm.closed()


@over_each_transport
@gen_test()
async def test_two_requests_at_once_on_one_comm_both_fail_rather_than_swap_answers(listen_at):
    async with Server({}) as server:
        await server.listen(listen_at)
        comm = await connect(server.address)
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
async def test_a_request_that_cannot_be_serialized_leaves_the_comm_as_it_was():
    async with Server({"inc": inc}) as server:
        await server.listen("tcp://127.0.0.1:0")
        comm = await connect(server.address)
        with pytest.raises(TypeError):
            await send_recv(comm, op="inc", x=to_serialize(object), serializers=["msgpack"])
        assert await send_recv(comm, op="inc", x=1) == 2
        await comm.close()


def fail_to_unpickle():
    raise ArithmeticError("cannot be made again")


class Unwelcome:
    def __reduce__(self):
        return fail_to_unpickle, ()


@gen_test()
async def test_an_answer_that_cannot_be_deserialized_leaves_the_comm_as_it_was():
    async with Server({"get": lambda: to_serialize(Unwelcome()), "inc": inc}) as server:
        await server.listen("tcp://127.0.0.1:0")
        comm = await connect(server.address)
        with (
            captured_logger("distributed.protocol"),
            pytest.raises(Exception, match="cannot be made again"),
        ):
            await send_recv(comm, op="get")
        assert await send_recv(comm, op="inc", x=1) == 2
        await comm.close()


@gen_test()
async def test_an_error_is_raised_also_where_values_are_not_deserialized():
    async with Server({"fail": fail}) as server:
        await server.listen("tcp://127.0.0.1:0")
        comm = await connect(server.address, deserialize=False)
        with (
            captured_logger("distributed.core.requests"),
            pytest.raises(KeyError, match="no such key"),
        ):
            await send_recv(comm, op="fail", text="no such key")
        await comm.close()


@gen_test()
async def test_the_server_is_told_what_the_caller_accepts():
    def show(serializers=None):
        return serializers

    async with Server({"show": show}) as server:
        await server.listen("tcp://127.0.0.1:0")
        comm = await connect(server.address)
        assert await send_recv(comm, op="show") is None
        both = ["msgpack", "pickle"]
        assert tuple(await send_recv(comm, op="show", serializers=both)) == ("msgpack", "pickle")
        answer = await send_recv(comm, op="show", serializers=both, deserializers=["msgpack"])
        assert tuple(answer) == ("msgpack",)
        await comm.close()


@gen_test()
async def test_values_stay_serialized_on_a_comm_that_does_not_deserialize():
    async with Server({"get": lambda: {"x": to_serialize(123)}}) as server:
        await server.listen("tcp://127.0.0.1:0")
        comm = await connect(server.address, deserialize=False)
        answer = await send_recv(comm, op="get")
        assert isinstance(answer["x"], Serialized)
        await comm.close()


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
def test_every_form_of_an_address_becomes_one(given, address):
    assert coerce_to_address(given) == address


@pytest.mark.parametrize("given", [8786, None, b"tcp://127.0.0.1:8786"])
def test_what_is_no_address_is_a_type_error(given):
    with pytest.raises(TypeError):
        coerce_to_address(given)


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
def test_an_address_is_not_given_twice_or_not_at_all(given):
    with pytest.raises(TypeError, match="addr"):
        addr_from_args(**given)


# Small functions


@gen_test()
async def test_pingpong_is_a_handler():
    async with Server({"ping": pingpong}) as server:
        await server.listen("inproc://")
        async with rpc(server.address) as remote:
            assert await remote.ping() == b"pong"


def test_raise_later_takes_anything_and_raises():
    error = LookupError("much later")
    later = raise_later(error)
    with pytest.raises(LookupError) as caught:
        later(1, 2, three=3)
    assert caught.value is error


def test_an_rpc_closed_error_is_found_where_peers_look_for_it():
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
def test_a_handler_expects_the_comm_if_its_first_parameter_is_named_so(func, expected):
    assert _expects_comm(func) is expected


@gen_test()
async def test_an_address_that_only_a_listener_may_have_is_refused_at_once():
    with pytest.raises(ValueError, match="names no host"):
        await connect("tcp://:8888")
    with pytest.raises(TypeError, match="expected an address or"):
        rpc(5)
