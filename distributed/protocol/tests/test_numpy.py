"""NumPy arrays arrive unchanged, and their memory is copied only where it must be."""

from __future__ import annotations

import gc
import math
import pickle
import tracemalloc
import warnings
from typing import Any

import pytest

from distributed.protocol import Serialize, deserialize, dumps, loads, serialize
from distributed.protocol import pickle as wire_pickle
from distributed.protocol.exceptions import HeaderError, ProtocolError, SerializationError
from distributed.protocol.limits import default_policy, reading
from distributed.protocol.tests.round_trips import (
    any_shares_memory,
    family,
    in_each_way,
    received,
    sent,
)
from distributed.protocol.tests.test_vectors import frames_of, joined, named

np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as hnp  # noqa: E402
from numpy.ma import mrecords  # noqa: E402

from distributed.protocol.numpy import (  # noqa: E402
    deserialize_numpy_ndarray,
    itemsize,
    serialize_numpy_ndarray,
)

A = np.arange(24, dtype="<i8").reshape(2, 3, 4)
M = np.arange(12, dtype="<i8").reshape(3, 4)
FIELDS = [("a", "i4"), ("b", "f8", (2,)), ("c", "M8[s]"), ("d", "U2")]


class Quantity(np.ndarray):
    """An array with state besides its elements."""

    unit: Any = None

    def __array_finalize__(self, obj):
        self.unit = getattr(obj, "unit", None)

    def __reduce__(self):
        return _quantity, (np.asarray(self), self.unit)


def _quantity(values, unit):
    quantity = values.view(Quantity)
    quantity.unit = unit
    return quantity


class Plain(np.ndarray):
    """An array without state besides its elements, which the serializer cannot know."""


