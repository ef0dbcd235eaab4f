"""Requests and answers: the handler that is called, its arguments, and the answer."""

from __future__ import annotations

import asyncio
import functools
import sys

import pytest

from distributed.core import CommClosedError, Server, Status, _expects_comm, rpc
from distributed.protocol import to_serialize
from distributed.protocol.families import Family, families
from distributed.tests.servers import TCP, TRANSPORTS, ask, assert_usable, connected, quiet, serving
from distributed.utils_test import async_poll_for, gen_test, throws

# Handlers and their arguments


async def add_later(x, y):
    await asyncio.sleep(0)
    return x + y


@TRANSPORTS
@pytest.mark.parametrize(
    "add", [lambda x, y: x + y, add_later], ids=["function", "coroutine function"]
)
@gen_test()
async def test_functions_and_coroutine_functions_answer(transport, add):
    async with serving(transport, {"add": add}) as server, connected(server) as comm:
        assert await ask(comm, {"op": "add", "x": 1, "y": 2}) == 3


@TRANSPORTS
@gen_test()
async def test_a_handler_gets_the_keys_of_the_request_and_no_others(transport):
    def tell(**kwargs):
        return kwargs

    async with serving(transport, {"tell": tell}) as server, connected(server) as comm:
        msg = {"op": "tell", "x": 1, "reply": True, "close": False, "serializers": None}
        assert await ask(comm, msg) == {"x": 1}


@TRANSPORTS
@gen_test()
async def test_a_handler_whose_first_parameter_is_comm_gets_the_comm(transport):
    def peer(comm):
        return comm.peer_address

    async with serving(transport, {"peer": peer}) as server, connected(server) as comm:
        assert await ask(comm, {"op": "peer"}) == comm.local_address


class Adder:
    """Handlers in all forms of a callable."""

    def method(self, comm, x):
        return comm is not None, x

    async def coroutine_method(self, comm, x):
        return comm is not None, x

    def __call__(self, comm, x):
        return comm is not None, x


async def coroutine_function(comm, x):
    return comm is not None, x


HANDLERS_WITH_COMM = {
    "function": lambda comm, x: (comm is not None, x),
    "coroutine function": coroutine_function,
    "method": Adder().method,
    "coroutine method": Adder().coroutine_method,
    "callable object": Adder(),
    "partial": functools.partial(coroutine_function),
    "partial of keyword": functools.partial(lambda comm, y, x: (comm is not None, x), y=0),
    "comm with a default": lambda comm=None, x=None: (comm is not None, x),
}


@pytest.mark.parametrize("form", HANDLERS_WITH_COMM)
@gen_test()
async def test_comm_is_given_to_handlers_of_every_form(form):
    handler = HANDLERS_WITH_COMM[form]
    async with serving("inproc://", {"f": handler}) as server, connected(server) as comm:
        assert await ask(comm, {"op": "f", "x": 5}) == (True, 5)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda comm: None, True),
        (lambda comm, x: None, True),
        (lambda comm=None: None, True),
        (lambda x, comm: None, False),
        (lambda x: None, False),
        (lambda stream: None, False),
        (lambda: None, False),
        (functools.partial(lambda x, comm: None, 1), True),
        (functools.partial(lambda comm, x: None, None), False),
        (Adder(), True),
        (Adder().method, True),
        (dict, False),
    ],
)
def test_expects_comm_looks_at_the_name_of_the_first_parameter(function, expected):
    assert _expects_comm(function) is expected


@TRANSPORTS
@pytest.mark.parametrize(
    ("handler", "kwargs", "complaint"),
    [
        (lambda x: x, {}, "missing 1 required positional argument: 'x'"),
        (lambda x: x, {"x": 1, "y": 2}, "unexpected keyword argument 'y'"),
        (lambda comm: 1, {"comm": 1}, "multiple values for argument 'comm'"),
        (lambda x, /: x, {"x": 1}, "positional-only"),
        (lambda **kwargs: 1, {7: 1}, "must be strings"),
    ],
    ids=["missing", "extra", "comm twice", "positional only", "no name"],
)
@gen_test()
async def test_arguments_that_do_not_fit_are_a_type_error_at_the_caller(
    transport, handler, kwargs, complaint
):
    async with serving(transport, {"f": handler}) as server, connected(server) as comm:
        with quiet():
            answer = await ask(comm, {"op": "f", **kwargs})
        assert answer["status"] == "uncaught-error"
        assert "TypeError" in answer["exception_text"]
        assert complaint in answer["exception_text"]
        await assert_usable(comm)


