"""Requests that fail: the caller gets the error, and the comm stays usable."""

from __future__ import annotations

import asyncio
import types

import pytest

from distributed.base import config
from distributed.core import CommClosedError, Server, rpc
from distributed.protocol import to_serialize
from distributed.tests.servers import (
    TCP,
    TRANSPORTS,
    Explosive,
    ask,
    assert_usable,
    connected,
    quiet,
    serving,
)
from distributed.utils_test import captured_logger, gen_test, throws


async def fail_later(x):
    await asyncio.sleep(0)
    throws(x)


@TRANSPORTS
@pytest.mark.parametrize("fail", [throws, fail_later])
@gen_test()
async def test_an_exception_of_a_handler_is_raised_at_the_caller(transport, fail):
    async with serving(transport, {"f": fail}) as server, rpc(server.address) as remote:
        with quiet() as log, pytest.raises(RuntimeError, match="hello!"):
            await remote.f(x=1)
        line = log.getvalue()
        assert f"Exception while handling op f in Server {server.address} for " in line
        assert await remote.echo(data=1) == 1
        assert len(remote.comms) == 1


@TRANSPORTS
@pytest.mark.parametrize(
    "op", ["nope", "", "_to_dict", "handle_comm", "close_rpc", "__class__", "rpc"]
)
@gen_test()
async def test_an_unknown_op_is_an_error_that_names_the_op_and_the_server(transport, op):
    class Scheduler(Server):
        pass

    async with serving(transport, cls=Scheduler) as server, connected(server) as comm:
        with quiet():
            answer = await ask(comm, {"op": op})
        assert answer["status"] == "uncaught-error"
        text = answer["exception_text"]
        assert repr(op) in text
        assert "Scheduler" in text
        assert server.address in text
        await assert_usable(comm)


@gen_test()
async def test_an_unknown_op_raises_at_the_caller():
    async with serving(TCP) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(ValueError, match="No handler for op 'nope' in Server tcp://"):
            await remote.nope()


@TRANSPORTS
@pytest.mark.parametrize("op", [5, None, ("echo",), {"echo": 1}, b"echo", {"nested": [{}]}, 1.5])
@gen_test()
async def test_an_op_that_is_not_a_string_is_an_error(transport, op):
    async with (
        serving(transport, blocked_handlers=["identity"]) as server,
        connected(server) as comm,
    ):
        with quiet():
            answer = await ask(comm, {"op": op})
        assert "No handler for op" in answer["exception_text"]
        await assert_usable(comm)


@TRANSPORTS
@pytest.mark.parametrize("msg", ["hello", ["echo"], (), 5, None, b"echo", [{"op": "echo"}]])
@gen_test()
async def test_a_message_that_is_not_a_dict_is_an_error(transport, msg):
    async with serving(transport) as server, connected(server) as comm:
        with quiet():
            answer = await ask(comm, msg)
        assert answer["status"] == "uncaught-error"
        assert "Bad message type" in answer["exception_text"]
        assert comm.local_address in answer["exception_text"]
        await assert_usable(comm)


@TRANSPORTS
@pytest.mark.parametrize("msg", [{}, {"data": 1}, {"OP": "echo"}])
@gen_test()
async def test_a_message_without_an_op_is_an_error(transport, msg):
    async with serving(transport) as server, connected(server) as comm:
        with quiet():
            answer = await ask(comm, msg)
        assert answer["status"] == "uncaught-error"
        assert "without 'op' key" in answer["exception_text"]
        await assert_usable(comm)


@gen_test()
async def test_an_error_quotes_only_the_beginning_of_a_bad_message():
    async with serving(TCP) as server, connected(server) as comm:
        with quiet() as log:
            answer = await ask(comm, ["x" * 100_000])
        assert len(answer["exception_text"]) < 2_000
        assert len(log.getvalue()) < 10_000


