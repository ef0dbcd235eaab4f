"""NumPy arrays: a frame with the memory, and a header with dtype, shape and strides.

An array whose elements are dense in memory, in any order of its axes, is sent without a copy, and
arrives as a view of the memory that its frame was received into.  An array with gaps or negative
strides is copied once by the sender.  An axis with stride zero is sent once.  Arrays of objects are
pickled, with large buffers out of band.  NumPy scalars, and subclasses of `numpy.ndarray` that are
not registered at the end of this module, are left to the next family, which is pickle.

Headers are not trusted: shape and strides are checked against the number of bytes received before
any memory is accessed.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from distributed.base.buffers import ensure_memoryview
from distributed.base.shared_memory import is_shared
from distributed.base.text import shown_repr
from distributed.protocol import pickle
from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.families import pickle_dumps, pickle_loads
from distributed.protocol.header_cache import register_cached_headers
from distributed.protocol.objects import Header, accepts_pickles
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

#: Maximum element size, in bytes, at which memory is split on element boundaries.
_MAX_ITEMSIZE = 255

#: Encodings of the element type in the "dtype" of a header.  The original has only the first two.
_PLAIN, _PICKLED, _SPELLED_OUT = 0, 1, 2

#: Maximum number of axes of an array (NumPy's own limit).
_MAX_AXES = 64

#: The names that ``dtype.str`` can have.  NumPy reads many more, such as "i4,i4", some very slowly.
_DTYPE_NAME = re.compile(r"[<>|=]?[?A-Za-z]\d{0,19}(\[\d{0,19}[a-zA-Z]{1,7}\])?")

#: Python types that survive msgpack unchanged.
_PLAIN_SCALARS = (bool, int, float)


def itemsize(dt: np.dtype[Any]) -> int:
    """Return the size in bytes of one element of type *dt*, or 8 if it is larger than 255 bytes.

    The element of a subarray type is that of its base.

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
    """Return the header and the memory of an array, copied only if it is not dense.

    Raises
    ------
    NotImplementedError
        For a subclass that may have state besides its elements; it is left to pickle.
    """
    if type(x) not in _ONLY_MEMORY:
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
        # The original's key for the shape after the zero-stride axes are repeated.
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
    # dtype.str does not describe fields, nor types of other libraries.
    if accepts_pickles(context):
        return _PICKLED, pickle.dumps(dtype, protocol=4)
    return _SPELLED_OUT, _spell_out(dtype)


def _spell_out(dtype: np.dtype[Any]) -> str | dict[str, Any]:
    """Describe a type by msgpack values, for receivers that do not unpickle."""
    if dtype.isbuiltin == 2:
        raise TypeError(f"the element type {dtype} of an array has to be pickled")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": _spell_out(base), "shape": shape}
    if dtype.names is None:
        return dtype.str
    # A field is a tuple of its type, its offset in bytes and, if it has one, its title.
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
        return _make_dtype((_read_spelled_out(spelled["base"]), _checked_shape(spelled["shape"])))
    formats = [_read_spelled_out(format) for format in spelled["formats"]]
    fields = {key: spelled[key] for key in ("names", "offsets", "titles", "itemsize")}
    return _make_dtype({**fields, "formats": formats})


def _flatten(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], tuple[int, ...]]:
    """Return the elements of *x* in memory order, and the strides of *x* in that memory."""
    if x.flags.c_contiguous:
        return x.reshape(-1), x.strides
    outer_first = sorted(range(x.ndim), key=x.strides.__getitem__, reverse=True)
    transposed = x.transpose(outer_first)
    if transposed.flags.c_contiguous:
        return transposed.reshape(-1), x.strides
    x = np.ascontiguousarray(x)
    return x.reshape(-1), x.strides


def _memory(flat: np.ndarray[Any, Any]) -> memoryview:
    """Return the memory of a dense array; its item size tells where it may be split."""
    if not flat.nbytes:
        return memoryview(b"")
    if flat.dtype.kind in "US":
        return memoryview(flat)
    # Not every element type has a buffer format, so the elements are viewed as integers.
    return memoryview(flat.view(f"u{math.gcd(flat.itemsize, 8)}"))


def deserialize_numpy_ndarray(header: Header, frames: Sequence[Buffer]) -> np.ndarray[Any, Any]:
    """Return an array that views the memory of *frames*.

    The memory is copied if it comes in several frames that are not adjacent, or if it is read-only
    and the array was writeable.  Shared memory stays read-only instead.

    Raises
    ------
    HeaderError
        If the header is invalid, or the frames do not match it.
    """
    if header.get("pickle"):
        return _deserialize_objects(header, frames)
    x = view_memory(header, _read_dtype(header["dtype"]), frames)
    return x.view(np.matrix) if header.get("matrix") else x


