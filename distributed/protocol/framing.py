"""How a message's frames are laid out on a byte stream, without any I/O.

Everything that the length prelude means is in this module: how a sender lays
frames out, how a receiver takes them apart again, which lies a receiver catches
and where it puts the bytes.  It knows neither sockets nor event loops nor what
the frames hold; :mod:`distributed.comm.stream` moves bytes between it and a
stream, :mod:`distributed.protocol.core` makes the frames and understands them.

On the wire a message is, all integers being unsigned 64-bit little-endian::

    N | number of frames | length of each frame | frames...
        |<------------- N bytes ------------->| the other frames, unprefixed

``N`` counts the prelude (without ``N`` itself) and as many leading frames as
the sender chose; whatever it says, the frames follow one another without a gap.

Theory of operation of :class:`MessageDecoder`
----------------------------------------------
A reader asks :meth:`~MessageDecoder.wanted` which memory it should fill next,
fills some of it, reports that with :meth:`~MessageDecoder.received`, and asks
:meth:`~MessageDecoder.next_message` whether a message is complete::

               enough for          enough for         every frame
               N and count         all lengths        is filled
    HEAD ------------------> TABLE ------------> BODY ------------> message

The beginning of a message always lands in a small scratch buffer, so that a
small message (or several) costs one read.  What does not fit there is read
straight into the memory that its frames will keep.  Scratch buffers are lent
to whichever decoder has bytes that are not understood yet: connections that
are idle share the few that the busy ones need.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from distributed.protocol.exceptions import FramingError
from distributed.protocol.memory import allocate

#: Anything that exposes its bytes.
Buffer = bytes | bytearray | memoryview

_HEAD = struct.Struct("<QQ")
_SINGLE = struct.Struct("<QQQ")

#: Bytes that a scratch buffer holds.
READ_SIZE = 16 * 1024
#: So many scratch buffers that nobody uses are kept.
_SPARE = 16
#: Up to this many bytes a whole message is copied into one buffer to be sent.
JOIN_SIZE = 48 * 1024
#: Frames up to this size are copied together with their neighbours on sending,
#: and share memory with them on receiving.
SMALL_FRAME = 32 * 1024
#: Small neighbours share receive buffers of up to about this size.
SHARED_BUFFER = 256 * 1024
#: A sender puts the first writable frame inside ``N`` only where the bytes
#: before it are few, since the original's receiver keeps both in one block.
_HEAD_MAX, _HEAD_SHARE = 2048, 20

#: Scratch buffers that no decoder has.
_spare: list[memoryview] = []


class Limits(NamedTuple):
    """What a receiver accepts; ``None`` stands for no limit.

    Parameters
    ----------
    max_message_size
        Largest sum of the lengths of a message's frames, in bytes.
    max_frames
        Largest number of frames of one message.
    size_key
        Where the configuration has the largest size.
    frames_key
        Where it has the largest number of frames; None where that is not up to
        anybody, as in a handshake.
    """

    max_message_size: int | None = None
    max_frames: int | None = 10_000_000
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
                f"what begins like a message of {count:,} frames, instead of "
                f"{self.max_frames:,}; does the peer speak another protocol?"
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
        The size in bytes at which large frames were split.  A frame of just
        that size and the next one are taken for parts of one buffer.

    Returns
    -------
    (buffers, nbytes)
        What is to be written, in order, and how many bytes that is.  Small
        frames are copied together, large ones are passed on as they are.

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

    lengths = [len(frame) for frame in frames]
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
    """Return the size of the leading frames that ``N`` counts.

    The original gives every writable buffer (an array, say) but the first one
    memory of its own at the receiver by leaving it and all after it out of ``N``.
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
    """Takes a byte stream apart into messages, each a list of frames.

    Parameters
    ----------
    limits
        What to accept.
    shard
        The size in bytes at which the peer splits large frames.  A frame of
        just that size gets memory contiguous with the next one's, so that both
        can be merged again without a copy.

    Notes
    -----
    After a :class:`~distributed.protocol.exceptions.FramingError` the stream
    cannot be made sense of any more and must be closed.

    Examples
    --------
    >>> decoder = MessageDecoder()
    >>> data = b"".join(pack_message([b"ab", b"c"])[0])
    >>> memory = decoder.wanted()
    >>> memory[: len(data)] = data
    >>> decoder.received(len(data))
    >>> [bytes(frame) for frame in decoder.next_message()]
    [b'ab', b'c']
    >>> decoder.next_message() is None
    True
    """

    # State.  `_scratch[_start:_end]` arrived and was not understood yet; while
    # `_table` or `_block` is set, that is empty.  `_scratch` is None unless it is
    # to be filled or holds something.  `_table` is memory for a list of lengths
    # that does not fit a scratch buffer.  Once the lengths are known
    # `_frames` are the frames that are filled, `_groups` the lengths of those
    # whose memory is not even allocated, last one first, and `_block` the memory
    # for those in between, whose lengths are `_group`.  `_filled` counts the
    # bytes of `_table` or of `_block` that have arrived.
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
    )

    def __init__(self, limits: Limits | None = None, shard: int | None = None):
        self.limits = Limits() if limits is None else limits
        self.shard = shard
        self._scratch: memoryview | None = None
        self._start = self._end = 0
        self._first = 0
        self._table: memoryview | None = None
        self._frames: list[memoryview] | None = None
        self._groups: list[list[int]] = []
        self._group: list[int] = []
        self._block: memoryview | None = None
        self._filled = 0

    @property
    def in_message(self) -> bool:
        """Whether the stream stands in the middle of a message."""
        return self._start < self._end or self._table is not None or self._frames is not None

    @property
    def pending(self) -> bytes:
        """The first bytes that arrived and were not understood, at most 16.

        After an error, or where the stream has ended too early, they tell what
        kind of peer this is.
        """
        if self._scratch is None:
            return b""
        return bytes(self._scratch[self._start : min(self._end, self._start + _HEAD.size)])

    def wanted(self) -> memoryview:
        """Return the memory to fill next, from its beginning, with as much as there is.

        It is the caller's until the next call of :meth:`next_message`.
        """
        if self._block is not None:
            return self._block[self._filled :]
        if self._table is not None:
            return self._table[self._filled :]
        scratch = self._scratch
        if scratch is None:
            try:
                scratch = _spare.pop()
            except IndexError:
                scratch = allocate(READ_SIZE)
            self._scratch = scratch
        elif self._start:
            rest = self._end - self._start
            scratch[:rest] = bytes(scratch[self._start : self._end])
            self._start, self._end = 0, rest
        return scratch[self._end :] if self._end else scratch

    def received(self, nbytes: int) -> None:
        """Take note that the first *nbytes* of the wanted memory were filled."""
        if self._block is not None or self._table is not None:
            self._filled += nbytes
        else:
            self._end += nbytes

    def next_message(self) -> list[memoryview] | None:
        """Return the frames of the next message, or None if it is not complete.

        The frames are writable and belong to the caller.

        Raises
        ------
        FramingError
            If the prelude contradicts itself or exceeds a limit.
        """
        frames = self._take_small() if self._end - self._start >= _SINGLE.size else None
        if frames is None and (self._frames is not None or self._begin_message()):
            frames = self._fill_frames()
        if self._start == self._end:
            self._give_scratch_back()
        return frames

    def _take_small(self) -> list[memoryview] | None:
        """Return a message of one frame that has arrived as a whole, as most do.

        What is wrong with any other message is told by those who take it apart step by step.
        """
        scratch, start = self._scratch, self._start
        if self._frames is not None or scratch is None:
            return None
        first, count, length = _SINGLE.unpack_from(scratch, start)
        stop = start + _SINGLE.size + length
        limit = self.limits.max_message_size
        if count != 1 or first != 16 + length or stop > self._end:
            return None
        if limit is not None and length > limit:
            return None
        self._start = stop
        return [memoryview(bytearray(scratch[start + _SINGLE.size : stop]))]

    def _fill_frames(self) -> list[memoryview] | None:
        """Return the frames once each of them is filled, from the scratch buffer if it has more."""
        while self._block is not None or self._groups:
            if self._block is None:
                self._group = self._groups.pop()
                nbytes = sum(self._group)
                if nbytes <= self._end - self._start:
                    self._frames += _cut(self._copy_from_scratch(nbytes), self._group)  # type: ignore[operator]
                    continue
                self._block = allocate(nbytes)
                self._filled = 0
                self._take_from_scratch(self._block)
            if self._filled < len(self._block):
                return None
            self._frames += _cut(self._block, self._group)  # type: ignore[operator]
            self._block = None
        frames, self._frames = self._frames, None
        return frames

    def _take_from_scratch(self, memory: memoryview) -> None:
        step = min(self._end - self._start, len(memory))
        if step:
            memory[:step] = self._scratch[self._start : self._start + step]  # type: ignore[index]
        self._start += step
        self._filled = step

    def _copy_from_scratch(self, nbytes: int) -> memoryview:
        stop = self._start + nbytes
        copy = (
            bytearray() if self._scratch is None else bytearray(self._scratch[self._start : stop])
        )
        self._start = stop
        return memoryview(copy)

    def _give_scratch_back(self) -> None:
        """Lend the scratch buffer, in which nothing is, to others."""
        if self._scratch is not None:
            if len(_spare) < _SPARE:
                _spare.append(self._scratch)
            self._scratch = None
            self._start = self._end = 0

    def _begin_message(self) -> bool:
        """Read the prelude and lay out memory, if enough of it has arrived."""
        if self._table is None:
            scratch = self._scratch
            available = self._end - self._start
            if scratch is None or available < 16:
                return False
            first, count = _HEAD.unpack_from(scratch, self._start)
            self._check_head(first, count)
            table_size = 8 * count
            if available < 16 + table_size:
                if 16 + table_size <= READ_SIZE:
                    return False
                self._first = first
                self._table = allocate(table_size)
                self._start += 16
                self._take_from_scratch(self._table)
                return False
            lengths = struct.unpack_from(f"<{count}Q", scratch, self._start + 16)
            self._start += 16 + table_size
        else:
            if self._filled < len(self._table):
                return False
            first = self._first
            lengths = struct.unpack(f"<{len(self._table) // 8}Q", self._table)
            self._table = None
            self._filled = 0
        self._lay_out(first, lengths)
        return True

    def _check_head(self, first: int, count: int) -> None:
        self.limits.check_count(count)
        if first < 8 + 8 * count:
            raise FramingError(
                f"a message whose first {first:,} bytes cannot hold the lengths of its "
                f"{count:,} frames"
            )

    def _lay_out(self, first: int, lengths: tuple[int, ...]) -> None:
        total = sum(lengths)
        self.limits.check_size(total)
        leading = first - 8 - 8 * len(lengths)
        if leading != total:
            for length in lengths:
                if leading <= 0:
                    break
                leading -= length
            if leading:
                raise FramingError(
                    f"a message whose first {first:,} bytes do not end where a frame ends"
                )

        if total <= self._end - self._start:
            self._frames = _cut(self._copy_from_scratch(total), lengths)
            return

        self._frames = []
        self._groups = _share_memory(lengths, self.shard)
        self._groups.reverse()


def _cut(memory: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    if len(lengths) == 1:
        return [memory]
    frames = []
    start = 0
    for length in lengths:
        end = start + length
        frames.append(memory[start:end])
        start = end
    return frames


def _share_memory(lengths: Sequence[int], shard: int | None) -> list[list[int]]:
    """Group the *lengths* of frames that are received into one block of memory.

    Large frames get blocks of their own, so that an array can be freed without
    its neighbours; parts of one split buffer stay together, so that they merge
    without a copy; small frames share, so that a thousand of them do not cost a
    thousand reads.
    """
    groups: list[list[int]] = []
    small: list[int] | None = None
    small_size = 0
    joins = False
    for length in lengths:
        if joins:
            groups[-1].append(length)
        elif length > SMALL_FRAME:
            groups.append([length])
            small = None
        elif small is None or small_size + length > SHARED_BUFFER:
            small = [length]
            small_size = length
            groups.append(small)
        else:
            small.append(length)
            small_size += length
        joins = length == shard
    return groups