@TRANSPORTS
@gen_test()
async def test_a_handler_that_is_replaced_at_run_time_is_no_longer_called(transport):
    async with serving(transport, {"f": lambda x: "old"}) as server, connected(server) as comm:
        assert await ask(comm, {"op": "f", "x": 1}) == "old"
        server.handlers["f"] = lambda comm, x: ("new", comm is not None)
        assert await ask(comm, {"op": "f", "x": 1}) == ("new", True)


@gen_test()
async def test_a_handler_that_is_added_at_run_time_can_be_called():
    async with serving("inproc://") as server, rpc(server.address) as remote:
        server.handlers["f"] = lambda: "new"
        assert await remote.f() == "new"


@gen_test()
async def test_a_handler_that_is_removed_at_run_time_cannot_be_called():
    async with serving("inproc://", {"f": lambda: 1}) as server, rpc(server.address) as remote:
        assert await remote.f() == 1
        del server.handlers["f"]
        with quiet(), pytest.raises(ValueError, match="No handler for op 'f'"):
            await remote.f()


@gen_test()
async def test_handlers_replace_built_in_handlers():
    async with (
        serving("inproc://", {"identity": lambda: "mine"}) as server,
        rpc(server.address) as remote,
    ):
        assert await remote.identity() == "mine"


@gen_test()
async def test_the_handlers_that_were_given_are_not_changed():
    given = {"f": lambda: 1}
    async with serving("inproc://", given) as server:
        server.handlers["g"] = given["f"]
        assert list(given) == ["f"]


# Built-in operations


