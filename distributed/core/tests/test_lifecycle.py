"""Starting, failing to start, and closing a server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid

import pytest
from tornado.ioloop import IOLoop

from distributed import core
from distributed.core import CommClosedError, Server, Status, rpc
from distributed.tests.servers import TRANSPORTS, Gate, listen_args, serving, trusting
from distributed.utils_test import assert_cannot_connect, async_poll_for, captured_logger, gen_test


@pytest.fixture(autouse=True)
def trusted(request):
    """Trust the certificates of the servers of a test over TLS."""
    callspec = getattr(request.node, "callspec", None)
    with trusting(callspec.params.get("transport", "") if callspec else ""):
        yield


class Gated(Server):
    """A server that starts when its gate is opened, and counts its starts."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gate = Gate()
        self.starts = 0

    async def start_unsafe(self):
        self.starts += 1
        await self.gate.handle()
        return await super().start_unsafe()


class Failing(Server):
    """A server that fails to start after it has begun to listen."""

    async def start_unsafe(self):
        await self.listen("tcp://127.0.0.1:0")
        await super().start_unsafe()
        raise ZeroDivisionError("no luck")


# Starting


@gen_test()
async def test_a_new_server_is_not_running():
    server = Server({})
    assert server.status is Status.init
    await server.close()


@gen_test()
async def test_await_and_start_return_the_running_server():
    server = Server({})
    assert await server is server
    assert server.status is Status.running
    assert await server.start() is server
    await server.close()


@gen_test()
async def test_starting_twice_starts_once():
    server = Gated({})
    server.gate.open()
    await server.start()
    await server.start()
    await server
    assert server.starts == 1
    await server.close()


@gen_test()
async def test_concurrent_starts_start_once_and_all_return_when_it_runs():
    server = Gated({})
    starts = [asyncio.create_task(server.start()) for _ in range(5)]
    await server.gate.entered[None].wait()
    assert not any(start.done() for start in starts)
    server.gate.open()
    assert await asyncio.gather(*starts) == [server] * 5
    assert server.starts == 1
    assert server.status is Status.running
    await server.close()


@gen_test()
async def test_a_status_that_start_unsafe_sets_is_kept():
    class Paused(Server):
        async def start_unsafe(self):
            await super().start_unsafe()
            self.status = Status.paused
            return self

    async with Paused({}) as server:
        assert server.status is Status.paused
        await server.start()
        assert server.status is Status.paused


@gen_test()
async def test_async_with_starts_and_closes():
    async with Server({}) as server:
        assert server.status is Status.running
    assert server.status is Status.closed


@gen_test()
async def test_async_with_closes_after_an_error_too():
    with pytest.raises(ZeroDivisionError):
        async with Server({}) as server:
            raise ZeroDivisionError
    assert server.status is Status.closed


@TRANSPORTS
@gen_test()
async def test_the_first_connection_starts_the_server(transport):
    server = Server({})
    await server.listen(transport, **listen_args(transport))
    assert server.status is Status.init
    async with rpc(server.address) as remote:
        await remote.identity()
    assert server.status is Status.running
    await server.close()


@TRANSPORTS
@gen_test()
async def test_requests_wait_until_the_server_has_started(transport):
    server = Gated({})
    await server.listen(transport, **listen_args(transport))
    async with rpc(server.address) as remote:
        calls = [asyncio.create_task(remote.identity()) for _ in range(3)]
        await server.gate.entered[None].wait()
        await async_poll_for(lambda: server.incoming_comms_open == 3)
        assert not any(call.done() for call in calls)
        server.gate.open()
        await asyncio.gather(*calls)
    assert server.starts == 1
    await server.close()


# Failing to start


@gen_test()
async def test_a_failure_to_start_is_a_runtime_error_from_its_cause():
    with pytest.raises(RuntimeError, match=r"^Failing failed to start\.$") as info:
        await Failing({})
    assert isinstance(info.value.__cause__, ZeroDivisionError)


@gen_test()
async def test_a_server_that_failed_to_start_is_closed():
    server = Failing({})
    with pytest.raises(RuntimeError, match="failed to start"):
        await server
    assert server.status is Status.failed
    await server.finished()
    await assert_cannot_connect(server.address, timeout=0.1)
    assert not any(callback.is_running() for callback in server.periodic_callbacks.values())
    await server.close()
    assert server.status is Status.failed


