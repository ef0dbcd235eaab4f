"""RMM's device buffers: as they are between devices, through the host's memory elsewhere.

This module is imported when the first object of RMM is seen (see
:mod:`distributed.protocol.dispatch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rmm

from distributed.base.buffers import ensure_memoryview
from distributed.protocol.dispatch import (
    cuda_deserialize,
    cuda_serialize,
    dask_deserialize,
    dask_serialize,
)
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.utils import Buffer, join_frames

__all__ = [
    "cuda_deserialize_rmm_device_buffer",
    "cuda_serialize_rmm_device_buffer",
    "dask_deserialize_rmm_device_buffer",
    "dask_serialize_rmm_device_buffer",
]

Header = dict[str, Any]


def cuda_serialize_rmm_device_buffer(x: rmm.DeviceBuffer) -> tuple[Header, list[Any]]:
    """The buffer itself."""
    return {**x.__cuda_array_interface__, "strides": (1,)}, [x]


def cuda_deserialize_rmm_device_buffer(header: Header, frames: Sequence[Any]) -> rmm.DeviceBuffer:
    """The buffer, if it is one, or a copy on the device of what came through the host.

    Raises
    ------
    HeaderError
        If it is not one frame.
    """
    if len(frames) != 1:
        raise HeaderError(f"a device buffer was sent as {len(frames)} frames")
    (frame,) = frames
    return frame if isinstance(frame, rmm.DeviceBuffer) else _to_device(frame)


def dask_serialize_rmm_device_buffer(x: rmm.DeviceBuffer) -> tuple[Header, list[Any]]:
    """A copy of the buffer in the host's memory."""
    header, _ = cuda_serialize_rmm_device_buffer(x)
    return header, [memoryview(x.tobytes())]


def dask_deserialize_rmm_device_buffer(
    header: Header, frames: Sequence[Buffer]
) -> rmm.DeviceBuffer:
    """A copy of the frames on the device."""
    return _to_device(join_frames(frames))


def _to_device(frame: Buffer) -> rmm.DeviceBuffer:
    return rmm.DeviceBuffer.to_device(ensure_memoryview(frame))


cuda_serialize.register(rmm.DeviceBuffer, cuda_serialize_rmm_device_buffer)
cuda_deserialize.register(rmm.DeviceBuffer, cuda_deserialize_rmm_device_buffer)
dask_serialize.register(rmm.DeviceBuffer, dask_serialize_rmm_device_buffer)
dask_deserialize.register(rmm.DeviceBuffer, dask_deserialize_rmm_device_buffer)
