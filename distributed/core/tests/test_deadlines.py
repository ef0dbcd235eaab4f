"""Deadlines travel with calls, and end handlers; callers that leave end handlers, too."""

from __future__ import annotations

import asyncio
import contextvars
import socket

import pytest

from distributed.core import CommClosedError, ConnectionPool, connect, rpc, send_recv
from distributed.core.answers import run_to_completion
from distributed.core.call_info import CallInfo
from distributed.core.deadlines import current, remaining_time, timeout
from distributed.tests.servers import TCP, TRANSPORTS, ask, connected, quiet, serving
from distributed.utils_test import async_poll_for, gen_test


class Waiting:
    """A handler that waits, and reports how it ends."""

    def __init__(self):
        self.entered = asyncio.Event()
        self.ends: list[str] = []

    async def wait(self):
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        finally:
            self.ends.append("finally")

    async def wait_streaming(self):
        self.entered.set()
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            self.ends.append("finally")


def left():
    return remaining_time()


# Deadlines


@gen_test()
async def test_without_a_deadline_no_time_is_remaining():
    assert remaining_time() is None
    async with timeout(None):
        assert remaining_time() is None


@gen_test()
async def test_an_inner_timeout_can_only_be_shorter():
    async with timeout(100):
        async with timeout("1 hour"):
            assert 0 < remaining_time() <= 100
        async with timeout(1):
            assert 0 < remaining_time() <= 1
        assert 1 < remaining_time() <= 100
    assert remaining_time() is None


@gen_test()
async def test_a_task_that_outlives_the_block_has_no_deadline():
    go_on = asyncio.Event()

    async def outlive():
        before = remaining_time()
        await go_on.wait()
        return before, remaining_time()

    async with timeout(100):
        task = asyncio.create_task(outlive())
        await asyncio.sleep(0)
    go_on.set()
    before, after = await task
    assert 0 < before <= 100
    assert after is None


@TRANSPORTS
@gen_test()
async def test_a_call_does_not_have_the_deadline_of_the_call_that_connected(transport):
    # Nor that of the block in which the server listens.
    async with (
        timeout(100),
        serving(transport, {"left": left}) as server,
        rpc(server.address) as remote,
    ):
        assert await remote.left() <= 100
        call = asyncio.create_task(remote.left(), context=contextvars.Context())
        assert await call is None
        assert len(remote.comms) == 1


@gen_test()
async def test_tasks_that_start_one_another_make_no_chain_of_deadlines():
    tasks: list[asyncio.Task] = []
    lengths: list[int] = []

    async def beat(n):
        async with timeout(100):
            await asyncio.sleep(0)
            deadline, length = current.get(), 0
            while deadline is not None:
                deadline, length = deadline.outer, length + 1
            lengths.append(length)
            if n:
                tasks.append(asyncio.create_task(beat(n - 1)))

    await beat(50)
    while tasks:
        await tasks.pop()
    assert len(lengths) == 51
    assert max(lengths) <= 2


@pytest.mark.parametrize("delay", ["soon", -1, [], float("nan")])
def test_a_delay_that_makes_no_sense_is_an_error(delay):
    with pytest.raises((ValueError, TypeError)):
        timeout(delay)
    with pytest.raises((ValueError, TypeError)):
        rpc("tcp://127.0.0.1:1").within(delay)


@TRANSPORTS
@gen_test()
async def test_the_remaining_time_travels_with_the_request(transport):
    async with serving(transport, {"left": left}) as server, rpc(server.address) as remote:
        assert await remote.left() is None
        assert 0 < await remote.within("100s").left() <= 100
        async with timeout(100):
            assert 0 < await remote.left() <= 100
        async with ConnectionPool() as pool, timeout(100):
            assert 0 < await pool(server.address).left() <= 100
        assert await remote.left() is None


