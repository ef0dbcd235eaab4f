"""CuPy's arrays and sparse matrices: unchanged between devices, through the host elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
from cupyx.cusparse import MatDescriptor
from cupyx.scipy.sparse import spmatrix

from distributed.protocol.cuda import cuda_deserialize, cuda_serialize, only_frame
from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.generic import register_generic
from distributed.protocol.numpy import checked_layout, plain_dtype, view_memory
from distributed.protocol.objects import Header
from distributed.protocol.utils import Buffer

__all__ = [
    "cuda_deserialize_cupy_ndarray",
    "cuda_serialize_cupy_ndarray",
    "dask_deserialize_cupy_ndarray",
    "dask_serialize_cupy_ndarray",
    "deserialize_cupy_matdescriptor",
    "serialize_cupy_matdescriptor",
]


def cuda_serialize_cupy_ndarray(x: cupy.ndarray) -> tuple[Header, list[Any]]:
    """Return header and device memory of an array, copied on the device if it is not dense."""
    if not (x.flags.c_contiguous or x.flags.f_contiguous):
        x = cupy.ascontiguousarray(x)
    header = {**x.__cuda_array_interface__, "strides": x.strides}
    return header, [cupy.ndarray((x.nbytes,), plain_dtype("u1"), x.data, (1,))]


def cuda_deserialize_cupy_ndarray(header: Header, frames: Sequence[Any]) -> cupy.ndarray:
    """Return an array that views the device memory of the frame.

    Raises
    ------
    HeaderError
        If the frame does not match the header.
    """
    memory = cupy.asarray(only_frame(frames))
    dtype = plain_dtype(header["typestr"])
    shape, strides = checked_layout(header, dtype, memory.nbytes)
    return cupy.ndarray(shape, dtype, memory.data, strides)


def dask_serialize_cupy_ndarray(x: cupy.ndarray) -> tuple[Header, list[Any]]:
    """Return a header, and a copy of the array in the host's memory."""
    header, (memory,) = cuda_serialize_cupy_ndarray(x)
    return header, [memoryview(cupy.asnumpy(memory))]


def dask_deserialize_cupy_ndarray(header: Header, frames: Sequence[Buffer]) -> cupy.ndarray:
    """Return a copy of the array on the device, with its axes in the same memory order.

    Raises
    ------
    HeaderError
        If the frames do not match the header.
    """
    return cupy.array(view_memory(header, plain_dtype(header["typestr"]), frames), order="K")


def serialize_cupy_matdescriptor(x: MatDescriptor) -> tuple[Header, list[Any]]:
    """Return an empty header and no frames: all descriptors are equal."""
    return {}, []


def deserialize_cupy_matdescriptor(header: Header, frames: Sequence[Buffer]) -> MatDescriptor:
    """Return a new descriptor."""
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
