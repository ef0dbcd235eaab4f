"""Message streams, and the future that resumes their readers."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import sys
import weakref
from collections import deque
from contextlib import asynccontextmanager

import pytest
from tornado.iostream import StreamClosedError

from distributed.comm.inline_future import InlineFuture
from distributed.comm.message_stream import MessageStream
from distributed.comm.stream import StreamComm
from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import Limits, MessageDecoder, pack_message
from distributed.utils_test import async_poll_for, gen_test


def in_a_callback(function, *args):
    """Return a future with the result of *function*, called by the event loop."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_soon(lambda: done.set_result(function(*args)))
    return done


async def waiting(future: InlineFuture) -> None:
    await async_poll_for(lambda: future.wake is not None)


@gen_test()
async def test_the_waiter_resumes_inside_resolve():
    future = InlineFuture(asyncio.get_running_loop())
    seen = []

    async def wait():
        seen.append(await future)
        seen.append(await future)

    task = asyncio.create_task(wait())
    for i in range(2):
        await waiting(future)

        def resolve(i=i):
            future.resolve(i)
            return list(seen)

        assert await in_a_callback(resolve) == list(range(i + 1))
    await task
    assert future.wake is None


@gen_test()
async def test_the_waiter_gets_the_error():
    future = InlineFuture(asyncio.get_running_loop())

    async def wait():
        with pytest.raises(ZeroDivisionError, match="now"):
            await future
        with pytest.raises(ZeroDivisionError, match="soon"):
            await future
        return await future

    task = asyncio.create_task(wait())
    await waiting(future)
    future.error = ZeroDivisionError("now")
    await in_a_callback(future.resolve)
    await waiting(future)
    future.resolve_soon(ZeroDivisionError("soon"))
    assert future.wake is None
    await waiting(future)
    await in_a_callback(future.resolve, "result")
    assert await task == "result"


@gen_test()
async def test_a_wait_can_be_cancelled_and_time_out():
    future = InlineFuture(asyncio.get_running_loop())

    async def wait():
        try:
            await future
        except asyncio.CancelledError as exc:
            return exc.args

    for args in ((), ("why",)):
        task = asyncio.create_task(wait())
        await waiting(future)
        assert task.cancel(*args)
        assert future.wake is None
        assert await task == args

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await future
    assert not future.cancel()

    # A task may also be cancelled before it waits.
    asyncio.current_task().cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    asyncio.current_task().uncancel()
    assert future.wake is None


@gen_test()
async def test_the_waiter_resumes_in_its_own_context():
    variable = contextvars.ContextVar("variable", default="outside")
    future = InlineFuture(asyncio.get_running_loop())

    async def wait():
        variable.set("inside")
        await future
        return variable.get(), asyncio.current_task().get_name()

    task = asyncio.create_task(wait(), name="me")
    await waiting(future)

    def resolve():
        future.resolve()
        return variable.get()

    assert await in_a_callback(resolve) == "outside"
    assert await task == ("inside", "me")


@asynccontextmanager
async def stream_and_peer():
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    stream = MessageStream(ours)
    stream.notice_end()
    try:
        yield stream, peer
    finally:
        stream.close()
        peer.close()


def packed(*frames):
    return b"".join(pack_message(frames)[0])


async def read(stream):
    frames = stream.read_message()
    return [bytes(frame) for frame in (frames if isinstance(frames, list) else await frames)]


@gen_test()
async def test_messages_received_without_a_reader_are_read_in_order():
    async with stream_and_peer() as (stream, peer):
        loop = asyncio.get_running_loop()
        # This is far more than the buffers of the sockets hold.
        messages = [packed(bytes([i]) * 50_000) for i in range(100)]
        sending = asyncio.create_task(loop.sock_sendall(peer, b"".join(messages)))
        await async_poll_for(lambda: stream._read_buffer_size > 0)
        for i in range(100):
            assert await read(stream) == [bytes([i]) * 50_000]
        await sending


@pytest.mark.parametrize("read_before", [False, True])
@gen_test()
async def test_messages_received_before_the_end_are_read(read_before):
    async with stream_and_peer() as (stream, peer):
        if read_before:
            peer.send(packed(b"first") + packed(b"second"))
            assert await read(stream) == [b"first"]
        else:
            peer.send(packed(b"second"))
        peer.close()
        await async_poll_for(lambda: stream.closed() or stream._read_buffer_size)
        assert await read(stream) == [b"second"]
        with pytest.raises(StreamClosedError):
            await read(stream)
        with pytest.raises(StreamClosedError):
            await read(stream)


@gen_test()
async def test_a_partial_message_at_the_end_is_an_error():
    async with stream_and_peer() as (stream, peer):
        peer.send(packed(b"x" * 100)[:50])
        await async_poll_for(lambda: stream._read_buffer_size)
        stream.close()
        with pytest.raises(StreamClosedError):
            await read(stream)


@gen_test()
async def test_the_stream_closes_with_its_peer_even_without_a_reader():
    for early in (False, True):
        async with stream_and_peer() as (stream, peer):
            if early:
                # Tornado stops watching the socket when data comes while no task reads.
                peer.send(packed(b"x"))
                await async_poll_for(lambda stream=stream: stream._read_buffer_size)
                assert await read(stream) == [b"x"]
            peer.close()
            await async_poll_for(stream.closed)


@gen_test()
async def test_the_reader_gets_an_error_when_either_side_closes():
    for close in (lambda stream, peer: stream.close(), lambda stream, peer: peer.close()):
        async with stream_and_peer() as (stream, peer):
            reading = asyncio.create_task(read(stream))
            await async_poll_for(lambda stream=stream: stream.reading())
            close(stream, peer)
            with pytest.raises(StreamClosedError):
                await reading


