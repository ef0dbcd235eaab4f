"""Single objects: the choice of a family, collections by element, stored objects."""

from __future__ import annotations

import copy
import importlib
import sys
import threading
from array import array
from collections import defaultdict, namedtuple

import msgpack
import pytest

from distributed.protocol import (
    Pickled,
    Serialize,
    Serialized,
    ToPickle,
    dask_deserialize,
    dask_serialize,
    deserialize,
    deserialize_bytes,
    dumps,
    loads,
    pickle,
    register_generic,
    register_serialization,
    register_serialization_family,
    serialize,
    serialize_bytelist,
    serialize_bytes,
)
from distributed.protocol.exceptions import (
    CompressionError,
    DeserializationError,
    FramingError,
    HeaderError,
    SerializationError,
)
from distributed.protocol.serialize import (
    ObjectDictSerializer,
    _is_dumpable,
    _is_msgpack_serializable,
    _nested_deserialize,
    check_dask_serializable,
    families,
    merge_and_deserialize,
    serialize_and_split,
)
from distributed.tests import ids

Point = namedtuple("Point", "x y")


class Plain:
    def __init__(self, x=1):
        self.x = x

    def __eq__(self, other):
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]


class Text(str):
    pass


def family_of(x, **kwargs):
    header, _ = serialize(x, **kwargs)
    return header.get("serializer", "by element")


def test_the_module_is_importable_despite_the_function_of_its_name():
    module = importlib.import_module("distributed.protocol.serialize")
    assert module.serialize is serialize
    assert not set(module.__all__) - set(vars(module))


@pytest.mark.parametrize(
    "x",
    [
        *(None, 1, "a", b"a", bytearray(b"a"), array("d", [1, 2]), 1j, Plain(), Point(1, 2)),
        *([], {}, (), set(), frozenset([b"a"]), defaultdict(list, a=[1])),
        *([b"a", 1], (b"a", [b"b"]), {b"a"}, {"a": b"x", 1: [b"y"]}, {frozenset(): b"x"}),
        *([[[b"a"]]], {"a": {"b": {"c": b"x"}}}, {(1, (2,)): b"x"}, {2**70: b"x"}),
    ],
    ids=ids.shown,
)
@pytest.mark.parametrize("iterate", [None, True, False])
def test_objects_are_deserialized_unchanged(x, iterate):
    arrived = deserialize(*serialize(x, iterate_collection=iterate))
    assert type(arrived) is type(x)
    assert arrived == x


class TestChoiceOfFamily:
    @pytest.mark.parametrize("x", [b"", bytearray(), memoryview(b""), array("b")])
    def test_registered_types_are_serialized_by_dask(self, x):
        assert family_of(x) == "dask"

    @pytest.mark.parametrize("x", [1, "a", Plain(), 1j, frozenset([b"a"]), Point(b"a", b"b")])
    def test_everything_else_is_pickled(self, x):
        assert family_of(x) == "pickle"

    def test_families_are_tried_in_order(self):
        assert family_of(1, serializers=["msgpack", "pickle"]) == "msgpack"
        assert family_of(1, serializers=("pickle", "msgpack")) == "pickle"
        assert family_of(1j, serializers=["dask", "msgpack", "pickle"]) == "pickle"

    def test_an_error_in_a_family_ends_the_search(self):
        def fails(x):
            raise ZeroDivisionError("inside of the family")

        register_serialization_family("failing", fails, lambda header, frames: None)
        try:
            with pytest.raises(SerializationError, match="inside of the family") as info:
                serialize(1, serializers=["failing", "pickle"], on_error="raise")
        finally:
            del families["failing"]
        assert isinstance(info.value.__cause__, ZeroDivisionError)

    def test_a_registered_serializer_can_leave_an_object_to_the_next_family(self):
        class Choosy:
            pass

        def choosy(x):
            raise NotImplementedError

        register_serialization(Choosy, choosy, lambda header, frames: None)
        assert family_of(Choosy()) == "pickle"

    def test_an_unknown_on_error_is_an_error(self):
        with pytest.raises(ValueError, match="on_error='foo'"):
            serialize(1, on_error="foo")

    def test_an_object_that_no_family_accepts_can_raise_an_error(self):
        with pytest.raises(TypeError, match=r"type Plain.*\['dask', 'msgpack'\]"):
            serialize(Plain(), serializers=["dask", "msgpack"], on_error="raise")

    def test_an_object_that_no_family_accepts_is_sent_as_an_explanation(self):
        header, frames = serialize(threading.Lock())
        assert header["serializer"] == "error"
        with pytest.raises(TypeError, match=r"type lock(.|\n)*cannot pickle '_thread.lock'"):
            deserialize(header, frames)


