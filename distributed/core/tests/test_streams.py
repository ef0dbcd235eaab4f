"""One-way streams of messages: the handlers and their order, failures, and the end of a stream."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time

import pytest

from distributed.base import config
from distributed.batched import BatchedSend
from distributed.core import CommClosedError, Server, Status
from distributed.protocol import to_serialize
from distributed.tests.servers import (
    TCP,
    TRANSPORTS,
    Explosive,
    Gate,
    assert_usable,
    connected,
    quiet,
    serving,
)
from distributed.utils_test import async_poll_for, captured_logger, gen_test


class Recorder(Server):
    """A server that records the arguments of its stream handlers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.got = []
        self.done = asyncio.Event()
        self.stream_handlers.update(note=self.note, done=self.done.set)

    def note(self, **kwargs):
        self.got.append(kwargs)


@contextlib.asynccontextmanager
async def streaming(server, **request):
    """Open a comm that the server reads as a stream."""
    async with connected(server) as comm:
        await comm.write({"op": "connection_stream", "reply": False, **request})
        yield comm


@TRANSPORTS
@gen_test()
async def test_connection_stream_feeds_the_stream_handlers(transport):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        await comm.write({"op": "note", "x": 1})
        await comm.write({"op": "note", "x": 2, "y": 3})
        await comm.write({"op": "done"})
        await server.done.wait()
        assert server.got == [{"x": 1}, {"x": 2, "y": 3}]


@gen_test()
async def test_stream_handlers_are_given_to_the_server():
    done = asyncio.Event()
    async with (
        serving(TCP, stream_handlers={"done": done.set}) as server,
        streaming(server) as comm,
    ):
        await comm.write({"op": "done"})
        await done.wait()


@gen_test()
async def test_a_stream_handler_is_not_an_operation():
    async with serving(TCP, cls=Recorder) as server, connected(server) as comm:
        with quiet(logging.ERROR):
            await comm.write({"op": "note", "x": 1})
            answer = await comm.read()
        assert "No handler for op 'note'" in answer["exception_text"]


@TRANSPORTS
@gen_test()
async def test_an_operation_is_not_a_stream_handler(transport):
    called = []
    async with (
        serving(transport, {"f": lambda: called.append(1)}, Recorder) as server,
        streaming(server) as comm,
    ):
        with quiet() as log:
            await comm.write({"op": "f"})
            await comm.write({"op": "done"})
            await server.done.wait()
        assert called == []
        assert "no stream handler for op 'f'" in log.getvalue()


@gen_test()
async def test_a_stream_handler_that_is_replaced_at_run_time_is_no_longer_called():
    async with serving(TCP, cls=Recorder) as server, streaming(server) as comm:
        await comm.write({"op": "note", "x": "old"})
        await async_poll_for(lambda: server.got)
        server.stream_handlers["note"] = lambda x: server.got.append("new")
        await comm.write({"op": "note", "x": 1})
        await async_poll_for(lambda: server.got == [{"x": "old"}, "new"])


@TRANSPORTS
@gen_test()
async def test_each_message_of_a_list_is_handled(transport):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        await comm.write([{"op": "note", "x": i} for i in range(5)])
        await comm.write([])
        await comm.write([{"op": "done"}])
        await server.done.wait()
        assert server.got == [{"x": i} for i in range(5)]


class Turns:
    """A record of the messages that are handled, and of the turns of the event loop between them.

    Handling a message takes this many *seconds*.
    """

    def __init__(self, seconds=0.0005):
        self.seconds = seconds
        self.order = []
        self.handlers = {"note": self.note, "fail": self.fail}

    def note(self, x):
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        self.order.append(x)

    async def fail(self):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise ValueError("a handler failed")

    async def watch(self):
        while True:
            self.order.append("turn")
            await asyncio.sleep(0)

    def between(self, first, last):
        """Return the number of turns between two messages."""
        return self.order[self.order.index(first) : self.order.index(last)].count("turn")


@TRANSPORTS
@gen_test()
async def test_other_tasks_run_while_a_large_batch_is_handled_in_order(transport):
    turns = Turns()
    async with (
        serving(transport, stream_handlers=turns.handlers) as server,
        streaming(server) as comm,
    ):
        watching = asyncio.create_task(turns.watch())
        await comm.write([{"op": "note", "x": i} for i in range(100)])
        await async_poll_for(lambda: 99 in turns.order)
        watching.cancel()
    assert [x for x in turns.order if x != "turn"] == list(range(100))
    assert turns.between(0, 99) >= 5


