"""Pickling: plain pickle first, cloudpickle for objects that another process could not import.

Plain pickle names functions and classes by the module to import them from.  The receiver has
another ``__main__`` and cannot import names that are local to a function, so these are pickled by
value; so are modules for which :func:`cloudpickle.register_pickle_by_value` was called.
cloudpickle sends objects of registered types through their serializers.

Large buffers travel out of band (PEP 574).  For objects of some libraries whose own pickles would
be larger than the object, :mod:`distributed.protocol.reductions` says how they are pickled.

The "pickle" family, the types in headers and the values that msgpack cannot encode are pickled and
unpickled here.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import ChainMap
from collections.abc import Callable, Iterable
from itertools import islice
from pickle import HIGHEST_PROTOCOL
from typing import Any

import cloudpickle

from distributed.base.buffers import ensure_memoryview
from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.limits import check_unpickling
from distributed.protocol.reductions import dispatch_table
from distributed.protocol.tblib_pickles import is_about_tblib, loads_without_tblib

__all__ = [
    "HIGHEST_PROTOCOL",
    "dumps",
    "is_own_error",
    "loads",
    "note_origin",
    "pickled_name",
]


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
        Called with each buffer that travels out of band, as in :func:`pickle.dumps`, after all of
        *x* was pickled.  Without it, buffers are pickled in band.
    protocol
        The pickle protocol, at most `HIGHEST_PROTOCOL`.

    Raises
    ------
    Exception
        If *x* cannot be pickled: the error of cloudpickle, mostly a `TypeError` or a
        `pickle.PicklingError`.

    Examples
    --------
    >>> loads(dumps(lambda x: x + 1))(1)
    2
    """
    buffers: list[pickle.PickleBuffer] = []
    keep = None if buffer_callback is None or protocol < 5 else buffers.append
    # Without a callback, as for the types in headers, *x* is as small as its pickle.
    table = None if buffer_callback is None else dispatch_table(keep is not None)
    try:
        pickled = _dumps_plain(x, protocol, keep, table)
        by_value = _needs_cloudpickle(pickled)
    except Exception:  # noqa: BLE001 - cloudpickle may succeed where plain pickle fails
        by_value = True
    if by_value:
        buffers.clear()
        with io.BytesIO() as file:
            _Pickler(file, protocol, keep, table).dump(x)
            pickled = file.getvalue()
    if buffer_callback is not None:
        for buffer in buffers:
            buffer_callback(buffer)
    return pickled


def _needs_cloudpickle(pickled: bytes) -> bool:
    # A pickle contains the names of modules as text, so this finds each use of them.  If it finds
    # the name in other data, cloudpickle writes the same bytes, only slower.
    if b"__main__" in pickled:
        return True
    modules = cloudpickle.list_registry_pickle_by_value()
    return any(module.encode() in pickled for module in modules)


def _dumps_plain(
    x: Any,
    protocol: int,
    buffer_callback: Callable[[Any], Any] | None,
    table: dict[Any, Any] | None,
) -> bytes:
    """Pickle *x* as ``pickle.dumps`` does, but with the reductions in *table*."""
    if table is None:
        return pickle.dumps(x, protocol=protocol, buffer_callback=buffer_callback)
    with io.BytesIO() as file:
        pickler = pickle.Pickler(file, protocol=protocol, buffer_callback=buffer_callback)
        pickler.dispatch_table = table
        pickler.dump(x)
        return file.getvalue()


# cloudpickle, with the serializers of registered types

# Top-level modules whose types are pickled without their serializers: pickle keeps their memory out
# of band, too, or has opcodes for them.
_PICKLED_DIRECTLY = frozenset(("array", "builtins", "numpy"))

#: Maximum size (bytes) of a frame that is pickled in band.
_MAX_IN_BAND_SIZE = 4096


