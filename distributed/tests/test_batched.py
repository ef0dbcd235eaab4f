"""Streams of messages in batches: order, intervals, the buffer's limit, closing and failures."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import random
import threading
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from distributed import batched
from distributed.base import budget, config
from distributed.base.budget import SAVED_SECONDS, STREAM_SHARE, WRITING_SHARE, Account
from distributed.batched import BatchedSend, rough_size
from distributed.comm import connect, listen
from distributed.comm.core import Comm, CommClosedError
from distributed.protocol import Serialize, Serialized, ToPickle, to_serialize
from distributed.tests.servers import TCP
from distributed.utils_test import async_poll_for, captured_logger, gen_test

over_each_transport = pytest.mark.parametrize("listen_at", [TCP, "inproc://"])


class Inbox:
    """The batches that arrived, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Any]] = []
        self._arrived = asyncio.Condition()

    @property
    def messages(self) -> list[Any]:
        return [msg for batch in self.batches for msg in batch]

    async def add(self, batch: Any) -> None:
        async with self._arrived:
            self.batches.append(list(batch))
            self._arrived.notify_all()

    async def has(self, count: int) -> None:
        """Wait until *count* messages have arrived."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.messages) >= count)


class Reader(Inbox):
    """A peer that keeps the batches that it reads; it reads nothing until `resumed` is set."""

    def __init__(self, paused: bool) -> None:
        super().__init__()
        self.address = ""
        self.comms: list[Comm] = []
        self.resumed = asyncio.Event()
        if not paused:
            self.resumed.set()

    async def handle(self, comm: Comm) -> None:
        self.comms.append(comm)
        try:
            await self.resumed.wait()
            while True:
                await self.add(await comm.read())
        except CommClosedError:
            await comm.close()


class ScriptedComm(Inbox, Comm):
    """A comm without a peer, for failures at a moment that no real peer can choose."""

    local_address = "scripted://here"
    peer_address = "scripted://there"

    def __init__(self, *, fail_after: int | None = None, blocked: bool = False) -> None:
        super().__init__()
        self.arguments: list[tuple[Any, Any]] = []
        self.fail_after = fail_after
        self.unblocked = asyncio.Event()
        if not blocked:
            self.unblocked.set()
        self._closed = False

    async def read(self, deserializers=None):
        raise NotImplementedError

    async def write(self, msg, serializers=None, on_error=None):
        self.arguments.append((serializers, on_error))
        if self._closed:
            raise CommClosedError("closed before the write")
        await self.unblocked.wait()
        if self._closed:
            raise CommClosedError("closed during the write")
        if self.fail_after is not None and len(self.batches) >= self.fail_after:
            self.abort()
            raise CommClosedError("broken")
        await self.add(msg)
        return len(msg)

    async def close(self):
        self.abort()

    def abort(self):
        self._closed = True
        self.unblocked.set()

    def closed(self):
        return self._closed


@asynccontextmanager
async def streaming(
    listen_at: str = "inproc://", interval: Any = "1ms", paused: bool = False, **kwargs: Any
) -> AsyncIterator[tuple[BatchedSend, Reader]]:
    """Start a stream to a reader that listens at *listen_at*; close both at the end."""
    peer = Reader(paused)
    async with listen(listen_at, peer.handle) as listener:
        peer.address = listener.contact_address
        stream = BatchedSend(interval=interval, **kwargs)
        stream.start(await connect(peer.address))
        try:
            yield stream, peer
            await stream.close()
        finally:
            stream.abort()
            peer.resumed.set()
            for comm in peer.comms:
                comm.abort()


def scripted(
    interval: Any = 0, fail_after: int | None = None, blocked: bool = False, **kwargs: Any
) -> tuple[BatchedSend, ScriptedComm]:
    """Start a stream on a scripted comm."""
    stream = BatchedSend(interval, **kwargs)
    comm = ScriptedComm(fail_after=fail_after, blocked=blocked)
    stream.start(comm)
    return stream, comm


# Batches and their interval


@over_each_transport
@gen_test()
async def test_messages_arrive_in_order(listen_at):
    async with streaming(listen_at) as (stream, peer):
        for i in range(1000):
            stream.send(i)
            if i % 100 == 0:
                await asyncio.sleep(0)
        await peer.has(1000)
        assert peer.messages == list(range(1000))


@over_each_transport
@gen_test()
async def test_messages_sent_in_one_iteration_of_the_loop_are_one_batch(listen_at):
    async with streaming(listen_at) as (stream, peer):
        stream.send("a")
        stream.send("b", "c")
        await peer.has(3)
        assert peer.batches == [["a", "b", "c"]]


@gen_test()
async def test_sending_no_message_writes_nothing():
    async with streaming() as (stream, peer):
        stream.send()
        await asyncio.sleep(0)
        stream.send(1)
        await peer.has(1)
        await stream.close()
        assert peer.batches == [[1]]


@over_each_transport
@gen_test()
async def test_a_message_alone_does_not_wait_for_the_interval(listen_at):
    async with streaming(listen_at, interval="1 hour") as (stream, peer):
        for i in range(50):
            stream.send(i)
            await peer.has(i + 1)
        assert peer.batches == [[i] for i in range(50)]


@gen_test()
async def test_messages_gather_into_one_batch_while_a_write_is_in_progress():
    stream, comm = scripted(interval="1 hour", blocked=True)
    for i in range(10):
        stream.send(i)
        await asyncio.sleep(0)
    comm.unblocked.set()
    await comm.has(10)
    assert comm.batches == [[0], list(range(1, 10))]


# The interval, and the budget of the streams of an event loop


@pytest.fixture
def small_budget(monkeypatch):
    """Let the streams of an event loop write one batch without waiting, and no more for an hour."""
    monkeypatch.setattr(budget, "SAVED_SECONDS", 3600)
    monkeypatch.setattr(budget, "MAX_COST", math.inf)
    monkeypatch.setattr(budget, "WRITING_SHARE", 1e-12)


@gen_test()
async def test_messages_wait_together_for_the_interval_at_most_when_the_budget_is_used_up(
    small_budget,
):
    async with streaming(interval="50ms") as (stream, peer):
        stream.send(1)
        await peer.has(1)
        for i in range(2, 10):
            stream.send(i)
            await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() < stream.next_deadline
        await peer.has(9)
        assert peer.batches == [[1], list(range(2, 10))]


@gen_test()
async def test_the_streams_of_an_event_loop_share_a_budget(small_budget):
    one, one_comm = scripted(interval="1 hour")
    other, other_comm = scripted(interval="1 hour")
    one.send(1)
    await one_comm.has(1)
    # The other stream has not written in the last hour, so waiting would gather nothing.
    other.send(1)
    await other_comm.has(1)
    other.send(2)
    await asyncio.sleep(0)
    assert other.buffer == [2]
    await other.close()
    await one.close()
    assert other_comm.messages == [1, 2]


@gen_test()
async def test_a_stream_that_has_used_up_its_share_waits_and_others_do_not(monkeypatch):
    monkeypatch.setattr(budget, "SAVED_SECONDS", 3600)
    monkeypatch.setattr(budget, "MAX_COST", math.inf)
    other, other_comm = scripted(interval="1 hour")
    monkeypatch.setattr(budget, "STREAM_SHARE", 1e-12)
    busy, busy_comm = scripted(interval="1 hour")
    busy.send(1)
    await busy_comm.has(1)
    busy.send(2)
    await asyncio.sleep(0)
    assert busy.buffer == [2]
    for i in range(10):
        other.send(i)
        await other_comm.has(i + 1)
    assert busy.buffer == [2]
    await busy.close()
    await other.close()
    assert busy_comm.batches == [[1], [2]]


@gen_test()
async def test_without_an_interval_messages_never_wait(small_budget):
    stream, comm = scripted(interval=0)
    for i in range(50):
        stream.send(i)
        await comm.has(i + 1)
    assert comm.batches == [[i] for i in range(50)]


@gen_test()
async def test_large_batches_do_not_use_the_budget(small_budget):
    async with streaming(TCP, interval="1 hour") as (stream, peer):
        for i in range(10):
            stream.send(b"x" * batched.LARGE_BATCH_BYTES)
            await peer.has(i + 1)


@pytest.mark.parametrize("share", [WRITING_SHARE, STREAM_SHARE])
@pytest.mark.parametrize("slowness", [1, 10])
def test_a_busy_event_loop_writes_a_share_of_the_time_on_a_slow_machine_too(slowness, share):
    account = Account(share)
    write, other = 20e-6 * slowness, 5e-6 * slowness
    begin = now = 100.0
    writing = 0.0
    while now < begin + 10:
        if not account.is_empty(now):
            account.take(now, now + write)
            now += write
            writing += write
        now += other
    assert writing == pytest.approx(10 * share, rel=0.02)


@pytest.mark.parametrize("share", [WRITING_SHARE, STREAM_SHARE])
def test_streams_that_write_less_than_their_share_never_wait(share):
    account = Account(share)
    now = 100.0
    for _ in range(100_000):
        assert not account.is_empty(now)
        account.take(now, now + 20e-6)
        now += 25e-6 / share


def test_an_account_is_a_part_of_another_one():
    whole = Account(0.5)
    parts = [Account(0.4, whole) for _ in range(2)]
    now = 100.0
    while not any(part.is_empty(now) for part in parts):
        for part in parts:
            part.take(now, now + 0.001)
            now += 0.001
    # Each part has taken half of the time, and both together all of it.
    assert all(part.is_empty(now) for part in parts)
    assert whole.is_empty(now)
    # The debt of the whole is paid first at half of the time.
    assert not whole.is_empty(now + 0.03)
    assert not any(part.is_empty(now + 0.03) for part in parts)


@pytest.mark.parametrize("share", [WRITING_SHARE, STREAM_SHARE])
@pytest.mark.parametrize("seconds", [0.0026, 100])
def test_a_write_that_waited_for_a_slow_peer_does_not_let_the_next_batch_wait(share, seconds):
    account = Account(share)
    account.take(100, 100 + seconds)
    assert not account.is_empty(100 + seconds)


def test_writes_above_the_share_leave_a_small_debt():
    account = Account(0.1)
    now = 100.0
    for _ in range(1000):
        account.take(now, now + 0.001)
        now += 0.001
    assert account.is_empty(now)
    assert not account.is_empty(now + 1.01 * SAVED_SECONDS)


@pytest.mark.parametrize(
    ("interval", "seconds"), [("2ms", 0.002), ("1s", 1), (10, 0.010), (0, 0), (0.5, 0.0005)]
)
def test_an_interval_without_a_unit_is_in_milliseconds(interval, seconds):
    assert BatchedSend(interval=interval).interval == pytest.approx(seconds)


def test_an_interval_of_none_is_a_type_error():
    with pytest.raises(TypeError, match="interval"):
        BatchedSend(None)


@gen_test()
async def test_messages_sent_before_the_start_wait_for_it():
    stream = BatchedSend(interval="1ms")
    stream.send(1, 2)
    stream.send(3)
    assert stream.buffer == [1, 2, 3]
    assert not stream.closed()
    comm = ScriptedComm()
    stream.start(comm)
    await comm.has(3)
    assert comm.batches == [[1, 2, 3]]
    assert stream.buffer == []


def test_messages_can_be_sent_without_a_running_loop():
    stream = BatchedSend(interval="1ms")
    stream.send(1)
    assert stream.buffer == [1]


@gen_test()
async def test_batches_are_written_from_the_given_loop():
    stream, comm = scripted(loop=IOLoop.current())
    stream.send(1)
    await comm.has(1)
    assert comm.messages == [1]


@gen_test()
async def test_serializers_are_passed_to_the_comm():
    stream, comm = scripted(serializers=["msgpack"])
    stream.send(1)
    await stream.close()
    assert comm.arguments == [(["msgpack"], "raise")]


@gen_test()
async def test_an_idle_stream_has_no_task():
    tasks = asyncio.all_tasks()
    stream, comm = scripted()
    for i in (1, 2):
        stream.send(i)
        await comm.has(i)
        await async_poll_for(lambda: asyncio.all_tasks() == tasks, timeout=5)


# Counters, log and repr


@over_each_transport
@gen_test()
async def test_messages_batches_and_bytes_are_counted(listen_at):
    async with streaming(listen_at) as (stream, peer):
        stream.send(1, 2)
        await peer.has(2)
        stream.send(3)
        await peer.has(3)
        await stream.close()
        assert (stream.message_count, stream.batch_count) == (3, 2)
        assert stream.byte_count > 0


@gen_test()
async def test_the_log_keeps_the_configured_number_of_batches():
    with config.set({"distributed.admin.low-level-log-length": 2}):
        stream, comm = scripted()
    for i in range(4):
        stream.send(i)
        await comm.has(i + 1)
    await stream.close()
    assert list(stream.recent_message_log) == [[2], [3]]


@gen_test()
async def test_the_log_does_not_keep_large_batches():
    async with streaming(TCP) as (stream, _):
        stream.send(b"x" * 2_000_000)
        await stream.close()
        assert list(stream.recent_message_log) == ["large-message"]


def test_the_repr_shows_the_buffer_or_that_the_stream_is_closed():
    stream = BatchedSend(interval="1ms")
    stream.send(1, 2)
    assert repr(stream) == "<BatchedSend: 2 in buffer>"
    stream.abort()
    assert repr(stream) == "<BatchedSend: closed>"


# The limit of the buffer


@pytest.mark.parametrize(
    ("msg", "at_least", "at_most"),
    [
        ({}, 0, 0),
        ({"op": "x", "n": 1, "f": 2.5, "b": True, "none": None}, 80, 90),
        ({"data": b"x" * 1000}, 1000, 1100),
        ({"data": "x" * 1000}, 1000, 1100),
        ({"data": ["x" * 500, b"y" * 500]}, 1000, 1100),
        ({"data": {"k": "x" * 1000}}, 1000, 1100),
        ({"data": bytearray(1000)}, 1000, 1100),
        ({"data": memoryview(bytes(8000)).cast("d")}, 8000, 8100),
        ({"data": Serialize(b"x" * 1000)}, 1000, 1100),
        ({"data": ToPickle(b"x" * 1000)}, 1000, 1100),
        ({"data": Serialized({}, [b"x" * 500, bytearray(500)])}, 1000, 1100),
        ({"data": array("d", [0] * 10)}, 16, 200),
        ("x" * 1000, 1000, 1100),
        ([1, 2, 3], 40, 60),
        (object(), 1, 100),
    ],
)
def test_sizes_are_about_right(msg, at_least, at_most):
    assert at_least <= rough_size(msg) <= at_most


def test_an_object_with_any_attribute_has_a_size():
    class Proxy:
        def __getattr__(self, name):
            return self

    assert rough_size({"x": Proxy()}) < 100


class WithoutSize:
    @property
    def nbytes(self):
        raise RuntimeError("the size is not known yet")


@gen_test()
async def test_a_value_whose_nbytes_raises_is_sent():
    async with streaming(TCP) as (stream, reader):
        stream.send({"x": to_serialize(WithoutSize())})
        await reader.has(1)
        assert type(reader.messages[0]["x"]) is WithoutSize


@pytest.mark.parametrize("size", [10_000, "10 kB"])
def test_send_beyond_the_limit_raises_and_accepts_nothing(size):
    stream = BatchedSend(interval="1ms", max_buffer_size=size)
    for _ in range(10):
        stream.send({"data": b"x" * 1000})
    with pytest.raises(BufferError, match=r"max-buffer-size.*drain"):
        stream.send({"data": b"y"})
    assert len(stream.buffer) == stream.message_count == 10
    stream.abort()
    assert stream.buffered_bytes == 0


def test_the_limit_is_configurable_and_large_by_default():
    assert BatchedSend(interval=1).max_buffer_size == 2**30
    with config.set({"distributed.comm.batched.max-buffer-size": "1kiB"}):
        assert BatchedSend(interval=1).max_buffer_size == 1024
    with config.set({"distributed.comm.batched.max-buffer-size": None}):
        assert BatchedSend(interval=1).max_buffer_size == 0


def test_zero_means_no_limit():
    stream = BatchedSend(interval=1, max_buffer_size=0)
    for _ in range(100):
        stream.send(b"x" * 100_000)
    assert len(stream.buffer) == 100


@gen_test()
async def test_a_producer_that_drains_waits_for_a_slow_peer_and_loses_nothing():
    most = 0
    async with streaming(TCP, 0, paused=True, max_buffer_size=5_000_000) as (stream, peer):

        async def produce():
            nonlocal most
            for i in range(200):
                while True:
                    try:
                        stream.send({"i": i, "data": b"x" * 500_000})
                        break
                    except BufferError:
                        await stream.drain()
                most = max(most, stream.buffered_bytes)

        producer = asyncio.create_task(produce())
        await async_poll_for(lambda: stream.buffered_bytes >= 5_000_000, timeout=10)
        assert not producer.done()
        peer.resumed.set()
        await producer
        await stream.close()
        assert most < 5_600_000
        await peer.has(200)
        assert [msg["i"] for msg in peer.messages] == list(range(200))
        assert stream.buffered_bytes == 0


@gen_test()
async def test_drain_raises_when_the_comm_breaks():
    stream, comm = scripted(blocked=True, max_buffer_size=1000)
    stream.send(b"x" * 5_000)
    waiting = asyncio.create_task(stream.drain())
    await asyncio.sleep(0)
    assert not waiting.done()
    comm.abort()
    with pytest.raises(CommClosedError):
        await waiting
    assert stream.buffer == [b"x" * 5_000]
    assert stream.buffered_bytes >= 5_000


@gen_test()
async def test_drain_does_not_wait_while_there_is_room():
    stream = BatchedSend(interval=1, max_buffer_size=1000)
    stream.send(b"x" * 400)
    await stream.drain()


# Closing


@over_each_transport
@gen_test()
async def test_close_flushes_the_buffer_without_waiting_for_the_interval(listen_at, small_budget):
    async with streaming(listen_at, interval="1 hour") as (stream, peer):
        stream.send(1)
        await peer.has(1)
        stream.send(2)
        await stream.close()
        assert stream.comm.closed()
        assert stream.closed()
        await peer.has(2)
        assert peer.batches == [[1], [2]]


@gen_test()
async def test_close_ends_a_wait_for_the_interval(small_budget):
    stream, comm = scripted(interval="1 hour")
    stream.send(1)
    await comm.has(1)
    stream.send(2)
    await asyncio.sleep(0)
    assert stream.buffer == [2]  # the writer waits for the hour to pass
    await stream.close(timeout=10)
    assert comm.messages == [1, 2]


@over_each_transport
@gen_test()
async def test_close_starts_at_once_without_being_awaited(listen_at):
    async with streaming(listen_at, interval="1 hour") as (stream, peer):
        stream.send(1)
        stream.close()
        await peer.has(1)
        await async_poll_for(stream.comm.closed, timeout=5)
        with pytest.raises(CommClosedError):
            stream.send(2)


@gen_test()
async def test_close_continues_when_stream_and_future_are_dropped():
    stream, comm = scripted(blocked=True)
    stream.send(1)
    stream.close()
    await asyncio.sleep(0)
    del stream
    gc.collect()
    comm.unblocked.set()
    await async_poll_for(comm.closed, timeout=5)
    assert comm.messages == [1]


@gen_test()
async def test_a_close_that_fails_unawaited_is_logged_once():
    with (
        captured_logger("asyncio") as loop_log,
        captured_logger("distributed.batched", level=logging.INFO) as log,
    ):
        stream, comm = scripted(blocked=True)
        stream.send(1)
        stream.close(timeout="1ms")
        await async_poll_for(comm.closed, timeout=5)
        await async_poll_for(lambda: "Closing a stream failed" in log.getvalue(), timeout=5)
        gc.collect()
    assert "could not deliver 1 messages" in log.getvalue()
    assert loop_log.getvalue() == ""


@gen_test()
async def test_a_stream_that_is_started_again_after_its_comm_broke_is_not_ended_by_its_close():
    broken, comm = ScriptedComm(), ScriptedComm()
    stream = BatchedSend(interval="1ms")
    stream.start(broken)
    broken.abort()
    closing = stream.close()
    stream.start(comm)
    await closing
    stream.send("message")
    await comm.has(1)
    await stream.close()
    assert stream.closed()


@gen_test()
async def test_cancelling_close_before_its_first_step_aborts():
    stream, comm = scripted(blocked=True)
    stream.send(1)
    closing = stream.close()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert comm.closed()
    assert stream.closed()


@gen_test()
async def test_messages_sent_during_close_are_delivered():
    stream, comm = scripted(blocked=True)
    stream.send(1)
    closing = stream.close()
    await asyncio.sleep(0)
    stream.send(2)
    comm.unblocked.set()
    await closing
    assert comm.messages == [1, 2]


@gen_test()
async def test_close_can_be_repeated():
    stream, comm = scripted()
    stream.send(1)
    await asyncio.gather(stream.close(), stream.close())
    await stream.close()
    assert comm.messages == [1]


@over_each_transport
@gen_test()
async def test_send_raises_after_close(listen_at):
    async with streaming(listen_at) as (stream, _):
        await stream.close()
        with pytest.raises(CommClosedError, match="already closed"):
            stream.send(1)
        assert stream.buffer == []
        assert stream.message_count == 0


@over_each_transport
@gen_test()
async def test_send_raises_after_the_peer_closed(listen_at):
    async with streaming(listen_at) as (stream, peer):
        stream.send(1)
        await peer.has(1)
        peer.comms[0].abort()
        await async_poll_for(stream.comm.closed, timeout=5)
        assert stream.closed()
        with pytest.raises(CommClosedError, match="already closed"):
            stream.send(2)


@gen_test()
async def test_closing_a_stream_that_was_not_started_keeps_its_messages():
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
async def test_abort_closes_at_once_and_discards_the_buffer(listen_at):
    async with streaming(listen_at, interval="1 hour") as (stream, _):
        stream.send(1)
        stream.abort()
        assert stream.comm.closed()
        assert stream.closed()
        assert stream.buffer == []
        await asyncio.sleep(0)
        assert stream.buffer == []


@gen_test()
async def test_abort_during_a_write_discards_that_batch_too():
    stream, _ = scripted(blocked=True)
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
async def test_close_aborts_after_the_timeout_and_keeps_the_undelivered_messages():
    async with streaming(TCP, interval=0, paused=True) as (stream, _):
        # The other side receives one message ahead.  The next one fills the buffers of the kernel.
        for size in (10_000_000, 100_000_000):
            stream.send(bytes(size))
            await async_poll_for(lambda: stream.buffer == [], timeout=5)
        stream.send("small")
        with pytest.raises(TimeoutError, match=r"could not deliver \d messages .* within 0.1 s"):
            await stream.close(timeout="100ms")
        assert stream.comm.closed()
        assert stream.closed()
        assert [len(msg) for msg in stream.buffer][-2:] == [100_000_000, 5]


@gen_test()
async def test_cancelling_close_aborts():
    stream, comm = scripted(blocked=True)
    stream.send(1)
    closing = stream.close()
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert comm.closed()
    assert stream.closed()


# Failures


@gen_test()
async def test_a_batch_that_could_not_be_written_returns_to_the_buffer():
    stream, comm = scripted(fail_after=1, blocked=True)
    stream.send(1)
    await asyncio.sleep(0)
    stream.send(2, 3)
    comm.unblocked.set()
    await async_poll_for(comm.closed, timeout=5)
    assert comm.messages == [1]
    assert stream.buffer == [2, 3]
    assert stream.batch_count == 1


@gen_test()
async def test_messages_sent_during_a_write_that_fails_stay_behind_its_batch():
    stream, comm = scripted(fail_after=0, blocked=True)
    stream.send(1, 2)
    await asyncio.sleep(0)
    stream.send(3)
    comm.unblocked.set()
    await async_poll_for(comm.closed, timeout=5)
    assert stream.buffer == [1, 2, 3]


@gen_test()
async def test_a_broken_comm_is_logged_without_a_traceback():
    with captured_logger("distributed.batched", level=logging.INFO) as log:
        stream, comm = scripted(fail_after=0)
        stream.send(1)
        await async_poll_for(lambda: stream.buffer == [1] and comm.closed(), timeout=5)
    assert "scripted://there" in log.getvalue()
    assert "Traceback" not in log.getvalue()


@over_each_transport
@gen_test()
async def test_a_start_on_another_comm_sends_the_undelivered_messages(listen_at):
    async with streaming(listen_at) as (stream, peer):
        stream.abort()
        broken = ScriptedComm(fail_after=0)
        stream.start(broken)
        stream.send(1, 2)
        await async_poll_for(broken.closed, timeout=5)
        stream.start(await connect(peer.address))
        stream.send(3)
        await peer.has(3)
        assert peer.messages == [1, 2, 3]


@gen_test()
async def test_a_start_before_the_failed_write_has_ended_keeps_the_order():
    stream, broken = scripted(blocked=True)
    stream.send(1)
    await asyncio.sleep(0)
    broken.abort()
    comm = ScriptedComm()
    stream.start(comm)
    stream.send(2)
    await stream.close()
    assert comm.messages == [1, 2]


@gen_test()
async def test_a_stream_can_be_started_again_after_close():
    stream, _ = scripted()
    stream.send(1)
    await stream.close()
    comm = ScriptedComm()
    stream.start(comm)
    assert not stream.closed()
    stream.send(2)
    await stream.close()
    assert comm.messages == [2]


@gen_test()
async def test_a_start_while_another_comm_is_open_is_an_error():
    stream, _ = scripted()
    with pytest.raises(RuntimeError, match="still sending on"):
        stream.start(ScriptedComm())


@gen_test()
async def test_a_message_that_cannot_be_serialized_ends_the_stream():
    async with streaming(TCP) as (stream, peer):
        with captured_logger("distributed.batched") as log:
            stream.send("before", {"lock": to_serialize(threading.Lock())}, "after")
            await async_poll_for(stream.closed, timeout=5)
            await async_poll_for(lambda: stream.buffer != [], timeout=5)
        await peer.has(1)
        assert peer.messages == ["before"]
        assert stream.buffer == ["after"]
        assert stream.comm.closed()
        assert "could not be serialized" in log.getvalue()
        assert "lock" in log.getvalue()
        with pytest.raises(CommClosedError, match="could not be serialized") as info:
            stream.send("more")
        assert isinstance(info.value.__cause__, TypeError)

        stream.start(await connect(peer.address))
        await peer.has(2)
        assert peer.messages == ["before", "after"]


@gen_test()
async def test_cancelling_the_writer_loses_no_message():
    tasks = asyncio.all_tasks()
    stream, comm = scripted(blocked=True)
    stream.send(1)
    await asyncio.sleep(0)
    (task,) = asyncio.all_tasks() - tasks
    task.cancel()
    await asyncio.wait({task})
    assert stream.buffer == [1]
    comm.unblocked.set()
    await stream.close()
    assert comm.messages == [1]


@gen_test()
async def test_cancelling_the_writer_before_its_first_step_loses_no_message():
    tasks = asyncio.all_tasks()
    stream, comm = scripted()
    stream.send(1)
    (task,) = asyncio.all_tasks() - tasks
    task.cancel()
    await asyncio.wait({task})
    stream.send(2)
    await comm.has(2)
    assert comm.messages == [1, 2]


@pytest.mark.parametrize("seed", range(20))
@gen_test()
async def test_random_failures_leave_each_message_delivered_once_and_in_order(seed):
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
            comms[-1].unblocked.clear()
        elif action < 0.7:
            comms[-1].unblocked.set()
        elif action < 0.73:
            comms[-1].abort()
        elif action < 0.76 and not comms[-1].closed():
            comms[-1].unblocked.set()
            await stream.close()
        if stream.closed() and dice.random() < 0.5:
            start()
        if dice.random() < 0.5:
            await asyncio.sleep(dice.choice([0, 0, 0.001]))
    if not stream.closed():
        comms[-1].unblocked.set()
        await stream.close()
    comms.append(ScriptedComm())
    stream.start(comms[-1])
    await stream.close()
    assert [msg for comm in comms for msg in comm.messages] == list(range(sent))
