"""COO arrays of the `sparse` library, as two arrays: coordinates and values.

Its other formats are left to the next family, which is pickle, with the memory of their parts out
of band.

The constructor sorts the elements, which copies the arrays.  An array that repeats one value
(`numpy.broadcast_to`) is much larger than its frames, so it is kept out of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sparse

from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.limits import count_memory
from distributed.protocol.objects import Header, deserialize, serialize
from distributed.protocol.utils import Buffer

__all__ = ["deserialize_sparse", "serialize_sparse"]


def serialize_sparse(x: sparse.COO, context: Any = None) -> tuple[Header, list[Any]]:
    """Return header and frames of the coordinates, the values, and the fill value if not zero.

    Raises
    ------
    NotImplementedError
        For subclasses.
    """
    if type(x) is not sparse.COO:
        raise NotImplementedError(f"{type(x).__name__} may hold more than a sparse.COO")
    coords_header, coords_frames = serialize(x.coords, on_error="raise", context=context)
    data_header, data_frames = serialize(x.data, on_error="raise", context=context)
    header: Header = {
        "coords-header": coords_header,
        "data-header": data_header,
        "shape": x.shape,
        "nframes": [len(coords_frames), len(data_frames)],
    }
    frames = coords_frames + data_frames
    if x.fill_value != 0:
        # The original does not send the fill value, and ignores it.
        header["fill-value-header"], fill_value_frames = serialize(
            x.fill_value, on_error="raise", context=context
        )
        frames += fill_value_frames
    return header, frames


def deserialize_sparse(header: Header, frames: Sequence[Buffer]) -> sparse.COO:
    """Return an array whose coordinates and values view the memory of *frames*.

    Raises
    ------
    HeaderError
        If the frames do not match the header.
    """
    coords_frames, data_frames = header["nframes"]
    end = coords_frames + data_frames
    if not 0 <= coords_frames <= end <= len(frames):
        raise HeaderError(f"a sparse array of {len(frames)} frames claims {end} of them")
    coords = _array(deserialize(header["coords-header"], frames[:coords_frames]))
    data = _array(deserialize(header["data-header"], frames[coords_frames:end]))
    fill_value = None
    if "fill-value-header" in header:
        fill_value = deserialize(header["fill-value-header"], frames[end:])
        if isinstance(fill_value, np.ndarray) and fill_value.ndim:
            raise HeaderError(f"a sparse array has {fill_value.size} fill values")
    if coords.shape != (len(header["shape"]), len(data)):
        raise HeaderError(
            f"{len(data)} values of a sparse array of shape {header['shape']!r:.100} have "
            f"coordinates of shape {coords.shape!r:.100}"
        )
    if _repeats(coords, axis=1):
        raise HeaderError(f"a sparse array has {len(data)} values at the same coordinates")
    if _repeats(coords, axis=0):
        count_memory(coords.nbytes, "the coordinates of a sparse array")
    for length, indices in zip(header["shape"], coords, strict=True):
        if indices.size and (indices.min() < 0 or indices.max() >= length):
            raise HeaderError(
                f"coordinates of a sparse array lie outside of its shape {header['shape']!r:.100}"
            )
    shape = tuple(header["shape"])
    repeats = _repeats(data, axis=0)
    if repeats:
        # All values are equal, so only the coordinates need to be sorted.
        coords = sparse.COO(coords, np.zeros(len(data), "?"), shape, has_duplicates=False).coords
    return sparse.COO(
        coords, data, shape, has_duplicates=False, sorted=repeats, fill_value=fill_value
    )


def _array(x: Any) -> np.ndarray[Any, Any]:
    if not isinstance(x, np.ndarray):
        raise HeaderError(f"a sparse array consists of arrays, not of a {type(x).__name__:.100}")
    return x


def _repeats(x: np.ndarray[Any, Any], axis: int) -> bool:
    """Return whether an array repeats its elements along an axis without having them in memory."""
    return x.strides[axis] == 0 and x.shape[axis] > 1


dask_serialize.register(sparse.COO, serialize_sparse)
dask_deserialize.register(sparse.COO, deserialize_sparse)