@TRANSPORTS
@gen_test()
async def test_a_blocked_op_is_refused(transport):
    class Scheduler(Server):
        pass

    called = []
    async with (
        serving(
            transport, {"f": lambda: called.append(1)}, Scheduler, blocked_handlers=["f"]
        ) as server,
        rpc(server.address) as remote,
    ):
        with quiet(), pytest.raises(ValueError, match="'f' handler") as info:
            await remote.f()
        assert str(info.value) == (
            "The 'f' handler has been explicitly disallowed in Scheduler, "
            "possibly due to security concerns."
        )
        assert called == []
        assert await remote.echo(data=1) == 1


@gen_test()
async def test_built_in_ops_can_be_blocked():
    async with serving(TCP, blocked_handlers=["echo"]) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(ValueError, match="explicitly disallowed"):
            await remote.echo(data=1)


@gen_test()
async def test_blocked_handlers_are_configured_by_class():
    class Scheduler(Server):
        pass

    with config.set({"distributed.scheduler.blocked-handlers": ["echo", "identity"]}):
        scheduler, server = Scheduler({}), Server({})
    assert list(scheduler.blocked_handlers) == ["echo", "identity"]
    assert list(server.blocked_handlers) == []
    await scheduler.close()
    await server.close()


@gen_test()
async def test_given_blocked_handlers_replace_the_configured_ones():
    with config.set({"distributed.server.blocked-handlers": ["echo"]}):
        server = Server({}, blocked_handlers=["identity"])
    assert list(server.blocked_handlers) == ["identity"]
    await server.close()


def test_blocked_handlers_in_one_string_are_an_error_rather_than_a_list_of_letters():
    with pytest.raises(TypeError, match=r"^blocked_handlers has to be a list .*'run'"):
        Server({}, blocked_handlers="run")
    key = "distributed.server.blocked-handlers"
    with (
        config.set({key: "run"}),
        pytest.raises(TypeError, match=f"^{key} has to be a list .*'run'"),
    ):
        Server({})


@gen_test()
async def test_blocked_handlers_can_be_changed_at_run_time():
    async with serving(TCP) as server, rpc(server.address) as remote:
        assert await remote.echo(data=1) == 1
        server.blocked_handlers = ["echo"]
        with quiet(), pytest.raises(ValueError, match="explicitly disallowed"):
            await remote.echo(data=1)


class Awaitable:
    """An awaitable that is not a coroutine."""

    def __await__(self):
        raise AssertionError("it was awaited")
        yield


@TRANSPORTS
@pytest.mark.parametrize(
    "handler",
    [Awaitable, lambda: asyncio.get_running_loop().create_future()],
    ids=["Awaitable", "Future"],
)
@gen_test()
async def test_an_awaitable_that_is_not_a_coroutine_is_a_runtime_error(transport, handler):
    async with serving(transport, {"f": handler}) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(RuntimeError, match=r"unknown awaitable.*(Awaitable|Future)"):
            await remote.f()
        assert await remote.echo(data=1) == 1


@TRANSPORTS
@gen_test()
async def test_a_generator_that_is_a_coroutine_is_awaited(transport):
    @types.coroutine
    def f():
        yield from asyncio.sleep(0).__await__()
        return 2

    async with serving(transport, {"f": f}) as server, rpc(server.address) as remote:
        assert await remote.f() == 2


@gen_test()
async def test_a_request_that_cannot_be_unpickled_is_an_error_at_the_caller():
    async with serving(TCP) as server, connected(server) as comm:
        with quiet() as log:
            answer = await ask(comm, {"op": "echo", "data": to_serialize(Explosive())})
        assert answer["status"] == "uncaught-error"
        assert "cannot be unpickled" in answer["exception_text"]
        assert "unreadable request" in log.getvalue()
        await assert_usable(comm)


class Unpicklable:
    def __reduce__(self):
        raise ZeroDivisionError("cannot be pickled")


