"""Unpickling exceptions that a peer pickled with tblib, whether or not tblib is here.

tblib lets tracebacks be pickled: exceptions then name functions and classes of its package, and
without it nothing of them would arrive.  Here those names stand for others that rebuild the
exception (type, arguments, attributes, cause, context, notes).  Where tblib is absent tracebacks
are left out: what arrives in their place is None.

:func:`loads_exception` is for what is known to be an exception; it comes here even where tblib is
installed, since that one's own way loses the message of some builtin types.
:func:`distributed.protocol.pickle.loads` comes here only after it missed tblib.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from types import FunctionType, MappingProxyType, TracebackType
from typing import Any

__all__ = ["loads_exception", "loads_without_tblib"]


class _Record:
    """Takes the state of one of tblib's objects, of which nothing is needed."""


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
    """Rebuild an exception from what its own ``__reduce__`` gave, as tblib pickles most."""
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
    """Rebuild an exception of a type with no ``__reduce__`` of its own, as tblib pickles those."""
    state = dict(attributes)
    args = state.pop("args", ())
    exception = cls.__new__(cls, *(new_args or args))
    if not isinstance(cls.__init__, FunctionType):
        # Some builtin exceptions keep their fields out of reach of setattr.  An __init__ written
        # in Python may want other arguments than those that ended up in args.
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


def loads_without_tblib(data: Any, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle *data*, with stand-ins for what it refers to in tblib."""
    return _UnpicklerWithoutTblib(io.BytesIO(data), buffers=buffers).load()


def loads_exception(data: Any) -> Any:
    """Unpickle an exception, with its traceback if tblib is installed."""
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition(".")[0] != "tblib":
            raise
    return loads_without_tblib(data)