def readonly(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def as_strided(x, shape, strides):
    return np.lib.stride_tricks.as_strided(x, shape, strides)


ARRAYS = {
    "C order": A,
    "Fortran order": np.asfortranarray(A),
    "axes exchanged": A.transpose(1, 0, 2),
    "no axes": np.array(5),
    "one element": np.ones((1, 1, 1)),
    "many axes": np.arange(2**10).reshape((2,) * 10),
    "64 axes": np.ones((1,) * 64),
    "axis of one with any stride": as_strided(np.arange(3), (1, 3), (999, 8)),
    "steps": M[:, ::2],
    "gaps": A[:, 1:],
    "gaps in Fortran order": np.asfortranarray(A)[::2],
    "negative strides": M[::-1],
    "negative strides everywhere": M[::-1, ::-1],
    "negative strides in Fortran order": M.T[::-1],
    "overlapping": as_strided(np.arange(10), (4, 3), (8, 8)),
    "sliding window": np.lib.stride_tricks.sliding_window_view(np.arange(10), 3),
    "diagonal": M.diagonal(),
    "repeated": np.broadcast_to(np.arange(3), (1000, 3)),
    "repeated scalar": np.broadcast_to(2.5, (5, 6)),
    "repeated in the middle": np.broadcast_to(A[:, :1], A.shape),
    "repeated with gaps": np.broadcast_to(np.arange(9)[::3], (5, 3)),
    "repeated and writeable": as_strided(np.arange(3), (5, 3), (0, 8)),
    "repeated nothing": np.broadcast_to(np.arange(0), (5, 0)),
    "empty": np.empty(0),
    "empty with axes": np.empty((3, 0, 2)),
    "empty slice": M[3:],
    "read-only": readonly(A),
    "structured": np.array([(1, (2, 3), "2020-01-01", "ä")] * 3, FIELDS),
    "structured with padding": np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "structured with titles": np.zeros(2, [(("title", "a"), "i4")]),
    "structured steps": np.array([(1, (2, 3), "2020-01-01", "ä")] * 3, FIELDS)[::2],
    "one of several fields": np.zeros(3, FIELDS)["c"],
    "no fields": np.zeros(3, []),
    "datetime64": np.array(["2020-01-01", "NaT"], "M8[ns]"),
    "datetime64 of 25 s": np.zeros(2, "M8[25s]"),
    "datetime64, big-endian": np.ones(2, ">M8[us]"),
    "datetime64 without a unit": np.array([-(2**63)]).view("M8"),
    "timedelta64": np.array([1, 2], "m8[h]"),
    "unicode": np.array(["ab", "cde", "ä😀"]),
    "unicode, big-endian": np.array(["ab"], ">U2"),
    "bytes": np.array([b"ab", b"c\0d"]),
    "void": np.array([b"abc", b"de\0"], "V3"),
    "void of nothing": np.zeros(3, "V0"),
    "large void": np.zeros(3, "V300"),
    "big-endian": np.arange(3, dtype=">i4"),
    "bool": np.array([True, False]),
    "half": np.ones(3, "f2"),
    "long double": np.ones(3, "g"),
    "complex": np.array([1 + 2j]),
    "complex long double": np.array([1 + 2j], "G"),
    "objects": np.array([1, "a", None, (1, 2)], object),
    "objects with axes": np.array([[1, 2, 3], [4, 5, 6]], object).T,
    "read-only objects": readonly(np.array([1, "a"], object)),
    "fields with objects": np.array([(1, "x")], [("a", "i4"), ("b", object)]),
    "strings": np.array(["ab", "c" * 100], np.dtypes.StringDType()),
    "view of bytes": np.frombuffer(b"abcdefgh", "u2"),
    "view of a bytearray": np.frombuffer(bytearray(b"abcdefgh"), "u2"),
    "unaligned": np.frombuffer(bytearray(b"abcdefghi"), "u4", 2, 1),
}

# Those that are sent as memory, and are not empty.
IN_MEMORY = {name: x for name, x in ARRAYS.items() if x.nbytes and not x.dtype.hasobject}

each_array = pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
each_array_in_memory = pytest.mark.parametrize("x", IN_MEMORY.values(), ids=IN_MEMORY)


def assert_same(x, expected):
    assert type(x) is type(expected)
    assert x.dtype == expected.dtype
    assert x.shape == expected.shape
    assert x.flags.writeable is expected.flags.writeable
    # Bytes differ between values that compare equal (0.0, -0.0), and are equal for nan.
    if x.dtype.hasobject:
        assert x.tolist() == expected.tolist()
    else:
        assert x.tobytes() == expected.tobytes()


# Round trips


@each_array
@in_each_way
def test_an_array_arrives_unchanged(x, way):
    assert_same(way(x), x)


@each_array_in_memory
def test_dense_memory_keeps_its_order(x):
    arrived = sent(x)
    if x.flags.f_contiguous:
        assert arrived.flags.f_contiguous
    if x.flags.c_contiguous:
        assert arrived.flags.c_contiguous


def test_a_repeated_axis_is_sent_once_and_is_repeated_where_it_arrives():
    header, frames = serialize(np.broadcast_to(np.arange(3), (10**9, 3)))
    assert [frame.nbytes for frame in frames] == [24]
    arrived = deserialize(header, frames)
    assert (arrived.shape, arrived.strides) == ((10**9, 3), (0, 8))


@pytest.mark.parametrize(
    "x",
    [
        np.float32(2.5),
        np.int64(-3),
        np.bool_(True),
        np.complex64(1j),
        np.longdouble(1) / 3,
        np.str_("ä"),
        np.bytes_(b"a"),
        np.datetime64("2020-01-01", "ns"),
        np.timedelta64(3, "h"),
        np.ones(1, FIELDS)[0],
        np.dtype(FIELDS),
    ],
    ids=lambda x: type(x).__name__,
)
@in_each_way
def test_a_scalar_arrives_unchanged(x, way):
    arrived = way(x)
    assert type(arrived) is type(x)
    assert arrived == x


@in_each_way
def test_a_memmap_arrives_as_an_array_in_memory(tmp_path, way):
    x = np.memmap(tmp_path / "x", "i4", "w+", shape=(4, 3))
    x[:] = np.arange(12).reshape(4, 3)
    for part in (x, x[1:3], x[:, ::2]):
        arrived = way(part)
        assert type(arrived) is np.ndarray
        np.testing.assert_array_equal(arrived, part)


def test_a_memmap_opened_for_reading_arrives_read_only(tmp_path):
    (tmp_path / "x").write_bytes(bytes(100))
    assert not sent(np.memmap(tmp_path / "x", "u1", "r")).flags.writeable


# NumPy 2.5 warns about the name `numpy.char.chararray`.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    CHARARRAY = np.char.chararray


@pytest.mark.parametrize(
    "x",
    [
        np.rec.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")]),
        M.view(np.matrix),
        M.view(np.matrix).T,
        np.array(["a", "bc"]).view(CHARARRAY),
        np.array([1, None], object).view(Plain),
        M.view(Plain)[::2],
    ],
    ids=lambda x: type(x).__name__,
)
# pickle looks at the deprecated name of the class.
@pytest.mark.filterwarnings("ignore:The chararray class is deprecated:DeprecationWarning")
@in_each_way
def test_a_subclass_arrives_with_its_type(x, way):
    assert_same(way(x), x)


@in_each_way
def test_a_subclass_keeps_its_attributes(way):
    arrived = way(_quantity(M.copy(), "m"))
    assert type(arrived) is Quantity
    assert arrived.unit == "m"
    np.testing.assert_array_equal(arrived, M)


# Masked arrays

MASKED = {
    "masked": np.ma.MaskedArray([1, 2, 3], [0, 1, 0]),
    "of floats": np.ma.MaskedArray([[1.0, 2], [3, 4]], [[0, 1], [0, 0]], fill_value=9),
    "filled with nan": np.ma.MaskedArray([1.0, 2], [0, 1], fill_value=math.nan),
    "without a mask": np.ma.MaskedArray([1, 2, 3]),
    "hard": np.ma.MaskedArray([1, 2], [0, 1], hard_mask=True),
    "structured": np.ma.MaskedArray(np.zeros(2, [("a", "i4"), ("b", "f8")]), [(1, 0), (0, 1)]),
    "unicode": np.ma.MaskedArray(["a", "b"], [0, 1]),
    "complex": np.ma.MaskedArray([1j, 2], [0, 1]),
    "half": np.ma.MaskedArray(np.ones(2, "f2"), [0, 1]),
    "datetime64": np.ma.MaskedArray(np.zeros(2, "M8[s]"), [0, 1]),
    "objects": np.ma.MaskedArray(np.array([1, "a"], object), [0, 1]),
    "Fortran order": np.ma.MaskedArray(M, M > 5).T,
    "no axes": np.ma.MaskedArray(3.0, True),
    "empty": np.ma.MaskedArray(np.empty((0, 2)), np.empty((0, 2), bool)),
    "read-only": np.ma.MaskedArray(readonly(M), M > 5),
}


@pytest.mark.parametrize("x", MASKED.values(), ids=MASKED)
@in_each_way
def test_a_masked_array_arrives_unchanged(x, way):
    arrived = way(x)
    assert_same(arrived.data, x.data)
    np.testing.assert_array_equal(arrived.mask, x.mask)
    assert (arrived.mask is np.ma.nomask) is (x.mask is np.ma.nomask)
    assert arrived.hardmask is x.hardmask
    assert arrived.fill_value.dtype == x.fill_value.dtype if x.dtype != object else True
    assert repr(arrived.fill_value) == repr(x.fill_value)


@in_each_way
def test_the_masked_constant_arrives_as_the_masked_constant(way):
    assert way(np.ma.masked) is np.ma.masked


def test_a_subclass_of_masked_array_arrives_with_its_type():
    x = mrecords.fromarrays([[1, 2], [3.0, 4]], names="a,b")
    arrived = sent(x)
    assert type(arrived) is type(x)
    assert arrived.tolist() == x.tolist()


# Without pickles

NO_PICKLES = {"allow-pickle": False}


def sent_without_pickles(x):
    frames = received(dumps(Serialize(x), on_error="raise", context=NO_PICKLES))
    with reading(default_policy()._replace(allow_pickle=False)):
        return loads(frames)


@each_array
def test_an_array_without_objects_is_sent_without_pickle(x):
    if x.dtype.hasobject:
        with pytest.raises(SerializationError, match="have to be pickled"):
            sent_without_pickles(x)
    else:
        assert_same(sent_without_pickles(x), x)


@pytest.mark.parametrize("name", [name for name, x in MASKED.items() if x.dtype != object])
def test_a_masked_array_without_objects_is_sent_without_pickle(name):
    arrived = sent_without_pickles(MASKED[name])
    assert repr(arrived) == repr(MASKED[name])


@pytest.mark.parametrize(
    "spelled",
    [
        {"names": ("a",), "formats": ("i4",), "offsets": (5,), "titles": (None,), "itemsize": 8},
        {"names": ("a",), "formats": ("O",), "offsets": (0,), "titles": (None,), "itemsize": 8},
        {"names": ("a",), "formats": ("i8",), "offsets": (-8,), "titles": (None,), "itemsize": 8},
        {"names": ("a", "b"), "formats": ("i8",), "offsets": (0,), "titles": (), "itemsize": 8},
        {"base": "i8", "shape": (2,)},
        {"base": "i8", "shape": (2**70,)},
        {"names": ("a",)},
        None,
    ],
    ids=str,
)
def test_a_false_spelled_out_type_is_refused(spelled):
    header, frames = serialize(M)
    header["sub-header"]["dtype"] = (2, spelled)
    with pytest.raises(ProtocolError):
        deserialize(header, frames)


# Memory


@each_array_in_memory
def test_dense_memory_is_sent_without_a_copy(x):
    _, frames = serialize(x)
    once = x[tuple(slice(None) if stride else slice(1) for stride in x.strides)]
    low, high = np.lib.array_utils.byte_bounds(once)
    dense = high - low == once.nbytes and min(once.strides, default=1) >= 0
    assert any_shares_memory(frames, x) is dense


@each_array_in_memory
def test_an_array_is_a_view_of_the_received_memory(x):
    frames = received(dumps(Serialize(x)))
    assert any_shares_memory(frames[-1:], loads(frames))


def test_adjacent_frames_are_viewed_as_one():
    x = np.arange(1000)
    head, header, *pieces = dumps(Serialize(x), frame_split_size=100)
    memory = memoryview(bytearray(b"".join(pieces)))
    adjacent = [memory[start : start + 96] for start in range(0, 8000, 96)]
    arrived = loads([head, header, *adjacent])
    np.testing.assert_array_equal(arrived, x)
    assert any_shares_memory([memory], arrived)


def test_a_read_only_array_views_writeable_memory():
    frames = received(dumps(Serialize(readonly(M))))
    arrived = loads(frames)
    assert any_shares_memory(frames[-1:], arrived)
    assert not arrived.flags.writeable


def test_a_writeable_array_is_a_copy_of_read_only_memory():
    frames = [bytes(frame) for frame in dumps(Serialize(M))]
    arrived = loads(frames)
    arrived[0, 0] = 99
    assert loads(frames)[0, 0] == 0


def test_only_the_viewed_part_of_a_large_array_is_sent():
    _, frames = serialize(np.zeros(10**6, "u1")[5:10])
    assert [frame.nbytes for frame in frames] == [5]


def test_an_array_in_an_array_of_objects_is_sent_out_of_band():
    large = np.arange(10_000)
    header, frames = serialize(np.array([large, None], object))
    assert any_shares_memory(frames[1:2], large)
    assert len(frames[0]) < 1000
    assert_same(deserialize(header, frames)[0], large)


def test_each_array_of_a_message_can_be_freed_separately():
    frames = received(dumps([Serialize(np.zeros(10**6)), Serialize(np.ones(3))]))
    tracemalloc.start()
    try:
        frames = [frames[0], *(memoryview(bytearray(frame)) for frame in frames[1:])]
        large, small = loads(frames)
        del frames
        held = tracemalloc.get_traced_memory()[0]
        del large
        gc.collect()
        assert held - tracemalloc.get_traced_memory()[0] > 7 * 10**6
        assert small.tolist() == [1, 1, 1]
    finally:
        tracemalloc.stop()


def test_sending_and_receiving_allocate_no_more_than_the_array():
    x = np.ones(16 * 2**20, "u1")
    tracemalloc.start()
    try:
        frames = dumps(Serialize(x))
        assert tracemalloc.get_traced_memory()[1] < 0.05 * x.nbytes
        received = [bytes(frame) for frame in frames[:-1]] + [memoryview(bytearray(frames[-1]))]
        loads(received)
        assert tracemalloc.get_traced_memory()[1] < 1.05 * x.nbytes
    finally:
        tracemalloc.stop()


def test_an_array_of_more_than_2_gib():
    x = np.zeros(2_200_000_000, "u1")
    x[[0, 2**31, -1]] = 1, 2, 3
    frames = dumps(Serialize(x))
    assert len(frames) > 30
    arrived = loads(frames)
    assert arrived.shape == x.shape
    assert np.shares_memory(arrived, x)
    assert arrived[[0, 2**31, -1]].tolist() == [1, 2, 3]


def test_collections_of_arrays_are_not_pickled():
    _, frames = serialize({"a": M, "b": [M, A]})
    assert [frame.nbytes for frame in frames] == [M.nbytes, M.nbytes, A.nbytes]
    assert family(M) == "dask"


# The original's bytes

VECTORS = {
    "numpy": M,
    "numpy-in-dict": {"a": M, "b": np.float32(2.5), "c": [M.T]},
    "numpy-fortran": np.asfortranarray(M),
    "numpy-broadcast": np.broadcast_to(np.arange(3, dtype="<i8"), (1000, 3)),
    "numpy-strings": np.array(["ab", "cde"], "<U3"),
    "compressed-zlib": np.zeros(50000, "u1"),
}


@pytest.mark.parametrize("name", VECTORS)
def test_an_array_is_written_as_the_recorded_bytes(name):
    context = {"compression": "zlib"} if name == "compressed-zlib" else None
    frames = dumps({"op": "x", "data": Serialize(VECTORS[name])}, context=context)
    assert joined(frames) == frames_of(named(name))


@pytest.mark.parametrize("name", VECTORS)
def test_recorded_bytes_are_read_as_the_array(name):
    arrived, expected = loads(frames_of(named(name)))["data"], VECTORS[name]
    if isinstance(expected, dict):
        assert_same(arrived["a"], M)
        assert (type(arrived["b"]), arrived["b"]) == (np.float32, 2.5)
        assert_same(arrived["c"][0], M.T)
    else:
        assert_same(arrived, expected)


def test_two_large_buffers_are_written_as_the_recorded_bytes_and_read():
    a = np.arange(40000, dtype="<i8")
    frames = frames_of(named("two-large-buffers"))
    message = {"op": "x", "a": Serialize(a), "b": Serialize(a[::-1])}
    assert joined(dumps(message)) == frames
    arrived = loads(frames)
    assert_same(arrived["a"], a)
    assert_same(arrived["b"], a[::-1])


# False headers


def hostile(**changes):
    header, frames = serialize_numpy_ndarray(M)
    return {**header, **changes}, frames


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (4, 4)},
        {"shape": (2, 4)},
        {"shape": (3, 4, 1)},
        {"shape": (-3, -4)},
        {"shape": (2**40, 2**40)},
        {"shape": "abc"},
        {"shape": None},
        {"shape": (3.0, 4)},
        {"shape": (True, 12)},
        {"shape": (12,) + (1,) * 70, "strides": (8,) * 71},
        {"strides": (32,)},
        {"strides": (-32, 8)},
        {"strides": (64, 8)},
        {"strides": (2**62, 8)},
        {"strides": (2**63 - 1, 2**63 - 1)},
        {"strides": (-(2**63), 8)},
        {"strides": (2**70, 8)},
        {"strides": (32.0, 8)},
        {"broadcast_to": (6, 4)},
        {"broadcast_to": (3, 4, 2)},
        {"broadcast_to": (0, 4)},
        {"shape": (1, 12), "strides": (8, 8), "broadcast_to": (5, 12)},
        {"shape": (1, 12), "strides": (0, 8), "broadcast_to": (-1, 12)},
        {"shape": (1, 12), "strides": (0, 8), "broadcast_to": (2**62, 12)},
        {"shape": (1, 12), "strides": (0, 8), "broadcast_to": (2**70, 12)},
        {"dtype": (0, "O"), "shape": (12,), "strides": (8,)},
        {"dtype": (0, "O,i4"), "shape": (8,), "strides": (12,)},
        {"dtype": (0, "T")},
        {"dtype": (0, "(3,)O")},
        {"dtype": (0, "(2,)i4")},
        {"dtype": (0, "(1000000,1000000)i4")},
        {"dtype": (0, "V0"), "shape": (2**50,), "strides": (0,)},
        {"dtype": (0, "no such type")},
        {"dtype": (0, b"i8")},
        {"dtype": (1, "i8")},
        {"dtype": (1, b"no pickle")},
        {"dtype": (1, pickle.dumps("i8"))},
        {"dtype": (1, pickle.dumps(np.dtype(object)))},
        {"dtype": (3, "i8")},
        {"dtype": "<i8"},
        {"dtype": None},
        {"writeable": 5},
        {"pickle": True},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_a_false_header_is_refused(changes):
    sub_header, frames = hostile(**changes)
    header, _ = serialize(M)
    with pytest.raises(ProtocolError):
        deserialize({**header, "sub-header": sub_header}, frames)