@gen_test()
async def test_a_result_that_cannot_be_pickled_is_an_error_at_the_caller():
    async with serving(TCP, {"f": Unpicklable}) as server, connected(server) as comm:
        with quiet() as log:
            answer = await ask(comm, {"op": "f"})
        assert answer["status"] == "uncaught-error"
        assert "Cannot serialize the result of op f" in log.getvalue()
        await assert_usable(comm)


WRAPPED = pytest.mark.parametrize("wrap", [to_serialize, lambda x: {"deep": [to_serialize(x)]}])


@WRAPPED
@gen_test()
async def test_a_wrapped_result_that_cannot_be_pickled_is_an_error_at_the_reader(wrap):
    async with (
        serving(TCP, {"f": lambda: wrap(Unpicklable())}) as server,
        rpc(server.address) as remote,
    ):
        with pytest.raises(TypeError, match="Could not serialize object of type Unpicklable"):
            await remote.f()
        assert await remote.echo(data=1) == 1
        assert len(remote.comms) == 1


@WRAPPED
@gen_test()
async def test_a_result_that_cannot_be_pickled_passes_through_a_server_that_does_not_deserialize(
    wrap,
):
    # As the result of Client.run: from a worker, through the scheduler, to the client.
    async with (
        serving(TCP, {"f": lambda: wrap(Unpicklable())}) as worker,
        serving(TCP, deserialize=False) as scheduler,
        rpc(scheduler.address) as remote,
    ):

        async def forward():
            return await scheduler.rpc(worker.address).f()

        scheduler.handlers["f"] = forward
        message = "Could not serialize object of type Unpicklable"
        with quiet() as log, pytest.raises(TypeError, match=message):
            await remote.f()
        assert log.getvalue() == ""
        assert await remote.echo(data=1) == 1


@TRANSPORTS
@gen_test()
async def test_an_error_about_another_comm_is_raised_at_the_caller(transport):
    async def f():
        raise CommClosedError("to the database")

    async with serving(transport, {"f": f}) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(CommClosedError, match="to the database"):
            await remote.f()
        assert await remote.echo(data=1) == 1


async def raise_cancelled_error():
    raise asyncio.CancelledError("by the handler")


async def await_a_cancelled_task():
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


class Outcome(BaseException):
    """An exception of a test framework: not an Exception, and not meant to end the process."""


def raise_outcome():
    raise Outcome("failed")


def raise_generator_exit():
    raise GeneratorExit("by the handler")


async def raise_generator_exit_later():
    await asyncio.sleep(0)
    raise GeneratorExit("by the handler")


class Raises:
    """An object whose pickling and representation raise an exception of a given type."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        raise self.kind("by the object")

    __repr__ = __reduce__


#: The exceptions that an object must not raise, but that do not end the process.
ODD_KINDS = [GeneratorExit, asyncio.CancelledError, Outcome]


@TRANSPORTS
@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (raise_cancelled_error, "handler of 'f' in Server .* was cancelled"),
        (await_a_cancelled_task, "handler of 'f' in Server .* was cancelled"),
        (raise_outcome, "Outcome"),
        (raise_generator_exit, "GeneratorExit"),
        (raise_generator_exit_later, "GeneratorExit"),
    ],
)
@gen_test()
async def test_a_base_exception_of_a_handler_is_a_runtime_error_at_the_caller(
    transport, handler, message
):
    async with serving(transport, {"f": handler}) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(RuntimeError, match=message):
            await remote.f()
        assert await remote.echo(data=1) == 1


@TRANSPORTS
@pytest.mark.parametrize("kind", ODD_KINDS)
@pytest.mark.parametrize("wrap", [lambda x: x, to_serialize], ids=["value", "wrapped"])
@gen_test()
async def test_an_odd_exception_of_an_object_that_is_pickled_is_an_error_at_the_caller(
    transport, kind, wrap
):
    if transport.startswith("inproc"):
        pytest.skip("inproc does not pickle")
    async with (
        serving(transport, {"f": lambda: wrap(Raises(kind))}) as server,
        connected(server) as comm,
    ):
        with quiet():
            answer = await ask(comm, {"op": "f"})
        assert answer["status"] == "uncaught-error"
        assert "by the object" in answer["exception_text"]
        await assert_usable(comm)


@pytest.mark.parametrize("kind", ODD_KINDS)
@gen_test()
async def test_an_odd_exception_of_the_repr_of_an_error_is_not_raised(kind):
    def f():
        raise ValueError(Raises(kind))

    async with serving(TCP, {"f": f}) as server, connected(server) as comm:
        with quiet():
            answer = await ask(comm, {"op": "f"})
        assert (
            f"whose repr() raises {kind.__module__}.{kind.__qualname__}"
            in (answer["exception_text"])
        )
        await assert_usable(comm)


class Unloadable:
    """An object whose unpickling raises."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return _raise, (self.kind,)


