"""Arrow tables and record batches, in Arrow's stream format; and information about files.

The sender writes the columns into one buffer of the exact size; the received columns view the
memory of the frame.  Arrays, schemas and other Arrow objects are left to the next family, which is
pickle, with the memory of their columns out of band.

pyarrow cannot pickle a ``FileInfo``, which dask's graphs for Parquet files contain.  Its frame is
not bytes-like, as that of the original, so it travels inside of pickles only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import fs

from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.objects import Header
from distributed.protocol.utils import Buffer, join_frames

__all__ = [
    "deserialize_batch",
    "deserialize_table",
    "serialize_batch",
    "serialize_fileinfo",
    "serialize_filesystem",
    "serialize_table",
]


def serialize_table(table: pa.Table | pa.RecordBatch) -> tuple[Header, list[memoryview]]:
    """Return the stream of a table, with one batch for each of its chunks."""
    # The size is measured first: a sink that grows takes up to twice the memory.
    measured = pa.MockOutputStream()
    _write(measured, table)
    buffer = pa.allocate_buffer(measured.size())
    _write(pa.FixedSizeBufferWriter(buffer), table)
    return {}, [memoryview(buffer)]


serialize_batch = serialize_table


def _write(sink: Any, table: pa.Table | pa.RecordBatch) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)


def deserialize_table(header: Header, frames: Sequence[Buffer]) -> pa.Table:
    """Return a table that views the memory of *frames*."""
    with _reader(frames) as reader:
        return reader.read_all()


def deserialize_batch(header: Header, frames: Sequence[Buffer]) -> pa.RecordBatch:
    """Return a record batch that views the memory of *frames*.

    Raises
    ------
    HeaderError
        If the stream does not contain exactly one batch.
    """
    with _reader(frames) as reader:
        batches = list(reader)
    if len(batches) != 1:
        raise HeaderError(f"a record batch was sent as a stream of {len(batches)} batches")
    return batches[0]


def _reader(frames: Sequence[Buffer]) -> Any:
    return pa.ipc.open_stream(pa.py_buffer(join_frames(frames)))


def serialize_fileinfo(info: fs.FileInfo) -> tuple[Header, list[Any]]:
    """Return the type of a file, and its path, size and time of modification (nanoseconds)."""
    return {"type": info.type.value}, [(info.path, info.size, info.mtime_ns)]


# Pickles contain the name of this function; it is the name that the original uses.
def serialize_filesystem(header: Header, frames: Sequence[Any]) -> fs.FileInfo:
    """Return the result of `serialize_fileinfo` as an object.

    The type is unknown if the original has sent it.
    """
    path, size, mtime_ns = frames[0]
    kind = fs.FileType(header.get("type", fs.FileType.Unknown.value))
    return fs.FileInfo(path, kind, size=size, mtime_ns=mtime_ns)


dask_serialize.register((pa.Table, pa.RecordBatch), serialize_table)
dask_deserialize.register(pa.Table, deserialize_table)
dask_deserialize.register(pa.RecordBatch, deserialize_batch)
dask_serialize.register(fs.FileInfo, serialize_fileinfo)
dask_deserialize.register(fs.FileInfo, serialize_filesystem)
