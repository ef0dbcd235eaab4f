"""RMM's device buffers: unchanged between devices, through the host's memory elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rmm

from distributed.base.buffers import ensure_memoryview
from distributed.protocol.cuda import cuda_deserialize, cuda_serialize, only_frame
from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.objects import Header
from distributed.protocol.utils import Buffer, join_frames

__all__ = [
    "cuda_deserialize_rmm_device_buffer",
    "cuda_serialize_rmm_device_buffer",
    "dask_deserialize_rmm_device_buffer",
    "dask_serialize_rmm_device_buffer",
]


def cuda_serialize_rmm_device_buffer(x: rmm.DeviceBuffer) -> tuple[Header, list[Any]]:
    """Return a header, and the buffer itself as the frame."""
    return {**x.__cuda_array_interface__, "strides": (1,)}, [x]


def cuda_deserialize_rmm_device_buffer(header: Header, frames: Sequence[Any]) -> rmm.DeviceBuffer:
    """Return the frame, copied to the device if the transport moved it to the host.

    Raises
    ------
    HeaderError
        If there is not exactly one frame.
    """
    frame = only_frame(frames)
    return frame if isinstance(frame, rmm.DeviceBuffer) else _to_device(frame)


def dask_serialize_rmm_device_buffer(x: rmm.DeviceBuffer) -> tuple[Header, list[Any]]:
    """Return a header, and a copy of the buffer in the host's memory."""
    header, _ = cuda_serialize_rmm_device_buffer(x)
    return header, [memoryview(x.tobytes())]


def dask_deserialize_rmm_device_buffer(
    header: Header, frames: Sequence[Buffer]
) -> rmm.DeviceBuffer:
    """Return a copy of the frames on the device."""
    return _to_device(join_frames(frames))


def _to_device(frame: Buffer) -> rmm.DeviceBuffer:
    return rmm.DeviceBuffer.to_device(ensure_memoryview(frame))


cuda_serialize.register(rmm.DeviceBuffer, cuda_serialize_rmm_device_buffer)
cuda_deserialize.register(rmm.DeviceBuffer, cuda_deserialize_rmm_device_buffer)
dask_serialize.register(rmm.DeviceBuffer, dask_serialize_rmm_device_buffer)
dask_deserialize.register(rmm.DeviceBuffer, dask_deserialize_rmm_device_buffer)