class Scheduler(Server):
    """Overrides each method that the server calls itself, and counts these calls."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def identity(self):
        return {**super().identity(), "workers": 3}

    def _to_dict(self, *, exclude=()):
        return {**super()._to_dict(exclude=exclude), "tasks": 7}

    def handle_comm(self, comm):
        self.calls.append("handle_comm")
        return super().handle_comm(comm)

    async def handle_stream(self, comm, extra=None):
        self.calls.append("handle_stream")
        await super().handle_stream(comm, extra)


@TRANSPORTS
@gen_test()
async def test_identity_returns_type_and_id(transport):
    async with serving(transport) as server, rpc(server.address) as remote:
        assert await remote.identity() == server.identity() == {"type": "Server", "id": server.id}


@gen_test()
async def test_the_server_calls_the_methods_that_a_subclass_overrides():
    async with serving(TCP, cls=Scheduler) as server:
        async with rpc(server.address) as remote:
            identity = {"type": "Scheduler", "id": server.id, "workers": 3}
            assert await remote.identity() == identity
            assert (await remote.dump_state()).items() >= {**identity, "tasks": 7}.items()
        async with connected(server) as comm:
            await comm.write({"op": "connection_stream"})
            await async_poll_for(lambda: "handle_stream" in server.calls)
        assert server.calls == ["handle_comm", "handle_comm", "handle_stream"]


@TRANSPORTS
@gen_test()
async def test_echo_returns_its_data(transport):
    async with serving(transport) as server, rpc(server.address) as remote:
        assert await remote.echo(data={"x": b"2", "y": None}) == {"x": b"2", "y": None}
        assert await remote.echo() is None
        assert server.echo(5) == 5


@TRANSPORTS
@gen_test()
async def test_dump_state_returns_the_state_of_the_server(transport):
    async with serving(transport) as server, rpc(server.address) as remote:
        assert await remote.dump_state() == server._to_dict()
        assert server._to_dict() == {
            "type": "Server",
            "id": server.id,
            "address": server.address,
            "status": "running",
            "thread_id": server.thread_id,
        }


@TRANSPORTS
@gen_test()
async def test_dump_state_leaves_out_excluded_keys(transport):
    async with serving(transport) as server, rpc(server.address) as remote:
        state = await remote.dump_state(exclude=["id", "address", "no such key"])
        assert set(state) == {"type", "status", "thread_id"}


# Keys of a request that are for the server


@TRANSPORTS
@gen_test()
async def test_reply_false_sends_no_answer(transport):
    called = []
    async with (
        serving(transport, {"f": lambda x: called.append(x)}) as server,
        connected(server) as comm,
    ):
        await comm.write({"op": "f", "x": 1, "reply": False})
        # The next answer belongs to the next request.
        await assert_usable(comm)
        assert called == [1]


@TRANSPORTS
@gen_test()
async def test_reply_false_sends_no_error_either(transport):
    async with serving(transport, {"f": throws}) as server, connected(server) as comm:
        with quiet() as log:
            for msg in ({"op": "f", "x": 1}, {"op": "no such op"}, {"no op": 1}):
                await comm.write({**msg, "reply": False})
            await assert_usable(comm)
        assert "hello!" in log.getvalue()


@TRANSPORTS
@pytest.mark.parametrize(
    ("msg", "expected"),
    [
        ({"op": "echo", "data": 1, "close": True}, "1"),
        ({"op": "no such op", "close": True}, "uncaught-error"),
        ({"op": "close"}, "OK"),
    ],
    ids=["after the answer", "after an error", "op close"],
)
@gen_test()
async def test_close_closes_the_comm_after_the_answer(transport, msg, expected):
    async with serving(transport) as server, connected(server) as comm:
        with quiet():
            assert expected in str(await ask(comm, msg))
        with pytest.raises(CommClosedError):
            await comm.read()
        await async_poll_for(lambda: not server._comms)


@TRANSPORTS
@pytest.mark.parametrize("msg", [{"op": "echo", "close": True}, {"op": "close"}], ids=str)
@gen_test()
async def test_close_without_reply_closes_the_comm_unanswered(transport, msg):
    async with serving(transport) as server, connected(server) as comm:
        await comm.write({**msg, "reply": False})
        with pytest.raises(CommClosedError):
            await comm.read()


@TRANSPORTS
@gen_test()
async def test_a_handler_that_returns_dont_reply_writes_its_own_answer(transport):
    async def answer_twice(comm):
        await comm.write("one")
        await comm.write("two")
        return Status.dont_reply

    async with serving(transport, {"f": answer_twice}) as server, connected(server) as comm:
        assert await ask(comm, {"op": "f"}) == "one"
        assert await comm.read() == "two"
        await assert_usable(comm)


@TRANSPORTS
@gen_test()
async def test_serializers_are_passed_on_to_a_handler_that_takes_them(transport):
    def f(x, serializers="not given"):
        return serializers

    async with serving(transport, {"f": f}) as server, connected(server) as comm:
        assert await ask(comm, {"op": "f", "x": 1}) == "not given"
        answer = await ask(comm, {"op": "f", "x": 1, "serializers": ["msgpack"]})
        assert list(answer) == ["msgpack"]


@TRANSPORTS
@gen_test()
async def test_serializers_are_kept_from_a_handler_that_does_not_take_them(transport):
    async with serving(transport) as server, connected(server) as comm:
        assert await ask(comm, {"op": "echo", "data": 1, "serializers": ["msgpack"]}) == 1


@pytest.mark.parametrize("transport", [TCP, "unix://", "ws://127.0.0.1:0"])
@gen_test()
async def test_a_family_that_a_request_names_a_thousand_times_is_tried_once(transport, monkeypatch):
    tried = []

    def refuse(x, context=None):
        tried.append(x)
        raise NotImplementedError

    monkeypatch.setitem(families, "refusing", Family(refuse, refuse, wants_context=True))
    names = ["refusing"] * 1000 + ["pickle"]
    async with (
        serving(transport, {"f": lambda: to_serialize(range(3))}) as server,
        connected(server) as comm,
    ):
        assert await ask(comm, {"op": "f", "serializers": names}) == range(3)
    assert len(tried) == 1


@gen_test()
async def test_the_answer_is_written_with_the_serializers_of_the_request():
    async with (
        serving(TCP, {"f": lambda: to_serialize(print)}) as server,
        connected(server) as comm,
    ):
        assert await ask(comm, {"op": "f"}) is print
        with pytest.raises(TypeError, match="Could not serialize object of type builtin"):
            await ask(comm, {"op": "f", "serializers": ["msgpack"]})
        await assert_usable(comm)


def test_is_finalizing_is_that_of_the_interpreter():
    assert Server._is_finalizing() is False
    assert Server._is_finalizing is sys.is_finalizing
