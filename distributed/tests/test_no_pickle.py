"""With ``allow-pickle`` off, only values that do not need pickle arrive, and others are refused."""

from __future__ import annotations

import asyncio
import os
from array import array
from contextlib import asynccontextmanager
from fractions import Fraction

import msgpack
import pytest

from distributed.base import config
from distributed.comm import connect, listen
from distributed.core import Server, Status, rpc
from distributed.protocol import (
    Pickled,
    Serialize,
    ToPickle,
    dask_deserialize,
    dask_serialize,
    dumps,
    loads,
    pickle,
    register_generic,
    register_serialization,
    serialize,
    to_serialize,
)
from distributed.protocol.exceptions import (
    FamilyNotAllowedError,
    PickleNotAllowedError,
    SerializationError,
)
from distributed.protocol.limits import LoadPolicy, check_unpickling
from distributed.tests import ids
from distributed.utils_test import gen_test

NO_PICKLE = LoadPolicy(allow_pickle=False)
#: The context of a sender whose peer does not unpickle.
CONTEXT = {"allow-pickle": False}

FORBIDDEN = "distributed.comm.allow-pickle"


class Bomb:
    """An object that runs code when it is unpickled."""

    exploded = False

    def __reduce__(self):
        return explode, ()


def explode():
    Bomb.exploded = True


@pytest.fixture(autouse=True)
def nothing_explodes():
    Bomb.exploded = False
    yield
    assert not Bomb.exploded


class Temperature:
    def __init__(self, kelvin):
        self.kelvin = kelvin

    def __eq__(self, other):
        return type(other) is type(self) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Hot(Temperature):
    pass


class Record(Temperature):
    pass


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_serialization(
        Temperature,
        lambda x: ({"type": type(x).__name__}, [str(x.kelvin).encode()]),
        lambda header, frames: globals()[header["type"]](int(bytes(frames[0]))),
    )
    register_generic(Record)
    yield
    for table in (dask_serialize, dask_deserialize):
        for cls in (Temperature, Record):
            del table._lookup[cls]


# Messages

WITHOUT_PICKLE = [
    {"op": "add", "x": 1, "y": [2.5, "z", b"b", None, {1, 2}]},
    {"status": Status.running},
    {"x": Serialize(b"abc"), "y": Serialize([b"a", bytearray(b"b"), memoryview(b"c")])},
    {"x": Serialize(array("d", [1.5])), "y": {"z": Serialize({"k": [b"v"]})}},
    Serialize(Temperature(300)),
    Serialize([Temperature(300), Hot(400), {"k": Temperature(0)}]),
    Serialize(Record(300)),
    Serialize(Record([Temperature(1), b"a"])),
]

#: Values that are pickled unless the context says that the receiver does not unpickle.
WITHOUT_PICKLE_IF_AGREED = [
    Serialize(123),
    Serialize("text"),
    Serialize({"a": 1, "b": {"c": None}}),
    {"x": Serialize([1, "a", [2]]), "y": Serialize(None)},
    Serialize(Record({1: 2})),
]


def unwrapped(x):
    if isinstance(x, Serialize):
        return x.data
    if isinstance(x, dict):
        return {key: unwrapped(value) for key, value in x.items()}
    return tuple(map(unwrapped, x)) if isinstance(x, list) else x


@pytest.mark.parametrize("msg", WITHOUT_PICKLE, ids=ids.shown)
@pytest.mark.parametrize("context", [None, CONTEXT, {"compression": "zlib"}], ids=ids.shown)
def test_registered_types_and_msgpack_values_arrive(msg, context):
    frames = [bytes(frame) for frame in dumps(msg, context=context)]
    arrived = loads(frames, policy=NO_PICKLE)
    assert arrived == loads(frames)
    assert arrived == unwrapped(msg)


@pytest.mark.parametrize("msg", WITHOUT_PICKLE_IF_AGREED, ids=ids.shown)
def test_msgpack_replaces_pickle_if_the_receiver_does_not_unpickle(msg):
    assert loads(dumps(msg, context=CONTEXT), policy=NO_PICKLE) == unwrapped(msg)


@pytest.mark.parametrize(
    "msg",
    [
        {"x": 1 + 2j},
        {"x": ToPickle(1)},
        {"x": [Bomb()]},
        ToPickle(Bomb()),
        Serialize(123),
        Serialize(Bomb()),
        Serialize([b"a", Bomb()]),
        Serialize(Record(Bomb())),
        Serialize(Fraction(1, 2)),
    ],
    ids=lambda msg: ids.shown(msg)[:40],
)
def test_a_pickled_value_is_refused(msg):
    with pytest.raises(PickleNotAllowedError, match=FORBIDDEN):
        loads(dumps(msg), policy=NO_PICKLE)


