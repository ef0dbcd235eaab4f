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
    if cls is dict:
        return {key: nested_deserialize(x[key], emulate_deserialize) for key in x}
    if cls is list:
        return [nested_deserialize(element, emulate_deserialize) for element in x]
    if cls is tuple:
        return tuple([nested_deserialize(element, emulate_deserialize) for element in x])
    if cls is ToPickle:
        return x.data
    if cls is Pickled:
        return load_pickled(x.header, x.frames)
    if emulate_deserialize:
        if cls is Serialize:
            return x.data
        if cls is Serialized:
            return merge_and_deserialize(x.header, decompress(x.header, x.frames))
    return x