class _Pickler(cloudpickle.Pickler):
    """A cloudpickle pickler that sends objects of registered types through their serializers."""

    def __init__(
        self, file: Any, protocol: int, buffer_callback: Any, table: dict[Any, Any] | None
    ):
        if table is not None:
            # pickle.Pickler looks at this once, when it is made.
            self.dispatch_table = ChainMap(table, cloudpickle.Pickler.dispatch_table)
        super().__init__(file, protocol=protocol, buffer_callback=buffer_callback)
        # Whether the protocol has buffers out of band.
        self._with_buffers = protocol >= 5
        # Types seen so far, with their serializer and deserializer; None if not registered.
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
        except Exception:  # noqa: BLE001 - cloudpickle may succeed where a serializer fails
            return super().reducer_override(obj)
        return deserialize, (header, [self._frame(frame) for frame in frames])

    @staticmethod
    def _functions_for(cls: type) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
        if cls.__module__.partition(".")[0] in _PICKLED_DIRECTLY:
            return None
        try:
            return dask_serialize.dispatch(cls), dask_deserialize.dispatch(cls)
        except TypeError:
            return None

    def _frame(self, frame: Any) -> Any:
        if type(frame) in (bytes, bytearray) and (
            not self._with_buffers or len(frame) <= _MAX_IN_BAND_SIZE
        ):
            return frame
        try:
            view = ensure_memoryview(frame)
        except TypeError:
            # Not bytes-like, such as text: a pickle can contain any object as a frame.
            return frame
        return pickle.PickleBuffer(view) if self._with_buffers else bytes(view)


def loads(x: Any, *, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle *x*.

    Pickles of exceptions that need tblib can be unpickled without it: exceptions then have no
    traceback, and a traceback object becomes None.

    Parameters
    ----------
    x
        Bytes-like.
    buffers
        The out-of-band buffers, in order.

    Raises
    ------
    PickleNotAllowedError
        If a message is being read from a connection on which nothing is unpickled.
    Exception
        Any error: unpickling runs code that *x* names.
    """
    check_unpickling()
    if not isinstance(buffers, (tuple, list)):
        buffers = list(buffers)
    try:
        return pickle.loads(x, buffers=buffers)
    except ModuleNotFoundError as e:
        if not is_about_tblib(e):
            raise
    return loads_without_tblib(x, buffers)


# Errors in unpickling


def is_own_error(e: Exception) -> bool:
    """Return whether an object has raised *e* while `loads` unpickled it.

    A malformed pickle is not an error of an object.  Neither is the end of an iterator, which
    coroutines and futures cannot raise.
    """
    if isinstance(e, (StopIteration, StopAsyncIteration)):
        return False
    code = None
    unpickled = False
    traceback = e.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        unpickled = unpickled or code is loads.__code__
        traceback = traceback.tb_next
    # An error of pickle itself has no frame below that of loads().
    malformed = code is loads.__code__ and isinstance(e, (pickle.UnpicklingError, EOFError))
    return unpickled and not malformed


_ORIGIN = "This error was raised while an object was unpickled"


def note_origin(e: Exception, pickled: Any) -> None:
    """Add a note to *e* that it was raised while *pickled* was unpickled."""
    if not any(note.startswith(_ORIGIN) for note in getattr(e, "__notes__", ())):
        names = ", ".join(_names(pickled))
        e.add_note(f"{_ORIGIN}{' that refers to ' * bool(names)}{names}")


#: Maximum number of opcodes of a pickle that are read to find names in it.
_MAX_OPCODES = 1000
#: Maximum number of names in a note.
_MAX_NAMES = 3


def _names(pickled: Any) -> list[str]:
    """Return the first functions and classes that a pickle names."""
    names: dict[str, None] = {}
    strings: list[str] = []
    try:
        for opcode, argument, _ in islice(pickletools.genops(bytes(pickled)), _MAX_OPCODES):
            if opcode.name in _STRING_OPCODES:
                strings.append(str(argument))
            elif opcode.name in ("STACK_GLOBAL", "GLOBAL"):
                name = strings[-2:] if opcode.name == "STACK_GLOBAL" else str(argument).split(" ")
                names[".".join(name)] = None
                if len(names) == _MAX_NAMES:
                    break
    except Exception:  # noqa: BLE001 - the names before a malformed opcode are still useful
        return list(names)
    return list(names)


# Names of classes in pickles

# The opcodes in a pickle of a function or class, apart from the two strings that name it.
_FRAMING_OPCODES = frozenset(("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "STOP", "STACK_GLOBAL"))
_STRING_OPCODES = frozenset(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"))


def pickled_name(pickled: bytes) -> str | None:
    """Return the name in a pickle of a class or function, without unpickling it.

    Parameters
    ----------
    pickled
        The pickle.

    Returns
    -------
    str or None
        Module and name, with a dot between them; None for a pickle of anything else.

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
    except Exception:  # noqa: BLE001 - pickletools raises errors of several types
        return None
    return ".".join(strings) if len(strings) == 2 else None
