"""Handlers that answer by a stream of items, called by ``async for … in remote.op.stream(…)``."""

from __future__ import annotations

import asyncio
import time
import tracemalloc

import numpy as np
import pytest

from distributed.core import CommClosedError, ConnectionPool, Status, connect, rpc
from distributed.tests.servers import ADDRESSES, TCP, TRANSPORTS, Explosive, quiet, serving
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


@pytest.mark.parametrize("name", ["op", "reply", "close"])
@gen_test()
async def test_an_argument_that_is_a_key_of_requests_is_an_error(numbers, name):
    async with serving(TCP, numbers.handlers()) as server, rpc(server.address) as remote:
        for method in (remote.count.stream, remote.count.open):
            with pytest.raises(TypeError, match=f"'{name}' cannot be an argument of 'count'"):
                method(**{name: False})


@gen_test()
async def test_an_argument_without_a_name_is_an_error_that_says_what_to_do(numbers):
    async with serving(TCP, numbers.handlers()) as server, rpc(server.address) as remote:
        for method in (remote.count, remote.count.stream, remote.count.open):
            with pytest.raises(
                TypeError, match="1 was given: pass the handler's arguments by name"
            ):
                method(10)
        assert "RemoteStream of 'count' of <rpc to" in repr(remote.count.stream(n=10))


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


@TRANSPORTS
@pytest.mark.parametrize("generator", ["count", "plain"])
@gen_test()
async def test_awaiting_a_coroutine_function_that_returns_a_generator_is_the_same_error(
    transport, numbers, generator
):
    async def choose(n):
        return getattr(numbers, generator)(n)

    async with serving(transport, {"choose": choose}) as server, rpc(server.address) as remote:
        with quiet():
            for calls in (remote, remote.within("1 minute")):
                with pytest.raises(TypeError, match=r"remote\.choose\.stream"):
                    await calls.choose(n=1)


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


@gen_test()
async def test_a_handler_may_write_items_in_several_tasks():
    async def write(comm):
        await asyncio.gather(*(comm.write([[number]]) for number in range(20)))

    async with serving(TCP, {"write": write}) as server, rpc(server.address) as remote:
        items = [item[0][0] async for item in remote.write.stream()]
    assert sorted(items) == list(range(20))


@gen_test()
async def test_a_credit_that_cannot_be_unpickled_ends_the_handler(numbers):
    async with serving(TCP, numbers.handlers()) as server:
        comm = await connect(server.address)
        await comm.write({"op": "count", "n": 10**9, "call-info": {"stream": 2}})
        with quiet():
            await comm.write(Explosive())
            await async_poll_for(lambda: numbers.ended == ["count"])
            await async_poll_for(lambda: not server._comms)
        comm.abort()


@pytest.mark.parametrize("credits", [[1] * 100, [{"op": "echo"}] * 3, ["x" * 10**6], [None]])
@gen_test()
async def test_credits_that_no_honest_caller_sends_harm_no_other_call(numbers, credits):
    async with serving(TCP, numbers.handlers()) as server:
        comm = await connect(server.address)
        await comm.write({"op": "count", "n": 1000, "call-info": {"stream": 10**9}})
        with quiet():
            for credit in credits:
                await comm.write(credit)
            async with rpc(server.address) as remote:
                assert await remote.echo(data=1) == 1
            comm.abort()
            await async_poll_for(lambda: not server._comms)
        assert numbers.ended == ["count"]


class SlowCleanup:
    """A generator whose ``finally`` waits."""

    def __init__(self):
        self.cleaning = asyncio.Event()
        self.resume = asyncio.Event()
        self.ends: list[str] = []

    async def stream(self):
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            self.cleaning.set()
            try:
                await self.resume.wait()
                self.ends.append("cleaned up")
            except asyncio.CancelledError:
                self.ends.append("cancelled")
                raise


@pytest.mark.parametrize("closes", [False, True])
@gen_test()
async def test_the_cleanup_of_a_generator_may_wait_until_the_server_closes(closes):
    slow = SlowCleanup()
    async with serving(TCP, {"slow": slow.stream}) as server, rpc(server.address) as remote:
        assert await take(remote.slow.stream(), 1) == [1]
        await slow.cleaning.wait()
        assert await remote.echo(data=1) == 1
        if closes:
            with quiet():
                await server.close(timeout=0)
            # The server has waited for the end of the generator.
            assert slow.ends == ["cancelled"]
        else:
            slow.resume.set()
            await async_poll_for(lambda: slow.ends == ["cleaned up"])


