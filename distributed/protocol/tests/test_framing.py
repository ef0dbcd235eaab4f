"""The layout of frames on a byte stream."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.protocol.allocation import MAPPED_SIZE
from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import (
    JOIN_SIZE,
    READ_SIZE,
    SHARED_BUFFER,
    SMALL_FRAME,
    Limits,
    MessageDecoder,
    pack_message,
)

SHARD = 50_000


def wire(*frames, shard=None):
    return b"".join(pack_message(frames, shard)[0])


def receive(decoder, data, step=None):
    """Yield the messages in *data*; pass at most *step* bytes to *decoder* at a time."""
    position = 0
    while position < len(data):
        memory = decoder.get_buffer()
        part = data[position : position + min(len(memory), step or len(memory))]
        memory[: len(part)] = part
        position += len(part)
        frames = decoder.buffer_updated(len(part))
        while frames is not None:
            yield frames
            frames = decoder.next_message()


def feed(decoder, data, step=None):
    return [[bytes(frame) for frame in frames] for frames in receive(decoder, data, step)]


def prelude(first, *lengths):
    return struct.pack(f"<{len(lengths) + 2}Q", first, len(lengths), *lengths)


@pytest.mark.parametrize("step", [1, 7, 1000, None])
@pytest.mark.parametrize(
    "frames",
    [
        [b"x"],
        [b""],
        [b"", b"", b""],
        [b"a", b"", b"b"],
        [b"x" * READ_SIZE],
        [b"x" * 100_000, b"y"],
        [b"m", b"h", b"x" * SHARD, b"y" * SHARD, b"z", b"h", b"w" * 3 * SMALL_FRAME],
        [b"m"] * 3000,
    ],
    ids=["one", "empty", "empties", "gap", "buffer", "large", "split", "many"],
)
def test_frames_are_decoded_from_any_chunks(frames, step):
    data = wire(*frames) + wire(b"next") + wire(*frames)
    decoder = MessageDecoder(shard=SHARD)
    assert feed(decoder, data, step) == [frames, [b"next"], frames]
    assert not decoder.in_message


frame_lists = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.sampled_from([0, 1, SMALL_FRAME, SMALL_FRAME + 1, SHARD, JOIN_SIZE, 100_000]).map(bytes),
        st.sampled_from([3, SHARD, SMALL_FRAME + 7]).map(bytearray),
    ),
    min_size=1,
    max_size=9,
)


some_messages = st.lists(st.sampled_from(range(4)), min_size=1, max_size=8).flatmap(
    lambda order: st.lists(frame_lists, min_size=4, max_size=4).map(
        lambda messages: [messages[i] for i in order]
    )
)


@settings(deadline=None)
@given(messages=some_messages, step=st.integers(1, 200_000))
def test_any_messages_are_decoded_from_any_chunks(messages, step):
    data = b"".join(wire(*frames, shard=SHARD) for frames in messages)
    decoder = MessageDecoder(shard=SHARD)
    assert feed(decoder, data, step) == [list(map(bytes, frames)) for frames in messages]


@settings(deadline=None, max_examples=300)
@given(data=st.data(), frames=frame_lists)
def test_mutated_bytes_give_messages_or_a_framing_error(data, frames):
    stream = bytearray(wire(*frames, b"tail"))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, min(len(stream) - 1, 120)))
        stream[position] = data.draw(st.integers(0, 255))
    decoder = MessageDecoder(Limits(max_message_size=10**6, max_frames=1000), shard=SHARD)
    try:
        messages = feed(decoder, bytes(stream))
    except FramingError:
        return
    assert sum(len(frame) for message in messages for frame in message) <= len(stream)


def test_frames_of_a_message_are_writable_and_outlive_the_decoder():
    decoder = MessageDecoder()
    memory = decoder.get_buffer()
    data = wire(b"first", b"second")
    memory[: len(data)] = data
    frames = decoder.buffer_updated(len(data))
    memory[:] = bytes(len(memory))
    frames[0][0] = ord("F")
    assert [bytes(frame) for frame in frames] == [b"First", b"second"]


def memory_of(frame):
    """Return the object that has the memory of a frame."""
    return frame.obj if isinstance(frame, memoryview) else frame


def received_frames(*lengths, shard=None):
    (frames,) = receive(MessageDecoder(shard=shard), wire(*map(bytes, lengths)))
    return frames


def test_large_frames_have_memory_of_their_own():
    large = SMALL_FRAME + 1
    frames = received_frames(10, large, large, 10)
    assert [len(memory_of(frame)) for frame in frames] == [10, large, large, 10]
    assert len({id(memory_of(frame)) for frame in frames}) == 4


def test_parts_of_a_split_frame_are_neighbours_in_memory():
    frames = received_frames(10, SHARD, SHARD, 700, SHARD - 1, shard=SHARD)
    assert frames[1].obj is frames[2].obj is frames[3].obj
    assert len(frames[1].obj) == 2 * SHARD + 700
    assert memory_of(frames[4]) is not frames[3].obj


@pytest.mark.parametrize("size", [0, 1, 100, 5_000, 20_000, SMALL_FRAME])
def test_a_small_frame_that_is_kept_keeps_only_itself(size):
    frames = received_frames(*[size] * 30)
    assert [len(memory_of(frame)) for frame in frames] == [size] * 30


def test_small_frames_are_received_together_up_to_a_bound():
    decoder = MessageDecoder()
    data = memoryview(wire(*[bytes(SMALL_FRAME)] * 30))
    sizes = []
    while data:
        memory = decoder.get_buffer()
        size = min(len(memory), len(data))
        memory[:size], data = data[:size], data[size:]
        sizes.append(size)
        frames = decoder.buffer_updated(size)
    assert len(frames) == 30
    assert len(sizes) < 8
    assert max(sizes) <= SHARED_BUFFER


def test_large_frames_are_written_without_a_copy():
    array = bytearray(SMALL_FRAME + 1)
    view = memoryview(array)
    buffers, nbytes = pack_message([b"m" * JOIN_SIZE, view, b"s", b"t"])
    assert any(buffer is view for buffer in buffers)
    assert len(buffers) == 4
    assert nbytes == sum(map(len, buffers))


def test_a_small_message_is_one_buffer():
    assert len(pack_message([b"a", b"b" * 1000, bytearray(JOIN_SIZE - 2000)])[0]) == 1


@pytest.mark.parametrize(
    ("frames", "leading"),
    [
        ([b"m", b"h", bytearray(1000)], 3),
        ([b"m", b"h", bytearray(1000), b"h", bytearray(10)], 4),
        ([b"m", b"h", bytearray(1000), b"h", bytearray(10), b"h", b"x"], 4),
        ([b"m", b"h", b"x" * 1000, b"h", b"x" * 1000], 5),
        ([b"m" * 2049, b"h", bytearray(1000), b"h"], 2),
        ([b"m" * 2040, b"h", bytearray(1000), b"h"], 4),
        ([b"m" * 4999, b"h", bytearray(100_000), b"h"], 4),
        ([b"m" * 5000, b"h", bytearray(100_000), b"h"], 2),
        ([b"m", b"h", bytearray(SHARD), bytearray(SHARD), bytearray(9), b"h"], 6),
    ],
)
def test_n_counts_the_same_frames_as_in_the_original(frames, leading):
    """The expected values were observed on connections of the original."""
    data = wire(*frames, shard=SHARD)
    (first,) = struct.unpack_from("<Q", data)
    expected = 8 + 8 * len(frames) + sum(map(len, frames[:leading]))
    assert first == expected


@pytest.mark.parametrize("leading", range(4))
def test_any_n_that_ends_with_a_frame_is_accepted(leading):
    frames = [b"aa", b"bbb", b"c" * 40_000]
    lengths = [len(frame) for frame in frames]
    data = prelude(8 + 24 + sum(lengths[:leading]), *lengths) + b"".join(frames)
    assert feed(MessageDecoder(), data) == [frames]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (prelude(8), "no frames"),
        (prelude(15, 4), "cannot hold the lengths"),
        (struct.pack("<QQ", 2**63, 2**60), "max-frames"),
        (prelude(8 + 16 + 3, 4, 4), "do not end where a frame ends"),
        (prelude(8 + 16 + 9, 4, 4), "do not end where a frame ends"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "max-frames"),
        (prelude(16, 2**62), "cannot allocate"),
        (prelude(16, 2**64 - 1), "cannot allocate"),
    ],
    ids=range(8),
)
def test_an_invalid_prelude_is_an_error(data, text):
    with pytest.raises(FramingError, match=text):
        feed(MessageDecoder(), data)


def test_a_message_above_the_limit_is_refused_by_its_prelude():
    decoder = MessageDecoder(Limits(max_message_size=100))
    assert feed(decoder, wire(bytes(50), bytes(50))) == [[bytes(50), bytes(50)]]
    with pytest.raises(FramingError, match=r"101 bytes.*'distributed.comm.max-message-size'.*100"):
        feed(decoder, prelude(16, 101))


def test_a_message_of_too_many_frames_is_refused_by_its_prelude():
    decoder = MessageDecoder(Limits(max_frames=3))
    assert feed(decoder, wire(b"", b"", b"")) == [[b"", b"", b""]]
    with pytest.raises(FramingError, match=r"4 frames.*'distributed.comm.max-frames' allows 3"):
        feed(decoder, prelude(40, 0, 0, 0, 0))


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


@pytest.mark.parametrize(
    "data",
    [prelude(16, 2**33), prelude(8 + 8 * 200_000, *[2**31] * 200_000)],
    ids=["one frame", "many frames"],
)
def test_memory_becomes_resident_only_as_bytes_are_received(data):
    decoder = MessageDecoder()
    before = resident()
    assert feed(decoder, data + bytes(1000)) == []
    assert decoder.in_message
    assert resident() - before < 64e6


def test_preludes_without_data_cost_little_memory():
    before = resident()
    decoders = [MessageDecoder() for _ in range(100)]
    for decoder in decoders:
        assert feed(decoder, prelude(16 + MAPPED_SIZE, MAPPED_SIZE) + b"x") == []
    assert all(decoder.in_message for decoder in decoders)
    assert resident() - before < 100 * 100_000


def test_decoded_messages_do_not_change_while_others_are_received():
    decoder = MessageDecoder()
    expected = []
    received = []
    for i in range(30):
        for size in (3 * [100_000], [10], [100_000, 20_000], [7, 90_000])[i % 4]:
            expected.append([bytes([i]), bytes([i]) * size])
            received += receive(decoder, wire(*expected[-1]))
    assert [list(map(bytes, frames)) for frames in received] == expected