class TestCollections:
    @pytest.mark.parametrize("x", [[b"a", 1], (b"a",), {b"a"}, {"k": b"a"}, [[b"a"]], [{1: b"a"}]])
    def test_go_by_element_if_the_type_of_the_first_is_registered(self, x):
        assert family_of(x) == "by element"
        assert check_dask_serializable(x)

    @pytest.mark.parametrize("x", [[], {}, [1, b"a"], {"k": 1, "l": b"a"}, [[], [b"a"]], [1]])
    def test_are_pickled_whole_otherwise(self, x):
        assert family_of(x) == "pickle"
        assert not check_dask_serializable(x)

    @pytest.mark.parametrize("key", [frozenset(), 1j, 2**64, (1, frozenset())])
    def test_with_keys_that_msgpack_cannot_encode_are_pickled_whole(self, key):
        assert family_of({key: b"a"}) == "pickle"
        assert family_of({1: b"a", key: b"a"}, iterate_collection=True) == "pickle"

    def test_within_serialize_always_go_by_element(self):
        assert family_of(Serialize([1, "a"])) == "by element"
        assert family_of(Serialize({"a": [1]})) == "by element"

    def test_lists_stay_lists_if_msgpack_comes_first(self):
        for serializers in (["msgpack"], ["msgpack", "pickle"], ["dask", "msgpack", "pickle"]):
            x = [1, [2, [3]]]
            assert deserialize(*serialize(x, serializers=serializers)) == x
        assert family_of([1], serializers=["pickle", "msgpack"]) == "pickle"
        assert family_of((1, 2), serializers=["msgpack"]) == "msgpack"

    def test_that_contain_themselves_are_pickled(self):
        x = []
        x.append(x)
        arrived = deserialize(*serialize(x))
        assert arrived[0] is arrived

    def test_elements_of_several_families_are_sent_together(self):
        header, frames = serialize([b"a", 1, [b"b", "c"], threading.Lock()])
        assert [len(frames), list(header["frame-lengths"])] == [6, [1, 1, 2, 2]]
        with pytest.raises(SerializationError, match="lock"):
            deserialize(header, frames)

    @pytest.mark.parametrize(
        "change",
        [
            {"type-serialized": "frozenset"},
            {"type-serialized": ["list"]},
            {"type-serialized": None},
            {"frame-lengths": (1,)},
            {"frame-lengths": (1, 2)},
            {"frame-lengths": (3, -1)},
            {"frame-lengths": (1, "1")},
            {"frame-lengths": None},
            {"frame-lengths": 2},
            {"sub-headers": ()},
            {"sub-headers": None},
            {"sub-headers": (1, 2)},
            {"sub-headers": ({}, {})},
            {"type-serialized": "dict"},
        ],
    )
    def test_with_invalid_headers_are_refused(self, change):
        header, frames = serialize([b"a", b"b"])
        with pytest.raises(HeaderError):
            deserialize(header | change, frames)

    def test_a_set_of_unhashable_elements_is_refused(self):
        header, frames = serialize([[b"a"]])
        with pytest.raises(HeaderError, match="unhashable"):
            deserialize(header | {"type-serialized": "set"}, frames)


class TestInvalidHeaders:
    @pytest.mark.parametrize("name", [None, "zzz", 1, ["dask"], {}])
    def test_an_unknown_family_is_refused(self, name):
        with pytest.raises(HeaderError, match="unknown serializer family"):
            deserialize({"serializer": name}, [b"a"])

    @pytest.mark.parametrize(
        ("header", "frames"),
        [
            ({"serializer": "pickle"}, []),
            ({"serializer": "pickle", "writeable": (True,)}, [pickle.dumps(1)]),
            ({"serializer": "pickle", "writeable": 5}, [pickle.dumps(1)]),
            ({"serializer": "pickle"}, [b"no pickle"]),
            ({"serializer": "dask"}, [b"a"]),
            ({"serializer": "dask", "type-serialized": pickle.dumps(int)}, [b"a"]),
            ({"serializer": "dask", "type-serialized": pickle.dumps(5)}, [b"a"]),
            ({"serializer": "dask", "type-serialized": [1]}, [b"a"]),
            ({"serializer": "dask", "type-serialized": pickle.dumps(array)}, [b"a"]),
            ({"serializer": "msgpack"}, [b"\xc1"]),
            ({"serializer": "msgpack"}, []),
        ],
    )
    def test_frames_that_a_family_cannot_read_are_refused(self, header, frames):
        with pytest.raises(DeserializationError, match="could not deserialize"):
            deserialize(header, frames)

    @pytest.mark.parametrize("counts", [(), (2,), (1, 1), (0, 1), (-1, 2), "1", (True,), None, 1])
    def test_pieces_that_do_not_add_up_are_refused(self, counts):
        header, frames = serialize_and_split(b"abc")
        if counts is None:
            assert merge_and_deserialize(header | {"split-num-sub-frames": None}, frames) == b"abc"
            return
        with pytest.raises(HeaderError):
            merge_and_deserialize(header | {"split-num-sub-frames": counts}, frames)


