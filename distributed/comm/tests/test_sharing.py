"""Shared memory over ``unix://``: what travels without a copy, and what a hostile peer gets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from distributed import shared
from distributed.base import config, memory_pool, shared_memory
from distributed.base.traffic import Traffic
from distributed.batched import BatchedSend
from distributed.comm import CommClosedError, connect, listen
from distributed.comm.descriptors import MAX_DESCRIPTORS, DescriptorSocket
from distributed.comm.tests.raw_peers import HANDSHAKE, message
from distributed.comm.tests.sharing_server import memory, serving, serving_many, state
from distributed.protocol import Serialized, dumps, to_serialize
from distributed.protocol.framing import pack_message
from distributed.protocol.shared_frames import Descriptors, ShareLimits, share
from distributed.tests.relays import Relay
from distributed.utils_test import async_poll_for, gen_test

np = pytest.importorskip("numpy")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux has this memory"),
    pytest.mark.skipif(not shared_memory.is_supported(), reason="the system forbids it"),
]

MB = 2**20


@pytest.fixture(scope="module")
def server():
    """A server in another process."""
    with serving() as running:
        yield running


@asynccontextmanager
async def connected(address: str, **kwargs: Any):
    comm = await connect(address, **kwargs)
    try:
        yield comm
    finally:
        await comm.close()


async def ask(comm, op: str, x: Any = None, **kwargs: Any) -> Any:
    if x is not None:
        kwargs["x"] = to_serialize(x)
    await comm.write({"op": op, **kwargs})
    return await comm.read()


async def sent_bytes(comm, x: Any) -> int:
    """Send *x*, and return the number of bytes on the socket."""
    size = await comm.write({"op": "echo", "x": to_serialize(x)})
    received = await comm.read()
    np.testing.assert_array_equal(received, x)
    return size


def numbers(n: int) -> Any:
    return shared.copy(np.arange(n, dtype="u4"))


def is_same_memory(x: Any, y: Any) -> bool:
    return bool(np.shares_memory(np.asarray(x), np.asarray(y)))


# What travels without a copy


@gen_test()
async def test_both_sides_agree_upon_sharing_over_unix_only():
    async def wait(comm):
        with contextlib.suppress(CommClosedError):
            await comm.read()
        await comm.close()

    for address, expected in [("unix://", True), ("tcp://127.0.0.1:0", False)]:
        async with listen(address, wait) as listener, connected(listener.contact_address) as comm:
            assert ("shared" in comm.features) is expected


@pytest.mark.parametrize("nbytes", [1, 4096, 100 * MB])
@gen_test()
async def test_an_array_of_any_size_takes_a_few_hundred_bytes_of_the_socket(server, nbytes):
    x = shared.empty(nbytes, "u1")
    x[0] = x[-1] = 7
    async with connected(server.address) as comm:
        size = await comm.write({"op": "echo", "x": to_serialize(x)})
        received = await comm.read()
    assert size < 600
    assert received[0] == received[-1] == 7
    assert is_same_memory(received, x)


@gen_test()
async def test_the_bytes_of_an_array_are_not_on_the_socket():
    x = shared.copy(np.frombuffer(b"secret" * 100_000, "u1"))
    ours, theirs = socket.socketpair()
    with theirs:
        peer = DescriptorSocket(ours, Descriptors(MAX_DESCRIPTORS))
        frames = dumps({"x": to_serialize(x)})
        shared_message = share(frames, ShareLimits(MAX_DESCRIPTORS, 2**40))
        assert shared_message is not None
        buffers, nbytes = pack_message(shared_message.frames)
        assert peer.send_with(buffers, shared_message.descriptors) == nbytes
        received = theirs.recv(2**20)
        peer.close()
    assert len(received) == nbytes < 600
    assert b"secret" not in received


VIEWS: dict[str, Callable[[Any], Any]] = {
    "slice": lambda x: x[1000:2000],
    "reshaped": lambda x: x.reshape(100, -1),
    "transposed": lambda x: x.reshape(100, -1).T,
    "columns in Fortran order": lambda x: x.reshape((100, -1), order="F")[:, 3:50],
    "another type": lambda x: x.view("f8")[5:100],
    "read-only": lambda x: np.broadcast_to(x[5:5000], 4995),
    "masked": lambda x: np.ma.masked_array(x[:5000]),
    "record": lambda x: x[:5000].view([("a", "u4"), ("b", "u4")]),
    "dates": lambda x: x[:5000].view("M8[s]"),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@gen_test()
async def test_views_are_shared(server, view):
    x = numbers(100_000)
    async with connected(server.address) as comm:
        assert await sent_bytes(comm, view(x)) < 1000


@gen_test()
async def test_an_array_with_gaps_is_copied(server):
    x = numbers(100_000)
    async with connected(server.address) as comm:
        assert await sent_bytes(comm, x[::2]) > 200_000


@gen_test()
async def test_arrays_in_one_buffer_are_mapped_once(server):
    whole = shared.buffer(10_000)
    arrays = [np.frombuffer(whole[i * 1000 : (i + 1) * 1000], "u1") for i in range(10)]
    for i, x in enumerate(arrays):
        x[:] = i
    async with connected(server.address) as comm:
        before = await ask(comm, "state")
        for i, x in enumerate(arrays):
            assert await ask(comm, "hold", x) == 1000 * i
        await comm.write({"op": "echo", "x": [to_serialize(x) for x in arrays]})
        assert [x[0] for x in await comm.read()] == list(range(10))
        after = await ask(comm, "state")
        assert after["maps"] - before["maps"] == 1
        assert after["descriptors"] - before["descriptors"] == 1
        await ask(comm, "drop")
        assert await ask(comm, "state") == before


@gen_test()
async def test_pandas_objects_are_shared(server):
    pd = pytest.importorskip("pandas")
    rows = shared.copy(np.arange(200_000.0).reshape(-1, 2))
    by_rows = pd.DataFrame(rows, columns=["a", "b"], copy=False)
    by_columns = pd.DataFrame(shared.copy(np.asfortranarray(rows)), columns=["a", "b"], copy=False)
    async with connected(server.address) as comm:
        for obj in (by_rows, by_rows[100:50_000], by_columns, by_columns["a"], by_columns[["b"]]):
            size = await comm.write({"op": "echo", "x": to_serialize(obj)})
            received = await comm.read()
            assert received.equals(obj)
            assert size < 3000
        assert is_same_memory(await ask(comm, "echo", by_rows), rows)


@gen_test()
async def test_arrow_objects_are_shared(server):
    pa = pytest.importorskip("pyarrow")
    buffer = pa.py_buffer(shared.copy(np.arange(100_000.0)))
    column = pa.Array.from_buffers(pa.float64(), 100_000, [None, buffer])
    table = pa.table({"a": column, "b": column})
    batch = pa.record_batch({"a": column})
    async with connected(server.address) as comm:
        for obj in (column, column[100:50_000], table, table[5:1000], batch):
            size = await comm.write({"op": "echo", "x": to_serialize(obj)})
            assert (await comm.read()).equals(obj)
            assert size < 5000


@gen_test()
async def test_values_that_are_not_wrapped_are_shared(server):
    x = numbers(100_000)
    async with connected(server.address) as comm:
        assert await comm.write({"op": "echo", "x": {"data": x}}) < 1000
        assert is_same_memory((await comm.read())["data"], x)


@gen_test()
async def test_memory_is_read_only_at_the_receiver_unless_the_sender_asks_for_more(server):
    async with connected(server.address) as comm:
        x = numbers(1000)
        assert "read-only" in await ask(comm, "write", x, value=9)
        assert x[0] == 0
        y = shared.empty(1000, "u1", peers_may_write=True)
        assert await ask(comm, "write", y, value=9) == "written"
        assert y[0] == 9
        # A view that is read-only here is read-only there.
        y.flags.writeable = False
        assert "read-only" in await ask(comm, "write", y, value=10)
        assert y[0] == 9


@gen_test()
async def test_a_change_by_the_sender_is_seen_by_the_receiver(server):
    x = shared.empty(10, "u1")
    async with connected(server.address) as comm:
        x[:] = 1
        assert await ask(comm, "hold", x) == 10
        x[:] = 2
        received = await ask(comm, "held", index=0)
        assert list(received) == [2] * 10
        await ask(comm, "drop")


@gen_test()
async def test_frozen_memory_is_shared_and_cannot_be_written_by_peers(server):
    x = shared.freeze(shared.copy(np.arange(1000, dtype="u1")))
    async with connected(server.address) as comm:
        assert await sent_bytes(comm, x) < 600
        assert "read-only" in await ask(comm, "write", x, value=9)


@gen_test()
async def test_a_receiver_passes_memory_on(server):
    with serving() as other:
        async with connected(other.address) as last:
            for index, address in enumerate((server.address, server.relay)):
                x = numbers(100_000)
                async with connected(address) as comm:
                    expected = int(x.view("u1").sum())
                    assert await ask(comm, "pass on", x, to=other.address) == expected
                assert (await ask(last, "state"))["maps"] == index + 1
                assert is_same_memory(await ask(last, "held", index=index), x)


@gen_test()
async def test_serialized_values_of_a_relay_are_views_of_the_memory(server):
    x = numbers(100_000)
    async with connected(server.address, deserialize=False) as comm:
        received = await ask(comm, "echo", x)
        assert type(received) is Serialized
        assert is_same_memory(received.frames[-1], x)
        assert await comm.write({"op": "echo", "x": received}) < 600
        await comm.read()


# What travels as bytes


@pytest.mark.parametrize("kind", ["tcp", "switched off", "no pickle", "compressed"])
@gen_test()
async def test_memory_travels_as_bytes_where_sharing_is_impossible(kind):
    received = []

    async def receive(comm):
        received.append(await comm.read())
        await comm.close()

    x = shared.empty(100_000, "u4") if kind == "compressed" else numbers(100_000)
    address = "tcp://127.0.0.1:0" if kind == "tcp" else "unix://"
    settings = {"distributed.comm.shared.enabled": False} if kind == "switched off" else {}
    options: dict[str, Any] = {}
    if kind == "no pickle":
        options["allow_pickle"] = False
    if kind == "compressed":
        pytest.importorskip("lz4")
        settings["distributed.comm.compression"] = "lz4"
        options["handshake_overrides"] = {"compression": "lz4"}
    with config.set(settings):
        async with listen(address, receive) as listener:
            if kind == "compressed":
                on_connection = listener.on_connection
                listener.on_connection = lambda comm: on_connection(comm, {"compression": "lz4"})
            async with connected(listener.contact_address, **options) as comm:
                size = await comm.write(to_serialize(x))
                await async_poll_for(lambda: received, 5)
    assert size > 1000
    np.testing.assert_array_equal(received[0], x)
    assert received[0].flags.writeable
    assert not is_same_memory(received[0], x)


@gen_test()
async def test_more_regions_than_fit_into_a_message_travel_as_bytes(server):
    arrays = [shared.copy(np.full(1000, i % 256, "u1")) for i in range(MAX_DESCRIPTORS + 20)]
    async with connected(server.address) as comm:
        await comm.write({"op": "echo", "x": [to_serialize(x) for x in arrays]})
        received = await comm.read()
    for x, y in zip(arrays, received, strict=True):
        np.testing.assert_array_equal(x, y)
    assert sum(map(is_same_memory, arrays, received)) == MAX_DESCRIPTORS


@gen_test()
async def test_the_limits_of_the_receiver_are_kept(server):
    limits = {
        "distributed.comm.shared.max-descriptors": 2,
        "distributed.comm.shared.max-bytes": 100_000,
    }
    with config.set(limits):
        comm = await connect(server.address)
    assert comm.features["shared"] == (2, 100_000)
    x, y, z = (shared.empty(40_000, "u1") for _ in range(3))
    large = shared.empty(90_000, "u1")
    assert await comm.write({"op": "echo", "x": [to_serialize(a) for a in (x, y, z)]}) > 40_000
    assert list(map(is_same_memory, await comm.read(), (x, y, z))) == [True, True, False]
    assert await comm.write({"op": "echo", "x": [to_serialize(a) for a in (x, large)]}) > 90_000
    assert list(map(is_same_memory, await comm.read(), (x, large))) == [True, False]
    await comm.close()


@gen_test()
async def test_memory_travels_as_bytes_if_too_many_descriptors_wait_to_be_received(
    server, monkeypatch
):
    def refuse(self, buffers, descriptors):
        # The kernel exempts root from its limit.
        raise OSError(errno.ETOOMANYREFS, "too many references")

    x = numbers(10_000)
    async with connected(server.address) as comm:
        assert is_same_memory(await ask(comm, "echo", x), x)
        monkeypatch.setattr(DescriptorSocket, "send_with", refuse)
        received = await ask(comm, "echo", x)
        monkeypatch.undo()
        np.testing.assert_array_equal(received, x)
        assert not is_same_memory(received, x)
        assert is_same_memory(await ask(comm, "echo", x), x)


@gen_test()
async def test_memory_travels_as_bytes_through_a_proxy(server):
    x = numbers(10_000)
    async with Relay(server.address, lambda: (10**9, 10**9)).running() as relay:
        for _ in range(2):
            async with connected(relay.address) as comm:
                for _ in range(2):
                    received = await ask(comm, "echo", x)
                    np.testing.assert_array_equal(received, x)
                    assert not is_same_memory(received, x)


@pytest.mark.parametrize("where", [(os, "eventfd"), (DescriptorSocket, "send_with")])
@gen_test()
async def test_memory_travels_as_bytes_to_a_peer_without_a_probe(server, monkeypatch, where):
    def refuse(*args):
        raise OSError(errno.ETOOMANYREFS, "too many references")

    x = numbers(10_000)
    async with connected(server.address) as comm:
        monkeypatch.setattr(*where, refuse)
        # The server gets no probe from here.
        received = await ask(comm, "echo", x)
        monkeypatch.undo()
        np.testing.assert_array_equal(received, x)
        assert not is_same_memory(received, x)


# Messages in order, in pieces and in threads


@gen_test()
async def test_many_messages_of_all_kinds_arrive_in_order():
    arrays = [shared.copy(np.full(100 + i, i % 256, "u1")) for i in range(20)]
    large = os.urandom(3 * MB)
    sent = []
    for i in range(60):
        sent.append(
            [
                {"i": i},
                {"i": i, "x": to_serialize(arrays[i % 20])},
                {"i": i, "x": to_serialize(arrays[i % 20]), "y": to_serialize(large)},
                {"i": i, "y": [to_serialize(x) for x in arrays[: i % 20]]},
            ][i % 4]
        )
    received: list[Any] = []

    async def receive(comm):
        while len(received) < len(sent):
            received.append(await comm.read())
            await asyncio.sleep(0)
        await comm.close()

    async with listen("unix://", receive) as listener, connected(listener.contact_address) as comm:
        for msg in sent:
            await comm.write(msg)
        await async_poll_for(lambda: len(received) == len(sent), 10)
    for msg, got in zip(sent, received, strict=True):
        assert got["i"] == msg["i"]
        assert set(got) == set(msg)
        if "x" in msg:
            assert is_same_memory(got["x"], msg["x"].data)
        if type(msg.get("y")) is list:
            assert all(map(is_same_memory, got["y"], (y.data for y in msg["y"])))
        elif "y" in msg:
            assert got["y"] == large


@gen_test()
async def test_both_sides_begin_to_share_at_the_same_time():
    x, y = numbers(10_000), numbers(10_000)
    received = []

    async def talk(comm):
        await comm.write({"x": to_serialize(y)})
        received.append(await comm.read())
        await comm.close()

    async with listen("unix://", talk) as listener, connected(listener.contact_address) as comm:
        await comm.write({"x": to_serialize(x)})
        got = await comm.read()
        await async_poll_for(lambda: received, 5)
    assert is_same_memory(got["x"], y)
    assert is_same_memory(received[0]["x"], x)


@pytest.mark.parametrize("threshold", [None, "100kB"])
@gen_test()
async def test_messages_of_several_tasks_arrive_in_the_order_of_their_writes(
    threshold, monkeypatch
):
    monkeypatch.setattr(memory_pool, "_pool", [])
    x = numbers(10_000)
    large = np.arange(5 * MB, dtype="u1")
    values = [0, to_serialize(x), 1, to_serialize(large), 2, to_serialize(x), 3]
    received: list[int] = []

    async def receive(comm):
        with contextlib.suppress(CommClosedError):
            while True:
                received.append((await comm.read())["number"])

    with config.set({"distributed.comm.shared.threshold": threshold}):
        async with (
            listen("unix://", receive) as listener,
            connected(listener.contact_address) as comm,
        ):
            messages = [{"number": i, "x": value} for i, value in enumerate(values)]
            await asyncio.gather(*map(comm.write, messages))
            await async_poll_for(lambda: len(received) == len(values), 5)
    assert received == list(range(len(values)))


@gen_test()
async def test_traffic_counts_each_byte_of_messages_with_shared_memory():
    counts = Traffic(), Traffic()
    arrived = asyncio.Event()
    x, large = numbers(10_000), np.zeros(20 * MB, "u1")

    async def receive(comm):
        comm.count_in(counts[1])
        await comm.read()
        await comm.read()
        arrived.set()
        await comm.close()

    async with listen("unix://", receive) as listener, connected(listener.contact_address) as comm:
        comm.count_in(counts[0])
        await comm.write({"x": to_serialize(x)})
        await comm.write({"x": to_serialize(x), "large": to_serialize(large)})
        await arrived.wait()
    sent, got = counts
    assert sent.bytes_sent == got.bytes_received > 20 * MB
    assert got.bytes_sent == sent.bytes_received > 0
    assert sent.waits == 1


@gen_test()
async def test_shared_memory_in_a_message_that_a_thread_serializes(server, monkeypatch):
    x = numbers(10_000)
    threads = []

    class Noting:
        def __reduce__(self):
            threads.append(threading.current_thread())
            return list, ()

    monkeypatch.setattr("distributed.comm.offloading.OFFLOAD_THRESHOLD", 10, raising=False)
    async with connected(server.address) as comm:
        await comm.write({"op": "echo", "x": [Noting(), to_serialize(x)]})
        received = await comm.read()
    assert threads[-1] is not threading.main_thread()
    assert is_same_memory(received[1], x)


@gen_test()
async def test_batched_messages_share_memory():
    received: list[Any] = []

    async def receive(comm):
        with contextlib.suppress(CommClosedError):
            while True:
                received.extend(await comm.read())

    x, y = numbers(10_000), numbers(20_000)
    async with listen("unix://", receive) as listener, connected(listener.contact_address) as comm:
        stream = BatchedSend(interval=0.001)
        stream.start(comm)
        stream.send({"x": to_serialize(x)})
        stream.send({"y": to_serialize(y)})
        await async_poll_for(lambda: len(received) == 2, 5)
        await stream.close()
    assert is_same_memory(received[0]["x"], x)
    assert is_same_memory(received[1]["y"], y)


@gen_test()
async def test_a_write_without_a_reader_at_the_other_side_does_not_wait_for_one():
    ready = asyncio.Event()
    x = numbers(10_000)
    received = []

    async def receive(comm):
        await ready.wait()
        received.append(await comm.read())
        await comm.close()

    async with listen("unix://", receive) as listener, connected(listener.contact_address) as comm:
        await comm.write({"x": to_serialize(x)})
        ready.set()
        await async_poll_for(lambda: received, 5)
    assert is_same_memory(received[0]["x"], x)


@gen_test()
async def test_two_peers_that_write_much_before_they_read_do_not_wait_for_each_other():
    large = b"x" * 20 * MB
    x = numbers(1000)
    received = []

    async def talk(comm):
        for _ in range(2):
            await comm.write({"large": to_serialize(large)})
        received.append(await comm.read())
        received.append(await comm.read())
        await comm.close()

    async with listen("unix://", talk) as listener, connected(listener.contact_address) as comm:
        await comm.write("first")
        # The peer's messages have come, and no task reads them.
        await async_poll_for(lambda: comm.has_unread, 5)
        await comm.write({"x": to_serialize(x)})
        for _ in range(2):
            assert len((await comm.read())["large"]) == len(large)
        await async_poll_for(lambda: len(received) == 2, 5)
    np.testing.assert_array_equal(received[1]["x"], x)


@gen_test()
async def test_a_peer_that_disconnects_ends_a_write_that_waits_for_it():
    x = numbers(1000)
    hello = {**HANDSHAKE, "features": {"shared": (253, 2**30), "keepalive": (15, 30)}}
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{directory}/s")
        listening.listen()
        listening.setblocking(False)
        loop = asyncio.get_running_loop()

        async def accept():
            sock, _ = await loop.sock_accept(listening)
            with sock:
                sock.setblocking(False)
                await loop.sock_sendall(sock, message(hello))
                # The handshake, and the announcement of descriptors.
                for _ in range(2):
                    await loop.sock_recv(sock, 2**16)

        accepting = asyncio.create_task(accept())
        comm = await connect(f"unix://{directory}/s")
        with pytest.raises(CommClosedError):
            await comm.write({"x": to_serialize(x)})
        assert comm.closed()
        await accepting


# Lifetime


def region_count() -> int:
    return int(state()["maps"])


@gen_test()
async def test_memory_is_freed_with_the_last_view(server):
    gc.collect()
    before = state()
    x = numbers(1_000_000)
    async with connected(server.address) as comm:
        there = await ask(comm, "state")
        await ask(comm, "hold", x, step=4096)
        await ask(comm, "hold", x[:10])
        assert (await ask(comm, "state"))["maps"] == there["maps"] + 1
        del x
        # The receiver alone has the memory now.
        assert region_count() == before["maps"]
        assert list(await ask(comm, "held", index=1)) == list(range(10))
        await ask(comm, "drop")
        assert await ask(comm, "state") == there
    await async_poll_for(lambda: state()["descriptors"] <= before["descriptors"], 5)
    assert region_count() == before["maps"]


SENDER = """
import asyncio, os, sys
from distributed import shared
from distributed.comm import connect
from distributed.protocol import to_serialize

