"""Where nothing is unpickled: what travels all the same, and how the rest is refused."""

from __future__ import annotations

import asyncio
import os
from array import array
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
from distributed.utils_test import gen_test

NO_PICKLE = LoadPolicy(allow_pickle=False)
#: What a sender knows of a receiver that unpickles nothing.
CONTEXT = {"allow-pickle": False}

FORBIDDEN = "distributed.comm.allow-pickle"


class Bomb:
    """Runs code when it is unpickled."""

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
            del table._functions[cls]
        table._named.clear()
        table.resolved.clear()
        for cls in table._functions:
            table.register(cls, table._functions[cls])


# Messages

TRAVELS = [
    {"op": "add", "x": 1, "y": [2.5, "z", b"b", None, {1, 2}]},
    {"status": Status.running},
    {"x": Serialize(b"abc"), "y": Serialize([b"a", bytearray(b"b"), memoryview(b"c")])},
    {"x": Serialize(array("d", [1.5])), "y": {"z": Serialize({"k": [b"v"]})}},
    Serialize(Temperature(300)),
    Serialize([Temperature(300), Hot(400), {"k": Temperature(0)}]),
    Serialize(Record(300)),
    Serialize(Record([Temperature(1), b"a"])),
]

#: What the sender pickles unless it knows better.
TRAVELS_IF_AGREED = [
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


@pytest.mark.parametrize("msg", TRAVELS, ids=str)
@pytest.mark.parametrize("context", [None, CONTEXT, {"compression": "zlib"}], ids=str)
def test_registered_types_and_what_msgpack_knows_travel(msg, context):
    frames = [bytes(frame) for frame in dumps(msg, context=context)]
    arrived = loads(frames, policy=NO_PICKLE)
    assert arrived == loads(frames)
    assert arrived == unwrapped(msg)


@pytest.mark.parametrize("msg", TRAVELS_IF_AGREED, ids=str)
def test_msgpack_takes_the_place_of_pickle_where_the_sender_knows(msg):
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
    ids=lambda msg: str(msg).replace("object at ", "")[:40],
)
def test_what_is_pickled_is_refused(msg):
    with pytest.raises(PickleNotAllowedError, match=FORBIDDEN):
        loads(dumps(msg), policy=NO_PICKLE)


@pytest.mark.parametrize("msg", [{"x": 1 + 2j}, {"x": ToPickle(1)}, {"x": Bomb()}], ids=str)
def test_what_would_have_to_be_pickled_is_refused_by_a_sender_who_knows(msg):
    with pytest.raises(SerializationError, match=FORBIDDEN):
        dumps(msg, context=CONTEXT)


def test_a_value_that_only_pickle_takes_is_refused_by_a_sender_who_knows():
    with pytest.raises(SerializationError, match="receiver that unpickles nothing"):
        dumps(Serialize(Bomb()), context=CONTEXT, on_error="raise")
    frames = dumps({"x": Serialize(Bomb())}, context=CONTEXT)
    with pytest.raises(SerializationError, match="receiver that unpickles nothing"):
        loads(frames, policy=NO_PICKLE)


def test_values_may_be_passed_on_that_were_pickled():
    frames = [bytes(frame) for frame in dumps({"x": Serialize(Bomb())})]
    passed_on = loads(frames, deserialize=False, policy=NO_PICKLE)
    assert [bytes(frame) for frame in dumps(passed_on)] == frames


def test_the_type_of_a_header_is_not_unpickled():
    header, frames = serialize(Temperature(300))
    header["type-serialized"] = pickle.dumps(Bomb())
    packed = [msgpack.packb({"__Serialized__": 1}), msgpack.packb({**header, "num-sub-frames": 1})]
    assert loads([*packed, *frames], policy=NO_PICKLE) == Temperature(300)


def test_the_type_of_an_object_by_attributes_is_not_unpickled():
    header, frames = serialize(Record(300))
    header["sub-header"]["type-serialized"] = pickle.dumps(Bomb())
    packed = [msgpack.packb({"__Serialized__": 1}), msgpack.packb({**header, "num-sub-frames": 0})]
    with pytest.raises(PickleNotAllowedError, match=FORBIDDEN):
        loads([*packed, *frames], policy=NO_PICKLE)


@pytest.mark.parametrize("name", ["os.system", "os._wrap_close", "nope.Nope", "object", 5, None])
def test_only_registered_types_are_found_by_name(name):
    header, frames = serialize(b"x")
    header["type"] = name
    packed = [msgpack.packb({"__Serialized__": 1}), msgpack.packb({**header, "num-sub-frames": 1})]
    with pytest.raises(ValueError, match="could not deserialize"):
        loads([*packed, *frames], policy=NO_PICKLE)