@gen_test()
async def test_a_small_batch_is_handled_at_once():
    turns = Turns()
    async with (
        serving(stream_handlers=turns.handlers) as server,
        streaming(server) as comm,
    ):
        watching = asyncio.create_task(turns.watch())
        await comm.write([{"op": "note", "x": i} for i in range(8)])
        await async_poll_for(lambda: 7 in turns.order)
        watching.cancel()
    assert turns.between(0, 7) == 0


@TRANSPORTS
@gen_test()
async def test_other_tasks_run_while_many_small_batches_are_handled(transport):
    turns = Turns()
    async with (
        serving(transport, stream_handlers=turns.handlers) as server,
        streaming(server) as comm,
    ):
        watching = asyncio.create_task(turns.watch())
        for i in range(30):
            await comm.write([{"op": "note", "x": (i, j)} for j in range(4)])
        await async_poll_for(lambda: (29, 3) in turns.order)
        watching.cancel()
    runs = itertools.groupby(turns.order, key=lambda x: x == "turn")
    # 3 ms are 6 messages, and a batch of 4 that has begun is completed.
    assert max(len(list(run)) for is_turn, run in runs if not is_turn) <= 12


@gen_test()
async def test_streams_with_large_batches_share_the_time_between_turns_of_other_tasks():
    turns = Turns(seconds=0.00005)
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(stream_handlers=turns.handlers))
        comms = [await stack.enter_async_context(streaming(server)) for _ in range(4)]
        watching = asyncio.create_task(turns.watch())
        for i, comm in enumerate(comms):
            await comm.write([{"op": "note", "x": (i, x)} for x in range(400)])
        await async_poll_for(lambda: all((i, 399) in turns.order for i in range(4)))
        watching.cancel()
    runs = itertools.groupby(turns.order, key=lambda x: x == "turn")
    # One stream alone may handle 60 messages in 3 ms.
    assert max(len(list(run)) for is_turn, run in runs if not is_turn) < 180


@gen_test()
async def test_a_handler_that_fails_between_messages_of_a_large_batch_ends_the_stream():
    turns = Turns()
    async with (
        serving(stream_handlers=turns.handlers) as server,
        streaming(server) as comm,
    ):
        with quiet(logging.ERROR) as log:
            await comm.write([{"op": "fail"}] + [{"op": "note", "x": i} for i in range(100)])
            with pytest.raises(CommClosedError):
                await comm.read()
        assert 99 not in turns.order
        assert "a handler failed" in log.getvalue()


@TRANSPORTS
@gen_test()
async def test_extra_is_passed_to_every_handler(transport):
    async with (
        serving(transport, cls=Recorder) as server,
        streaming(server, extra={"worker": "alice"}) as comm,
    ):
        await comm.write([{"op": "note", "x": 1}, {"op": "note"}])
        await async_poll_for(lambda: len(server.got) == 2)
        assert server.got == [{"worker": "alice", "x": 1}, {"worker": "alice"}]


@TRANSPORTS
@gen_test()
async def test_a_handler_can_turn_its_comm_into_a_stream(transport):
    # As a scheduler does when a worker registers: it answers, then reads a stream.
    class Scheduler(Recorder):
        async def register(self, comm, name):
            await comm.write({"status": "OK"})
            await self.handle_stream(comm, extra={"worker": name})
            return Status.dont_reply

    async with serving(transport, cls=Scheduler) as server, connected(server) as comm:
        server.handlers["register"] = server.register
        await comm.write({"op": "register", "name": "alice"})
        assert await comm.read() == {"status": "OK"}
        await comm.write([{"op": "note", "x": 1}])
        await async_poll_for(lambda: server.got == [{"worker": "alice", "x": 1}])


@TRANSPORTS
@gen_test()
async def test_a_stream_may_run_in_both_directions(transport):
    class Scheduler(Recorder):
        async def register(self, comm):
            await comm.write({"op": "note", "x": "welcome"})
            await self.handle_stream(comm)
            return Status.dont_reply

    async with serving(transport, cls=Scheduler) as server, connected(server) as comm:
        server.handlers["register"] = server.register
        peer = await Recorder({})
        await comm.write({"op": "register"})
        handling = asyncio.create_task(peer.handle_stream(comm))
        await async_poll_for(lambda: peer.got == [{"x": "welcome"}])
        await comm.write({"op": "close-stream"})
        await handling
        await peer.close()