def view_memory(
    header: Header, dtype: np.dtype[Any], frames: Sequence[Buffer]
) -> np.ndarray[Any, Any]:
    """Return *frames* viewed as an array with the shape and strides of the header.

    Raises
    ------
    HeaderError
        If such an array would reach beyond the frames.
    """
    memory = ensure_memoryview(join_frames(frames))
    shape, strides = checked_layout(header, dtype, len(memory))
    writeable = header.get("writeable")
    if writeable is not None:
        memory = _with_writability(memory, bool(all(writeable)))
    return np.ndarray(shape, dtype, memory, 0, strides)


def _deserialize_objects(header: Header, frames: Sequence[Buffer]) -> np.ndarray[Any, Any]:
    if not frames:
        raise HeaderError("a pickled array was sent without frames")
    x = pickle_loads(header, frames)
    if not isinstance(x, np.ndarray):
        raise HeaderError(f"a pickled array was unpickled as {type(x).__name__}")
    if header.get("readonly"):
        x.flags.writeable = False
    return x


def plain_dtype(name: Any) -> np.dtype[Any]:
    """Return the element type with this name.

    Raises
    ------
    HeaderError
        If there is no such type.
    """
    if not isinstance(name, str) or _DTYPE_NAME.fullmatch(name) is None:
        raise _invalid("element type", name)
    try:
        return np.dtype(name)
    except (TypeError, ValueError) as e:
        raise HeaderError(f"an array cannot have elements of type {name!r:.100}: {e!s:.200}") from e


def _read_descr(described: Any) -> np.dtype[Any]:
    """Return the element type that ``dtype.descr`` describes; msgpack has made tuples of its lists.

    The original sends this for a type with fields that it cannot pickle.
    """
    if not isinstance(described, (tuple, list)):
        return plain_dtype(described)
    fields = []
    for field in described:
        if not isinstance(field, (tuple, list)) or len(field) not in (2, 3):
            raise _invalid("field", field)
        name, format, *shape = field
        name = tuple(name) if isinstance(name, list) else name
        fields.append((name, _read_descr(format), *map(_checked_shape, shape)))
    return _make_dtype(fields)


def _make_dtype(described: Any) -> np.dtype[Any]:
    try:
        return np.dtype(described)
    except (TypeError, ValueError, OverflowError) as e:
        raise HeaderError(f"an array cannot have elements of this type: {e!s:.200}") from e


def _checked_shape(shape: Any) -> tuple[int, ...]:
    # The subarray of a field; its length is limited before NumPy multiplies the numbers.
    return tuple(_checked_integers({"shape": shape}, "shape"))


def _invalid(key: str, value: Any) -> HeaderError:
    return HeaderError(f"the {key} of an array is given as {shown_repr(value, 100)}")


def _read_dtype(described: Any) -> np.dtype[Any]:
    if not isinstance(described, (tuple, list)) or len(described) != 2:
        raise _invalid("element type", described)
    kind, value = described
    if kind == _PLAIN:
        return _read_descr(value)
    if kind == _SPELLED_OUT:
        return _read_spelled_out(value)
    if kind == _PICKLED and isinstance(value, bytes):
        dtype = pickle.loads(value)
    else:
        raise _invalid("element type", described)
    if not isinstance(dtype, np.dtype):
        raise _invalid("element type", dtype)
    return dtype