@pytest.mark.parametrize(
    ("x", "plain"),
    [
        *((1, True), ("a", True), (b"a", True), (1.5, True), (None, True), (True, True)),
        *(([1, (2,)], True), ({"a": [1]}, True), ({"a": b""}, True)),
        *(({1: 2}, False), ({b"a": 1}, False), ({"a": 1j}, False), (bytearray(), False)),
        *((2**64, False), (Text("a"), False), ({Text("a"): 1}, False), ({1}, False)),
    ],
    ids=ids.shown,
)
def test_values_that_msgpack_preserves_are_recognized(x, plain):
    assert _is_msgpack_serializable(x) is plain
    assert _is_dumpable(x) is plain


def test_wrapped_values_can_be_put_into_a_message():
    assert _is_dumpable({"a": [Serialize(1)]})
    assert not _is_msgpack_serializable({"a": [Serialize(1)]})


class TestRegistration:
    def test_subclasses_use_the_serializer_of_their_base(self):
        arrived = deserialize(*serialize(Derived(5)))
        assert (type(arrived), arrived.x) == (Derived, 5)

    def test_registering_anything_but_a_type_is_an_error(self):
        with pytest.raises(TypeError, match="register_lazy"):
            register_serialization("numpy.ndarray", None, None)

    def test_a_serializer_can_return_several_and_empty_frames(self):
        class Many:
            pass

        register_serialization(
            Many, lambda x: ({}, [b"", b"abc", b""]), lambda header, frames: map(bytes, frames)
        )
        assert list(deserialize(*serialize(Many()))) == [b"", b"abc", b""]

    def test_a_registered_family_is_used_if_it_is_named(self):
        register_serialization_family(
            "repr",
            lambda x: ({"made-by": "repr"}, [repr(x).encode()]),
            lambda header, frames: (header["made-by"], bytes(frames[0])),
        )
        try:
            header, frames = serialize(1, serializers=["repr"])
            assert header["serializer"] == "repr"
            assert deserialize(header, frames) == ("repr", b"1")
        finally:
            del families["repr"]


class Base:
    def __init__(self, x):
        self.x = x


class Derived(Base):
    pass


def _load_based(header, frames):
    return Derived(header["x"])


register_serialization(Base, lambda x: ({"x": x.x}, []), _load_based)


class Estimator:
    def __init__(self):
        self.coefficients = array("d", [1.0, 2.0])
        self.name = "linear"
        self.nested = {"steps": [b"a", Plain()], "n": 1}
        self.plain = {"a": [1]}


class FittedEstimator(Estimator):
    pass


register_generic(Estimator)


class TestGeneric:
    @pytest.mark.parametrize("cls", [Estimator, FittedEstimator])
    def test_objects_arrive_attribute_by_attribute(self, cls):
        arrived = deserialize(*serialize(cls()))
        assert type(arrived) is cls
        assert vars(arrived) == vars(cls())

    def test_large_attributes_are_not_copied(self):
        x = Estimator()
        _, frames = serialize(x)
        assert frames[0].obj is x.coefficients

    def test_attributes_that_msgpack_encodes_are_in_the_header(self):
        header, _ = serialize(Estimator())
        assert list(header["sub-header"]["simple"]) == ["name", "plain"]
        assert msgpack.packb(header)

    def test_another_family_can_serialize_the_attributes(self):
        header, frames = ObjectDictSerializer("pickle").serialize(Estimator())
        assert header["complex"]["coefficients"]["header"]["serializer"] == "pickle"
        arrived = ObjectDictSerializer("pickle").deserialize(header, frames)
        assert vars(arrived) == vars(Estimator())

    @pytest.mark.parametrize("change", [{"start": -1}, {"stop": 99}, {"start": 1, "stop": 0}])
    def test_attributes_in_missing_frames_are_refused(self, change):
        header, frames = serialize(Estimator())
        header["sub-header"]["complex"]["coefficients"].update(change)
        with pytest.raises(HeaderError, match="coefficients"):
            deserialize(header, frames)


