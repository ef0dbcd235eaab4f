"""Conversion between messages and frames, in the event loop or in a thread.

A conversion runs in the offload thread if it has to parse, pickle, compress, inflate or copy more
than `OFFLOAD_THRESHOLD` bytes, so that it does not block the other comms of the event loop.  An
array that becomes a frame as it is, or a view of one, does not count, however large it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final

import msgpack

from distributed.base import config
from distributed.base.buffers import nbytes
from distributed.base.event_loop import offload
from distributed.protocol.core import dumps, loads
from distributed.protocol.limits import LoadPolicy
from distributed.protocol.utils import msgpack_opts
from distributed.protocol.wrappers import Pickled, Serialize, Serialized, ToPickle

__all__ = [
    "OFFLOAD_THRESHOLD",
    "dumps_is_expensive",
    "from_frames",
    "loads_is_expensive",
    "to_frames",
]

#: Minimum number of bytes to convert in a thread; None or 0 for never.  The value of
#: ``distributed.comm.offload``, which is read at the first use; assign to replace it.
OFFLOAD_THRESHOLD: int | None

#: Maximum number of values of a message that are examined.
_EXAMINED: Final = 256
#: Estimated number of bytes that one object in a container is pickled to.
_BYTES_PER_OBJECT: Final = 64
#: Estimated number of bytes that one compressed byte is inflated to.
_INFLATION: Final = 4

_CHEAP_TYPES: Final = frozenset({type(None), bool, int, float, str, bytes})
_CONTAINER_TYPES: Final = frozenset({list, tuple, dict, set, frozenset})
#: Serializers whose first frame is parsed.  Their other frames are used as they are.
_PARSED: Final = frozenset({"pickle", "msgpack"})


def __getattr__(name: str) -> Any:
    if name == "OFFLOAD_THRESHOLD":
        return _offload_threshold()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _offload_threshold() -> int | None:
    try:
        return OFFLOAD_THRESHOLD
    except NameError:
        switched_off = config.get("distributed.comm.offload") is False
        threshold = None if switched_off else config.get_bytes("distributed.comm.offload")
        # A value that another thread has assigned meanwhile stays.
        value: int | None = globals().setdefault("OFFLOAD_THRESHOLD", threshold)
        return value


async def to_frames(msg: Any, allow_offload: bool = True, **kwargs: Any) -> list[Any]:
    """Serialize a message, in a thread if that is expensive.

    Parameters
    ----------
    msg
        The message.
    allow_offload
        Whether a thread may be used.
    kwargs
        Arguments of :func:`distributed.protocol.dumps`, which also documents the errors.

    Returns
    -------
    list
        The frames, objects that support the buffer protocol.
    """
    if allow_offload and dumps_is_expensive(msg, kwargs.get("context")):
        return await offload(dumps, msg, **kwargs)
    return dumps(msg, **kwargs)


async def from_frames(
    frames: list[Any],
    deserialize: bool = True,
    deserializers: Sequence[str] | None = None,
    allow_offload: bool = True,
    policy: LoadPolicy | None = None,
) -> Any:
    """Deserialize a message, in a thread if that is expensive.

    Parameters
    ----------
    frames
        The frames that `to_frames` returned.
    deserialize
        Whether wrapped values are deserialized; if false they are left as
        :class:`~distributed.protocol.Serialized`.
    deserializers, policy
        See :func:`distributed.protocol.loads`, which also documents the errors.
    allow_offload
        Whether a thread may be used.
    """
    if allow_offload and deserialize and loads_is_expensive(frames):
        return await offload(loads, frames, deserialize, deserializers, policy)
    return loads(frames, deserialize, deserializers, policy)


def dumps_is_expensive(msg: Any, context: Mapping[str, Any] | None = None) -> bool:
    """Return whether to serialize *msg* in a thread.

    Parameters
    ----------
    msg
        The message.
    context
        The handshake options of the comm, which name the compression.
    """
    kind = type(msg)
    if kind in _CHEAP_TYPES:
        return False
    if kind is dict and len(msg) <= _EXAMINED and _CHEAP_TYPES.issuperset(map(type, msg.values())):
        return False
    threshold = _offload_threshold()
    if not threshold:
        return False
    if kind is dict:
        values = msg.values()
    elif kind is list or kind is tuple:
        values = chain.from_iterable(v.values() if type(v) is dict else (v,) for v in msg)
    else:
        values = (msg,)
    examined = [v for v in islice(values, _EXAMINED) if type(v) not in _CHEAP_TYPES]
    size = len(msg) * _BYTES_PER_OBJECT if kind in _CONTAINER_TYPES else 0
    if size + sum(map(_size, examined)) <= threshold:
        # As for nearly all messages.
        return False
    if not (context and context.get("compression")):
        examined = [value for value in examined if not _is_sent_as_it_is(value)]
    return size + sum(map(_size, examined)) > threshold


def _size(value: Any) -> int:
    """Return the approximate number of bytes that *value* is serialized to, or 0 if unknown."""
    kind = type(value)
    if kind is Serialize or kind is ToPickle:
        value = value.data
        kind = type(value)
    if kind in _CONTAINER_TYPES:
        return len(value) * _BYTES_PER_OBJECT
    size = 0
    try:
        # Ask the type: a proxy has any attribute, and may ask another process for its value.
        if hasattr(kind, "nbytes"):
            size = value.nbytes
        elif kind is Serialized or kind is Pickled:
            size = sum(map(nbytes, value.frames))
        elif kind is bytes or kind is bytearray:
            size = len(value)
        elif hasattr(kind, "shape"):
            # Not `nbytes`: a data frame would look at each of its objects to compute it.
            size = math.prod(value.shape) * _BYTES_PER_OBJECT
    except Exception:  # noqa: BLE001 - an estimate must not fail a write
        return 0
    return size if isinstance(size, int) else 0


def _is_sent_as_it_is(value: Any) -> bool:
    """Return whether the bytes of *value* become frames without being copied."""
    kind = type(value)
    if kind is Serialized or kind is Pickled:
        return True
    if kind is Serialize or kind is ToPickle:
        value = value.data
    try:
        view = memoryview(value)
    except (TypeError, ValueError, BufferError):
        return False
    return view.contiguous and "O" not in view.format


def loads_is_expensive(frames: Sequence[Any]) -> bool:
    """Return whether to deserialize *frames* in a thread.

    Parameters
    ----------
    frames
        The frames of a message.
    """
    total = len(frames)
    if total == 1:
        # One call of msgpack, which does not release the GIL.
        return False
    threshold = _offload_threshold()
    if not threshold or sum(map(len, frames)) * _INFLATION <= threshold:
        return False
    work = len(frames[0])
    position = 1
    for _ in range(_EXAMINED):
        if position >= total or work > threshold:
            break
        try:
            header = msgpack.unpackb(frames[position], use_list=False, **msgpack_opts)
            stop = position + 1 + header["num-sub-frames"]
            work += len(frames[position]) + _work(header, frames[position + 1 : stop])
        except Exception:  # noqa: BLE001 - loads() raises the error of an invalid message
            return False
        position = max(stop, position + 1)
    # The values that were not examined count like those that were.
    return work * total > threshold * position


def _work(header: dict[str, Any], pieces: Sequence[Any]) -> int:
    """Return the number of bytes that are parsed or inflated for the value in *pieces*."""
    codecs = header.get("compression") or ()
    inflated = sum(nbytes(p) for codec, p in zip(codecs, pieces, strict=False) if codec)
    sizes = map(nbytes, pieces)
    counts = header.get("split-num-sub-frames") or (1,) * len(pieces)
    return inflated * _INFLATION + _parsed(header, [sum(islice(sizes, n)) for n in counts])


def _parsed(header: dict[str, Any], sizes: Sequence[int]) -> int:
    """Return the number of bytes that are parsed of an object whose frames have *sizes*."""
    if header.get("is-collection"):
        left = iter(sizes)
        members = zip(header["sub-headers"], header["frame-lengths"], strict=False)
        return sum(_parsed(sub, list(islice(left, count))) for sub, count in members)
    sub = header.get("sub-header")
    array_of_objects = isinstance(sub, dict) and sub.get("pickle")
    return sizes[0] if sizes and (header.get("serializer") in _PARSED or array_of_objects) else 0
