"""What a server logs of a caller's mistake, and of a handler's fault."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging

import pytest

from distributed.core import Server, rpc
from distributed.core.answers import run_to_completion
from distributed.core.mistakes import BadCall, BadRequest, plain
from distributed.tests.servers import ask, connected, serving
from distributed.utils_test import gen_test

TCP = "tcp://127.0.0.1:0"


@contextlib.contextmanager
def records():
    """Collect the records of the core's logger."""
    found = []
    handler = logging.Handler()
    handler.emit = found.append
    logger = logging.getLogger("distributed.core")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield found
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def add(x, y=1):
    return x + y


async def add_later(x):
    await asyncio.sleep(0)
    return x + 1


def with_comm(comm, x):
    return x


def items(x):
    yield x


async def later_items(x):
    yield x


def timed(handler):
    """Decorate a handler as programs do that measure or log calls."""

    @functools.wraps(handler)
    async def wrapper(*args, **kwargs):
        result = handler(*args, **kwargs)
        return await result if asyncio.iscoroutine(result) else result

    return wrapper


def with_database(handler):
    """Decorate a handler that gets one more argument than its callers send."""

    @functools.wraps(handler)
    def wrapper(*args, **kwargs):
        return handler(*args, database={}, **kwargs)

    return wrapper


class Adder:
    def __call__(self, x):
        return x


@timed
@timed
def timed_twice(x):
    return x


@run_to_completion
def uncancelled(x):
    return x


GOOD = {
    "add": add,
    "add_later": add_later,
    "with_comm": with_comm,
    "items": items,
    "later_items": later_items,
    "partial": functools.partial(add, y=2),
    "adder": Adder(),
    "timed_twice": timed_twice,
    "uncancelled": uncancelled,
}


def _calls_wrongly(x):
    return add()


async def _calls_wrongly_later(x):
    await asyncio.sleep(0)
    return add(z=1)


def _recurses_wrongly(x):
    return _recurses_wrongly()


def _raises(x):
    raise TypeError("_raises() missing 1 required positional argument: 'x'")


@timed
def _timed_fault(x):
    return _timed_fault.__wrapped__()


@with_database
def _injected(x, database):
    return x + None


async def _items_fault(x):
    yield add()


FAULTY = {
    "calls_wrongly": _calls_wrongly,
    "calls_wrongly_later": _calls_wrongly_later,
    "recurses_wrongly": _recurses_wrongly,
    "raises": _raises,
    "timed_fault": _timed_fault,
    "injected": _injected,
    "value_error": lambda x: int("x"),
}


def check_mistake(found, peer, op, text):
    """Check that one line with these values was logged at level INFO, without a traceback."""
    assert len(found) == 1
    record = found[0]
    line = record.getMessage()
    assert record.levelno == logging.INFO
    assert not record.exc_info
    assert not record.exc_text
    assert "\n" not in line
    assert peer in line
    assert op in line
    assert text in line
    assert record.peer == peer
    assert op in record.op


@pytest.mark.parametrize(
    ("request_", "op", "text"),
    [
        ({"op": "nope"}, "nope", "ValueError: No handler for op 'nope'"),
        ({"op": "blocked"}, "blocked", "explicitly disallowed"),
        ({"op": 5}, "5", "ValueError: No handler for op 5"),
        ({"x": 1}, "None", "without 'op' key"),
        ([1, 2], "None", "TypeError: Bad message type"),
        ({"op": "add", "x": 1, "serializers": 5}, "add", "must be a list of names"),
        ({"op": "add", "x": 1, "call-info": 5}, "add", "must be true or a map"),
        ({"op": "add", "x": 1, "call-info": {"timeout": "x"}}, "add", "must be in seconds"),
    ],
)
@gen_test()
async def test_a_bad_request_is_one_line_at_level_info(request_, op, text):
    class Blocking(Server):
        def __init__(self, handlers, **kwargs):
            super().__init__(handlers, blocked_handlers=["blocked"], **kwargs)

    handlers = GOOD | {"blocked": lambda: 1}
    async with serving(TCP, handlers, Blocking) as server, connected(server) as comm:
        with records() as found:
            answer = await ask(comm, request_)
        assert answer["status"] == "uncaught-error"
        check_mistake(found, comm.local_address, op, text)
        # Others of this package and of the original can unpickle it.
        assert "distributed" not in answer["exception_text"].partition("(")[0]


