"""The frames of remote tracebacks: those of the user's code, in a bounded number."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pickle
import traceback

import pytest

import distributed
from distributed.base import config
from distributed.core.errors.frames import frames_of, shorten
from distributed.core.errors.messages import error_message, exception_from
from distributed.protocol import dumps, loads
from distributed.tests.servers import TCP, TRANSPORTS, ask, connected, quiet, serving
from distributed.utils_test import gen_test

HAS_TBLIB = importlib.util.find_spec("tblib") is not None
LIMIT = "distributed.admin.max-error-length"
PACKAGE = os.path.dirname(distributed.__file__)

needs_tblib = pytest.mark.skipif(not HAS_TBLIB, reason="needs tblib")


def fail():
    raise ZeroDivisionError("no luck")


async def fail_later():
    await asyncio.sleep(0)
    fail()


def places(text):
    """Return the file and the function of each frame of a printed traceback."""
    lines = [line.strip().split(", ") for line in text.splitlines() if line.startswith("  File ")]
    return [
        (os.path.basename(file[len('File "') : -1]), function.removeprefix("in "))
        for file, _, function in lines
    ]


HERE = os.path.basename(__file__)


@TRANSPORTS
@gen_test()
async def test_a_remote_traceback_has_the_frames_of_the_user_only(transport):
    async with (
        serving(transport, {"fail": fail, "later": fail_later}) as server,
        connected(server) as comm,
    ):
        with quiet():
            at_once = await ask(comm, {"op": "fail"})
            later = await ask(comm, {"op": "later"})
    assert places(at_once["traceback_text"]) == [(HERE, "fail")]
    assert places(later["traceback_text"]) == [(HERE, "fail_later"), (HERE, "fail")]


@gen_test()
async def test_frames_of_the_core_between_those_of_the_user_are_left_out():
    async with serving(TCP) as server, connected(server) as comm:

        async def call_oneself():
            return server.handlers["fail"]()

        async def call_another():
            await asyncio.wait_for(server.rpc(server.address).fail(), 60)

        server.handlers.update(fail=fail, hop=call_another)
        with quiet():
            answer = await ask(comm, {"op": "hop"})
    text = answer["traceback_text"]
    # Without tblib, the frames of the other server are in a note of the exception.
    assert places(text)[0] == (HERE, "call_another")
    if HAS_TBLIB:
        assert places(text) == [(HERE, "call_another"), (HERE, "fail")]


@gen_test()
async def test_frames_after_the_last_of_the_user_show_where_the_error_was_raised():
    async def wait():
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    async with serving(TCP, {"wait": wait}) as server, connected(server) as comm:
        with quiet():
            answer = await ask(comm, {"op": "wait"})
    first, *others = places(answer["traceback_text"])
    assert first == (HERE, "wait")
    assert ("timeouts.py", "__aexit__") in others


@gen_test()
async def test_an_error_of_the_core_itself_has_one_frame():
    async with serving(TCP, {"fail": fail}) as server, connected(server) as comm:
        with quiet():
            no_handler = await ask(comm, {"op": "nope"})
            arguments = await ask(comm, {"op": "fail", "x": 1})
    assert places(no_handler["traceback_text"]) == [("requests.py", "_find")]
    assert places(arguments["traceback_text"]) == [("requests.py", "_answer")]


def role(module):
    """Return a function ``run(f)`` that seems to be in a module of the original."""
    namespace: dict = {}
    code = "def run(f):\n    return f()\n"
    exec(compile(code, os.path.join(PACKAGE, module), "exec"), namespace)
    return namespace["run"]


@pytest.mark.parametrize(
    "module", ["worker.py", "scheduler.py", "nanny.py", "client.py", "worker_memory.py"]
)
def test_frames_of_roles_are_left_out(module):
    run = role(module)
    try:
        run(lambda: run(fail))
    except ZeroDivisionError as e:
        kept = frames_of(shorten(e.__traceback__))
    assert [tb.tb_frame.f_code.co_name for tb in kept] == [
        "test_frames_of_roles_are_left_out",
        "<lambda>",
        "fail",
    ]


@gen_test()
async def test_an_error_of_a_role_has_the_frames_of_roles():
    def handler():
        return role("scheduler.py")("not a function")

    run = role("scheduler.py")
    async with serving(TCP, {"f": lambda f: run(f)}) as server, connected(server) as comm:
        server.handlers["run"] = run
        with quiet():
            answer = await ask(comm, {"op": "run", "f": "not a function"})
    assert places(answer["traceback_text"]) == [("scheduler.py", "run")]


def test_making_a_message_leaves_the_traceback_as_it_was():
    run = role("worker.py")
    with pytest.raises(ZeroDivisionError) as info:
        run(fail)
    before = traceback.format_tb(info.tb)
    error_message(info.value)
    assert traceback.format_tb(info.value.__traceback__) == before


def deep(n):
    return deep(n - 1) if n else fail()


@needs_tblib
@pytest.mark.parametrize("limit", [2_000, 10_000])
@pytest.mark.parametrize("depth", [5, 100, 900])
def test_the_pickle_of_a_traceback_is_bounded_and_keeps_both_ends(limit, depth):
    with config.set({LIMIT: limit}):
        try:
            deep(depth)
        except ZeroDivisionError as e:
            message = error_message(e)
    assert len(message["traceback"].data) <= limit
    # The exception has its traceback, too.
    assert len(message["exception"].data) <= limit + 1_000
    exc = exception_from(loads([bytes(frame) for frame in dumps(message)]))
    frames = traceback.extract_tb(exc.__traceback__)
    assert frames[0].name == "test_the_pickle_of_a_traceback_is_bounded_and_keeps_both_ends"
    assert frames[-1].name == "fail"
    if depth == 5:
        assert len(frames) == 8


@needs_tblib
def test_the_pickles_of_causes_are_bounded():
    try:
        try:
            deep(500)
        except ZeroDivisionError as e:
            raise KeyError("another") from e
    except KeyError as e:
        message = error_message(e)
    assert len(message["exception"].data) <= 2 * config.get_bytes(LIMIT) + 1_000
    cause = pickle.loads(message["exception"].data).__cause__
    assert traceback.extract_tb(cause.__traceback__)[-1].name == "fail"


@needs_tblib
def test_a_limit_below_the_size_of_one_frame_leaves_the_text():
    with config.set({LIMIT: 50}):
        try:
            fail()
        except ZeroDivisionError as e:
            message = error_message(e)
    assert message["traceback"] is None
    assert len(message["traceback_text"]) == 50
    assert type(exception_from(loads(dumps(message)))) is ZeroDivisionError
