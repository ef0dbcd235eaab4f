"""Pickling: plain pickle first, cloudpickle for what another process could not import.

Plain pickle names functions and classes by where they can be imported from.  The process at the
other end has another ``__main__``, and nothing of what was defined in functions, so these go by
value, as do modules for which :func:`cloudpickle.register_pickle_by_value` was called.  Buffers
may travel out of band (PEP 574).

This module knows nothing of messages.  The "pickle" family, the types in headers and the values
that msgpack cannot encode are pickled here on their way out, and unpickled on their way in.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pickle import HIGHEST_PROTOCOL
from typing import Any

import cloudpickle

from distributed.protocol.tracebacks import loads_without_tblib

__all__ = ["HIGHEST_PROTOCOL", "dumps", "loads"]


def dumps(
    x: Any,
    *,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    protocol: int = HIGHEST_PROTOCOL,
) -> bytes:
    """Pickle *x* so that another process can unpickle it.

    Parameters
    ----------
    x
        Any object.
    buffer_callback
        Called with each buffer that travels out of band, as in :func:`pickle.dumps`; buffers are
        pickled in band without it.  It is called only once *x* has been pickled as a whole.
    protocol
        The pickle protocol, at most `HIGHEST_PROTOCOL`.

    Raises
    ------
    Exception
        What cloudpickle raises for objects that cannot be pickled, mostly `TypeError` or
        `pickle.PicklingError`.

    Examples
    --------
    >>> loads(dumps(lambda x: x + 1))(1)
    2
    """
    buffers: list[pickle.PickleBuffer] = []
    keep = None if buffer_callback is None or protocol < 5 else buffers.append
    try:
        pickled = pickle.dumps(x, protocol=protocol, buffer_callback=keep)
        by_value = _names_what_is_pickled_by_value(pickled)
    except Exception:  # noqa: BLE001 - whatever plain pickle fails on, cloudpickle may not
        by_value = True
    if by_value:
        buffers.clear()
        pickled = cloudpickle.dumps(x, protocol=protocol, buffer_callback=keep)
    if buffer_callback is not None:
        for buffer in buffers:
            buffer_callback(buffer)
    return pickled


def _names_what_is_pickled_by_value(pickled: bytes) -> bool:
    # Modules are named in the pickle as they are, so a search for the name finds all uses of
    # them.  Where it finds mere data instead, cloudpickle writes the same bytes, only slower.
    if b"__main__" in pickled:
        return True
    modules = cloudpickle.list_registry_pickle_by_value()
    return any(module.encode() in pickled for module in modules)


def loads(x: Any, *, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle *x*.

    What was pickled where tblib is installed arrives where it is not, too: exceptions are complete
    apart from their traceback, and a traceback object arrives as None.

    Parameters
    ----------
    x
        Bytes-like.
    buffers
        The buffers that were kept out of band, in order.

    Raises
    ------
    Exception
        Unpickling runs code that *x* names, which may raise anything.
    """
    if not isinstance(buffers, (tuple, list)):
        buffers = list(buffers)
    try:
        return pickle.loads(x, buffers=buffers)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition(".")[0] != "tblib":
            raise
    return loads_without_tblib(x, buffers)
