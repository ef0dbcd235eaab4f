"""The functions of `distributed.shared`."""

from __future__ import annotations

import itertools
import sys

import pytest

from distributed import shared
from distributed.base import shared_memory
from distributed.tests.environments import run_here

np = pytest.importorskip("numpy")

on_linux = pytest.mark.skipif(
    sys.platform != "linux" or not shared_memory.is_supported(), reason="Linux has this memory"
)


def region_of(x):
    return shared_memory.find(memoryview(np.asarray(x).ravel("K").view("u1")))


@pytest.fixture(params=["shared", "ordinary"])
def memory(request, monkeypatch):
    """Run a test with shared memory, and as on a system that has none."""
    if request.param == "ordinary":
        monkeypatch.setattr("distributed.base.shared_memory._new_descriptor", lambda nbytes: None)
    elif not shared_memory.is_supported():
        pytest.skip("there is no shared memory here")
    return request.param


@pytest.mark.parametrize(
    "shape", [5, (5,), (2, 3), [2, 3], (), 0, (0, 3), np.int64(4), np.array([2, 3])]
)
@pytest.mark.parametrize("dtype", [float, "i2", "U3", [("a", "i4"), ("b", "f8")], "M8[s]"])
def test_empty_returns_an_array_like_that_of_numpy(memory, shape, dtype):
    expected = np.zeros(shape, dtype)
    x = shared.empty(shape, dtype)
    assert (x.shape, x.dtype, x.strides) == (expected.shape, expected.dtype, expected.strides)
    assert x.flags.writeable
    np.testing.assert_array_equal(x, expected)
    if x.nbytes:
        assert (region_of(x) is not None) is (memory == "shared")


def test_empty_takes_an_order_and_a_type_of_subarrays(memory):
    assert shared.empty((20, 30), order="F").flags.f_contiguous
    x = shared.empty(3, ("i4", (2, 2)))
    assert (x.shape, x.dtype) == ((3, 2, 2), np.dtype("i4"))


def test_copy_keeps_values_and_order(memory):
    c = np.arange(12.0).reshape(3, 4)
    for x in (c, np.asfortranarray(c), c[:, ::2], c[::-1], c.T, c[0], c[0, 0], c[:0]):
        y = shared.copy(x)
        np.testing.assert_array_equal(x, y)
        assert y.flags.writeable
        assert y.flags.f_contiguous or not x.flags.f_contiguous
        assert not np.shares_memory(x, y)
    np.testing.assert_array_equal(shared.copy([[1, 2], [3, 4]]), [[1, 2], [3, 4]])


def test_copy_keeps_the_order_of_three_axes(memory):
    for axes in itertools.permutations(range(3)):
        x = np.arange(24.0).reshape(2, 3, 4).transpose(axes)
        y = shared.copy(x)
        np.testing.assert_array_equal(x, y)
        assert x.strides == y.strides


@pytest.mark.parametrize("function", [shared.copy, shared.freeze])
def test_a_masked_array_does_not_lose_its_mask(function):
    with pytest.raises(TypeError, match="share its data and its mask"):
        function(np.ma.array([1, 2], mask=[True, False]))


@pytest.mark.parametrize(
    "call", [lambda: shared.empty((2**40, 2**40)), lambda: shared.buffer(2**62)]
)
def test_impossible_sizes_are_a_memory_error(memory, call):
    with pytest.raises((MemoryError, ValueError, OverflowError)):
        call()


def test_buffer_returns_zeros(memory):
    data = shared.buffer(1000)
    assert data.nbytes == 1000
    assert not data.readonly
    assert bytes(data) == bytes(1000)
    assert shared.buffer(0).nbytes == 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: shared.empty(3, object), "Python objects"),
        (lambda: shared.copy([{}]), "Python objects"),
        (lambda: shared.freeze([1, 2]), "only arrays of numbers and memoryviews"),
        (lambda: shared.freeze(np.array([{}])), "only arrays of numbers and memoryviews"),
    ],
)
def test_objects_cannot_be_shared(call, error):
    with pytest.raises(TypeError, match=error):
        call()


@pytest.mark.parametrize("call", [lambda: shared.buffer(-1), lambda: shared.empty((2, -1))])
def test_sizes_are_not_negative(call):
    with pytest.raises(ValueError, match=r"-1|negative"):
        call()


@on_linux
def test_freeze_seals_an_array_in_its_place():
    x = shared.copy(np.arange(10))
    y = x[2:]
    assert shared.freeze(x) is x
    assert not x.flags.writeable
    assert region_of(x).memory.try_to_freeze()
    # As documented, other arrays of this process can write.
    y[0] = 100
    assert x[2] == 100


@on_linux
def test_freeze_seals_the_buffer_of_a_view_with_gaps():
    x = shared.copy(np.arange(10))
    y = shared.freeze(x[::2])
    assert np.shares_memory(x, y)
    assert not y.flags.writeable


@on_linux
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("was_sent", [False, True])
def test_freeze_copies_what_cannot_be_sealed(order, was_sent):
    x = np.asarray(np.arange(12).reshape(3, 4), order=order)
    if was_sent:
        x = shared.copy(x)
        region_of(x).memory.seal_for_sending()
    y = shared.freeze(x)
    np.testing.assert_array_equal(x, y)
    assert x.flags.writeable
    assert not np.shares_memory(x, y)
    assert region_of(y) is not None
    with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
        y.flags.writeable = True


def test_freeze_of_a_memoryview(memory):
    x = shared.buffer(1000)
    y = shared.freeze(x)
    assert y.readonly
    z = shared.freeze(memoryview(bytearray(b"12345678")).cast("I", (1, 2)))
    assert z.readonly
    assert (z.format, z.shape, z.tobytes()) == ("I", (1, 2), b"12345678")
    assert shared.freeze(memoryview(bytearray())).nbytes == 0


def test_freeze_returns_a_read_only_array_without_shared_memory(memory):
    x = shared.freeze(np.arange(10))
    assert not x.flags.writeable
    np.testing.assert_array_equal(x, np.arange(10))
    np.testing.assert_array_equal(shared.freeze(np.arange(10)[::2]), np.arange(10)[::2])


def test_the_module_is_found_without_an_import_and_needs_numpy_for_arrays_only():
    run_here("""
        import sys, distributed
        assert bytes(distributed.shared.buffer(3)) == bytes(3)
        assert "numpy" not in sys.modules
    """)
