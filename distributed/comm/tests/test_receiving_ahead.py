"""While a write waits, a comm receives one message, which it holds for the next read."""

from __future__ import annotations

import asyncio
import struct

import pytest

from distributed.base import config
from distributed.comm.acknowledgements import FEATURE
from distributed.comm.control import MAX_UNREAD_CONTROLS, pack_control
from distributed.comm.core import CommClosedError
from distributed.comm.tests.transports import TRANSPORTS
from distributed.protocol.exceptions import MessageError
from distributed.protocol.serialize import to_serialize
from distributed.utils_test import async_poll_for, gen_test

SERIALIZING = [name for name, transport in TRANSPORTS.items() if transport.serializes]
STREAMS = ["tcp", "tls", "unix"]

MANY, SIZE = 24, 2**19

#: Number of parts of a message that is larger than the kernel's buffers can grow (32 MiB to receive
#: and 4 MiB to send are usual maxima of tcp_rmem and tcp_wmem), so its write waits for the peer.
TOO_MANY = 120


@pytest.fixture(params=SERIALIZING)
def transport(request):
    return TRANSPORTS[request.param]


@pytest.fixture(params=STREAMS)
def stream_transport(request):
    return TRANSPORTS[request.param]


def large(fill: int, parts: int = MANY) -> list[object]:
    """Return a message of 12 MiB, in several frames."""
    return [to_serialize(bytearray([fill]) * SIZE) for _ in range(parts)]


