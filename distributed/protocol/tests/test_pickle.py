"""What is pickled by reference and what by value, buffers out of band, and exceptions of peers."""

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

from distributed.protocol import deserialize, pickle, serialize
from distributed.protocol.tblib_pickles import loads_without_tblib


class Holder:
    """Pickles its buffer out of band."""

    def __init__(self, buffer):
        self.buffer = buffer

    def __reduce_ex__(self, protocol):
        return Holder, (plain.PickleBuffer(self.buffer),)


def module_function(x):
    return x + 1


@pytest.mark.parametrize("x", [1, "a", None, [1, {"a": (2,)}], {1, 2}, 1j, module_function, Holder])
def test_what_can_be_imported_is_pickled_by_reference(x):
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


def test_what_is_defined_in_main_is_pickled_by_value():
    done = subprocess.run([sys.executable, "-c", MAIN], capture_output=True, check=True)
    large, helper = pickle.loads(done.stdout)
    assert large["model"].double() == 42
    assert helper(2) == 4


def test_modules_that_are_registered_by_value_are_honoured(monkeypatch):
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


def test_the_error_for_what_cannot_be_pickled_says_so():
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

    def test_travel_in_band_where_the_protocol_knows_no_other_way(self):
        buffers = []
        pickled = pickle.dumps({"x": b"abc"}, buffer_callback=buffers.append, protocol=4)
        assert (pickle.loads(pickled), buffers) == ({"x": b"abc"}, [])

    def test_may_be_an_iterator(self):
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

    def test_that_arrive_as_they_should_be_are_not_copied(self):
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
    """Pickles as tblib's function of that name with *args*."""

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

    def test_an_exception_whose_constructor_wants_more_arrives(self):
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

    def test_an_exception_that_reduces_itself_arrives(self):
        sent = Fake(
            *("unpickle_exception", ImportError, ("a",), None, TRACEBACK), state={"name": "module"}
        )
        e = loads_without_tblib(pickled_with_tblib(sent))
        assert (type(e), e.args, e.name) == (ImportError, ("a",), "module")

    @without_tblib
    def test_loads_falls_back_to_it(self):
        e = pickle.loads(pickled_with_tblib(with_attributes(ValueError, ("x",))))
        assert (type(e), e.args) == (ValueError, ("x",))

    @without_tblib
    def test_a_traceback_arrives_as_none(self):
        assert pickle.loads(pickled_with_tblib([TRACEBACK])) == [None]

    def test_other_modules_that_are_absent_are_still_an_error(self):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            pickle.loads(b"cno_such_module\nname\n.")
