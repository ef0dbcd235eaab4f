"""Call a function so that its frames, if they are kept, do not refer to those of the caller."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["call_detached"]

P = ParamSpec("P")
T = TypeVar("T")


def call_detached(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Return ``function(*args, **kwargs)``; kept frames of this call do not refer to the caller's.

    A frame that is kept, such as one in a traceback, keeps the frame that called it
    (``frame.f_back``), and so all frames of the stack with their variables.  If one of these
    variables refers to the traceback, directly or through an exception, that is a reference cycle:
    the values of all these variables stay in memory until the next collection of garbage.

    tblib rebuilds a traceback by raising and catching exceptions, so each traceback that it
    unpickles is kept in this way.

    Raises
    ------
    Exception
        The error of the function; its traceback has the frames of the caller.
    """

    # A generator that waits at ``yield`` has no caller, so its frame has no ``f_back``.  It must
    # not be closed later, because the frame would refer to the caller of that time.  An ordinary
    # generator is closed when it is deleted.  An asynchronous one is passed to a hook instead.
    async def generator() -> AsyncIterator[T]:
        yield function(*args, **kwargs)

    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, _leave_open)
    try:
        # This takes the hooks over.
        step: Any = generator().__anext__()
    finally:
        sys.set_asyncgen_hooks(*hooks)
    try:
        step.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("an asynchronous generator without `await` does not wait")


def _leave_open(generator: object) -> None:
    """Do nothing with an asynchronous generator that is deleted."""
