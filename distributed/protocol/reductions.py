"""Reductions of the objects of libraries whose own pickles are larger than the object.

A "reduction" is the value that ``__reduce__`` returns: how to rebuild an object.
:mod:`distributed.protocol.pickle` uses the ones here for the libraries that are imported:

* pandas keeps dates in numpy arrays of a type without the buffer protocol, so numpy would copy them
  into the pickle; polars would copy a whole data frame.  Here their memory is out of band.
* A large numpy array that repeats few elements (`numpy.broadcast_to`) is pickled without the
  repetitions.  A peer can send such an array in a few hundred bytes and get it back in a pickle,
  so each repetition would cost the server's memory.  The result is read-only.
* A slice of an Arrow array is copied first, because Arrow pickles the memory of the whole array
  that it was cut from.  A slice of shared memory is not, because that memory is not copied at all.

The reductions name only functions of these libraries, so any peer that has the library can read
the pickles.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from distributed.base.shared_memory import has_regions, is_shared

__all__ = ["compact_columns", "dispatch_table", "has_shared_columns"]

Reduction = Callable[[Any], Any]

# numpy

#: Minimum size (bytes) of an array that is pickled without the repetition of its elements.
_MIN_REPEATED_SIZE = 2**20


def _reduce_repeated(array: Any) -> Any:
    """Reduce a large array with repeated axes to one repetition; return None for another array."""
    if 0 not in array.strides or array.nbytes < _MIN_REPEATED_SIZE:
        return None
    axes = tuple(zip(array.strides, array.shape, strict=True))
    if not any(not stride and length > 1 for stride, length in axes):
        return None
    import numpy

    once = array[tuple(slice(None) if stride else slice(1) for stride, _ in axes)]
    return numpy.broadcast_to, (once, array.shape)


def _reduce_array_in_band(array: Any) -> Any:
    return _reduce_repeated(array) or array.__reduce_ex__(4)


def _reduce_array(array: Any) -> Any:
    """Reduce an array; one of dates or durations becomes a view of an array of integers."""
    repeated = _reduce_repeated(array)
    if repeated is not None or array.dtype.kind not in "mM" or not array.ndim:
        return repeated or array.__reduce_ex__(5)
    import numpy

    return numpy.ndarray.view, (array.view(numpy.int64), array.dtype)


def _reduce_subclass(array: Any) -> Any:
    """Reduce an array of a subclass whose instances consist of their elements."""
    import numpy

    plain = array.view(numpy.ndarray)
    if _reduce_repeated(plain) is None:
        return array.__reduce__()
    return numpy.ndarray.view, (plain, type(array))


def _reduce_masked(array: Any) -> Any:
    """Reduce a masked array; one that repeats its elements becomes a call of its class."""
    if array.baseclass.__name__ != "ndarray" or _reduce_repeated(array.data) is None:
        return array.__reduce__()
    # The parameters of MaskedArray in their order, up to hard_mask.
    first = (array.data, array.mask, None, False, True, 0)
    return type(array), (*first, array.fill_value, True, array.hardmask)


# polars


class _Stream:
    """Memory that is pickled as an open file, with the memory out of band."""

    def __init__(self, memory: memoryview):
        self._memory = memory

    def __reduce__(self) -> Any:
        return io.BytesIO, (pickle.PickleBuffer(self._memory),)


def _reduce_frame(frame: Any) -> Any:
    """Reduce a polars data frame to a stream in Arrow's format."""
    import polars

    if any("Object" in str(dtype) for dtype in frame.dtypes):
        # Arrow would write the addresses of the objects.
        return frame.__reduce_ex__(5)
    stream = frame.write_ipc_stream(None)
    return polars.read_ipc_stream, (_Stream(stream.getbuffer()),)


def _reduce_series(series: Any) -> Any:
    """Reduce a polars series to the only column of a data frame."""
    import polars

    return polars.DataFrame.to_series, (series.to_frame(), 0)


# pyarrow

#: Maximum number of useless bytes that may be sent with a slice, or else less than a quarter of
#: its own bytes: copying such a slice takes longer.
_MAX_WASTE = 4096


def _compact(array: Any) -> Any:
    """Return an Arrow array whose buffers hold little more than its elements.

    Dictionaries stay whole, because they belong to the type as categories do.
    """
    import pyarrow

    try:
        total = array.get_total_buffer_size()
        if total <= _MAX_WASTE or _is_in_shared_memory(array):
            return array
        if array.type.id in (pyarrow.string_view().id, pyarrow.binary_view().id):
            return _compact_views(array, total)
        if not _wastes(total, array.nbytes):
            return array
        copied = pyarrow.concat_arrays([array])
        if _wastes(copied.get_total_buffer_size(), copied.nbytes):
            # The children of a dense union are copied as a whole, unless elements are picked.
            copied = array.take(pyarrow.array(range(len(array)), pyarrow.int64()))
        return copied
    except pyarrow.ArrowNotImplementedError:
        # A type of elements that Arrow does not copy yet.
        return array