async def main():
    memory = shared.buffer(10 * 2**20)
    memory[::4096] = b"x" * len(memory[::4096])
    comm = await connect(sys.argv[1])
    await comm.write({"op": "hold", "step": 4096, "x": to_serialize(memory)})
    await comm.read()
    print("sent", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


@gen_test()
async def test_memory_outlives_a_sender_that_is_killed_and_then_nothing_is_left(server):
    async with connected(server.address) as comm:
        before = await ask(comm, "state")
        with subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", SENDER, server.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as sender:
            assert sender.stdout is not None
            await asyncio.to_thread(sender.stdout.readline)
            sender.send_signal(signal.SIGKILL)
            await asyncio.to_thread(sender.wait)
        received = await ask(comm, "held", index=0)
        assert bytes(received[:: 2**20]) == b"x" * 10
        del received
        await ask(comm, "drop")
        gc.collect()

        async def is_as_before():
            return await ask(comm, "state") == before

        # The server notices the end of the connection soon.
        await async_poll_for(is_as_before, period=0.01)


@gen_test()
async def test_nothing_is_left_of_a_receiver_that_is_killed():
    x = numbers(1000)
    with serving() as running:
        comm = await connect(running.address)
        await ask(comm, "hold", x)
        files = os.listdir("/dev/shm")
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(CommClosedError):
            await comm.read()
        await comm.close()
    # The memory has no name, and the last holder is this process.
    assert os.listdir("/dev/shm") == files
    np.testing.assert_array_equal(x, np.arange(1000))


@gen_test(timeout=60)
async def test_eight_receivers_hold_one_resident_copy():
    size = 64 * MB
    x = shared.empty(size, "u1")
    x[:] = 1
    with serving_many(8) as running:
        comms = [await connect(receiver.address) for receiver in running]
        for comm in comms:
            assert await ask(comm, "hold", x, step=4096) == size // 4096
        found = [await ask(comm, "memory") for comm in comms]
        # Every receiver has read all pages.
        assert [sizes["Rss"] for sizes in found] == [size] * 8
        total = memory()["Pss"] + sum(sizes["Pss"] for sizes in found)
        assert 0.95 * size < total < 1.05 * size
        for comm in comms:
            await comm.close()


# Ordinary memory that is copied into shared memory


@pytest.fixture
def lending():
    """Copy buffers of 100 kB and more into shared memory."""
    with config.set({"distributed.comm.shared.threshold": "100kB"}):
        yield


@gen_test()
async def test_large_arrays_are_copied_into_shared_memory_above_the_threshold(server, lending):
    async with connected(server.address) as comm:
        for x in (np.arange(100_000), [np.ones(50_000), np.zeros(50_000)]):
            assert await comm.write({"op": "echo", "x": to_serialize(x)}) < 2000
            np.testing.assert_array_equal(await comm.read(), x)
        assert await comm.write({"op": "echo", "x": to_serialize(b"x" * 200_000)}) < 2000
        assert await comm.read() == b"x" * 200_000
        assert await comm.write({"op": "echo", "x": to_serialize(np.ones(10_000))}) > 80_000
        await comm.read()


@gen_test()
async def test_copied_arrays_are_writable_and_independent(server, lending):
    async with connected(server.address) as comm:
        x = np.zeros(200_000, "u1")
        assert await ask(comm, "write", x, value=5) == "written"
        assert x[0] == 0
        for i in range(5):
            x[:] = i
            assert await ask(comm, "hold", x) == i * 200_000
        # A region that the receiver uses is not written again.
        for i in range(5):
            assert set((await ask(comm, "held", index=i)).tolist()) == {i}
        await ask(comm, "drop")


@gen_test()
async def test_the_parts_of_a_split_array_arrive_as_one_view(lending):
    received = []

    async def receive(comm):
        received.append(await comm.read())
        await comm.close()

    x = np.arange(1_000_000, dtype="u4")
    with config.set({"distributed.comm.shard": 150_000}):
        listener = await listen("unix://", receive)
        comm = await connect(listener.contact_address)
    assert await comm.write({"x": to_serialize(x)}) < 3000
    await async_poll_for(lambda: received, 5)
    await comm.close()
    listener.stop()
    y = received[0]["x"]
    np.testing.assert_array_equal(x, y)
    # Joining the parts would have copied them into other memory.
    assert type(y.base).__name__.startswith("c_ubyte_Array")


@gen_test()
async def test_regions_come_back_without_a_message(server, lending, monkeypatch):
    pool = []
    monkeypatch.setattr(memory_pool, "_pool", pool)
    x = np.ones(800_000, "u1")
    async with connected(server.address) as comm:
        for _ in range(20):
            assert await ask(comm, "hold", x, step=4096) > 0
            await ask(comm, "drop")
        # One is lent until the server has forgotten the message.
        assert 1 <= len(pool) <= 3
        await ask(comm, "hold", x)
        assert not all(loan.is_free for loan in pool)
    assert await ask_once(server, "drop")

    async def has_no_maps():
        return not (await ask_once(server, "state"))["maps"]

    # The server has forgotten the connection, and all of its mappings.
    await async_poll_for(has_no_maps, period=0.005)


async def ask_once(server, op):
    async with connected(server.address) as comm:
        return await ask(comm, op)
