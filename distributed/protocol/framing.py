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
fills some of it, and asks :meth:`~MessageDecoder.next_message`, which it tells how
much that was, whether a message is complete::

               enough for          enough for         every frame
               N and count         all lengths        is filled
    HEAD ------------------> TABLE ------------> BODY ------------> message

The beginning of a message always lands in a small scratch buffer, so that a
small message (or several) costs one read.  What does not fit there is read
straight into the memory that its frames will keep.  Scratch buffers are lent
to whichever decoder has bytes that are not understood yet: connections that
are idle share the few that the busy ones need.

Where two messages in a row were laid out alike, with one large frame at the
end, memory for a third such frame is offered behind the scratch buffer, as
:attr:`~MessageDecoder.ahead`.  If something else comes, that is copied from
there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from distributed.protocol.allocation import allocate
from distributed.protocol.exceptions import FramingError

#: Anything that exposes its bytes.
Buffer = bytes | bytearray | memoryview
#: The frames of a message that has arrived.
Frames = list[bytearray | memoryview]

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
#: A message with a last frame of such a size is foreseen where two have come that were laid out
#: alike.  Smaller ones arrive with their beginning, and of larger ones that is a small part.
_FORESEEN = range(64 * 1024, 2**20)
#: Bytes in front of that frame, at most.
_FORESEEN_HEAD = 2048
#: A sender puts the first writable frame inside ``N`` only where the bytes
#: before it are few, since the original's receiver keeps both in one block.
_HEAD_MAX, _HEAD_SHARE = 2048, 20

#: Scratch buffers that no decoder has.
_spare: list[bytearray] = []


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