def test_the_error_for_a_header_shows_only_the_beginning_of_a_long_value():
    header, frames = hostile(shape=(-1,) * 100_000)
    with pytest.raises(HeaderError, match=r"is given as \(-1, -1, -1, -1, -1, -1, \.\.\.\)"):
        deserialize_numpy_ndarray(header, frames)


def test_a_header_of_very_many_axes_is_refused_before_they_are_multiplied():
    many = (2**63,) * 100_000
    header, frames = hostile(shape=many, strides=many)
    with pytest.raises(HeaderError, match="the shape of an array is given as"):
        deserialize_numpy_ndarray(header, frames)


@pytest.mark.parametrize("key", ["dtype", "shape", "strides"])
def test_an_incomplete_header_is_refused(key):
    sub_header, frames = hostile()
    del sub_header[key]
    header, _ = serialize(M)
    with pytest.raises(ProtocolError):
        deserialize({**header, "sub-header": sub_header}, frames)


@pytest.mark.parametrize("frames", [[], [b"\0" * 8], [bytes(96), bytes(96)], [bytes(97)]])
def test_frames_that_do_not_fit_the_header_are_refused(frames):
    with pytest.raises(HeaderError, match="sent as"):
        deserialize_numpy_ndarray(serialize_numpy_ndarray(M)[0], frames)


