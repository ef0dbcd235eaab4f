"""The cost of a call, counted: system calls, tasks, futures, copied bytes and function calls.

Counts do not depend on the machine or its load, as times would.  Client and server share one
process and one event loop here, so each count is for both sides together.  System calls, tasks and
futures are exact.  The limits of function calls are about a quarter above what is measured, so that
they fail for an expensive change and not for one more helper function.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import socket
import struct
import sys
from collections import Counter
from contextlib import asynccontextmanager, contextmanager

import pytest

import distributed
from distributed.base import config
from distributed.batched import BatchedSend
from distributed.comm import Comm, connect, get_address_host
from distributed.comm.message_stream import MessageStream
from distributed.core import ConnectionPool, rpc
from distributed.protocol import to_serialize
from distributed.protocol.framing import READ_SIZE, MessageDecoder
from distributed.tests import servers
from distributed.tests.servers import TCP, Gate
from distributed.utils_test import async_poll_for, gen_test

PACKAGE = os.path.dirname(distributed.__file__) + os.sep
TESTS = f"{os.sep}tests{os.sep}"

CALLS = 200

over_sockets = pytest.mark.parametrize("address", [TCP, "unix://"])


@contextmanager
def counting():
    """Count function calls: those of C and of asyncio by name, those of this package as "ours".

    Each resumption of a coroutine counts as a call.  The garbage collector does not run meanwhile:
    it would finalize what earlier tests have left.
    """
    counts: Counter[str] = Counter()
    collects = gc.isenabled()

    def note(frame, event, arg):
        if event == "c_call":
            counts[arg.__qualname__] += 1
        elif event == "call":
            code = frame.f_code
            if not code.co_filename.startswith(PACKAGE):
                counts[code.co_qualname] += 1
            elif TESTS not in code.co_filename:
                counts["ours"] += 1
                counts["of config"] += code.co_filename == config.__file__

    gc.disable()
    sys.setprofile(note)
    try:
        yield counts
    finally:
        sys.setprofile(None)
        if collects:
            gc.enable()


def add(x, y):
    return x + y


@asynccontextmanager
async def serving(address=TCP, handlers=None, **kwargs):
    """Run a server with the operation "add" and without periodic callbacks."""
    async with servers.serving(address, {"add": add, **(handlers or {})}, **kwargs) as server:
        for callback in server.periodic_callbacks.values():
            callback.stop()
        yield server


async def cost(call, times=CALLS):
    """Return the average counts of *times* calls, after a few calls that are not counted."""
    for _ in range(3):
        await call()
    # Let the callbacks run that were scheduled before.
    for _ in range(3):
        await asyncio.sleep(0)
    with counting() as counts:
        for _ in range(times):
            await call()
    return Counter({name: count / times for name, count in counts.items()})


SYSTEM_CALLS = (
    *("epoll.poll", "epoll.register", "epoll.modify", "epoll.unregister"),
    *("socket.send", "socket.sendmsg", "socket.recv_into"),
)
LOOP_WORK = (
    *("BaseEventLoop.create_future", "BaseEventLoop.create_task"),
    *("BaseEventLoop.call_soon", "BaseEventLoop.call_at"),
)


def only(names, each):
    return {name: each[name] for name in names if each[name]}


@over_sockets
@pytest.mark.parametrize("pooled", [False, True])
@gen_test()
async def test_a_small_call_is_two_messages_and_nothing_else(address, pooled):
    async with serving(address) as server, ConnectionPool() as pool, rpc(server.address) as own:
        remote = pool(server.address) if pooled else own
        each = await cost(lambda: remote.add(x=1, y=2))
    # One iteration of the loop, one send and one receive for each message.
    assert only(SYSTEM_CALLS, each) == {"epoll.poll": 2, "socket.send": 2, "socket.recv_into": 2}
    # The reader resumes without a task, a future or the queue of the loop.
    assert only(LOOP_WORK, each) == {}
    assert each["of config"] == 0
    assert each["ours"] <= 80


@gen_test()
async def test_a_call_over_inproc_makes_only_the_system_calls_of_the_loop():
    async with serving("inproc://") as server, rpc(server.address) as remote:
        each = await cost(lambda: remote.add(x=1, y=2))
    assert set(only(SYSTEM_CALLS, each)) == {"epoll.poll"}
    assert each["epoll.poll"] <= 2
    assert each["of config"] == 0


@gen_test()
async def test_concurrent_calls_share_the_iterations_of_the_loop():
    async with serving() as server, rpc(server.address) as remote:

        async def many():
            await asyncio.gather(*(remote.add(x=1, y=2) for _ in range(50)))

        each = await cost(many, times=10)
    assert each["epoll.poll"] <= 10
    assert each["socket.send"] == each["socket.recv_into"] == 100


@gen_test()
async def test_the_cost_of_a_call_does_not_depend_on_other_connections_handlers_or_calls():
    costs = []
    for connections, handlers in ((1, 10), (300, 1000)):
        more = {f"handler_{i}": add for i in range(handlers)}
        async with serving(handlers=more) as server, rpc(server.address) as remote:
            idle = [await connect(server.address) for _ in range(connections)]
            await async_poll_for(lambda server=server, n=connections: len(server._comms) >= n)
            costs.append(await cost(lambda remote=remote: remote.add(x=1, y=2)))
            for _ in range(2000):
                await remote.add(x=1, y=2)
            costs.append(await cost(lambda remote=remote: remote.add(x=1, y=2)))
            for comm in idle:
                comm.abort()
    for name in ("ours", "epoll.poll", "socket.send", "socket.recv_into", "dict.get"):
        assert len({each[name] for each in costs}) == 1, name


class Moved:
    """A record of the buffers that streams send from and receive into."""

    def __init__(self, monkeypatch):
        self.sent: list[memoryview] = []
        self.received: list[tuple[object, int]] = []
        send, wanted = MessageStream.send, MessageDecoder.get_buffer
        buffer_updated = MessageDecoder.buffer_updated
        memory: dict[MessageDecoder, memoryview] = {}

        def sending(stream, buffers, nbytes):
            self.sent += map(memoryview, buffers)
            return send(stream, buffers, nbytes)

        def filling(decoder):
            memory[decoder] = wanted(decoder)
            return memory[decoder]

        def filled(decoder, nbytes):
            if nbytes:
                self.received.append((memoryview(memory[decoder]).obj, nbytes))
            return buffer_updated(decoder, nbytes)

        monkeypatch.setattr(MessageStream, "send", sending)
        monkeypatch.setattr(MessageDecoder, "get_buffer", filling)
        monkeypatch.setattr(MessageDecoder, "buffer_updated", filled)


@over_sockets
@gen_test()
async def test_only_the_kernel_copies_an_array(address, monkeypatch):
    np = pytest.importorskip("numpy")
    x = np.arange(125_000)
    kept = []

    def keep(data):
        kept.append(data)

    async with serving(address, {"keep": keep}) as server, rpc(server.address) as remote:
        await remote.keep(data=to_serialize(x))
        moved = Moved(monkeypatch)
        await remote.keep(data=to_serialize(x))
    # It is sent from its own memory,
    large = [view for view in moved.sent if view.nbytes >= x.nbytes]
    assert [np.shares_memory(np.asarray(view), x) for view in large] == [True]
    assert sum(view.nbytes for view in moved.sent) - x.nbytes < 1000
    # and received into its final memory, except for its beginning.
    memory = memoryview(kept[1].base)
    in_place = sum(nbytes for obj, nbytes in moved.received if obj is memory.obj)
    assert x.nbytes - READ_SIZE <= in_place < x.nbytes
    np.testing.assert_array_equal(kept[1], x)


@pytest.mark.parametrize("sizes", [[10_000], [10_000, 20_000, 30_000]], ids=["alike", "different"])
@gen_test()
async def test_a_call_with_an_array_needs_few_system_calls_and_no_future(sizes):
    np = pytest.importorskip("numpy")
    arrays = itertools.cycle([np.zeros(size) for size in sizes])
    async with serving() as server, rpc(server.address) as remote:
        each = await cost(lambda: remote.echo(data=to_serialize(next(arrays))))
    assert each["socket.sendmsg"] == 2
    assert each["epoll.poll"] <= 3
    assert each["socket.recv_into"] <= 4
    assert each["socket.send"] == 0
    assert only(LOOP_WORK, each) == {}
    assert each["ours"] <= 200


@gen_test()
async def test_a_batch_is_one_message():
    received = []
    async with serving(stream_handlers={"take": lambda i: received.append(i)}) as server:
        comm = await connect(server.address)
        await comm.write({"op": "connection_stream", "reply": False})
        batched = BatchedSend(interval="1ms")
        batched.start(comm)
        await asyncio.sleep(0)

        async def batch():
            del received[:]
            for i in range(100):
                batched.send({"op": "take", "i": i})
            await async_poll_for(lambda: len(received) == 100, period=0)

        each = await cost(batch, times=10)
        await batched.close()
    assert each["socket.send"] == each["socket.recv_into"] == 1
    # A message is put into the buffer, and its handler is called.
    assert each["ours"] <= 100 * 6


@gen_test()
async def test_a_connection_needs_few_system_calls():
    async with serving() as server:
        comms: list[Comm] = []

        async def connecting():
            comms.append(await connect(server.address))

        each = await cost(connecting, times=20)
        for comm in comms:
            comm.abort()
    assert get_address_host(comms[0].peer_address) == "127.0.0.1"
    assert each["socket.connect"] == each["socket.send"] / 2 == each["socket.recv_into"] / 2 == 1
    assert each["epoll.register"] == 2
    assert each["epoll.modify"] == each["epoll.unregister"] == 0
    if sys.platform == "linux":
        assert each["socket.setsockopt"] == 6
    # The settings are looked up, but not parsed again.
    assert each["of config"] <= 24
    assert each["ours"] <= 260


@over_sockets
@gen_test()
async def test_closed_comms_are_freed_without_the_garbage_collector(address):
    async with serving(address) as server:

        async def connecting():
            comm = await connect(server.address)
            await comm.close()

        async def calling():
            async with rpc(server.address) as remote:
                await remote.add(x=1, y=2)

        async def cancelling():
            gate = Gate()
            server.handlers["wait"] = gate.handle
            async with rpc(server.address) as remote:
                call = await gate.enter(remote.wait())
                call.cancel()
                await asyncio.wait([call])
            gate.open()

        async def resetting():
            comm = await connect(server.address)
            comm.stream.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            comm.abort()

        for use in (connecting, calling, cancelling, resetting):
            await use()
            await async_poll_for(lambda: not server._comms)
            gc.collect()
            gc.disable()
            try:
                await use()
                await async_poll_for(lambda: not server._comms)
                # Let the close callbacks run.
                for _ in range(3):
                    await asyncio.sleep(0)
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                left = [obj for obj in gc.garbage if isinstance(obj, MessageStream | Comm)]
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
            assert left == [], use.__name__


async def numbers(n):
    for number in range(n):
        yield number


@over_sockets
@gen_test()
async def test_a_small_item_of_a_stream_costs_a_fraction_of_a_call(address):
    async with serving(address, {"numbers": numbers}) as server, rpc(server.address) as remote:
        call = await cost(lambda: remote.add(x=1, y=2))

        async def read(n):
            async for _ in remote.numbers.stream(n=n):
                pass

        few, many = await cost(lambda: read(0), times=10), await cost(lambda: read(5120), times=10)
    each = Counter({name: (many[name] - few[name]) / 5120 for name in many})
    # Items that are ready travel in one message; their number is limited.
    for name in ("epoll.poll", "socket.send", "socket.recv_into"):
        assert each[name] <= 3 / 256, name
    for name in LOOP_WORK:
        assert each[name] <= 8 / 256, name
    assert each["ours"] <= 7
    assert each["ours"] <= call["ours"] / 7


@gen_test()
async def test_without_interceptors_a_call_costs_nothing_for_them():
    async def passing(call, proceed):
        return await proceed()

    each = []
    for interceptors in ((), [passing]):
        async with (
            serving(interceptors=interceptors) as server,
            rpc(server.address, interceptors=interceptors) as remote,
        ):
            each.append(await cost(lambda remote=remote: remote.add(x=1, y=2)))
    without, intercepted = each
    assert without["ours"] <= 75 < intercepted["ours"]


@pytest.mark.parametrize("address", [TCP, "unix://", "ws://127.0.0.1:0", "inproc://"])
@gen_test()
async def test_the_attributes_of_a_connection_need_no_dict_of_their_own(address):
    async with serving(address) as server, rpc(server.address) as remote:
        await remote.add(x=1, y=2)
        (client,) = remote.comms
        for comm in (client, *server._comms):
            parts = [comm]
            if not address.startswith("inproc"):
                parts.append(getattr(comm, "stream", None) or comm._stream)
            for part in parts:
                # With more than these, CPython gives each instance a dict of 1.5 kB and more.
                assert len(vars(part)) <= 30, (part, sorted(vars(part)))


async def cost_of_batches(count):
    """Return the average counts for one of *count* streams, each of which sends a batch."""
    received = asyncio.Event()
    missing = 0

    def note(key):
        nonlocal missing
        missing -= 1
        if not missing:
            received.set()

    async with serving() as server:
        server.stream_handlers["note"] = note
        streams = []
        for _ in range(count):
            comm = await connect(server.address)
            await comm.write({"op": "connection_stream", "reply": False})
            streams.append(BatchedSend(interval="2ms"))
            streams[-1].start(comm)

        async def send_batches():
            nonlocal missing
            missing = 5 * count
            received.clear()
            for stream in streams:
                stream.send(*[{"op": "note", "key": "task-1"}] * 5)
            await received.wait()

        each = await cost(send_batches, times=5)
        for stream in streams:
            await stream.close()
    return {name: each[name] / count for name in ("ours", *LOOP_WORK, "socket.send")}


@gen_test()
async def test_the_cost_of_a_batch_does_not_depend_on_the_number_of_streams():
    few, many = [await cost_of_batches(count) for count in (2, 100)]
    assert all(many[name] <= 1.05 * few[name] for name in few), (few, many)