@TRANSPORTS
@gen_test()
async def test_messages_of_a_batched_send_arrive_in_order(transport):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        batched = BatchedSend(interval="2 ms")
        batched.start(comm)
        for i in range(500):
            batched.send({"op": "note", "x": i})
            if i % 7 == 0:
                await asyncio.sleep(0)
        batched.send({"op": "done"})
        await server.done.wait()
        assert server.got == [{"x": i} for i in range(500)]
        await batched.close()


@TRANSPORTS
@gen_test()
async def test_handlers_start_in_the_order_of_the_messages_and_coroutines_run_concurrently(
    transport,
):
    gate = Gate()
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:

        async def slowly(x):
            server.got.append(("begin", x))
            await gate.handle()
            server.got.append(("end", x))

        server.stream_handlers["slowly"] = slowly
        server.stream_handlers["at_once"] = lambda x: server.got.append(("at once", x))
        await comm.write([{"op": "slowly", "x": 1}, {"op": "at_once", "x": 2}])
        await comm.write({"op": "slowly", "x": 3})
        await comm.write({"op": "at_once", "x": 4})
        await comm.write({"op": "done"})
        await server.done.wait()
        assert server.got == [("begin", 1), ("at once", 2), ("begin", 3), ("at once", 4)]
        gate.open()
        await async_poll_for(lambda: server.got[4:] == [("end", 1), ("end", 3)])


@TRANSPORTS
@gen_test()
async def test_a_stream_is_not_read_while_the_maximum_number_of_its_handlers_runs(transport):
    limit = config.get_int("distributed.comm.max-stream-handlers")
    assert limit is not None
    gate = Gate()
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:

        async def wait(x):
            server.got.append(x)
            await gate.handle()

        server.stream_handlers["wait"] = wait
        await comm.write([{"op": "wait", "x": i} for i in range(limit + 5)])
        await comm.write({"op": "done"})
        await async_poll_for(lambda: len(server.got) >= limit)
        async with connected(server) as another:
            # The server had every opportunity to read on.
            for _ in range(20):
                await assert_usable(another)
        assert server.got == list(range(limit))
        assert not server.done.is_set()
        gate.open()
        await server.done.wait()
        assert server.got == list(range(limit + 5))


@pytest.mark.parametrize("limit", [0, 1])
@gen_test()
async def test_with_a_maximum_of_one_handlers_run_one_after_the_other(limit):
    with config.set({"distributed.comm.max-stream-handlers": limit}):
        server = Recorder({})
    async with server:
        await server.listen(TCP)

        async def slowly(x):
            server.got.append(("begin", x))
            for _ in range(20):
                await asyncio.sleep(0)
            server.got.append(("end", x))

        server.stream_handlers["slowly"] = slowly
        async with streaming(server) as comm:
            await comm.write([{"op": "slowly", "x": 1}, {"op": "slowly", "x": 2}, {"op": "done"}])
            await server.done.wait()
        assert server.got == [("begin", 1), ("end", 1), ("begin", 2), ("end", 2)]


@TRANSPORTS
@gen_test()
async def test_a_handler_that_waits_in_one_stream_does_not_delay_another(transport):
    gate = Gate()
    async with (
        serving(transport, cls=Recorder) as server,
        streaming(server) as one,
        streaming(server) as other,
    ):
        server.stream_handlers["wait"] = gate.handle
        await one.write({"op": "wait"})
        await gate.entered[None].wait()
        await other.write({"op": "done"})
        await server.done.wait()
        gate.open()


# Failures


def fail(x=None):
    raise ZeroDivisionError("no luck")


async def fail_later(x=None):
    await asyncio.sleep(0)
    raise ZeroDivisionError("no luck")


async def fail_about_another_comm(x=None):
    raise CommClosedError("no luck with the database")


async def fail_by_cancellation(x=None):
    raise asyncio.CancelledError("no luck")


async def fail_by_generator_exit(x=None):
    raise GeneratorExit("no luck")


def fail_by_generator_exit_at_once(x=None):
    raise GeneratorExit("no luck")


class RefusesNotes(ZeroDivisionError):
    def __setattr__(self, name, value):
        raise AttributeError(name)


FAILING = pytest.mark.parametrize(
    "handler",
    [
        fail,
        fail_later,
        fail_about_another_comm,
        fail_by_cancellation,
        fail_by_generator_exit,
        fail_by_generator_exit_at_once,
    ],
)