class _Layout(NamedTuple):
    """How a message is laid out of which all but the last frame arrives in a scratch buffer."""

    prelude: bytes
    # Of the frames but the last one.
    lengths: tuple[int, ...]
    # Bytes in front of the last frame, and of it.
    head: int
    body: int
    limits: Limits


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
    >>> [bytes(frame) for frame in decoder.next_message(len(data))]
    [b'ab', b'c']
    >>> decoder.next_message() is None
    True
    """

    # State.  `_scratch[_start:_end]` arrived and was not understood yet.
    # `_scratch` is None unless it is to be filled or holds something, and while
    # `_table` or `_block` is set; it is larger than READ_SIZE only after something
    # else came than was foreseen.  `_table` is memory for a list of lengths
    # that does not fit a scratch buffer.  Once the lengths are known
    # `_frames` are the frames that are filled, `_groups` the lengths of those
    # whose memory is not even allocated, last one first, and `_block` the memory
    # for those in between, whose lengths are `_group`.  `_filled` counts the
    # bytes of `_table` or of `_block` that have arrived.  `_last` is how the last
    # message was laid out, if a message like it could be foreseen, and `_foreseen`
    # how the next one is likely to be.  `ahead` is set while the wanted memory is
    # being filled, and that is foreseen.
    __slots__ = (
        "_block",
        "_end",
        "_filled",
        "_first",
        "_foreseen",
        "_frames",
        "_group",
        "_groups",
        "_last",
        "_scratch",
        "_start",
        "_table",
        "ahead",
        "limits",
        "shard",
    )

    def __init__(self, limits: Limits | None = None, shard: int | None = None):
        self.limits = Limits() if limits is None else limits
        self.shard = shard
        self._scratch: bytearray | None = None
        self._start = self._end = 0
        self._first = 0
        self._table: memoryview | None = None
        self._frames: Frames | None = None
        self._groups: list[list[int]] = []
        self._group: list[int] = []
        self._block: memoryview | None = None
        self._filled = 0
        self._last: _Layout | None = None
        self._foreseen: _Layout | None = None
        self.ahead: memoryview | None = None

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

    def wanted(self) -> bytearray | memoryview:
        """Return the memory to fill next, from its beginning, with as much as there is.

        If there is more, it may go to `ahead` once that is full.  Both are the caller's until the
        next call of :meth:`next_message`.
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
        foreseen = self._foreseen
        if foreseen is None:
            return scratch
        try:
            self.ahead = allocate(foreseen.body)
        except FramingError:
            # What does come may be smaller.
            self._foreseen = None
            return scratch
        return memoryview(scratch)[: foreseen.head]

    def next_message(self, received: int = 0) -> Frames | None:
        """Return the frames of the next message, or None if it is not complete.

        The frames are writable and belong to the caller.

        Parameters
        ----------
        received
            So many bytes of the memory that was wanted, and then of `ahead`, have been filled
            since.

        Raises
        ------
        FramingError
            If the prelude contradicts itself or exceeds a limit.
        """
        scratch = self._scratch
        if scratch is None:
            if not received:
                return None
            self._filled += received
            return self._go_on()
        if self.ahead is not None:
            ahead, self.ahead = self.ahead, None
            if received:
                frames = self._take_foreseen(scratch, ahead, received)
                if self._scratch is None:
                    return frames
                scratch = self._scratch
        start = self._start
        end = self._end = self._end + received
        if end - start >= _SINGLE.size:
            # A message of one frame that has arrived as a whole, as most do.  What is wrong with
            # any other message is told by those who take it apart step by step.
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
                self._last = None
                if stop == end:
                    self._give_scratch_back()
                return [frame]
        frames = self._begin_message(scratch)
        if self._start == self._end:
            self._give_scratch_back()
        return frames

    def _take_foreseen(self, scratch: bytearray, ahead: memoryview, received: int) -> Frames | None:
        """Take apart a message if it is laid out as was foreseen, and return it if that is all.

        If it is not, what has arrived is in the scratch buffer afterwards.
        """
        assert self._foreseen is not None
        prelude, lengths, head, body, limits = self._foreseen
        if received >= head and scratch.startswith(prelude) and limits is self.limits:
            frames = _cut(memoryview(scratch[len(prelude) : head]), lengths)
            self._give_scratch_back()
            filled = received - head
            if filled == body:
                frames.append(ahead)
                return frames
            self._frames = frames
            self._block = ahead
            self._group = [body]
            self._filled = filled
            return None
        self._foreseen = self._last = None
        if received > head:
            self._scratch = scratch[:head] + ahead[: max(received, READ_SIZE) - head]
        return None

    def _begin_message(self, scratch: bytearray) -> Frames | None:
        """Take a message apart whose beginning is in *scratch*, as far as it has arrived."""
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
        if available < _HEAD.size + table_size:
            if _HEAD.size + table_size > READ_SIZE:
                self._first = first
                self._last = None
                self._start += _HEAD.size
                self._table = self._allocate(table_size)
            return None
        lengths = struct.unpack_from(f"<{count}Q", scratch, self._start + _HEAD.size)
        start = self._start
        self._start += _HEAD.size + table_size
        last, self._last, self._foreseen = self._last, None, None
        body = lengths[-1]
        head = self._start - start + sum(lengths) - body
        if body in _FORESEEN and head <= _FORESEEN_HEAD and self.shard not in lengths:
            prelude = bytes(scratch[start : self._start])
            layout = _Layout(prelude, lengths[:-1], head, body, self.limits)
            self._foreseen = layout if layout == last else None
            self._last = layout
        return self._lay_out(first, lengths)

    def _go_on(self) -> Frames | None:
        """Take a message apart of which the beginning is not in the scratch buffer any more."""
        if self._block is not None:
            return self._fill_frames() if self._filled == len(self._block) else None
        if self._table is None or self._filled < len(self._table):
            return None
        lengths = struct.unpack(f"<{len(self._table) // 8}Q", self._table)
        self._table = None
        return self._lay_out(self._first, lengths)

    def _lay_out(self, first: int, lengths: tuple[int, ...]) -> Frames | None:
        """Take the frames that are there, and memory for the others; return them if all are."""
        count = len(lengths)
        total = sum(lengths)
        self.limits.check_size(total)
        leading = first - 8 - 8 * count
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
        if total <= min(end - start, READ_SIZE):
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
            memory = bytearray() if self._scratch is None else self._scratch[start:stop]
            self._start = stop
            frames = _cut(memoryview(memory), lengths[:here])
            if here == count:
                return frames
        self._frames = frames
        self._groups = _share_memory(lengths[here:], self.shard)
        self._groups.reverse()
        return self._fill_frames()

    def _fill_frames(self) -> Frames | None:
        """Return the frames once each of them is filled."""
        frames, block = self._frames, self._block
        assert frames is not None
        while True:
            if block is not None:
                if self._filled < len(block):
                    return None
                frames += _cut(block, self._group)
            if not self._groups:
                self._frames = self._block = None
                return frames
            self._group = self._groups.pop()
            self._block = block = self._allocate(sum(self._group))

    def _allocate(self, nbytes: int) -> memoryview:
        """Return memory into which the scratch buffer has been emptied, as far as it goes."""
        memory = allocate(nbytes)
        start = self._start
        step = min(self._end - start, nbytes)
        if step:
            memory[:step] = memoryview(self._scratch)[start : start + step]  # type: ignore[arg-type]
            self._start = start + step
        self._filled = step
        return memory

    def _give_scratch_back(self) -> None:
        """Lend the scratch buffer, in which nothing is, to others."""
        if len(_spare) < _SPARE and len(self._scratch) == READ_SIZE:  # type: ignore[arg-type]
            _spare.append(self._scratch)  # type: ignore[arg-type]
        self._scratch = None
        self._start = self._end = 0


def _cut(memory: memoryview, lengths: Sequence[int]) -> Frames:
    if len(lengths) == 1:
        return [memory]
    frames: Frames = []
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