class TestStored:
    @pytest.mark.parametrize("x", [1, "abc", b"ab" * 1000, [1, b"a"], [b"a", {"k": b"b"}], {}])
    @pytest.mark.parametrize("compression", [None, "zlib", "auto"])
    def test_stored_objects_are_read_unchanged(self, x, compression):
        assert deserialize_bytes(serialize_bytes(x, compression=compression)) == x

    def test_stored_frames_are_compressed(self):
        pieces = serialize_bytelist(bytes(1_000_000), compression="zlib")
        assert sum(map(len, pieces)) < 10_000
        assert deserialize_bytes(b"".join(pieces)) == bytes(1_000_000)

    def test_stored_frames_are_not_copied(self):
        x = bytearray(1_000_000)
        assert serialize_bytelist(x, compression=None)[-1].obj is x

    def test_large_stored_frames_are_split(self):
        assert deserialize_bytes(serialize_bytes(bytes(100), size=7)) == bytes(100)

    @pytest.mark.parametrize("stored", [b"", b"abc", bytes(8), serialize_bytes(1)[:-1]])
    def test_bytes_without_an_object_are_refused(self, stored):
        with pytest.raises((FramingError, HeaderError)):
            deserialize_bytes(stored)

    def test_an_unknown_codec_is_an_error_that_names_it(self):
        stored = serialize_bytes(bytes(100_000), compression="zlib").replace(b"zlib", b"lzib")
        with pytest.raises(CompressionError, match="'lzib'"):
            deserialize_bytes(stored)


class TestMessagesThatAreNotSerialized:
    def test_wrappers_are_replaced_by_their_values(self):
        message = {
            "op": "update",
            "x": [Serialize(123), Serialize(456), 789],
            "y": {"a": ["abc", Serialized(*serialize("def"))], "b": b"ghi"},
            "z": (ToPickle(1), Pickled({"pickled-obj": pickle.dumps(2)}, [])),
        }
        before = copy.deepcopy(message["x"]), list(message["y"])
        assert _nested_deserialize(message) == {
            "op": "update",
            "x": [123, 456, 789],
            "y": {"a": ["abc", "def"], "b": b"ghi"},
            "z": (1, 2),
        }
        assert (message["x"], list(message["y"])) == before

    def test_only_values_to_pickle_are_replaced_without_deserialization(self):
        message = {"x": [Serialize(1)], "y": ToPickle(2)}
        arrived = _nested_deserialize(message, emulate_deserialize=False)
        assert arrived == {"x": [Serialize(1)], "y": 2}

    def test_containers_are_not_shared_with_the_sender(self):
        message = {"x": [1, {"y": [2]}]}
        arrived = _nested_deserialize(message)
        arrived["x"][1]["y"].append(3)
        assert message == {"x": [1, {"y": [2]}]}

    def test_a_received_serialized_value_is_joined_and_inflated(self):
        from distributed.protocol import dumps, loads

        frames = dumps(
            Serialize(bytes(100_000)), context={"compression": "zlib"}, frame_split_size=30_000
        )
        serialized = loads([bytes(frame) for frame in frames], deserialize=False)
        assert _nested_deserialize([serialized]) == [bytes(100_000)]


def test_a_type_without_a_deserializer_is_refused():
    class OneWay:
        pass

    dask_serialize.register(OneWay, lambda x: ({}, []))
    header, frames = serialize(OneWay())
    with pytest.raises(TypeError):
        dask_deserialize.dispatch(OneWay)
    with pytest.raises(DeserializationError, match="OneWay"):
        deserialize(header, frames)


@pytest.mark.parametrize("value", [2**100, "a" * 1000, bytearray(1000)])
def test_the_size_of_a_wrapped_value_is_that_of_the_value(value):
    # dask's sizeof asks for it, which decides about spilling, for example.
    assert sys.getsizeof(Serialize(value)) == sys.getsizeof(value)
    assert sys.getsizeof(ToPickle(value)) == sys.getsizeof(value)


def test_the_size_of_a_serialized_value_contains_its_frames():
    for kind in (Serialized, Pickled):
        assert sys.getsizeof(kind({}, [])) == sys.getsizeof({}) + sys.getsizeof([])
        assert sys.getsizeof(kind({}, [bytes(5000), memoryview(bytes(5000))])) > 10_000


def test_a_serialized_value_equals_the_one_that_arrives():
    sent = Serialized({"serializer": "x", "compression": (None,)}, [b"abc"])
    assert loads(dumps({"x": sent}), deserialize=False)["x"] == sent
    assert "num-sub-frames" not in sent.header
    assert sent != Serialized({"serializer": "y", "compression": (None,)}, [b"abc"])
