"""``Server.drain``: new requests are refused, and those in progress finish."""

from __future__ import annotations

import asyncio

import pytest

from distributed.batched import BatchedSend
from distributed.core import CommClosedError, RequestRefused, Server, Status, connect, rpc
from distributed.tests.environments import run_in
from distributed.tests.servers import TCP, TRANSPORTS, connected, quiet, serving
from distributed.utils_test import async_poll_for, captured_logger, gen_test


class Work:
    """A handler that waits until the test lets it continue."""

    def __init__(self):
        self.started = asyncio.Event()
        self.proceed = asyncio.Event()
        self.cancelled = False

    async def work(self, x):
        self.started.set()
        try:
            await self.proceed.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return x + 1


@TRANSPORTS
@gen_test()
async def test_requests_in_progress_finish_and_new_ones_are_refused(transport):
    work = Work()
    async with (
        serving(transport, {"work": work.work}) as server,
        rpc(server.address) as busy,
        rpc(server.address) as other,
    ):
        await other.echo()
        call = asyncio.create_task(busy.work(x=1))
        await work.started.wait()
        draining = asyncio.create_task(server.drain())
        await async_poll_for(lambda: server._refuses_requests)
        # On a connection that was open before, and on a new one.
        with captured_logger("distributed.core") as log:
            for _ in range(2):
                with pytest.raises(RequestRefused, match="closing and refuses new requests"):
                    await other.echo()
                other.close_comms()
        assert log.getvalue().count("Refused op echo in Server") == 2
        assert await other.health() == {"status": "closing"}
        assert server.status is Status.closing_gracefully
        assert not draining.done()
        work.proceed.set()
        assert await call == 2
        assert await draining


@gen_test()
async def test_a_peer_without_extensions_is_refused_with_a_plain_error():
    work = Work()
    async with (
        serving(TCP, {"work": work.work}) as server,
        connected(server) as comm,
        rpc(server.address) as remote,
    ):
        call = asyncio.create_task(remote.work(x=1))
        await work.started.wait()
        draining = asyncio.create_task(server.drain())
        await async_poll_for(lambda: server._refuses_requests)
        await comm.write({"op": "echo", "reply": True})
        answer = await comm.read()
        assert answer["status"] == "uncaught-error"
        assert "refused" not in answer
        work.proceed.set()
        await call
        await draining


@gen_test(timeout=100)
async def test_a_client_of_the_original_is_refused_with_an_error_that_it_understands(
    original_python,
):
    work = Work()
    async with serving(TCP, {"work": work.work}) as server, rpc(server.address) as remote:
        call = asyncio.create_task(remote.work(x=1))
        await work.started.wait()
        draining = asyncio.create_task(server.drain())
        await async_poll_for(lambda: server._refuses_requests)
        code = f"""
            import asyncio
            from distributed.core import rpc

            async def main():
                async with rpc({server.address!r}) as remote:
                    for _ in range(2):
                        try:
                            await remote.identity()
                        except Exception as exc:
                            print(type(exc).__name__, exc)

            asyncio.run(main())
        """
        done = await asyncio.to_thread(run_in, original_python, code)
        line = f"RuntimeError Server {server.address} is closing and refuses new requests"
        assert done.stdout.splitlines() == [line, line]
        work.proceed.set()
        assert await call == 2
        assert await draining


@gen_test()
async def test_a_connection_is_closed_after_the_answer_to_its_request_in_progress():
    work = Work()
    async with serving(TCP, {"work": work.work}) as server, connected(server) as comm:
        await comm.write({"op": "work", "x": 1, "reply": True})
        await work.started.wait()
        draining = asyncio.create_task(server.drain())
        await async_poll_for(lambda: server._refuses_requests)
        work.proceed.set()
        assert await comm.read() == 2
        with pytest.raises(CommClosedError):
            await comm.read()
        assert await draining


@TRANSPORTS
@gen_test()
async def test_a_handler_that_does_not_end_is_cancelled_and_its_caller_gets_an_error(transport):
    work = Work()
    async with serving(transport, {"work": work.work}) as server, rpc(server.address) as remote:
        call = asyncio.create_task(remote.work(x=1))
        await work.started.wait()
        with captured_logger("distributed.core") as log:
            assert not await server.drain("10ms")
        with pytest.raises(RuntimeError, match=r"'work' in .* cancelled: the server closes, and"):
            await call
        assert work.cancelled
        assert "Ending op work of" in log.getvalue()