@gen_test()
async def test_starting_a_failed_server_again_raises_the_same_error():
    server = Failing({})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Failing failed to start") as info:
            await server
        assert isinstance(info.value.__cause__, ZeroDivisionError)


@gen_test()
async def test_a_failure_to_start_is_raised_by_all_concurrent_starts():
    class GatedFailing(Gated):
        async def start_unsafe(self):
            await super().start_unsafe()
            raise ZeroDivisionError

    server = GatedFailing({})
    starts = [asyncio.create_task(server.start()) for _ in range(3)]
    await server.gate.entered[None].wait()
    server.gate.open()
    results = await asyncio.gather(*starts, return_exceptions=True)
    assert [str(result) for result in results] == ["GatedFailing failed to start."] * 3
    assert server.starts == 1


@gen_test()
async def test_a_failure_in_async_with_is_raised_before_the_body():
    with pytest.raises(RuntimeError, match="Failing failed to start"):
        async with Failing({}):
            raise AssertionError("the body ran")


@gen_test()
async def test_a_start_that_takes_too_long_times_out():
    class Slow(Gated):
        death_timeout = 0.05

    server = Slow({})
    with pytest.raises(asyncio.TimeoutError, match=r"Slow start timed out after 0\.05"):
        await server
    assert server.status is Status.failed


@gen_test()
async def test_the_death_timeout_of_one_server_can_be_set():
    server = Gated({})
    server.death_timeout = 0.05
    with pytest.raises(asyncio.TimeoutError, match="Gated start timed out"):
        await server


@gen_test()
async def test_the_death_timeout_may_have_a_unit():
    server = Gated({})
    server.death_timeout = "10ms"
    with pytest.raises(asyncio.TimeoutError, match=r"timed out after 0\.01"):
        await server
    assert server.status is Status.failed


@gen_test()
async def test_a_timeout_within_start_unsafe_is_a_failure_like_any_other():
    class Impatient(Server):
        death_timeout = 20

        async def start_unsafe(self):
            raise TimeoutError("of something else")

    with pytest.raises(RuntimeError, match="Impatient failed to start") as info:
        await Impatient({})
    assert isinstance(info.value.__cause__, asyncio.TimeoutError)


@gen_test()
async def test_a_start_that_is_cancelled_closes_the_server():
    server = Gated({})
    await server.listen("tcp://127.0.0.1:0")
    start = asyncio.create_task(server.start())
    await server.gate.entered[None].wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert server.status is Status.failed
    await server.finished()
    await assert_cannot_connect(server.address, timeout=0.1)


@gen_test()
async def test_starting_again_after_a_cancelled_start_is_an_error():
    server = Gated({})
    start = asyncio.create_task(server.start())
    await server.gate.entered[None].wait()
    start.cancel()
    await asyncio.wait([start])
    with pytest.raises(RuntimeError, match=r"Gated failed to start.*cancelled"):
        await server


@TRANSPORTS
@gen_test()
async def test_a_failure_of_the_start_by_a_connection_closes_that_connection(transport):
    class FailingLate(Server):
        async def start_unsafe(self):
            raise ZeroDivisionError("no luck")

    server = FailingLate({})
    await server.listen(transport, **listen_args(transport))
    with captured_logger("distributed.core") as log:
        comm = await core.connect(server.address)
        with pytest.raises(CommClosedError):
            await comm.read()
        await server.finished()
        await async_poll_for(lambda: log.getvalue())
    assert server.status is Status.failed
    assert "FailingLate failed to start" in log.getvalue()
    assert "no luck" in log.getvalue()
    await comm.close()


# Closing


@gen_test()
async def test_close_before_start():
    server = Server({})
    await server.close()
    assert server.status is Status.closed
    await server.finished()


@gen_test()
async def test_a_closed_server_does_not_start():
    server = Gated({})
    await server.close()
    await server.start()
    assert server.status is Status.closed
    assert server.starts == 0


@gen_test()
async def test_a_graceful_close_keeps_its_status_until_the_end():
    seen = []

    class Graceful(Server):
        async def _close_unsafe(self, timeout):
            seen.append(self.status)
            await super()._close_unsafe(timeout)

    server = await Graceful({})
    server.status = Status.closing_gracefully
    await server.close()
    assert seen == [Status.closing_gracefully]
    assert server.status is Status.closed


@gen_test()
async def test_finished_waits_for_the_end_of_close():
    server = await Server({})
    finished = asyncio.create_task(server.finished())
    await asyncio.sleep(0)
    assert not finished.done()
    await server.close()
    await finished


