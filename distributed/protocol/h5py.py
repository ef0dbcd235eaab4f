"""HDF5 files that are open for reading, as references: a file name, and a path in the file.

Nothing of the file's content is sent; the receiver opens the file of that name, which it must be
able to reach.  What is open for writing is refused, as the receiver would see neither what is still
to be written, nor could it open the file.  This module is imported when the first object of h5py
is seen (see :mod:`distributed.protocol.dispatch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py

from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.utils import Buffer

__all__ = [
    "deserialize_h5py_dataset",
    "deserialize_h5py_file",
    "serialize_h5py_dataset",
    "serialize_h5py_file",
]

Header = dict[str, Any]


def _check_readable(file: h5py.File, what: str) -> None:
    if not file:
        raise ValueError(f"cannot send {what}: its file is closed")
    if file.mode != "r":
        raise ValueError(
            f"cannot send {what}: it is sent as a reference to {file.filename!r}, which is open "
            f"with mode {file.mode!r}; open it with mode 'r'"
        )


def serialize_h5py_file(f: h5py.File) -> tuple[Header, list[Any]]:
    """The name of a file.

    Raises
    ------
    ValueError
        If it is not open for reading only.
    """
    _check_readable(f, "an HDF5 file")
    return {"filename": f.filename}, []


def serialize_h5py_dataset(x: h5py.Group | h5py.Dataset) -> tuple[Header, list[Any]]:
    """The name of a file, and the path of a group or dataset in it.

    Raises
    ------
    ValueError
        If the file is not open for reading only, or there is no path to *x*.
    """
    if not x:
        raise ValueError(f"cannot send a {type(x).__name__} of HDF5: its file is closed")
    _check_readable(x.file, f"{x!r}")
    if x.name is None:
        raise ValueError(f"cannot send {x!r}: it has no name in its file")
    return {"filename": x.file.filename, "name": x.name}, []


def deserialize_h5py_file(header: Header, frames: Sequence[Buffer]) -> h5py.File:
    """Open the file for reading.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    filename = header["filename"]
    if not isinstance(filename, str):
        raise HeaderError(f"the name of an HDF5 file is given as {filename!r:.100}")
    return h5py.File(filename, mode="r")


def deserialize_h5py_dataset(header: Header, frames: Sequence[Buffer]) -> h5py.Group | h5py.Dataset:
    """Open the file for reading, and look the group or dataset up in it.

    Raises
    ------
    OSError, KeyError
        If the file cannot be opened, or has none of that name.
    """
    return deserialize_h5py_file(header, frames)[header["name"]]


dask_serialize.register((h5py.Group, h5py.Dataset), serialize_h5py_dataset)
dask_deserialize.register((h5py.Group, h5py.Dataset), deserialize_h5py_dataset)
dask_serialize.register(h5py.File, serialize_h5py_file)
dask_deserialize.register(h5py.File, deserialize_h5py_file)