@pytest.mark.parametrize("msg", [{"x": 1 + 2j}, {"x": ToPickle(1)}, {"x": Bomb()}], ids=ids.shown)
def test_a_sender_refuses_a_value_that_it_would_have_to_pickle(msg):
    with pytest.raises(SerializationError, match=FORBIDDEN):
        dumps(msg, context=CONTEXT)


def test_a_sender_refuses_a_wrapped_value_that_only_pickle_can_serialize():
    with pytest.raises(SerializationError, match="receiver that unpickles nothing"):
        dumps(Serialize(Bomb()), context=CONTEXT, on_error="raise")
    frames = dumps({"x": Serialize(Bomb())}, context=CONTEXT)
    with pytest.raises(SerializationError, match="receiver that unpickles nothing"):
        loads(frames, policy=NO_PICKLE)


def test_pickled_values_can_be_passed_on():
    frames = [bytes(frame) for frame in dumps({"x": Serialize(Bomb())})]
    passed_on = loads(frames, deserialize=False, policy=NO_PICKLE)
    assert [bytes(frame) for frame in dumps(passed_on)] == frames


def packed(header, frames):
    header = msgpack.packb({**header, "num-sub-frames": len(frames)})
    return [msgpack.packb({"__Serialized__": 1}), header, *frames]


def test_the_type_in_a_header_is_not_unpickled():
    header, frames = serialize(Temperature(300))
    header["type-serialized"] = pickle.dumps(Bomb())
    assert loads(packed(header, frames), policy=NO_PICKLE) == Temperature(300)


def test_the_type_of_an_object_that_is_sent_by_attributes_is_not_unpickled():
    header, frames = serialize(Record(300))
    header["sub-header"]["type-serialized"] = pickle.dumps(Bomb())
    with pytest.raises(PickleNotAllowedError, match=FORBIDDEN):
        loads(packed(header, frames), policy=NO_PICKLE)


@pytest.mark.parametrize("name", ["os.system", "os._wrap_close", "nope.Nope", "object", 5, None])
def test_only_registered_types_are_found_by_name(name):
    header, frames = serialize(b"x")
    header["type"] = name
    with pytest.raises(ValueError, match="could not deserialize"):
        loads(packed(header, frames), policy=NO_PICKLE)


def test_arrays_arrive():
    np = pytest.importorskip("numpy")
    x = np.arange(12).reshape(3, 4)
    arrived = loads(dumps({"x": Serialize([x, x.T, x[:0]])}, context=CONTEXT), policy=NO_PICKLE)
    assert [a.tolist() for a in arrived["x"]] == [x.tolist(), x.T.tolist(), []]


def test_arrays_of_objects_are_refused():
    np = pytest.importorskip("numpy")
    frames = dumps(Serialize(np.array([Bomb()], dtype=object)))
    with pytest.raises(PickleNotAllowedError, match=FORBIDDEN):
        loads(frames, policy=NO_PICKLE)


def test_a_registered_function_that_unpickles_is_refused():
    class Careless:
        pass

    dask_serialize.register(Careless, lambda x: ({}, [pickle.dumps(Bomb())]))
    dask_deserialize.register(Careless, lambda header, frames: pickle.loads(frames[0]))
    with pytest.raises(PickleNotAllowedError):
        loads(dumps(Serialize(Careless())), policy=NO_PICKLE)


def test_unpickling_outside_of_messages_is_allowed():
    with pytest.raises(PickleNotAllowedError):
        loads(dumps(Serialize(1)), policy=NO_PICKLE)
    check_unpickling()
    assert pickle.loads(pickle.dumps(1)) == 1


# Connections


class Example(Server):
    def __init__(self):
        super().__init__(
            {"inc": lambda x: x + 1, "fail": fail, "give": give, "kelvin": lambda x: x.kelvin}
        )


class Strict(Example):
    allow_pickle = False


@asynccontextmanager
async def serving(cls, address="tcp://127.0.0.1:0", **kwargs):
    async with cls() as server:
        await server.listen(address, **kwargs)
        yield server


def fail():
    raise ValueError("out of coffee")


def give(what):
    return {"bytes": to_serialize(b"abc"), "int": to_serialize(5), "complex": 1j}[what]


