"""Headers that claim more memory or time than their frames have bytes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import struct
import tracemalloc

import pytest

from distributed.protocol import Serialize, deserialize, dumps, loads, serialize
from distributed.protocol.dispatch import MODULES
from distributed.protocol.exceptions import (
    CompressionError,
    DeserializationError,
    HeaderError,
    ProtocolError,
)
from distributed.protocol.limits import LoadPolicy, reading
from distributed.protocol.tests.round_trips import received

np = pytest.importorskip("numpy")

HUGE = 2**33
#: Maximum number of bytes that a refusal, or an answer, may take.
LITTLE = 4 * 2**20


def repeated(*shape, dtype="|u1"):
    """Return an array of one element in memory."""
    return np.broadcast_to(np.zeros(1, dtype), shape)


@functools.cache
def warm_up():
    """Import what the libraries import at their first use: a test would count it as its memory."""
    for library in ("scipy", "h5py", "netCDF4"):
        with contextlib.suppress(ImportError):
            importlib.import_module(MODULES[library])
    with contextlib.suppress(ImportError):
        import sparse

        deserialize(*serialize(sparse.COO(np.array([[2, 1]]), np.ones(2), (3,))))
    with contextlib.suppress(ImportError):
        import pyarrow as pa

        table = pa.table({"a": pa.array(["x"]).dictionary_encode()})
        for codec in ("lz4", "zstd"):
            deserialize(*_arrow(table, compression=codec))


@pytest.fixture(autouse=True)
def little_memory():
    """Fail if numpy or Python had much more memory at any time in a test."""
    warm_up()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < LITTLE


# numpy


@pytest.mark.parametrize(
    "name",
    [
        "i4," * 300_000,
        "(" + "1," * 300_000 + ")i4",
        "(2,)f8",
        "float64",
        "S" + "9" * 300_000,
        "<M8[" + "9" * 300_000 + "s]",
        ">f8\n",
        "",
    ],
    ids=lambda name: repr(name[:12]),
)
def test_a_dtype_name_that_numpy_does_not_write_is_refused(name):
    header, frames = serialize(np.zeros(1))
    header["sub-header"]["dtype"] = (0, name)
    with pytest.raises(HeaderError, match="element type"):
        deserialize(header, frames)


def _dtypes():
    letters = "?bBhHiIlLqQefdgFDG"
    yield from (np.dtype(letter).newbyteorder(order) for letter in letters for order in "<>")
    units = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "25s", "12M"]
    yield from (np.dtype(f"{kind}8[{unit}]") for kind in "mM" for unit in units)
    yield from map(np.dtype, ["M8", "m8", "S0", "S3", "U7", "V5"])


@pytest.mark.parametrize("dtype", list(_dtypes()), ids=str)
def test_each_dtype_name_that_numpy_writes_is_read(dtype):
    header, _frames = serialize(np.zeros(2, "u1"))
    header["sub-header"] |= {
        "dtype": (0, dtype.str),
        "shape": (0,),
        "strides": (dtype.itemsize,),
    }
    assert deserialize(header, []).dtype == dtype


def test_a_list_of_fields_as_the_original_sends_it_is_read():
    dtype = np.dtype([("a", "<i4"), (("title", "b"), "<f8", (2, 3)), ("c", [("d", "|S3")])])
    x = np.zeros(3, dtype)
    x["b"][1] = 7
    header, frames = serialize(x, context={"allow-pickle": False})
    header["sub-header"]["dtype"] = (0, dtype.descr)
    copy = deserialize(header, frames)
    assert copy.dtype == dtype
    assert (copy == x).all()


@pytest.mark.parametrize(
    "fields",
    [[("a",)], [("a", "i4,i4")], [("a", "<i4", "x")], [("a", "<i4", (-1,))], [5], ["<i4"], []],
    ids=str,
)
def test_fields_that_are_invalid_are_refused(fields):
    header, frames = serialize(np.zeros(1))
    header["sub-header"]["dtype"] = (0, fields)
    with pytest.raises(ProtocolError):
        deserialize(header, frames)


def masked(**changes):
    header, frames = serialize(np.ma.MaskedArray(repeated(HUGE), mask=repeated(HUGE, dtype="?")))
    header["sub-header"] |= changes
    return header, frames


@pytest.mark.parametrize(
    "mask",
    [np.zeros(1, "?"), repeated(HUGE), repeated(2**16, 2**17, dtype="?"), np.zeros((), "?")],
    ids=["one element", "another type", "another shape", "a scalar"],
)
def test_the_mask_of_an_array_has_its_shape_and_type(mask):
    with pytest.raises(HeaderError, match="mask of shape"):
        deserialize(*masked(**{"mask-header": serialize(mask)[0]["sub-header"]}))


def test_a_fill_value_is_one_element():
    changes = {"fill-value-header": serialize(repeated(HUGE))[0]["sub-header"]}
    with pytest.raises(HeaderError, match="fill value"):
        deserialize(*masked(**changes))


def _repeated_values():
    yield repeated(HUGE)
    yield repeated(2**16, 2**17).view(np.matrix)
    yield repeated(HUGE, dtype=[("a", "u1")]).view(np.recarray)
    yield np.ma.MaskedArray(repeated(HUGE))
    yield np.ma.MaskedArray(repeated(HUGE), mask=repeated(HUGE, dtype="?"), hard_mask=True)
    yield repeated(HUGE, dtype="M8[s]")
    yield np.broadcast_to(np.arange(5, dtype="u1"), (HUGE, 5))


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: Serialize(x),
        lambda x: x,
        lambda x: (x, lambda: 1),
        lambda x: Serialize({"x": (x,)}),
    ],
    ids=["wrapped", "pickled", "by cloudpickle", "in a collection"],
)
@pytest.mark.parametrize(
    "x", list(_repeated_values()), ids=lambda x: f"{type(x).__name__} {x.dtype}"
)
def test_an_array_that_repeats_its_elements_is_sent_and_sent_back_in_few_bytes(x, wrap, protocol):
    for context in ({"pickle-protocol": protocol}, {"pickle-protocol": 4}):
        frames = dumps({"x": wrap(x)}, context=context)
        assert sum(len(frame) for frame in frames) < 4_000
        y = loads(received(frames))["x"]
        while not isinstance(y, np.ndarray):
            y = y["x"] if isinstance(y, dict) else y[0]
        assert type(y) is type(x)
        assert (y.shape, y.dtype, y.strides) == (x.shape, x.dtype, x.strides)
        x = y


def test_an_array_that_repeats_its_elements_in_an_error_is_pickled_in_few_bytes():
    from distributed.core.errors.messages import error_message

    message = error_message(ValueError("bad array", repeated(2**26)))
    assert len(message["exception"].data) < 4_000


def test_a_small_array_that_repeats_its_elements_is_pickled_as_numpy_does():
    (copy,) = loads(received(dumps({"x": [(repeated(1000), 1j)]})))["x"][0][:1]
    assert copy.strides == (1,)
    copy[0] = 5
    assert copy[1] == 0


# Objects made of arrays


def test_a_sparse_array_has_no_two_values_at_the_same_coordinates():
    sparse = pytest.importorskip("sparse")
    header, _ = serialize(sparse.COO(np.zeros((1, 1), int), np.ones(1), (3,)))
    header["sub-header"]["coords-header"], coords_frames = serialize(repeated(1, HUGE))
    header["sub-header"]["data-header"], data_frames = serialize(repeated(HUGE))
    with pytest.raises(HeaderError, match="same coordinates"):
        deserialize(header, [*coords_frames, *data_frames])


def test_the_coordinates_of_a_sparse_array_count_as_inflated():
    sparse = pytest.importorskip("sparse")
    header, _frames = serialize(sparse.COO(np.zeros((1, 1), int), np.ones(1), (3,)))
    coords = np.broadcast_to(np.arange(100, dtype="u1"), (32, 100))
    header["sub-header"]["coords-header"], coords_frames = serialize(coords)
    header["sub-header"]["data-header"], data_frames = serialize(np.ones(100))
    header["sub-header"]["shape"] = (200,) * 8 + (1,) * 24
    with (
        reading(LoadPolicy(max_inflated_size=1000)),
        pytest.raises(CompressionError, match="3,200"),
    ):
        deserialize(header, [*coords_frames, *data_frames])


def test_a_repeated_value_of_a_sparse_array_stays_one_value():
    sparse = pytest.importorskip("sparse")
    coords = np.array([[5, 3, 1]])
    data = np.broadcast_to(np.array(["x" * 2**18]), 3)
    header, _frames = serialize(sparse.COO(coords[:, :1], np.ones(1), (9,)))
    header["sub-header"]["coords-header"], coords_frames = serialize(coords)
    header["sub-header"]["data-header"], data_frames = serialize(data)
    x = deserialize(header, [*coords_frames, *data_frames])
    assert x.coords.tolist() == [[1, 3, 5]]
    assert x.data.strides == (0,)


def test_the_fill_value_of_a_sparse_array_is_one_value():
    sparse = pytest.importorskip("sparse")
    header, frames = serialize(sparse.COO(np.zeros((1, 1), int), np.ones(1), (3,), fill_value=5))
    header["sub-header"]["fill-value-header"], fill_frames = serialize(repeated(HUGE))
    with pytest.raises(HeaderError, match="fill values"):
        deserialize(header, [*frames[:2], *fill_frames])


def test_a_dictionary_of_keys_counts_as_inflated():
    sp = pytest.importorskip("scipy.sparse")
    x = sp.coo_matrix((np.ones(1), ([0], [0])), shape=(9, 9)).todok()
    header, frames = serialize(x)
    assert (deserialize(header, frames) != x).nnz == 0
    parts = header["sub-header"]["coo_header"]["complex"]
    parts["data"]["header"], data_frames = serialize(repeated(HUGE))
    with pytest.raises(ProtocolError, match=r"dok_matrix.*max-inflated-size"):
        deserialize(header, [*frames[:2], *data_frames])


def test_attributes_do_not_share_frames():
    sp = pytest.importorskip("scipy.sparse")
    header, frames = serialize(sp.csr_matrix(np.eye(3)))
    parts = header["sub-header"]["complex"]
    first = next(iter(parts.values()))
    parts.update({f"x{i}": first for i in range(100)})
    with pytest.raises(HeaderError, match="has to be in frames"):
        deserialize(header, frames)


@pytest.mark.parametrize("frames", [[b""], [b"x"]])
def test_a_memoryview_has_at_most_64_dimensions(frames):
    header, _ = serialize(memoryview(b"x"))
    header["sub-header"]["shape"] = (0,) + (1,) * 100_000
    with pytest.raises(DeserializationError, match="100001 dimensions"):
        deserialize(header, frames)


# Arrow


def _arrow(table, **options):
    pa = pytest.importorskip("pyarrow")
    header, _ = serialize(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write(table)
    return header, [memoryview(sink.getvalue())]


def _arrow_kinds():
    pa = pytest.importorskip("pyarrow")
    column = pa.array(np.zeros(1000, "i8"))
    yield pa.table({"a": column})
    yield pa.record_batch({"a": column})
    yield pa.table({"a": pa.array(["some text"] * 1000).dictionary_encode(), "b": column})


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_compressed_arrow_table_counts_as_inflated(codec):
    for x in _arrow_kinds():
        header, frames = _arrow(x, compression=codec)
        assert deserialize(header, frames).equals(x)
        with reading(LoadPolicy(max_inflated_size=20_000)) as message:
            deserialize(header, frames)
            assert message.inflated >= 8000
        with (
            reading(LoadPolicy(max_inflated_size=7000)),
            pytest.raises(CompressionError, match=r"Arrow table.*max-inflated-size"),
        ):
            deserialize(header, frames)


def test_an_arrow_table_does_not_reach_beyond_its_frames():
    for x in list(_arrow_kinds())[:2]:
        header, (frame,) = serialize(x)
        length = struct.pack("<q", 1000)
        assert length in bytes(frame)
        lie = bytes(frame).replace(length, struct.pack("<q", 2**40))
        with pytest.raises(HeaderError, match="invalid"):
            deserialize(header, [lie])


def test_texts_of_an_arrow_table_do_not_reach_beyond_it_where_nothing_is_unpickled():
    pa = pytest.importorskip("pyarrow")
    header, (frame,) = serialize(pa.table({"a": ["abc"] * 1000}))
    lie = bytearray(frame)
    offset = lie.index(struct.pack("<ii", 3 * 500, 3 * 501))
    lie[offset : offset + 4] = struct.pack("<i", 2**30)
    with reading(LoadPolicy(allow_pickle=False)), pytest.raises(HeaderError, match="invalid"):
        deserialize(header, [bytes(lie)])


# Files


@pytest.mark.parametrize("library", ["h5py", "netCDF4"])
def test_a_named_pipe_is_not_opened(library, tmp_path):
    module = pytest.importorskip(library)
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    cls = module.File if library == "h5py" else module.Dataset
    header = {
        "serializer": "dask",
        "type": f"{cls.__module__}.{cls.__name__}",
        "type-serialized": __import__("pickle").dumps(cls),
        "sub-header": {"filename": path},
    }
    with pytest.raises(HeaderError, match="not a regular file"):
        deserialize(header, [])


def test_a_url_is_not_opened_where_nothing_is_unpickled():
    pytest.importorskip("netCDF4")
    from distributed.protocol.netcdf4 import deserialize_netcdf4_dataset

    for url in ("http://127.0.0.1:1/x", "[log]https://127.0.0.1:1/x"):
        with reading(LoadPolicy(allow_pickle=False)), pytest.raises(HeaderError, match="address"):
            deserialize_netcdf4_dataset({"filename": url}, [])
