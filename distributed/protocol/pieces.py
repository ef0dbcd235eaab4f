"""A value's header and frames, split and packed for a message or for storing.

Large frames travel in pieces, each compressed separately; the header states the number of pieces
of each frame.  :mod:`distributed.protocol.core` writes the values of a message with
:func:`serialize_and_split` and reads them with :func:`merge_and_deserialize`.
:func:`serialize_bytes` and :func:`deserialize_bytes` do both for an object that is stored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgpack

from distributed.base.metering import metered
from distributed.base.text import shown
from distributed.protocol.compression import compress_frames, decompress, own_codecs
from distributed.protocol.exceptions import HeaderError, ProtocolError, SerializationError
from distributed.protocol.extension import (
    EXTENSIONS,
    msgpack_decode_default,
    msgpack_encode_default,
)
from distributed.protocol.limits import reading_stored
from distributed.protocol.objects import (
    Header,
    OnError,
    deserialize,
    load_pickled,
    merge_frames,
    serialize,
)
from distributed.protocol.unpacking import count_containers, unpack
from distributed.protocol.utils import (
    Buffer,
    frame_split_size,
    pack_frames_prelude,
    unpack_frames,
)
from distributed.protocol.wrappers import Pickled, Serialize, Serialized, ToPickle

__all__ = [
    "deserialize_bytes",
    "header_containers",
    "merge_and_deserialize",
    "nested_deserialize",
    "pack_header",
    "read_header",
    "serialize_and_split",
    "serialize_bytelist",
    "serialize_bytes",
]


# The beginning of the header of a pickled value, up to the size of the pickle.
_PICKLED = re.compile(rb"[\x81-\x8f]\xabpickled-obj(?:\xc4(.)|\xc5(.{2})|\xc6(.{4}))", re.DOTALL)

#: Size (bytes) up to which a header is read so fast that its maps and arrays are not counted.
_SMALL_HEADER = 1024


@metered("serialize")
def serialize_and_split(
    x: Any,
    serializers: Sequence[str] | None = None,
    on_error: OnError = "message",
    context: Any = None,
    size: int | None = None,
) -> tuple[Header, list[Any]]:
    """Serialize an object as `serialize` does, and split its large frames.

    Parameters
    ----------
    x, serializers, on_error, context
        As for `serialize`.
    size
        Bytes above which a frame is split; ``distributed.comm.shard`` by default.

    Returns
    -------
    tuple of dict and list
        The arguments of `merge_and_deserialize`.  The header states the number of pieces of each
        frame, and the codec of each piece: None, unless the serializer has compressed the frame
        and stated its codec.  Such a frame is not split.
    """
    header, frames = serialize(x, serializers, on_error, context)
    header = dict(header)
    own = own_codecs(header, len(frames)) if "compression" in header else None
    pieces: list[Any] = []
    counts: list[int] = []
    offsets: list[int] = []
    codecs: list[str | None] = []
    for i, frame in enumerate(frames):
        codec = own[i] if own else None
        split = [frame] if codec else frame_split_size(frame, size)
        counts.append(len(split))
        offsets.append(len(pieces))
        pieces += split
        codecs += [codec] * len(split)
    header["split-num-sub-frames"] = tuple(counts)
    header["split-offsets"] = tuple(offsets)
    header["compression"] = tuple(codecs)
    return header, pieces


@metered("deserialize")
def merge_and_deserialize(
    header: Header, frames: Sequence[Any], deserializers: Sequence[str] | None = None
) -> Any:
    """Join the pieces of `serialize_and_split`, and deserialize the object.

    Pieces that are adjacent in memory are not copied.

    Raises
    ------
    ProtocolError, TypeError
        As `deserialize` does.
    """
    return deserialize(*merge_frames(header, frames), deserializers)


def pack_header(header: Header) -> bytes:
    """Pack the header of a value; it may contain sets and Enum members.

    Raises
    ------
    SerializationError
        If it contains anything else that msgpack cannot encode.
    """
    try:
        packed: bytes = msgpack.packb(header, default=msgpack_encode_default, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as e:
        what = header.get("type") or header.get("serializer") or "a value"
        raise SerializationError(
            f"The serializer of {shown(what, 200)} made a header that msgpack cannot encode: {e}"
        ) from e
    return packed


def read_header(packed: Buffer) -> Header:
    """Unpack the header of a value.

    Raises
    ------
    HeaderError
        If it is not a map in msgpack.
    MessageError
        If it contains an invalid set or Enum member.
    """
    hook = msgpack_decode_default if EXTENSIONS.search(packed) else None
    try:
        header = unpack(packed, hook)
    except ProtocolError:
        raise
    except Exception as e:  # msgpack raises errors of several types
        raise HeaderError(f"the header of a value is not msgpack: {shown(e)}") from e
    if not isinstance(header, dict):
        raise HeaderError(f"the header of a value is {type(header).__name__}, not a map")
    return header


def header_containers(packed: Buffer) -> int:
    """Return the approximate number of maps and arrays in a packed header; 0 if it is small.

    The pickle in the header of a pickled value does not count, since `read_header` only copies it.
    """
    if len(packed) <= _SMALL_HEADER:
        return 0
    if (begin := _PICKLED.match(packed)) is not None:
        size = int.from_bytes(begin[begin.lastindex or 1], "big")
        packed = memoryview(packed)[begin.end() + size :]
    return count_containers(packed)


def serialize_bytelist(
    x: Any, compression: str | Literal[False] | None = "auto", **kwargs: Any
) -> list[Any]:
    """Serialize an object into a list of bytes-like objects, to be stored one after the other.

    Parameters
    ----------
    x
        Any object.
    compression
        Name of the codec, used for frames that become much smaller.
    **kwargs
        Passed to `serialize_and_split`.
    """
    header, frames = serialize_and_split(x, **kwargs)
    compressed = compress_frames(header, frames, compression)
    header["count"] = len(compressed)
    packed = [pack_header(header), *compressed]
    return [pack_frames_prelude(packed), *packed]


def serialize_bytes(x: Any, **kwargs: Any) -> bytes:
    """Serialize an object into one bytes object.

    Examples
    --------
    >>> deserialize_bytes(serialize_bytes([1, b"a"]))
    [1, b'a']
    """
    return b"".join(serialize_bytelist(x, **kwargs))


def deserialize_bytes(b: Buffer) -> Any:
    """Turn the result of `serialize_bytes` back into an object.

    Raises
    ------
    ProtocolError, TypeError
        If *b* is anything else, and as `deserialize` does.
    """
    packed, *frames = unpack_frames(b) or [b""]
    header = read_header(packed)
    with reading_stored():
        return merge_and_deserialize(header, decompress(header, frames))


# Frequent types that contain no wrapper: values of these types are spared a call.
PLAIN_TYPES = frozenset((type(None), bool, int, float, str, bytes))


def nested_deserialize(x: Any, emulate_deserialize: bool = True) -> Any:
    """Replace the wrappers in a message that was not serialized by their values.

    Containers are copied, so that sender and receiver do not share them.

    Parameters
    ----------
    x
        A message, of dicts, lists, tuples and other values.
    emulate_deserialize
        Whether to replace `Serialize` and `Serialized`; `ToPickle` and `Pickled` always are.
    """
    cls = type(x)
    if cls is Serialize:
        return x.data if emulate_deserialize else x
    if cls is dict:
        return {
            key: value
            if type(value) in PLAIN_TYPES
            else nested_deserialize(value, emulate_deserialize)
            for key, value in x.items()
        }
    if cls is list or cls is tuple:
        values = [
            value if type(value) in PLAIN_TYPES else nested_deserialize(value, emulate_deserialize)
            for value in x
        ]
        return values if cls is list else tuple(values)
    if cls is ToPickle:
        return x.data
    if cls is Pickled:
        return load_pickled(x.header, x.frames)
    if cls is Serialized and emulate_deserialize:
        return merge_and_deserialize(x.header, decompress(x.header, x.frames))
    return x
