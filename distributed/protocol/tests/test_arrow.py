"""Arrow's objects arrive unchanged, as views of the received memory."""

from __future__ import annotations

from typing import Any

import pytest

from distributed.protocol import Serialize, ToPickle, deserialize, dumps, loads, serialize
from distributed.protocol.exceptions import ProtocolError
from distributed.protocol.tests.round_trips import family, in_each_way, received

pa: Any = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")

COLUMNS = {"a": [1, 2, 3], "b": ["x", None, "zä"], "c": [[1.5], [], None]}
TABLES = {
    "table": pa.table(COLUMNS),
    "chunked table": pa.concat_tables([pa.table(COLUMNS)] * 3),
    "slice of a table": pa.table({"a": range(1000)}).slice(10, 5),
    "empty table": pa.table({"a": pa.array([], "i4")}),
    "table without columns": pa.table({}),
    "table with metadata": pa.table(COLUMNS).replace_schema_metadata({"k": "v"}),
    "table of dictionaries": pa.table({"a": pa.array(["x", "y", "x"]).dictionary_encode()}),
    "batch": pa.record_batch(COLUMNS),
    "slice of a batch": pa.record_batch({"a": range(1000)}).slice(10, 5),
    "empty batch": pa.record_batch({"a": pa.array([], "i4")}),
}
OTHERS = {
    "array": pa.array([1, None, 3]),
    "array of texts": pa.array(["a", "bc"]),
    "array of structs": pa.array([{"a": 1, "b": "x"}]),
    "chunked array": pa.chunked_array([[1, 2], [3]]),
    "schema": pa.schema([("a", pa.int64())]),
    "type": pa.timestamp("ns", "UTC"),
    "scalar": pa.scalar(3),
    "buffer": pa.py_buffer(b"abc"),
}


@pytest.mark.parametrize("x", (TABLES | OTHERS).values(), ids=TABLES | OTHERS)
@in_each_way
def test_an_object_arrives_unchanged(x, way):
    arrived = way(x)
    assert type(arrived) is type(x)
    assert arrived.equals(x) if hasattr(x, "equals") else arrived == x
    if hasattr(x, "schema"):
        assert arrived.schema.equals(x.schema, check_metadata=True)
        arrived.validate(full=True)


@pytest.mark.parametrize("x", TABLES.values(), ids=TABLES)
def test_tables_and_batches_are_not_pickled(x):
    assert family(x) == "dask"


def address(x):
    return np.frombuffer(x, "u1").ctypes.data


@pytest.mark.parametrize("make", [pa.table, pa.record_batch])
def test_a_column_is_a_view_of_the_received_memory(make):
    frames = received(dumps(Serialize(make({"a": np.arange(1000)}))))
    column = loads(frames).column("a")
    chunk = column.chunk(0) if make is pa.table else column
    start = address(frames[-1])
    assert start <= chunk.buffers()[1].address < start + len(frames[-1])


def test_serializing_allocates_no_more_memory_than_the_stream_needs():
    table = pa.table({"a": np.arange(10**6)})
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    header, frames = serialize(table)
    written = sum(memoryview(frame).nbytes for frame in frames)
    assert pa.total_allocated_bytes() - before <= 1.01 * written
    assert written < 1.01 * table.nbytes
    assert deserialize(header, frames).equals(table)
    assert pool.max_memory() >= written


def test_the_memory_of_an_array_is_copied_by_neither_sender_nor_receiver():
    array = pa.array(np.arange(1000))
    _, frames = serialize(array)
    assert array.buffers()[1].address in [address(frame) for frame in frames]
    frames = received(dumps(Serialize(array)))
    assert loads(frames).buffers()[1].address in [address(frame) for frame in frames]


@pytest.mark.parametrize("x", [pa.table({"a": [1]}), pa.record_batch({"a": [1]})])
@pytest.mark.parametrize("damage", [lambda b: b[:20], lambda b: b"\xff" * len(b), lambda b: b""])
def test_a_damaged_stream_is_refused(x, damage):
    header, frames = serialize(x)
    with pytest.raises(ProtocolError):
        deserialize(header, [damage(bytes(frames[0]))])


def test_a_stream_of_two_batches_is_refused_in_place_of_one():
    header, _ = serialize(pa.record_batch({"a": [1]}))
    _, frames = serialize(pa.concat_tables([pa.table({"a": [1]})] * 2))
    with pytest.raises(ProtocolError, match="stream of several batches"):
        deserialize(header, frames)


class Fragment:
    """An object that contains information about a file, as in dask's graphs for Parquet files."""

    def __init__(self, info):
        self.info = info


@pytest.mark.parametrize("put", [Fragment, lambda info: [info], lambda info: lambda: info])
def test_information_about_a_file_travels_in_a_pickle(put):
    fs = pytest.importorskip("pyarrow.fs")
    info = fs.FileInfo("/data/x.parquet", fs.FileType.File, size=5, mtime_ns=10**9)
    arrived = loads(dumps({"x": ToPickle(put(info))}))["x"]
    match arrived:
        case Fragment():
            arrived = arrived.info
        case [arrived]:
            pass
        case _:
            arrived = arrived()
    assert (arrived.path, arrived.type, arrived.size) == (info.path, info.type, info.size)
    assert arrived.mtime_ns == info.mtime_ns


def test_information_about_a_file_that_the_original_has_pickled_is_read():
    # The original does not send the type, and its pickles name this function.
    arrived = arrow().serialize_filesystem({}, [("/data/x.parquet", 5, None)])
    assert (arrived.path, arrived.size) == ("/data/x.parquet", 5)


def arrow():
    from distributed.protocol import arrow

    return arrow