def test_arrays_travel():
    np = pytest.importorskip("numpy")
    x = np.arange(12).reshape(3, 4)
    arrived = loads(dumps({"x": Serialize([x, x.T, x[:0]])}, context=CONTEXT), policy=NO_PICKLE)
    assert [a.tolist() for a in arrived["x"]] == [x.tolist(), x.T.tolist(), []]


def test_arrays_of_objects_are_refused():
    np = pytest.importorskip("numpy")
    frames = dumps(Serialize(np.array([Bomb()], dtype=object)))
    with pytest.raises(PickleNotAllowedError, match=FORBIDDEN):
        loads(frames, policy=NO_PICKLE)


def test_a_serializer_that_unpickles_by_itself_is_refused(monkeypatch):
    class Careless:
        pass

    dask_serialize.register(Careless, lambda x: ({}, [pickle.dumps(Bomb())]))
    dask_deserialize.register(Careless, lambda header, frames: pickle.loads(frames[0]))
    with pytest.raises(PickleNotAllowedError):
        loads(dumps(Serialize(Careless())), policy=NO_PICKLE)


def test_nothing_is_refused_outside_of_messages():
    with pytest.raises(PickleNotAllowedError):
        loads(dumps(Serialize(1)), policy=NO_PICKLE)
    check_unpickling()
    assert pickle.loads(pickle.dumps(1)) == 1


# Connections


def make_server(**kwargs):
    class Example(Server):
        def __init__(self):
            super().__init__(
                {"inc": lambda x: x + 1, "fail": fail, "give": give, "kelvin": lambda x: x.kelvin},
                **kwargs,
            )

    return Example


def fail():
    raise ValueError("out of coffee")


def give(what):
    return {"bytes": to_serialize(b"abc"), "int": to_serialize(5), "complex": 1j}[what]


@gen_test()
async def test_a_server_says_that_it_unpickles_nothing():
    cls = make_server()
    cls.allow_pickle = False
    async with cls() as server:
        await server.listen("tcp://127.0.0.1:0")
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
async def test_a_server_refuses_what_is_pickled(how, protocol):
    cls = make_server()
    if how == "class":
        cls.allow_pickle = False
    with config.set({FORBIDDEN: how != "configuration"}):
        async with cls() as server:
            await server.listen(protocol, **({"allow_pickle": False} if how == "listen" else {}))
            comm = await connect(server.address, allow_pickle=True)
            # As a peer sends that does not know what the server has said.
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
    async with make_server()() as server:
        await server.listen(protocol)
        with config.set({FORBIDDEN: how != "configuration"}):
            args = {"allow_pickle": False} if how == "connection_args" else None
            async with rpc(server.address, connection_args=args) as remote:
                with pytest.raises(Exception, match="out of coffee") as caught:
                    await remote.fail()
    assert type(caught.value) is Exception
    assert str(caught.value) == "ValueError('out of coffee')"
    assert "in fail" in "".join(caught.value.__notes__)


@gen_test()
async def test_a_client_that_unpickles_nothing_gets_what_needs_no_pickle():
    async with make_server()() as server:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address, connection_args={"allow_pickle": False}) as remote:
            assert await remote.give(what="bytes") == b"abc"
            assert await remote.give(what="int") == 5
            with pytest.raises(Exception, match=FORBIDDEN):
                await remote.give(what="complex")
            assert await remote.inc(x=1) == 2


@gen_test()
async def test_the_calls_of_a_server_that_unpickles_nothing_do_not_either():
    cls = make_server()
    cls.allow_pickle = False
    async with make_server()() as other, cls() as server:
        await other.listen("tcp://127.0.0.1:0")
        with pytest.raises(Exception, match="out of coffee") as caught:
            await server.rpc(other.address).fail()
    assert type(caught.value) is Exception


@gen_test()
async def test_a_connection_may_unpickle_where_the_configuration_does_not():
    with config.set({FORBIDDEN: False}):
        async with make_server()() as server:
            await server.listen("tcp://127.0.0.1:0", allow_pickle=True)
            async with rpc(server.address, connection_args={"allow_pickle": True}) as remote:
                assert await remote.inc(x=1j) == 1 + 1j
                with pytest.raises(ValueError, match="out of coffee"):
                    await remote.fail()


@gen_test()
async def test_a_handshake_is_the_originals_where_pickles_are_taken():
    async def handle(comm):
        await comm.close()

    async with await listen("tcp://127.0.0.1:0", handle) as listener:
        comm = await connect(listener.contact_address)
        assert set(comm.handshake_info()) == {"compression", "python", "pickle-protocol"}
        await comm.close()


@gen_test()
async def test_large_messages_are_refused_in_their_thread_too():
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
