"""Interceptors measure, log, refuse, change and repeat calls, at both sides."""

from __future__ import annotations

import asyncio

import pytest

from distributed.core import ConnectionPool, connect, rpc
from distributed.tests.servers import TCP, TRANSPORTS, ask, connected, quiet, serving
from distributed.utils_test import gen_test


class Log:
    """Interceptors that note the calls around which they are."""

    def __init__(self):
        self.lines: list[tuple[object, ...]] = []

    def noting(self, name):
        async def note(call, proceed):
            self.lines.append((name, call.side, call.op, dict(call.arguments), call.answer))
            try:
                return await proceed()
            finally:
                self.lines.append((name, "end"))

        return note


@TRANSPORTS
@gen_test()
async def test_interceptors_are_around_the_call_at_both_sides_in_order(transport):
    log = Log()
    server_side = [log.noting("server 1"), log.noting("server 2")]
    client_side = [log.noting("client 1"), log.noting("client 2")]
    async with (
        serving(transport, {"add": lambda x, y: x + y}, interceptors=server_side) as server,
        rpc(server.address, interceptors=client_side) as remote,
    ):
        assert await remote.add(x=1, y=2) == 3
    names = ["client 1", "client 2", "server 1", "server 2"]
    assert [line[0] for line in log.lines] == names + names[::-1]
    assert log.lines[0] == ("client 1", "client", "add", {"x": 1, "y": 2}, "value")
    assert log.lines[2] == ("server 1", "server", "add", {"x": 1, "y": 2}, "value")


@gen_test()
async def test_a_pool_and_its_views_have_interceptors():
    log = Log()
    async with serving(TCP) as server, ConnectionPool(interceptors=[log.noting("pool")]) as pool:
        assert await pool(server.address).within(100).echo(data=1) == 1
        assert await pool(server.address).retrying().echo(data=1) == 1
    assert [line[0] for line in log.lines] == ["pool"] * 4


@pytest.mark.parametrize("side", ["client", "server"])
@gen_test()
async def test_an_interceptor_can_change_the_arguments_and_the_answer(side):
    async def change(call, proceed):
        call.arguments["x"] *= 10
        return [await proceed()]

    at = {side: [change]}
    handlers = {"double": lambda x: 2 * x}
    async with (
        serving(TCP, handlers, interceptors=at.get("server", ())) as server,
        rpc(server.address, interceptors=at.get("client", ())) as remote,
    ):
        answer = await remote.double(x=1)
    assert list(answer) == [20]


@pytest.mark.parametrize("side", ["client", "server"])
@gen_test()
async def test_an_interceptor_can_refuse_a_call(side):
    called = []

    async def refuse(call, proceed):
        raise PermissionError(f"{call.op} is for others")

    at = {side: [refuse]}
    handlers = {"f": lambda: called.append(1)}
    async with (
        serving(TCP, handlers, interceptors=at.get("server", ())) as server,
        rpc(server.address, interceptors=at.get("client", ())) as remote,
    ):
        with quiet(), pytest.raises(PermissionError, match="f is for others"):
            await remote.f()
    assert not called


@gen_test()
async def test_an_interceptor_can_repeat_a_call():
    calls = []

    def fail_twice():
        calls.append(1)
        if len(calls) < 3:
            raise ZeroDivisionError
        return len(calls)

    async def repeat(call, proceed):
        while True:
            try:
                return await proceed()
            except ZeroDivisionError:
                pass

    async with (
        serving(TCP, {"f": fail_twice}) as server,
        rpc(server.address, interceptors=[repeat]) as remote,
    ):
        with quiet():
            assert await remote.f() == 3


@TRANSPORTS
@gen_test()
async def test_metadata_travels_with_the_request(transport):
    seen = []

    async def send(call, proceed):
        call.metadata["trace"] = "1234"
        return await proceed()

    async def receive(call, proceed):
        seen.append((call.op, call.answer, dict(call.metadata)))
        return await proceed()

    async def count(n):
        for number in range(n):
            yield number

    async def chat(comm):
        await comm.write("hello")

    handlers = {"count": count, "chat": chat}
    async with (
        serving(transport, handlers, interceptors=[receive]) as server,
        rpc(server.address, interceptors=[send]) as remote,
    ):
        await remote.echo()
        assert [item async for item in remote.count.stream(n=3)] == [0, 1, 2]
        async with remote.chat.open() as comm:
            assert await comm.read() == "hello"
    metadata = {"trace": "1234"}
    assert seen == [
        ("echo", "value", metadata),
        ("count", "stream", metadata),
        ("chat", "conversation", metadata),
    ]


