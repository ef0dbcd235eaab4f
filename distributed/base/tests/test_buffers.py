"""Views and sizes of objects with the buffer protocol."""

from __future__ import annotations

import array
import pickle

import pytest

from distributed.base import buffers
from distributed.base.buffers import ensure_memoryview, nbytes


@pytest.mark.parametrize(
    "buffer",
    [
        b"abcd",
        bytearray(b"abcd"),
        memoryview(b"abcd"),
        array.array("I", [1, 2]),
        memoryview(bytes(12)).cast("B", (3, 4)),
        pickle.PickleBuffer(b"abcd"),
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_a_view_of_contiguous_memory_has_unsigned_bytes_in_one_dimension(buffer):
    view = ensure_memoryview(buffer)
    assert (view.format, view.ndim, view.contiguous) == ("B", 1, True)
    assert bytes(view) == bytes(memoryview(buffer))


def test_contiguous_memory_is_not_copied():
    numbers = array.array("H", [1, 2])
    view = ensure_memoryview(numbers)
    numbers[0] = 7
    assert array.array("H", bytes(view))[0] == 7


def test_a_view_of_that_kind_is_returned_unchanged():
    view = memoryview(b"abc")
    assert ensure_memoryview(view) is view


def test_a_view_stays_writable():
    buffer = bytearray(b"abc")
    ensure_memoryview(buffer)[0] = ord("z")
    assert buffer == b"zbc"


def test_memory_that_is_not_contiguous_is_copied():
    assert bytes(ensure_memoryview(memoryview(b"abcdef")[::2])) == b"ace"


def test_memory_with_a_zero_in_its_shape_gives_an_empty_view():
    view = ensure_memoryview(memoryview(array.array("I")))
    assert (view.nbytes, view.format, view.readonly) == (0, "B", False)


def test_memory_in_c_order_is_viewed_without_a_pickle_buffer(monkeypatch):
    # The result of PickleBuffer.raw() can crash the garbage collector of CPython 3.11.
    monkeypatch.setattr(buffers, "PickleBuffer", None)
    rows = memoryview(bytes(range(12))).cast("H", (2, 3))
    assert ensure_memoryview(rows).tolist() == list(range(12))


def test_a_string_is_not_a_buffer():
    with pytest.raises(TypeError, match="bytes-like object is required"):
        ensure_memoryview("abc")


class OnADevice:
    nbytes = 12


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (b"abc", 3),
        (bytearray(3), 3),
        (memoryview(array.array("I", [1, 2])), 8),
        (array.array("I", [1, 2]), 8),
        (OnADevice(), 12),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nbytes_counts_bytes_and_not_items(frame, size):
    assert nbytes(frame) == size
