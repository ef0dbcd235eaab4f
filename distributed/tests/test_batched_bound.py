"""How much may wait in a BatchedSend, and how a producer waits for room."""

from __future__ import annotations

import asyncio
from array import array

import pytest

from distributed.base import config
from distributed.batched import BatchedSend, rough_size
from distributed.comm import CommClosedError, connect, listen
from distributed.protocol import Serialize, Serialized
from distributed.utils_test import gen_test


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
        ({"data": Serialized({}, [b"x" * 500, bytearray(500)])}, 1000, 1100),
        ({"data": array("d", [0] * 10)}, 16, 200),
        ("x" * 1000, 1000, 1100),
        ([1, 2, 3], 40, 60),
        (object(), 1, 100),
    ],
)
def test_sizes_are_about_right(msg, at_least, at_most):
    assert at_least <= rough_size(msg) <= at_most


class Pretender:
    """Answers to any attribute, as proxies do."""

    def __getattr__(self, name):
        return self


def test_an_object_that_answers_to_everything_has_some_size():
    assert rough_size({"x": Pretender()}) < 100


@pytest.mark.parametrize("size", [10_000, "10 kB"])
def test_send_raises_once_too_much_waits_and_takes_nothing_then(size):
    stream = BatchedSend(interval="1ms", max_buffer_size=size)
    for _ in range(10):
        stream.send({"data": b"x" * 1000})
    with pytest.raises(BufferError, match=r"max-buffer-size.*drain"):
        stream.send({"data": b"y"})
    assert len(stream.buffer) == stream.message_count == 10
    stream.abort()
    assert stream.buffered_bytes == 0


def test_the_bound_is_configurable_and_generous():
    assert BatchedSend(interval=1).max_buffer_size == 2**30
    with config.set({"distributed.comm.batched.max-buffer-size": "1kiB"}):
        assert BatchedSend(interval=1).max_buffer_size == 1024
    with config.set({"distributed.comm.batched.max-buffer-size": None}):
        assert BatchedSend(interval=1).max_buffer_size == 0


def test_zero_is_no_bound():
    stream = BatchedSend(interval=1, max_buffer_size=0)
    for _ in range(100):
        stream.send(b"x" * 100_000)
    assert len(stream.buffer) == 100


class SlowPeer:
    """Reads lists of messages, one whenever it is told to."""

    def __init__(self):
        self.go = asyncio.Event()
        self.messages = []

    async def handle(self, comm):
        try:
            while True:
                await self.go.wait()
                self.messages += await comm.read()
        except CommClosedError:
            await comm.close()


@gen_test()
async def test_a_producer_that_drains_waits_for_a_slow_peer_and_loses_nothing():
    peer = SlowPeer()
    most = 0
    async with listen("tcp://127.0.0.1:0", peer.handle) as listener:
        stream = BatchedSend(interval=0, max_buffer_size=5_000_000)
        stream.start(await connect(listener.contact_address))

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
        while stream.buffered_bytes < 5_000_000:
            await asyncio.sleep(0)
        assert not producer.done()
        peer.go.set()
        await producer
        await stream.close()
        assert most < 5_600_000
        while len(peer.messages) < 200:
            await asyncio.sleep(0)
    assert [msg["i"] for msg in peer.messages] == list(range(200))
    assert stream.buffered_bytes == 0


@gen_test()
async def test_who_waits_for_room_is_told_when_the_comm_breaks():
    peer = SlowPeer()
    async with listen("tcp://127.0.0.1:0", peer.handle) as listener:
        stream = BatchedSend(interval=0, max_buffer_size=1000)
        comm = await connect(listener.contact_address)
        stream.start(comm)
        stream.send(b"x" * 50_000_000)
        waiting = asyncio.create_task(stream.drain())
        while not stream._drained:
            await asyncio.sleep(0)
        comm.abort()
        with pytest.raises(CommClosedError):
            await waiting
        assert [len(msg) for msg in stream.buffer] == [50_000_000]
        assert stream.buffered_bytes >= 50_000_000
        peer.go.set()


@gen_test()
async def test_there_is_no_wait_where_there_is_room():
    stream = BatchedSend(interval=1, max_buffer_size=1000)
    stream.send(b"x" * 400)
    await stream.drain()
    stream.abort()


def test_an_interval_of_none_is_refused_at_once():
    with pytest.raises(TypeError, match="interval"):
        BatchedSend(None)