def checked_layout(
    header: Header, dtype: np.dtype[Any], nbytes: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Return shape and strides of an array after checking that it stays within *nbytes*.

    NumPy's own check is not enough: it overflows for large strides, and it allows elements to
    overlap, so that a few bytes could claim to be any number of elements.

    Raises
    ------
    HeaderError
        If the array would reach beyond *nbytes*, or has more elements than fit into them without
        the repetition of axes by "broadcast_to".
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
                raise HeaderError(f"strides {strides!r:.100} of an array reach before its memory")
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
    # The length is limited before the numbers are multiplied, which takes long for many of them.
    if not isinstance(numbers, (tuple, list)) or len(numbers) > _MAX_AXES:
        raise _invalid(key, numbers)
    for number in numbers:
        if type(number) is not int:
            raise _invalid(key, numbers)
    return numbers


# Arrays whose headers are cached: C order, and a built-in dtype without objects


def _describe_plain(x: np.ndarray[Any, Any]) -> tuple[Hashable, memoryview] | None:
    dtype, strides, flags = x.dtype, x.strides, x.flags
    # Among NumPy's built-in types, only objects are more than their memory.
    if dtype.isbuiltin != 1 or dtype.hasobject:
        return None
    if not flags.c_contiguous or not x.nbytes or 0 in strides:
        return None
    try:
        memory = memoryview(x).cast("B")
    except (TypeError, ValueError):
        # This element type has no buffer format.
        return None
    return (dtype, x.shape, strides, flags.writeable), memory


def _prepare_plain(header: Header) -> Callable[[Buffer], np.ndarray[Any, Any] | None] | None:
    if header.keys() != _PLAIN_KEYS or header["dtype"][0] != _PLAIN:
        return None
    if not isinstance(header["writeable"], (tuple, list)):
        return None
    dtype = _read_descr(header["dtype"][1])
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
    if not memory.readonly or is_shared(memory):
        # The sender of shared memory has decided that this process only reads it.
        return memory
    return host_array_from_buffers([memory])


# Masked arrays


def serialize_numpy_maskedarray(
    x: np.ma.MaskedArray[Any, Any], context: Any = None
) -> tuple[Header, list[Any]]:
    """Return header and frames of the data and the mask.

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
    """Return a masked array whose data and mask view the memory of *frames*.

    Raises
    ------
    HeaderError
        As `deserialize_numpy_ndarray`.
    """
    n = header["nframes"]
    if type(n) is not int or not 0 <= n <= len(frames):
        raise HeaderError(
            f"a masked array of {len(frames)} frames claims {n!r:.100} of them for its data"
        )
    data = deserialize_numpy_ndarray(header["data-header"], frames[:n])
    mask: Any = np.ma.nomask
    if "mask-header" in header:
        mask = deserialize_numpy_ndarray(header["mask-header"], frames[n : n + 1])
        # NumPy would repeat a mask of one element, and copy one of another type or shape.
        if mask.shape != data.shape or mask.dtype != np.ma.make_mask_descr(data.dtype):
            raise HeaderError(
                f"an array of shape {data.shape!r:.100} and type {data.dtype!s:.100} has a mask of "
                f"shape {mask.shape!r:.100} and type {mask.dtype!s:.100}"
            )
    pickled, fill_value = header["fill-value"]
    if "fill-value-header" in header:
        fill_value = deserialize_numpy_ndarray(header["fill-value-header"], frames[-1:])
        if fill_value.ndim:
            raise HeaderError(f"the fill value of an array has {fill_value.size} elements")
        fill_value = fill_value[()]
    if pickled:
        fill_value = pickle.loads(fill_value)
    if data.dtype.names is None and fill_value == np.ma.default_fill_value(data):
        # NumPy refuses some of its own defaults when they are passed in: 1e20 for float16.
        fill_value = None
    return np.ma.MaskedArray(
        data, mask=mask, fill_value=fill_value, hard_mask=bool(header.get("hard-mask"))
    )


def serialize_numpy_ma_masked(x: Any) -> tuple[Header, list[Any]]:
    """Return an empty header and no frames: ``numpy.ma.masked`` is a constant."""
    return {}, []


def deserialize_numpy_ma_masked(header: Header, frames: Sequence[Buffer]) -> Any:
    """Return the ``numpy.ma.masked`` of this process."""
    return np.ma.masked


# Subclasses without state besides their elements


def serialize_numpy_matrix(x: Any, context: Any = None) -> tuple[Header, list[Any]]:
    """Return header and memory of an array, with a mark in the header."""
    header, frames = serialize_numpy_ndarray(x, context)
    header["matrix"] = True
    return header, frames


def _view_as(cls: type) -> Callable[..., Any]:
    return lambda header, frames: deserialize_numpy_ndarray(header, frames).view(cls)


def _serialize_bytes_scalar(x: np.bytes_) -> tuple[Header, list[Any]]:
    raise NotImplementedError("numpy.bytes_ is a subclass of bytes, and would arrive as bytes")


def _chararray() -> type[np.ndarray[Any, Any]] | None:
    """Return the class of arrays of text, without NumPy's warning that its name is deprecated."""
    for name in ("numpy._core.defchararray", "numpy.core.defchararray"):
        found: Any = vars(sys.modules[name]).get("chararray") if name in sys.modules else None
        if isinstance(found, type):
            return found
    return None


_ONLY_MEMORY = {np.ndarray, np.memmap, np.recarray, np.matrix}

dask_serialize.register(np.ndarray, serialize_numpy_ndarray)
dask_deserialize.register(np.ndarray, deserialize_numpy_ndarray)
dask_serialize.register(np.bytes_, _serialize_bytes_scalar)
dask_serialize.register(np.matrix, serialize_numpy_matrix)
dask_deserialize.register(np.recarray, _view_as(np.recarray))
if (_text := _chararray()) is not None:
    _ONLY_MEMORY.add(_text)
    dask_deserialize.register(_text, _view_as(_text))
dask_serialize.register(np.ma.MaskedArray, serialize_numpy_maskedarray)
dask_deserialize.register(np.ma.MaskedArray, deserialize_numpy_maskedarray)
dask_serialize.register(np.ma.core.MaskedConstant, serialize_numpy_ma_masked)
dask_deserialize.register(np.ma.core.MaskedConstant, deserialize_numpy_ma_masked)
