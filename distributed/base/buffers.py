"""Views and sizes of objects that hold bytes."""

from __future__ import annotations

from pickle import PickleBuffer
from typing import Any

__all__ = ["ensure_memoryview", "nbytes"]


def ensure_memoryview(obj: Any) -> memoryview:
    """One-dimensional contiguous view of unsigned bytes of any object with the buffer protocol.

    The memory is copied only where it is not contiguous.  Fortran-contiguous memory is viewed in
    the order in which it lies.

    Raises
    ------
    TypeError
        If *obj* has no buffer.

    Examples
    --------
    >>> import array
    >>> ensure_memoryview(array.array("H", [1, 2])).nbytes
    4
    """
    view = obj if type(obj) is memoryview else memoryview(obj)
    if not view.nbytes:
        # Views with a zero in their shape cannot be cast.
        return memoryview(b"")
    if not view.contiguous:
        return memoryview(bytearray(view))
    if view.ndim == 1 and view.format == "B":
        return view
    return PickleBuffer(view).raw()


def nbytes(frame: Any) -> int:
    """Number of bytes of a frame: bytes-like, or anything with ``nbytes`` (device arrays)."""
    if isinstance(frame, (bytes, bytearray)):
        return len(frame)
    try:
        return int(frame.nbytes)
    except AttributeError:
        return memoryview(frame).nbytes