@gen_test()
async def test_calls_that_a_handler_makes_inherit_the_remaining_time():
    async def through_rpc(address):
        async with rpc(address) as remote:
            return await remote.left()

    async with serving(TCP, {"left": left, "through_rpc": through_rpc}) as server:

        async def through_pool(address):
            return await server.rpc(address).left()

        server.handlers["through_pool"] = through_pool
        async with rpc(server.address) as remote:
            for op in ("through_rpc", "through_pool"):
                assert 0 < await remote.within(100).call(op, address=server.address) <= 100
                assert await remote.call(op, address=server.address) is None


@TRANSPORTS
@gen_test()
async def test_the_server_cancels_the_handler_when_the_time_is_used_up(transport):
    waiting = Waiting()
    async with serving(transport, {"wait": waiting.wait}) as server, connected(server) as comm:
        with quiet(), pytest.raises(TimeoutError, match=r"'wait' was cancelled after 0\.01 s"):
            # The caller itself waits longer.
            await send_recv(comm, op="wait", **{"call-info": {"timeout": 0.01}})
        assert waiting.ends == ["cancelled", "finally"]
        assert await ask(comm, {"op": "echo", "data": 1}) == 1


@TRANSPORTS
@gen_test()
async def test_a_call_ends_with_a_timeout_error_at_its_deadline(transport):
    waiting = Waiting()
    async with serving(transport, {"wait": waiting.wait}) as server, rpc(server.address) as remote:
        await remote.echo()  # connects
        with quiet(), pytest.raises(TimeoutError, match="'wait'"):
            await remote.within("20ms").wait()
        await async_poll_for(lambda: waiting.ends == ["cancelled", "finally"])
        assert await remote.echo(data=1) == 1


@pytest.mark.parametrize("seconds", [0, -1])
@gen_test()
async def test_a_handler_without_time_is_not_started(seconds):
    waiting = Waiting()
    async with serving(TCP, {"wait": waiting.wait}) as server:
        comm = await connect(server.address)
        with quiet():
            answer = await ask(comm, {"op": "wait", "call-info": {"timeout": seconds}})
        assert "before 'wait' started" in answer["exception_text"]
        assert not waiting.entered.is_set()
        await comm.close()


@gen_test()
async def test_a_caller_without_time_sends_nothing():
    waiting = Waiting()
    async with serving(TCP, {"wait": waiting.wait}) as server, rpc(server.address) as remote:
        await remote.echo(data=1)

        async def call():
            async with timeout(0):
                await remote.wait()

        with pytest.raises(TimeoutError):
            await call()
        assert await remote.echo(data=1) == 1
        assert not waiting.entered.is_set()


@gen_test()
async def test_a_timeout_error_of_the_handler_itself_is_unchanged():
    async def fail():
        raise TimeoutError("its own")

    async with serving(TCP, {"fail": fail}) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(TimeoutError, match="its own"):
            await remote.within(100).fail()


@pytest.mark.parametrize("kind", ["value", "stream", "pool"])
@gen_test()
async def test_the_error_of_a_time_limit_says_why_connecting_did_not_succeed(kind):
    with socket.socket() as bound:
        # Bound but not listening: connections are refused.
        bound.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{bound.getsockname()[1]}"
        expected = rf"'f' took longer than 0\.2 s: connecting to {address} .*[Rr]efused"
        async with rpc(address) as remote, ConnectionPool() as pool:
            limited = (pool(address) if kind == "pool" else remote).within("200ms")
            with pytest.raises(TimeoutError, match=expected):
                await (anext(limited.f.stream()) if kind == "stream" else limited.f())


@TRANSPORTS
@gen_test()
async def test_a_stream_ends_at_its_deadline(transport):
    waiting = Waiting()
    handlers = {"wait": waiting.wait_streaming}
    async with serving(transport, handlers) as server, rpc(server.address) as remote:
        await remote.echo()  # connects
        stream = remote.within("50ms").wait.stream()
        assert await anext(stream) == 1
        # The server answers at the same time.
        with (
            quiet(),
            pytest.raises(TimeoutError, match=r"'wait' (took longer|was cancelled after)"),
        ):
            await anext(stream)
        await async_poll_for(lambda: waiting.ends == ["finally"])
        assert [item async for item in stream] == []


