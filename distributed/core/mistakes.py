"""Mistakes of callers, as opposed to faults of handlers.

A server logs a mistake as one line: the caller gets the error, and its traceback would show only
this package.  A fault of a handler is logged with its traceback.  Both travel to the caller as
errors of Python's own classes, which peers of the original have.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any, TypeVar

__all__ = ["BadCall", "BadRequest", "Mistake", "bad_call", "do_not_fit", "plain"]

_E = TypeVar("_E", bound=BaseException)

#: The modules that call handlers.
_CALLING = frozenset(f"distributed.core.{name}" for name in ("answers", "requests", "streams"))

#: What Python says after the name of a function whose parameters do not fit.
_COMPLAINT = re.compile(
    r"(got an unexpected keyword argument|missing \d+ required|takes |got multiple values for"
    r"|got some positional-only)"
)


class Mistake(Exception):
    """The caller of an operation, and not its handler, has caused the error."""


class BadRequest(Mistake, ValueError):
    """A request that cannot be answered, such as one for an unknown operation."""


class BadCall(Mistake, TypeError):
    """A request whose arguments, or whose kind of call, do not fit the handler."""


def plain(exc: BaseException) -> BaseException:
    """Return the error that travels to the caller: of Python's class instead of one from here."""
    if isinstance(exc, BadRequest):
        return _like(ValueError(*exc.args), exc)
    if isinstance(exc, BadCall):
        return _like(TypeError(*exc.args), exc)
    return exc


def _like(new: _E, exc: BaseException) -> _E:
    new.__cause__, new.__context__ = exc.__cause__, exc.__context__
    new.__suppress_context__ = exc.__suppress_context__
    for note in getattr(exc, "__notes__", ()):
        new.add_note(note)
    return new.with_traceback(exc.__traceback__)


def bad_call(exc: BaseException, where: str) -> BadCall:
    """Return *exc* as a `BadCall` whose text says where it was raised."""
    return _like(BadCall(f"{exc} ({where})"), exc)


def do_not_fit(
    exc: BaseException, handler: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Return whether *exc* was raised because arguments do not fit the signature of a handler.

    A `TypeError` inside the handler, for instance of a function that the handler calls wrongly, is
    not such an error.

    Parameters
    ----------
    exc
        The error of the call, with its traceback.
    handler, args, kwargs
        The function that was called, and its arguments.
    """
    if type(exc) is not TypeError or exc.__traceback__ is None:
        return False
    # The frame that made the call which failed: the function itself has not begun.
    tb = exc.__traceback__
    while tb.tb_next is not None:
        tb = tb.tb_next
    frame = tb.tb_frame
    if frame.f_globals.get("__name__") in _CALLING:
        try:
            signature = inspect.signature(handler, follow_wrapped=False)
        except ValueError:
            # Some functions written in C have no signature.
            return False
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            return True
        return False
    # A decorated handler: the decorator has passed the arguments on.
    codes, function = _wrappers(handler)
    name = f"{getattr(function, '__qualname__', None)}() "
    text = str(exc)
    return (
        frame.f_code in codes
        and text.startswith(name)
        and _COMPLAINT.match(text, len(name)) is not None
    )


def _wrappers(function: Any) -> tuple[set[CodeType], Any]:
    """Return the code of the functions around a function (`functools.wraps`), and that function."""
    codes: set[CodeType] = set()
    while hasattr(function, "__wrapped__"):
        if (code := getattr(function, "__code__", None)) is not None:
            codes.add(code)
        function = function.__wrapped__
    return codes, function