def fills(message: list[bytearray], parts: int = MANY) -> set[int]:
    assert len(message) == parts
    return {byte for part in message for byte in (part[0], part[SIZE // 2], part[-1])}


@gen_test()
async def test_two_peers_that_write_before_they_read_do_not_wait_for_each_other(transport):
    async with transport.pair() as (one, two):
        for _ in range(2):
            await asyncio.gather(one.write(large(1)), two.write(large(2)))
            assert fills(await one.read()) == {2}
            assert fills(await two.read()) == {1}


@gen_test()
async def test_small_messages_before_a_large_one_stay_in_order(transport):
    async with transport.pair() as (one, two):
        for comm in (one, two):
            await comm.write("first")
            await comm.write("second")
        writes = asyncio.gather(one.write(large(1)), two.write(large(2)))
        for comm, fill in ((two, 1), (one, 2)):
            assert await comm.read() == "first"
            assert await comm.read() == "second"
            assert fills(await comm.read()) == {fill}
        await writes


@gen_test()
async def test_after_a_read_the_next_message_is_received_too(transport):
    async with transport.pair() as (one, two):

        async def write_twice():
            await one.write(large(1))
            await one.write(large(4, TOO_MANY))

        # The peer receives the first message ahead, but not the second.
        writing = asyncio.create_task(write_twice())
        for _ in range(2):
            await two.write(large(2))
            assert fills(await one.read()) == {2}
        await two.write(large(3))
        assert not writing.done()
        assert fills(await two.read()) == {1}
        assert fills(await two.read(), TOO_MANY) == {4}
        await writing
        assert fills(await one.read()) == {3}


@gen_test()
async def test_only_one_message_is_received_ahead(transport):
    async with transport.pair() as (one, two):
        writing = asyncio.create_task(one.write(large(1)))
        await two.write(large(2))
        second = asyncio.create_task(two.write(large(3, TOO_MANY)))
        assert fills(await two.read()) == {1}
        await writing
        assert not second.done()
        assert fills(await one.read()) == {2}
        assert fills(await one.read(), TOO_MANY) == {3}
        await second


@gen_test()
async def test_control_messages_that_wait_for_a_reader_do_not_stop_a_large_one(transport):
    async with transport.pair() as (one, two):
        assert FEATURE in one.features
        seen = []
        for comm in (one, two):
            comm.controls.handlers["test"] = seen.append
        for _ in range(2):
            for comm in (one, two):
                for i in range(3):
                    comm.post_control("test", 2 * i, ordered=True)
                    comm.post_control("test", 2 * i + 1)
            await asyncio.gather(one.write(large(1, TOO_MANY)), two.write(large(2, TOO_MANY)))
            assert seen == []
            assert fills(await one.read(), TOO_MANY) == {2}
            assert seen == [(i,) for i in range(6)]
            assert fills(await two.read(), TOO_MANY) == {1}
            assert seen == [(i,) for i in range(6)] * 2
            seen.clear()


@gen_test()
async def test_the_control_messages_that_are_received_before_a_large_one_are_limited(transport):
    async with transport.pair() as (one, two):
        assert FEATURE in one.features
        seen = []
        one.controls.handlers["test"] = seen.append
        writing = asyncio.create_task(one.write(large(1, TOO_MANY)))
        count = MAX_UNREAD_CONTROLS + 1
        for i in range(count):
            two.post_control("test", i, "." * 500, ordered=True)
        second = asyncio.create_task(two.write(large(2, TOO_MANY)))
        assert fills(await two.read(), TOO_MANY) == {1}
        await writing
        assert not second.done()
        assert fills(await one.read(), TOO_MANY) == {2}
        assert [i for i, _ in seen] == list(range(count))
        await second


@pytest.mark.parametrize("watching", [False, True])
@gen_test()
async def test_only_a_message_of_two_frames_is_a_control_message(stream_transport, watching):
    async with stream_transport.pair() as (one, two):
        seen = []
        one.controls.handlers["test"] = seen.append
        if watching:
            # The stream receives all, and leaves to the reader what is not a control message.
            one.controls.watch(lambda: None)
        for i, rest in enumerate([[], [b""]]):
            await two._write_frames([b"", pack_control("test", True, (i,)), *rest])
        if watching:
            await async_poll_for(lambda: one.stream._holds_message)
        with pytest.raises(MessageError):
            await one.read()
        assert seen == [(0,)]


@gen_test()
async def test_an_array_may_be_changed_after_its_write(transport):
    async with transport.pair() as (one, two):
        arrays = [bytearray([n]) * (MANY * SIZE) for n in (1, 2)]

        async def write(comm, array):
            await comm.write(to_serialize(array))
            array[:] = bytes(len(array))

        await asyncio.gather(*map(write, (one, two), arrays))
        for comm, fill in ((one, 2), (two, 1)):
            assert await comm.read() == bytes([fill]) * (MANY * SIZE)


@gen_test()
async def test_a_message_above_the_limit_is_not_received_ahead(transport):
    with config.set({"distributed.comm.max-message-size": "15 MiB"}):
        async with transport.pair() as (one, two):
            with config.set({"distributed.comm.max-message-size": None}):
                writing = asyncio.create_task(one.write(large(1)))
                too_large = asyncio.create_task(two.write(large(2) + large(3)))
                assert fills(await two.read()) == {1}
                await writing
            assert not too_large.done()
            with pytest.raises(CommClosedError, match="max-message-size"):
                await one.read()
            with pytest.raises(CommClosedError):
                await too_large


@gen_test()
async def test_an_invalid_message_does_not_disturb_the_write(stream_transport):
    async with stream_transport.pair() as (one, two):
        writing = asyncio.create_task(one.write(large(1)))
        await two.stream.write(struct.pack("<QQ", 0, 5))
        await async_poll_for(lambda: one.stream._holds_message)
        assert fills(await two.read()) == {1}
        await writing
        with pytest.raises(CommClosedError, match="received no valid message"):
            await one.read()
        assert one.closed()


@gen_test()
async def test_a_write_that_waits_fails_when_the_peer_closes(transport):
    async with transport.pair() as (one, two):
        writing = asyncio.create_task(one.write(large(1)))
        await two.write("last")
        two.abort()
        with pytest.raises(CommClosedError):
            await writing
        assert one.closed()


@pytest.mark.parametrize("follower", ["control messages", "a message", "an invalid message"])
@pytest.mark.parametrize("name", ["tcp", "unix"])
@gen_test()
async def test_control_messages_behind_an_answer_leave_the_connection_idle(name, follower):
    async with TRANSPORTS[name].pair() as (client, server):
        # All arrive before the client reads, so it receives them at once.
        await server.write("answer")
        server.post_control("probe")
        server.post_control("alive")
        if follower == "a message":
            await server.write("unexpected")
        elif follower == "an invalid message":
            await server.stream.write(struct.pack("<QQ", 1, 1) + bytes(16))
        assert await client.read() == "answer"
        assert client.has_unread
        assert client.is_idle == (follower == "control messages")
        assert not client.closed()
        if follower == "control messages":
            # The other messages of the connection are complete.
            await server.write("answer")
            assert await client.read() == "answer"
            assert client.is_idle
        elif follower == "a message":
            assert await client.read() == "unexpected"
        else:
            with pytest.raises(CommClosedError):
                await client.read()
