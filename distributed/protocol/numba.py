"""Numba's device arrays: unchanged between devices, through the host's memory elsewhere.

The first Numba object that is seen may have nothing to do with devices (a compiled function, for
example): if Numba was installed without its CUDA part, this module registers nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed.protocol.cuda import cuda_deserialize, cuda_serialize, only_frame
from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.numpy import checked_layout, plain_dtype, view_memory
from distributed.protocol.objects import Header
from distributed.protocol.utils import Buffer

__all__ = [
    "cuda_deserialize_numba_ndarray",
    "cuda_serialize_numba_ndarray",
    "dask_deserialize_numba_array",
    "dask_serialize_numba_ndarray",
]


def _dense(x: Any) -> Any:
    """Return *x*, or a copy on the device if its elements are not dense in memory."""
    if x.is_c_contiguous() or x.is_f_contiguous():
        return x
    copy = cuda.device_array(x.shape, x.dtype)
    copy[:] = x
    return copy


def cuda_serialize_numba_ndarray(x: Any) -> tuple[Header, list[Any]]:
    """Return header and device memory of an array, copied on the device if it is not dense."""
    x = _dense(x)
    header = {**x.__cuda_array_interface__, "strides": x.strides}
    return header, [DeviceNDArray((x.nbytes,), (1,), plain_dtype("u1"), gpu_data=x.gpu_data)]


def cuda_deserialize_numba_ndarray(header: Header, frames: Sequence[Any]) -> Any:
    """Return an array that views the device memory of the frame.

    Raises
    ------
    HeaderError
        If the frame does not match the header.
    """
    memory = cuda.as_cuda_array(only_frame(frames))
    dtype = plain_dtype(header["typestr"])
    shape, strides = checked_layout(header, dtype, memory.nbytes)
    return DeviceNDArray(shape, strides, dtype, gpu_data=memory.gpu_data)


def dask_serialize_numba_ndarray(x: Any) -> tuple[Header, list[Any]]:
    """Return a header, and a copy of the array in the host's memory."""
    x = _dense(x)
    header = {**x.__cuda_array_interface__, "strides": x.strides}
    return header, [memoryview(x.copy_to_host().ravel(order="K").view("u1"))]


def dask_deserialize_numba_array(header: Header, frames: Sequence[Buffer]) -> Any:
    """Return a copy of the array on the device.

    Raises
    ------
    HeaderError
        If the frames do not match the header.
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