@gen_test()
async def test_the_handshake_of_a_server_says_that_it_does_not_unpickle():
    async with serving(Strict) as server:
        comm = await connect(server.address)
        assert comm.remote_info["allow-pickle"] is False
        assert comm.handshake_options["allow-pickle"] is False
        assert comm.allow_pickle
        assert "allow-pickle" not in comm.local_info
        await comm.close()
        async with rpc(server.address) as remote:
            assert await remote.inc(x=1) == 2
            assert await remote.kelvin(x=to_serialize(Temperature(7))) == 7
            assert await remote.inc(x=to_serialize(1)) == 2
            with pytest.raises(SerializationError, match=FORBIDDEN):
                await remote.inc(x=1j)
            with pytest.raises(SerializationError, match="unpickles nothing"):
                await remote.inc(x=to_serialize(Bomb()))
            assert await remote.inc(x=2) == 3


@pytest.mark.parametrize("how", ["configuration", "class", "listen"])
@pytest.mark.parametrize("protocol", ["tcp://127.0.0.1:0", "inproc://"])
@gen_test()
async def test_a_server_refuses_pickled_values(how, protocol):
    cls = Strict if how == "class" else Example
    kwargs = {"allow_pickle": False} if how == "listen" else {}
    with config.set({FORBIDDEN: how != "configuration"}):
        async with serving(cls, protocol, **kwargs) as server:
            comm = await connect(server.address, allow_pickle=True)
            # Send as a peer that ignores the server's handshake.
            comm._context = None
            await comm.write({"op": "inc", "x": Pickled({"pickled-obj": pickle.dumps(Bomb())}, [])})
            answer = await comm.read()
            assert answer["status"] == "uncaught-error"
            assert FORBIDDEN in answer["exception_text"]
            await comm.write({"op": "inc", "x": 1})
            assert await comm.read() == 2
            await comm.close()


@pytest.mark.parametrize("how", ["configuration", "connection_args"])
@pytest.mark.parametrize("protocol", ["tcp://127.0.0.1:0", "inproc://"])
@gen_test()
async def test_remote_errors_arrive_as_text(how, protocol):
    async with serving(Example, protocol) as server:
        with config.set({FORBIDDEN: how != "configuration"}):
            args = {"allow_pickle": False} if how == "connection_args" else None
            async with rpc(server.address, connection_args=args) as remote:
                with pytest.raises(Exception, match="out of coffee") as caught:
                    await remote.fail()
    assert type(caught.value) is Exception
    assert str(caught.value) == "ValueError('out of coffee')"
    assert "in fail" in "".join(caught.value.__notes__)


@gen_test()
async def test_a_client_that_does_not_unpickle_gets_values_that_do_not_need_pickle():
    args = {"allow_pickle": False}
    async with serving(Example) as server, rpc(server.address, connection_args=args) as remote:
        assert await remote.give(what="bytes") == b"abc"
        assert await remote.give(what="int") == 5
        with pytest.raises(Exception, match=FORBIDDEN):
            await remote.give(what="complex")
        assert await remote.inc(x=1) == 2


@gen_test()
async def test_a_server_that_does_not_unpickle_does_not_in_its_own_calls_either():
    async with serving(Example) as other, Strict() as server:
        with pytest.raises(Exception, match="out of coffee") as caught:
            await server.rpc(other.address).fail()
    assert type(caught.value) is Exception


@gen_test(config={FORBIDDEN: False})
async def test_a_connection_argument_overrides_the_configuration():
    args = {"allow_pickle": True}
    async with (
        serving(Example, **args) as server,
        rpc(server.address, connection_args=args) as remote,
    ):
        assert await remote.inc(x=1j) == 1 + 1j
        with pytest.raises(ValueError, match="out of coffee"):
            await remote.fail()


@gen_test()
async def test_the_handshake_is_that_of_the_original_if_pickle_is_allowed():
    async def handle(comm):
        await comm.close()

    async with await listen("tcp://127.0.0.1:0", handle) as listener:
        comm = await connect(listener.contact_address)
        assert set(comm.handshake_info()) == {"compression", "python", "pickle-protocol"}
        await comm.close()


@gen_test()
async def test_a_message_that_is_read_in_a_thread_is_refused():
    received = asyncio.get_running_loop().create_future()

    async def handle(comm):
        try:
            received.set_result(await comm.read())
        except TypeError as e:
            received.set_exception(e)
        await comm.close()

    async with await listen("tcp://127.0.0.1:0", handle, allow_pickle=False) as listener:
        comm = await connect(listener.contact_address)
        comm._context = None
        await comm.write({"x": [ToPickle([Bomb(), [os.urandom(1000) for _ in range(20_000)]])]})
        with pytest.raises(FamilyNotAllowedError, match=FORBIDDEN):
            await received
        await comm.close()
