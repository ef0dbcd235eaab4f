"""Pickling by reference, by value and through serializers; pickles of exceptions from tblib."""

from __future__ import annotations

import importlib.util
import io
import pickle as plain
import subprocess
import sys
import threading
import types
from array import array
from functools import partial

import cloudpickle
import pytest

from distributed.protocol import (
    Serialize,
    ToPickle,
    dask_deserialize,
    dask_serialize,
    deserialize,
    pickle,
    register_serialization,
    serialize,
)
from distributed.protocol import dumps as dumps_message
from distributed.protocol import loads as loads_message
from distributed.protocol.pickle import pickled_name
from distributed.protocol.tblib_pickles import loads_without_tblib
from distributed.tests import ids


class Holder:
    """An object whose buffer is pickled out of band."""

    def __init__(self, buffer):
        self.buffer = buffer

    def __reduce_ex__(self, protocol):
        return Holder, (plain.PickleBuffer(self.buffer),)


def module_function(x):
    return x + 1


@pytest.mark.parametrize("x", [1, "a", None, [1, {"a": (2,)}], {1, 2}, 1j, module_function, Holder])
def test_importable_objects_are_pickled_by_reference(x):
    assert pickle.dumps(x) == plain.dumps(x, protocol=5)
    assert pickle.loads(pickle.dumps(x)) == x


def test_lambdas_closures_and_local_classes_are_pickled_by_value():
    n = 2

    class Local:
        def double(self, x):
            return n * x

    assert pickle.loads(pickle.dumps(lambda x: x + n))(1) == 3
    assert pickle.loads(pickle.dumps(partial(lambda x, y: x * y, 3)))(4) == 12
    assert pickle.loads(pickle.dumps([Local()]))[0].double(4) == 8


MAIN = """
import sys
from distributed.protocol import pickle
from distributed.tests import ids

class Model:
    def __init__(self, x):
        self.x = x
    def double(self):
        return helper(self.x)

def helper(x):
    return 2 * x

large = {"padding": "x" * 10_000, "model": Model(21)}
sys.stdout.buffer.write(pickle.dumps([large, helper]))
"""


def test_definitions_in_main_are_pickled_by_value():
    done = subprocess.run([sys.executable, "-c", MAIN], capture_output=True, check=True)
    large, helper = pickle.loads(done.stdout)
    assert large["model"].double() == 42
    assert helper(2) == 4


def test_modules_registered_with_cloudpickle_are_pickled_by_value(monkeypatch):
    module = types.ModuleType("only_here")
    exec("class Model:\n    answer = 42", vars(module))
    module.Model.__module__ = "only_here"
    monkeypatch.setitem(sys.modules, "only_here", module)
    cloudpickle.register_pickle_by_value(module)
    try:
        pickled = pickle.dumps(module.Model())
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, "only_here")
    assert pickle.loads(pickled).answer == 42


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("x", [[1, "a"], lambda: 1])
def test_the_protocol_can_be_chosen(protocol, x):
    assert pickle.dumps(x, protocol=protocol)[:2] == bytes([0x80, protocol])


def test_the_error_for_an_object_that_cannot_be_pickled_is_that_of_cloudpickle():
    with pytest.raises(TypeError, match=r"cannot pickle '_thread.lock' object"):
        pickle.dumps(threading.Lock())


class TestBuffers:
    @pytest.mark.parametrize("also", [[], [lambda: 1]], ids=["pickle", "cloudpickle"])
    def test_travel_out_of_band(self, also):
        memory = bytearray(b"abc")
        buffers = []
        pickled = pickle.dumps([Holder(memory), *also], buffer_callback=buffers.append)
        assert [memoryview(buffer).obj for buffer in buffers] == [memory]
        assert pickle.loads(pickled, buffers=buffers)[0].buffer.raw().obj is memory

    def test_travel_in_band_without_a_callback(self):
        assert pickle.loads(pickle.dumps(Holder(bytearray(b"abc")))).buffer == b"abc"

    def test_travel_in_band_with_an_old_protocol(self):
        buffers = []
        pickled = pickle.dumps({"x": b"abc"}, buffer_callback=buffers.append, protocol=4)
        assert (pickle.loads(pickled), buffers) == ({"x": b"abc"}, [])

    def test_can_be_passed_as_an_iterator(self):
        buffers = []
        pickled = pickle.dumps(Holder(bytearray(b"abc")), buffer_callback=buffers.append)
        assert memoryview(pickle.loads(pickled, buffers=iter(buffers)).buffer) == b"abc"

    @pytest.mark.parametrize("sent_as", [bytearray, bytes])
    @pytest.mark.parametrize("arrives_in", [bytearray, bytes])
    def test_are_as_writable_as_they_were(self, sent_as, arrives_in):
        header, frames = serialize(Holder(sent_as(b"abc")))
        arrived = deserialize(header, [arrives_in(frame) for frame in frames])
        buffer = memoryview(arrived.buffer)
        assert buffer == b"abc"
        assert buffer.readonly is (sent_as is bytes)

    def test_of_the_right_writability_are_not_copied(self):
        header, (pickled, _) = serialize(Holder(bytearray(b"abc")))
        memory = bytearray(b"xyz")
        assert memoryview(deserialize(header, [pickled, memory]).buffer).obj is memory

    def test_that_are_not_contiguous_are_copied(self):
        header, frames = serialize(Holder(array("b", range(6))))
        assert memoryview(deserialize(header, frames).buffer) == bytes(range(6))


