"""The approximate size of a message, without serializing it."""

from __future__ import annotations

from typing import Any

from distributed.base.buffers import nbytes
from distributed.protocol.wrappers import Pickled, Serialize, Serialized, ToPickle

__all__ = ["rough_size"]

_FIXED_SIZE = frozenset({int, float, bool, type(None)})
_CONTAINERS = frozenset({dict, list, tuple, set})


def rough_size(msg: Any) -> int:
    """Return the approximate size of a message in bytes, much faster than serializing it.

    Texts and buffers are counted in the message itself and one level below.

    Examples
    --------
    >>> rough_size({"op": "data", "x": b"0" * 1000})
    1036
    """
    if type(msg) is not dict:
        return _value_size(msg)
    size = 16 * len(msg)
    for value in msg.values():
        kind = type(value)
        if kind is str or kind is bytes:
            size += len(value)
        # Messages of the roles have many empty containers.
        elif kind not in _FIXED_SIZE and (kind not in _CONTAINERS or value):
            size += _value_size(value)
    return size


def _value_size(value: Any) -> int:
    kind = type(value)
    if kind is str or kind is bytes or kind is bytearray:
        return len(value)
    if kind in _CONTAINERS:
        size = 16 * len(value)
        for item in value.values() if kind is dict else value:
            if type(item) is str or type(item) is bytes:
                size += len(item)
        return size
    if isinstance(value, Serialize | ToPickle):
        return _value_size(value.data)
    if isinstance(value, Serialized | Pickled):
        return sum(map(nbytes, value.frames))
    try:
        # Ask the type, because some instances (proxies) have any attribute.
        size = value.nbytes if hasattr(kind, "nbytes") else 16
    except Exception:  # noqa: BLE001 - an estimate must not fail `send`
        return 16
    return size if isinstance(size, int) else 16
