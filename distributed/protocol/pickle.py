"""Pickling: plain pickle first, cloudpickle for what another process could not import.

Plain pickle names functions and classes by where they can be imported from.  The process at the
other end has another ``__main__``, and nothing of what was defined in functions, so these go by
value, as do modules for which :func:`cloudpickle.register_pickle_by_value` was called.  Where plain
pickle does not do, objects inside the pickle whose types have serializers of their own go through
these.  Buffers may travel out of band (PEP 574).

This module knows nothing of messages.  The "pickle" family, the types in headers and the values
that msgpack cannot encode are pickled here on their way out, and unpickled on their way in.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Iterable
from pickle import HIGHEST_PROTOCOL
from typing import Any

import cloudpickle

from distributed.base.buffers import ensure_memoryview
from distributed.protocol import out_of_band
from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.limits import check_unpickling
from distributed.protocol.tblib_pickles import loads_without_tblib

__all__ = ["HIGHEST_PROTOCOL", "dumps", "loads", "pickled_name"]


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
        pickled = out_of_band.dumps(x, protocol, keep)
        by_value = _names_what_is_pickled_by_value(pickled)
    except Exception:  # noqa: BLE001 - whatever plain pickle fails on, cloudpickle may not
        by_value = True
    if by_value:
        buffers.clear()
        with io.BytesIO() as file:
            _Pickler(file, protocol=protocol, buffer_callback=keep).dump(x)
            pickled = file.getvalue()
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


# Types of these top-level modules are pickled as they are, though they have serializers: pickle
# keeps their memory apart as well, or has opcodes for them.
_PICKLED_AS_THEY_ARE = frozenset(("array", "builtins", "numpy"))

# Bytes of a frame up to which it may as well stand in the pickle.
_SMALL = 4096


class _Pickler(cloudpickle.Pickler):
    """Pickles by value what has to be, and registered types through their serializers."""

    def __init__(self, file: Any, protocol: int, buffer_callback: Any):
        super().__init__(file, protocol=protocol, buffer_callback=buffer_callback)
        self._with_buffers = protocol >= 5
        # Types that were met, and the functions for those that are registered.
        self._registered: dict[type, tuple[Callable[..., Any], Callable[..., Any]] | None] = {}

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        try:
            functions = self._registered[cls]
        except KeyError:
            functions = self._registered[cls] = self._functions_for(cls)
        if functions is None:
            return super().reducer_override(obj)
        serialize, deserialize = functions
        try:
            header, frames = serialize(obj)
        except Exception:  # noqa: BLE001 - what its serializer does not take may still be pickled
            return super().reducer_override(obj)
        return deserialize, (header, [self._frame(frame) for frame in frames])

    @staticmethod
    def _functions_for(cls: type) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
        if cls.__module__.partition(".")[0] in _PICKLED_AS_THEY_ARE:
            return None
        try:
            return dask_serialize.dispatch(cls), dask_deserialize.dispatch(cls)
        except TypeError:
            return None

    def _frame(self, frame: Any) -> Any:
        if type(frame) in (bytes, bytearray) and (not self._with_buffers or len(frame) <= _SMALL):
            return frame
        view = ensure_memoryview(frame)
        return pickle.PickleBuffer(view) if self._with_buffers else bytes(view)


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
    PickleNotAllowedError
        If this is for a message from a connection on which nothing is unpickled.
    Exception
        Unpickling runs code that *x* names, which may raise anything.
    """
    check_unpickling()
    if not isinstance(buffers, (tuple, list)):
        buffers = list(buffers)
    try:
        return pickle.loads(x, buffers=buffers)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition(".")[0] != "tblib":
            raise
    return loads_without_tblib(x, buffers)


# What a pickle of a function or class consists of, apart from the two strings that name it.
_FRAMING_OPCODES = frozenset(("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "STOP", "STACK_GLOBAL"))
_STRING_OPCODES = frozenset(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"))


def pickled_name(pickled: bytes) -> str | None:
    """Read what a pickle names, if that is all that is in it; nothing is unpickled.

    Parameters
    ----------
    pickled
        A pickle of a class or function.

    Returns
    -------
    str or None
        Module and name with a dot between them; None for any other pickle.

    Examples
    --------
    >>> from fractions import Fraction
    >>> pickled_name(dumps(Fraction)), pickled_name(dumps(Fraction(1)))
    ('fractions.Fraction', None)
    """
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _STRING_OPCODES:
                strings.append(str(argument))
            elif opcode.name == "GLOBAL":
                strings += str(argument).split(" ", 1)
            elif opcode.name not in _FRAMING_OPCODES:
                return None
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it names nothing
        return None
    return ".".join(strings) if len(strings) == 2 else None
