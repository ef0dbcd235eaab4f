"""Taking a message's wrappers off without having serialized it.

Where sender and receiver share a process, messages are passed on as they are.  The receiver has to
find in them what it would find after a way over a socket: values, and containers of its own.
"""

from __future__ import annotations

from typing import Any

from distributed.protocol.compression import decompress
from distributed.protocol.objects import load_pickled
from distributed.protocol.pieces import merge_and_deserialize
from distributed.protocol.wrappers import Pickled, Serialize, Serialized, ToPickle

__all__ = ["nested_deserialize"]

# Values that most messages consist of, which spares a call for each of them.
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))


def nested_deserialize(x: Any, emulate_deserialize: bool = True) -> Any:
    """Replace the wrappers in a message by their values, without having serialized it.

    Containers are copied, so that sender and receiver share none.

    Parameters
    ----------
    x
        A message of dicts, lists, tuples and other values.
    emulate_deserialize
        Whether `Serialize` and `Serialized` become values, too, and not only what is to be pickled.
    """
    cls = type(x)
    if cls is Serialize:
        return x.data if emulate_deserialize else x
    if cls is dict:
        return {
            key: value if type(value) in _PLAIN else nested_deserialize(value, emulate_deserialize)
            for key, value in x.items()
        }
    if cls is list or cls is tuple:
        values = [
            value if type(value) in _PLAIN else nested_deserialize(value, emulate_deserialize)
            for value in x
        ]
        return values if cls is list else tuple(values)
    if cls is ToPickle:
        return x.data
    if cls is Pickled:
        return load_pickled(x.header, x.frames)
    if cls is Serialized and emulate_deserialize:
        return merge_and_deserialize(x.header, decompress(x.header, x.frames))
    return x
