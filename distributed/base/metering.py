"""A hook through which low-level code is metered, at no cost while nothing listens.

Serialization and the offload thread stand below the `context_meter` that a server shares with the
roles above it.  :mod:`distributed.core.host` connects that meter to this hook; until then nothing
is metered.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

__all__ = ["connect", "metered", "unmetered"]

P = ParamSpec("P")
T = TypeVar("T")

#: Return a true value if anything listens to the measurements of the current context.  Without a
#: meter it is ``bool``, which returns False.  Callers look it up here at each use.
is_metered: Callable[[], Any] = bool

#: Return a context manager that measures seconds under the label that it is given.
measure: Callable[[str], AbstractContextManager[Any]] = nullcontext


def connect(
    new_measure: Callable[[str], AbstractContextManager[Any]], new_is_metered: Callable[[], Any]
) -> None:
    """Send measurements to a meter.

    Parameters
    ----------
    new_measure, new_is_metered
        The new values of `measure` and `is_metered`.
    """
    global measure, is_metered
    measure, is_metered = new_measure, new_is_metered


def metered(label: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function, so that the seconds of each call are measured under *label*."""

    def decorate(func: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(func)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if not is_metered():
                return func(*args, **kwargs)
            with measure(label):
                return func(*args, **kwargs)

        return call

    return decorate


def unmetered(func: Callable[P, T]) -> Callable[P, T]:
    """Return the function that `metered` decorated, for code that asks `is_metered` itself."""
    original: Callable[P, T] = inspect.unwrap(func)
    return original
