"""Tables of functions by type, and libraries that register their types when one is seen."""

from __future__ import annotations

import threading
from collections import OrderedDict
from fractions import Fraction

import pytest

from distributed.protocol import dask_serialize
from distributed.protocol.dispatch import Dispatch


def test_the_function_of_the_nearest_base_is_used():
    table = Dispatch()
    table.register(object, lambda x: "object")
    table.register(dict, lambda x: "dict")
    assert [table(x) for x in (1, {}, OrderedDict())] == ["object", "dict", "dict"]


def test_a_later_registration_replaces_an_earlier_one():
    table = Dispatch()
    table.register(int, lambda x: "first")
    assert table(True) == "first"
    table.register(bool, lambda x: "second")
    assert table(True) == "second"


def test_several_types_can_share_a_function():
    table = Dispatch()

    @table.register((int, str))
    def twice(x):
        return x * 2

    assert (table(2), table("a")) == (4, "aa")


def test_further_arguments_are_passed_to_the_function():
    table = Dispatch()
    table.register(int, lambda x, y, z=0: x + y + z)
    assert table(1, 2, z=3) == 6


def test_a_type_that_is_not_registered_is_an_error_that_names_it():
    with pytest.raises(TypeError, match=r"No dispatch for <class 'int'>: .* for table"):
        Dispatch("table").dispatch(int)


def test_registering_anything_but_a_type_is_an_error():
    with pytest.raises(TypeError, match="register_lazy"):
        Dispatch().register("numpy.ndarray", len)


class TestLazy:
    def test_a_library_registers_when_one_of_its_types_is_seen(self):
        table = Dispatch()
        ran = []

        @table.register_lazy("fractions")
        def register():
            ran.append(1)
            table.register(Fraction, str)

        assert not ran
        with pytest.raises(TypeError):
            table.dispatch(int)
        assert not ran
        assert (table(Fraction(1, 2)), table(Fraction(1, 3))) == ("1/2", "1/3")
        assert ran == [1]

    def test_a_subclass_in_another_module_registers_the_library(self):
        class Mine(Fraction):
            pass

        table = Dispatch()
        table.register_lazy("fractions", lambda: table.register(Fraction, str))
        assert table(Mine(1, 2)) == "1/2"

    def test_several_functions_can_register_types_of_one_library(self):
        table = Dispatch()
        table.register_lazy("fractions", lambda: table.register(Fraction, str))
        table.register_lazy("fractions", lambda: table.register(int, repr))
        assert (table(Fraction(1, 2)), table(3)) == ("1/2", "3")

    def test_a_thread_waits_while_another_registers_a_library(self):
        table = Dispatch()
        registering, proceed = threading.Event(), threading.Event()

        @table.register_lazy("fractions")
        def register():
            registering.set()
            proceed.wait(10)
            table.register(Fraction, str)

        results = []
        threads = [
            threading.Thread(target=lambda: results.append(table(Fraction(1, 2)))) for _ in range(2)
        ]
        threads[0].start()
        registering.wait(10)
        threads[1].start()
        proceed.set()
        for thread in threads:
            thread.join()
        assert results == ["1/2", "1/2"]


def test_builtins_are_registered():
    assert dask_serialize.dispatch(bytes)(b"abc") == ({}, [b"abc"])


def test_a_type_that_is_removed_from_the_functions_is_no_longer_found():
    # Tests of the original and of libraries remove the types that they have registered.
    table = Dispatch("area")
    table.register((int, str), len)
    assert table.dispatch(bool) is len
    del table._lookup[int]
    assert table._lookup.pop(str) is len
    for cls in (bool, int, str):
        with pytest.raises(TypeError, match="No dispatch for"):
            table.dispatch(cls)
    with pytest.raises(TypeError, match="registered"):
        table.find_type("int")
