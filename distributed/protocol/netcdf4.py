"""netCDF files, groups and variables as references: a file name, and a path in the file.

Nothing of the file's content is sent; the receiver opens the file of that name for reading, which
it must be able to reach.  netCDF4 does not tell how a file was opened: whoever writes to it must
close or ``sync()`` it before it is sent.  This module is imported when the first object of netCDF4
is seen (see :mod:`distributed.protocol.dispatch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import netCDF4

from distributed.protocol import pickle
from distributed.protocol.dispatch import dask_deserialize, dask_serialize, typename
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.objects import deserialize, serialize
from distributed.protocol.utils import Buffer

__all__ = [
    "deserialize_netcdf4_dataset",
    "deserialize_netcdf4_group",
    "deserialize_netcdf4_variable",
    "serialize_netcdf4_dataset",
    "serialize_netcdf4_group",
    "serialize_netcdf4_variable",
]

Header = dict[str, Any]


def serialize_netcdf4_dataset(ds: netCDF4.Dataset) -> tuple[Header, list[Any]]:
    """The name of a file.

    Raises
    ------
    ValueError
        If it is closed, or in memory only.
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
        If it cannot be opened.
    """
    filename = header["filename"]
    if not isinstance(filename, str):
        raise HeaderError(f"the name of a netCDF file is given as {filename!r:.100}")
    return netCDF4.Dataset(filename, mode="r")


def serialize_netcdf4_group(g: netCDF4.Group) -> tuple[Header, list[Any]]:
    """The name of a file, and the path of a group in it."""
    root = g
    while root.parent is not None:
        root = root.parent
    return {"filename": _filename(root), "path": g.path}, []


def deserialize_netcdf4_group(header: Header, frames: Sequence[Buffer]) -> netCDF4.Group:
    """Open the file for reading, and look the group up in it.

    Raises
    ------
    OSError, IndexError
        If the file cannot be opened, or has no such group.
    """
    return deserialize_netcdf4_dataset(header, frames)[header["path"]]


def serialize_netcdf4_variable(
    x: netCDF4.Variable, context: Any = None
) -> tuple[Header, list[Any]]:
    """What the variable's group or file is sent as, and its name there."""
    parent = x.group()
    header, frames = serialize(parent, on_error="raise", context=context)
    header["parent-type"] = typename(type(parent))
    header["parent-type-serialized"] = pickle.dumps(type(parent))
    header["name"] = x.name
    return header, frames


def deserialize_netcdf4_variable(header: Header, frames: Sequence[Buffer]) -> netCDF4.Variable:
    """Open the file for reading, and look the variable up in it.

    Raises
    ------
    DeserializationError, KeyError
        If the file cannot be opened, or has no such variable.
    """
    return deserialize(header, frames).variables[header["name"]]


dask_serialize.register(netCDF4.Dataset, serialize_netcdf4_dataset)
dask_deserialize.register(netCDF4.Dataset, deserialize_netcdf4_dataset)
dask_serialize.register(netCDF4.Group, serialize_netcdf4_group)
dask_deserialize.register(netCDF4.Group, deserialize_netcdf4_group)
dask_serialize.register(netCDF4.Variable, serialize_netcdf4_variable)
dask_deserialize.register(netCDF4.Variable, deserialize_netcdf4_variable)
