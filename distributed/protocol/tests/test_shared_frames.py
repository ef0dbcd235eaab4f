"""Messages that refer to shared memory, without a socket: descriptors are passed as numbers."""

from __future__ import annotations

import os
import random
import re
import sys

import pytest

from distributed.base import shared_memory
from distributed.comm.tests.raw_peers import packed, u64
from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import Limits, MessageDecoder, pack_message
from distributed.protocol.shared_frames import Descriptors, ShareLimits, SharingDecoder, share

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux has this memory"),
    pytest.mark.skipif(not shared_memory.is_supported(), reason="the system forbids it"),
]

SIZE = 8192
LIMITS = ShareLimits(10, 2**30)


@pytest.fixture
def region():
    memory = shared_memory.create(SIZE)
    memory[:] = bytes(range(256)) * (SIZE // 256)
    found = shared_memory.find(memory)
    found.memory.seal_for_sending()
    return memory


def decoder(limits=None, share_limits=LIMITS):
    received = Descriptors(2 * share_limits.max_descriptors)
    return SharingDecoder(MessageDecoder(limits), received, share_limits), received


def copies(*views):
    """Return new descriptors of the regions of *views*, as a receiver gets them."""
    return [os.dup(shared_memory.find(view).memory.descriptor) for view in views]


def feed(decoder, data):
    """Return the messages in *data*."""
    messages = []
    while data:
        memory = memoryview(decoder.get_buffer())
        size = min(len(data), len(memory))
        memory[:size] = data[:size]
        data = data[size:]
        frames = decoder.buffer_updated(size)
        while frames is not None:
            messages.append(frames)
            frames = decoder.next_message()
    return messages


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("places", [[1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]])
def test_frames_arrive_in_their_places_whichever_are_shared(region, places):
    frames = [b"head", b"one" * 10, b"two" * 10, b"three" * 10]
    for i in places:
        frames[i] = region[i : 100 * i]
    message = share(frames, LIMITS)
    receiver, received = decoder()
    received.add(copies(*[region] * len(message.descriptors)))
    buffers, _ = pack_message(message.frames)
    (result,) = feed(receiver, b"".join(bytes(buffer) for buffer in buffers))
    assert [bytes(frame) for frame in result] == [bytes(frame) for frame in frames]
    assert [shared_memory.is_shared(frame) for frame in result] == [i in places for i in range(4)]
    assert len(received) == 0


def test_a_message_without_shared_memory_is_sent_as_it_is(region):
    assert share([b"head", memoryview(b"abc"), memoryview(bytearray(SIZE))], LIMITS) is None
    # The first frame is never shared.
    assert share([region, b"abc"], LIMITS) is None


def test_the_decoder_continues_where_the_one_before_it_ended(region):
    data = packed(b"head", b"x" * 100_000) + packed(b"next")
    before = MessageDecoder()
    memory = before.get_buffer()
    memory[:1000] = data[:1000]
    assert before.buffer_updated(1000) is None
    after = SharingDecoder(before, Descriptors(1), LIMITS)
    first, second = feed(after, data[1000:])
    assert [bytes(frame) for frame in first] == [b"head", b"x" * 100_000]
    assert [bytes(frame) for frame in second] == [b"next"]


HONEST = (1, 0, 0, SIZE)

LIES = [
    ([(1, 0, 0, SIZE + 1)], 1, "refers to bytes 0 to 8,193 of a region that has 8,192"),
    ([(1, 0, 2**64 - 1, 2)], 1, "refers to bytes"),
    ([(1, 0, 5, 0)], 1, "refers to bytes 5 to 5"),
    ([(1, 1, 0, 5)], 1, "refers to region 1 of 1"),
    ([(0, 0, 0, 5)], 1, "shared frame 0 in a false place"),
    ([HONEST, HONEST], 1, "shared frame 1 in a false place"),
    ([(3, 0, 0, 5)], 1, "shared frame 3 in a false place"),
    ([(2, 0, 0, 5)], 1, "lacks the frames before frame 2"),
    ([HONEST], 2, "refers to 2 regions of shared memory, and came with 1 file descriptors"),
    ([HONEST], 11, "11 regions of shared memory, where 10 are agreed upon"),
]


@pytest.mark.parametrize(("entries", "count", "error"), LIES)
def test_a_table_that_lies_is_refused(region, entries, count, error):
    table = u64(count, *[0] * count) + b"".join(u64(*entry) for entry in entries)
    receiver, received = decoder()
    before = open_descriptors()
    received.add(copies(region))
    with pytest.raises(FramingError, match=re.escape(error)):
        feed(receiver, packed(b"", table, b"head"))
    received.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("table", [b"", b"\x01", u64(1), u64(1, 0, 1), u64(2**64 - 1)])
def test_a_table_of_another_size_is_refused(region, table):
    receiver, received = decoder()
    received.add(copies(region))
    with pytest.raises(FramingError, match=r"table of shared frames|regions of shared memory"):
        feed(receiver, packed(b"", table, b"head"))


def test_the_limits_of_messages_hold_for_shared_frames(region):
    table = u64(1, 0) + u64(*HONEST) + u64(2, 0, 0, 5)
    for limits, error in [
        (Limits(max_message_size=SIZE), "a message of 8,201 bytes"),
        (Limits(max_frames=3), "a message of 3 frames, where .* allows 2"),
    ]:
        limits = limits._replace(max_frames=limits.max_frames and min(limits.max_frames, 2**20))
        receiver, received = decoder(limits)
        if limits.max_frames == 3:
            table += u64(3, 0, 0, 5)
            error = "a message of 4 frames"
        received.add(copies(region))
        with pytest.raises(FramingError, match=error):
            feed(receiver, packed(b"", table, b"head"))


def test_regions_larger_than_the_limit_are_refused(region):
    other = shared_memory.create(SIZE)
    shared_memory.find(other).memory.seal_for_sending()
    table = u64(2, 0, 0) + u64(*HONEST)
    receiver, received = decoder(share_limits=ShareLimits(2, 2 * SIZE - 1))
    received.add(copies(region, other))
    with pytest.raises(FramingError, match=r"file descriptor 1 .* 8,191 are allowed .*max-bytes"):
        feed(receiver, packed(b"", table, b"head"))


def test_descriptors_that_no_message_refers_to_are_closed(region):
    before = open_descriptors()
    receiver, received = decoder()
    received.add(copies(region, region))
    with pytest.raises(FramingError, match="2 file descriptors came with it"):
        feed(receiver, packed(b"head"))
    assert open_descriptors() == before
    received = Descriptors(3)
    with pytest.raises(FramingError, match="at most 3 are accepted"):
        received.add(copies(*[region] * 4))
    assert open_descriptors() == before
    received.add(copies(region))
    del received
    assert open_descriptors() == before


def test_descriptors_of_the_next_message_wait_for_it(region):
    message = share([b"head", region], LIMITS)
    data = packed(*map(bytes, message.frames))
    receiver, received = decoder()
    received.add(copies(region))
    # The end of one message and the beginning of the next one, received at once.
    messages = feed(receiver, packed(b"first") + data[:50])
    assert len(messages) == 1
    assert len(received) == 1
    ((_, frame),) = feed(receiver, data[50:])
    assert bytes(frame) == bytes(region)


def test_random_tables_are_read_or_refused_and_leave_no_descriptor(region):
    choose = random.Random(1).choice
    before = open_descriptors()
    refused = 0
    for _ in range(500):
        count = choose([0, 1, 2, 3, 2**63])
        numbers = [0, 1, 2, 3, 5, SIZE, SIZE - 1, 2**32, 2**63, 2**64 - 1]
        entries = [choose(numbers) for _ in range(choose([0, 3, 4, 8, 12]))]
        table = u64(count, *[choose([0, 1, 2, 3]) for _ in range(count % 10)], *entries)
        receiver, received = decoder()
        received.add(copies(*[region] * choose([0, 1, 2])))
        try:
            feed(receiver, packed(b"", table, b"head", b"frame"))
        except FramingError:
            refused += 1
        received.close()
    assert 0 < refused < 500
    assert open_descriptors() == before
