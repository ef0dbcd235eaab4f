"""NumPy arrays as their own memory, with a header that says how to look at it.

An array whose elements lie densely, in whatever order of the axes, is sent without a copy, and
arrives as a view of the memory that its frame was received into.  Gaps and negative strides cost
one copy on the way out.  An axis that only repeats (zero stride) is sent once.  Arrays of objects
are pickled, their large buffers out of band.  NumPy's scalars and subclasses of `numpy.ndarray`
that are not listed at the end of this module go to the next family, which is pickle.

What a header states is not believed: before any memory is looked at, shape and strides are checked
against the number of bytes that came.  This module is imported when the first array is seen (see
:mod:`distributed.protocol.dispatch`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from distributed.base.buffers import ensure_memoryview
from distributed.protocol import pickle
from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.families import pickle_dumps, pickle_loads
from distributed.protocol.header_cache import register_cached_headers
from distributed.protocol.objects import accepts_pickles
from distributed.protocol.utils import Buffer, host_array_from_buffers, join_frames

__all__ = [
    "checked_layout",
    "deserialize_numpy_ma_masked",
    "deserialize_numpy_maskedarray",
    "deserialize_numpy_ndarray",
    "itemsize",
    "plain_dtype",
    "serialize_numpy_ma_masked",
    "serialize_numpy_maskedarray",
    "serialize_numpy_matrix",
    "serialize_numpy_ndarray",
    "view_memory",
]

Header = dict[str, Any]

# Above this an element's size says nothing about where it is sensible to cut the memory.
_MAX_ITEMSIZE = 255

# How the type of elements is given in the "dtype" of a header.  The original knows the first two.
_PLAIN, _PICKLED, _SPELLED_OUT = 0, 1, 2

# Axes that an array may have.
_MAX_AXES = 64

# Python types that msgpack gives back as they were.
_PLAIN_SCALARS = (bool, int, float)


def itemsize(dt: np.dtype[Any]) -> int:
    """Bytes of the elements that memory of type *dt* is made of; 8 for very large ones.

    Examples
    --------
    >>> import numpy
    >>> itemsize(numpy.dtype("f4")), itemsize(numpy.dtype(("f4", (2, 3))))
    (4, 4)
    """
    size = dt.base.itemsize
    return size if size <= _MAX_ITEMSIZE else 8


# Arrays


def serialize_numpy_ndarray(
    x: np.ndarray[Any, Any], context: Any = None
) -> tuple[Header, list[Any]]:
    """Describe an array and give its memory, copied only where it is not dense.

    Raises
    ------
    NotImplementedError
        For subclasses that may be more than their memory; they are left to pickle.
    """
    if type(x) not in _MERE_MEMORY:
        raise NotImplementedError(f"{type(x).__name__} may hold more than its elements")
    if x.dtype.hasobject:
        return _serialize_objects(x, context)
    return _describe(np.asarray(x), context)


def _serialize_objects(x: np.ndarray[Any, Any], context: Any) -> tuple[Header, list[Any]]:
    if not accepts_pickles(context):
        raise TypeError("the elements of an array of objects have to be pickled")
    pickled, frames = pickle_dumps(x, context)
    header: Header = {"pickle": True}
    if len(frames) > 1:
        header["writeable"] = pickled["writeable"]
    if not x.flags.writeable:
        header["readonly"] = True
    return header, frames


def _describe(x: np.ndarray[Any, Any], context: Any) -> tuple[Header, list[Any]]:
    header: Header = {
        "dtype": _describe_dtype(x.dtype, context),
        "shape": x.shape,
        "strides": x.strides,
        "writeable": [x.flags.writeable],
    }
    if 0 in x.strides:
        # The original's name for the shape that the repeated elements make up.
        header["broadcast_to"] = x.shape
        repeated = x.strides
        x = x[tuple(slice(None) if stride else slice(1) for stride in repeated)]
        flat, strides = _flatten(x)
        header["shape"] = x.shape
        header["strides"] = tuple(
            stride and dense for stride, dense in zip(repeated, strides, strict=True)
        )
    else:
        flat, header["strides"] = _flatten(x)
    return header, [_memory(flat)]


def _describe_dtype(dtype: np.dtype[Any], context: Any) -> tuple[int, Any]:
    if dtype.kind != "V" and dtype.isbuiltin != 2:
        return _PLAIN, dtype.str
    # Fields, or a type of another library: more than dtype.str tells.
    if accepts_pickles(context):
        return _PICKLED, pickle.dumps(dtype, protocol=4)
    return _SPELLED_OUT, _spell_out(dtype)


def _spell_out(dtype: np.dtype[Any]) -> str | dict[str, Any]:
    """A type in words that msgpack has, for receivers that unpickle nothing."""
    if dtype.isbuiltin == 2:
        raise TypeError(f"the type {dtype} of an array's elements has to be pickled")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _spell_out(base), "shape": shape}
    if dtype.names is None:
        return dtype.str
    # A field is given by its type, its offset in bytes and, if it has one, its title.
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": dtype.names,
        "formats": [_spell_out(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
    }


def _read_spelled_out(spelled: Any) -> np.dtype[Any]:
    if not isinstance(spelled, dict):
        return plain_dtype(spelled)
    if "base" in spelled:
        return np.dtype((_read_spelled_out(spelled["base"]), spelled["shape"]))
    formats = [_read_spelled_out(format) for format in spelled["formats"]]
    fields = {key: spelled[key] for key in ("names", "offsets", "titles", "itemsize")}
    return np.dtype({**fields, "formats": formats})


def _flatten(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], tuple[int, ...]]:
    """The elements of *x* in the order in which they lie, and its strides in them."""
    if x.flags.c_contiguous:
        return x.reshape(-1), x.strides
    outer_first = sorted(range(x.ndim), key=x.strides.__getitem__, reverse=True)
    transposed = x.transpose(outer_first)
    if transposed.flags.c_contiguous:
        return transposed.reshape(-1), x.strides
    x = np.ascontiguousarray(x)
    return x.reshape(-1), x.strides


def _memory(flat: np.ndarray[Any, Any]) -> memoryview:
    """The memory of a dense array, in a format that says where it may be cut."""
    if not flat.nbytes:
        return memoryview(b"")
    if flat.dtype.kind in "US":
        return memoryview(flat)
    # Not every type of element has a format, so they are shown as integers.
    return memoryview(flat.view(f"u{math.gcd(flat.itemsize, 8)}"))


def deserialize_numpy_ndarray(header: Header, frames: Sequence[Buffer]) -> np.ndarray[Any, Any]:
    """Make an array that views the memory of *frames*.

    It is copied where it comes in several pieces that do not lie side by side, and where the array
    was writeable, which the memory is not.

    Raises
    ------
    HeaderError
        If the frames are not what the header states, or it states what no array can be.
    """
    if header.get("pickle"):
        return _deserialize_objects(header, frames)
    x = view_memory(header, _read_dtype(header["dtype"]), frames)
    return x.view(np.matrix) if header.get("matrix") else x


def view_memory(
    header: Header, dtype: np.dtype[Any], frames: Sequence[Buffer]
) -> np.ndarray[Any, Any]:
    """View *frames* as an array of the shape and strides that a header states.

    Raises
    ------
    HeaderError
        If that would reach beyond them.
    """
    memory = ensure_memoryview(join_frames(frames))
    shape, strides = checked_layout(header, dtype, len(memory))
    writeable = header.get("writeable")
    if writeable is not None:
        memory = _with_writability(memory, bool(all(writeable)))
    return np.ndarray(shape, dtype, memory, 0, strides)


def _deserialize_objects(header: Header, frames: Sequence[Buffer]) -> np.ndarray[Any, Any]:
    if not frames:
        raise HeaderError("a pickled array came without its pickle")
    x = pickle_loads(header, frames)
    if not isinstance(x, np.ndarray):
        raise HeaderError(f"a pickled array turned out to be {type(x).__name__}")
    if header.get("readonly"):
        x.flags.writeable = False
    return x


def plain_dtype(name: Any) -> np.dtype[Any]:
    """The type of elements that a message names.

    Raises
    ------
    HeaderError
        If it names none.
    """
    if not isinstance(name, str):
        raise HeaderError(f"the type of an array's elements is given as {name!r:.100}")
    try:
        return np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as e:
        raise HeaderError(f"an array cannot have elements of type {name!r:.100}: {e}") from e


def _read_dtype(described: Any) -> np.dtype[Any]:
    if not isinstance(described, (tuple, list)) or len(described) != 2:
        raise HeaderError(f"the type of an array's elements is given as {described!r:.100}")
    kind, value = described
    if kind == _PLAIN:
        return plain_dtype(value)
    if kind == _SPELLED_OUT:
        return _read_spelled_out(value)
    if kind == _PICKLED and isinstance(value, bytes):
        dtype = pickle.loads(value)
    else:
        raise HeaderError(f"the type of an array's elements is given as {described!r:.100}")
    if not isinstance(dtype, np.dtype):
        raise HeaderError(f"the elements of an array are {type(dtype).__name__}, which is no type")
    return dtype


def checked_layout(
    header: Header, dtype: np.dtype[Any], nbytes: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Shape and strides of an array, of which it is known that they stay within *nbytes*.

    NumPy's own check overflows for large strides, and lets elements overlap, by which a few bytes
    could claim to be any number of elements.

    Raises
    ------
    HeaderError
        If they do not, or claim to be more elements than came otherwise than by repetition.
    """
    if dtype.hasobject or dtype.subdtype is not None:
        raise HeaderError(f"bytes cannot be viewed as elements of type {dtype!s:.100}")
    shape, strides = _checked_integers(header, "shape"), _checked_integers(header, "strides")
    if len(shape) != len(strides) or min(shape, default=0) < 0:
        raise HeaderError(f"no array has shape {shape!r:.100} and strides {strides!r:.100}")
    count = math.prod(shape)
    if count * dtype.itemsize != nbytes or (not dtype.itemsize and count > 1):
        raise HeaderError(
            f"an array of shape {shape!r:.100} and type {dtype!s:.100} was sent as {nbytes} bytes"
        )
    if count:
        last = 0
        for stride, length in zip(strides, shape, strict=True):
            if stride < 0 and length > 1:
                raise HeaderError(f"strides {strides!r:.100} of an array begin before its memory")
            last += stride * (length - 1)
        if last + dtype.itemsize > nbytes:
            raise HeaderError(
                f"strides {strides!r:.100} for shape {shape!r:.100} reach beyond {nbytes} bytes"
            )
    if "broadcast_to" not in header:
        return shape, strides
    repeated = _checked_integers(header, "broadcast_to")
    if len(repeated) != len(shape) or any(
        asked != length and (length != 1 or stride != 0 or asked < 0)
        for asked, length, stride in zip(repeated, shape, strides, strict=True)
    ):
        raise HeaderError(
            f"an array of shape {shape!r:.100} and strides {strides!r:.100} cannot be repeated "
            f"to {repeated!r:.100}"
        )
    return repeated, strides


