"""Long wrapped collections, whose elements are pickled together where each would be pickled."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from distributed.protocol import (
    Serialize,
    Serialized,
    dask_deserialize,
    dask_serialize,
    dumps,
    loads,
    register_serialization,
    register_serialization_family,
    serialize,
)
from distributed.protocol.exceptions import FamilyNotAllowedError, SerializationError
from distributed.protocol.families import families
from distributed.protocol.limits import LoadPolicy

LONG = 100


class Registered:
    """An object with a serializer of its own, and no pickle."""

    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        raise AssertionError("it has a serializer")

    def __eq__(self, other):
        return type(other) is type(self) and self.text == other.text

    __hash__ = None  # type: ignore[assignment]


class Inherited(Registered):
    pass


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_serialization(
        Registered,
        lambda x: ({"name": type(x).__name__}, [x.text.encode()]),
        lambda header, frames: globals()[header["name"]](bytes(frames[0]).decode()),
    )
    yield
    for table in (dask_serialize, dask_deserialize):
        del table._lookup[Registered]


def same(a, b):
    """Return whether two values are equal, and their types, too, at any depth."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else a == b


def over_the_wire(x, **kwargs):
    return loads([bytes(frame) for frame in dumps({"x": Serialize(x)}, **kwargs)])["x"]


def is_whole(x, **kwargs):
    header, frames = serialize(Serialize(x), **kwargs)
    assert header.get("is-collection", False) is ("sub-headers" in header)
    return header.get("serializer") == "pickle" and len(frames) == 1


