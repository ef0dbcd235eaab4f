"""Servers describe their operations and their health, and refuse names that are reserved."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol, assert_type

import pytest

from distributed.core import ConnectionPool, Server, rpc
from distributed.core.description import mismatches, typed
from distributed.core.handlers import RESERVED_OPERATIONS
from distributed.core.pool import PooledRPCCall
from distributed.tests.servers import TCP, TRANSPORTS, Gate, quiet, serving
from distributed.utils_test import gen_test


def add(x: int, y: int = 1) -> int:
    """Return the sum.

    More about it.
    """
    return x + y


async def count(n: int):
    """Yield numbers."""
    for number in range(n):
        yield number


def plain(n):
    yield n


def chat(comm, room: str):
    """Talk."""


class Calculator(Protocol):
    async def add(self, *, x: int, y: int) -> int: ...


@TRANSPORTS
@gen_test()
async def test_a_server_describes_its_operations(transport):
    handlers = {"add": add, "count": count, "plain": plain, "chat": chat, "blocked": add}
    stream_handlers = {"note": lambda text: None}
    async with (
        serving(
            transport, handlers, stream_handlers=stream_handlers, blocked_handlers=["blocked"]
        ) as server,
        rpc(server.address) as remote,
    ):
        description = await remote.describe()
        assert {"add", "count", "echo", "describe"} <= set(dir(remote))
        assert "blocked" not in dir(remote)
    operations = description["operations"]
    # Over inproc, lists arrive as lists.
    assert {**operations["add"], "parameters": list(operations["add"]["parameters"])} == {
        "signature": "(x: int, y: int = 1) -> int",
        "parameters": [
            {"name": "x", "kind": "positional or keyword", "required": True, "annotation": "int"},
            {"name": "y", "kind": "positional or keyword", "required": False, "annotation": "int"},
        ],
        "doc": "Return the sum.",
        "streams": False,
        "comm": False,
    }
    assert operations["count"]["streams"]
    assert operations["plain"]["streams"]
    assert operations["plain"]["doc"] is None
    assert operations["chat"]["comm"]
    assert operations["chat"]["signature"] == "(room: str)"
    assert {"identity", "echo", "describe", "health"} <= operations.keys()
    assert list(description["stream_operations"]) == ["note"]
    assert list(description["blocked"]) == ["blocked"]


@gen_test()
async def test_a_description_is_within_the_limits_of_the_call_and_known_to_its_object():
    async with serving(TCP, {"add": add}) as server, rpc(server.address) as remote:
        limited = remote.within("1 minute")
        await limited.retrying().describe()
        for calls in (remote, limited):
            assert "add" in dir(calls)
    # The kernel accepts the connection, and no server reads from it.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with rpc(("127.0.0.1", silent.getsockname()[1])) as remote:
            with pytest.raises(TimeoutError, match=r"'describe' took longer than 0\.05 s"):
                await remote.within("50ms").describe()


@gen_test()
async def test_callables_without_a_signature_are_described():
    async with serving(TCP, {"min": min, "print": print}) as server, rpc(server.address) as remote:
        operations = (await remote.describe())["operations"]
        assert operations["min"]["parameters"] is None
        assert operations["min"]["doc"]


@gen_test()
async def test_a_description_is_checked_against_a_protocol():
    async with serving(TCP, {"add": add}) as server, rpc(server.address) as remote:
        description = await remote.describe()
        assert mismatches(description, Calculator) == []
        calculator = typed(remote, Calculator)
        assert calculator is remote
        assert await calculator.add(x=1, y=2) == 3

        class Other(Protocol):
            async def add(self, *, x: str, z: int) -> int: ...

            async def subtract(self, *, x: int) -> int: ...

        found = mismatches(description, Other)
        assert [line.partition(":")[0] for line in found] == ["add", "add", "subtract"]


async def use_typed(remote: rpc) -> None:
    """Type-checked by mypy, which also reports a "type: ignore" without an error."""
    calculator = typed(remote, Calculator)
    assert_type(await calculator.add(x=1, y=2), int)
    with pytest.raises(TypeError):
        await calculator.add(x="1", y=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="No handler for op 'subtract'"):
        await calculator.subtract(x=1)  # type: ignore[attr-defined]


@gen_test()
async def test_a_type_checker_knows_the_signatures_of_a_typed_remote():
    async with serving(TCP, {"add": add}) as server, rpc(server.address) as remote:
        with quiet():
            await use_typed(remote)


@gen_test()
async def test_a_server_tells_its_health_also_while_it_closes():
    class Queue(Server):
        def health(self):
            return {**super().health(), "queue": 3}

    gate = Gate()
    async with (
        serving(TCP, {"wait": gate.handle}, cls=Queue) as server,
        rpc(server.address) as remote,
    ):
        assert await remote.health() == {"status": "serving", "queue": 3}
        running = await gate.enter(remote.wait())
        idle = await remote.live_comm()
        remote.comms[idle] = True
        closing = asyncio.create_task(server.close(timeout=10))
        await asyncio.sleep(0)
        assert await remote.health() == {"status": "closing", "queue": 3}
        gate.open()
        await running
        await closing


@pytest.mark.parametrize("name", ["op", "reply", "close", "deserializers"])
def test_a_handler_whose_parameter_is_a_key_of_requests_is_refused(name):
    namespace: dict = {}
    exec(f"def f(x, {name}): ...", namespace)
    with pytest.raises(ValueError, match=f"parameter '{name}'.*rename the parameter"):
        Server({"f": namespace["f"]})


def test_a_parameter_named_comm_must_be_the_first():
    with pytest.raises(ValueError, match="'comm' that is not its first"):
        Server({"f": lambda x, comm: x})


@pytest.mark.parametrize("op", sorted(RESERVED_OPERATIONS))
def test_an_operation_that_is_named_like_an_attribute_of_rpc_is_refused(op):
    with pytest.raises(ValueError, match=f"no operation can be named '{op}'"):
        Server({op: lambda: 1})


def test_all_attributes_of_remote_objects_are_reserved():
    remote = rpc("tcp://127.0.0.1:1")
    pooled = ConnectionPool()("tcp://127.0.0.1:1")
    assert isinstance(pooled, PooledRPCCall)
    for one in (remote, pooled, remote.within(1)):
        public = {name for name in dir(one) if not name.startswith("_")}
        assert public <= RESERVED_OPERATIONS


@gen_test()
async def test_call_reaches_any_operation():
    async with serving(TCP) as server, rpc(server.address) as remote:
        server.handlers["address"] = lambda x: ("address", x)
        server.handlers["__len__"] = lambda: 7
        assert await remote.call("address", x=1) == ("address", 1)
        assert await remote.call("__len__") == 7