@pytest.mark.parametrize(
    "info",
    [
        {"timeout": "soon"},
        {"timeout": float("nan")},
        {"stream": -1},
        {"stream": "yes"},
        {"metadata": {"x": 1}},
        {"metadata": []},
        7,
        "x",
    ],
    ids=str,
)
@gen_test()
async def test_call_info_that_makes_no_sense_is_an_error_at_the_caller(info):
    async with serving(TCP, {"left": left}) as server:
        comm = await connect(server.address)
        with quiet():
            answer = await ask(comm, {"op": "left", "call-info": info})
        assert "ValueError" in answer["exception_text"]
        assert await ask(comm, {"op": "echo", "data": 1}) == 1
        await comm.close()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: value,
        lambda value: {"timeout": value},
        lambda value: {"stream": value},
        lambda value: {"metadata": value},
        lambda value: {"metadata": {"x": value}},
    ],
)
def test_call_info_that_makes_no_sense_is_not_rendered_as_a_whole(wrap):
    class Counting(int):
        def __repr__(self):
            rendered.append(1)
            return "1"

    rendered: list[int] = []
    with pytest.raises(ValueError, match=r"of a request must|must be a") as caught:
        CallInfo.parse(wrap([Counting()] * 10_000))
    assert len(str(caught.value)) < 200
    assert len(rendered) < 100


# Cancellation


@TRANSPORTS
@gen_test()
async def test_a_cancelled_caller_cancels_the_handler(transport):
    waiting = Waiting()
    async with serving(transport, {"wait": waiting.wait}) as server, rpc(server.address) as remote:
        call = asyncio.create_task(remote.wait())
        await waiting.entered.wait()
        call.cancel()
        await async_poll_for(lambda: waiting.ends == ["cancelled", "finally"])
        assert await remote.echo(data=1) == 1


@TRANSPORTS
@gen_test()
async def test_a_lost_connection_cancels_the_handler(transport):
    waiting = Waiting()
    async with serving(transport, {"wait": waiting.wait}) as server, rpc(server.address) as remote:
        call = asyncio.create_task(remote.wait())
        await waiting.entered.wait()
        remote.close_comms()
        with pytest.raises(CommClosedError):
            await call
        await async_poll_for(lambda: waiting.ends == ["cancelled", "finally"])


@gen_test()
async def test_a_handler_can_be_declared_to_run_to_completion():
    waiting = Waiting()
    done = asyncio.Event()
    resume = asyncio.Event()

    @run_to_completion
    async def save():
        waiting.entered.set()
        await resume.wait()
        done.set()

    async with serving(TCP, {"save": save}) as server, rpc(server.address) as remote:
        call = asyncio.create_task(remote.save())
        await waiting.entered.wait()
        call.cancel()
        await asyncio.wait([call])
        # The server has noticed that the caller left.
        [comm] = server._comms
        await async_poll_for(comm.closed)
        resume.set()
        await done.wait()


@gen_test()
async def test_a_handler_runs_on_if_the_caller_did_not_use_rpc():
    waiting = Waiting()
    resume = asyncio.Event()

    async def wait():
        waiting.entered.set()
        await resume.wait()
        waiting.ends.append("completed")

    async with serving(TCP, {"wait": wait}) as server:
        comm = await connect(server.address)
        await comm.write({"op": "wait"})
        await waiting.entered.wait()
        comm.abort()
        [comm] = server._comms
        await async_poll_for(comm.closed)
        resume.set()
        await async_poll_for(lambda: waiting.ends == ["completed"])


@gen_test()
async def test_a_handler_that_ignores_its_cancellation_harms_no_other_call():
    entered, ended = asyncio.Event(), asyncio.Event()

    async def stubborn():
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
        return "too late"

    async with serving(TCP, {"stubborn": stubborn}) as server, rpc(server.address) as remote:
        call = asyncio.create_task(remote.stubborn())
        await entered.wait()
        call.cancel()
        await ended.wait()
        assert await remote.echo(data=1) == 1
