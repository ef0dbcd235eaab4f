"""Arrow tables and record batches, in Arrow's stream format; and information about files.

The sender writes the columns into one buffer of the exact size; the received columns view the
memory of the frame.  Tables in shared memory, arrays, schemas and other Arrow objects are left to
the next family, which is pickle, with the memory of their columns out of band.

A stream is not trusted.  Arrow does not compare the lengths in it with the bytes received before it
reads them, so columns are validated.  A stream that another program has compressed is read if the
sizes that it states are within ``distributed.comm.max-inflated-size``.

pyarrow cannot pickle a ``FileInfo``, which dask's graphs for Parquet files contain.  Its frame is
not bytes-like, as that of the original, so it travels inside of pickles only.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
from pyarrow import fs

from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.limits import count_memory, may_unpickle
from distributed.protocol.objects import Header, accepts_pickles
from distributed.protocol.reductions import compact_columns, has_shared_columns
from distributed.protocol.utils import Buffer, join_frames

__all__ = [
    "deserialize_batch",
    "deserialize_table",
    "serialize_batch",
    "serialize_fileinfo",
    "serialize_filesystem",
    "serialize_table",
]


def serialize_table(
    table: pa.Table | pa.RecordBatch, context: Any = None
) -> tuple[Header, list[memoryview]]:
    """Return the stream of a table, with one batch for each of its chunks.

    Raises
    ------
    NotImplementedError
        For a table in shared memory, which a stream would copy; it is left to pickle.
    """
    if accepts_pickles(context) and has_shared_columns(table):
        raise NotImplementedError("the columns of this table are in shared memory")
    # Arrow writes only the slice of most columns, but all texts that views may refer to.
    table = compact_columns(table)
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
    """Return a table that views the memory of *frames*.

    Raises
    ------
    HeaderError
        If a column would reach beyond the frames.
    CompressionError
        If the columns are compressed, and too large for the limit.
    """
    with _reader(frames) as reader:
        return _validated(reader.read_all())


def deserialize_batch(header: Header, frames: Sequence[Buffer]) -> pa.RecordBatch:
    """Return a record batch that views the memory of *frames*.

    Raises
    ------
    HeaderError
        If the stream does not contain exactly one batch, or a column would reach beyond the frames.
    CompressionError
        If the columns are compressed, and too large for the limit.
    """
    with _reader(frames) as reader:
        batches = list(islice(reader, 2))
    if len(batches) != 1:
        count = "no batch" if not batches else "several batches"
        raise HeaderError(f"a record batch was sent as a stream of {count}")
    return _validated(batches[0])


def _reader(frames: Sequence[Buffer]) -> Any:
    stream = pa.py_buffer(join_frames(frames))
    for message in pa.ipc.MessageReader.open_stream(stream):
        inflated = inflated_size(message)
        if inflated:
            count_memory(inflated, "a compressed Arrow table")
    return pa.ipc.open_stream(stream)


def _validated(columns: Any) -> Any:
    try:
        # Offsets inside of the columns are checked where a peer must not read this process's
        # memory: that takes longer, and also finds text that is not valid UTF-8.
        columns.validate(full=not may_unpickle())
    except pa.ArrowInvalid as e:
        raise HeaderError(f"an Arrow {type(columns).__name__} is invalid: {e!s:.200}") from e
    return columns


# Sizes in the messages of a stream.  They are tables in the format of FlatBuffers, which pyarrow
# has verified: a table begins with the distance to its list of field positions.  pyarrow does not
# give the fields.

# Indices of fields in Arrow's format/Message.fbs.
_HEADER, _DATA, _BUFFERS, _COMPRESSION = 2, 1, 2, 3


def inflated_size(message: pa.ipc.Message) -> int:
    """Return the number of bytes that the buffers of a message state for their inflated contents.

    It is 0 for a message that is not compressed.
    """
    if message.type not in ("record batch", "dictionary"):
        return 0
    metadata, body = memoryview(message.metadata), memoryview(message.body)
    batch = _field(metadata, _uint32(metadata, 0), _HEADER)
    batch += _uint32(metadata, batch)
    if message.type == "dictionary":
        batch = _field(metadata, batch, _DATA)
        batch += _uint32(metadata, batch)
    buffers = _field(metadata, batch, _BUFFERS)
    if not _field(metadata, batch, _COMPRESSION) or not buffers:
        return 0
    buffers += _uint32(metadata, buffers)
    end = buffers + 4 + 16 * _uint32(metadata, buffers)
    inflated = 0
    for start, length in struct.iter_unpack("<qq", metadata[buffers + 4 : end]):
        if length >= 8 and 0 <= start <= len(body) - 8:
            # The size -1 is that of a buffer that is not compressed.
            inflated += max(struct.unpack_from("<q", body, start)[0], 0)
    return inflated


def _uint32(metadata: memoryview, position: int) -> int:
    number: int = struct.unpack_from("<I", metadata, position)[0]
    return number


def _field(metadata: memoryview, table: int, index: int) -> int:
    """Return the position of a field of the table at a position, or 0 if it has its default."""
    positions = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, positions)[0]
    entry = 4 + 2 * index
    offset = struct.unpack_from("<H", metadata, positions + entry)[0] if entry < size else 0
    return table + offset if offset else 0


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
