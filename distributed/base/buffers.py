"""Views and sizes of objects that hold bytes."""

from __future__ import annotations

import ctypes
import sys
from pickle import PickleBuffer
from typing import Any

__all__ = ["address_of", "ensure_memoryview", "nbytes", "size_of"]


def ensure_memoryview(obj: Any) -> memoryview:
    """Return the memory of *obj* as a one-dimensional contiguous view of unsigned bytes.

    Only memory that is not contiguous is copied.  Fortran-contiguous memory is viewed in memory
    order.  The view of no bytes is writable.

    Raises
    ------
    TypeError
        If *obj* does not support the buffer protocol.

    Examples
    --------
    >>> import array
    >>> ensure_memoryview(array.array("H", [1, 2])).nbytes
    4
    """
    view = obj if type(obj) is memoryview else memoryview(obj)
    if not view.nbytes:
        # Views with a zero in their shape cannot be cast.
        return memoryview(bytearray())
    if not view.contiguous:
        return memoryview(bytearray(view))
    if view.ndim == 1 and view.format == "B":
        return view
    if view.c_contiguous:
        return view.cast("B")
    # cast() does not accept Fortran order.  raw() does, but its result can crash the garbage
    # collector of CPython 3.11 if *view* has several dimensions, so nothing else uses it.
    return PickleBuffer(view).raw()


def nbytes(frame: Any) -> int:
    """Return the number of bytes of a frame: bytes-like, or with ``nbytes`` (device arrays)."""
    if isinstance(frame, (bytes, bytearray)):
        return len(frame)
    try:
        return int(frame.nbytes)
    except AttributeError:
        return memoryview(frame).nbytes


def size_of(obj: Any) -> int:
    """Return the number of bytes that *obj* takes in memory.

    dask is asked, if it is imported: it knows the sizes of many libraries' objects, and users
    register those of their own types.

    Raises
    ------
    Exception
        Any error that the object raises.
    """
    sizeof = getattr(sys.modules.get("dask.sizeof"), "sizeof", sys.getsizeof)
    size: int = sizeof(obj)
    return size


class _PyBuffer(ctypes.Structure):
    """``Py_buffer`` of the stable ABI (PEP 688, Python 3.11)."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.c_void_p, ctypes.c_int]
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.c_void_p]
_release_buffer.restype = None


def address_of(view: memoryview) -> int:
    """Return the address of the first byte of *view*."""
    info = _PyBuffer()
    _get_buffer(view, ctypes.byref(info), 0)
    address: int | None = info.buf
    _release_buffer(ctypes.byref(info))
    return address or 0