PLAIN: dict[str, Any] = {
    "floats": [i / 7 for i in range(LONG)],
    "a tuple": tuple(range(LONG)),
    "a set": set(range(LONG)),
    "a dict": {f"key {i}": i / 7 for i in range(LONG)},
    "keys of other types": {(i, frozenset([i])): None for i in range(LONG)},
    "scalars": [None, True, -1, 2**70, 1.5, 1 + 2j, "text", "\ud800"] * 10,
    "rows": [[i, (i, [i])] for i in range(LONG)],
    "records": [{"name": str(i), "values": [i, {i}]} for i in range(LONG)],
    "empty collections": [[], {}, (), set()] * LONG,
    "objects": [Fraction(i, 7) for i in range(LONG)],
    "scalars of numpy": [np.float64(i) for i in range(LONG)],
    "subclasses": [OrderedDict(a=i) for i in range(LONG)],
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_long_collection_of_pickled_values_is_one_frame_and_arrives_unchanged(name):
    assert is_whole(PLAIN[name])
    assert is_whole(Serialize(PLAIN[name]))
    assert len(dumps({"x": Serialize(PLAIN[name])})) == 3
    for kwargs in ({}, {"context": {"compression": "zlib"}}, {"frame_split_size": 64}):
        assert same(over_the_wire(PLAIN[name], **kwargs), PLAIN[name])
    read_later = loads(dumps({"x": Serialize(PLAIN[name])}), deserialize=False)
    assert type(read_later["x"]) is Serialized
    assert same(loads(dumps(read_later))["x"], PLAIN[name])


def test_a_collection_of_up_to_16_elements_is_sent_as_by_the_original():
    assert not is_whole([1.5] * 16)
    assert is_whole([1.5] * 17)


ONE_BY_ONE: dict[str, Any] = {
    "an array among floats": [1.5] * LONG + [np.arange(10.0)] + ["text"] * LONG,
    "an array in a dict": {**dict.fromkeys(range(LONG), 1.5), "array": np.arange(10.0)},
    "bytes": [b"bytes"] * LONG,
    "a registered object": [*range(LONG), Registered("a")],
    "a subclass of a registered type": [Inherited("a"), *range(LONG)],
    "a list of arrays": [[1.5]] * LONG + [[np.arange(10.0), 1]],
    "a nested dict of bytes": [{}] * LONG + [{"a": [(b"bytes",)]}],
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_values_with_a_serializer_keep_it(name):
    x = ONE_BY_ONE[name]
    assert not is_whole(x)
    assert same(over_the_wire(x), x)
    header, _ = serialize(Serialize(x))
    assert "'serializer': 'dask'" in str(header)


def test_an_array_among_many_numbers_is_not_copied():
    array = np.arange(1000.0)
    _, frames = serialize(Serialize([1.5] * LONG + [array]))
    assert np.shares_memory(np.frombuffer(frames[-1]), array)


def test_the_buffers_of_objects_pickled_together_are_not_copied():
    rows = [[i, np.arange(1000.0)] for i in range(LONG)]
    header, frames = serialize(Serialize(rows))
    assert header["serializer"] == "pickle"
    assert [np.shares_memory(np.frombuffer(frames[i + 1]), rows[i][1]) for i in range(LONG)]
    assert same(over_the_wire(rows), rows)


def test_a_wrapper_in_a_collection_stands_for_its_value():
    assert not is_whole([Serialize(1)] * LONG)
    assert over_the_wire([Serialize(1)] * LONG) == [1] * LONG


def test_a_list_that_contains_itself_arrives():
    x = [1.5] * LONG
    x.append(x)
    arrived = over_the_wire(x)
    assert arrived[:LONG] == x[:LONG]
    assert len(arrived[LONG]) == LONG + 1


@pytest.mark.parametrize(
    ("serializers", "context"),
    [
        (["msgpack"], None),
        (["dask", "msgpack"], None),
        (["dask", "msgpack", "pickle"], None),
        (["pickle", "msgpack"], {"allow-pickle": False}),
        (None, {"allow-pickle": False}),
    ],
)
def test_without_pickle_or_with_another_family_before_it_elements_are_sent_one_by_one(
    serializers, context
):
    x = [1.5, "text", None] * LONG
    header, _ = serialize(Serialize(x), serializers, context=context)
    assert {sub["serializer"] for sub in header["sub-headers"]} == {"msgpack"}
    frames = dumps({"x": Serialize(x)}, serializers, context=context)
    assert loads(frames, policy=LoadPolicy(allow_pickle=False)) == {"x": x}


def test_a_family_before_pickle_is_asked_for_each_element():
    def dumps_float(x):
        if type(x) is not float:
            raise NotImplementedError
        return {}, [x.hex().encode()]

    register_serialization_family(
        "hex", dumps_float, lambda header, frames: float.fromhex(bytes(frames[0]).decode())
    )
    try:
        for serializers in (["hex", "pickle"], ["dask", "hex", "pickle"]):
            header, frames = serialize(Serialize([1.5, 2] * LONG), serializers)
            assert [sub["serializer"] for sub in header["sub-headers"][:2]] == ["hex", "pickle"]
            assert frames[0] == b"0x1.8000000000000p+0"
    finally:
        del families["hex"]


@pytest.mark.parametrize("more", [0, LONG])
def test_a_serializer_that_is_registered_for_numbers_is_used(more):
    dask_serialize.register(int, lambda x: ({}, [str(x).encode()]))
    try:
        header, frames = serialize(Serialize([7, 1.5] + [1.5] * more))
    finally:
        del dask_serialize._lookup[int]
    assert [sub["serializer"] for sub in header["sub-headers"][:2]] == ["dask", "pickle"]
    assert frames[0] == b"7"


def test_elements_are_serialized_one_by_one_if_the_caller_asks_for_it():
    header, frames = serialize([1.5] * LONG, iterate_collection=True)
    assert header["is-collection"]
    assert len(frames) == LONG


def test_the_protocol_of_the_receiver_is_used():
    for x in ([1.5] * LONG, [1.5, b"bytes"]):
        _, frames = serialize(Serialize(x), context={"pickle-protocol": 4})
        assert bytes(frames[0])[:2] == b"\x80\x04"


def test_an_element_that_cannot_be_pickled_is_named_in_the_error():
    x = [*range(LONG), threading.Lock()]
    with pytest.raises(SerializationError, match="Could not serialize object of type lock"):
        serialize(Serialize(x), on_error="raise")
    frames = dumps({"x": Serialize(x)})
    with pytest.raises(SerializationError, match="Could not serialize object of type lock"):
        loads(frames)


def test_a_receiver_that_accepts_no_pickles_refuses_the_whole_as_it_refuses_the_elements():
    for x in ([1.5] * 10, [1.5] * LONG):
        frames = dumps({"x": Serialize(x)})
        with pytest.raises(FamilyNotAllowedError, match="pickle"):
            loads(frames, deserializers=["dask", "msgpack"])


@pytest.mark.parametrize("name", ["floats", "a dict", "a set", "rows"])
def test_the_number_of_calls_does_not_depend_on_the_number_of_elements(name):
    def calls(x):
        count = 0

        def note(frame, event, arg):
            nonlocal count
            count += event in ("call", "c_call")

        message = {"x": Serialize(x)}
        sys.setprofile(note)
        try:
            loads(dumps(message))
        finally:
            sys.setprofile(None)
        return count

    kind = type(PLAIN[name])
    elements = PLAIN[name].items() if kind is dict else PLAIN[name]
    few = kind(list(elements)[:20])
    calls(few)
    more = LONG - len(few)
    # One element of a collection in the collection is looked at.
    assert calls(PLAIN[name]) <= calls(few) + (4 * more if name == "rows" else 0)
