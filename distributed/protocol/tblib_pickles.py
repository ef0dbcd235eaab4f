"""Unpickling exceptions that a peer pickled with tblib, whether or not tblib is installed here.

tblib makes tracebacks picklable: pickles of exceptions then name functions and classes of tblib,
and cannot be unpickled without it.  The functions here take their place and rebuild the exception
(type, arguments, attributes, cause, context, notes).  Without tblib, tracebacks become None.

Errors of a call come through :func:`loads_exception`, which does not use tblib's own functions
even if tblib is installed: those lose the message of some builtin types.
:func:`distributed.protocol.pickle.loads` uses this module only if tblib is missing.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from types import FunctionType, MappingProxyType, TracebackType
from typing import Any

__all__ = ["is_about_tblib", "loads_exception", "loads_without_tblib"]


class _Record:
    """A stand-in for the objects of tblib, whose state is not needed."""


def _no_traceback(*args: Any) -> None:
    return None


def _exception(
    func: Callable[..., BaseException],
    args: tuple[Any, ...],
    cause: BaseException | None = None,
    traceback: TracebackType | None = None,
    context: BaseException | None = None,
    suppress_context: bool = False,
    notes: list[str] | None = None,
    *others: Any,
) -> BaseException:
    """Rebuild an exception from the result of its ``__reduce__``, as tblib pickles most types."""
    return _with_chain(func(*args), cause, traceback, context, suppress_context, notes)


def _exception_with_attributes(
    cls: type[BaseException],
    attributes: dict[str, Any],
    cause: BaseException | None = None,
    traceback: TracebackType | None = None,
    context: BaseException | None = None,
    suppress_context: bool = False,
    notes: list[str] | None = None,
    new_args: tuple[Any, ...] = (),
    *others: Any,
) -> BaseException:
    """Rebuild an exception from its attributes, as tblib pickles types without ``__reduce__``."""
    state = dict(attributes)
    args = state.pop("args", ())
    exception = cls.__new__(cls, *(new_args or args))
    if not isinstance(cls.__init__, FunctionType):
        # Only __init__ can set some fields of builtin exceptions.  An __init__ written in Python
        # is not called: it may take other arguments than args.
        exception.__init__(*args)  # type: ignore[misc]
    exception.args = args
    exception.__dict__.update(state.pop("__dict__", {}))
    for name, value in state.items():
        setattr(exception, name, value)
    return _with_chain(exception, cause, traceback, context, suppress_context, notes)


def _with_chain(
    exception: BaseException,
    cause: BaseException | None,
    traceback: TracebackType | None,
    context: BaseException | None,
    suppress_context: bool,
    notes: list[str] | None,
) -> BaseException:
    exception.__cause__ = cause
    exception.__context__ = context
    exception.__suppress_context__ = suppress_context
    if notes is not None:
        exception.__notes__ = notes
    return exception.with_traceback(traceback)


_EXCEPTIONS = MappingProxyType(
    {
        "unpickle_exception": _exception,
        "unpickle_exception_with_attrs": _exception_with_attributes,
    }
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "tblib.pickling_support" and name in _EXCEPTIONS:
            return _EXCEPTIONS[name]
        return super().find_class(module, name)


class _UnpicklerWithoutTblib(_Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "tblib" and name not in _EXCEPTIONS:
            return _no_traceback if name == "unpickle_traceback" else _Record
        return super().find_class(module, name)


def is_about_tblib(error: ModuleNotFoundError) -> bool:
    """Return whether the module that was not found belongs to tblib."""
    return error.name is not None and error.name.partition(".")[0] == "tblib"


def loads_without_tblib(data: Any, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle *data*, with stand-ins for the functions and classes of tblib."""
    return _UnpicklerWithoutTblib(io.BytesIO(data), buffers=buffers).load()


def loads_exception(data: Any) -> Any:
    """Unpickle an exception, with its traceback if tblib is installed."""
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except ModuleNotFoundError as e:
        if not is_about_tblib(e):
            raise
    return loads_without_tblib(data)
