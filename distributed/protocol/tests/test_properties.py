"""Any message arrives unchanged, and any bytes give a message or an error of the protocol."""

from __future__ import annotations

import contextlib

import msgpack
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
from distributed.protocol.tests.fuzzing import REFUSALS, codecs
from distributed.protocol.tests.strategies import (
    arrives,
    forwardable_messages,
    messages,
    same,
    values,
)

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
def test_messages_arrive_as_they_were_sent(msg, context, size):
    arrived = loads(copied(dumps(msg, context=context, frame_split_size=size)))
    assert same(arrived, arrives(msg))


@slow
@given(forwardable_messages, contexts, sizes)
def test_messages_that_are_passed_on_arrive_as_they_were_sent(msg, context, size):
    passed_on = loads(copied(dumps(msg, context=context, frame_split_size=size)), deserialize=False)
    arrived = loads(copied(dumps(passed_on, context=context)))
    assert same(arrived, arrives(msg))


@slow
@given(messages)
def test_messages_are_passed_on_byte_for_byte(msg):
    frames = copied(dumps(msg))
    if any(b"__Pickled__" in frame or b"__Set__" in frame for frame in frames):
        return  # the order of elements in pickles and sets is not fixed
    assert copied(dumps(loads(frames, deserialize=False))) == frames


@slow
@given(values)
def test_objects_are_deserialized_unchanged(x):
    assert same(deserialize(*serialize(x)), x)
    assert same(deserialize(*serialize(Serialize(x))), x)


@slow
@given(values, sizes)
def test_stored_objects_are_read_unchanged(x, size):
    assert same(deserialize_bytes(serialize_bytes(x, size=size, compression="zlib")), x)


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
def test_arbitrary_headers_give_a_message_or_a_protocol_error(msg, header, frames):
    packed = [msgpack.packb({"x": {"__Serialized__": 1}, "y": msg}), msgpack.packb(header), *frames]
    for deserialize_ in (True, False):
        with contextlib.suppress(*REFUSALS):
            loads(packed, deserialize=deserialize_)


@settings(slow, max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_arbitrary_frames_give_a_message_or_a_protocol_error(frames):
    with contextlib.suppress(*REFUSALS):
        loads(frames)


@settings(slow, max_examples=300)
@given(st.binary(max_size=60))
def test_arbitrary_stored_bytes_give_an_object_or_a_protocol_error(stored):
    with contextlib.suppress(*REFUSALS):
        deserialize_bytes(stored)


def test_values_to_pickle_arrive_within_sets():
    assert loads(dumps({ToPickle(5)})) == {5}