@pytest.mark.parametrize("op", GOOD)
@pytest.mark.parametrize("arguments", [{"z": 1, "x": 1}, {}])
@gen_test()
async def test_arguments_that_do_not_fit_are_one_line_at_level_info(op, arguments):
    async with serving(TCP, GOOD) as server, connected(server) as comm:
        with records() as found:
            answer = await ask(comm, {"op": op, **arguments})
        assert answer["exception_text"].startswith("TypeError(")
        check_mistake(found, comm.local_address, op, "TypeError: ")


@pytest.mark.parametrize("op", FAULTY)
@gen_test()
async def test_a_fault_of_a_handler_keeps_its_traceback(op):
    async with serving(TCP, FAULTY) as server, connected(server) as comm:
        with records() as found:
            await ask(comm, {"op": op, "x": 1})
        assert [record.levelno for record in found] == [logging.ERROR]
        assert f"in {FAULTY[op].__name__}" in found[0].exc_text
        assert (found[0].peer, found[0].op) == (comm.local_address, op)


@gen_test()
async def test_a_fault_of_a_generator_keeps_its_traceback():
    async with serving(TCP, {"items": _items_fault}) as server, rpc(server.address) as remote:
        with records() as found, pytest.raises(TypeError, match="missing 1 required"):
            [item async for item in remote.items.stream(x=1)]
        assert [record.levelno for record in found] == [logging.ERROR]


@gen_test()
async def test_the_wrong_kind_of_call_is_one_line_at_level_info():
    async with serving(TCP, GOOD) as server, rpc(server.address) as remote:
        with records() as found, pytest.raises(TypeError, match="answers by a stream") as caught:
            await remote.items(x=1)
        check_mistake(found, found[0].peer, "items", "answers by a stream")
        assert type(caught.value) is TypeError
        with records() as found, pytest.raises(TypeError, match="does not stream"):
            [item async for item in remote.add.stream(x=1)]
        check_mistake(found, found[0].peer, "add", "does not stream")
        with records() as found, pytest.raises(TypeError, match="does not take 'comm'"):
            async with remote.add.open(x=1) as comm:
                await comm.read()
        check_mistake(found, found[0].peer, "add", "does not take 'comm'")


@gen_test()
async def test_arguments_that_an_interceptor_has_changed_are_not_a_mistake_of_the_caller():
    async def rename(call, proceed):
        if "names" in call.arguments:
            call.arguments = dict.fromkeys(call.arguments.pop("names"), 1)
        return await proceed()

    class Renaming(Server):
        def __init__(self, handlers, **kwargs):
            super().__init__(handlers, **kwargs)
            self.interceptors = (rename,)

    async with serving(TCP, GOOD, Renaming) as server, connected(server) as comm:
        with records() as found:
            assert await ask(comm, {"op": "add", "names": ["x"]}) == 2
            await ask(comm, {"op": "add", "names": ["wrong"]})
            await ask(comm, {"op": "add", "wrong": 1})
        assert [record.levelno for record in found] == [logging.ERROR, logging.INFO]


@gen_test()
async def test_a_used_up_deadline_is_one_line_at_level_info():
    async with serving(TCP, GOOD) as server, connected(server) as comm:
        with records() as found:
            await ask(comm, {"op": "add", "x": 1, "call-info": {"timeout": 0}})
        check_mistake(found, comm.local_address, "add", "used up")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"op": "nope"}, "no stream handler for op 'nope'"),
        ({"op": "take", "y": 1}, "(stream handler of op 'take')"),
    ],
)
@gen_test()
async def test_a_mistake_in_a_stream_is_one_line_at_level_info(message, text):
    async with serving(TCP, {}) as server, connected(server) as comm:
        server.stream_handlers = {"take": lambda x: None}
        with records() as found:
            await comm.write({"op": "connection_stream", "reply": False})
            await comm.write([message, {"op": "close-stream"}])
            with contextlib.suppress(OSError):
                await comm.read()
        found = [record for record in found if text in record.getMessage()]
        assert [record.levelno for record in found] == [logging.INFO]
        assert not found[0].exc_info
        assert found[0].peer == comm.local_address


def test_an_error_that_travels_is_of_a_class_of_python_with_its_notes_and_traceback():
    for kind, mistake in ((ValueError, BadRequest), (TypeError, BadCall)):
        with pytest.raises(kind) as caught:
            raise mistake("text")
        caught.value.add_note("a note")
        error = plain(caught.value)
        assert type(error) is kind
        assert error.args == ("text",)
        assert error.__notes__ == ["a note"]
        assert error.__traceback__ is caught.value.__traceback__
