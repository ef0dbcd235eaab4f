"""Comms that requests come over: side by side, one after the other, broken off, and at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time

import pytest

from distributed import core
from distributed.comm import listen
from distributed.core import CommClosedError, NoOpAwaitable, Server, Status, rpc, send_recv
from distributed.protocol import Serialized, to_serialize
from distributed.tests.servers import (
    TCP,
    TRANSPORTS,
    ask,
    assert_usable,
    connected,
    listen_args,
    serving,
    trusting,
)
from distributed.utils_test import async_poll_for, captured_logger, gen_test, popen, throws


@TRANSPORTS
@gen_test()
async def test_one_comm_carries_many_requests(transport):
    async with serving(transport) as server, connected(server) as comm:
        for i in range(100):
            assert await send_recv(comm, op="echo", data=i) == i
        assert server.incoming_comms_open == 1


@TRANSPORTS
@gen_test()
async def test_requests_sent_ahead_are_answered_one_after_the_other_in_order(transport):
    running = 0

    async def f(x):
        nonlocal running
        running += 1
        assert running == 1
        for _ in range(10 - x):
            await asyncio.sleep(0)
        running -= 1
        return x

    async with serving(transport, {"f": f}) as server, connected(server) as comm:
        for i in range(10):
            await comm.write({"op": "f", "x": i})
        assert [await comm.read() for _ in range(10)] == list(range(10))


@gen_test()
async def test_a_peer_that_does_not_read_its_answers_is_not_read_from_any_more():
    async with serving(TCP) as server, connected(server) as comm:
        data = b"x" * 1_000_000

        async def ask_on_and_on():
            for _ in range(200):
                await comm.write({"op": "echo", "data": data})

        asking = asyncio.create_task(ask_on_and_on())
        answered, unchanged = 0, 0
        while unchanged < 300:
            await asyncio.sleep(0)
            before, answered = answered, server.counters["op"].components[0]["echo"]
            unchanged = unchanged + 1 if answered and answered == before else 0
        # What is between them is in the buffers of their sockets.
        assert answered < 50
        assert not asking.done()
        for _ in range(200):
            assert await comm.read() == data
        await asking


@TRANSPORTS
@gen_test()
async def test_a_handler_that_waits_on_one_comm_does_not_delay_another(transport):
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait():
        entered.set()
        await leave.wait()
        return "at last"

    async with (
        serving(transport, {"wait": wait}) as server,
        connected(server) as one,
        connected(server) as other,
    ):
        waiting = asyncio.create_task(ask(one, {"op": "wait"}))
        await entered.wait()
        for _ in range(100):
            await assert_usable(other)
        assert not waiting.done()
        leave.set()
        assert await waiting == "at last"


@TRANSPORTS
@gen_test()
async def test_two_hundred_calls_overlap(transport):
    async def wait(x):
        await asyncio.sleep(0.2)
        return x

    async with serving(transport, {"wait": wait}) as server, rpc(server.address) as remote:
        start = time.monotonic()
        results = await asyncio.gather(*(remote.wait(x=i) for i in range(200)))
        assert time.monotonic() - start < 2
        assert results == list(range(200))


@TRANSPORTS
@gen_test()
async def test_comms_tell_the_op_in_progress(transport):
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait():
        entered.set()
        await leave.wait()

    async with serving(transport, {"wait": wait}) as server, connected(server) as comm:
        await async_poll_for(lambda: server.incoming_comms_open == 1)
        assert list(server._comms.values()) == [None]
        assert server.incoming_comms_active == 0
        asking = asyncio.create_task(ask(comm, {"op": "wait"}))
        await entered.wait()
        assert list(server._comms.values()) == ["wait"]
        assert server.incoming_comms_open == 1
        assert server.incoming_comms_active == 1
        leave.set()
        await asking
        await async_poll_for(lambda: list(server._comms.values()) == [None])


@TRANSPORTS
@gen_test()
async def test_an_error_leaves_no_op_in_progress(transport):
    async with serving(transport, {"f": throws}) as server, connected(server) as comm:
        with captured_logger("distributed.core.requests"):
            await ask(comm, {"op": "f", "x": 1})
        await async_poll_for(lambda: list(server._comms.values()) == [None])


@TRANSPORTS
@gen_test()
async def test_connection_counters(transport):
    async with serving(transport) as server, connected(server):
        await async_poll_for(lambda: server.incoming_comms_open)
        assert server.get_connection_counters() == {
            "incoming_comms_open": 1,
            "incoming_comms_active": 0,
            "outgoing_comms_open": 0,
            "outgoing_comms_active": 0,
        }


@TRANSPORTS
@gen_test()
async def test_a_comm_that_its_peer_closes_is_forgotten(transport):
    async with serving(transport) as server:
        with captured_logger("distributed", level=logging.INFO) as log:
            async with connected(server) as comm:
                await assert_usable(comm)
            await async_poll_for(lambda: not server._comms)
        assert log.getvalue() == ""


@TRANSPORTS
@gen_test()
async def test_a_peer_that_goes_during_its_request_is_no_error(transport):
    entered, leave, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait():
        entered.set()
        await leave.wait()
        left.set()
        return "to nobody"

    async with serving(transport, {"wait": wait}) as server:
        with captured_logger("distributed", level=logging.INFO) as log:
            async with connected(server) as comm:
                await comm.write({"op": "wait"})
                await entered.wait()
            leave.set()
            await left.wait()
            await async_poll_for(lambda: not server._comms)
        assert log.getvalue() == ""


@gen_test()
async def test_a_peer_that_is_killed_during_its_request_harms_nobody():
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait():
        entered.set()
        await leave.wait()

    code = (
        "import asyncio, sys\n"
        "from distributed.core import rpc\n"
        "async def main():\n"
        "    async with rpc(sys.argv[1]) as remote:\n"
        "        await remote.wait()\n"
        "asyncio.run(main())\n"
    )
    async with serving(TCP, {"wait": wait}) as server, connected(server) as comm:
        with captured_logger("distributed", level=logging.INFO) as log:
            with popen(["python", "-c", code, server.address]) as process:
                await entered.wait()
                os.kill(process.pid, signal.SIGKILL)
                await asyncio.to_thread(process.wait)
            leave.set()
            await async_poll_for(lambda: len(server._comms) == 1)
            await assert_usable(comm)
        assert log.getvalue() == ""


@gen_test()
async def test_a_peer_that_goes_amid_a_message_is_no_error():
    async with serving(TCP) as server:
        with captured_logger("distributed.core.requests", level=logging.INFO) as log:
            async with connected(server) as comm:
                await async_poll_for(lambda: server._comms)
                await comm.stream.write((100).to_bytes(8, "little"))
            await async_poll_for(lambda: not server._comms)
        assert log.getvalue() == ""


@TRANSPORTS
@gen_test()
async def test_a_handler_may_close_its_own_comm(transport):
    async def f(comm):
        await comm.close()

    async with serving(transport, {"f": f}) as server, connected(server) as comm:
        with captured_logger("distributed.core.requests", level=logging.INFO) as log:
            with pytest.raises(CommClosedError):
                await ask(comm, {"op": "f"})
            await async_poll_for(lambda: not server._comms)
        assert log.getvalue() == ""


@TRANSPORTS
@gen_test()
async def test_a_handler_may_talk_over_its_comm(transport):
    async def converse(comm):
        await comm.write("your name?")
        name = await comm.read()
        return f"hello, {name}"

    async with serving(transport, {"converse": converse}) as server, connected(server) as comm:
        assert await ask(comm, {"op": "converse"}) == "your name?"
        assert await ask(comm, "Alice") == "hello, Alice"
        await assert_usable(comm)


@TRANSPORTS
@gen_test()
async def test_handle_comm_answers_on_a_comm_that_it_is_given(transport):
    server = Server({})
    listener = await listen(transport, server.handle_comm, **listen_args(transport))
    with trusting(transport):
        comm = await core.connect(listener.contact_address)
    await assert_usable(comm)
    assert server.status is Status.running
    await comm.close()
    listener.stop()
    await server.close()


@gen_test()
async def test_what_handle_comm_returns_may_be_awaited():
    async with serving("inproc://") as server, connected(server) as comm:
        result = server.handle_comm(comm)
        assert isinstance(result, NoOpAwaitable)
        assert await result is None


@TRANSPORTS
@gen_test()
async def test_a_closed_server_takes_no_comm(transport):
    server = await Server({})
    await server.close()
    listener = await listen(transport, server.handle_comm, **listen_args(transport))
    with trusting(transport):
        comm = await core.connect(listener.contact_address)
    with pytest.raises(CommClosedError):
        await comm.read()
    assert not server._comms
    await comm.close()
    listener.stop()


@gen_test()
async def test_a_server_that_does_not_deserialize_passes_values_on():
    class Proxy(Server):
        seen: object = None

        def pass_on(self, data):
            self.seen = data
            return data

    async with serving(TCP, cls=Proxy, deserialize=False) as server, connected(server) as comm:
        server.handlers["pass_on"] = server.pass_on
        value = {"precious": 12}
        assert await ask(comm, {"op": "pass_on", "data": to_serialize(value)}) == value
        assert isinstance(server.seen, Serialized)


@TRANSPORTS
@gen_test()
async def test_the_request_of_the_caller_is_not_changed(transport):
    async with serving(transport) as server, connected(server) as comm:
        msg = {"op": "echo", "data": [1], "reply": True, "close": False}
        await ask(comm, msg)
        assert msg == {"op": "echo", "data": [1], "reply": True, "close": False}


# Closing while handlers run


@TRANSPORTS
@gen_test()
async def test_a_handler_that_ends_within_the_grace_period_answers(transport):
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait():
        entered.set()
        await leave.wait()
        return "done"

    async with serving(transport, {"wait": wait}) as server, connected(server) as comm:
        asking = asyncio.create_task(ask(comm, {"op": "wait"}))
        await entered.wait()
        closing = asyncio.create_task(server.close(timeout=20))
        await async_poll_for(lambda: server.status is Status.closing)
        leave.set()
        assert await asking == "done"
        await closing


@TRANSPORTS
@gen_test()
async def test_a_handler_that_does_not_end_is_cancelled_after_the_grace_period(transport):
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def wait():
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(transport, {"wait": wait}) as server, connected(server) as comm:
        asking = asyncio.create_task(ask(comm, {"op": "wait"}))
        await entered.wait()
        start = time.monotonic()
        await server.close()
        assert 0.5 < time.monotonic() - start < 5
        assert cancelled.is_set()
        with pytest.raises(CommClosedError):
            await asking


@TRANSPORTS
@gen_test()
async def test_idle_comms_do_not_delay_close(transport):
    async with serving(transport) as server, connected(server) as comm:
        await assert_usable(comm)
        start = time.monotonic()
        await server.close(timeout=20)
        assert time.monotonic() - start < 5
        with pytest.raises(CommClosedError):
            await ask(comm, {"op": "echo"})


@gen_test()
async def test_a_handler_that_cannot_be_cancelled_is_logged_and_does_not_hold_up_close():
    entered, leave = asyncio.Event(), asyncio.Event()

    async def stubborn():
        entered.set()
        while not leave.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await leave.wait()

    async with serving(TCP, {"stubborn": stubborn}) as server, connected(server) as comm:
        await comm.write({"op": "stubborn"})
        await entered.wait()
        with captured_logger("distributed.core.requests", level=logging.ERROR) as log:
            await server.close(timeout=0.05)
        assert "does not end although it was cancelled" in log.getvalue()
        leave.set()


@TRANSPORTS
@gen_test()
async def test_close_called_by_a_handler_lets_its_caller_have_an_answer(transport):
    class Stoppable(Server):
        async def terminate(self):
            await self.close()
            return "closed"

    async with serving(transport, cls=Stoppable) as server, connected(server) as comm:
        server.handlers["terminate"] = server.terminate
        assert await ask(comm, {"op": "terminate"}) == "closed"
        assert server.status is Status.closed
        with pytest.raises(CommClosedError):
            await comm.read()


@TRANSPORTS
@gen_test()
async def test_close_called_by_a_handler_ends_all_others(transport):
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def wait():
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with (
        serving(transport, {"wait": wait}) as server,
        connected(server) as waiting,
        connected(server) as comm,
    ):

        async def terminate():
            await server.close(timeout=0.05)
            return cancelled.is_set()

        server.handlers["terminate"] = terminate
        await waiting.write({"op": "wait"})
        await entered.wait()
        assert await ask(comm, {"op": "terminate"}) is True
        with pytest.raises(CommClosedError):
            await waiting.read()


@TRANSPORTS
@gen_test()
async def test_close_left_to_a_background_task_lets_the_caller_have_an_answer(transport):
    async with serving(transport) as server, connected(server) as comm:

        async def terminate():
            server._ongoing_background_tasks.call_soon(server.close)
            return "will do"

        server.handlers["terminate"] = terminate
        assert await ask(comm, {"op": "terminate"}) == "will do"
        await server.finished()
        assert server.status is Status.closed


@TRANSPORTS
@gen_test()
async def test_no_request_is_taken_once_the_server_closes(transport):
    entered, leave = asyncio.Event(), asyncio.Event()
    called = []

    async def wait():
        entered.set()
        await leave.wait()
        return "done"

    async with (
        serving(transport, {"wait": wait, "f": lambda: called.append(1)}) as server,
        connected(server) as comm,
    ):
        await comm.write({"op": "wait"})
        await comm.write({"op": "f"})
        await entered.wait()
        closing = asyncio.create_task(server.close(timeout=20))
        await async_poll_for(lambda: server.status is Status.closing)
        leave.set()
        assert await comm.read() == "done"
        with pytest.raises(CommClosedError):
            await comm.read()
        await closing
        assert called == []
