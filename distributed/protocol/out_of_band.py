"""How objects of libraries are pickled whose own pickles do not keep memory apart.

pandas keeps dates in arrays of a type that has no buffer protocol, and polars puts all of
a data frame into its pickle.  The reductions here say the same in terms of buffers, and
only in names that the libraries themselves have: any peer that has them can unpickle.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["dispatch_table", "dumps"]


def _reduce_array(array: Any) -> Any:
    """Reduce a numpy array; one of dates or durations to a view of an array of integers."""
    if array.dtype.kind not in "mM" or not array.ndim:
        return array.__reduce_ex__(5)
    import numpy

    return numpy.ndarray.view, (array.view(numpy.int64), array.dtype)


class _Stream:
    """Pickles as an open file of *memory*, which is kept out of band."""

    def __init__(self, memory: memoryview):
        self._memory = memory

    def __reduce__(self) -> Any:
        return io.BytesIO, (pickle.PickleBuffer(self._memory),)


def _reduce_frame(frame: Any) -> Any:
    """Reduce a polars data frame to the stream of Arrow's that it can be read from."""
    import polars

    if any("Object" in str(dtype) for dtype in frame.dtypes):
        # Arrow would write where the objects are, rather than what.
        return frame.__reduce_ex__(5)
    stream = frame.write_ipc_stream(None)
    return polars.read_ipc_stream, (_Stream(stream.getbuffer()),)


def _reduce_series(series: Any) -> Any:
    """Reduce a polars series to the only column of a data frame."""
    import polars

    return polars.DataFrame.to_series, (series.to_frame(), 0)


#: Library → the types that it pickles badly → how to reduce them.
_REDUCTIONS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "numpy": {"ndarray": _reduce_array},
    "polars": {"DataFrame": _reduce_frame, "Series": _reduce_series},
}


def dispatch_table() -> dict[type, Callable[[Any], Any]] | None:
    """Return the reductions for the libraries that are loaded, or None if none of them is."""
    found: dict[type, Callable[[Any], Any]] = {}
    for library, reductions in _REDUCTIONS.items():
        module = sys.modules.get(library)
        for name, reduction in reductions.items():
            cls = getattr(module, name, None)
            if cls is not None:
                found[cls] = reduction
    return {**copyreg.dispatch_table, **found} if found else None


def dumps(x: Any, protocol: int, buffer_callback: Callable[[Any], Any] | None) -> bytes:
    """Pickle *x* as ``pickle.dumps`` does, with buffers apart wherever there is a way."""
    table = None if buffer_callback is None else dispatch_table()
    if table is None:
        return pickle.dumps(x, protocol=protocol, buffer_callback=buffer_callback)
    with io.BytesIO() as file:
        pickler = pickle.Pickler(file, protocol=protocol, buffer_callback=buffer_callback)
        pickler.dispatch_table = table
        pickler.dump(x)
        return file.getvalue()
