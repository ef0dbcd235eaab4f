"""A slice of an object costs the bytes of the slice, not those of the object it was cut from."""

from __future__ import annotations

import pytest

from distributed.protocol import Serialize, dumps, pickle
from distributed.protocol.tests.round_trips import sent

#: Number of elements of each object.
N = 20_000

#: Maximum number of bytes of a slice of five elements, with header, metadata and types.
SMALL = 4_000


def _numpy_arrays(np):
    yield np.arange(N)
    yield np.arange(N).astype("M8[s]")
    yield np.ma.MaskedArray(np.arange(N), mask=np.arange(N) % 2 == 0)
    yield np.zeros(N, [("a", "i4"), ("b", "f8")])
    yield np.arange(N).astype(str)


def _arrow_arrays(pa):
    import numpy as np

    texts = [f"a text that is too long for a view {i}" for i in range(N)]
    yield pa.array(np.arange(N))
    yield pa.array([True, None] * (N // 2))
    yield pa.array(texts)
    yield pa.array([[1, 2, 3]] * N)
    yield pa.array([{"a": 1, "b": "x"}] * N)
    yield pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64()))
    yield pa.array([[1, 2]] * N, pa.list_(pa.int64(), 2))
    kinds, positions = pa.array([0, 1] * (N // 2), pa.int8()), pa.array(range(N), pa.int32())
    union = pa.UnionArray.from_dense(kinds, positions, [pa.array(range(N)), pa.array(texts)])
    yield union
    yield pa.StructArray.from_arrays([union], names=["a"])
    if hasattr(pa, "string_view"):
        yield pa.array(texts, pa.string_view())
        yield pa.array([text.encode() for text in texts], pa.binary_view())
    if hasattr(pa, "uuid"):
        yield pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16] * N, pa.binary(16)))


def _slices():
    np = pytest.importorskip("numpy")
    pa = pytest.importorskip("pyarrow")
    for array in _numpy_arrays(np):
        yield f"numpy {array.dtype.str}", array[5:10]
    for array in _arrow_arrays(pa):
        name = f"arrow {array.type}"
        yield name, array[5:10]
        yield f"{name} chunked", pa.chunked_array([array, array])[5:10]
        yield f"{name} table", pa.table({"a": array})[5:10]
        yield f"{name} batch", pa.record_batch({"a": array})[5:10]
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": np.arange(N), "b": np.arange(N).astype("M8[s]"), "c": "text"})
    yield "pandas frame", frame[5:10]
    yield "pandas series", frame.a[5:10]
    yield "pandas index", pd.Index(frame.a)[5:10]
    yield "pandas nullable", frame.a.astype("Int64")[5:10]
    pl = pytest.importorskip("polars")
    yield "polars frame", pl.DataFrame({"a": np.arange(N), "b": ["some text"] * N})[5:10]
    yield "polars series", pl.Series([f"text {i}" for i in range(N)])[5:10]
    yield "memoryview", memoryview(bytearray(N))[5:10]
    yield "memoryview with gaps", memoryview(bytearray(N))[:: N // 5]
    sp = pytest.importorskip("scipy.sparse")
    yield "scipy matrix", sp.csr_matrix(np.eye(1000))[5:10]
    yield "scipy array", sp.csr_array(np.eye(1000))[5:10]


def _size(x):
    """Return the number of bytes that are sent for an object."""
    return sum(memoryview(frame).nbytes for frame in dumps(Serialize(x), on_error="raise"))


def test_a_slice_is_sent_without_the_object_it_was_cut_from():
    large = {}
    for name, x in _slices():
        # Wrapped, as a value that a message pickles, and as one that only cloudpickle pickles.
        for way, value in (("wrapped", x), ("in a tuple", (x,)), ("in a closure", lambda x=x: x)):
            if isinstance(x, memoryview) and way != "wrapped":
                continue
            size = _size(value)
            if size > SMALL + 4_000 * (way == "in a closure"):
                large[name, way] = size
    assert large == {}


def test_a_slice_of_an_arrow_array_arrives_equal():
    pa = pytest.importorskip("pyarrow")
    for array in _arrow_arrays(pa):
        for x in (
            array[5:10],
            pa.chunked_array([array, array])[N - 2 : N + 2],
            pa.table({"a": array}, metadata={"key": "value"})[5:10],
            pa.record_batch({"a": array})[5:10],
        ):
            (copy,) = sent((x,))
            assert copy.equals(x)
            assert type(copy) is type(x)
            copy.validate(full=True)
            if isinstance(x, pa.Table):
                assert copy.schema.metadata == x.schema.metadata


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_slice_of_an_arrow_array_is_small_in_every_pickle_protocol(protocol):
    pa = pytest.importorskip("pyarrow")
    frames = []
    pickled = pickle.dumps(
        pa.array(range(N))[5:10], protocol=protocol, buffer_callback=frames.append
    )
    assert len(pickled) < SMALL


def test_most_of_an_arrow_array_is_sent_without_a_copy():
    pa = pytest.importorskip("pyarrow")
    array = pa.array(range(N))[5:]
    frames = []
    pickle.dumps(array, buffer_callback=lambda buffer: frames.append(memoryview(buffer)))
    address = array.buffers()[1].address
    assert any(pa.py_buffer(frame).address == address for frame in frames)


def test_an_arrow_array_of_a_type_defined_by_a_program_is_small():
    pa = pytest.importorskip("pyarrow")

    class Array(pa.ExtensionArray):
        pass

    class Type(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.int64(), "tests.type")

        def __arrow_ext_serialize__(self):
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type, serialized):
            return cls()

        def __arrow_ext_class__(self):
            return Array

    array = pa.ExtensionArray.from_storage(Type(), pa.array(range(N)))
    assert type(array) is Array
    assert _size((array[5:10],)) < 2 * SMALL