@gen_test()
async def test_an_error_in_the_cleanup_of_a_generator_is_logged():
    async def fail():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError("in the cleanup")

    async with serving(TCP, {"fail": fail}) as server, rpc(server.address) as remote:
        with quiet() as log:
            assert await take(remote.fail.stream(), 1) == [1]
            await async_poll_for(lambda: "ZeroDivisionError: in the cleanup" in log.getvalue())
        assert "stream of fail failed when it was cancelled" in log.getvalue()


@gen_test()
async def test_leaving_a_stream_or_a_call_is_not_logged_as_a_failure(numbers):
    entered = asyncio.Event()
    ended = asyncio.Event()

    async def wait():
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    handlers = {**numbers.handlers(), "wait": wait}
    with quiet() as log:
        async with serving(TCP, handlers) as server, rpc(server.address) as remote:
            assert await take(remote.count.stream(n=10**9), 1) == [0]
            call = asyncio.create_task(remote.wait())
            await entered.wait()
            call.cancel()
            await ended.wait()
            await async_poll_for(lambda: not server._comms)
    assert log.getvalue() == ""


@pytest.mark.parametrize("plain", [False, True])
@gen_test()
async def test_items_that_take_time_to_compute_are_not_kept_back(plain):
    produced = 0

    def compute():
        nonlocal produced
        for number in range(8):
            # The generator does not wait, and keeps the event loop busy.
            time.sleep(0.01)
            produced += 1
            yield number

    async def compute_asynchronously():
        for number in compute():
            yield number

    handler = compute if plain else compute_asynchronously
    async with serving(TCP, {"compute": handler}) as server, rpc(server.address) as remote:
        async for number in remote.compute.stream():
            assert produced <= number + 4


@pytest.mark.parametrize("item", [1, [[1]]])
@gen_test()
async def test_a_task_that_outlives_its_stream_cannot_write_to_it(item):
    tasks = []
    ended = asyncio.Event()

    async def write(comm):
        async def later():
            await ended.wait()
            await comm.write(item)

        tasks.append(asyncio.create_task(later()))
        await comm.write(0)

    async with serving(TCP, {"write": write}) as server, rpc(server.address) as remote:
        assert [it async for it in remote.write.stream()] == [0]
        ended.set()
        with pytest.raises(CommClosedError, match="ended"):
            await tasks[0]
        assert await remote.echo(data=1) == 1


@gen_test()
async def test_a_task_that_waits_to_write_when_its_stream_ends_gets_an_error():
    tasks = []

    async def write(comm):
        tasks.extend(asyncio.create_task(comm.write([[number]])) for number in range(3))
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async with serving(TCP, {"write": write}) as server, rpc(server.address) as remote:
        items = []
        with quiet(), pytest.raises(ZeroDivisionError):
            items.extend([item async for item in remote.write.stream()])
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result == 1 or isinstance(result, CommClosedError) for result in results)


@pytest.mark.parametrize("intercepted", [False, True])
@gen_test()
async def test_a_stream_that_is_closed_while_it_begins_ends(numbers, intercepted):
    async def passing(call, proceed):
        return await proceed()

    interceptors = [passing] if intercepted else []
    async with (
        serving(TCP, numbers.handlers()) as server,
        rpc(server.address, interceptors=interceptors) as remote,
    ):
        stream = remote.count.stream(n=10)
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises((StopAsyncIteration, CommClosedError)):
            await first
        assert [item async for item in stream] == []
        assert await remote.echo(data=1) == 1
        assert all(remote.comms.values())


@pytest.mark.parametrize("intercepted", [False, True])
@gen_test()
async def test_a_stream_that_failed_does_not_begin_again(intercepted):
    calls = []

    async def refuse(call, proceed):
        calls.append(call)
        raise PermissionError

    def fail():
        calls.append(1)
        raise PermissionError

    interceptors = [refuse] if intercepted else []
    async with (
        serving(TCP, {"fail": fail}) as server,
        rpc(server.address, interceptors=interceptors) as remote,
    ):
        stream = remote.fail.stream()
        with quiet(), pytest.raises(PermissionError):
            await anext(stream)
        assert [item async for item in stream] == []
        assert len(calls) == 1
