"""Handlers that answer by a stream of items, called by ``async for … in remote.op.stream(…)``."""

from __future__ import annotations

import asyncio
import tracemalloc

import numpy as np
import pytest

from distributed.core import CommClosedError, ConnectionPool, Status, rpc
from distributed.tests.servers import ADDRESSES, TCP, TRANSPORTS, quiet, serving
from distributed.utils_test import async_poll_for, gen_test


class Numbers:
    """Streaming handlers, and the events that they report."""

    def __init__(self):
        self.produced = 0
        self.ended: list[str] = []
        self.resume = asyncio.Event()

    async def count(self, n):
        try:
            for number in range(n):
                self.produced += 1
                yield number
        finally:
            self.ended.append("count")

    def plain(self, n):
        try:
            for number in range(n):
                self.produced += 1
                yield number
        finally:
            self.ended.append("plain")

    async def write(self, comm, n):
        try:
            for number in range(n):
                self.produced += 1
                await comm.write(number)
        finally:
            self.ended.append("write")

    async def one_by_one(self, n):
        """Yield the next item when `resume` is set."""
        try:
            for number in range(n):
                yield number
                await self.resume.wait()
                self.resume.clear()
        finally:
            self.ended.append("one_by_one")

    async def fail(self, n):
        for number in range(n):
            yield number
        raise ZeroDivisionError("after the items")

    def handlers(self):
        names = ("count", "plain", "write", "one_by_one", "fail")
        return {name: getattr(self, name) for name in names}


@pytest.fixture
def numbers():
    return Numbers()


async def take(stream, n):
    """Return the first *n* items of a stream, and leave it."""
    items = []
    async for item in stream:
        items.append(item)
        if len(items) == n:
            break
    return items


@TRANSPORTS
@pytest.mark.parametrize("op", ["count", "plain", "write"])
@pytest.mark.parametrize("n", [1, 1000])
@gen_test()
async def test_items_arrive_in_order_and_the_comm_is_used_again(transport, numbers, op, n):
    async with serving(transport, numbers.handlers()) as server, rpc(server.address) as remote:
        for _ in range(2):
            stream = getattr(remote, op).stream(n=n)
            assert [item async for item in stream] == list(range(n))
        assert await remote.echo(data=1) == 1
        assert len(remote.comms) == 1
        assert numbers.ended == [op, op]


@pytest.mark.parametrize("op", ["count", "plain"])
@gen_test()
async def test_a_stream_may_be_empty(numbers, op):
    async with serving(TCP, numbers.handlers()) as server, rpc(server.address) as remote:
        assert [item async for item in getattr(remote, op).stream(n=0)] == []
        assert await remote.echo(data=1) == 1


@TRANSPORTS
@gen_test()
async def test_items_arrive_as_they_are_yielded(transport, numbers):
    async with serving(transport, numbers.handlers()) as server, rpc(server.address) as remote:
        items = []
        async for item in remote.one_by_one.stream(n=5):
            items.append(item)
            # The handler waits until the caller has this item.
            numbers.resume.set()
        assert items == [0, 1, 2, 3, 4]


@TRANSPORTS
@gen_test()
async def test_an_exception_is_raised_after_the_items_before_it(transport, numbers):
    async with serving(transport, numbers.handlers()) as server, rpc(server.address) as remote:
        stream = remote.fail.stream(n=300)
        with quiet():
            assert [await anext(stream) for _ in range(300)] == list(range(300))
            with pytest.raises(ZeroDivisionError, match="after the items"):
                await anext(stream)
        assert [item async for item in stream] == []
        assert await remote.echo(data=1) == 1
        assert len(remote.comms) == 1


@TRANSPORTS
@pytest.mark.parametrize("op", ["count", "plain", "write", "one_by_one"])
@gen_test()
async def test_leaving_the_loop_ends_the_handler(transport, numbers, op):
    async with serving(transport, numbers.handlers()) as server, rpc(server.address) as remote:
        assert await take(getattr(remote, op).stream(n=10**9), 1) == [0]
        await async_poll_for(lambda: numbers.ended == [op])
        assert await remote.echo(data=1) == 1


@pytest.mark.parametrize("how", ["exception", "cancellation", "aclose", "async with"])
@gen_test()
async def test_all_ways_to_leave_the_loop_end_the_handler(numbers, how):
    async with serving(TCP, numbers.handlers()) as server, rpc(server.address) as remote:
        entered = asyncio.Event()

        async def read():
            if how == "aclose":
                stream = remote.one_by_one.stream(n=10)
                assert await anext(stream) == 0
                await stream.aclose()
                assert [item async for item in stream] == []
            elif how == "async with":
                async with remote.one_by_one.stream(n=10) as stream:
                    assert await anext(stream) == 0
                assert [item async for item in stream] == []
            else:
                async for _ in remote.one_by_one.stream(n=10):
                    entered.set()
                    if how == "exception":
                        raise KeyError(how)

        task = asyncio.create_task(read())
        if how == "cancellation":
            await entered.wait()
            task.cancel()
        await asyncio.wait([task])
        await async_poll_for(lambda: numbers.ended == ["one_by_one"])
        assert not [comm for comm in remote.comms if not comm.closed()]
        if how == "exception":
            assert isinstance(task.exception(), KeyError)


@gen_test()
async def test_a_stream_that_is_closed_before_it_began_sends_nothing(numbers):
    async with serving(TCP, numbers.handlers()) as server, rpc(server.address) as remote:
        stream = remote.count.stream(n=10)
        await stream.aclose()
        assert [item async for item in stream] == []
        assert not remote.comms


