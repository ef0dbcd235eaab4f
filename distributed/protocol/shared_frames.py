"""Messages whose large frames are memory that both sides have mapped.

Two peers that agreed upon it send such a frame as the place where its bytes are in a region of
shared memory (:mod:`distributed.base.shared_memory`).  The file descriptors of the regions travel
beside the bytes of the message; :mod:`distributed.comm.sharing` sends and receives them.

On the wire, the message ``frames`` becomes the message::

    empty frame | table | those of frames that are not shared

It has at least three frames, so it differs from a control message, which has two.  The table
consists of unsigned 64-bit little-endian integers::

    number of regions | flags of each region | (position, region, offset, length) of each frame

*position* is the index of the frame in ``frames``, *region* the index of its descriptor among those
of this message.  The first frame of ``frames`` is never shared.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from distributed.base.memory_pool import HEADER_SIZE, Borrower, Loan
from distributed.base.shared_memory import Found, adopt, find
from distributed.protocol.exceptions import FramingError
from distributed.protocol.framing import Buffer, Frames, MessageDecoder

__all__ = ["Copy", "Descriptors", "ShareLimits", "SharedMessage", "SharingDecoder", "share"]

#: Flag of a region that the receiver is asked to map for writing.
_WRITABLE = 1
#: Flag of a region of the sender's pool (:mod:`distributed.base.memory_pool`).
_LENT = 2

#: Size in bytes of the entry of a frame in the table.
_ENTRY = struct.Struct("<4Q")


class ShareLimits(NamedTuple):
    """The limits of a message with shared frames, which both sides agreed upon.

    Parameters
    ----------
    max_descriptors
        Maximum number of regions of one message.
    max_bytes
        Maximum size of these regions together, in bytes.
    """

    max_descriptors: int
    max_bytes: int


class Copy(NamedTuple):
    """Bytes that have to be copied into a region before a message is sent."""

    target: memoryview
    source: Buffer


class SharedMessage(NamedTuple):
    """A message with shared frames, ready to be sent.

    Attributes
    ----------
    frames
        The frames to send.
    descriptors
        The descriptors to send with them.
    leases
        Objects that keep the regions, and so the descriptors, until the message was sent.
    copies
        What has to be copied first.
    loans
        The regions that it is copied into.
    """

    frames: list[Buffer]
    descriptors: list[int]
    leases: list[Any]
    copies: list[Copy]
    loans: list[Loan]


#: Returns a region for a number of bytes, or None.
Lender: TypeAlias = Callable[[int], Loan | None]


class _Writer:
    """The parts of a message with shared frames, as they are found."""

    def __init__(self, limits: ShareLimits):
        self._limits = limits
        # id of a region → its index in the message
        self._indices: dict[int, int] = {}
        self._size = 0
        self.regions: list[Found] = []
        self.flags: list[int] = []
        self.entries: list[bytes] = []
        self.copies: list[Copy] = []
        self.loans: list[Loan] = []

    def add_shared(self, position: int, found: Found, length: int) -> bool:
        """Refer to a frame in shared memory; return false if that exceeds the limits."""
        memory = found.memory
        index = self._indices.get(id(memory))
        if index is None:
            if memory.descriptor < 0 or not self._has_room(memory.nbytes):
                return False
            index = self._add_region(found, _WRITABLE if memory.peers_may_write else 0)
        self.entries.append(_ENTRY.pack(position, index, found.offset, length))
        return True

    def add_copies(self, position: int, frames: Sequence[Buffer], lend: Lender) -> bool:
        """Refer to copies of adjacent frames; return false if there is no region for them."""
        size = sum(map(len, frames))
        # A region may have twice the size.
        loan = lend(size) if self._has_room(2 * size + HEADER_SIZE) else None
        if loan is None:
            return False
        self.loans.append(loan)
        index = self._add_region(loan.found, _LENT)
        offset = 0
        for number, frame in enumerate(frames, position):
            stop = offset + len(frame)
            self.copies.append(Copy(loan.data[offset:stop], frame))
            self.entries.append(_ENTRY.pack(number, index, HEADER_SIZE + offset, len(frame)))
            offset = stop
        return True

    def _has_room(self, nbytes: int) -> bool:
        return (
            len(self.regions) < self._limits.max_descriptors
            and self._size + nbytes <= self._limits.max_bytes
        )

    def _add_region(self, found: Found, flags: int) -> int:
        found.memory.seal_for_sending()
        index = self._indices[id(found.memory)] = len(self.regions)
        self.regions.append(found)
        self.flags.append(flags)
        self._size += found.memory.nbytes
        return index


def share(
    frames: Sequence[Buffer],
    limits: ShareLimits,
    threshold: int | None = None,
    lend: Lender | None = None,
    shard: int | None = None,
) -> SharedMessage | None:
    """Return the message that refers to those of *frames* that lie in shared memory.

    It is None if there are none.  Frames whose regions exceed the limits are sent as bytes.

    Parameters
    ----------
    frames
        The frames of a message.
    limits
        The limits that both sides agreed upon.
    threshold
        Minimum size in bytes of a buffer that is copied into a region of the pool; None for never.
    lend
        Returns such a region.
    shard
        The size in bytes at which large buffers were split into frames.
    """
    writer = _Writer(limits)
    others: list[Buffer] = [frames[0]]
    position = 1
    while position < len(frames):
        frame = frames[position]
        found = find(frame) if type(frame) is memoryview else None
        group = [frame]
        if found is not None:
            is_shared = writer.add_shared(position, found, len(frame))
        elif threshold is None or lend is None:
            is_shared = False
        else:
            # The parts of a split buffer stay adjacent, so that they merge without a copy.
            while len(group[-1]) == shard and position + len(group) < len(frames):
                group.append(frames[position + len(group)])
            large = sum(map(len, group)) >= threshold
            is_shared = large and writer.add_copies(position, group, lend)
        if not is_shared:
            others += group
        position += len(group)
    if not writer.entries:
        return None
    flags = writer.flags
    table = struct.pack(f"<{1 + len(flags)}Q", len(flags), *flags) + b"".join(writer.entries)
    return SharedMessage(
        [b"", table, *others],
        [region.memory.descriptor for region in writer.regions],
        [region.lease for region in writer.regions],
        writer.copies,
        writer.loans,
    )


class Descriptors:
    """File descriptors that were received and not used yet, in the order of their messages.

    They are closed when this object is deleted.
    """

    __slots__ = ("_numbers", "maximum")

    def __init__(self, maximum: int):
        #: Maximum number of descriptors.
        self.maximum = maximum
        self._numbers: list[int] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, numbers: Sequence[int]) -> None:
        """Keep descriptors.

        Raises
        ------
        FramingError
            If there are too many; all are closed.
        """
        self._numbers += numbers
        if len(self._numbers) > self.maximum:
            count = len(self._numbers)
            self.close()
            raise FramingError(
                f"it came with {count} file descriptors that no message refers to; at most "
                f"{self.maximum} are accepted"
            )

    def take(self, count: int) -> Descriptors:
        """Remove the first *count* descriptors and return them."""
        taken = Descriptors(count)
        taken._numbers, self._numbers = self._numbers[:count], self._numbers[count:]
        return taken

    def pop(self) -> int:
        """Remove the first descriptor and return it; the caller has to close it."""
        return self._numbers.pop(0)

    def close(self) -> None:
        """Close all descriptors."""
        numbers, self._numbers = self._numbers, []
        for number in numbers:
            os.close(number)

    def __del__(self) -> None:
        self.close()


class SharingDecoder(MessageDecoder):
    """A decoder that replaces references to shared memory by the memory.

    Parameters
    ----------
    decoder
        The decoder that has parsed the stream so far.  It must not be used any more.
    descriptors
        The descriptors that were received with the bytes of the stream.  The caller adds those that
        come with some bytes before it calls `buffer_updated` for these bytes.
    share_limits
        The limits that both sides agreed upon.
    probe
        The control message that comes with a descriptor which has no other purpose.

    Attributes
    ----------
    was_probed
        Whether such a descriptor was received.  It was closed.
    """

    __slots__ = ("_probe", "borrower", "descriptors", "share_limits", "was_probed")

    def __init__(
        self,
        decoder: MessageDecoder,
        descriptors: Descriptors,
        share_limits: ShareLimits,
        probe: bytes = b"",
    ):
        for name in MessageDecoder.__slots__:
            setattr(self, name, getattr(decoder, name))
        self._probe = probe
        self.was_probed = False
        self.borrower = Borrower()
        self.descriptors = descriptors
        self.share_limits = share_limits

    def buffer_updated(self, nbytes: int) -> Frames | None:
        """Return the frames of the next message, or None if it is not complete.

        Raises
        ------
        FramingError
            Also if the message refers to memory or descriptors that no honest peer sends, or if
            descriptors were received that no message refers to.
        """
        frames = super().buffer_updated(nbytes)
        if frames is None:
            return None
        if len(frames) > 2 and not len(frames[0]):
            frames = self._resolve(frames)
        elif (
            len(self.descriptors)
            and len(frames) == 2
            and not len(frames[0])
            and len(frames[1]) == len(self._probe)
            and bytes(frames[1]) == self._probe
            and not self.was_probed
        ):
            os.close(self.descriptors.pop())
            self.was_probed = True
        if len(self.descriptors) and not self.in_message:
            count = len(self.descriptors)
            self.descriptors.close()
            raise FramingError(f"{count} file descriptors came with it that it does not refer to")
        return frames

    def _resolve(self, frames: Frames) -> Frames:
        """Return the frames of a message, some of which are shared."""
        flags, entries = self._read_table(frames[1], len(frames))
        self.limits.check_size(sum(map(len, frames[2:])) + sum(entry[3] for entry in entries))
        if len(self.descriptors) < len(flags):
            raise FramingError(
                f"a message refers to {len(flags)} regions of shared memory, and came with "
                f"{len(self.descriptors)} file descriptors"
            )
        regions = self._map(flags)
        # The frames that were sent as bytes fill the positions between the others.
        others = iter(frames[2:])
        result: Frames = []
        for position, index, offset, length in entries:
            if not len(result) <= position <= len(frames) - 2 + len(entries) or not position:
                raise FramingError(f"a message has its shared frame {position} in a false place")
            while len(result) < position:
                frame = next(others, None)
                if frame is None:
                    raise FramingError(f"a message lacks the frames before frame {position}")
                result.append(frame)
            if index >= len(regions):
                raise FramingError(f"a frame refers to region {index} of {len(regions)}")
            region = regions[index]
            if not length or offset + length > len(region):
                raise FramingError(
                    f"a frame refers to bytes {offset:,} to {offset + length:,} of a region that "
                    f"has {len(region):,}"
                )
            result.append(region[offset : offset + length])
        result += others
        return result

    def _read_table(
        self, table: bytearray | memoryview, count: int
    ) -> tuple[Sequence[int], list[tuple[int, ...]]]:
        """Return the flags of the regions, and the entries of the frames."""
        size = len(table)
        number = int.from_bytes(table[:8], "little")
        if number > self.share_limits.max_descriptors:
            raise FramingError(
                f"a message with {number:,} regions of shared memory, where "
                f"{self.share_limits.max_descriptors:,} are agreed upon "
                "('distributed.comm.shared.max-descriptors')"
            )
        start = 8 + 8 * number
        if size < start or (size - start) % _ENTRY.size:
            raise FramingError(f"a table of shared frames has {size:,} bytes")
        self.limits.check_count(count - 2 + (size - start) // _ENTRY.size)
        flags = struct.unpack_from(f"<{number}Q", table, 8)
        return flags, list(_ENTRY.iter_unpack(memoryview(table)[start:]))

    def _map(self, flags: Sequence[int]) -> list[memoryview]:
        """Return the memory of the regions that the first descriptors stand for."""
        descriptors = self.descriptors.take(len(flags))
        left = self.share_limits.max_bytes
        regions = []
        try:
            for index, flag in enumerate(flags):
                try:
                    if flag & _LENT:
                        memory = self.borrower.borrow(descriptors.pop(), left)
                    else:
                        writable = bool(flag & _WRITABLE)
                        memory = adopt(descriptors.pop(), peers_may_write=writable, max_bytes=left)
                except ValueError as exc:
                    raise FramingError(
                        f"file descriptor {index} of a message cannot be used as shared memory: "
                        f"{exc}"
                    ) from exc
                left -= len(memory)
                regions.append(memory)
        finally:
            descriptors.close()
        return regions