@gen_test()
async def test_finished_after_close_returns_at_once():
    server = await Server({})
    await server.close()
    assert server._event_finished.is_set()
    await server.finished()


@TRANSPORTS
@gen_test()
async def test_concurrent_closes_all_return_when_the_server_is_closed(transport):
    gate = Gate()
    async with serving(transport, {"wait": gate.handle}) as server, rpc(server.address) as remote:
        call = await gate.enter(remote.wait())
        closes = [asyncio.create_task(server.close(timeout=0.05)) for _ in range(4)]
        await asyncio.wait(closes, return_when=asyncio.FIRST_COMPLETED)
        assert gate.cancelled[None].is_set()
        await asyncio.gather(*closes)
        with pytest.raises(CommClosedError):
            await call


@gen_test()
async def test_close_runs_once():
    closes = 0

    class Counting(Server):
        async def _close_unsafe(self, timeout):
            nonlocal closes
            closes += 1
            await super()._close_unsafe(timeout)

    server = await Counting({})
    await asyncio.gather(server.close(), server.close())
    await server.close()
    assert closes == 1


@TRANSPORTS
@gen_test()
async def test_a_cancelled_close_still_ends_handlers_and_background_tasks(transport):
    gate = Gate()
    async with serving(transport, {"wait": gate.handle}) as server, rpc(server.address) as remote:
        server._ongoing_background_tasks.call_later(60, gate.handle)
        call = await gate.enter(remote.wait())
        close = asyncio.create_task(server.close(timeout=60))
        await async_poll_for(lambda: server.status is Status.closing)
        close.cancel()
        await gate.cancelled[None].wait()
        await async_poll_for(lambda: not len(server._ongoing_background_tasks))
        with pytest.raises(CommClosedError):
            await call
        await server.finished()
        assert server.status is Status.closed


@TRANSPORTS
@gen_test()
async def test_a_close_while_the_first_connection_starts_the_server(transport):
    server = Gated({})
    await server.listen(transport, **listen_args(transport))
    comm = await core.connect(server.address)
    await server.gate.entered[None].wait()
    with captured_logger("distributed.core") as log:
        await server.close(timeout=0.05)
    assert log.getvalue() == ""
    assert server.status is Status.closed
    with pytest.raises(CommClosedError):
        await comm.read()


@gen_test()
async def test_a_close_during_start_leaves_nothing_running():
    server = Gated({})
    start = asyncio.create_task(server.start())
    await server.gate.entered[None].wait()
    await server.close()
    server.gate.open()
    await start
    assert server.status is Status.closed
    assert not any(callback.is_running() for callback in server.periodic_callbacks.values())


@gen_test()
async def test_start_unsafe_may_close_the_server():
    class Quitter(Server):
        async def start_unsafe(self):
            await super().start_unsafe()
            await self.close()
            return self

    server = await Quitter({})
    assert server.status is Status.closed


@gen_test()
async def test_a_server_that_closes_itself_while_it_starts_and_then_raises_has_failed():
    class Worker(Server):
        async def start_unsafe(self):
            await super().start_unsafe()
            await self.close()
            raise ValueError("the scheduler refuses this worker")

        async def close(self, timeout=None, reason=""):
            await super().close(timeout, reason)
            self.status = Status.closed

    worker = Worker({})
    with pytest.raises(RuntimeError, match=r"^Worker failed to start\.$"):
        await worker
    assert worker.status is Status.failed
    await worker.finished()


@gen_test()
async def test_a_server_that_is_closed_while_it_starts_and_then_raises_has_failed():
    class Failing(Gated):
        async def start_unsafe(self):
            await super().start_unsafe()
            raise ValueError("no luck")

    server = Failing({})
    start = asyncio.create_task(server.start())
    await server.gate.entered[None].wait()
    await server.close()
    server.gate.open()
    with pytest.raises(RuntimeError, match="Failing failed to start"):
        await start
    assert server.status is Status.failed


class Contexts:
    """Makes contexts that note when they are entered and left."""

    def __init__(self):
        self.events = []

    @contextlib.asynccontextmanager
    async def context(self, name, gate=None):
        if gate is not None:
            await gate.handle()
        self.events.append(f"enter {name}")
        try:
            yield name.upper()
        finally:
            self.events.append(f"leave {name}")