@gen_test()
async def test_a_handler_that_ignores_its_cancellation_does_not_stop_the_server_from_closing():
    started = asyncio.Event()
    hold = asyncio.Event()

    async def stubborn():
        started.set()
        while not hold.is_set():
            try:
                await hold.wait()
            except asyncio.CancelledError:
                continue

    async with serving(TCP, {"stubborn": stubborn}) as server, rpc(server.address) as remote:
        call = asyncio.create_task(remote.stubborn())
        await started.wait()
        with quiet():
            assert not await server.drain(0)
            hold.set()
            await server.close()
        # It ended, so its result was still sent, or the connection was closed first.
        await asyncio.wait([call])
        if (error := call.exception()) is not None:
            assert isinstance(error, CommClosedError)


@gen_test()
async def test_a_streaming_answer_goes_to_its_end():
    proceed = asyncio.Event()

    async def count():
        yield 1
        await proceed.wait()
        yield 2
        yield 3

    async with serving(TCP, {"count": count}) as server, rpc(server.address) as remote:
        items = []
        draining = None
        async for item in remote.count.stream():
            items.append(item)
            if draining is None:
                draining = asyncio.create_task(server.drain())
                await async_poll_for(lambda: server._refuses_requests)
                proceed.set()
        assert items == [1, 2, 3]
        assert await draining


@gen_test()
async def test_a_streaming_answer_without_an_end_becomes_an_error():
    closed = []

    async def count():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async with serving(TCP, {"count": count}) as server, rpc(server.address) as remote:
        items = aiter(remote.count.stream())
        assert await anext(items) == 1
        with quiet():
            assert not await server.drain(0)
        with pytest.raises(RuntimeError, match="the server closes"):
            await anext(items)
        assert closed == [True]


@TRANSPORTS
@gen_test()
async def test_a_conversation_may_end_and_otherwise_gets_an_error(transport):
    left = []

    async def chat(comm):
        try:
            while (message := await comm.read()) != "bye":
                await comm.write(message)
            await comm.write("see you")
        except CommClosedError:
            left.append("silent")

    async with (
        serving(transport, {"chat": chat}) as server,
        rpc(server.address) as remote,
        remote.chat.open() as polite,
        remote.chat.open() as silent,
    ):
        for comm in (polite, silent):
            await comm.write("hello")
            assert await comm.read() == "hello"
        with quiet():
            draining = asyncio.create_task(server.drain("300ms"))
            await async_poll_for(lambda: server._refuses_requests)
            await polite.write("bye")
            assert await polite.read() == "see you"
            assert not await draining
        with pytest.raises(RuntimeError, match="'chat' was ended: the server closes"):
            await silent.read()
        assert left == ["silent"]


@gen_test()
async def test_requests_in_progress_still_get_the_messages_of_streams():
    seen, changed = [], asyncio.Event()

    def report(x):
        seen.append(x)
        changed.set()

    async def wait_for_report():
        waiting.set()
        await changed.wait()
        return seen

    waiting = asyncio.Event()
    async with Server({"wait": wait_for_report}, stream_handlers={"report": report}) as server:
        await server.listen(TCP)
        stream = BatchedSend(interval=0)
        comm = await connect(server.address)
        await comm.write({"op": "connection_stream", "reply": False})
        stream.start(comm)
        async with rpc(server.address) as remote:
            call = asyncio.create_task(remote.wait())
            await waiting.wait()
            draining = asyncio.create_task(server.drain())
            await async_poll_for(lambda: server._refuses_requests)
            stream.send({"op": "report", "x": 1})
            assert await call == (1,)
            assert await draining
        assert not comm.closed()
        await server.close()
        await async_poll_for(comm.closed)
        await stream.close()


