"""netCDF files, groups and variables, as references: a file name, and a path in the file.

No content is sent; the receiver opens the file by its name, which it must have access to, for
reading.  netCDF4 does not tell whether a file is open for writing: a program that writes to it must
call its ``sync()`` or close it before sending it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import netCDF4

from distributed.base.text import shown_repr
from distributed.protocol import pickle
from distributed.protocol.dispatch import dask_deserialize, dask_serialize, typename
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.objects import Header, deserialize, serialize
from distributed.protocol.utils import Buffer

__all__ = [
    "deserialize_netcdf4_dataset",
    "deserialize_netcdf4_group",
    "deserialize_netcdf4_variable",
    "serialize_netcdf4_dataset",
    "serialize_netcdf4_group",
    "serialize_netcdf4_variable",
]


def serialize_netcdf4_dataset(ds: netCDF4.Dataset) -> tuple[Header, list[Any]]:
    """Return a header with the name of the file, and no frames.

    Raises
    ------
    ValueError
        If the file is closed, or only in memory.
    """
    return {"filename": _filename(ds)}, []


def _filename(ds: netCDF4.Dataset) -> str:
    if not ds.isopen():
        raise ValueError("cannot send a netCDF file that is closed")
    return str(ds.filepath())


def deserialize_netcdf4_dataset(header: Header, frames: Sequence[Buffer]) -> netCDF4.Dataset:
    """Open the file for reading.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """
    filename = header["filename"]
    if not isinstance(filename, str):
        raise HeaderError(f"the name of a netCDF file is given as {shown_repr(filename, 100)}")
    return netCDF4.Dataset(filename, mode="r")


def serialize_netcdf4_group(g: netCDF4.Group) -> tuple[Header, list[Any]]:
    """Return a header with the name of the file and the path of the group, and no frames."""
    root = g
    while root.parent is not None:
        root = root.parent
    return {"filename": _filename(root), "path": g.path}, []


def deserialize_netcdf4_group(header: Header, frames: Sequence[Buffer]) -> netCDF4.Group:
    """Open the file for reading, and return the group at that path.

    Raises
    ------
    OSError, IndexError
        If the file cannot be opened, or has no group at that path.
    """
    return deserialize_netcdf4_dataset(header, frames)[header["path"]]


def serialize_netcdf4_variable(
    x: netCDF4.Variable, context: Any = None
) -> tuple[Header, list[Any]]:
    """Return the header of the variable's group or file with the variable's name added."""
    parent = x.group()
    header, frames = serialize(parent, on_error="raise", context=context)
    header["parent-type"] = typename(type(parent))
    header["parent-type-serialized"] = pickle.dumps(type(parent))
    header["name"] = x.name
    return header, frames


def deserialize_netcdf4_variable(header: Header, frames: Sequence[Buffer]) -> netCDF4.Variable:
    """Open the file for reading, and return the variable of that name.

    Raises
    ------
    DeserializationError, KeyError
        If the file cannot be opened, or has no variable of that name.
    """
    return deserialize(header, frames).variables[header["name"]]


dask_serialize.register(netCDF4.Dataset, serialize_netcdf4_dataset)
dask_deserialize.register(netCDF4.Dataset, deserialize_netcdf4_dataset)
dask_serialize.register(netCDF4.Group, serialize_netcdf4_group)
dask_deserialize.register(netCDF4.Group, deserialize_netcdf4_group)
dask_serialize.register(netCDF4.Variable, serialize_netcdf4_variable)
dask_deserialize.register(netCDF4.Variable, deserialize_netcdf4_variable)
