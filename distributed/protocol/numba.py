"""Numba's device arrays: as they are between devices, through the host's memory elsewhere.

This module is imported when the first object of Numba is seen (see
:mod:`distributed.protocol.dispatch`), which may well be one that has nothing to do with devices;
without Numba's part for devices it registers nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed.protocol.dispatch import (
    cuda_deserialize,
    cuda_serialize,
    dask_deserialize,
    dask_serialize,
)
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.numpy import checked_layout, plain_dtype, view_memory
from distributed.protocol.utils import Buffer

__all__ = [
    "cuda_deserialize_numba_ndarray",
    "cuda_serialize_numba_ndarray",
    "dask_deserialize_numba_array",
    "dask_serialize_numba_ndarray",
]

Header = dict[str, Any]


def _dense(x: Any) -> Any:
    """*x*, or a copy on the device whose elements lie densely."""
    if x.is_c_contiguous() or x.is_f_contiguous():
        return x
    copy = cuda.device_array(x.shape, x.dtype)
    copy[:] = x
    return copy


def cuda_serialize_numba_ndarray(x: Any) -> tuple[Header, list[Any]]:
    """The array's memory on the device, copied there if it is not dense."""
    x = _dense(x)
    header = {**x.__cuda_array_interface__, "strides": x.strides}
    return header, [DeviceNDArray((x.nbytes,), (1,), plain_dtype("u1"), gpu_data=x.gpu_data)]


def cuda_deserialize_numba_ndarray(header: Header, frames: Sequence[Any]) -> Any:
    """An array that views the memory of the frame on the device.

    Raises
    ------
    HeaderError
        If the frame is not what the header states.
    """
    if len(frames) != 1:
        raise HeaderError(f"a device array was sent as {len(frames)} frames")
    memory = cuda.as_cuda_array(frames[0])
    dtype = plain_dtype(header["typestr"])
    shape, strides = checked_layout(header, dtype, memory.nbytes)
    return DeviceNDArray(shape, strides, dtype, gpu_data=memory.gpu_data)


def dask_serialize_numba_ndarray(x: Any) -> tuple[Header, list[Any]]:
    """A copy of the array in the host's memory."""
    x = _dense(x)
    header = {**x.__cuda_array_interface__, "strides": x.strides}
    return header, [memoryview(x.copy_to_host().ravel(order="K").view("u1"))]


def dask_deserialize_numba_array(header: Header, frames: Sequence[Buffer]) -> Any:
    """A copy of the array on the device.

    Raises
    ------
    HeaderError
        If the frames are not what the header states.
    """
    return cuda.to_device(view_memory(header, plain_dtype(header["typestr"]), frames))


try:
    from numba import cuda
    from numba.cuda.cudadrv.devicearray import DeviceNDArray
except ImportError:
    pass
else:
    cuda_serialize.register(DeviceNDArray, cuda_serialize_numba_ndarray)
    cuda_deserialize.register(DeviceNDArray, cuda_deserialize_numba_ndarray)
    dask_serialize.register(DeviceNDArray, dask_serialize_numba_ndarray)
    dask_deserialize.register(DeviceNDArray, dask_deserialize_numba_array)
