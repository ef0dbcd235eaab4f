"""Serializers of bytes, bytearray, memoryview and array.array."""

from __future__ import annotations

import ctypes
import sys
from array import array

import pytest

from distributed.protocol import Serialize, deserialize, dumps, loads, serialize

OBJECTS = [b"", b"abc", bytearray(), bytearray(b"abc")]


def sent(x, **kwargs):
    return loads([bytes(frame) for frame in dumps(Serialize(x), **kwargs)])


@pytest.mark.parametrize("x", OBJECTS, ids=repr)
@pytest.mark.parametrize("size", [None, 2])
def test_bytes_keep_their_type(x, size):
    arrived = sent(x, frame_split_size=size)
    assert type(arrived) is type(x)
    assert arrived == x


@pytest.mark.parametrize("typecode", "bBhHiIlLqQfd")
@pytest.mark.parametrize("n", [0, 1, 20])
@pytest.mark.parametrize("size", [None, 17, 1])
def test_arrays_keep_their_typecode(typecode, n, size):
    x = array(typecode, range(n))
    arrived = sent(x, frame_split_size=size)
    assert arrived.typecode == typecode
    assert arrived == x


@pytest.mark.parametrize("format", "cbBhHiIlLqQnNfd?")
@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2), (1, 12), (12, 1)])
@pytest.mark.parametrize("size", [None, 17])
def test_memoryviews_keep_format_and_shape(format, shape, size):
    itemsize = memoryview(bytes(16)).cast(format).itemsize
    flat = bytes(i % 2 for i in range(12 * itemsize))
    x = memoryview(flat).cast(format, shape)
    arrived = sent(x, frame_split_size=size)
    assert (arrived.format, arrived.shape) == (format, shape)
    assert arrived.tobytes() == flat


@pytest.mark.parametrize(
    "x",
    [
        memoryview(b"abcdef")[::2],
        memoryview(b"abcdef")[::-1],
        memoryview(array("d", range(6)))[::3],
        memoryview(b""),
        memoryview(array("d")),
        memoryview(bytes(24)).cast("d", (1, 3))[:0],
    ],
    ids=lambda x: f"{x.format}{x.shape}",
)
def test_strided_and_empty_memoryviews_arrive_equal(x):
    arrived = sent(x)
    assert (arrived.format, arrived.shape) == (x.format, x.shape)
    assert arrived == x


@pytest.mark.parametrize("shape", [(3, 0), (0, 0), (2, 0, 3), (0, 2**40)])
def test_empty_memoryviews_of_any_shape_arrive(shape):
    header, frames = serialize(memoryview(b""))
    header["sub-header"] = {"format": "d", "shape": shape}
    arrived = deserialize(header, frames)
    assert (arrived.shape, arrived.itemsize, arrived.nbytes) == (shape, 8, 0)


def test_memoryviews_in_native_byte_order_arrive_equal():
    x = memoryview((ctypes.c_double * 3)(1.0, 2.0, 3.0))
    assert sent(x).tolist() == [1.0, 2.0, 3.0]


FOREIGN_DOUBLE = (
    ctypes.c_double.__ctype_be__ if sys.byteorder == "little" else (ctypes.c_double.__ctype_le__)
)


@pytest.mark.parametrize("make", [ctypes.py_object, FOREIGN_DOUBLE, ctypes.c_longdouble])
def test_memoryviews_of_unsupported_formats_are_refused(make):
    with pytest.raises(TypeError, match="format"):
        serialize(memoryview((make * 2)()), on_error="raise")


def test_received_memoryviews_use_the_memory_of_the_frame():
    memory = bytearray(b"abcdef" * 8)
    first, header, _ = dumps(Serialize(memoryview(bytes(48)).cast("d")))
    arrived = loads([first, header, memoryview(memory)])
    assert arrived.obj is memory
    assert not arrived.readonly


def test_received_bytearrays_own_their_memory():
    x = bytearray(b"abc")
    arrived = deserialize(*serialize(x))
    arrived[0] = 0
    assert x == b"abc"


@pytest.mark.parametrize(
    "sub_header",
    [
        {"format": "B", "shape": (4,)},
        {"format": "B", "shape": (-1, -3)},
        {"format": "B", "shape": ()},
        {"format": "B", "shape": ("3",)},
        {"format": "d", "shape": (1,)},
        {"format": "Z", "shape": (3,)},
        {"format": 3, "shape": (3,)},
        {"format": "B", "shape": 3},
        {"format": "B", "shape": (2**70,)},
        {"format": "B", "shape": (2**62, 2**62)},
        {"format": "d", "shape": (0, 2**62, 2**62)},
        {"format": "B", "shape": (1,) * 100},
        {"format": "B", "shape": "abc"},
        {"shape": (3,)},
        {},
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("content", [b"abc", b""])
def test_memoryviews_with_invalid_headers_are_refused(sub_header, content, memory_below):
    header, _ = serialize(memoryview(content))
    with (
        memory_below(1_000_000),
        pytest.raises(ValueError, match="could not deserialize memoryview"),
    ):
        deserialize(header | {"sub-header": sub_header}, [content])


def test_an_array_that_was_split_inside_an_element_is_joined_first():
    header, (frame,) = serialize(array("d", range(5)))
    memory = memoryview(frame).cast("B")
    pieces = [bytes(piece) for piece in (memory[:5], memory[5:6], memory[6:])]
    assert deserialize(header, pieces) == array("d", range(5))
    assert deserialize(header, []) == array("d")