def _checked_integers(header: Header, key: str) -> Sequence[int]:
    numbers = header.get(key)
    # NumPy's own limit is checked here, for the product of many numbers takes long.
    if not isinstance(numbers, (tuple, list)) or len(numbers) > _MAX_AXES:
        raise HeaderError(f"the {key} of an array is given as {numbers!r:.100}")
    for number in numbers:
        if type(number) is not int:
            raise HeaderError(f"the {key} of an array is given as {numbers!r:.100}")
    return numbers


# Arrays that are described by their type and shape alone


def _describe_plain(x: np.ndarray[Any, Any]) -> tuple[Hashable, memoryview] | None:
    dtype, strides, flags = x.dtype, x.strides, x.flags
    # Of the types that NumPy has itself only objects are more than their memory.
    if dtype.isbuiltin != 1 or dtype.hasobject:
        return None
    if not flags.c_contiguous or not x.nbytes or 0 in strides:
        return None
    try:
        memory = memoryview(x).cast("B")
    except (TypeError, ValueError):
        # Not every type of element has a format.
        return None
    return (dtype, x.shape, strides, flags.writeable), memory


def _prepare_plain(header: Header) -> Callable[[Buffer], np.ndarray[Any, Any] | None] | None:
    if header.keys() != _PLAIN_KEYS or header["dtype"][0] != _PLAIN:
        return None
    if not isinstance(header["writeable"], (tuple, list)):
        return None
    dtype = plain_dtype(header["dtype"][1])
    nbytes = math.prod(header["shape"]) * dtype.itemsize
    shape, strides = checked_layout(header, dtype, nbytes)
    writeable = all(header["writeable"])

    def read(frame: Buffer) -> np.ndarray[Any, Any] | None:
        memory = frame if type(frame) is memoryview else ensure_memoryview(frame)
        if len(memory) != nbytes:
            return None
        if memory.readonly is writeable:
            memory = _with_writability(memory, writeable)
        return np.ndarray(shape, dtype, memory, 0, strides)

    return read


