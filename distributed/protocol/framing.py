"""The layout of a message's frames on a byte stream, without I/O.

A sender calls :func:`pack_message`; a receiver uses a :class:`MessageDecoder`, which checks the
length prelude and decides into which memory the bytes are read.  What the frames contain is the
business of :mod:`distributed.protocol.core`; :mod:`distributed.comm.message_stream` does the I/O.

On the wire a message is, all integers being unsigned 64-bit little-endian::

    N | number of frames | length of each frame | frames...
        |<------------- N bytes ------------->| the other frames, unprefixed

``N`` counts the prelude (without ``N`` itself) and as many leading frames as the sender chose.  A
receiver needs it only for a check: the frames always follow one another without a gap.

Theory of operation of :class:`MessageDecoder`
----------------------------------------------
As with :class:`asyncio.BufferedProtocol`, a reader calls :meth:`~MessageDecoder.get_buffer`, reads
some bytes into that memory, and passes their number to :meth:`~MessageDecoder.buffer_updated`,
which returns the message if it is complete::

               enough for          enough for         every frame
               N and count         all lengths        is filled
    HEAD ------------------> TABLE ------------> BODY ------------> message

The beginning of a message is read into a scratch buffer of 16 KiB, so that a small message (or
several) costs one read.  The rest of a larger message is read straight into the memory that its
frames will keep.  A decoder holds a scratch buffer only while the buffer contains unparsed bytes
or is being filled; idle connections hold none.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from distributed.base.traffic import UNCOUNTED
from distributed.protocol.allocation import allocate
from distributed.protocol.exceptions import FramingError

#: Anything that exposes its bytes.
Buffer = bytes | bytearray | memoryview
#: The frames of a message that has arrived.
Frames = list[bytearray | memoryview]
#: The lengths of frames.
Lengths = Sequence[int] | memoryview

_HEAD = struct.Struct("<QQ")
_SINGLE = struct.Struct("<QQQ")

#: Size of a scratch buffer in bytes.
READ_SIZE = 16 * 1024
#: Maximum number of unused scratch buffers that are kept.
_MAX_SPARE = 16
#: Maximum size in bytes of a message that is copied into one buffer for sending.
JOIN_SIZE = 48 * 1024
#: Maximum size in bytes of a frame that is copied together with its neighbours on sending, and
#: is received together with them.
SMALL_FRAME = 32 * 1024
#: Maximum size in bytes of a buffer that several small frames are received into.
SHARED_BUFFER = 256 * 1024
#: Maximum number of such frames, so that other connections get a turn between the buffers.
_MAX_SHARING = 8192
#: ``N`` counts the first writable frame only if the frames before it have at most 2048 bytes, or at
#: most a twentieth of its size: the original's receiver keeps all that ``N`` counts in one block.
_HEAD_MAX, _HEAD_SHARE = 2048, 20

#: All empty frames: one object per frame would take 64 times the memory of its length.
_EMPTY = memoryview(bytearray())

#: Unused scratch buffers.
_spare: list[bytearray] = []


class Limits(NamedTuple):
    """The limits of a receiver; ``None`` stands for no limit.

    Parameters
    ----------
    max_message_size
        Maximum sum of the lengths of a message's frames, in bytes.
    max_frames
        Maximum number of frames of a message.
    size_key
        Configuration key of the maximum size, for errors.
    frames_key
        Configuration key of the maximum number of frames, for errors; None if it cannot be
        configured, as in a handshake.
    """

    max_message_size: int | None = None
    max_frames: int | None = 2**20
    size_key: str = "distributed.comm.max-message-size"
    frames_key: str | None = "distributed.comm.max-frames"

    def check_count(self, count: int) -> None:
        """Raise FramingError if a message must not have *count* frames."""
        if not count:
            raise FramingError("a message of no frames")
        if self.max_frames is None or count <= self.max_frames:
            return
        if self.frames_key is None:
            raise FramingError(
                f"a prelude of {count:,} frames, where exactly {self.max_frames:,} is expected; "
                "does the peer speak another protocol?"
            )
        raise FramingError(
            f"a message of {count:,} frames, where {self.frames_key!r} allows {self.max_frames:,}"
        )

    def check_size(self, nbytes: int) -> None:
        """Raise FramingError if a message must not have *nbytes* bytes."""
        if self.max_message_size is not None and nbytes > self.max_message_size:
            raise FramingError(
                f"a message of {nbytes:,} bytes, where {self.size_key!r} allows "
                f"{self.max_message_size:,}"
            )


def pack_message(frames: Sequence[Buffer], shard: int | None = None) -> tuple[list[Buffer], int]:
    """Lay out *frames* for a byte stream.

    Parameters
    ----------
    frames
        The frames of one message, each of them one-dimensional bytes.
    shard
        The size in bytes at which large frames were split.  A frame of exactly
        that size and the next one count as parts of one buffer.

    Returns
    -------
    (buffers, nbytes)
        The buffers to write, in order, and their total size in bytes.  Small
        frames are copied together; large ones are passed on without a copy.

    Examples
    --------
    >>> buffers, nbytes = pack_message([b"ab", b"c"])
    >>> struct.unpack("<QQQQ3s", b"".join(buffers))
    (27, 2, 2, 1, b'abc')
    >>> nbytes
    35
    """
    count = len(frames)
    if count == 1:
        frame = frames[0]
        size = len(frame)
        head = _SINGLE.pack(16 + size, 1, size)
        if size <= JOIN_SIZE:
            return [head + frame], 24 + size
        return [head, frame], 24 + size

    lengths = list(map(len, frames))
    body = sum(lengths)
    first = 8 + 8 * count + _leading_bytes(frames, lengths, shard)
    head = struct.pack(f"<{count + 2}Q", first, count, *lengths)
    if body <= JOIN_SIZE:
        return [b"".join([head, *frames])], len(head) + body

    buffers: list[Buffer] = []
    small: list[Buffer] = [head]
    for frame, length in zip(frames, lengths, strict=True):
        if length <= SMALL_FRAME:
            small.append(frame)
        else:
            if small:
                buffers.append(b"".join(small))
                small = []
            buffers.append(frame)
    if small:
        buffers.append(b"".join(small))
    return buffers, len(head) + body


def _leading_bytes(frames: Sequence[Buffer], lengths: list[int], shard: int | None) -> int:
    """Return the total size of the leading frames that ``N`` counts.

    The original's receiver gives a frame memory of its own only if ``N`` does not count it.  So
    ``N`` stops before the second writable frame (an array, for example).
    """
    total = 0
    buffers = 0
    continues = False
    for frame, length in zip(frames, lengths, strict=True):
        if not continues and type(frame) is not bytes and not memoryview(frame).readonly:
            buffers += 1
            if buffers > 1 or total > max(_HEAD_MAX, length // _HEAD_SHARE):
                return total
        continues = length == shard
        total += length
    return total


class MessageDecoder:
    """A parser that takes a byte stream apart into messages, each a list of frames.

    Parameters
    ----------
    limits
        The limits that messages have to keep.
    shard
        The size in bytes at which the peer splits large frames.  A frame of
        exactly that size gets memory contiguous with the next one's, so that
        both can be merged again without a copy.

    Notes
    -----
    After a :class:`~distributed.protocol.exceptions.FramingError` the rest of
    the stream cannot be parsed, and it must be closed.

    Examples
    --------
    >>> decoder = MessageDecoder()
    >>> data = b"".join(pack_message([b"ab", b"c"])[0])
    >>> memory = decoder.get_buffer()
    >>> memory[: len(data)] = data
    >>> [bytes(frame) for frame in decoder.buffer_updated(len(data))]
    [b'ab', b'c']
    >>> decoder.next_message() is None
    True
    """

    # Invariants: `_scratch` is None while `_table` or `_block` is set.  Otherwise it is set if it
    # has unparsed bytes or if `get_buffer` has returned it.  At most one of `_table` and `_frames`
    # is set; both are None between messages.
    __slots__ = (
        "_block",
        "_end",
        "_filled",
        "_first",
        "_frames",
        "_group",
        "_groups",
        "_scratch",
        "_start",
        "_table",
        "limits",
        "shard",
        "traffic",
    )

    def __init__(self, limits: Limits | None = None, shard: int | None = None):
        self.limits = Limits() if limits is None else limits
        self.shard = shard
        #: Counts the bytes that are received.
        self.traffic = UNCOUNTED
        # The scratch buffer; its bytes from `_start` to `_end` are not parsed yet.
        self._scratch: bytearray | None = None
        self._start = self._end = 0
        # Memory for a list of lengths that is larger than a scratch buffer, and `N` of its message.
        self._table: memoryview | None = None
        self._first = 0
        # The complete frames of the message, once its lengths are known.
        self._frames: Frames | None = None
        # The lengths of the next frames, and the memory that they share.
        self._group: Lengths = ()
        self._block: memoryview | None = None
        # The lengths of the frames after those, for which no memory is allocated yet.
        self._groups: Iterator[Lengths] = iter(())
        # Number of bytes of `_table` or `_block` that are filled.
        self._filled = 0

    @property
    def in_message(self) -> bool:
        """Whether a part of a message was received."""
        return self._start < self._end or self._table is not None or self._frames is not None

    @property
    def position(self) -> tuple[int, int, int, int]:
        """Numbers that change whenever bytes of a message are received."""
        frames = self._frames
        return self._start, self._end, self._filled, 0 if frames is None else len(frames)

    @property
    def pending(self) -> bytes:
        """At most 16 of the bytes that were received and not parsed.

        After an error, or an early end of the stream, they show which protocol the peer speaks.
        """
        if self._scratch is None:
            return b""
        return bytes(self._scratch[self._start : min(self._end, self._start + _HEAD.size)])

    def get_buffer(self) -> bytearray | memoryview:
        """Return the memory that the next bytes of the stream are to be read into.

        The caller may write to it until it calls :meth:`buffer_updated`, which it must do even if
        it read nothing.
        """
        scratch = self._scratch
        if scratch is not None:
            if self._start:
                rest = self._end - self._start
                scratch[:rest] = scratch[self._start : self._end]
                self._start, self._end = 0, rest
            return memoryview(scratch)[self._end :]
        if self._block is not None:
            return self._block[self._filled :]
        if self._table is not None:
            return self._table[self._filled :]
        try:
            scratch = _spare.pop()
        except IndexError:
            scratch = bytearray(READ_SIZE)
        self._scratch = scratch
        return scratch

    def next_message(self) -> Frames | None:
        """Return the next message of those that were received already, or None.

        Raises
        ------
        FramingError
            If the prelude contradicts itself or exceeds a limit.
        """
        return None if self._scratch is None else self.buffer_updated(0)

    def buffer_updated(self, nbytes: int) -> Frames | None:
        """Return the frames of the next message, or None if it is not complete.

        The frames are writable and belong to the caller.

        Parameters
        ----------
        nbytes
            Number of bytes that were read into the memory from :meth:`get_buffer`.

        Raises
        ------
        FramingError
            If the prelude contradicts itself or exceeds a limit.
        """
        self.traffic.bytes_received += nbytes
        scratch = self._scratch
        if scratch is None:
            self._filled += nbytes
            return self._end_table() if self._block is None else self._fill_frames()
        start = self._start
        end = self._end = self._end + nbytes
        if end - start >= _SINGLE.size:
            # A fast path for a complete message of one frame, the usual case.  `_begin_message`
            # handles all other messages and raises the errors.
            first, count, length = _SINGLE.unpack_from(scratch, start)
            start += _SINGLE.size
            stop = start + length
            limit = self.limits.max_message_size
            if (
                stop <= end
                and count == 1
                and first == 16 + length
                and (limit is None or length <= limit)
            ):
                frame = scratch[start:stop]
                self._start = stop
                if stop == end:
                    self._return_scratch()
                return [frame]
        frames = self._begin_message(scratch)
        if self._start == self._end:
            self._return_scratch()
        return frames

    def _begin_message(self, scratch: bytearray) -> Frames | None:
        """Parse the prelude in *scratch* and take the frames that were received with it."""
        available = self._end - self._start
        if available < _HEAD.size:
            return None
        first, count = _HEAD.unpack_from(scratch, self._start)
        self.limits.check_count(count)
        if first < 8 + 8 * count:
            raise FramingError(
                f"a message whose first {first:,} bytes cannot hold the lengths of its "
                f"{count:,} frames"
            )
        table_size = 8 * count
        table = self._start + _HEAD.size
        if available < _HEAD.size + table_size:
            if _HEAD.size + table_size > READ_SIZE:
                self._first = first
                self._start = table
                self._table = self._allocate(table_size)
            return None
        self._start = table + table_size
        return self._lay_out(first, struct.unpack_from(f"<{count}Q", scratch, table))

    def _end_table(self) -> Frames | None:
        """Parse the lengths in `_table` if it is full."""
        table = self._table
        if table is None or self._filled < len(table):
            return None
        self._table = None
        # A tuple of a million lengths would take more memory than the lengths did on the wire.
        lengths = table.cast("Q") if sys.byteorder == "little" else _unpack_lengths(table)
        return self._lay_out(self._first, lengths)

    def _lay_out(self, first: int, lengths: Lengths) -> Frames | None:
        """Take the frames from the scratch buffer and allocate memory for the others.

        Return the frames if all of them are complete.
        """
        count = len(lengths)
        total = sum(lengths)
        limit = self.limits.max_message_size
        if limit is not None and total > limit:
            self.limits.check_size(total)
        leading = first - 8 - 8 * count
        if not total and not leading:
            return [_EMPTY] * count
        if leading != total:
            for length in lengths:
                if leading <= 0:
                    break
                leading -= length
            if leading:
                raise FramingError(
                    f"a message whose first {first:,} bytes do not end where a frame ends"
                )

        start, end = self._start, self._end
        if total <= end - start:
            here, stop = count, start + total
        else:
            here, stop = 0, start
            for length in lengths:
                if stop + length > end or length > SMALL_FRAME or length == self.shard:
                    break
                stop += length
                here += 1
        frames: Frames = []
        if here:
            memory = bytearray() if self._scratch is None else self._scratch
            self._start = stop
            if self.shard in lengths[:here]:
                frames = _cut(memoryview(memory[start:stop]), lengths[:here])
            else:
                frames = _copy(memory, start, lengths[:here])
            if here == count:
                return frames
        self._frames = frames
        if here == count - 1:
            # The usual case of a message with an array.
            self._group = [lengths[here]]
            self._block = self._allocate(lengths[here])
        else:
            self._groups = _share_memory(lengths[here:], self.shard)
        return self._fill_frames()

    def _fill_frames(self) -> Frames | None:
        """Return the frames if all of them are complete."""
        frames, block = self._frames, self._block
        assert frames is not None
        while True:
            if block is not None:
                if self._filled < len(block):
                    return None
                if len(self._group) == 1:
                    frames.append(block)
                elif self.shard in self._group:
                    frames += _cut(block, self._group)
                else:
                    # `allocate` returns a view of a bytearray for this size.
                    frames += _copy(block.obj, 0, self._group)  # type: ignore[arg-type]
            group = next(self._groups, None)
            if group is None:
                self._frames = self._block = None
                return frames
            self._group = group
            self._block = block = self._allocate(sum(group))

    def _allocate(self, nbytes: int) -> memoryview:
        """Return new memory whose beginning is filled with the unparsed bytes."""
        memory = allocate(nbytes)
        start = self._start
        step = min(self._end - start, nbytes)
        if step:
            memory[:step] = memoryview(self._scratch)[start : start + step]  # type: ignore[arg-type]
            self._start = start + step
        self._filled = step
        return memory

    def _return_scratch(self) -> None:
        """Make the scratch buffer, which is empty, available to all decoders."""
        if len(_spare) < _MAX_SPARE:
            _spare.append(self._scratch)  # type: ignore[arg-type]
        self._scratch = None
        self._start = self._end = 0


def _unpack_lengths(table: memoryview) -> tuple[int, ...]:
    return struct.unpack(f"<{len(table) // 8}Q", table)


def _copy(memory: bytearray, start: int, lengths: Lengths) -> Frames:
    """Return copies of the frames of the given *lengths* from *start* on.

    An array that is kept does not keep its neighbours then.  Copying small frames costs about as
    much as making views of them.
    """
    frames: Frames = []
    for length in lengths:
        end = start + length
        frames.append(memory[start:end] if length else _EMPTY)
        start = end
    return frames


def _cut(memory: memoryview, lengths: Lengths) -> Frames:
    """Split *memory* into frames of the given *lengths*."""
    frames: Frames = []
    start = 0
    for length in lengths:
        end = start + length
        frames.append(memory[start:end] if length else _EMPTY)
        start = end
    return frames


def _share_memory(lengths: Lengths, shard: int | None) -> Iterator[Lengths]:
    """Group the *lengths* of frames that are received into one block of memory each.

    A large frame gets a block of its own, so that an array can be freed without its neighbours.
    The parts of a split buffer stay together, so that they merge without a copy.  Small frames are
    received into one block, so that a thousand of them do not cost a thousand reads; they are
    copied out of it, unless it has parts of a split buffer.
    """
    start = 0
    size = 0
    # Whether the frames from `start` on are small, and whether the next one is a part of the last.
    is_small = joins = False
    for i, length in enumerate(lengths):
        if joins:
            size += length
        elif length > SMALL_FRAME:
            if i:
                yield lengths[start:i]
            start, size, is_small = i, length, False
        elif not is_small or size + length > SHARED_BUFFER or i - start >= _MAX_SHARING:
            if i:
                yield lengths[start:i]
            start, size, is_small = i, length, True
        else:
            size += length
        joins = length == shard
    if lengths:
        yield lengths[start:]