@TRANSPORTS
@FAILING
@gen_test()
async def test_a_handler_that_fails_is_logged_once_and_ends_the_stream(transport, handler):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        server.stream_handlers["fail"] = handler
        with quiet(logging.INFO) as log:
            await comm.write([{"op": "note", "x": 1}, {"op": "fail", "x": 2}])
            with pytest.raises(CommClosedError):
                await comm.read()
            await async_poll_for(lambda: not server._comms)
        assert server.got == [{"x": 1}]
        lines = [line for line in log.getvalue().splitlines() if line.startswith("Exception")]
        assert len(lines) == 1
        assert "no luck" in log.getvalue() or handler is fail_by_cancellation
        assert f"tream handler of op 'fail' in Recorder {server.address}" in log.getvalue()
        assert f"message from {comm.local_address}" in log.getvalue()
        async with connected(server) as another:
            await assert_usable(another)


@TRANSPORTS
@pytest.mark.parametrize("handler", [fail, fail_later])
@gen_test()
async def test_messages_behind_the_one_whose_handler_failed_are_not_handled(transport, handler):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        server.stream_handlers["fail"] = handler
        with quiet(logging.ERROR):
            await comm.write({"op": "fail"})
            with pytest.raises(CommClosedError):
                await comm.read()
        async with streaming(server) as another:
            await another.write({"op": "note"})
            await async_poll_for(lambda: server.got)
        server.got.clear()
        async with streaming(server) as comm:
            server.stream_handlers["fail"] = fail
            with quiet(logging.ERROR):
                await comm.write([{"op": "fail", "x": 1}, {"op": "note", "x": 2}])
                await async_poll_for(lambda: not server._comms)
        assert server.got == []


@TRANSPORTS
@FAILING
@gen_test()
async def test_handle_stream_raises_the_error_of_a_handler_as_a_role_expects(transport, handler):
    caught = []

    class Scheduler(Recorder):
        async def register(self, comm):
            try:
                await self.handle_stream(comm, extra={"x": "alice"})
            except Exception as exc:
                caught.append(exc)
                raise
            finally:
                self.done.set()

    async with serving(transport, cls=Scheduler) as server, connected(server) as comm:
        server.handlers["register"] = server.register
        server.stream_handlers["fail"] = handler
        await comm.write({"op": "register"})
        with quiet(logging.ERROR):
            await comm.write({"op": "fail"})
            await server.done.wait()
            await async_poll_for(lambda: not server._comms)
        (error,) = caught
        assert isinstance(error, ZeroDivisionError | CommClosedError | RuntimeError)
        assert "op 'fail'" in "".join([str(error), *getattr(error, "__notes__", ())])


@TRANSPORTS
@gen_test()
async def test_a_handler_that_fails_ends_a_stream_that_waits_and_cancels_its_other_handlers(
    transport,
):
    gate = Gate()
    cancelled = asyncio.Event()

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fail_at_the_gate():
        await gate.handle()
        raise ZeroDivisionError("no luck")

    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        server.stream_handlers.update(wait=wait, fail=fail_at_the_gate)
        await comm.write([{"op": "wait"}, {"op": "fail"}])
        await gate.entered[None].wait()
        with quiet(logging.ERROR) as log:
            gate.open()
            with pytest.raises(CommClosedError):
                await comm.read()
            await cancelled.wait()
            await async_poll_for(lambda: not server._comms)
        assert log.getvalue().count("ZeroDivisionError: no luck") == 1
        assert "'wait'" not in log.getvalue()


@gen_test()
async def test_an_error_that_refuses_notes_ends_the_stream_too():
    async def refuse():
        raise RefusesNotes("no luck")

    async with serving(TCP, cls=Recorder) as server, streaming(server) as comm:
        server.stream_handlers["fail"] = refuse
        with quiet(logging.WARNING) as log:
            await comm.write({"op": "fail"})
            with pytest.raises(CommClosedError):
                await comm.read()
            await async_poll_for(lambda: not server._comms)
        assert "RefusesNotes: no luck" in log.getvalue()


@pytest.mark.parametrize(
    "message",
    [{"op": "fail", "unexpected": 1}, {"op": "fail", 7: 1}],
    ids=["unexpected", "no name"],
)
@gen_test()
async def test_arguments_that_do_not_fit_are_logged_and_end_the_stream(message):
    async with serving(TCP, cls=Recorder) as server, streaming(server) as comm:
        server.stream_handlers["fail"] = fail
        with quiet() as log:
            await comm.write([message])
            with pytest.raises(CommClosedError):
                await comm.read()
            await async_poll_for(lambda: not server._comms)
        assert "TypeError: " in log.getvalue()
        assert "Traceback" not in log.getvalue()