_PLAIN_KEYS = {"dtype", "shape", "strides", "writeable"}

register_cached_headers(
    np.ndarray,
    serialize_numpy_ndarray,
    _describe_plain,
    deserialize_numpy_ndarray,
    _prepare_plain,
)


def _with_writability(memory: memoryview, writeable: bool) -> memoryview:
    if not writeable:
        return memory.toreadonly()
    return host_array_from_buffers([memory]) if memory.readonly else memory


# Masked arrays


def serialize_numpy_maskedarray(
    x: np.ma.MaskedArray[Any, Any], context: Any = None
) -> tuple[Header, list[Any]]:
    """A masked array as two arrays, its data and its mask.

    Raises
    ------
    NotImplementedError
        For subclasses, and for masked views of subclasses of `numpy.ndarray`.
    """
    if type(x) is not np.ma.MaskedArray or x.baseclass is not np.ndarray:
        raise NotImplementedError(f"{type(x).__name__} may hold more than data and mask")
    data_header, frames = serialize_numpy_ndarray(x.data, context)
    header: Header = {"data-header": data_header, "nframes": len(frames)}
    if x.mask is not np.ma.nomask:
        header["mask-header"], mask_frames = serialize_numpy_ndarray(np.asarray(x.mask), context)
        frames += mask_frames
    fill_value = x.fill_value
    scalar = fill_value.item() if isinstance(fill_value, np.generic) else fill_value
    if type(scalar) in _PLAIN_SCALARS:
        header["fill-value"] = (False, scalar)
    elif accepts_pickles(context):
        header["fill-value"] = (True, pickle.dumps(fill_value))
    else:
        header["fill-value"] = (False, None)
        header["fill-value-header"], fill_value_frames = _describe(np.asarray(fill_value), context)
        frames += fill_value_frames
    if x.hardmask:
        header["hard-mask"] = True
    return header, frames


