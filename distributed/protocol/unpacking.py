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
from typing import Any, Final

import msgpack

from distributed.protocol.collisions import make_dict
from distributed.protocol.exceptions import ProtocolError

__all__ = ["MAX_UNCHECKED", "count_containers", "unpack"]

#: Maximum size (bytes) of msgpack whose keys are not checked: comparing all its keys to each other
#: takes about 2 ms.
MAX_UNCHECKED: Final = 4096
#: Minimum size (bytes) of msgpack that is read in steps.
_MIN_STEPPED: Final = 2**20
#: Number of bytes per step; 64 KiB of small containers take about 10 ms.
_STEP: Final = 2**16
#: The type codes of text, bytes and maps whose size has 32 bits.
_LONG: Final = frozenset(b"\xc6\xdb")

#: Approximate number of bytes that `count_containers` examines of larger msgpack.
_SAMPLES: Final = 2048
#: All bytes except those with which a map or an array begins in msgpack.
_NO_CONTAINERS: Final = bytes({*range(256)} - {*range(0x80, 0xA0), *range(0xDC, 0xE0)})

Hook = Callable[[dict[Any, Any]], Any]

# Without its C extension, msgpack begins again with each step.
_CAN_STEP: Final = msgpack.Unpacker.__module__ == "msgpack._cmsgpack"


def unpack(packed: Any, hook: Hook | None = None, restart: Callable[[], None] | None = None) -> Any:
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

    Raises
    ------
    MessageError
        If too many keys of a map have the same hash.
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
