"""A stream of messages: who waits is told at once, and nothing is lost whoever is late."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from contextlib import asynccontextmanager

import pytest
from tornado.iostream import StreamClosedError

from distributed.comm.message_stream import Arrival, MessageStream
from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import Limits, MessageDecoder, pack_message
from distributed.utils_test import async_poll_for, gen_test


def in_a_callback(function, *args):
    """Return a future for what a callback of the event loop returns."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_soon(lambda: done.set_result(function(*args)))
    return done


async def waiting(arrival: Arrival) -> None:
    await async_poll_for(lambda: arrival.wake is not None)


@gen_test()
async def test_who_waits_goes_on_before_the_event_is_over():
    arrival = Arrival(asyncio.get_running_loop())
    seen = []

    async def wait():
        seen.append(await arrival)
        seen.append(await arrival)

    task = asyncio.create_task(wait())
    for i in range(2):
        await waiting(arrival)

        def resolve(i=i):
            arrival.resolve(i)
            return list(seen)

        assert await in_a_callback(resolve) == list(range(i + 1))
    await task
    assert arrival.wake is None


@gen_test()
async def test_an_error_is_raised_where_it_was_waited_for():
    arrival = Arrival(asyncio.get_running_loop())

    async def wait():
        with pytest.raises(ZeroDivisionError, match="now"):
            await arrival
        with pytest.raises(ZeroDivisionError, match="soon"):
            await arrival
        return await arrival

    task = asyncio.create_task(wait())
    await waiting(arrival)
    await in_a_callback(lambda: arrival.resolve(error=ZeroDivisionError("now")))
    await waiting(arrival)
    arrival.resolve_soon(ZeroDivisionError("soon"))
    assert arrival.wake is None
    await waiting(arrival)
    await in_a_callback(arrival.resolve, "result")
    assert await task == "result"


@gen_test()
async def test_a_wait_can_be_cancelled_and_time_out():
    arrival = Arrival(asyncio.get_running_loop())

    async def wait():
        try:
            await arrival
        except asyncio.CancelledError as exc:
            return exc.args

    for args in ((), ("why",)):
        task = asyncio.create_task(wait())
        await waiting(arrival)
        assert task.cancel(*args)
        assert arrival.wake is None
        assert await task == args

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await arrival
    assert not arrival.cancel()

    # And when the task is cancelled before it waits at all.
    asyncio.current_task().cancel()
    with pytest.raises(asyncio.CancelledError):
        await arrival
    asyncio.current_task().uncancel()
    assert arrival.wake is None


@gen_test()
async def test_a_task_goes_on_in_its_own_context():
    variable = contextvars.ContextVar("variable", default="outside")
    arrival = Arrival(asyncio.get_running_loop())

    async def wait():
        variable.set("inside")
        await arrival
        return variable.get(), asyncio.current_task().get_name()

    task = asyncio.create_task(wait(), name="me")
    await waiting(arrival)

    def resolve():
        arrival.resolve()
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
    frames = stream.next_message()
    return [bytes(frame) for frame in (frames if isinstance(frames, list) else await frames)]


@gen_test()
async def test_what_arrives_while_nobody_reads_is_read_in_order():
    async with stream_and_peer() as (stream, peer):
        loop = asyncio.get_running_loop()
        # Far more than what either of the buffers on the way takes.
        messages = [packed(bytes([i]) * 50_000) for i in range(100)]
        sending = asyncio.create_task(loop.sock_sendall(peer, b"".join(messages)))
        await async_poll_for(lambda: stream._read_buffer_size > 0)
        for i in range(100):
            assert await read(stream) == [bytes([i]) * 50_000]
        await sending


@pytest.mark.parametrize("read_before", [False, True])
@gen_test()
async def test_what_arrived_before_the_end_is_still_read(read_before):
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
async def test_a_part_of_a_message_before_the_end_is_waited_for_in_vain():
    async with stream_and_peer() as (stream, peer):
        peer.send(packed(b"x" * 100)[:50])
        await async_poll_for(lambda: stream._read_buffer_size)
        stream.close()
        with pytest.raises(StreamClosedError):
            await read(stream)


@gen_test()
async def test_the_end_is_noticed_by_nobody_who_reads_before_and_after_something_was_read():
    for early in (False, True):
        async with stream_and_peer() as (stream, peer):
            if early:
                # It arrives while nobody reads, and Tornado stops to watch the socket.
                peer.send(packed(b"x"))
                await async_poll_for(lambda stream=stream: stream._read_buffer_size)
                assert await read(stream) == [b"x"]
            peer.close()
            await async_poll_for(stream.closed)