def deserialize_numpy_maskedarray(
    header: Header, frames: Sequence[Buffer]
) -> np.ma.MaskedArray[Any, Any]:
    """Make a masked array of views of its two parts.

    Raises
    ------
    HeaderError
        As `deserialize_numpy_ndarray`.
    """
    n = header["nframes"]
    if type(n) is not int or not 0 <= n <= len(frames):
        raise HeaderError(
            f"{n!r:.100} of {len(frames)} frames are said to be a masked array's data"
        )
    data = deserialize_numpy_ndarray(header["data-header"], frames[:n])
    mask: Any = np.ma.nomask
    if "mask-header" in header:
        mask = deserialize_numpy_ndarray(header["mask-header"], frames[n : n + 1])
    pickled, fill_value = header["fill-value"]
    if "fill-value-header" in header:
        fill_value = deserialize_numpy_ndarray(header["fill-value-header"], frames[-1:])[()]
    if pickled:
        fill_value = pickle.loads(fill_value)
    if data.dtype.names is None and fill_value == np.ma.default_fill_value(data):
        # NumPy allows itself defaults that it refuses from others, such as 1e20 for halves.
        fill_value = None
    return np.ma.MaskedArray(
        data, mask=mask, fill_value=fill_value, hard_mask=bool(header.get("hard-mask"))
    )


def serialize_numpy_ma_masked(x: Any) -> tuple[Header, list[Any]]:
    """The constant ``numpy.ma.masked``, of which there is one in each process."""
    return {}, []


def deserialize_numpy_ma_masked(header: Header, frames: Sequence[Buffer]) -> Any:
    """This process' ``numpy.ma.masked``."""
    return np.ma.masked


# Subclasses that are mere views of memory


def serialize_numpy_matrix(x: Any, context: Any = None) -> tuple[Header, list[Any]]:
    """A matrix as an array that is marked as one."""
    header, frames = serialize_numpy_ndarray(x, context)
    header["matrix"] = True
    return header, frames


def _deserialize_recarray(header: Header, frames: Sequence[Buffer]) -> Any:
    return deserialize_numpy_ndarray(header, frames).view(np.recarray)


def _deserialize_chararray(header: Header, frames: Sequence[Buffer]) -> Any:
    return deserialize_numpy_ndarray(header, frames).view(np.char.chararray)


def _serialize_bytes_scalar(x: np.bytes_) -> tuple[Header, list[Any]]:
    raise NotImplementedError("numpy.bytes_ are bytes, and would arrive as nothing else")


_MERE_MEMORY = (np.ndarray, np.memmap, np.recarray, np.matrix, np.char.chararray)

dask_serialize.register(np.ndarray, serialize_numpy_ndarray)
dask_deserialize.register(np.ndarray, deserialize_numpy_ndarray)
dask_serialize.register(np.bytes_, _serialize_bytes_scalar)
dask_serialize.register(np.matrix, serialize_numpy_matrix)
dask_deserialize.register(np.recarray, _deserialize_recarray)
dask_deserialize.register(np.char.chararray, _deserialize_chararray)
dask_serialize.register(np.ma.MaskedArray, serialize_numpy_maskedarray)
dask_deserialize.register(np.ma.MaskedArray, deserialize_numpy_maskedarray)
dask_serialize.register(np.ma.core.MaskedConstant, serialize_numpy_ma_masked)
dask_deserialize.register(np.ma.core.MaskedConstant, deserialize_numpy_ma_masked)