def _raise(kind):
    raise kind("by the object")


@pytest.mark.parametrize("kind", [GeneratorExit, Outcome])
@gen_test()
async def test_an_odd_exception_of_an_argument_that_is_unpickled_is_an_error_at_the_caller(kind):
    async with serving(TCP) as server, connected(server) as comm:
        with quiet():
            answer = await ask(comm, {"op": "echo", "data": Unloadable(kind)})
        assert "by the object" in answer["exception_text"]
        await assert_usable(comm)


@gen_test()
async def test_closing_the_coroutine_that_serves_a_comm_ends_it():
    # Python does this when an event loop is closed with tasks that have not ended.
    async with serving(TCP, {"wait": asyncio.Event().wait}) as server, connected(server) as comm:
        await comm.write({"op": "wait"})
        while not any(server._comms.values()):
            await asyncio.sleep(0)
        (task,) = server._server_requests._tasks
        coroutine = task.get_coro()
        coroutine.close()
        assert not server._comms
        task.cancel()


@pytest.mark.parametrize("place", ["message", "op", "without op"])
@gen_test()
async def test_the_representation_of_an_array_is_not_made_for_an_error(place):
    # NumPy shows at least six elements of each axis: 6 ** 16 here.
    np = pytest.importorskip("numpy")
    array = to_serialize(np.broadcast_to(np.zeros(1, "u1"), (7,) * 16))
    message = {"message": array, "op": {"op": array}, "without op": {"data": array}}[place]
    async with serving(TCP, blocked_handlers=["health"]) as server, connected(server) as comm:
        with quiet():
            answer = await ask(comm, message)
        assert "<numpy.ndarray>" in answer["exception_text"]
        await assert_usable(comm)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exception_that_ends_the_process_reaches_the_event_loop(kind):
    server = None

    def f():
        raise kind("now")

    async def main():
        nonlocal server
        server = await Server({"f": f})
        await server.listen(TCP)
        async with connected(server) as comm:
            await comm.write({"op": "f"})
            await comm.read()

    with captured_logger("asyncio"), pytest.raises(kind, match="now"):
        asyncio.run(main())
    assert server is not None
    for listener in server.listeners:
        listener.stop()


@gen_test()
async def test_a_result_outside_the_families_of_the_caller_is_an_error_at_the_caller():
    async with (
        serving(TCP, {"f": lambda: 1 + 2j}) as server,
        rpc(server.address, serializers=["msgpack"]) as remote,
    ):
        with quiet(), pytest.raises(TypeError, match="Could not serialize object of type complex"):
            await remote.f()
        assert await remote.echo(data=1) == 1


@pytest.mark.parametrize("serializers", [5, ["no-such-family"], [7], "msgpack", {"a": 1}])
@gen_test()
async def test_invalid_serializers_leave_the_comm_usable(serializers):
    async with serving(TCP) as server, connected(server) as comm:
        with quiet():
            answer = await ask(
                comm, {"op": "echo", "data": to_serialize(b"x"), "serializers": serializers}
            )
        assert answer == b"x" or answer["status"] == "uncaught-error"
        await assert_usable(comm)