@TRANSPORTS
@gen_test()
async def test_a_slow_reader_holds_the_generator_back(transport, numbers):
    async with serving(transport, numbers.handlers()) as server, rpc(server.address) as remote:
        stream = remote.count.stream(n=10**9)
        assert await anext(stream) == 0
        before = -1
        # Until the generator does not run any more.
        while before != numbers.produced:
            before = numbers.produced
            await remote.echo(data=1)
        assert numbers.produced <= 2000
        assert await take(stream, 5000) == list(range(1, 5001))
        assert numbers.produced <= 7000


@gen_test()
async def test_large_items_of_a_slow_reader_take_the_memory_of_a_few():
    size = 4 * 2**20
    produced = 0

    async def arrays():
        nonlocal produced
        while True:
            produced += 1
            yield np.full(size // 8, produced)

    async with serving(TCP, {"arrays": arrays}) as server, rpc(server.address) as remote:
        stream = remote.arrays.stream()
        tracemalloc.start()
        try:
            assert (await anext(stream))[0] == 1
            before = 0
            while before != produced:
                before = produced
                await remote.echo(data=1)
            assert produced <= 5
            # Each array is in the memory of both sides, which share this process.
            assert tracemalloc.get_traced_memory()[0] <= 2 * produced * size
        finally:
            tracemalloc.stop()
        await stream.aclose()


@pytest.mark.parametrize("transport", [it for it in ADDRESSES if it != "inproc://"])
@gen_test()
async def test_an_item_is_what_it_was_when_it_was_yielded(transport):
    async def reuse():
        array = np.zeros(10, dtype=int)
        mapping = {"x": 0}
        nested = [[0]]
        for number in range(100):
            array[:] = mapping["x"] = nested[0][0] = number
            yield array
            yield mapping
            yield nested

    async with serving(transport, {"reuse": reuse}) as server, rpc(server.address) as remote:
        items = [item async for item in remote.reuse.stream()]
        assert [item[0] for item in items[::3]] == list(range(100))
        assert [item["x"] for item in items[1::3]] == list(range(100))
        assert [item[0][0] for item in items[2::3]] == list(range(100))


@TRANSPORTS
@gen_test()
async def test_awaiting_a_streaming_operation_is_an_error_that_names_stream(transport, numbers):
    async with serving(transport, numbers.handlers()) as server, rpc(server.address) as remote:
        for op in ("count", "plain"):
            with quiet(), pytest.raises(TypeError, match=rf"remote\.{op}\.stream\(\.\.\.\)"):
                await getattr(remote, op)(n=3)
        assert await remote.echo(data=1) == 1
        assert numbers.produced == 0


@pytest.mark.parametrize(
    "handler", [lambda: 1, lambda comm: 1, lambda: None], ids=["plain", "with comm", "None"]
)
@gen_test()
async def test_streaming_from_a_handler_that_returns_a_value_is_an_error(handler):
    async with serving(TCP, {"value": handler}) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(TypeError, match=r"call it by `await remote\.value\(\.\.\.\)`"):
            await anext(remote.value.stream())
        assert await remote.echo(data=1) == 1


@gen_test()
async def test_a_stream_of_a_coroutine_function_that_returns_a_generator(numbers):
    async def later(n):
        await asyncio.sleep(0)
        return numbers.count(n)

    async with serving(TCP, {"later": later}) as server, rpc(server.address) as remote:
        assert [item async for item in remote.later.stream(n=3)] == [0, 1, 2]


@gen_test()
async def test_the_handler_of_the_document_streams():
    async def stream_data(comm, interval=1):
        data = 0
        while True:
            await asyncio.sleep(interval)
            data += 1
            await comm.write(data)

    async with (
        serving(TCP, {"stream_data": stream_data}) as server,
        rpc(server.address) as remote,
    ):
        assert await take(remote.stream_data.stream(interval=0), 3) == [1, 2, 3]


@gen_test()
async def test_an_item_that_cannot_be_serialized_ends_the_stream():
    closed = []

    async def bad():
        try:
            yield 1
            yield (lock for lock in ())
            yield 3
        finally:
            closed.append(True)

    async with serving(TCP, {"bad": bad}) as server, rpc(server.address) as remote:
        stream = remote.bad.stream()
        assert await anext(stream) == 1
        with quiet(), pytest.raises(Exception, match="generator"):
            await anext(stream)
        assert closed
        assert await remote.echo(data=1) == 1


@gen_test()
async def test_hundreds_of_streams_over_one_pool(numbers):
    async with serving(TCP, numbers.handlers()) as server, ConnectionPool() as pool:

        async def total():
            return sum([item async for item in pool(server.address).count.stream(n=20)])

        assert set(await asyncio.gather(*(total() for _ in range(300)))) == {190}
        assert numbers.ended == ["count"] * 300


@TRANSPORTS
@gen_test()
async def test_a_stream_ends_with_an_error_if_the_server_closes(transport, numbers):
    async with serving(transport, numbers.handlers()) as server, rpc(server.address) as remote:
        stream = remote.one_by_one.stream(n=10)
        assert await anext(stream) == 0
        with quiet():
            await server.close(timeout=0)
        with pytest.raises(CommClosedError):
            await anext(stream)
        assert numbers.ended == ["one_by_one"]


@gen_test()
async def test_reading_in_a_streaming_call_is_an_error_that_names_open():
    async def ask(comm):
        await comm.read()

    async with serving(TCP, {"ask": ask}) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(RuntimeError, match=r"\.open\(\.\.\.\)"):
            await anext(remote.ask.stream())


@gen_test()
async def test_a_handler_may_return_dont_reply_after_its_last_item():
    async def write(comm):
        await comm.write(1)
        return Status.dont_reply

    async with serving(TCP, {"write": write}) as server, rpc(server.address) as remote:
        assert [item async for item in remote.write.stream()] == [1]
