"""Whatever is sent arrives, and whatever arrives ends in a message or an error of ours."""

from __future__ import annotations

import contextlib
import tracemalloc

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributed.protocol import (
    Serialize,
    ToPickle,
    deserialize,
    deserialize_bytes,
    dumps,
    loads,
    serialize,
    serialize_bytes,
)
from distributed.protocol.exceptions import (
    FamilyNotAllowedError,
    ProtocolError,
    SerializationError,
)
from distributed.protocol.tests.fuzzing import codecs
from distributed.protocol.tests.strategies import (
    arrives,
    forwardable_messages,
    messages,
    same,
    values,
)
from distributed.protocol.tests.test_vectors import VECTORS, frames_of

REFUSALS = (ProtocolError, FamilyNotAllowedError, SerializationError)

slow = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
contexts = st.sampled_from(
    [None, {"pickle-protocol": 4}, *({"compression": name} for name in codecs())]
)
sizes = st.sampled_from([None, 1000, 64, 7])


def copied(frames):
    return [bytes(frame) for frame in frames]


@slow
@given(messages, contexts, sizes)
def test_every_message_arrives_as_it_was_sent(msg, context, size):
    arrived = loads(copied(dumps(msg, context=context, frame_split_size=size)))
    assert same(arrived, arrives(msg))


@slow
@given(forwardable_messages, contexts, sizes)
def test_every_message_arrives_after_it_was_passed_on(msg, context, size):
    passed_on = loads(copied(dumps(msg, context=context, frame_split_size=size)), deserialize=False)
    arrived = loads(copied(dumps(passed_on, context=context)))
    assert same(arrived, arrives(msg))


@slow
@given(messages)
def test_what_is_passed_on_is_written_as_it_came(msg):
    frames = copied(dumps(msg))
    if any(b"__Pickled__" in frame or b"__Set__" in frame for frame in frames):
        return  # pickles and sets may be written in another order of elements
    assert copied(dumps(loads(frames, deserialize=False))) == frames


@slow
@given(values)
def test_every_object_is_deserialized_as_it_was(x):
    assert same(deserialize(*serialize(x)), x)
    assert same(deserialize(*serialize(Serialize(x))), x)


@slow
@given(values, sizes)
def test_every_object_is_stored_as_it_was(x, size):
    assert same(deserialize_bytes(serialize_bytes(x, size=size, compression="zlib")), x)


# Frames with something in them that headers can lie about.
SEEDS = [
    *(frames_of(vector) for vector in VECTORS if len(vector.get("bytes", "")) < 1000),
    copied(dumps({"x": Serialize([b"a" * 50, {"k": bytearray(20)}, (b"b",)]), "y": {1, (2, 3)}})),
    copied(dumps(Serialize(memoryview(bytes(48)).cast("d", (2, 3))), frame_split_size=16)),
    copied(dumps(Serialize(bytes(20_000)), context={"compression": "zlib"})),
    copied(dumps({"x": Serialize([1, [2]])}, serializers=["msgpack"])),
    copied(dumps({"x": Serialize([1, object])}, serializers=["msgpack"])),
]


@st.composite
def mutated_frames(draw):
    frames = [bytearray(frame) for frame in draw(st.sampled_from(SEEDS))]
    for _ in range(draw(st.integers(1, 4))):
        if not frames:
            break
        i = draw(st.integers(0, len(frames) - 1))
        match draw(st.sampled_from(["set", "insert", "delete", "cut", "drop", "repeat", "swap"])):
            case "set" if frames[i]:
                frames[i][draw(st.integers(0, len(frames[i]) - 1))] = draw(st.integers(0, 255))
            case "insert":
                at = draw(st.integers(0, len(frames[i])))
                frames[i][at:at] = draw(st.binary(min_size=1, max_size=9))
            case "delete" if frames[i]:
                del frames[i][draw(st.integers(0, len(frames[i]) - 1))]
            case "cut":
                del frames[i][draw(st.integers(0, len(frames[i]))) :]
            case "drop":
                del frames[i]
            case "repeat":
                frames.insert(i, frames[i])
            case "swap":
                j = draw(st.integers(0, len(frames) - 1))
                frames[i], frames[j] = frames[j], frames[i]
    return [bytes(frame) for frame in frames]


@settings(slow, max_examples=500)
@given(mutated_frames(), st.booleans(), st.sampled_from([None, ["dask", "msgpack"]]))
def test_mutated_messages_end_in_a_message_or_an_error_of_ours(frames, deserialize, deserializers):
    with contextlib.suppress(*REFUSALS):
        loads(frames, deserialize=deserialize, deserializers=deserializers)


header_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from(["dask", "pickle", "msgpack", "error", "cuda", "list", "dict", "set", "zlib"])
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("serializer", "type", "type-serialized", "sub-header", "sub-headers"),
                    *("is-collection", "frame-lengths", "split-num-sub-frames", "compression"),
                    *("num-sub-frames", "writeable", "key", "pickled-obj", "format", "shape"),
                    *("__Serialized__", "__Pickled__", "__Set__", "as-list", "__Enum__", "name"),
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@settings(slow, max_examples=500)
@given(header_values, header_values, st.lists(st.binary(max_size=8), max_size=4))
def test_arbitrary_headers_end_in_a_message_or_an_error_of_ours(msg, header, frames):
    packed = [msgpack.packb({"x": {"__Serialized__": 1}, "y": msg}), msgpack.packb(header), *frames]
    for deserialize_ in (True, False):
        with contextlib.suppress(*REFUSALS):
            loads(packed, deserialize=deserialize_)


@settings(slow, max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_arbitrary_frames_end_in_a_message_or_an_error_of_ours(frames):
    with contextlib.suppress(*REFUSALS):
        loads(frames)


@settings(slow, max_examples=300)
@given(st.binary(max_size=60))
def test_arbitrary_stored_bytes_end_in_an_object_or_an_error_of_ours(stored):
    with contextlib.suppress(*REFUSALS):
        deserialize_bytes(stored)


@pytest.mark.parametrize("depth", [10, 300, 500, 600, 5000])
def test_nesting_ends_in_an_object_or_an_error_of_ours(depth):
    header = {"serializer": "msgpack"}
    for _ in range(depth):
        header = {
            "sub-headers": [header],
            "is-collection": True,
            "frame-lengths": [1],
            "type-serialized": "list",
        }
    packed = b""
    while isinstance(header, dict) and "sub-headers" in header:
        (inner,) = header.pop("sub-headers")
        rest = msgpack.packb(header)
        packed += bytes([rest[0] + 1]) + rest[1:] + msgpack.packb("sub-headers") + b"\x91"
        header = inner
    packed += msgpack.packb(header)
    top = packed[:1]
    packed = bytes([top[0] + 1]) + msgpack.packb("num-sub-frames") + b"\x01" + packed[1:]
    with contextlib.suppress(*REFUSALS):
        arrived = loads([msgpack.packb({"__Serialized__": 1}), packed, b"\x01"])
        assert depth < 1000
        for _ in range(depth):
            (arrived,) = arrived
        assert arrived == 1


def test_a_message_cannot_claim_more_than_it_holds():
    claims = b"".join(b"\xdd\x00\x0f\x00\x00" for _ in range(1000))
    head = claims + bytes(1_000_000 - len(claims))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            loads([head])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150_000_000


def test_to_pickle_is_not_hidden_in_sets():
    assert loads(dumps({ToPickle(5)})) == {5}
