"""Messages through dumps and loads."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections import OrderedDict, namedtuple
from enum import Enum, IntEnum
from fractions import Fraction
from pickle import UnpicklingError

import msgpack
import pytest

from distributed.base import config
from distributed.protocol import (
    Pickled,
    Serialize,
    Serialized,
    ToPickle,
    dumps,
    loads,
    pickle,
    register_serialization,
    register_serialization_family,
    to_serialize,
)
from distributed.protocol.exceptions import (
    CompressionError,
    DeserializationError,
    FamilyNotAllowedError,
    FramingError,
    HeaderError,
    ImportNotAllowedError,
    MessageError,
    ProtocolError,
    SerializationError,
)
from distributed.protocol.extension import import_allowed_module
from distributed.protocol.families import families
from distributed.tests import ids


class Color(Enum):
    red = 1


class Level(IntEnum):
    low = 1


class Opaque:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Opaque and other.x == self.x

    __hash__ = None  # type: ignore[assignment]


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("not for pickling")


class FailsToArrive:
    def __reduce__(self):
        return (_fail, ())


def _fail():
    raise KeyError("in the constructor")


class Raises:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return (_raise, (self.error,))


def _raise(error):
    raise error("in the constructor")


def sent(msg, **kwargs):
    """Return the message that a receiver of *msg* gets, from copies of the frames."""
    return loads([bytes(frame) for frame in dumps(msg, **kwargs)])


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("msg", "arrives"),
    [
        ([1, [2, (3,)]], (1, (2, (3,)))),
        (Point(1, 2), (1, 2)),
        (OrderedDict(a=1), {"a": 1}),
        (Level.low, 1),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        ({1: "a", (2, 3): "b", None: "c", b"d": 1.5}, {1: "a", (2, 3): "b", None: "c", b"d": 1.5}),
        ({frozenset([1]): 2}, {frozenset([1]): 2}),
        (2**64 - 1, 2**64 - 1),
        (-(2**100), -(2**100)),
        (msgpack.Timestamp(1, 2), msgpack.Timestamp(1, 2)),
    ],
    ids=ids.shown,
)
def test_values_that_msgpack_encodes_arrive_as_msgpack_decodes_them(msg, arrives):
    assert sent(msg) == arrives


@pytest.mark.parametrize("msg", [{1, 2}, set(), [{"a"}, {(1, 2)}], {"x": {frozenset([1])}}])
def test_sets_arrive_as_sets(msg):
    assert sent(msg) == (tuple(msg) if type(msg) is list else msg)


def test_a_simple_message_is_one_frame():
    assert len(dumps({"op": "add", "x": [1, 2.5, "three", None, {4}]})) == 1


def test_objects_that_msgpack_cannot_encode_are_pickled():
    assert sent({"x": Opaque(1), "y": [1j]}) == {"x": Opaque(1), "y": (1j,)}


def test_out_of_band_buffers_travel_in_frames_of_their_own():
    data = bytearray(b"x" * 1000)
    frames = dumps({"x": pickle_buffer(data)})
    assert [len(frame) for frame in frames[2:]] == [1000]
    assert memoryview(frames[2]).obj is data


def pickle_buffer(data):
    from pickle import PickleBuffer

    class Holder:
        def __reduce_ex__(self, protocol):
            return (bytes, (PickleBuffer(data),))

    return Holder()


class TestWrappedValues:
    def test_serialize_arrives_as_the_value(self):
        assert sent({"x": to_serialize([1, b"a", {"b": 2}])}) == {"x": [1, b"a", {"b": 2}]}

    def test_values_arrive_as_serialized_without_deserialization(self):
        msg = loads(dumps({"x": Serialize([b"abc"])}), deserialize=False)
        assert isinstance(msg["x"], Serialized)

    def test_serialized_is_passed_on_byte_for_byte(self):
        frames = dumps({"x": Serialize([b"abc", 1]), "y": Serialize("d")})
        passed_on = dumps(loads(frames, deserialize=False))
        assert [bytes(f) for f in passed_on] == [bytes(f) for f in frames]
        assert loads(passed_on) == {"x": [b"abc", 1], "y": "d"}

    def test_serialized_is_passed_on_without_a_copy(self):
        frames = dumps({"x": Serialize(b"abc" * 1000)})
        passed_on = dumps(loads(frames, deserialize=False))
        assert passed_on[2] is frames[2]

    def test_compressed_frames_are_passed_on_byte_for_byte(self):
        frames = dumps({"x": Serialize(bytes(100_000))}, context={"compression": "zlib"})
        passed_on = dumps(loads(frames, deserialize=False), context={"compression": "zlib"})
        assert [bytes(f) for f in passed_on] == [bytes(f) for f in frames]

    @pytest.mark.parametrize("wrap", [Serialize, lambda x: Serialize([x])])
    def test_serialized_can_be_wrapped_again(self, wrap):
        value = bytes(100_000)
        frames = dumps(Serialize(value), context={"compression": "zlib"}, frame_split_size=30_000)
        inner = loads(frames, deserialize=False)
        assert sent(wrap(inner)) in (value, [value])

    def test_serialize_within_serialize_arrives_as_the_value(self):
        assert sent(Serialize(Serialize(5))) == 5

    def test_to_pickle_arrives_as_the_value_without_deserialization(self):
        frames = dumps({"x": ToPickle({"k": (1, 2)})})
        assert loads(frames, deserialize=False) == {"x": {"k": (1, 2)}}

    def test_pickled_arrives_as_the_value(self):
        ready = Pickled({"pickled-obj": pickle.dumps([1, 2])}, [])
        assert sent({"x": ready}) == {"x": [1, 2]}

    def test_sending_a_serialized_value_does_not_change_its_header(self):
        value = loads(dumps(Serialize(b"abc")), deserialize=False)
        before = dict(value.header)
        dumps(value)
        assert value.header == before

    @pytest.mark.parametrize("wrapper", [Serialize, ToPickle])
    def test_wrappers_compare_and_hash_by_value(self, wrapper):
        assert wrapper(123) == wrapper(123)
        assert wrapper(123) != wrapper((1, 2))
        assert hash(wrapper(123)) == hash(wrapper(123))
        assert "123" in repr(wrapper(123))

    def test_wrappers_of_different_kinds_differ(self):
        assert Serialize(1) != ToPickle(1)

    def test_serialized_compares_by_content(self):
        one, same, other = (
            loads(dumps(Serialize(x)), deserialize=False) for x in (b"ab", b"ab", b"cd")
        )
        assert one == same
        assert one != other

    def test_wrapped_values_arrive_within_sets(self):
        assert sent({"x": {Serialize(5)}}) == {"x": {5}}


class TestEnums:
    @pytest.fixture(autouse=True)
    def _forget_types(self, monkeypatch):
        monkeypatch.setattr("distributed.protocol.extension._enum_types", {})

    def test_enum_members_arrive_as_enum_members(self):
        assert sent({"x": Color.red}) == {"x": Color.red}

    def test_a_module_that_is_not_allowed_is_not_imported(self):
        frame = msgpack.packb(
            {"__Enum__": True, "name": "IPPROTO_TCP", "__module__": "antigravity", "__name__": "x"}
        )
        with pytest.raises(ImportNotAllowedError, match=r"allowed-imports.*\['dask', 'distr"):
            loads([frame])

    def test_allowed_modules_are_configured(self):
        with config.set({"distributed.scheduler.allowed-imports": ["socket"]}):
            assert import_allowed_module("socket").__name__ == "socket"
            with pytest.raises(RuntimeError, match="Importing 'distributed' is not allowed"):
                import_allowed_module("distributed")

    def test_a_refused_module_can_be_allowed_later(self):
        frames = dumps(Color.red)
        with (
            config.set({"distributed.scheduler.allowed-imports": ["dask"]}),
            pytest.raises(ImportNotAllowedError),
        ):
            loads(frames)
        assert loads(frames) is Color.red

    @pytest.mark.parametrize(
        "member",
        [
            ("distributed.protocol.tests.test_messages", "Color", "green"),
            ("distributed.protocol.tests.test_messages", "Colour", "red"),
            ("distributed.protocol.tests.test_messages", "Opaque", "red"),
            ("distributed.nowhere", "Color", "red"),
            ("distributed.protocol.tests.test_messages", "Color", 1),
            (["distributed"], "Color", "red"),
        ],
    )
    def test_an_enum_member_that_does_not_exist_is_an_error(self, member):
        module, cls, name = member
        form = {"__Enum__": True, "name": name, "__module__": module, "__name__": cls}
        with pytest.raises(MessageError):
            loads([msgpack.packb(form)])


class TestErrorsOfTheSender:
    def test_without_pickle_an_object_is_an_error_that_names_its_type(self):
        with pytest.raises(TypeError, match=r"Opaque.*\['dask', 'msgpack'\]"):
            dumps({"x": Opaque(1)}, serializers=["dask", "msgpack"])

    def test_without_pickle_a_value_to_pickle_is_still_sent(self):
        assert sent({"x": ToPickle(Opaque(1))}, serializers=["msgpack"]) == {"x": Opaque(1)}

    @pytest.mark.parametrize("wrap", [lambda x: x, ToPickle])
    def test_an_object_that_cannot_be_pickled_is_an_error_that_names_its_type(self, wrap):
        with pytest.raises(TypeError, match=r"Unpicklable.*not for pickling"):
            dumps({"x": wrap(Unpicklable())})

    def test_a_wrapped_object_that_cannot_be_sent_can_raise_at_the_sender(self):
        with pytest.raises(SerializationError, match=r"type int: .*\['dask'\]"):
            dumps({"x": Serialize(1)}, serializers=["dask"], on_error="raise")

    def test_text_that_is_not_unicode_is_an_error(self):
        with pytest.raises(UnicodeEncodeError):
            dumps({"x": "\ud800"})

    def test_an_unknown_family_is_an_error_that_names_it(self):
        with pytest.raises(ValueError, match="'nope'"):
            dumps(Serialize(1), serializers=["nope"])

    def test_a_failure_does_not_affect_the_next_message(self):
        with pytest.raises(TypeError):
            dumps([1, 2, 3, Unpicklable()])
        assert dumps([4]) == [b"\x91\x04"]


class TestErrorsOfTheReceiver:
    def test_a_value_that_could_not_be_sent_raises_the_senders_reason(self):
        frames = dumps({"x": Serialize(Unpicklable())})
        with pytest.raises(SerializationError, match=r"type Unpicklable\n(.|\n)*not for pickling"):
            loads(frames)

    def test_a_value_that_could_not_be_sent_can_be_passed_on(self):
        frames = dumps({"x": Serialize(Unpicklable())})
        with pytest.raises(TypeError):
            loads(dumps(loads(frames, deserialize=False)))

    @pytest.mark.parametrize("deserializers", [["dask"], ("msgpack", "error"), []])
    @pytest.mark.parametrize("msg", [Serialize(1), Serialize([1]), 1j, ToPickle(1)])
    def test_a_family_that_is_not_allowed_is_an_error_that_names_it(self, msg, deserializers):
        frames = dumps({"x": msg})
        with pytest.raises(FamilyNotAllowedError, match="with pickle but only") as info:
            loads(frames, deserializers=deserializers)
        assert isinstance(info.value, TypeError)
        assert str(list(deserializers)) in str(info.value)

    def test_the_senders_reason_is_raised_with_any_deserializers(self):
        frames = dumps(Serialize(1), serializers=["dask"])
        with pytest.raises(SerializationError, match="type int"):
            loads(frames, deserializers=["dask"])

    def test_allowed_families_do_not_have_to_exist(self):
        assert loads(dumps(Serialize(1)), deserializers=["pickle", "foo"]) == 1

    @pytest.mark.parametrize("wrap", [ToPickle, Serialize])
    @pytest.mark.parametrize("put", [lambda x: x, lambda x: [b"", x], lambda x: {"a": x}])
    def test_an_error_that_an_object_raises_is_raised_as_it_is(self, wrap, put):
        with pytest.raises(KeyError, match="in the constructor") as info:
            loads(dumps({"x": wrap(put(FailsToArrive()))}))
        assert info.value.__cause__ is None
        (note,) = info.value.__notes__
        assert note.startswith("This error was raised while an object was unpickled")
        assert "_fail" in note

    def test_an_error_of_an_object_in_an_array_is_raised_as_it_is(self):
        np = pytest.importorskip("numpy")
        array = np.array([FailsToArrive()], dtype=object)
        with pytest.raises(KeyError, match="in the constructor"):
            loads(dumps({"x": Serialize(array)}))

    def test_an_error_of_an_object_leaves_no_reference_to_the_message(self):
        # A reference cycle would keep the memory of the message until garbage is collected.
        memory = bytearray(100)
        frames = dumps({"x": Serialize(memory), "y": ToPickle(FailsToArrive())})
        gc.disable()
        try:
            try:
                loads(frames)
            except KeyError:
                del frames
            memory.append(1)  # raises an error while a view of it exists
        finally:
            gc.enable()

    @pytest.mark.parametrize("error", [EOFError, OSError, UnpicklingError])
    def test_an_object_may_raise_the_errors_of_pickle_itself(self, error):
        with pytest.raises(error, match="in the constructor"):
            loads(dumps(ToPickle(Raises(error))))

    def test_the_end_of_an_iterator_is_wrapped_because_futures_cannot_raise_it(self):
        with pytest.raises(DeserializationError, match="StopIteration"):
            loads(dumps(ToPickle(Raises(StopIteration))))

    def test_a_name_that_cannot_be_imported_is_an_error_of_the_object(self):
        frames = dumps(ToPickle(Fraction))
        frames[1] = bytes(frames[1]).replace(b"fractions", b"fractionz")
        with pytest.raises(ModuleNotFoundError, match="fractionz") as info:
            loads(frames)
        assert "fractionz.Fraction" in info.value.__notes__[0]

    @pytest.mark.parametrize("wrap", [ToPickle, Serialize])
    @pytest.mark.parametrize("pickled", [b"", b"garbage", b"\x80\x05.", b"\x80\x05K"])
    def test_a_malformed_pickle_is_a_protocol_error(self, wrap, pickled):
        header, *frames = dumps(wrap(Fraction(1)))[1:]
        if wrap is ToPickle:
            header = msgpack.packb({**msgpack.unpackb(header), "pickled-obj": pickled})
            head = {"__Pickled__": 1}
        else:
            frames = [pickled]
            head = {"__Serialized__": 1}
        with pytest.raises(DeserializationError):
            loads([msgpack.packb(head), header, *frames])

    @pytest.mark.parametrize("msg", [{"__Serialized__": 1}, {"__Pickled__": 2}, {"__Set__": 1}])
    def test_a_map_like_a_reference_arrives_unchanged_in_a_single_frame(self, msg):
        assert sent(msg) == msg

    @pytest.mark.parametrize(
        "msg",
        [
            {"__Serialized__": "text"},
            {"__Serialized__": 1, "other": 2},
            {"__Set__": True, "as-list": [1], "other": 1},
            {"__Enum__": True},
            {"__Pickled__": True},
        ],
    )
    def test_maps_that_resemble_references_keep_their_keys(self, msg):
        msg = {"like": msg, "other": ToPickle(1)}
        arrived = loads(dumps(msg))
        assert arrived["like"].keys() == msg["like"].keys()

    @pytest.mark.parametrize("key", ["__Serialized__", "__Pickled__"])
    @pytest.mark.parametrize("index", [-1, 0, 3, 2**63])
    def test_a_reference_to_a_missing_frame_is_refused(self, key, index):
        header = msgpack.packb({"num-sub-frames": 0})
        with pytest.raises(HeaderError, match=f"frame {index} of 3"):
            loads([msgpack.packb({key: index}), header, header])

    @pytest.mark.parametrize("key", ["__Serialized__", "__Pickled__"])
    @pytest.mark.parametrize("count", [-1, 2, 2**40, None, "1", 1.0, True])
    def test_a_header_with_an_invalid_number_of_frames_is_refused(self, key, count):
        header = msgpack.packb({"num-sub-frames": count, "serializer": "msgpack"})
        with pytest.raises(HeaderError, match="frame 1 of 3"):
            loads([msgpack.packb({key: 1}), header, b"\x01"])

    def test_two_references_to_one_value_are_refused(self):
        first, *others = dumps([Serialize(b"abc")])
        assert loads([first, *others]) == (b"abc",)
        with pytest.raises(HeaderError, match="taken"):
            loads([msgpack.packb([{"__Serialized__": 1}] * 2), *others])

    @pytest.mark.parametrize("header", [b"", b"\xc1", b"\x01", b"\x81\xa1a", b"\x80\x80"])
    def test_a_header_that_is_not_a_map_is_refused(self, header):
        with pytest.raises(HeaderError, match="header"):
            loads([msgpack.packb({"__Serialized__": 1}), header])

    @pytest.mark.parametrize(
        "head", [b"", b"\xc1", b"\x91", b"\x01\x02", b"\xa1\xff", b"\x91" * 5000]
    )
    def test_a_message_that_is_not_msgpack_is_refused(self, head):
        with pytest.raises(MessageError, match="msgpack"):
            loads([head])

    def test_a_message_without_frames_is_refused(self):
        with pytest.raises(MessageError, match="no frames"):
            loads([])

    @pytest.mark.parametrize("elements", [3, {"a": 1}, [{}], [[{}]]])
    def test_a_set_of_unhashable_elements_is_refused(self, elements):
        with pytest.raises(MessageError, match="set"):
            loads([msgpack.packb({"__Set__": True, "as-list": elements})])

    @pytest.mark.parametrize(
        "error",
        [
            *(CompressionError, DeserializationError, FramingError, HeaderError),
            *(ImportNotAllowedError, MessageError),
        ],
    )
    def test_errors_in_received_bytes_are_value_errors_of_one_tree(self, error):
        assert issubclass(error, ProtocolError)
        assert issubclass(ProtocolError, ValueError)


class TestLargeFrames:
    def test_frames_are_split_at_the_given_size(self):
        frames = dumps(Serialize(b"x" * 25), frame_split_size=10)
        assert [len(frame) for frame in frames[2:]] == [10, 10, 5]

    def test_frames_are_split_at_the_configured_size(self):
        frames = dumps(Serialize(bytes(2**26 + 1)))
        assert [len(frame) for frame in frames[2:]] == [2**26, 1]

    @pytest.mark.parametrize("size", [1, 7, 1000])
    @pytest.mark.parametrize("codec", [None, "zlib"])
    def test_split_values_arrive_unchanged(self, size, codec):
        value = [bytearray(b"ab" * 12), b"", (b"xyz" * 4,), {"k": bytes(20)}]
        msg = {"x": Serialize(value), "y": Serialize(1)}
        kwargs = {"frame_split_size": size, "context": {"compression": codec}}
        assert sent(msg, **kwargs) == {"x": value, "y": 1}

    def test_adjacent_pieces_are_joined_without_a_copy(self):
        memory = bytearray(b"ab" * 1000)
        first, header, *pieces = dumps(Serialize(memoryview(memory)), frame_split_size=300)
        arrived = loads([first, header, *pieces])
        assert arrived == memory
        assert arrived.obj is memory

    def test_frames_are_the_senders_memory(self):
        memory = bytearray(1000)
        frames = dumps({"x": Serialize(memory)})
        assert frames[2].obj is memory

    @pytest.mark.parametrize("make", [lambda n: bytes(n), lambda n: "x" * n, lambda n: [0] * n])
    def test_large_values_in_the_message_itself_arrive(self, make):
        value = make(5_000_000)
        arrived = sent({"x": value})["x"]
        assert arrived == (tuple(value) if type(value) is list else value)

    def test_a_large_message_does_not_keep_memory(self):
        dumps({"x": 1})
        tracemalloc.start()
        try:
            dumps({"x": bytes(30_000_000)})
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 2_000_000


class TestContext:
    def test_the_negotiated_codec_is_used(self):
        msg = {"x": Serialize(bytes(100_000)), "y": Serialize(b"small")}
        frames = dumps(msg, context={"compression": "zlib"})
        assert len(frames[2]) < 1000
        assert msgpack.unpackb(frames[1])["compression"] == ["zlib"]
        assert loads(frames) == {"x": bytes(100_000), "y": b"small"}

    def test_buffers_of_pickled_objects_are_compressed(self):
        frames = dumps({"x": pickle_buffer(bytes(100_000))}, context={"compression": "zlib"})
        assert len(frames[2]) < 1000
        assert loads(frames) == {"x": bytes(100_000)}

    @pytest.mark.parametrize("msg", [Serialize(1j), ToPickle(1j), 1j])
    def test_the_negotiated_pickle_protocol_is_used(self, msg):
        packed = b"".join(dumps({"x": msg}, context={"pickle-protocol": 4}))
        assert b"\x80\x04\x95" in packed
        assert b"\x80\x05" not in packed

    def test_families_receive_the_context(self):
        def family_dumps(x, context=None):
            return {"context": context}, []

        register_serialization_family("contextual", family_dumps, lambda header, frames: header)
        try:
            header = sent(Serialize(1), serializers=["contextual"], context={"sender": "me"})
        finally:
            del families["contextual"]
        assert header["context"] == {"sender": "me"}

    def test_serializers_of_types_receive_the_context(self):
        register_serialization(
            Aware, lambda x, context: (dict(context), []), lambda header, frames: header["sender"]
        )
        assert sent(Serialize(Aware()), context={"sender": "me"}) == "me"


def test_headers_can_contain_sets_and_enum_members():
    header = {"a": {1, (2, 3)}, "b": Color.red, 5: (1, 2), "like": {"__Set__": 1}}
    register_serialization(Aware, lambda x: (header, []), lambda header, frames: header)
    assert sent(Serialize([Aware()])) == [header]


def test_a_header_that_cannot_be_encoded_is_an_error_that_names_the_type():
    register_serialization(Aware, lambda x: ({"a": 1j}, []), lambda header, frames: header)
    with pytest.raises(SerializationError, match=r"Aware made a header that .*complex"):
        dumps(Serialize(Aware()))


class Aware:
    pass


class Forwarded:
    pass


def test_a_serializer_can_write_messages():
    register_serialization(
        Forwarded,
        lambda x: ({}, dumps({"inner": {1, 2}, "more": 1j})),
        lambda header, frames: loads(frames),
    )
    assert sent([{3}, Serialize(Forwarded()), {4}]) == ({3}, {"inner": {1, 2}, "more": 1j}, {4})


def test_several_threads_can_write_messages():
    barrier = threading.Barrier(8)
    wrong = []

    def write(i):
        msg = {"x": {i}, "y": Serialize([b"a" * i, i]), "z": [i] * 100}
        barrier.wait()
        for _ in range(200):
            if loads(dumps(msg)) != {"x": {i}, "y": [b"a" * i, i], "z": (i,) * 100}:
                wrong.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