@gen_test()
async def test_a_reader_is_told_when_the_stream_is_closed_on_either_side():
    for close in (lambda stream, peer: stream.close(), lambda stream, peer: peer.close()):
        async with stream_and_peer() as (stream, peer):
            reading = asyncio.create_task(read(stream))
            await async_poll_for(lambda stream=stream: stream.reading())
            close(stream, peer)
            with pytest.raises(StreamClosedError):
                await reading


@gen_test()
async def test_what_is_no_message_is_told_to_the_reader():
    async with stream_and_peer() as (stream, peer):
        stream.decoder.limits = Limits(max_message_size=10)
        reading = asyncio.create_task(read(stream))
        await async_poll_for(stream.reading)
        peer.send(packed(b"x" * 11))
        with pytest.raises(FramingError, match="11 bytes"):
            await reading


@gen_test()
async def test_a_read_that_is_cancelled_takes_nothing():
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
async def test_buffers_arrive_as_they_were_sent_however_many_and_large(sizes):
    async with stream_and_peer() as (stream, peer):
        loop = asyncio.get_running_loop()
        buffers = [bytes([i % 251]) * size for i, size in enumerate(sizes)]
        whole = b"".join(buffers)
        for _ in range(2):
            # The second one is sent before the first has left.
            written = stream.send(buffers, len(whole))
        received = bytearray()
        while len(received) < 2 * len(whole):
            received += await loop.sock_recv(peer, 2**20)
        if written is not None:
            await written
        assert received == 2 * whole


@gen_test()
async def test_nothing_is_sent_on_a_closed_stream():
    async with stream_and_peer() as (stream, _):
        stream.close()
        with pytest.raises(StreamClosedError):
            stream.send([b"x"], 1)


@pytest.mark.parametrize("buffers", [[b"x"], [b"x", b"y"]])
@gen_test()
async def test_a_peer_that_is_gone_is_noticed_by_who_sends(buffers):
    async with stream_and_peer() as (stream, peer):
        peer.close()
        with pytest.raises(StreamClosedError) as info:
            stream.send(buffers, len(buffers))
        assert isinstance(info.value.real_error, BrokenPipeError)
        assert stream.closed()


async def read_alike(stream, peer):
    """Read messages that are laid out alike, until the stream foresees the next one."""
    data = packed(b"message", b"x" * 100_000)
    for _ in range(3):
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(peer, data))
        assert await read(stream) == [b"message", b"x" * 100_000]
        await sending
    return data


@pytest.mark.parametrize("cut", [1, 30, 50, 5000])
@gen_test()
async def test_a_message_that_was_foreseen_may_end_early(cut):
    async with stream_and_peer() as (stream, peer):
        data = await read_alike(stream, peer)
        reading = asyncio.create_task(read(stream))
        await async_poll_for(stream.reading)
        peer.send(data[:cut])
        await async_poll_for(lambda: stream.decoder.in_message)
        peer.close()
        with pytest.raises(StreamClosedError):
            await reading


@gen_test()
async def test_a_read_that_is_cancelled_amid_what_was_foreseen_takes_nothing():
    async with stream_and_peer() as (stream, peer):
        data = await read_alike(stream, peer)
        reading = asyncio.create_task(read(stream))
        await async_poll_for(stream.reading)
        peer.send(data[:5000])
        await async_poll_for(lambda: stream.decoder.in_message)
        reading.cancel()
        await asyncio.wait({reading})
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(peer, data[5000:]))
        assert await read(stream) == [b"message", b"x" * 100_000]
        await sending


@gen_test()
async def test_something_else_than_was_foreseen_may_come_while_nobody_reads():
    async with stream_and_peer() as (stream, peer):
        await read_alike(stream, peer)
        peer.send(packed(b"a", b"b" * 1000) + packed(b"c") + packed(b"d" * 9000))
        await async_poll_for(lambda: stream._read_buffer_size)
        assert await read(stream) == [b"a", b"b" * 1000]
        assert await read(stream) == [b"c"]
        assert await read(stream) == [b"d" * 9000]


@gen_test()
async def test_whatever_else_fails_closes_the_stream_and_is_told(monkeypatch):
    def next_message(decoder, received=0):
        if received:
            raise MemoryError("too much")

    loop = asyncio.get_running_loop()
    told = []
    loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))
    async with stream_and_peer() as (stream, peer):
        reading = asyncio.create_task(read(stream))
        await async_poll_for(stream.reading)
        monkeypatch.setattr(MessageDecoder, "next_message", next_message)
        peer.send(packed(b"x"))
        with pytest.raises(StreamClosedError) as info:
            await reading
        assert isinstance(info.value.real_error, MemoryError)
        assert stream.closed()
    assert list(map(str, told)) == ["too much"]
