"""Arrays and buffers in memory that the processes of one host share.

Over ``unix://``, an array from here and any view of it travel without a copy: the peer maps the
same memory.  So one array reaches all processes of a host, and is in memory once::

    from distributed import shared

    x = shared.copy(numpy.arange(1_000_000))
    await remote.put(data=to_serialize(x))

Over all other transports, and to peers without this feature, it travels as bytes, like any array.
Where the system has no such memory (it is a feature of Linux), the functions of this module return
ordinary memory.

The kernel frees shared memory when the last process that maps it has dropped it or has ended.  See
``docs/how-to/shared-memory.rst`` for limits and security.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

from distributed.base import shared_memory
from distributed.base.buffers import ensure_memoryview

if TYPE_CHECKING:
    import numpy as np


__all__ = ["buffer", "copy", "empty", "freeze"]


def buffer(nbytes: int, *, peers_may_write: bool = False) -> memoryview:
    """Return a writable buffer of *nbytes* zeros in shared memory.

    Several arrays can be made in one buffer.  It takes one file descriptor, and a whole number of
    pages of memory (4 kiB each).

    Parameters
    ----------
    nbytes
        Its size in bytes.
    peers_may_write
        Whether the processes that receive it can write to it, and change it for all others.  By
        default, it is read-only there.

    Raises
    ------
    MemoryError
        If there is not enough memory.
    ValueError
        If *nbytes* is negative.

    Examples
    --------
    >>> data = buffer(1000)
    >>> data[:5] = b"hello"
    >>> len(data), bytes(data[:6])
    (1000, b'hello\\x00')
    """
    if nbytes < 0:
        raise ValueError(f"a buffer cannot have {nbytes} bytes")
    memory = shared_memory.create(nbytes, peers_may_write=peers_may_write)
    return memoryview(bytearray(nbytes)) if memory is None else memory


def empty(
    shape: SupportsIndex | Sequence[SupportsIndex],
    dtype: Any = float,
    order: Literal["C", "F"] = "C",
    *,
    peers_may_write: bool = False,
) -> np.ndarray[Any, Any]:
    """Return a new array in shared memory, whose elements are zero bytes.

    Parameters
    ----------
    shape, dtype, order
        As for :func:`numpy.empty`.
    peers_may_write
        As for :func:`buffer`.

    Raises
    ------
    MemoryError
        If there is not enough memory.
    TypeError
        If the elements are Python objects, which cannot be shared.

    Examples
    --------
    >>> x = empty((1000, 3), "f4")
    >>> x[:] = 1
    >>> x.sum()
    np.float32(3000.0)
    """
    import numpy as np

    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"arrays of Python objects cannot be shared; this element type is {kind}")
    # numpy takes a type of subarrays apart.
    template = np.empty(0, kind)
    inner = template.shape[1:]
    outer: tuple[int, ...]
    try:
        outer = (operator.index(shape),)  # type: ignore[arg-type]
    except TypeError:
        outer = tuple(map(operator.index, shape))  # type: ignore[arg-type]
    kind = template.dtype
    nbytes = math.prod(outer + inner) * kind.itemsize
    memory = shared_memory.create(nbytes, peers_may_write=peers_may_write) if nbytes > 0 else None
    if memory is None:
        return np.zeros(outer + inner, kind, order)
    return np.ndarray(outer + inner, kind, memory, order=order)


def copy(array: Any, *, peers_may_write: bool = False) -> np.ndarray[Any, Any]:
    """Return a copy of an array in shared memory, in the same order of its axes.

    Parameters
    ----------
    array
        An array, or anything that :func:`numpy.asarray` accepts.
    peers_may_write
        As for :func:`buffer`.

    Raises
    ------
    MemoryError
        If there is not enough memory.
    TypeError
        If the elements are Python objects, or some are masked.  Such arrays cannot be shared.

    Examples
    --------
    >>> copy([1, 2, 3])
    array([1, 2, 3])
    """
    import numpy as np

    _refuse_mask(array)
    source = np.asarray(array)
    axes: Any = range(source.ndim)
    if not source.flags.c_contiguous:
        # From the axis with the largest stride to that with the smallest.
        axes = np.argsort([-abs(stride) for stride in source.strides], kind="stable")
    ordered = source.transpose(axes)
    target = empty(ordered.shape, source.dtype, peers_may_write=peers_may_write)
    target[...] = ordered
    return target.transpose(np.argsort(axes))


@overload
def freeze(array: memoryview) -> memoryview: ...
@overload
def freeze(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]: ...
def freeze(array: Any) -> Any:
    """Seal shared memory against writing, and return *array* read-only.

    From then on, the kernel lets no process map the memory for writing.  *array* becomes read-only;
    other arrays of this process in the same memory, made before, can still write to it.

    Ordinary memory, and shared memory that was sent already, cannot be sealed.  Then the result is
    a copy in shared memory that no process can change, not even this one.  So use the result, not
    the argument.

    Parameters
    ----------
    array
        A numpy array or a memoryview.  If it is a part of a buffer, all of the buffer is sealed.

    Raises
    ------
    TypeError
        If it is neither, or an array of Python objects, or a masked array.

    Examples
    --------
    >>> x = freeze(copy([1, 2, 3]))
    >>> x[0] = 5
    Traceback (most recent call last):
    ValueError: assignment destination is read-only
    """
    if isinstance(array, memoryview):
        whole: Any = array if array.contiguous else array.obj
        if _try_to_freeze(whole):
            return array.toreadonly()
        flat = memoryview(array.tobytes())
        frozen: Any = shared_memory.create_frozen(flat) or flat
        return frozen if array.format == "B" and array.ndim == 1 else _cast(frozen, array)
    import numpy as np

    _refuse_mask(array)
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise TypeError(f"only arrays of numbers and memoryviews can be frozen, not {array!r:.100}")
    whole = array
    while not whole.flags.forc and isinstance(whole.base, np.ndarray):
        whole = whole.base
    if whole.flags.forc and _try_to_freeze(_bytes_of(whole)):
        array.flags.writeable = False
        return array
    source = np.asarray(array)
    if not source.flags.forc:
        source = source.copy()
    content = _bytes_of(source)
    order: Any = "C" if source.flags.c_contiguous else "F"
    memory = shared_memory.create_frozen(content)
    result = np.ndarray(
        source.shape, source.dtype, bytes(content) if memory is None else memory, order=order
    )
    return result


def _refuse_mask(array: Any) -> None:
    import numpy as np

    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            "a masked array consists of two arrays; share its data and its mask, and join them "
            "with numpy.ma.array(data, mask=mask)"
        )


def _try_to_freeze(memory: Any) -> bool:
    found = shared_memory.find(ensure_memoryview(memory))
    return found is not None and found.memory.try_to_freeze()


def _bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """Return the memory of a contiguous array, of any type of elements."""
    return memoryview(array.ravel("K").view("u1"))


def _cast(flat: memoryview, like: memoryview) -> memoryview:
    """Return bytes as a view with the format and shape of another one."""
    if not like.nbytes:
        return like.toreadonly()
    return flat.cast(like.format, like.shape)  # type: ignore[call-overload]
