"""Inspection of functions, and import of objects by name."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

from tornado import gen

__all__ = ["call_alive", "has_keyword", "import_term", "iscoroutinefunction"]


def call_alive(method: WeakMethod[Callable[[], None]]) -> None:
    """Call a method, unless its object is gone."""
    bound = method()
    if bound is not None:
        bound()


def has_keyword(func: Callable[..., Any], keyword: str) -> bool:
    """Return whether *func* has a parameter named *keyword* that can be passed by name.

    ``**kwargs`` does not count, because it accepts every name.  Builtins without a signature give
    False.

    Examples
    --------
    >>> def handler(comm, x=1, **kwargs): ...
    >>> has_keyword(handler, "comm"), has_keyword(handler, "y")
    (True, False)
    """
    try:
        parameter = inspect.signature(func).parameters.get(keyword)
    except (ValueError, TypeError):
        return False
    return parameter is not None and parameter.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )


def iscoroutinefunction(f: Callable[..., Any]) -> bool:
    """Return whether *f* is a coroutine function: ``async def``, or decorated by Tornado.

    A `functools.partial` is one if the function inside it is.
    """
    while isinstance(f, functools.partial):
        f = f.func
    return inspect.iscoroutinefunction(f) or gen.is_coroutine_function(f)


def import_term(name: str) -> Any:
    """Import and return an object by its full name: ``"package.module.attribute"`` or a module.

    Raises
    ------
    ImportError
        If the module does not exist.
    AttributeError
        If the module does not have that attribute.

    Examples
    --------
    >>> import_term("math.sqrt")(9)
    3.0
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        return importlib.import_module(attribute)
    return getattr(importlib.import_module(module_name), attribute)
