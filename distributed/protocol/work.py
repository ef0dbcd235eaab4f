"""How much work it is to make a message of frames, from a glance at the headers.

What counts is work, not size: unpickling, inflating, and a header for each of many elements.  An
array that becomes a view of the memory that it was received into costs nothing, however large.
Bytes that are only copied do not count either: that takes little longer than it took to receive
them, and no other thread could run meanwhile.  :mod:`distributed.comm.utils` asks here whether a
thread is worth it; nothing is deserialized, imported or believed for the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from distributed.base.buffers import nbytes
from distributed.protocol.header_cache import cached_reader
from distributed.protocol.utils import msgpack_opts

__all__ = ["loads_work"]

# Headers that are looked at.  What follows them is taken for as much work as is likely.
_HEADERS_LOOKED_AT: Final = 256

# Deserializing one value takes about as long as copying so many bytes, inflating a byte as long as
# copying so many.
_BYTES_PER_VALUE: Final = 16 * 1024
_BYTES_PER_COMPRESSED_BYTE: Final = 10

# Families whose first frame is parsed; the others of its frames are mostly used as they are.
_PARSED: Final = frozenset(("pickle", "msgpack"))


def loads_work(frames: Sequence[Any], enough: int) -> int:
    """The work of deserializing a message, as bytes that could be copied in the same time.

    Parameters
    ----------
    frames
        The frames of a message.
    enough
        Where to stop counting.

    Examples
    --------
    >>> from distributed.protocol import Serialize, dumps
    >>> loads_work(dumps(Serialize(bytes(10_000_000))), enough=1_000_000)
    16384
    >>> loads_work(dumps(Serialize("pickled" * 1_000_000)), enough=1_000_000) > 1_000_000
    True
    """
    work = 0
    position = 1
    total = len(frames)
    for _ in range(_HEADERS_LOOKED_AT):
        if position >= total or work > enough:
            return work
        if cached_reader(frames[position]) is not None:
            work += _BYTES_PER_VALUE
            position += 2
            continue
        try:
            header = msgpack.unpackb(frames[position], use_list=False, **msgpack_opts)
            stop = position + 1 + header["num-sub-frames"]
            work += _value_work(header, frames[position + 1 : stop], enough)
        except Exception:  # noqa: BLE001 - loads() is to tell what is wrong with the message
            return work
        if stop <= position:
            return work
        position = stop
    return work + (total - position) * _BYTES_PER_VALUE // 2


def _value_work(header: dict[str, Any], frames: Sequence[Any], enough: int) -> int:
    """The work of one value of the message, whose pieces are *frames*."""
    work = _BYTES_PER_VALUE
    for name, frame in zip(header.get("compression") or (), frames, strict=False):
        if name:
            work += _BYTES_PER_COMPRESSED_BYTE * nbytes(frame)
    if "pickled-obj" in header:
        return work + len(header["pickled-obj"])
    if work > enough:
        return work
    counts = header.get("split-num-sub-frames") or (1,) * len(frames)
    sizes = []
    piece = 0
    for count in counts:
        sizes.append(sum(map(nbytes, frames[piece : piece + count])))
        piece += count
    return work + _object_work(header, sizes, enough)


def _object_work(header: dict[str, Any], sizes: Sequence[int], enough: int) -> int:
    """The work of an object whose frames have *sizes*, and of what is in it."""
    work = 0
    # Collections and the sizes of their frames; a list, as they may be nested deeply.
    pending: list[tuple[dict[str, Any], Sequence[int]]] = [(header, sizes)]
    while pending and work <= enough:
        header, sizes = pending.pop()
        if header.get("is-collection"):
            work += len(header["sub-headers"]) * _BYTES_PER_VALUE
            start = 0
            for sub_header, length in zip(
                header["sub-headers"], header["frame-lengths"], strict=False
            ):
                pending.append((sub_header, sizes[start : start + length]))
                start += length
        elif sizes and _is_parsed(header):
            work += sizes[0]
    return work


def _is_parsed(header: dict[str, Any]) -> bool:
    if header.get("serializer") in _PARSED:
        return True
    sub_header = header.get("sub-header")
    # An array of objects.
    return isinstance(sub_header, dict) and bool(sub_header.get("pickle"))