@TRANSPORTS
@gen_test()
async def test_an_argument_of_a_message_replaces_that_of_extra(transport):
    async with (
        serving(transport, cls=Recorder) as server,
        streaming(server, extra={"client": "ours"}) as comm,
    ):
        # As a Client of the original does when it subscribes to a topic.
        await comm.write([{"op": "note", "client": "theirs", "topic": 1}, {"op": "note", "y": 1}])
        await async_poll_for(lambda: len(server.got) == 2)
        assert server.got == [{"client": "theirs", "topic": 1}, {"client": "ours", "y": 1}]


@TRANSPORTS
@pytest.mark.parametrize("op", ["nope", 5, None, ("note",), {"note": 1}, b"note"])
@gen_test()
async def test_an_unknown_op_is_logged_and_the_next_message_handled(transport, op):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        with quiet() as log:
            await comm.write({"op": op, "x": 1})
            await comm.write([{"op": op}, {"op": "done"}])
            await server.done.wait()
        assert log.getvalue().count("no stream handler for op") == 2
        assert repr(op) in log.getvalue()
        assert comm.local_address in log.getvalue()
        assert server.got == []


@TRANSPORTS
@pytest.mark.parametrize("message", ["hello", 5, None, {}, {"x": 1}, b"", [["nested"]], [None]])
@gen_test()
async def test_an_odd_message_is_logged_and_the_next_message_handled(transport, message):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        with quiet() as log:
            await comm.write(message)
            await comm.write({"op": "done"})
            await server.done.wait()
        assert "no stream handler" in log.getvalue()
        assert server.got == []


@TRANSPORTS
@gen_test()
async def test_the_ok_of_the_request_that_began_the_stream_is_ignored(transport):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        with quiet() as log:
            await comm.write("OK")
            await comm.write({"op": "done"})
            await server.done.wait()
        assert "no stream handler" not in log.getvalue()


@gen_test()
async def test_a_message_that_cannot_be_unpickled_ends_the_stream_and_is_logged():
    # Later messages may depend on the lost one, so the peer has to notice.
    async with serving(TCP, cls=Recorder) as server, streaming(server) as comm:
        with quiet(logging.ERROR) as log:
            await comm.write({"op": "note", "x": to_serialize(Explosive())})
            with pytest.raises(CommClosedError):
                await comm.read()
        assert "cannot be unpickled" in log.getvalue()
        async with connected(server) as another:
            await assert_usable(another)


# The end


@TRANSPORTS
@gen_test()
async def test_close_stream_ends_the_stream_and_closes_the_comm(transport):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        await comm.write([{"op": "note", "x": 1}, {"op": "close-stream"}, {"op": "note", "x": 2}])
        with pytest.raises(CommClosedError):
            await comm.read()
        assert server.got == [{"x": 1}]
        await async_poll_for(lambda: not server._comms)


@TRANSPORTS
@gen_test()
async def test_a_stream_is_not_answered(transport):
    async with serving(transport, cls=Recorder) as server, connected(server) as comm:
        await comm.write({"op": "connection_stream"})
        await comm.write({"op": "close-stream"})
        with pytest.raises(CommClosedError):
            await comm.read()


@TRANSPORTS
@gen_test()
async def test_a_peer_that_disconnects_ends_the_stream_without_an_error(transport):
    async with serving(transport, cls=Recorder) as server:
        with captured_logger("distributed", level=logging.WARNING) as log:
            async with streaming(server) as comm:
                await comm.write({"op": "note", "x": 1})
                await async_poll_for(lambda: server.got)
            await async_poll_for(lambda: not server._comms)
        assert log.getvalue() == ""


@TRANSPORTS
@gen_test()
async def test_the_life_of_a_stream_is_logged_as_by_the_original(transport, caplog):
    async with serving(transport, cls=Recorder) as server:
        with caplog.at_level(logging.INFO, "distributed"):
            async with streaming(server) as one:
                await one.write({"op": "close-stream"})
                await async_poll_for(lambda: not server._comms)
            async with streaming(server) as other:
                await other.write({"op": "done"})
                await server.done.wait()
            await async_poll_for(lambda: not server._comms)
    assert [record for record in caplog.record_tuples if record[0] == "distributed.core"] == [
        ("distributed.core", logging.INFO, text)
        for text in (
            f"Starting established connection to {one.local_address}",
            f"Received 'close-stream' from {one.local_address}; closing.",
            f"Starting established connection to {other.local_address}",
            f"Connection to {other.local_address} has been closed.",
        )
    ]