def test_an_axis_that_is_not_broadcast_cannot_repeat_elements():
    header, frames = hostile(shape=(12, 12), strides=(0, 8))
    with pytest.raises(HeaderError, match="sent as 96 bytes"):
        deserialize_numpy_ndarray(header, frames)


@pytest.mark.parametrize(
    "changes", [{"nframes": 5}, {"nframes": -1}, {"nframes": "a"}, {"fill-value": (True, b"x")}]
)
def test_a_false_header_of_a_masked_array_is_refused(changes):
    header, frames = serialize(MASKED["masked"])
    header["sub-header"].update(changes)
    with pytest.raises(ProtocolError):
        deserialize(header, frames)


integers = st.integers(-(2**65), 2**65) | st.integers(-3, 30)


@given(
    shape=st.lists(integers, max_size=4),
    strides=st.lists(integers, max_size=4),
    broadcast_to=st.none() | st.lists(integers, max_size=4),
    dtype=st.sampled_from(["i8", "u1", "V0", "O", "(2,3)i4", "U3", "M8[s]", "i4,f8"]),
    nbytes=st.integers(0, 100),
)
def test_any_header_gives_an_array_inside_its_memory_or_an_error(
    shape, strides, broadcast_to, dtype, nbytes
):
    header = {"dtype": (0, dtype), "shape": shape, "strides": strides}
    if broadcast_to is not None:
        header["broadcast_to"] = broadcast_to
    memory = bytearray(nbytes)
    try:
        x = deserialize_numpy_ndarray(header, [memory])
    except (ValueError, TypeError, OverflowError, MemoryError):
        return
    if x.size:
        low, high = np.lib.array_utils.byte_bounds(x)
        start = np.frombuffer(memory or bytearray(1), "u1").ctypes.data
        assert x.dtype.itemsize == 0 or start <= low <= high <= start + nbytes