def _is_in_shared_memory(array: Any) -> bool:
    """Return whether the memory of an Arrow array can travel as it is, however large."""
    return has_regions() and any(
        buffer is not None and is_shared(buffer) for buffer in array.buffers()
    )


def has_shared_columns(table: Any) -> bool:
    """Return whether a column of an Arrow table or record batch lies in shared memory."""
    return has_regions() and any(
        _is_in_shared_memory(chunk)
        for column in table.columns
        for chunk in getattr(column, "chunks", (column,))
    )


def _wastes(total: int, used: int) -> bool:
    return total - used > max(_MAX_WASTE, used // 4)


def _compact_views(array: Any, total: int) -> Any:
    """Copy texts that Arrow refers to by views, if they are a small part of their buffers."""
    import pyarrow

    is_text = array.type.id == pyarrow.string_view().id
    contiguous = array.cast(pyarrow.large_string() if is_text else pyarrow.large_binary())
    # A view is larger than the offset of a text by 8 bytes.
    used = contiguous.nbytes + 8 * len(array)
    return contiguous.cast(array.type) if _wastes(total, used) else array


def _compact_chunks(array: Any) -> Any:
    chunks = [_compact(chunk) for chunk in array.chunks]
    if all(new is old for new, old in zip(chunks, array.chunks, strict=True)):
        return array
    import pyarrow

    return pyarrow.chunked_array(chunks, array.type)


def compact_columns(table: Any) -> Any:
    """Return an Arrow table or record batch whose columns hold little more than their elements."""
    compact = _compact_chunks if hasattr(table, "combine_chunks") else _compact
    columns = [compact(column) for column in table.columns]
    if not columns or all(new is old for new, old in zip(columns, table.columns, strict=True)):
        return table
    return type(table).from_arrays(columns, schema=table.schema)


def _reduce_compacted(compact: Reduction) -> Reduction:
    return lambda x: compact(x).__reduce__()


# The tables

_ARROW = {
    "Array": _reduce_compacted(_compact),
    "ChunkedArray": _reduce_compacted(_compact_chunks),
    "Table": _reduce_compacted(compact_columns),
    "RecordBatch": _reduce_compacted(compact_columns),
}
_SUBCLASSES = {
    "matrix": _reduce_subclass,
    "recarray": _reduce_subclass,
    "ma.MaskedArray": _reduce_masked,
}

#: Library → names of its types → reductions; for pickles with buffers out of band, and without.
_OUT_OF_BAND: dict[str, dict[str, Reduction]] = {
    "numpy": {"ndarray": _reduce_array, **_SUBCLASSES},
    "pyarrow": _ARROW,
    "polars": {"DataFrame": _reduce_frame, "Series": _reduce_series},
}
_IN_BAND: dict[str, dict[str, Reduction]] = {
    "numpy": {"ndarray": _reduce_array_in_band, **_SUBCLASSES},
    "pyarrow": _ARROW,
}


class _Merged(NamedTuple):
    """A table of reductions, and all that it was made of."""

    libraries: list[tuple[ModuleType, int]]
    registered: dict[Any, Any]
    table: dict[Any, Any]


# The last tables made for pickles with buffers out of band, and without.
_merged: dict[bool, _Merged] = {}


def dispatch_table(out_of_band: bool) -> dict[Any, Any] | None:
    """Return the reductions of types for a pickler, with those of `copyreg`.

    Parameters
    ----------
    out_of_band
        Whether buffers travel outside of the pickle.

    Returns
    -------
    dict or None
        None if none of the libraries is imported.  The caller must not change the dict.
    """
    names = _OUT_OF_BAND if out_of_band else _IN_BAND
    libraries = []
    for library in names:
        module = sys.modules.get(library)
        if module is not None:
            # Programs define types of arrays for their own types of elements.
            extensions = getattr(module, "ExtensionArray", None) if library == "pyarrow" else None
            libraries.append((module, len(extensions.__subclasses__()) if extensions else 0))
    if not libraries:
        return None
    last = _merged.get(out_of_band)
    if (
        last is not None
        and last.libraries == libraries
        and last.registered == copyreg.dispatch_table
    ):
        return last.table
    registered: dict[Any, Any] = dict(copyreg.dispatch_table)
    table = dict(registered)
    complete = [_add_types(table, module, names[module.__name__]) for module, _ in libraries]
    if all(complete):
        _merged[out_of_band] = _Merged(libraries, registered, table)
    return table


def _add_types(table: dict[Any, Any], module: ModuleType, names: dict[str, Reduction]) -> bool:
    """Add the types of a library, and return whether the library has all of them."""
    complete = True
    for name, reduction in names.items():
        cls: Any = module
        for part in name.split("."):
            cls = getattr(cls, part, None)
        if cls is None:
            # The library is being imported, perhaps by another thread.
            complete = False
        elif name == "Array":
            table.update(dict.fromkeys(_with_subclasses(cls), reduction))
        else:
            table[cls] = reduction
    return complete


def _with_subclasses(cls: type) -> list[type]:
    classes = [cls]
    for one in classes:
        classes += one.__subclasses__()
    return classes
