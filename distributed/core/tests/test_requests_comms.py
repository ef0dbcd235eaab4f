"""Comms that carry requests: in order, concurrent, broken, and while the server closes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal

import pytest

from distributed import core
from distributed.comm import listen
from distributed.core import CommClosedError, NoOpAwaitable, Server, Status, rpc, send_recv
from distributed.core import server as core_server
from distributed.protocol import Serialized, to_serialize
from distributed.tests.servers import (
    TCP,
    TRANSPORTS,
    Gate,
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
async def test_pipelined_requests_are_answered_one_after_the_other_in_order(transport):
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
async def test_the_server_stops_reading_from_a_peer_that_does_not_read_its_answers():
    async with serving(TCP) as server, connected(server) as comm:
        data = b"x" * 1_000_000

        async def write_requests():
            for _ in range(200):
                await comm.write({"op": "echo", "data": data})

        asking = asyncio.create_task(write_requests())
        answered, unchanged = 0, 0
        while unchanged < 300:
            await asyncio.sleep(0)
            before, answered = answered, server.counters["op"].components[0]["echo"]
            unchanged = unchanged + 1 if answered and answered == before else 0
        # The buffers of the sockets hold the difference.
        assert answered < 50
        assert not asking.done()
        for _ in range(200):
            assert await comm.read() == data
        await asking


@TRANSPORTS
@gen_test()
async def test_a_handler_that_waits_on_one_comm_does_not_delay_another(transport):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle}) as server,
        connected(server) as one,
        connected(server) as other,
    ):
        waiting = await gate.enter(ask(one, {"op": "wait", "key": "one"}), "one")
        for _ in range(100):
            await assert_usable(other)
        assert not waiting.done()
        gate.open("one")
        assert await waiting == "one"


@TRANSPORTS
@gen_test()
async def test_two_hundred_calls_overlap(transport):
    gate = Gate()
    keys = range(200)
    async with serving(transport, {"wait": gate.handle}) as server, rpc(server.address) as remote:
        calls = [asyncio.create_task(remote.wait(key=key)) for key in keys]
        for key in keys:
            await gate.entered[key].wait()
        assert server.incoming_comms_active == 200
        gate.open(*keys)
        assert await asyncio.gather(*calls) == list(keys)


@TRANSPORTS
@gen_test()
async def test_comms_show_the_op_in_progress(transport):
    gate = Gate()
    async with serving(transport, {"wait": gate.handle}) as server, connected(server) as comm:
        await async_poll_for(lambda: server.incoming_comms_open == 1)
        assert list(server._comms.values()) == [None]
        assert server.incoming_comms_active == 0
        asking = await gate.enter(ask(comm, {"op": "wait"}))
        assert list(server._comms.values()) == ["wait"]
        assert server.incoming_comms_open == 1
        assert server.incoming_comms_active == 1
        gate.open()
        await asking
        await async_poll_for(lambda: list(server._comms.values()) == [None])


@TRANSPORTS
@gen_test()
async def test_an_error_leaves_no_op_in_progress(transport):
    async with serving(transport, {"f": throws}) as server, connected(server) as comm:
        with captured_logger("distributed.core"):
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
async def test_a_comm_that_the_peer_closes_is_removed_without_a_log_line(transport):
    async with serving(transport) as server:
        with captured_logger("distributed", level=logging.INFO) as log:
            async with connected(server) as comm:
                await assert_usable(comm)
            await async_poll_for(lambda: not server._comms)
        assert log.getvalue() == ""


@TRANSPORTS
@gen_test()
async def test_a_peer_that_disconnects_during_its_request_is_not_an_error(transport):
    gate = Gate()
    async with serving(transport, {"wait": gate.handle}) as server:
        with captured_logger("distributed", level=logging.INFO) as log:
            async with connected(server) as comm:
                await comm.write({"op": "wait"})
                await gate.entered[None].wait()
            gate.open()
            await async_poll_for(lambda: not server._comms)
        assert log.getvalue() == ""


@gen_test()
async def test_a_peer_that_is_killed_during_its_request_does_not_disturb_others():
    gate = Gate()
    code = (
        "import asyncio, sys\n"
        "from distributed.core import rpc\n"
        "async def main():\n"
        "    async with rpc(sys.argv[1]) as remote:\n"
        "        await remote.wait()\n"
        "asyncio.run(main())\n"
    )
    async with serving(TCP, {"wait": gate.handle}) as server, connected(server) as comm:
        with captured_logger("distributed", level=logging.INFO) as log:
            with popen(["python", "-c", code, server.address]) as process:
                await gate.entered[None].wait()
                os.kill(process.pid, signal.SIGKILL)
                await asyncio.to_thread(process.wait)
            gate.open()
            await async_poll_for(lambda: len(server._comms) == 1)
            await assert_usable(comm)
        assert log.getvalue() == ""


@gen_test()
async def test_a_peer_that_disconnects_within_a_message_is_not_an_error():
    async with serving(TCP) as server:
        with captured_logger("distributed.core", level=logging.INFO) as log:
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
        with captured_logger("distributed.core", level=logging.INFO) as log:
            with pytest.raises(CommClosedError):
                await ask(comm, {"op": "f"})
            await async_poll_for(lambda: not server._comms)
        assert log.getvalue() == ""


@TRANSPORTS
@gen_test()
async def test_a_handler_may_read_and_write_its_comm(transport):
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
async def test_handle_comm_answers_on_the_given_comm(transport):
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
async def test_the_result_of_handle_comm_is_awaitable():
    async with serving("inproc://") as server, connected(server) as comm:
        result = server.handle_comm(comm)
        assert isinstance(result, NoOpAwaitable)
        assert await result is None


@TRANSPORTS
@gen_test()
async def test_a_closed_server_aborts_comms(transport):
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
async def test_a_server_that_does_not_deserialize_forwards_serialized_values():
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
async def test_the_server_does_not_change_the_request_of_the_caller(transport):
    async with serving(transport) as server, connected(server) as comm:
        msg = {"op": "echo", "data": [1], "reply": True, "close": False}
        await ask(comm, msg)
        assert msg == {"op": "echo", "data": [1], "reply": True, "close": False}


# Closing while handlers run


@TRANSPORTS
@gen_test()
async def test_a_closing_server_lets_handlers_finish_and_refuses_new_requests(transport):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle}) as server,
        connected(server) as busy,
        connected(server) as idle,
    ):
        await assert_usable(idle)
        asking = await gate.enter(ask(busy, {"op": "wait", "key": "done"}), "done")
        closing = asyncio.create_task(server.close(timeout=60))
        await async_poll_for(lambda: server.status is not Status.running)
        assert server.status is Status.closing
        with pytest.raises(RuntimeError, match="is closing and refuses new requests"):
            await send_recv(idle, op="echo", data=1)
        gate.open("done")
        assert await asking == "done"
        await closing
        assert server.status is Status.closed
        with pytest.raises(CommClosedError):
            await idle.read()


@TRANSPORTS
@gen_test()
async def test_a_handler_that_does_not_finish_is_cancelled_after_the_grace_period(
    transport, monkeypatch
):
    assert core_server.CLOSE_GRACE == 1
    monkeypatch.setattr(core_server, "CLOSE_GRACE", 0.01)
    gate = Gate()
    async with serving(transport, {"wait": gate.handle}) as server, rpc(server.address) as remote:
        asking = await gate.enter(remote.wait())
        await server.close()
        assert gate.cancelled[None].is_set()
        with pytest.raises(CommClosedError, match="'wait'"):
            await asking


@TRANSPORTS
@gen_test()
async def test_idle_comms_do_not_delay_close(transport):
    async with serving(transport) as server, connected(server) as comm:
        await assert_usable(comm)
        # Longer than the test may take.
        await server.close(timeout=1000)
        with pytest.raises(CommClosedError):
            await ask(comm, {"op": "echo"})


@gen_test()
async def test_a_handler_that_ignores_cancellation_is_logged_and_does_not_delay_close():
    entered, leave = asyncio.Event(), asyncio.Event()

    async def stubborn():
        entered.set()
        while not leave.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await leave.wait()

    async with serving(TCP, {"stubborn": stubborn}) as server, connected(server) as comm:
        await comm.write({"op": "stubborn"})
        await entered.wait()
        with captured_logger("distributed.core", level=logging.ERROR) as log:
            await server.close(timeout=0.05)
        assert "does not end although it was cancelled" in log.getvalue()
        leave.set()


@TRANSPORTS
@gen_test()
async def test_a_handler_that_closes_the_server_is_answered(transport):
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
async def test_a_handler_that_closes_the_server_ends_all_others(transport):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle}) as server,
        connected(server) as waiting,
        connected(server) as comm,
    ):

        async def terminate():
            await server.close(timeout=0.05)
            return gate.cancelled[None].is_set()

        server.handlers["terminate"] = terminate
        await waiting.write({"op": "wait"})
        await gate.entered[None].wait()
        assert await ask(comm, {"op": "terminate"}) is True
        with pytest.raises(CommClosedError):
            await waiting.read()


@TRANSPORTS
@gen_test()
async def test_a_handler_that_closes_the_server_in_the_background_is_answered(transport):
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
async def test_a_pipelined_request_is_not_handled_once_the_server_closes(transport):
    gate = Gate()
    called = []
    async with (
        serving(transport, {"wait": gate.handle, "f": lambda: called.append(1)}) as server,
        connected(server) as comm,
    ):
        await comm.write({"op": "wait", "key": "done"})
        await comm.write({"op": "f"})
        await gate.entered["done"].wait()
        closing = asyncio.create_task(server.close(timeout=20))
        await async_poll_for(lambda: server.status is Status.closing)
        gate.open("done")
        assert await comm.read() == "done"
        with pytest.raises(CommClosedError):
            await comm.read()
        await closing
        assert called == []
