from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from distributed.base import config
from distributed.batched import BatchedSend
from distributed.comm import connect, listen
from distributed.comm.core import Comm, CommClosedError
from distributed.protocol import to_serialize
from distributed.utils_test import async_poll_for, captured_logger, gen_test

over_each_transport = pytest.mark.parametrize("listen_at", ["tcp://127.0.0.1:0", "inproc://"])


class Reader:
    """The other end of comms: keeps the lists that it reads, or reads nothing while `paused`."""

    def __init__(self) -> None:
        self.address = ""
        self.batches: list[list[Any]] = []
        self.comms: list[Comm] = []
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()
        self.resumed.set()
        self._news = asyncio.Condition()

    @property
    def messages(self) -> list[Any]:
        return [msg for batch in self.batches for msg in batch]

    async def handle(self, comm: Comm) -> None:
        self.comms.append(comm)
        try:
            while True:
                await self.resumed.wait()
                batch = list(await comm.read())
                async with self._news:
                    self.batches.append(batch)
                    self._news.notify_all()
        except CommClosedError:
            pass
        finally:
            await comm.close()

    async def has(self, count: int) -> None:
        """Wait until so many messages have arrived."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.messages) >= count)


@asynccontextmanager
async def reader(listen_at: str) -> AsyncIterator[Reader]:
    peer = Reader()
    listener = await listen(listen_at, peer.handle)
    peer.address = listener.contact_address
    try:
        yield peer
    finally:
        peer.resumed.set()
        for comm in peer.comms:
            comm.abort()
        await listener.stop() if asyncio.iscoroutinefunction(listener.stop) else listener.stop()


class ScriptedComm(Comm):
    """A comm without a peer, for failures that no peer can be made to cause at a given moment."""

    def __init__(self, *, fail_after: int | None = None) -> None:
        super().__init__()
        self.written: list[list[Any]] = []
        self.arguments: list[tuple[Any, Any]] = []
        self.fail_after = fail_after
        self.gate = asyncio.Event()
        self.gate.set()
        self._closed = False

    async def read(self, deserializers=None):
        raise NotImplementedError

    async def write(self, msg, serializers=None, on_error=None):
        self.arguments.append((serializers, on_error))
        if self._closed:
            raise CommClosedError("it was closed before")
        await self.gate.wait()
        if self._closed:
            raise CommClosedError("it was closed meanwhile")
        if self.fail_after is not None and len(self.written) >= self.fail_after:
            self.abort()
            raise CommClosedError("it broke")
        self.written.append(list(msg))
        return len(msg)

    async def close(self):
        self.abort()

    def abort(self):
        self._closed = True
        self.gate.set()

    def closed(self):
        return self._closed

    @property
    def local_address(self):
        return "scripted://here"

    @property
    def peer_address(self):
        return "scripted://there"

    @property
    def messages(self) -> list[Any]:
        return [msg for batch in self.written for msg in batch]


# Batches and their interval


@over_each_transport
@gen_test()
async def test_messages_arrive_in_order(listen_at):
    async with reader(listen_at) as peer:
        stream = BatchedSend(interval="1ms")
        stream.start(await connect(peer.address))
        for i in range(1000):
            stream.send(i)
            if i % 100 == 0:
                await asyncio.sleep(0)
        await peer.has(1000)
        assert peer.messages == list(range(1000))
        await stream.close()


@over_each_transport
@gen_test()
async def test_what_is_sent_in_one_turn_of_the_loop_is_one_batch(listen_at):
    async with reader(listen_at) as peer:
        stream = BatchedSend(interval="1ms")
        stream.start(await connect(peer.address))
        stream.send("a")
        stream.send("b", "c")
        await peer.has(3)
        assert peer.batches == [["a", "b", "c"]]
        await stream.close()


@gen_test()
async def test_sending_nothing_writes_nothing():
    async with reader("inproc://") as peer:
        stream = BatchedSend(interval="1ms")
        stream.start(await connect(peer.address))
        stream.send()
        stream.send(1)
        await peer.has(1)
        await stream.close()
        assert peer.batches == [[1]]


@over_each_transport
@gen_test()
async def test_the_first_message_does_not_wait(listen_at):
    async with reader(listen_at) as peer:
        stream = BatchedSend(interval="1 hour")
        stream.start(await connect(peer.address))
        stream.send("now")
        await peer.has(1)
        await stream.close()


@gen_test()
async def test_later_messages_wait_for_the_interval_together():
    async with reader("inproc://") as peer:
        stream = BatchedSend(interval="100ms")
        stream.start(await connect(peer.address))
        start = asyncio.get_running_loop().time()
        stream.send(1)
        await peer.has(1)
        stream.send(2)
        await asyncio.sleep(0)
        stream.send(3)
        await peer.has(3)
        assert asyncio.get_running_loop().time() - start >= 0.099
        assert peer.batches == [[1], [2, 3]]
        await stream.close()


@pytest.mark.parametrize(
    ("interval", "seconds"), [("2ms", 0.002), ("1s", 1), (10, 0.010), (0, 0), (0.5, 0.0005)]
)
def test_an_interval_without_a_unit_is_in_milliseconds(interval, seconds):
    assert BatchedSend(interval=interval).interval == pytest.approx(seconds)


@gen_test()
async def test_messages_wait_for_the_start():
    async with reader("inproc://") as peer:
        stream = BatchedSend(interval="1ms")
        stream.send(1, 2)
        stream.send(3)
        assert stream.buffer == [1, 2, 3]
        assert not stream.closed()
        stream.start(await connect(peer.address))
        await peer.has(3)
        assert peer.batches == [[1, 2, 3]]
        assert stream.buffer == []
        await stream.close()


def test_it_can_be_made_and_filled_without_a_running_loop():
    stream = BatchedSend(interval="1ms")
    stream.send(1)
    assert stream.buffer == [1]


@gen_test()
async def test_it_writes_from_the_loop_that_it_is_given():
    stream = BatchedSend(interval="1ms", loop=IOLoop.current())
    comm = ScriptedComm()
    stream.start(comm)
    stream.send(1)
    await async_poll_for(lambda: comm.messages == [1], timeout=5)
    await stream.close()


@gen_test()
async def test_serializers_reach_the_comm_and_errors_are_raised_here():
    stream = BatchedSend(interval="1ms", serializers=["msgpack"])
    comm = ScriptedComm()
    stream.start(comm)
    stream.send(1)
    await stream.close()
    assert comm.arguments == [(["msgpack"], "raise")]


@gen_test()
async def test_an_idle_stream_has_no_task():
    stream = BatchedSend(interval="1ms")
    comm = ScriptedComm()
    tasks = asyncio.all_tasks()
    stream.start(comm)
    stream.send(1)
    await async_poll_for(lambda: comm.messages == [1], timeout=5)
    await async_poll_for(lambda: asyncio.all_tasks() == tasks, timeout=5)
    stream.send(2)
    await async_poll_for(lambda: comm.messages == [1, 2], timeout=5)
    await stream.close()


# What can be read from it


@over_each_transport
@gen_test()
async def test_it_counts_messages_batches_and_bytes(listen_at):
    async with reader(listen_at) as peer:
        stream = BatchedSend(interval="1ms")
        stream.start(await connect(peer.address))
        stream.send(1, 2)
        await peer.has(2)
        stream.send(3)
        await peer.has(3)
        await stream.close()
        assert (stream.message_count, stream.batch_count) == (3, 2)
        assert stream.byte_count > 0


@gen_test()
async def test_the_log_keeps_the_last_batches_as_configured():
    with config.set({"distributed.admin.low-level-log-length": 2}):
        stream = BatchedSend(interval=0)
    comm = ScriptedComm()
    stream.start(comm)
    for i in range(4):
        stream.send(i)
        await async_poll_for(lambda: len(comm.messages) > i, timeout=5)  # noqa: B023
    await stream.close()
    assert list(stream.recent_message_log) == [[2], [3]]


@gen_test()
async def test_the_log_does_not_keep_large_batches():
    async with reader("tcp://127.0.0.1:0") as peer:
        stream = BatchedSend(interval="1ms")
        stream.start(await connect(peer.address))
        stream.send(b"x" * 2_000_000)
        await stream.close()
        assert list(stream.recent_message_log) == ["large-message"]


@gen_test()
async def test_repr_tells_the_buffer_or_that_it_is_closed():
    stream = BatchedSend(interval="1ms")
    stream.send(1, 2)
    assert repr(stream) == "<BatchedSend: 2 in buffer>"
    stream.abort()
    assert repr(stream) == "<BatchedSend: closed>"


# The end


@over_each_transport
@gen_test()
async def test_close_delivers_what_is_in_the_buffer_without_waiting(listen_at):
    async with reader(listen_at) as peer:
        stream = BatchedSend(interval="1 hour")
        comm = await connect(peer.address)
        stream.start(comm)
        stream.send(1)
        await peer.has(1)
        stream.send(2)
        await stream.close()
        assert comm.closed()
        assert stream.closed()
        await peer.has(2)
        assert peer.batches == [[1], [2]]


@gen_test()
async def test_close_ends_a_wait_for_the_interval():
    stream = BatchedSend(interval="1 hour")
    comm = ScriptedComm()
    stream.start(comm)
    stream.send(1)
    await async_poll_for(lambda: comm.messages == [1], timeout=5)
    stream.send(2)
    await asyncio.sleep(0)  # the background task now waits for the hour to pass
    await stream.close(timeout=10)
    assert comm.messages == [1, 2]


@gen_test()
async def test_what_is_sent_while_it_closes_is_delivered():
    stream = BatchedSend(interval="1ms")
    comm = ScriptedComm()
    comm.gate.clear()
    stream.start(comm)
    stream.send(1)
    closing = asyncio.create_task(stream.close())
    await asyncio.sleep(0)
    stream.send(2)
    comm.gate.set()
    await closing
    assert comm.messages == [1, 2]


@gen_test()
async def test_close_twice_does_no_more_than_once():
    stream = BatchedSend(interval="1ms")
    comm = ScriptedComm()
    stream.start(comm)
    stream.send(1)
    await asyncio.gather(stream.close(), stream.close())
    await stream.close()
    assert comm.messages == [1]


@over_each_transport
@gen_test()
async def test_send_raises_after_close(listen_at):
    async with reader(listen_at) as peer:
        stream = BatchedSend(interval="1ms")
        stream.start(await connect(peer.address))
        await stream.close()
        with pytest.raises(CommClosedError, match="already closed"):
            stream.send(1)
        assert stream.buffer == []
        assert stream.message_count == 0


@over_each_transport
@gen_test()
async def test_send_raises_after_the_peer_closed(listen_at):
    async with reader(listen_at) as peer:
        stream = BatchedSend(interval="1ms")
        comm = await connect(peer.address)
        stream.start(comm)
        stream.send(1)
        await peer.has(1)
        peer.comms[0].abort()
        await async_poll_for(comm.closed, timeout=5)
        assert stream.closed()
        with pytest.raises(CommClosedError, match="already closed"):
            stream.send(2)
        await stream.close()


@gen_test()
async def test_closing_what_was_never_started_keeps_the_messages_readable():
    stream = BatchedSend(interval="1ms")
    stream.send(1)
    with captured_logger("distributed.batched", level=logging.INFO) as log:
        await stream.close()
    assert stream.closed()
    assert stream.buffer == [1]
    assert "1 messages not delivered" in log.getvalue()
    with pytest.raises(CommClosedError):
        stream.send(2)


@over_each_transport
@gen_test()
async def test_abort_closes_at_once_and_forgets_the_buffer(listen_at):
    async with reader(listen_at) as peer:
        stream = BatchedSend(interval="1 hour")
        comm = await connect(peer.address)
        stream.start(comm)
        stream.send(1)
        stream.abort()
        assert comm.closed()
        assert stream.closed()
        assert stream.buffer == []
        await asyncio.sleep(0)
        assert stream.buffer == []


@gen_test()
async def test_abort_during_a_write_forgets_that_batch_too():
    stream = BatchedSend(interval="1ms")
    comm = ScriptedComm()
    comm.gate.clear()
    stream.start(comm)
    stream.send(1)
    await asyncio.sleep(0)
    stream.abort()
    again = ScriptedComm()
    stream.start(again)
    stream.send(2)
    await stream.close()
    assert again.messages == [2]


def test_abort_before_the_start_closes():
    stream = BatchedSend(interval="1ms")
    stream.send(1)
    stream.abort()
    assert stream.closed()


@gen_test()
async def test_close_gives_up_after_the_timeout_and_keeps_what_is_left():
    async with reader("tcp://127.0.0.1:0") as peer:
        peer.resumed.clear()
        stream = BatchedSend(interval=0)
        comm = await connect(peer.address)
        stream.start(comm)
        large = b"x" * 100_000_000
        stream.send(large)
        await async_poll_for(lambda: stream.buffer == [], timeout=5)
        stream.send("small")
        with pytest.raises(TimeoutError, match=r"could not deliver 2 messages .* within 0.1 s"):
            await stream.close(timeout="100ms")
        assert comm.closed()
        assert stream.closed()
        assert [len(msg) for msg in stream.buffer] == [100_000_000, 5]


@gen_test()
async def test_a_close_that_is_cancelled_aborts():
    stream = BatchedSend(interval="1ms")
    comm = ScriptedComm()
    comm.gate.clear()
    stream.start(comm)
    stream.send(1)
    closing = asyncio.create_task(stream.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert comm.closed()
    assert stream.closed()


# Failures


@gen_test()
async def test_a_batch_that_could_not_be_written_is_put_back_in_front():
    stream = BatchedSend(interval=0)
    comm = ScriptedComm(fail_after=1)
    comm.gate.clear()
    stream.start(comm)
    stream.send(1)
    await asyncio.sleep(0)
    stream.send(2, 3)
    comm.gate.set()
    await async_poll_for(comm.closed, timeout=5)
    assert comm.messages == [1]
    assert stream.buffer == [2, 3]
    assert stream.batch_count == 1


@gen_test()
async def test_messages_sent_during_a_write_that_fails_stay_behind_its_batch():
    stream = BatchedSend(interval=0)
    comm = ScriptedComm(fail_after=0)
    comm.gate.clear()
    stream.start(comm)
    stream.send(1, 2)
    await asyncio.sleep(0)
    stream.send(3)
    comm.gate.set()
    await async_poll_for(comm.closed, timeout=5)
    assert stream.buffer == [1, 2, 3]


@gen_test()
async def test_a_comm_that_breaks_is_logged_without_alarm():
    with captured_logger("distributed.batched", level=logging.INFO) as log:
        stream = BatchedSend(interval=0)
        comm = ScriptedComm(fail_after=0)
        stream.start(comm)
        stream.send(1)
        await async_poll_for(lambda: stream.buffer == [1] and comm.closed(), timeout=5)
    assert "scripted://there" in log.getvalue()
    assert "Traceback" not in log.getvalue()


@over_each_transport
@gen_test()
async def test_a_start_with_another_comm_sends_what_is_left(listen_at):
    async with reader(listen_at) as peer:
        stream = BatchedSend(interval="1ms")
        broken = ScriptedComm(fail_after=0)
        stream.start(broken)
        stream.send(1, 2)
        await async_poll_for(broken.closed, timeout=5)
        stream.start(await connect(peer.address))
        stream.send(3)
        await peer.has(3)
        assert peer.messages == [1, 2, 3]
        await stream.close()


@gen_test()
async def test_a_start_before_the_broken_write_has_ended_keeps_the_order():
    stream = BatchedSend(interval=0)
    broken, good = ScriptedComm(), ScriptedComm()
    broken.gate.clear()
    stream.start(broken)
    stream.send(1)
    await asyncio.sleep(0)
    broken.abort()
    stream.start(good)
    stream.send(2)
    await stream.close()
    assert good.messages == [1, 2]


@gen_test()
async def test_it_can_be_started_again_after_close():
    stream = BatchedSend(interval=0)
    stream.start(ScriptedComm())
    stream.send(1)
    await stream.close()
    comm = ScriptedComm()
    stream.start(comm)
    assert not stream.closed()
    stream.send(2)
    await stream.close()
    assert comm.messages == [2]


@gen_test()
async def test_a_start_while_another_comm_is_open_is_refused():
    stream = BatchedSend(interval=0)
    stream.start(ScriptedComm())
    with pytest.raises(RuntimeError, match="still sending on"):
        stream.start(ScriptedComm())
    await stream.close()


@gen_test()
async def test_a_message_that_cannot_be_serialized_ends_the_stream_after_those_before_it():
    async with reader("tcp://127.0.0.1:0") as peer:
        stream = BatchedSend(interval="1ms")
        comm = await connect(peer.address)
        stream.start(comm)
        lock = threading.Lock()
        with captured_logger("distributed.batched") as log:
            stream.send("before", {"lock": to_serialize(lock)}, "after")
            await async_poll_for(stream.closed, timeout=5)
            await async_poll_for(lambda: stream.buffer != [], timeout=5)
        await peer.has(1)
        assert peer.messages == ["before"]
        assert stream.buffer == ["after"]
        assert comm.closed()
        assert "could not be serialized" in log.getvalue()
        assert "lock" in log.getvalue()
        with pytest.raises(CommClosedError, match="could not be serialized") as info:
            stream.send("more")
        assert isinstance(info.value.__cause__, TypeError)


@gen_test()
async def test_a_start_after_a_message_that_cannot_be_serialized_goes_on_behind_it():
    async with reader("tcp://127.0.0.1:0") as peer:
        stream = BatchedSend(interval="1ms")
        stream.start(await connect(peer.address))
        with captured_logger("distributed.batched"):
            stream.send(1, to_serialize(threading.Lock()), 2)
            await async_poll_for(lambda: stream.buffer == [2], timeout=5)
        stream.start(await connect(peer.address))
        await peer.has(2)
        assert peer.messages == [1, 2]
        await stream.close()


@gen_test()
async def test_the_background_task_can_be_cancelled_without_loss():
    stream = BatchedSend(interval=0)
    comm = ScriptedComm()
    comm.gate.clear()
    tasks = asyncio.all_tasks()
    stream.start(comm)
    stream.send(1)
    await asyncio.sleep(0)
    (task,) = asyncio.all_tasks() - tasks
    task.cancel()
    await asyncio.wait({task})
    assert stream.buffer == [1]
    comm.gate.set()
    await stream.close()
    assert comm.messages == [1]


@gen_test()
async def test_the_background_task_can_be_cancelled_before_it_begins():
    stream = BatchedSend(interval=0)
    comm = ScriptedComm()
    tasks = asyncio.all_tasks()
    stream.start(comm)
    stream.send(1)
    (task,) = asyncio.all_tasks() - tasks
    task.cancel()
    await asyncio.wait({task})
    stream.send(2)
    await async_poll_for(lambda: comm.messages == [1, 2], timeout=5)
    await stream.close()


@pytest.mark.parametrize("seed", range(20))
@gen_test()
async def test_whatever_happens_each_message_is_delivered_once_and_in_order(seed):
    dice = random.Random(seed)
    stream = BatchedSend(interval=dice.choice([0, 0.1, 1]))
    comms: list[ScriptedComm] = []
    sent = 0

    def start() -> None:
        comms.append(ScriptedComm(fail_after=dice.choice([None, 0, 1, 3])))
        stream.start(comms[-1])

    start()
    for _ in range(300):
        action = dice.random()
        if action < 0.6 and not stream.closed():
            stream.send(*range(sent, sent + (n := dice.randrange(4))))
            sent += n
        elif action < 0.65:
            comms[-1].gate.clear()
        elif action < 0.7:
            comms[-1].gate.set()
        elif action < 0.73:
            comms[-1].abort()
        elif action < 0.76 and not comms[-1].closed():
            comms[-1].gate.set()
            await stream.close()
        if stream.closed() and dice.random() < 0.5:
            start()
        if dice.random() < 0.5:
            await asyncio.sleep(dice.choice([0, 0, 0.001]))
    if not stream.closed():
        comms[-1].gate.set()
        await stream.close()
    last = ScriptedComm()
    comms.append(last)
    stream.start(last)
    await stream.close()
    assert [msg for comm in comms for msg in comm.messages] == list(range(sent))
