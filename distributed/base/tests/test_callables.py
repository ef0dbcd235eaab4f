"""Inspection of functions, and import by name."""

from __future__ import annotations

import asyncio
import functools
import math
import os
from weakref import WeakMethod

import pytest
from tornado import gen

from distributed.base.callables import (
    call_alive,
    has_keyword,
    import_term,
    iscoroutinefunction,
)


def positional_only(a, /, b): ...
def with_kwargs(a, *args, b=1, **kw): ...


@pytest.mark.parametrize(
    ("func", "keyword", "expected"),
    [
        (with_kwargs, "a", True),
        (with_kwargs, "b", True),
        (with_kwargs, "x", False),
        (with_kwargs, "kw", False),
        (with_kwargs, "args", False),
        (positional_only, "a", False),
        (positional_only, "b", True),
        (functools.partial(with_kwargs, b=2), "b", True),
        (functools.partial(with_kwargs, 1), "a", False),
        (dict, "a", False),
    ],
)
def test_has_keyword_is_true_for_parameters_that_can_be_passed_by_name(func, keyword, expected):
    assert has_keyword(func, keyword) is expected


async def native(): ...
@gen.coroutine
def decorated():
    yield


class Methods:
    async def method(self): ...
    @classmethod
    async def class_method(cls): ...
    @staticmethod
    async def static_method(): ...


@pytest.mark.parametrize(
    "func",
    [
        native,
        decorated,
        functools.partial(functools.partial(native)),
        functools.partial(decorated),
        Methods().method,
        Methods.class_method,
        Methods.static_method,
        asyncio.sleep,
    ],
)
def test_coroutine_functions_are_recognized(func):
    assert iscoroutinefunction(func)


@pytest.mark.parametrize("func", [len, lambda: None, Methods, functools.partial(print)])
def test_other_callables_are_not_coroutine_functions(func):
    assert not iscoroutinefunction(func)


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("math", math),
        ("math.sqrt", math.sqrt),
        ("os.path", os.path),
        ("os.path.join", os.path.join),
    ],
)
def test_import_term_returns_a_module_or_its_attribute(name, term):
    assert import_term(name) is term


def test_import_term_from_a_missing_module_is_an_import_error():
    with pytest.raises(ImportError, match="no_such_module"):
        import_term("no_such_module.term")


def test_import_term_of_a_missing_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_term"):
        import_term("math.no_such_term")


def test_call_alive_calls_a_method_as_long_as_its_object_exists():
    class Object:
        def __init__(self):
            self.calls = 0

        def method(self):
            self.calls += 1

    it = Object()
    method = WeakMethod(it.method)
    call_alive(method)
    assert it.calls == 1
    del it
    assert method() is None
    call_alive(method)
