"""CuPy's arrays and sparse matrices: as they are between devices, through the host elsewhere.

This module is imported when the first object of CuPy is seen (see
:mod:`distributed.protocol.dispatch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
from cupyx.cusparse import MatDescriptor
from cupyx.scipy.sparse import spmatrix

from distributed.protocol.dispatch import (
    cuda_deserialize,
    cuda_serialize,
    dask_deserialize,
    dask_serialize,
)
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.generic import register_generic
from distributed.protocol.numpy import checked_layout, plain_dtype, view_memory
from distributed.protocol.utils import Buffer

__all__ = [
    "cuda_deserialize_cupy_ndarray",
    "cuda_serialize_cupy_ndarray",
    "dask_deserialize_cupy_ndarray",
    "dask_serialize_cupy_ndarray",
    "deserialize_cupy_matdescriptor",
    "serialize_cupy_matdescriptor",
]

Header = dict[str, Any]


def cuda_serialize_cupy_ndarray(x: cupy.ndarray) -> tuple[Header, list[Any]]:
    """The array's memory on the device, copied there if it is not dense."""
    if not (x.flags.c_contiguous or x.flags.f_contiguous):
        x = cupy.ascontiguousarray(x)
    header = {**x.__cuda_array_interface__, "strides": x.strides}
    return header, [cupy.ndarray((x.nbytes,), plain_dtype("u1"), x.data, (1,))]


def cuda_deserialize_cupy_ndarray(header: Header, frames: Sequence[Any]) -> cupy.ndarray:
    """An array that views the memory of the frame on the device.

    Raises
    ------
    HeaderError
        If the frame is not what the header states.
    """
    if len(frames) != 1:
        raise HeaderError(f"a device array was sent as {len(frames)} frames")
    memory = cupy.asarray(frames[0])
    dtype = plain_dtype(header["typestr"])
    shape, strides = checked_layout(header, dtype, memory.nbytes)
    return cupy.ndarray(shape, dtype, memory.data, strides)


def dask_serialize_cupy_ndarray(x: cupy.ndarray) -> tuple[Header, list[Any]]:
    """A copy of the array in the host's memory."""
    header, (memory,) = cuda_serialize_cupy_ndarray(x)
    return header, [memoryview(cupy.asnumpy(memory))]


def dask_deserialize_cupy_ndarray(header: Header, frames: Sequence[Buffer]) -> cupy.ndarray:
    """A copy of the array on the device, in the order in which it was.

    Raises
    ------
    HeaderError
        If the frames are not what the header states.
    """
    return cupy.array(view_memory(header, plain_dtype(header["typestr"]), frames), order="K")


def serialize_cupy_matdescriptor(x: MatDescriptor) -> tuple[Header, list[Any]]:
    """A descriptor says nothing that is not the same for each."""
    return {}, []


def deserialize_cupy_matdescriptor(header: Header, frames: Sequence[Buffer]) -> MatDescriptor:
    """This process' own descriptor."""
    return MatDescriptor.create()


cuda_serialize.register(cupy.ndarray, cuda_serialize_cupy_ndarray)
cuda_deserialize.register(cupy.ndarray, cuda_deserialize_cupy_ndarray)
dask_serialize.register(cupy.ndarray, dask_serialize_cupy_ndarray)
dask_deserialize.register(cupy.ndarray, dask_deserialize_cupy_ndarray)
for _name, _serialize, _deserialize in (
    ("cuda", cuda_serialize, cuda_deserialize),
    ("dask", dask_serialize, dask_deserialize),
):
    _serialize.register(MatDescriptor, serialize_cupy_matdescriptor)
    _deserialize.register(MatDescriptor, deserialize_cupy_matdescriptor)
    register_generic(spmatrix, _name, _serialize, _deserialize)