# Arbitrary arrays

dtypes = (
    hnp.scalar_dtypes()
    | hnp.nested_dtypes(max_itemsize=100)
    | hnp.array_dtypes(max_size=3, allow_subarrays=True)
)


@st.composite
def views(draw):
    x = draw(hnp.arrays(dtypes, hnp.array_shapes(max_dims=4, max_side=4, min_side=0)))
    if x.ndim and draw(st.booleans()):
        x = x.transpose(draw(st.permutations(range(x.ndim))))
    if x.ndim and draw(st.booleans()):
        x = x[draw(hnp.basic_indices(x.shape, allow_ellipsis=False))]
    if isinstance(x, np.ndarray) and draw(st.booleans()):
        x = np.broadcast_to(x, (draw(st.integers(0, 5)), *x.shape))
    return x


@given(views())
def test_any_view_arrives_unchanged(x):
    if isinstance(x, np.ndarray):
        assert_same(sent(x), x)


@pytest.mark.parametrize(
    ("dtype", "size"), [("u1", 1), ("f8", 8), ("U3", 12), (("i4", (3, 2)), 4), ("V256", 8)]
)
def test_itemsize_is_that_of_the_base_type(dtype, size):
    assert itemsize(np.dtype(dtype)) == size


@pytest.mark.parametrize("dtype", ["M8[ns]", "m8[s]", ">M8[D]"])
def test_dates_are_pickled_with_their_memory_out_of_band(dtype):
    dates = np.arange(10**5).astype(dtype).reshape(100, 1000)
    for x in (dates, dates.T, dates[::2, ::3]):
        buffers = []
        pickled = wire_pickle.dumps({"x": x}, buffer_callback=buffers.append)
        assert b"distributed" not in pickled
        arrived = wire_pickle.loads(pickled, buffers=buffers)["x"]
        assert arrived.dtype == x.dtype
        assert np.array_equal(arrived, x)
        if x.flags.forc:
            assert len(pickled) < 500


def test_a_single_date_is_pickled():
    date = np.array("2026-11-23", "M8[D]")
    assert wire_pickle.loads(wire_pickle.dumps(date, buffer_callback=print)) == date
