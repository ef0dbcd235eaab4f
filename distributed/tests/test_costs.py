"""What a call costs, counted: so many functions, system calls, futures and copied bytes, no more.

Counts do not depend on the machine or on what else it does, as times would.  Client and server are
in one process and on one event loop here, so that each count is for both sides together.  Where a
number has to change, it is because a call has come to cost more, or less.
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
from distributed.core import ConnectionPool, Server, rpc
from distributed.protocol import to_serialize
from distributed.protocol.framing import READ_SIZE, MessageDecoder
from distributed.utils_test import async_poll_for, gen_test

PACKAGE = os.path.dirname(distributed.__file__) + os.sep
TESTS = f"{os.sep}tests{os.sep}"

CALLS = 200


@contextmanager
def counting():
    """Count calls of functions: those written in C and those of asyncio's by name.

    Those that are written in this package count as "ours".  A coroutine counts each time that it
    goes on.
    """
    counts: Counter[str] = Counter()

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

    sys.setprofile(note)
    try:
        yield counts
    finally:
        sys.setprofile(None)


def add(x, y):
    return x + y


@asynccontextmanager
async def serving(address="tcp://127.0.0.1:0", handlers=None, **kwargs):
    """A server that does nothing by itself meanwhile."""
    async with Server({"add": add, **(handlers or {})}, **kwargs) as server:
        await server.listen(address)
        for callback in server.periodic_callbacks.values():
            callback.stop()
        yield server


async def cost(call, times=CALLS):
    """What each of so many calls costs, on average; the first ones are not counted."""
    for _ in range(3):
        await call()
    # What was scheduled before shall not be part of it.
    for _ in range(3):
        await asyncio.sleep(0)
    with counting() as counts:
        for _ in range(times):
            await call()
    return Counter({name: count / times for name, count in counts.items()})


def syscalls(each):
    return {
        name: each[name]
        for name in (
            "epoll.poll",
            "epoll.register",
            "epoll.modify",
            "epoll.unregister",
            "socket.send",
            "socket.sendmsg",
            "socket.recv_into",
        )
        if each[name]
    }


def loop_work(each):
    return {
        name: each[name]
        for name in (
            "BaseEventLoop.create_future",
            "BaseEventLoop.create_task",
            "BaseEventLoop.call_soon",
            "BaseEventLoop.call_at",
        )
        if each[name]
    }


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "unix://"])
@pytest.mark.parametrize("pooled", [False, True])
@gen_test()
async def test_a_small_call_is_two_messages_and_nothing_else(address, pooled):
    async with serving(address) as server, ConnectionPool() as pool, rpc(server.address) as own:
        remote = pool(server.address) if pooled else own
        each = await cost(lambda: remote.add(x=1, y=2))
    # For each message one turn of the loop, one send and one receive.
    assert syscalls(each) == {"epoll.poll": 2, "socket.send": 2, "socket.recv_into": 2}
    # Nobody is woken by way of the loop's queue.
    assert loop_work(each) == {}
    assert each["of config"] == 0
    assert each["ours"] <= 70


@gen_test()
async def test_over_inproc_a_call_makes_no_system_call_but_the_loops():
    async with serving("inproc://") as server, rpc(server.address) as remote:
        each = await cost(lambda: remote.add(x=1, y=2))
    assert set(syscalls(each)) == {"epoll.poll"}
    assert each["epoll.poll"] <= 2
    assert each["of config"] == 0


@gen_test()
async def test_calls_at_the_same_time_share_the_turns_of_the_loop():
    async with serving() as server, rpc(server.address) as remote:

        async def many():
            await asyncio.gather(*(remote.add(x=1, y=2) for _ in range(50)))

        each = await cost(many, times=10)
    assert each["epoll.poll"] <= 10
    assert each["socket.send"] == each["socket.recv_into"] == 100


@gen_test()
async def test_a_call_costs_the_same_whatever_else_there_is():
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
    """What streams sent and received, and where."""

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


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "unix://"])
@gen_test()
async def test_an_array_is_copied_by_the_kernel_alone(address, monkeypatch):
    np = pytest.importorskip("numpy")
    x = np.arange(125_000)
    kept = []

    def keep(data):
        kept.append(data)

    async with serving(address, {"keep": keep}) as server, rpc(server.address) as remote:
        await remote.keep(data=to_serialize(x))
        moved = Moved(monkeypatch)
        await remote.keep(data=to_serialize(x))
    # It is sent from where it is,
    large = [view for view in moved.sent if view.nbytes >= x.nbytes]
    assert [np.shares_memory(np.asarray(view), x) for view in large] == [True]
    assert sum(view.nbytes for view in moved.sent) - x.nbytes < 1000
    # and received to where it stays, but for its beginning.
    memory = memoryview(kept[1].base)
    in_place = sum(nbytes for obj, nbytes in moved.received if obj is memory.obj)
    assert x.nbytes - READ_SIZE <= in_place < x.nbytes
    np.testing.assert_array_equal(kept[1], x)


@gen_test()
async def test_an_array_takes_few_system_calls_and_no_future_that_small_calls_do_not():
    np = pytest.importorskip("numpy")
    x = np.arange(10_000)
    async with serving() as server, rpc(server.address) as remote:
        each = await cost(lambda: remote.echo(data=to_serialize(x)))
    # The beginning of each message is received apart from the rest.
    assert syscalls(each) == {"epoll.poll": 2, "socket.sendmsg": 2, "socket.recv_into": 4}
    assert loop_work(each) == {}
    assert each["ours"] <= 159


@gen_test()
async def test_arrays_that_differ_take_few_system_calls_too():
    np = pytest.importorskip("numpy")
    sizes = itertools.cycle([10_000, 20_000, 30_000])
    async with serving() as server, rpc(server.address) as remote:
        each = await cost(lambda: remote.echo(data=to_serialize(np.zeros(next(sizes)))))
    assert each["socket.sendmsg"] == 2
    assert each["socket.recv_into"] <= 4
    assert loop_work(each) == {}
    assert each["ours"] <= 159


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
    # For each message little is done: it is put into the buffer, and its handler called.
    assert each["ours"] <= 100 * 4.6


@gen_test()
async def test_a_connection_makes_few_system_calls_and_asks_nothing_twice():
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
    # The settings are looked at, but not interpreted again.
    assert each["of config"] <= 16
    assert each["ours"] <= 161


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "unix://"])
@gen_test()
async def test_what_ends_leaves_nothing_to_the_garbage_collector(address):
    async with serving(address) as server:

        async def connecting():
            comm = await connect(server.address)
            await comm.close()

        async def calling():
            async with rpc(server.address) as remote:
                await remote.add(x=1, y=2)

        async def cancelling():
            done = asyncio.Event()
            server.handlers["wait"] = done.wait
            async with rpc(server.address) as remote:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(remote.wait(), 0.01)
            done.set()

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
                # Callbacks that tell of the end.
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
