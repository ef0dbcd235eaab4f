"""Large values are compressed and inflated in threads, while the event loop serves other comms."""

from __future__ import annotations

import asyncio
import pickle
import threading
import zlib

import pytest

from distributed.base import config
from distributed.batched import BatchedSend
from distributed.comm import connect
from distributed.core import Server, rpc
from distributed.protocol import ToPickle, to_serialize
from distributed.protocol.compression import Compression, compressions
from distributed.utils_test import gen_test

#: Number of bytes that each case sends, and the size of one of many.
SIZE, PIECE = 8_000_000, 50_000
COUNT = SIZE // PIECE

#: Maximum number of bytes that the event loop compresses and inflates for one message.
COMPRESSED_ON_LOOP, INFLATED_ON_LOOP = 700_000, 1_400_000

# Peers on one host do not compress, so the client connects from another address of it.
ADDRESS = "tcp://127.0.0.2:0"


class Owner:
    """An object whose size does not tell how large its data is."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __reduce__(self):
        return Owner, (pickle.PickleBuffer(self.data),)


@pytest.fixture
def compressed(monkeypatch):
    """The number of bytes compressed and inflated so far, by whether it was in the main thread."""
    sizes = {"loop": {"in": 0, "out": 0}, "threads": {"in": 0, "out": 0}}

    def count(way, size):
        here = threading.current_thread() is threading.main_thread()
        sizes["loop" if here else "threads"][way] += size

    def compress(frame):
        count("in", len(frame))
        return zlib.compress(frame, 1)

    def inflate(frame, max_size=None):
        data = zlib.decompress(frame)
        count("out", len(data))
        return data

    monkeypatch.setitem(compressions, "counted", Compression("counted", compress, inflate))
    with config.set({"distributed.comm.compression": "counted"}):
        yield sizes


VALUES = {
    "one value": lambda: to_serialize(bytearray(SIZE)),
    "a text": lambda: to_serialize("." * SIZE),
    "an object that owns it": lambda: to_serialize(Owner(bytearray(SIZE))),
    "a pickled object that owns it": lambda: ToPickle(Owner(bytearray(SIZE))),
    "many values of a message": lambda: [to_serialize(bytes(PIECE)) for _ in range(COUNT)],
    "a collection of many": lambda: to_serialize({i: bytes(PIECE) for i in range(COUNT)}),
    "a collection of texts": lambda: to_serialize([str(i) * PIECE for i in range(100, 154)]),
}


@pytest.mark.parametrize("name", VALUES)
@gen_test()
async def test_a_large_value_is_compressed_in_a_thread_in_both_directions(compressed, name):
    value = VALUES[name]()
    async with Server({"echo": lambda data: value, "size": lambda data: len(data)}) as server:
        await server.listen(ADDRESS)
        async with rpc(server.address) as remote:
            size = await remote.size(data=value)
            answer = await remote.echo(data=None)
            assert len(answer) == size
    assert compressed["loop"]["in"] < 2 * COMPRESSED_ON_LOOP
    assert compressed["loop"]["out"] < 2 * INFLATED_ON_LOOP
    assert compressed["threads"]["in"] >= 2 * SIZE
    assert compressed["threads"]["out"] >= 2 * (SIZE - INFLATED_ON_LOOP)


@gen_test()
async def test_a_burst_of_messages_is_compressed_in_a_thread(compressed):
    received = 0
    complete = asyncio.Event()

    def add(data):
        nonlocal received
        received += len(data)
        if received == SIZE:
            complete.set()

    async with Server({}, stream_handlers={"add": add}) as server:
        await server.listen(ADDRESS)
        comm = await connect(server.address)
        await comm.write({"op": "connection_stream", "reply": False})
        stream = BatchedSend(interval="2ms")
        stream.start(comm)
        stream.send(*({"op": "add", "data": to_serialize(bytes(PIECE))} for _ in range(COUNT)))
        await complete.wait()
        await stream.close()
    assert compressed["loop"]["in"] < COMPRESSED_ON_LOOP
    assert compressed["threads"]["in"] >= SIZE
    assert compressed["threads"]["out"] >= SIZE - INFLATED_ON_LOOP


@gen_test()
async def test_small_messages_are_compressed_in_the_event_loop(compressed):
    async with Server({"size": lambda data: len(data)}) as server:
        await server.listen(ADDRESS)
        async with rpc(server.address) as remote:
            assert await remote.size(data=to_serialize(bytes(PIECE))) == PIECE
    assert compressed["loop"] == {"in": PIECE, "out": PIECE}
    assert compressed["threads"] == {"in": 0, "out": 0}