@TRANSPORTS
@gen_test()
async def test_messages_sent_before_the_peer_disconnects_are_handled(transport):
    async with serving(transport, cls=Recorder) as server:
        async with streaming(server) as comm:
            for i in range(50):
                await comm.write({"op": "note", "x": i})
        await async_poll_for(lambda: len(server.got) == 50)
        assert server.got == [{"x": i} for i in range(50)]


@TRANSPORTS
@gen_test()
async def test_handle_stream_returns_when_the_stream_ends(transport):
    ended = asyncio.Event()

    class Scheduler(Recorder):
        async def register(self, comm):
            await self.handle_stream(comm)
            assert comm.closed()
            ended.set()

    async with serving(transport, cls=Scheduler) as server:
        server.handlers["register"] = server.register
        async with connected(server) as comm:
            await comm.write({"op": "register"})
        await ended.wait()


@TRANSPORTS
@gen_test()
async def test_a_stream_ends_when_its_running_handlers_have_ended(transport):
    gate = Gate()
    async with serving(transport, cls=Recorder) as server:
        server.stream_handlers["wait"] = gate.handle
        async with streaming(server) as comm:
            await comm.write([{"op": "wait"}, {"op": "close-stream"}])
            with pytest.raises(CommClosedError):
                await comm.read()
        async with connected(server) as another:
            await assert_usable(another)
            assert "connection_stream" in server._comms.values()
            gate.open()
            await async_poll_for(lambda: "connection_stream" not in server._comms.values())


@TRANSPORTS
@gen_test()
async def test_close_lets_running_handlers_finish(transport):
    gate = Gate()
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:

        async def wait():
            await gate.handle()
            server.note(ended=True)

        server.stream_handlers["wait"] = wait
        await comm.write({"op": "wait"})
        await gate.entered[None].wait()
        closing = asyncio.create_task(server.close(timeout=60))
        await async_poll_for(lambda: server._close_begun)
        gate.open()
        await closing
        assert server.got == [{"ended": True}]


@TRANSPORTS
@gen_test()
async def test_close_cancels_handlers_that_do_not_finish(transport):
    gate = Gate()
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        server.stream_handlers["wait"] = gate.handle
        await comm.write({"op": "wait"})
        await gate.entered[None].wait()
        with quiet(logging.WARNING) as log:
            await server.close(timeout=0)
        assert gate.cancelled[None].is_set()
        assert log.getvalue() == ""


@TRANSPORTS
@gen_test()
async def test_cancelling_handle_stream_cancels_its_handlers(transport):
    gate = Gate()
    async with serving(transport, cls=Recorder) as server, connected(server) as comm:
        cancelled = asyncio.Event()

        async def wait():
            try:
                await gate.handle()
            finally:
                cancelled.set()

        async def start(comm):
            await comm.write({"op": "wait"})
            return Status.dont_reply

        server.handlers["start"] = start
        async with Recorder({}) as peer:
            peer.stream_handlers["wait"] = wait
            await comm.write({"op": "start"})
            handling = asyncio.create_task(peer.handle_stream(comm))
            await gate.entered[None].wait()
            handling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await handling
            await cancelled.wait()
            assert comm.closed()


@TRANSPORTS
@gen_test()
async def test_a_handler_may_close_the_server(transport):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        server.stream_handlers["terminate"] = server.close
        await comm.write({"op": "terminate"})
        with pytest.raises(CommClosedError):
            await comm.read()
        await server.finished()
        assert server.status is Status.closed


@TRANSPORTS
@gen_test()
async def test_close_ends_streams(transport):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        await comm.write({"op": "done"})
        await server.done.wait()
        await server.close(timeout=0.05)
        with pytest.raises(CommClosedError):
            await comm.read()
        assert not server._comms


@TRANSPORTS
@gen_test()
async def test_a_stream_is_an_op_in_progress(transport):
    async with serving(transport, cls=Recorder) as server, streaming(server) as comm:
        await comm.write({"op": "done"})
        await server.done.wait()
        assert list(server._comms.values()) == ["connection_stream"]
        assert server.incoming_comms_active == 1