@gen_test()
async def test_the_reader_gets_the_error_of_an_invalid_message():
    async with stream_and_peer() as (stream, peer):
        stream.decoder.limits = Limits(max_message_size=10)
        reading = asyncio.create_task(read(stream))
        await async_poll_for(stream.reading)
        peer.send(packed(b"x" * 11))
        with pytest.raises(FramingError, match="11 bytes"):
            await reading


@gen_test()
async def test_a_cancelled_read_loses_no_data():
    async with stream_and_peer() as (stream, peer):
        reading = asyncio.create_task(read(stream))
        await async_poll_for(stream.reading)
        reading.cancel()
        await asyncio.wait({reading})
        assert reading.cancelled()
        peer.send(packed(b"x"))
        assert await read(stream) == [b"x"]


@pytest.mark.parametrize(
    "sizes",
    [[5], [5, 0, 7], [100_000] * 3, [1] * 5000, [10_000_000, 3], [40_000] * 2000],
    ids=["one", "three", "large", "more than one call takes", "more than fits", "many and large"],
)
@gen_test()
async def test_buffers_of_any_number_and_size_are_sent_in_order(sizes):
    async with stream_and_peer() as (stream, peer):
        loop = asyncio.get_running_loop()
        buffers = [bytes([i % 251]) * size for i, size in enumerate(sizes)]
        whole = b"".join(buffers)
        for _ in range(2):
            # The second message is sent while a part of the first is waiting.
            written = stream.send(buffers, len(whole))
        received = bytearray()
        while len(received) < 2 * len(whole):
            received += await loop.sock_recv(peer, 2**20)
        if written is not None:
            await written
        assert received == 2 * whole


@gen_test()
async def test_the_queues_of_an_idle_stream_take_little_memory():
    async with stream_and_peer() as (stream, _):
        queues = stream._write_futures, stream._write_buffer._buffers
        assert sum(map(sys.getsizeof, queues)) < sys.getsizeof(deque()) / 4


@pytest.mark.parametrize("size", [1, 5000])
@gen_test()
async def test_many_writes_are_done_in_order_and_wait_in_a_deque(size):
    async with stream_and_peer() as (stream, peer):
        loop = asyncio.get_running_loop()
        whole = bytes(2**20)
        stream.send([whole], len(whole))
        done = []
        for i in range(1000):
            written = stream.write(bytes([i % 251]) * size)
            written.add_done_callback(lambda _, i=i: done.append(i))
        # Removing the first item of a list takes time in proportion to its length.
        assert type(stream._write_futures) is deque
        # Tornado joins small writes in its buffer.
        assert size == 1 or type(stream._write_buffer._buffers) is deque
        received = bytearray()
        while len(received) < len(whole) + 1000 * size:
            received += await loop.sock_recv(peer, 2**20)
        await written
        assert done == list(range(1000))
        assert received[len(whole) :: size] == bytes(i % 251 for i in range(1000))
        assert not stream.writing()


@pytest.mark.parametrize("number", [3, 1000])
@gen_test()
async def test_a_stream_that_is_closed_ends_all_writes(number):
    async with stream_and_peer() as (stream, _):
        whole = bytes(2**20)
        stream.send([whole], len(whole))
        writes = [stream.write(b"x") for _ in range(number)]
        stream.close()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert set(map(type, results)) == {StreamClosedError}


@gen_test()
async def test_nothing_is_sent_on_a_closed_stream():
    async with stream_and_peer() as (stream, _):
        stream.close()
        with pytest.raises(StreamClosedError):
            stream.send([b"x"], 1)


@pytest.mark.parametrize("buffers", [[b"x"], [b"x", b"y"]])
@gen_test()
async def test_sending_to_a_disconnected_peer_closes_the_stream(buffers):
    async with stream_and_peer() as (stream, peer):
        peer.close()
        with pytest.raises(StreamClosedError) as info:
            stream.send(buffers, len(buffers))
        assert isinstance(info.value.real_error, BrokenPipeError)
        assert stream.closed()


@gen_test()
async def test_any_other_error_closes_the_stream_and_is_logged(monkeypatch):
    def buffer_updated(decoder, nbytes):
        raise MemoryError("too much")

    loop = asyncio.get_running_loop()
    logged = []
    loop.set_exception_handler(lambda loop, context: logged.append(context["exception"]))
    async with stream_and_peer() as (stream, peer):
        reading = asyncio.create_task(read(stream))
        await async_poll_for(stream.reading)
        monkeypatch.setattr(MessageDecoder, "buffer_updated", buffer_updated)
        peer.send(packed(b"x"))
        with pytest.raises(StreamClosedError) as info:
            await reading
        assert isinstance(info.value.real_error, MemoryError)
        assert stream.closed()
    assert list(map(str, logged)) == ["too much"]


@pytest.mark.parametrize("ending", ["peer closes", "garbage", "abort", "cancel"])
@gen_test()
async def test_a_failed_read_leaves_no_reference_cycle(ending):
    ours, peer = socket.socketpair()
    with peer:
        comm = StreamComm(MessageStream(ours), "inproc://here", "inproc://there")
        reading = asyncio.create_task(comm.read())
        await async_poll_for(comm.stream.reading)
        gc.collect()
        gc.disable()
        try:
            if ending == "peer closes":
                peer.close()
            elif ending == "garbage":
                peer.send(b"\xff" * 100)
            elif ending == "abort":
                comm.abort()
            else:
                reading.cancel()
            await asyncio.wait({reading})
            left = [weakref.ref(comm), weakref.ref(reading)]
            if not reading.cancelled():
                left.append(weakref.ref(reading.exception()))
            del comm, reading
            await async_poll_for(lambda: not any(ref() for ref in left))
        finally:
            gc.enable()
