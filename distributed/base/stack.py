"""Calls that later do not hold the stack they were made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

__all__ = ["call_detached"]

P = ParamSpec("P")
T = TypeVar("T")


def call_detached(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Return ``function(*args, **kwargs)``; the frames of the call do not outlive the caller's.

    A frame that is kept, such as one in a traceback, keeps the frame that called it
    (``frame.f_back``) and so all frames of the stack with their variables.  If one of these
    refers to the traceback, directly or through an exception, that is a reference cycle: all
    values in all these variables stay in memory until the next collection of garbage.

    tblib rebuilds a traceback by raising and catching exceptions, so each traceback that it
    unpickles is kept in this way.

    Between calls, the frame of a generator has no ``f_back``.  So the function is called from a
    generator, which ends the chain.
    """

    def generator() -> Iterator[T]:
        yield function(*args, **kwargs)

    return next(generator())
