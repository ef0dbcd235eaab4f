"""Arrow tables and record batches as Arrow's own stream format.

Sending writes the columns into one buffer of exactly the size that they need; what arrives is a
view of the memory that the frame was received into.  Arrays, schemas and everything else of Arrow
go to the next family, which is pickle, with the memory of their columns out of band.  This module
is imported when the first object of Arrow is seen (see :mod:`distributed.protocol.dispatch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.utils import Buffer, join_frames

__all__ = ["deserialize_batch", "deserialize_table", "serialize_batch", "serialize_table"]

Header = dict[str, Any]


def serialize_table(table: pa.Table) -> tuple[Header, list[memoryview]]:
    """The stream of a table, which has a batch for each of its chunks."""
    return {}, [_stream(table.schema, table)]


def serialize_batch(batch: pa.RecordBatch) -> tuple[Header, list[memoryview]]:
    """The stream of a single batch."""
    return {}, [_stream(batch.schema, batch)]


def _stream(schema: pa.Schema, data: pa.Table | pa.RecordBatch) -> memoryview:
    # A sink that grew would take up to twice the memory on its way, so it is measured first.
    measured = pa.MockOutputStream()
    _write(measured, schema, data)
    buffer = pa.allocate_buffer(measured.size())
    _write(pa.FixedSizeBufferWriter(buffer), schema, data)
    return memoryview(buffer)


def _write(sink: Any, schema: pa.Schema, data: pa.Table | pa.RecordBatch) -> None:
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write(data)


def deserialize_table(header: Header, frames: Sequence[Buffer]) -> pa.Table:
    """Make a table that views the memory of *frames*."""
    with _reader(frames) as reader:
        return reader.read_all()


def deserialize_batch(header: Header, frames: Sequence[Buffer]) -> pa.RecordBatch:
    """Make a batch that views the memory of *frames*.

    Raises
    ------
    HeaderError
        If there is not exactly one batch.
    """
    with _reader(frames) as reader:
        batches = list(reader)
    if len(batches) != 1:
        raise HeaderError(f"a record batch was sent as a stream of {len(batches)} batches")
    return batches[0]


def _reader(frames: Sequence[Buffer]) -> Any:
    return pa.ipc.open_stream(pa.py_buffer(join_frames(frames)))


dask_serialize.register(pa.Table, serialize_table)
dask_deserialize.register(pa.Table, deserialize_table)
dask_serialize.register(pa.RecordBatch, serialize_batch)
dask_deserialize.register(pa.RecordBatch, deserialize_batch)
