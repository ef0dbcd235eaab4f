"""Serializers of bytes, bytearray, memoryview and array.array for the "dask" family.

One frame holds the memory of the object, so a sender neither pickles nor copies it.  A receiver
copies the frame for bytes and arrays, which own their memory, and not for memoryviews.  Importing
this module registers the serializers.
"""

from __future__ import annotations

import ctypes
import math
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from distributed.base.buffers import ensure_memoryview
from distributed.base.text import shown_repr
from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.utils import Buffer, join_frames

__all__: list[str] = []


@dask_serialize.register((bytes, bytearray))
def _serialize_bytes(obj: bytes | bytearray) -> tuple[dict[str, Any], list[Buffer]]:
    return {}, [obj]


@dask_deserialize.register(bytes)
def _deserialize_bytes(header: dict[str, Any], frames: Sequence[Buffer]) -> bytes:
    if len(frames) == 1:
        frame = frames[0]
        return frame if type(frame) is bytes else bytes(frame)
    return b"".join(frames)


@dask_deserialize.register(bytearray)
def _deserialize_bytearray(header: dict[str, Any], frames: Sequence[Buffer]) -> bytearray:
    return bytearray(frames[0]) if len(frames) == 1 else bytearray().join(frames)


# "<" and "=" ask for standard sizes.  These are the sizes of the native types, except for long,
# whose standard size is that of int.
_STANDARD_FORMATS = {format: format for format in "cbBhHiIqQfd?"} | {"l": "i", "L": "I"}
# The native formats, which memoryview.cast() accepts.
_CTYPES: dict[str, Any] = {
    "c": ctypes.c_char,
    "b": ctypes.c_byte,
    "B": ctypes.c_ubyte,
    "h": ctypes.c_short,
    "H": ctypes.c_ushort,
    "i": ctypes.c_int,
    "I": ctypes.c_uint,
    "l": ctypes.c_long,
    "L": ctypes.c_ulong,
    "q": ctypes.c_longlong,
    "Q": ctypes.c_ulonglong,
    "n": ctypes.c_ssize_t,
    "N": ctypes.c_size_t,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
    "?": ctypes.c_bool,
}
#: Maximum number of dimensions of a memoryview (Python's own limit).
_MAX_AXES = 64

_NATIVE_PREFIXES = "=<" if sys.byteorder == "little" else "=>!"


def _native_format(format: str) -> str:
    native = format.removeprefix("@")
    if native in _CTYPES:
        return native
    if len(format) == 2 and format[0] in _NATIVE_PREFIXES and format[1] in _STANDARD_FORMATS:
        return _STANDARD_FORMATS[format[1]]
    raise ValueError(f"memoryviews of format {shown_repr(format, 100)} cannot be made from bytes")


@dask_serialize.register(memoryview)
def _serialize_memoryview(obj: memoryview) -> tuple[dict[str, Any], list[Buffer]]:
    _native_format(obj.format)
    frame = obj if obj.c_contiguous else memoryview(obj.tobytes())
    return {"format": obj.format, "shape": obj.shape}, [frame]


@dask_deserialize.register(memoryview)
def _deserialize_memoryview(header: dict[str, Any], frames: Sequence[Buffer]) -> memoryview:
    format, shape = _native_format(header["format"]), header["shape"]
    if len(shape) > _MAX_AXES:
        raise ValueError(f"a memoryview cannot have {len(shape)} dimensions")
    view = ensure_memoryview(join_frames(frames))
    if not view.nbytes:
        return _empty_memoryview(format, shape)
    if format == "B" and len(shape) == 1 and shape[0] == len(view):
        return view
    return view.cast(format, shape)  # type: ignore[call-overload]


def _empty_memoryview(format: str, shape: Sequence[int]) -> memoryview:
    # cast() does not accept a zero in a shape.  Slicing can make the first dimension zero; ctypes
    # can make any dimension zero, but changes the format "d" to "<d".
    if 0 not in shape or min(shape) < 0:
        raise ValueError(f"no bytes for a memoryview of shape {shown_repr(shape, 100)}")
    inner = math.prod(shape[1:])
    if 0 < inner <= 2**16:
        row = memoryview(bytes(inner * struct.calcsize(format)))
        return row.cast(format, [1, *shape[1:]])[:0]  # type: ignore[call-overload]
    element: Any = _CTYPES[format]
    for n in reversed(shape):
        element = element * n
    return memoryview(element())


@dask_serialize.register(array)
def _serialize_array(obj: array[Any]) -> tuple[dict[str, Any], list[Buffer]]:
    # The original states for each frame whether it is writable; for an array it states None.
    return {"typecode": obj.typecode, "writeable": (None,)}, [memoryview(obj)]


@dask_deserialize.register(array)
def _deserialize_array(header: dict[str, Any], frames: Sequence[Buffer]) -> array[Any]:
    obj = array(header["typecode"])
    # Other senders may split inside an element.
    obj.frombytes(ensure_memoryview(join_frames(frames)))
    return obj
