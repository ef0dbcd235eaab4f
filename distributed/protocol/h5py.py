"""HDF5 files, groups and datasets, as references: a file name, and a path in the file.

No content is sent; the receiver opens the file by its name, which it must have access to.  A file
that is open for writing is refused: the receiver could not open it, and would miss unwritten data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py

from distributed.base.text import shown_repr
from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.objects import Header
from distributed.protocol.utils import Buffer

__all__ = [
    "deserialize_h5py_dataset",
    "deserialize_h5py_file",
    "serialize_h5py_dataset",
    "serialize_h5py_file",
]


def _check_readable(file: h5py.File, what: str) -> None:
    if not file:
        raise ValueError(f"cannot send {what}: its file is closed")
    if file.mode != "r":
        raise ValueError(
            f"cannot send {what}: it is sent as a reference to {file.filename!r}, which is open "
            f"with mode {file.mode!r}; open it with mode 'r'"
        )


def serialize_h5py_file(f: h5py.File) -> tuple[Header, list[Any]]:
    """Return a header with the name of the file, and no frames.

    Raises
    ------
    ValueError
        If the file is closed, or open for writing.
    """
    _check_readable(f, "an HDF5 file")
    return {"filename": f.filename}, []


def serialize_h5py_dataset(x: h5py.Group | h5py.Dataset) -> tuple[Header, list[Any]]:
    """Return a header with the name of the file and the path of *x* in it, and no frames.

    Raises
    ------
    ValueError
        If the file is closed or open for writing, or *x* has no path.
    """
    if not x:
        raise ValueError(f"cannot send an HDF5 {type(x).__name__}: its file is closed")
    _check_readable(x.file, f"{x!r}")
    if x.name is None:
        raise ValueError(f"cannot send {x!r}: it has no name in its file")
    return {"filename": x.file.filename, "name": x.name}, []


def deserialize_h5py_file(header: Header, frames: Sequence[Buffer]) -> h5py.File:
    """Open the file for reading.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """
    filename = header["filename"]
    if not isinstance(filename, str):
        raise HeaderError(f"the name of an HDF5 file is given as {shown_repr(filename, 100)}")
    return h5py.File(filename, mode="r")


def deserialize_h5py_dataset(header: Header, frames: Sequence[Buffer]) -> h5py.Group | h5py.Dataset:
    """Open the file for reading, and return the group or dataset at that path.

    Raises
    ------
    OSError, KeyError
        If the file cannot be opened, or has nothing at that path.
    """
    return deserialize_h5py_file(header, frames)[header["name"]]


dask_serialize.register((h5py.Group, h5py.Dataset), serialize_h5py_dataset)
dask_deserialize.register((h5py.Group, h5py.Dataset), deserialize_h5py_dataset)
dask_serialize.register(h5py.File, serialize_h5py_file)
dask_deserialize.register(h5py.File, deserialize_h5py_file)
