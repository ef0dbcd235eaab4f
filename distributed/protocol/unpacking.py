"""Read msgpack from a peer, in time that is proportional to its size and in steps.

msgpack builds a map in C, and hashes its keys before any hook sees the map.  So a large message is
first read with only text and bytes as keys.  If it has others, it is read again, with a hook that
gets the keys and values of each map and checks the hashes (:mod:`distributed.protocol.collisions`).

msgpack does not release the GIL.  A large message is therefore fed to it in steps, between which
other threads run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat
from operator import length_hint
from typing import Any, Final, NoReturn

import msgpack

from distributed.protocol.collisions import make_dict
from distributed.protocol.exceptions import ProtocolError
from distributed.protocol.limits import LoadPolicy, reading

__all__ = ["MAX_UNCHECKED", "count_containers", "unpack"]

#: Maximum size (bytes) of msgpack whose keys are not checked: comparing all its keys to each other
#: takes about 2 ms.
MAX_UNCHECKED: Final = 4096
#: Minimum size (bytes) of msgpack that is read in steps.
_MIN_STEPPED: Final = 2**20
#: Number of bytes per step; 64 KiB of small containers take about 10 ms.
_STEP: Final = 2**16
#: Maximum number of bytes of memory for a small map, and for an array without its elements.
_BYTES_PER_MAP: Final = 240
_BYTES_PER_ARRAY: Final = 64
#: The type codes of text, bytes and maps whose size has 32 bits.
_LONG: Final = frozenset(b"\xc6\xdb")

#: Approximate number of bytes that `count_containers` examines of larger msgpack.
_SAMPLES: Final = 2048
#: All bytes except those with which a map or an array begins in msgpack.
_NO_CONTAINERS: Final = bytes({*range(256)} - {*range(0x80, 0xA0), *range(0xDC, 0xE0)})

#: Number of windows of msgpack that are examined to estimate the memory of its maps and arrays, and
#: their size in bytes.
_WINDOWS: Final = 1024
_WINDOW: Final = 32

Hook = Callable[[dict[Any, Any]], Any]

# Without its C extension, msgpack begins again with each step.
_CAN_STEP: Final = msgpack.Unpacker.__module__ == "msgpack._cmsgpack"


def unpack(
    packed: Any,
    hook: Hook | None = None,
    restart: Callable[[], None] | None = None,
    policy: LoadPolicy | None = None,
) -> Any:
    """Read an object from msgpack; arrays become tuples.

    Parameters
    ----------
    packed
        The msgpack, as bytes-like object.
    hook
        Called with each map; returns what takes its place.
    restart
        Called before the msgpack is read again from its beginning: then *hook* will get maps that
        it has already seen.
    policy
        The limits of the message, if *packed* is its first frame; by default, those of the message
        that is being read.

    Raises
    ------
    MessageError
        If too many keys of a map have the same hash.
    CompressionError
        If the maps and arrays need more memory than `LoadPolicy.max_inflated_size`.
    Exception
        msgpack raises several types of error for invalid data.

    Examples
    --------
    >>> unpack(b"\\x81\\x92\\x01\\x02\\xa1a")
    {(1, 2): 'a'}
    """
    if len(packed) <= MAX_UNCHECKED:
        return msgpack.unpackb(packed, object_hook=hook, use_list=False, strict_map_key=False)
    read = msgpack.unpackb
    if len(packed) >= _MIN_STEPPED and _CAN_STEP:
        _check_memory(packed, policy)
        read = partial(_unpack_in_steps, restart)
    try:
        return read(packed, object_hook=hook, use_list=False, strict_map_key=True)
    except ProtocolError:
        raise
    except ValueError as exc:
        if "strict_map_key" not in str(exc):
            raise
    if restart is not None:
        restart()

    def read_map(pairs: list[tuple[Any, Any]]) -> Any:
        obj = make_dict(pairs)
        return obj if hook is None else hook(obj)

    return read(packed, object_pairs_hook=read_map, use_list=False, strict_map_key=False)


def count_containers(packed: Any) -> int:
    """Return the approximate number of maps and arrays in msgpack; no less, except by chance.

    Examples
    --------
    >>> count_containers(msgpack.packb([1, [], {"a": []}]))
    4
    """
    step = len(packed) // _SAMPLES
    if step < 2:
        return len(bytes(packed).translate(None, _NO_CONTAINERS))
    start = random.randrange(step)
    # The second sample is for data whose period divides the first step.
    sample = bytes(packed[start::step]) + bytes(packed[start :: step + 1])
    return len(sample.translate(None, _NO_CONTAINERS)) * step // 2


def _containers(packed: Any) -> int:
    """Return an estimate of the number of maps and arrays in *packed*, mostly an upper bound.

    Text and bytes may look like maps and arrays.  The windows are at random places, so a sender
    cannot arrange its message around them.
    """
    stratum = len(packed) // _WINDOWS
    sample = bytearray()
    for start in range(0, stratum * _WINDOWS, stratum):
        start += random.randrange(stratum - _WINDOW)
        sample += packed[start : start + _WINDOW]
    found = len(sample.translate(None, _NO_CONTAINERS))
    return found * len(packed) // len(sample)


def _check_memory(packed: Any, policy: LoadPolicy | None) -> None:
    """Raise an error if the maps and arrays in *packed* need more memory than a message may take.

    Raises
    ------
    CompressionError
        See `unpack`.
    """
    with reading(policy, len(packed)) as message:
        room = message.room
        # The estimate may be a few percent too low.
        if room is None or 1.25 * _containers(packed) * _BYTES_PER_MAP <= room:
            return
        # Read it with maps and arrays replaced by None, so that few exist at a time.  Hooks count
        # in C: next(numbers, default) returns None until `refuse` raises the error.
        what = f"the maps and arrays in {len(packed):,} bytes of msgpack take too much memory"

        def refuse() -> NoReturn:
            raise message.no_room(what)

        maps = repeat(None, room // _BYTES_PER_MAP)
        arrays = repeat(None, room // _BYTES_PER_ARRAY)
        _unpack_in_steps(
            None,
            packed,
            object_hook=partial(next, chain(maps, iter(refuse, None))),
            list_hook=partial(next, chain(arrays, iter(refuse, None))),
            strict_map_key=False,
        )
        left = length_hint(maps) * _BYTES_PER_MAP + length_hint(arrays) * _BYTES_PER_ARRAY
        if left < room:
            raise message.no_room(what)


def _unpack_in_steps(restart: Callable[[], None] | None, packed: Any, **options: Any) -> Any:
    """Do what ``msgpack.unpackb`` does, and let other threads run between the steps."""
    view = memoryview(packed)
    total = len(view)
    unpacker = msgpack.Unpacker(max_buffer_size=total, **options)
    fed = offset = 0
    step = _STEP
    stalled = False
    while fed < total:
        unpacker.feed(view[fed : fed + step])
        fed += step
        step = _STEP
        try:
            value = unpacker.unpack()
        except msgpack.OutOfData:
            pass
        else:
            if unpacker.tell() < total:
                raise msgpack.ExtraData(value, bytes(view[unpacker.tell() :][:100]))
            return value
        if unpacker.tell() > offset:
            offset = unpacker.tell()
            stalled = False
        elif not stalled:
            stalled = True
        elif view[offset - 5] in _LONG:
            # It waits for the end of a long text or bytes object, whose length comes before it.
            missing = offset + int.from_bytes(view[offset - 4 : offset], "big") - fed
            if total - fed - missing < _STEP and offset < _STEP:
                # This object is nearly the whole message, and would be copied one more time.
                if restart is not None:
                    restart()
                return msgpack.unpackb(packed, **options)
            step = max(missing, _STEP)
    raise ValueError("Unpack failed: incomplete input")