without_tblib = pytest.mark.skipif(
    importlib.util.find_spec("tblib") is not None, reason="tblib is installed"
)


class Fake:
    """An object that is pickled as a call of tblib's function *name* with *args*."""

    def __init__(self, name, *args, state=None):
        self.name, self.args, self.state = name, args, state


class _FakePickler(plain._Pickler):
    def save(self, obj, save_persistent_id=True):
        known = self.memo.get(id(obj))
        if known is not None:
            self.write(self.get(known[0]))
        elif isinstance(obj, Fake):
            self.write(plain.GLOBAL + f"tblib.pickling_support\n{obj.name}\n".encode())
            self.save(obj.args)
            self.write(plain.REDUCE)
            if obj.state:
                self.save(obj.state)
                self.write(plain.BUILD)
            self.memoize(obj)
        else:
            super().save(obj, save_persistent_id)


def pickled_with_tblib(x):
    file = io.BytesIO()
    _FakePickler(file, 5).dump(x)
    return file.getvalue()


class Custom(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b


TRACEBACK = Fake("unpickle_traceback", None, 1, None)


def with_attributes(cls, args, attributes=None, *, cause=None, notes=None, new_args=(), **fields):
    state = {"__dict__": attributes or {}, "args": args, **fields}
    return Fake(
        "unpickle_exception_with_attrs",
        *(cls, state, cause, TRACEBACK, cause, cause is not None, notes, new_args),
    )


class TestWithoutTblib:
    def test_an_exception_arrives_with_attributes_cause_and_notes(self):
        cause = with_attributes(KeyError, ("c",))
        sent = with_attributes(ValueError, ("x", 2), {"attr": 5}, cause=cause, notes=["n"])
        e = loads_without_tblib(pickled_with_tblib(sent))
        assert (type(e), e.args, e.attr, e.__notes__) == (ValueError, ("x", 2), 5, ["n"])
        assert (type(e.__cause__), e.__cause__.args) == (KeyError, ("c",))
        assert e.__context__ is e.__cause__
        assert e.__suppress_context__
        assert e.__traceback__ is None

    def test_an_exception_whose_constructor_takes_other_arguments_arrives(self):
        e = loads_without_tblib(pickled_with_tblib(with_attributes(Custom, ("a",), {"b": 7})))
        assert (type(e), e.args, e.b) == (Custom, ("a",), 7)

    def test_fields_of_builtin_exceptions_arrive(self):
        e = loads_without_tblib(
            pickled_with_tblib(
                [
                    with_attributes(
                        FileNotFoundError, (2, "no"), errno=2, strerror="no", filename="f"
                    ),
                    with_attributes(UnicodeDecodeError, ("utf8", b"a", 0, 1, "reason")),
                    with_attributes(StopIteration, (5,)),
                ]
            )
        )
        assert str(e[0]) == "[Errno 2] no: 'f'"
        assert "reason" in str(e[1])
        assert e[2].value == 5

    def test_an_exception_group_arrives_with_its_members(self):
        args = ("g", [with_attributes(ValueError, (1,))])
        sent = with_attributes(ExceptionGroup, args, new_args=args)
        e = loads_without_tblib(pickled_with_tblib(sent))
        assert (e.message, [type(x) for x in e.exceptions]) == ("g", [ValueError])

    def test_an_exception_with_its_own_reduce_arrives(self):
        sent = Fake(
            *("unpickle_exception", ImportError, ("a",), None, TRACEBACK), state={"name": "module"}
        )
        e = loads_without_tblib(pickled_with_tblib(sent))
        assert (type(e), e.args, e.name) == (ImportError, ("a",), "module")

    @without_tblib
    def test_loads_works_without_tblib(self):
        e = pickle.loads(pickled_with_tblib(with_attributes(ValueError, ("x",))))
        assert (type(e), e.args) == (ValueError, ("x",))

    @without_tblib
    def test_a_traceback_becomes_none(self):
        assert pickle.loads(pickled_with_tblib([TRACEBACK])) == [None]

    def test_another_missing_module_is_an_error(self):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            pickle.loads(b"cno_such_module\nname\n.")


class Handle:
    """A class with a serializer, whose instances cannot be pickled."""

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
    """Objects within a pickle whose types have serializers of their own."""

    @pytest.fixture(autouse=True)
    def registered(self):
        register_serialization(Handle, serialize_handle, deserialize_handle)
        yield
        for table in (dask_serialize, dask_deserialize):
            for cls in (Handle, Box):
                table._lookup.pop(cls, None)

    @pytest.mark.parametrize("protocol", [4, 5])
    @pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"abc" * 5000)])
    def test_use_their_serializers(self, protocol, data):
        (arrived,) = pickle.loads(pickle.dumps([Box(Handle(data))], protocol=protocol))
        assert type(arrived.content) is Handle
        assert bytes(arrived.content.data) == bytes(data)

    def test_use_them_within_objects_that_are_pickled_by_value(self):
        handle = Handle(b"abc")
        assert pickle.loads(pickle.dumps(lambda: handle))().data == b"abc"

    def test_stay_the_same_object(self):
        handle = Handle(b"abc")
        one, other = pickle.loads(pickle.dumps([handle, Box(handle)]))
        assert other.content is one

    def test_have_their_memory_out_of_band(self):
        memory = bytearray(100_000)
        buffers = []
        pickled = pickle.dumps(Box(Handle(memory)), buffer_callback=buffers.append)
        assert len(pickled) < 1000
        (buffer,) = buffers
        memory[7] = 42
        assert buffer.raw()[7] == 42
        received = memoryview(bytearray(buffer))
        assert pickle.loads(pickled, buffers=[received]).content.data.obj is received.obj

    def test_use_them_in_messages(self):
        handle = Handle(bytearray(b"ab" * 50_000))
        for wrap in (Serialize, ToPickle, lambda x: x):
            frames = [bytes(frame) for frame in dumps_message({"x": wrap(Box(handle))})]
            assert max(map(len, frames)) == 100_000
            assert bytes(loads_message(frames)["x"].content.data) == bytes(handle.data)

    def test_are_pickled_if_their_serializer_refuses_them(self):
        class Odd:
            pass

        def refuse(odd):
            raise NotImplementedError

        register_serialization(Odd, refuse, refuse)
        assert type(pickle.loads(pickle.dumps(Box(Odd()))).content).__name__ == "Odd"

    def test_may_have_frames_that_are_not_bytes(self):
        register_serialization(
            Box, lambda box: ({}, ["text", 5]), lambda header, frames: Box(tuple(frames))
        )
        assert pickle.loads(pickle.dumps(lambda box=Box(1): box))().content == ("text", 5)  # noqa: B008

    def test_are_pickled_directly_if_plain_pickle_can(self):
        register_serialization(Box, lambda box: ({}, [b"box"]), lambda header, frames: None)
        assert pickle.dumps(Box(1)) == plain.dumps(Box(1), protocol=5)

    def test_numpy_arrays_are_pickled_by_numpy(self):
        np = pytest.importorskip("numpy")
        x = np.arange(100_000)
        buffers = []
        pickled = pickle.dumps([lambda: x], buffer_callback=buffers.append)
        assert b"deserialize_numpy" not in pickled
        (buffer,) = buffers
        assert np.shares_memory(np.frombuffer(buffer.raw(), x.dtype), x)
        assert np.array_equal(pickle.loads(pickled, buffers=buffers)[0](), x)


class TestPickledName:
    @pytest.mark.parametrize("protocol", [0, 2, 4, 5])
    @pytest.mark.parametrize("cls", [Box, dict, threading.Thread])
    def test_is_read_without_unpickling(self, cls, protocol):
        name = pickled_name(plain.dumps(cls, protocol=protocol))
        assert name is not None
        assert name.replace("__builtin__", "builtins") == f"{cls.__module__}.{cls.__name__}"

    @pytest.mark.parametrize("x", [Box(1), 5, ("a", "b"), lambda: 1, [int, str]], ids=ids.shown)
    def test_is_none_for_other_objects(self, x):
        assert pickled_name(pickle.dumps(x)) is None

    @pytest.mark.parametrize(
        "pickled", [b"", b"garbage", pickle.dumps(Box)[:-1], pickle.dumps(Box)[:9], None]
    )
    def test_is_none_for_invalid_pickles(self, pickled):
        assert pickled_name(pickled) is None
