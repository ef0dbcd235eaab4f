"""Conversion between messages and frames, in the event loop or in a thread.

A conversion runs in the offload thread if it has to parse, pickle, compress, inflate or copy more
than `OFFLOAD_THRESHOLD` bytes, so that it does not block the other comms of the event loop.  An
array that becomes a frame as it is, or a view of one, does not count, however large it is.

There are two threads.  The first one reads each message for a time in proportion to its size.  If
that does not suffice, because a few bytes inflate to many, or stand for many small objects, the
second one reads the rest.  Otherwise a few such messages would delay all others for minutes.  The
frames of a codec that does not state their size when inflated (zlib) count with the worst ratio.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

from distributed.base import config
from distributed.base.buffers import nbytes, size_of
from distributed.base.event_loop import offload, offload_expensive
from distributed.protocol.core import UnfinishedMessageError, dumps, loads
from distributed.protocol.limits import LoadPolicy
from distributed.protocol.objects import DEFAULT_SERIALIZERS
from distributed.protocol.pieces import header_containers
from distributed.protocol.together import is_pickled_together
from distributed.protocol.unpacking import count_containers, unpack
from distributed.protocol.wrappers import Serialize, ToPickle

__all__ = [
    "LARGE_BYTES",
    "LARGE_HEAD",
    "OFFLOAD_THRESHOLD",
    "ExpensiveMessageError",
    "from_frames",
    "loads_is_expensive",
    "pack_bytes",
    "read_in_thread",
    "reading_budget",
    "to_frames",
    "weigh",
]

#: Minimum number of bytes to convert in a thread; None or 0 for never.  The value of
#: ``distributed.comm.offload``, which is read at the first use; assign to replace it.
OFFLOAD_THRESHOLD: int | None

#: Maximum number of values in containers that are examined.
_EXAMINED: Final = 4096
#: Maximum number of headers that are examined, which takes longer.
_EXAMINED_HEADERS: Final = 256
#: Size (bytes) up to which copying a value takes less time than asking whether it is copied.
_SMALL: Final = 1024
#: Estimated number of bytes that one object in a container is pickled to.
_BYTES_PER_OBJECT: Final = 64
#: Number of elements of a container up to which serializing them one by one is fast.
_FEW_ELEMENTS: Final = 256
#: Number of bytes that are copied in the time in which one element is serialized on its own.
_BYTES_PER_ELEMENT: Final = 8192
#: Number of bytes that are copied in the time in which one byte is compressed, by codec, and for
#: lz4, snappy and registered codecs.
_BYTES_PER_COMPRESSED_BYTE: Final = {"zlib": 256, "zstd": 32}
_BYTES_PER_BYTE_OF_OTHER_CODECS: Final = 16
#: Number of bytes that are copied in the time in which one byte is inflated.
_BYTES_PER_INFLATED_BYTE: Final = 8
#: Number of bytes that are copied in the time in which one map or array is read.
_BYTES_PER_CONTAINER: Final = 512
#: Maximum number of bytes that the first thread inflates for each byte of a message.
_PROPORTION: Final = 10
#: Number of bytes that are inflated in the time in which one map or array is read.
_INFLATED_PER_CONTAINER: Final = _BYTES_PER_CONTAINER // _BYTES_PER_INFLATED_BYTE
#: Minimum size (bytes) of a head whose maps and arrays are counted.
LARGE_HEAD: Final = 2**16
#: Minimum size of bytes that are copied in a thread if they are a whole message, such as an answer.
LARGE_BYTES: Final = 10 * 2**20
#: Maximum number of frames of a message that is read in the event loop.
_MANY_FRAMES: Final = 4096

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
        threshold = config.get_bytes("distributed.comm.offload")
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
    if not allow_offload:
        return dumps(msg, **kwargs)
    try:
        return dumps(msg, weigh=weigh, **kwargs)
    except ExpensiveMessageError:
        pass
    return await offload(dumps, msg, **kwargs)


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
    if not allow_offload:
        return loads(frames, deserialize, deserializers, policy)
    budget = reading_budget(frames, deserialize)
    read: Callable[..., Any] = functools.partial(loads, frames, deserialize, deserializers, policy)
    if budget != 0:
        try:
            return read(budget)
        except UnfinishedMessageError as exc:
            read = exc.finish
    return await read_in_thread(read, frames)


async def read_in_thread(read: Callable[..., Any], frames: Sequence[Any]) -> Any:
    """Deserialize a message in the first thread, or in the second one if that takes too long.

    Parameters
    ----------
    read
        A function that returns the message.  Its parameter is the maximum number of bytes to
        inflate, as that of `UnfinishedMessageError.finish`.
    frames
        All frames of the message.
    """
    try:
        return await offload(_read_in_proportion, read, frames)
    except UnfinishedMessageError as exc:
        read = exc.finish
    return await offload_expensive(read)


def _read_in_proportion(read: Callable[..., Any], frames: Sequence[Any]) -> Any:
    budget = _PROPORTION * sum(map(nbytes, frames))
    head = frames[0]
    if len(head) >= LARGE_HEAD:
        budget -= count_containers(head) * _INFLATED_PER_CONTAINER
        if budget < 0:
            raise UnfinishedMessageError(read)
    return read(budget)


async def pack_bytes(data: bytes) -> bytes:
    """Return the frame of a message that is *data*, made in a thread that releases the GIL.

    The frame is that of `dumps`.  msgpack copies bytes several times, and holds the GIL meanwhile:
    for 1 GB, that takes seconds.
    """
    return await offload(_packed, data) if _offload_threshold() else _packed(data)


def _packed(data: bytes) -> bytes:
    if not 2**16 <= len(data) < 2**32:
        # Few bytes, or the error of msgpack.
        packed: bytes = dumps(data)[0]
        return packed
    # The format "bin 32".
    return b"".join((b"\xc6" + len(data).to_bytes(4, "big"), data))


class ExpensiveMessageError(Exception):
    """A message whose serialization takes so long that a thread is to do it."""


def weigh(value: Any, weight: int, codec: Any) -> int:
    """Add to *weight* the number of bytes that are copied, pickled or compressed for *value*.

    This is an argument of :func:`distributed.protocol.dumps`, which calls it for the values that
    take more than one call of msgpack, wherever they are in the message, and for each frame that
    is compressed.

    Parameters
    ----------
    value
        The value, without wrappers, or a frame.
    weight
        The weight of the values and frames before it.
    codec
        The name of the compression, for a frame.

    Raises
    ------
    ExpensiveMessageError
        If the sum is larger than `OFFLOAD_THRESHOLD`.
    """
    kind = type(value)
    if codec:
        factor = _BYTES_PER_COMPRESSED_BYTE.get(codec, _BYTES_PER_BYTE_OF_OTHER_CODECS)
        weight += nbytes(value) * factor
    elif kind is str:
        # Its pickle is a copy, which is joined from copies of its parts.
        weight += len(value)
    elif kind in _CHEAP_TYPES:
        return weight
    elif kind in _CONTAINER_TYPES:
        weight += _bytes_in_container(value)
        if len(value) > _FEW_ELEMENTS and not is_pickled_together(value, DEFAULT_SERIALIZERS):
            weight += len(value) * _BYTES_PER_ELEMENT
    else:
        weight += _bytes_to_copy(value)
    threshold = _offload_threshold()
    if threshold and weight > threshold:
        raise ExpensiveMessageError
    return weight


def _bytes_in_container(container: Any) -> int:
    """Return the approximate number of bytes of the elements of a container, at any depth."""
    work = 0
    left = _EXAMINED
    pending = [container]
    # The containers found in a container are appended, so their elements follow later.
    for value in pending:
        kind = type(value)
        if kind is Serialize or kind is ToPickle:
            value = value.data
            kind = type(value)
        if kind in _CONTAINER_TYPES:
            work += len(value) * _BYTES_PER_OBJECT
            if left > 0:
                elements = value.values() if kind is dict else value
                pending += [v for v in islice(elements, left) if type(v) not in _CHEAP_TYPES]
                left -= len(value)
        elif kind not in _CHEAP_TYPES:
            work += _bytes_to_copy(value)
    return work


def _bytes_to_copy(value: Any) -> int:
    """Return the approximate number of bytes that are copied for one object."""
    kind = type(value)
    try:
        # Ask the type: a proxy has any attribute, and may ask another process for its value.
        if hasattr(kind, "nbytes"):
            size = value.nbytes
        elif kind is bytes or kind is bytearray:
            return 0
        elif hasattr(kind, "shape"):
            # Not `nbytes`: a data frame would look at each of its objects to compute it.
            size = math.prod(value.shape) * _BYTES_PER_OBJECT
        else:
            size = size_of(value)
        size = operator.index(size)
        return 0 if size > _SMALL and _is_sent_as_it_is(value) else size
    except Exception:  # noqa: BLE001 - an estimate must not fail a write
        return 0


def _is_sent_as_it_is(value: Any) -> bool:
    """Return whether the bytes of *value* become frames without being copied."""
    try:
        view = memoryview(value)
    except (TypeError, ValueError, BufferError):
        return False
    return view.contiguous and "O" not in view.format


def reading_budget(frames: Sequence[Any], deserialize: bool = True) -> int | None:
    """Return the maximum number of bytes to inflate for *frames* in the event loop.

    The result is an argument of :func:`distributed.protocol.loads`.

    Parameters
    ----------
    frames
        The frames of a message.
    deserialize
        Whether wrapped values are deserialized.

    Returns
    -------
    int or None
        0 to read the message in a thread, None to read it in the event loop in any case.
    """
    threshold = _offload_threshold()
    if not threshold:
        return None
    total = len(frames)
    head = frames[0]
    work = len(head)
    if work >= LARGE_HEAD:
        work += count_containers(head) * _BYTES_PER_CONTAINER
    if work > threshold:
        return 0
    if deserialize and (
        total > _MANY_FRAMES
        or (sum(map(len, frames)) > threshold and _parses_much(frames, work, threshold))
    ):
        return 0
    # Without deserializing, the receiver reads only the values that are always pickled.
    return threshold // _BYTES_PER_INFLATED_BYTE if deserialize else threshold


def loads_is_expensive(frames: Sequence[Any]) -> bool:
    """Return whether to deserialize *frames* in a thread, without a look at their sizes inflated.

    Parameters
    ----------
    frames
        The frames of a message.
    """
    return reading_budget(frames) == 0


def _parses_much(frames: Sequence[Any], work: int, threshold: int) -> bool:
    """Return whether more than *threshold* bytes are parsed, *work* of them for the head."""
    total = len(frames)
    position = 1
    for _ in range(_EXAMINED_HEADERS):
        if position >= total or work > threshold:
            break
        try:
            packed = frames[position]
            work += header_containers(packed) * _BYTES_PER_CONTAINER
            if work > threshold:
                # Even this header takes long to read.
                return True
            header = unpack(packed)
            stop = position + 1 + header["num-sub-frames"]
            sizes = map(nbytes, frames[position + 1 : stop])
            counts = header.get("split-num-sub-frames") or (1,) * header["num-sub-frames"]
            work += len(packed) + _parsed(header, [sum(islice(sizes, n)) for n in counts])
        except Exception:  # noqa: BLE001 - loads() raises the error of an invalid message
            return False
        position = max(stop, position + 1)
    # The values that were not examined count like those that were.
    return work * total > threshold * position


def _parsed(header: dict[str, Any], sizes: Sequence[int]) -> int:
    """Return the number of bytes that are parsed of an object whose frames have *sizes*."""
    if header.get("is-collection"):
        left = iter(sizes)
        members = zip(header["sub-headers"], header["frame-lengths"], strict=False)
        return sum(_parsed(sub, list(islice(left, count))) for sub, count in members)
    sub = header.get("sub-header")
    array_of_objects = isinstance(sub, dict) and sub.get("pickle")
    return sizes[0] if sizes and (header.get("serializer") in _PARSED or array_of_objects) else 0
