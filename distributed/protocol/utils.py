"""Buffers: split them, pack them together, and join them without a copy.

These functions see only memory and lengths.  Large frames are split before they are compressed and
joined after they were inflated (:mod:`distributed.protocol.pieces`), and stored values are packed.
The length prelude of a stream is in :mod:`distributed.protocol.framing`.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, TypeAlias

from distributed.base import config
from distributed.base.buffers import address_of, ensure_memoryview, nbytes
from distributed.protocol.allocation import allocate
from distributed.protocol.exceptions import FramingError

__all__ = [
    "BIG_BYTES_SHARD_SIZE",
    "Buffer",
    "default_shard_size",
    "frame_split_size",
    "host_array",
    "host_array_from_buffers",
    "join_frames",
    "merge_memoryviews",
    "msgpack_opts",
    "pack_frames",
    "pack_frames_prelude",
    "unpack_frames",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

BIG_BYTES_SHARD_SIZE: int
"""Size (bytes) above which a frame is split, unless the caller gives another.

The value of ``distributed.comm.shard`` when it was first needed."""

msgpack_opts: Final[dict[str, Any]] = {"strict_map_key": False, "raw": False}
"""Options for reading msgpack: keys of any type, and strings as str."""

_U64: Final = struct.Struct("<Q")

#: Number of bytes that are copied at a time.  A copy holds the GIL, so that of a large frame in one
#: step in a thread would stop the event loop.
_COPIED_AT_ONCE: Final = 2**20


@functools.cache
def default_shard_size() -> int:
    """Return `BIG_BYTES_SHARD_SIZE`."""
    size: int = config.read("distributed.comm.shard")
    return size


def __getattr__(name: str) -> Any:
    if name == "BIG_BYTES_SHARD_SIZE":
        return default_shard_size()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def frame_split_size(frame: Any, n: int | None = None) -> list[memoryview]:
    """Split a frame into views of at most *n* bytes each, without a copy.

    Each piece holds a whole number of elements of the buffer's format.  If one element is larger
    than *n*, each piece holds one.

    Parameters
    ----------
    frame
        Any contiguous buffer.
    n
        Maximum size (bytes) of a piece; ``distributed.comm.shard`` by default.

    Returns
    -------
    list of memoryview
        Views of unsigned bytes; one (empty) view for an empty frame.

    Raises
    ------
    ValueError
        If *n* is not positive.

    Examples
    --------
    >>> [bytes(piece) for piece in frame_split_size(b"12345", 2)]
    [b'12', b'34', b'5']
    """
    if n is None:
        n = default_shard_size()
    if n < 1:
        raise ValueError(f"frames cannot be split into pieces of {n} bytes")
    source = frame if type(frame) is memoryview else memoryview(frame)
    view = ensure_memoryview(source)
    size = len(view)
    if size <= n:
        return [view]
    step = max(n // source.itemsize, 1) * source.itemsize
    return [view[start : start + step] for start in range(0, size, step)]


def host_array(n: int) -> memoryview:
    """Allocate *n* bytes of writable memory; the content is undefined.

    Examples
    --------
    >>> host_array(5).nbytes
    5
    """
    return allocate(n)


def host_array_from_buffers(buffers: Iterable[Buffer]) -> memoryview:
    """Copy *buffers*, one after the other, into new writable memory.

    Examples
    --------
    >>> bytes(host_array_from_buffers([b"a", b"bc"]))
    b'abc'
    """
    views = [ensure_memoryview(buffer) for buffer in buffers]
    joined = host_array(sum(map(len, views)))
    start = 0
    for view in views:
        size = len(view)
        for done in range(0, size, _COPIED_AT_ONCE):
            part = view[done : done + _COPIED_AT_ONCE]
            joined[start + done : start + done + len(part)] = part
        start += size
    return joined


def merge_memoryviews(mvs: Sequence[memoryview]) -> memoryview:
    """Merge adjacent views of one buffer into one view, without a copy.

    Parameters
    ----------
    mvs
        Contiguous one-dimensional views of one object, with one format; each starts where the
        previous one ends.  Empty views are ignored.

    Returns
    -------
    memoryview
        A view with the format of *mvs*; read-only if the buffer or any of *mvs* is.

    Raises
    ------
    TypeError
        If any of *mvs* is not a memoryview.
    ValueError
        If they are not adjacent, belong to several buffers, or have several dimensions or formats.

    Examples
    --------
    >>> whole = memoryview(bytearray(b"0123456789"))
    >>> bytes(merge_memoryviews([whole[:3], whole[3:6]]))
    b'012345'
    """
    for i, view in enumerate(mvs):
        if type(view) is not memoryview:
            raise TypeError(f"{i}: expected memoryview; got {type(view)}")
        if not view.contiguous:
            raise ValueError(f"{i}: memoryview non-contiguous")
    views = [view for view in mvs if view.nbytes]
    if not views:
        return memoryview(bytearray())
    if len(views) == 1:
        return views[0]
    first = views[0]
    owner = first.obj
    expected = begin = address_of(first)
    for i, view in enumerate(views):
        if view.ndim != 1:
            raise ValueError(f"{i}: memoryview has {view.ndim} dimensions, not 1")
        if view.obj is not owner:
            raise ValueError(
                f"{i}: memoryview has different buffer than memoryview 0: "
                f"another {type(view.obj).__name__}"
            )
        if view.format != first.format:
            raise ValueError(f"{i}: inconsistent format: {view.format} vs {first.format}")
        address = address_of(view)
        if address != expected:
            raise ValueError(
                f"memoryview {i} does not start where the previous ends. "
                f"Expected {expected:x}, starts {address - expected} byte(s) away."
            )
        expected += view.nbytes
    whole = memoryview(owner)
    if not whole.contiguous:
        raise ValueError("the buffer of the memoryviews is not contiguous")
    whole = ensure_memoryview(whole)
    offset = begin - address_of(whole)
    merged = whole[offset : offset + expected - begin]
    if first.format != "B":
        merged = merged.cast(first.format)  # type: ignore[call-overload]
    return merged.toreadonly() if any(view.readonly for view in views) else merged


def join_frames(frames: Sequence[Buffer]) -> Buffer:
    """Join frames into one, without a copy if they are adjacent in memory.

    Examples
    --------
    >>> bytes(join_frames([b"a", b"bc"]))
    b'abc'
    """
    if len(frames) == 1:
        return frames[0]
    try:
        return merge_memoryviews(frames)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return host_array_from_buffers(frames)


def pack_frames_prelude(frames: Collection[Buffer]) -> bytes:
    """Pack the number and the lengths of *frames*, as unsigned 64-bit little-endian integers.

    Examples
    --------
    >>> pack_frames_prelude([b"ab"]).hex(" ", 8)
    '0100000000000000 0200000000000000'
    """
    return struct.pack(f"<{1 + len(frames)}Q", len(frames), *map(nbytes, frames))


def pack_frames(frames: Collection[Buffer]) -> bytes:
    """Pack *frames* into one bytes object, for `unpack_frames`.

    Examples
    --------
    >>> [bytes(frame) for frame in unpack_frames(pack_frames([b"ab", b"c"]))]
    [b'ab', b'c']
    """
    return b"".join([pack_frames_prelude(frames), *map(ensure_memoryview, frames)])


def unpack_frames(b: Buffer, *, remainder: bool = False, partial: bool = False) -> Any:
    """Return the frames that `pack_frames` packed, as views of *b*.

    Parameters
    ----------
    b
        The packed bytes.
    remainder
        Whether to append the bytes after the last frame as one more view, also if there are none.
    partial
        Whether the last frames may be missing.  Then the result is a tuple: the complete frames,
        and the lengths (bytes) of the others.

    Returns
    -------
    list of memoryview, or with *partial* a tuple of that and a list of int

    Raises
    ------
    FramingError
        If *b* is shorter than its prelude states.
    """
    view = ensure_memoryview(b)
    if len(view) < _U64.size:
        raise FramingError(f"{len(view)} packed bytes are too few for the number of frames")
    (count,) = _U64.unpack_from(view)
    start = _U64.size * (1 + count)
    if start > len(view):
        raise FramingError(
            f"{len(view)} packed bytes are too few for the lengths of {count} frames"
        )
    lengths = struct.unpack_from(f"<{count}Q", view, _U64.size)
    frames: list[memoryview] = []
    for length in lengths:
        stop = start + length
        if stop > len(view):
            break
        frames.append(view[start:stop])
        start = stop
    missing = list(lengths[len(frames) :])
    if missing and not partial:
        raise FramingError(
            f"frame {len(frames)} of {count} should have {missing[0]} bytes, "
            f"but only {len(view) - start} are left"
        )
    if remainder:
        frames.append(view[start:])
    return (frames, missing) if partial else frames