@gen_test()
async def test_close_leaves_the_contexts_that_were_entered_the_last_one_first():
    contexts = Contexts()

    class WithContexts(Server):
        async def start_unsafe(self):
            assert await self.enter_async_context(contexts.context("a")) == "A"
            assert await self.enter_async_context(contexts.context("b")) == "B"
            return await super().start_unsafe()

    async with WithContexts({}) as server:
        contexts.events.append(server.status.name)
    assert contexts.events == ["enter a", "enter b", "running", "leave b", "leave a"]


@gen_test()
async def test_a_failure_to_start_leaves_the_contexts():
    contexts = Contexts()

    class FailsLater(Server):
        async def start_unsafe(self):
            await self.enter_async_context(contexts.context("a"))
            raise ZeroDivisionError

    with pytest.raises(RuntimeError):
        await FailsLater({})
    assert contexts.events == ["enter a", "leave a"]


@gen_test()
async def test_a_context_that_raises_when_it_is_entered_or_left():
    contexts = Contexts()

    @contextlib.asynccontextmanager
    async def fails(enter):
        if enter:
            raise KeyError("entered")
        yield
        raise KeyError("left")

    server = await Server({})
    await server.enter_async_context(contexts.context("a"))
    with pytest.raises(KeyError, match="entered"):
        await server.enter_async_context(fails(True))
    await server.enter_async_context(fails(False))
    with pytest.raises(KeyError, match="left"):
        await server.close()
    assert contexts.events == ["enter a", "leave a"]
    assert server.status is Status.closed
    await server.finished()


@gen_test()
async def test_a_closed_server_enters_no_context():
    contexts = Contexts()
    server = await Server({})
    await server.close()
    with pytest.raises(RuntimeError, match="is closed, and enters no context"):
        await server.enter_async_context(contexts.context("a"))
    assert contexts.events == []


@gen_test()
async def test_a_context_that_is_entered_while_the_server_closes_is_left():
    contexts = Contexts()
    gate = Gate()
    server = await Server({})
    entering = await gate.enter(server.enter_async_context(contexts.context("a", gate)))
    await server.close()
    gate.open()
    assert await entering == "A"
    assert contexts.events == ["enter a", "leave a"]


@gen_test()
async def test_the_reason_of_close_is_logged():
    server = await Server({})
    with captured_logger("distributed.core", level=logging.DEBUG) as log:
        await server.close(reason="the power is out")
    assert server.id in log.getvalue()
    assert "the power is out" in log.getvalue()


# Attributes


@gen_test()
async def test_status_takes_members_of_status_only():
    async with Server({}) as server:
        with pytest.raises(TypeError, match=r"Status.*'running'"):
            server.status = "running"
        assert server.status is Status.running


@gen_test()
async def test_status_can_be_set_to_any_member():
    server = Server({})
    for status in Status:
        server.status = status
        assert server.status is status
    server.status = Status.init
    await server.close()


@gen_test()
async def test_an_id_is_the_class_name_and_a_unique_uuid():
    one, other = Gated({}), Gated({})
    name, _, number = one.id.partition("-")
    assert name == "Gated"
    assert str(uuid.UUID(number)) == number
    assert one.id != other.id
    await one.close()
    await other.close()


@gen_test()
async def test_thread_id_is_the_thread_in_which_it_was_started():
    server = Server({})
    assert server.thread_id == 0
    await server
    assert server.thread_id == threading.get_ident()
    await server.close()


@gen_test()
async def test_io_loop_and_loop_are_the_running_loop():
    async with Server({}) as server:
        assert server.io_loop is server.loop is IOLoop.current()
        assert server.io_loop.asyncio_loop is asyncio.get_running_loop()


@gen_test()
async def test_subclasses_may_set_the_loop_and_use_names_of_their_own():
    class Worker(Server):
        def __init__(self):
            self._name = "alice"
            self.loop = self.io_loop = IOLoop.current()
            super().__init__({"name": lambda: self._name})

    async with Worker() as worker:
        await worker.listen("inproc://")
        async with rpc(worker.address) as remote:
            assert await remote.name() == "alice"
        assert worker.io_loop is worker.loop is IOLoop.current()


def test_a_server_lives_on_the_loop_that_starts_it():
    async def make():
        server = Server({})
        assert server.io_loop.asyncio_loop is asyncio.get_running_loop()
        return server

    server = asyncio.run(make())

    async def main():
        async with server:
            assert server.io_loop.asyncio_loop is asyncio.get_running_loop()

    asyncio.run(main())