@pytest.mark.parametrize("side", ["client", "server"])
@gen_test()
async def test_an_interceptor_can_change_the_items_of_a_stream(side):
    async def double(call, proceed):
        items = await proceed()

        async def doubled():
            async for item in items:
                yield 2 * item

        return doubled()

    async def count(n):
        for number in range(n):
            yield number

    at = {side: [double]}
    async with (
        serving(TCP, {"count": count}, interceptors=at.get("server", ())) as server,
        rpc(server.address, interceptors=at.get("client", ())) as remote,
    ):
        assert [item async for item in remote.count.stream(n=3)] == [0, 2, 4]


@gen_test()
async def test_leaving_an_intercepted_stream_ends_the_handler():
    ended = asyncio.Event()

    async def count():
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            ended.set()

    log = Log()
    async with (
        serving(TCP, {"count": count}, interceptors=[log.noting("server")]) as server,
        rpc(server.address, interceptors=[log.noting("client")]) as remote,
    ):
        async for item in remote.count.stream():
            if item == 3:
                break
        await ended.wait()


@gen_test()
async def test_calls_of_peers_without_the_feature_pass_the_interceptors_of_the_server():
    log = Log()
    async with (
        serving(TCP, {"add": lambda comm, x: x + 1}, interceptors=[log.noting("server")]) as server,
        connected(server) as comm,
    ):
        assert await ask(comm, {"op": "add", "x": 1}) == 2
    assert [line[0] for line in log.lines] == ["server", "server"]


@gen_test()
async def test_a_call_that_is_cancelled_passes_the_interceptors():
    log = Log()
    entered = asyncio.Event()

    async def wait():
        entered.set()
        await asyncio.Event().wait()

    async with serving(TCP, {"wait": wait}, interceptors=[log.noting("server")]) as server:
        async with rpc(server.address, interceptors=[log.noting("client")]) as remote:
            call = asyncio.create_task(remote.wait())
            await entered.wait()
            call.cancel()
            await asyncio.wait([call])
        while len(log.lines) < 4:
            await asyncio.sleep(0)
    assert sorted(line[0] for line in log.lines) == ["client", "client", "server", "server"]


@pytest.mark.parametrize("interceptors", [[1], ["x"], "log", None, 5])
@gen_test()
async def test_an_interceptor_that_cannot_be_called_is_an_error(interceptors):
    for make in (
        lambda: rpc("tcp://127.0.0.1:1", interceptors=interceptors),
        lambda: ConnectionPool(interceptors=interceptors),
    ):
        with pytest.raises(TypeError, match=r"intercept|iterable"):
            make()


@gen_test()
async def test_the_comm_of_a_handler_is_passed_on():
    async def note(call, proceed):
        return await proceed()

    async def write(comm, x):
        await comm.write(x)

    async with serving(TCP, {"write": write}, interceptors=[note]) as server:
        async with rpc(server.address) as remote:
            assert [item async for item in remote.write.stream(x=7)] == [7]
        comm = await connect(server.address)
        assert await ask(comm, {"op": "write", "x": 7}) == 7
        assert await comm.read() is None
        await comm.close()


@gen_test()
async def test_the_time_of_the_interceptors_counts_for_all_kinds_of_calls():
    async def wait(call, proceed):
        await asyncio.sleep(60)

    async def drop_metadata(call, proceed):
        call.metadata = None
        return await proceed()

    async with serving(TCP) as server:
        async with rpc(server.address, interceptors=[drop_metadata]) as remote:
            assert await remote.echo(data=1) == 1
        async with rpc(server.address, interceptors=[wait]) as remote:
            limited = remote.within("10ms")
            with pytest.raises(TimeoutError):
                await limited.echo()
            with pytest.raises(TimeoutError):
                await anext(limited.echo.stream())
            with pytest.raises(TimeoutError):
                async with limited.echo.open():
                    pass
