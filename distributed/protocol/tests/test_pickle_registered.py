"""Registered types inside of pickles, and what a pickle names."""

from __future__ import annotations

import pickle
import threading

import pytest

from distributed.protocol import (
    Serialize,
    ToPickle,
    dask_deserialize,
    dask_serialize,
    register_serialization,
)
from distributed.protocol import dumps as protocol_dumps
from distributed.protocol import loads as protocol_loads
from distributed.protocol.dispatch import typename
from distributed.protocol.pickle import dumps, loads, pickled_name


class Handle:
    """Cannot be pickled, but has a serializer."""

    def __init__(self, data):
        self.data = data
        self.lock = threading.Lock()


def serialize_handle(handle):
    return {"kind": "handle"}, [handle.data]


def deserialize_handle(header, frames):
    assert header == {"kind": "handle"}
    return Handle(frames[0])


class Box:
    def __init__(self, content):
        self.content = content


class TestRegisteredTypes:
    """Objects inside of a pickle that have serializers of their own."""

    @pytest.fixture(autouse=True)
    def registered(self):
        register_serialization(Handle, serialize_handle, deserialize_handle)
        yield
        for table in (dask_serialize, dask_deserialize):
            del table._functions[Handle]
            del table._named[typename(Handle)]
            table.resolved.clear()

    @pytest.mark.parametrize("protocol", [4, 5])
    @pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"abc" * 5000)])
    def test_keep_their_serializers(self, protocol, data):
        (arrived,) = loads(dumps([Box(Handle(data))], protocol=protocol))
        assert type(arrived.content) is Handle
        assert bytes(arrived.content.data) == bytes(data)

    def test_keep_them_in_what_is_pickled_by_value(self):
        handle = Handle(b"abc")
        assert loads(dumps(lambda: handle))().data == b"abc"

    def test_stay_the_same_object(self):
        handle = Handle(b"abc")
        one, other = loads(dumps([handle, Box(handle)]))
        assert other.content is one

    def test_have_their_memory_out_of_band(self):
        memory = bytearray(100_000)
        buffers = []
        pickled = dumps(Box(Handle(memory)), buffer_callback=buffers.append)
        assert len(pickled) < 1000
        (buffer,) = buffers
        memory[7] = 42
        assert buffer.raw()[7] == 42
        received = memoryview(bytearray(buffer))
        assert loads(pickled, buffers=[received]).content.data.obj is received.obj

    def test_keep_them_in_messages(self):
        handle = Handle(bytearray(b"ab" * 50_000))
        for wrap in (Serialize, ToPickle, lambda x: x):
            frames = [bytes(frame) for frame in protocol_dumps({"x": wrap(Box(handle))})]
            assert max(map(len, frames)) == 100_000
            assert bytes(protocol_loads(frames)["x"].content.data) == bytes(handle.data)

    def test_are_pickled_where_their_serializer_does_not_take_them(self):
        class Odd:
            pass

        def refuse(odd):
            raise NotImplementedError

        register_serialization(Odd, refuse, refuse)
        assert type(loads(dumps(Box(Odd()))).content).__name__ == "Odd"

    def test_are_pickled_as_they_are_where_plain_pickle_does(self):
        register_serialization(Box, lambda box: ({}, [b"box"]), lambda header, frames: None)
        try:
            assert dumps(Box(1)) == pickle.dumps(Box(1), protocol=5)
        finally:
            for table in (dask_serialize, dask_deserialize):
                del table._functions[Box]
                table.resolved.clear()

    def test_arrays_are_pickled_as_numpy_does(self):
        np = pytest.importorskip("numpy")
        x = np.arange(100_000)
        buffers = []
        pickled = dumps([lambda: x], buffer_callback=buffers.append)
        assert b"deserialize_numpy" not in pickled
        (buffer,) = buffers
        assert np.shares_memory(np.frombuffer(buffer.raw(), x.dtype), x)
        assert np.array_equal(loads(pickled, buffers=buffers)[0](), x)


class TestPickledName:
    @pytest.mark.parametrize("protocol", [0, 2, 4, 5])
    @pytest.mark.parametrize("cls", [Box, dict, threading.Thread])
    def test_is_read_without_unpickling(self, cls, protocol):
        name = pickled_name(pickle.dumps(cls, protocol=protocol))
        assert name is not None
        assert name.replace("__builtin__", "builtins") == f"{cls.__module__}.{cls.__name__}"

    @pytest.mark.parametrize("x", [Box(1), 5, ("a", "b"), lambda: 1, [int, str]], ids=str)
    def test_is_that_of_nothing_else(self, x):
        assert pickled_name(dumps(x)) is None

    @pytest.mark.parametrize("pickled", [b"", b"garbage", dumps(Box)[:-1], dumps(Box)[:9], None])
    def test_is_that_of_no_garbage(self, pickled):
        assert pickled_name(pickled) is None