@gen_test()
async def test_handlers_of_streams_finish_and_those_that_do_not_are_cancelled():
    ended, proceed = [], asyncio.Event()

    async def handle(name):
        ended.append(f"{name} started")
        try:
            await (proceed.wait() if name == "short" else asyncio.Event().wait())
        finally:
            ended.append(f"{name} ended")

    async with Server({}, stream_handlers={"handle": handle}) as server:
        await server.listen(TCP)
        comm = await connect(server.address)
        await comm.write({"op": "connection_stream", "reply": False})
        await comm.write([{"op": "handle", "name": "short"}, {"op": "handle", "name": "long"}])
        await async_poll_for(lambda: len(ended) == 2)
        proceed.set()
        with captured_logger("distributed.core") as log:
            # Only requests are waited for.
            assert await server.drain("50ms")
            assert len(ended) == 2
            await server.close()
        assert server._cut_short
        assert ended == ["short started", "long started", "short ended", "long ended"]
        assert "cancels stream handler handle of" in log.getvalue()
        assert "Traceback" not in log.getvalue()
        with pytest.raises(CommClosedError):
            await comm.read()


@gen_test()
async def test_messages_of_a_stream_that_have_arrived_are_handled():
    seen = []
    async with Server({}, stream_handlers={"report": lambda x: seen.append(x)}) as server:
        await server.listen(TCP)
        comm = await connect(server.address)
        await comm.write({"op": "connection_stream", "reply": False})
        await comm.write({"op": "report", "x": 0})
        await async_poll_for(lambda: seen)
        for x in range(1, 50):
            await comm.write({"op": "report", "x": x})
        assert await server.drain()
        await server.close()
        assert not server._cut_short
        assert seen == list(range(50))
        comm.abort()


@gen_test()
async def test_a_stream_that_begins_meanwhile_ends_at_once():
    started, proceed = asyncio.Event(), asyncio.Event()

    async def subscribe(comm):
        started.set()
        await proceed.wait()
        await server.handle_stream(comm)

    async with serving(TCP, {"subscribe": subscribe}) as server, connected(server) as comm:
        await comm.write({"op": "subscribe", "reply": False})
        await started.wait()
        draining = asyncio.create_task(server.drain())
        await async_poll_for(lambda: server._refuses_requests)
        proceed.set()
        assert await draining
        with pytest.raises(CommClosedError):
            await comm.read()


@gen_test()
async def test_a_handler_may_drain_and_close_its_server():
    async def leave():
        assert await server.drain()
        server._ongoing_background_tasks.call_soon(server.close)
        return "leaving"

    async with serving(TCP, {"leave": leave}) as server, rpc(server.address) as remote:
        assert await remote.leave() == "leaving"
        await server.finished()


@gen_test()
async def test_a_closed_server_has_drained():
    async with serving(TCP) as server:
        await server.close()
        assert await server.drain()
        assert server.status is Status.closed


@gen_test()
async def test_the_time_must_be_a_duration():
    async with serving(TCP) as server:
        with pytest.raises(ValueError, match="timeout='soon' is not a duration"):
            await server.drain("soon")
        assert not server._refuses_requests


@gen_test(config={"distributed.server.shutdown-timeout": "10ms"})
async def test_the_default_time_is_configured():
    work = Work()
    async with serving(TCP, {"work": work.work}) as server, rpc(server.address) as remote:
        call = asyncio.create_task(remote.work(x=1))
        await work.started.wait()
        with quiet():
            assert not await server.drain()
        with pytest.raises(RuntimeError):
            await call


@gen_test()
async def test_handlers_that_close_a_server_that_is_closing_do_not_wait_for_each_other():
    started = asyncio.Event()
    proceed = asyncio.Event()

    async def close():
        started.set()
        await proceed.wait()
        await server.close()

    async with Server({"shut": close}, stream_handlers={"shut": close}) as server:
        await server.listen("inproc://")
        comm, other = await connect(server.address), await connect(server.address)
        await comm.write({"op": "connection_stream", "reply": False})
        await comm.write({"op": "shut"})
        await other.write({"op": "shut", "reply": True})
        await started.wait()
        draining = asyncio.create_task(server.drain("1 hour"))
        await async_poll_for(lambda: server._refuses_requests)
        closing = asyncio.create_task(server.close())
        await async_poll_for(lambda: server._close_begun)
        proceed.set()
        await closing
        await draining
        await comm.close()
        await other.close()
