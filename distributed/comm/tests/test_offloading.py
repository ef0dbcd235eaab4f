"""The choice between event loop and thread for converting messages."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import msgpack
import pytest

from distributed.base import config
from distributed.base.event_loop import (
    EXPENSIVE_THREAD_NAME,
    OFFLOAD_THREAD_NAME,
    offload,
    offload_expensive,
)
from distributed.comm import addressing, framed, offloading
from distributed.comm import utils as comm_utils
from distributed.comm.offloading import (
    ExpensiveMessageError,
    from_frames,
    loads_is_expensive,
    pack_bytes,
    read_in_thread,
    reading_budget,
    to_frames,
    weigh,
)
from distributed.core import Server, rpc
from distributed.protocol import Serialized, ToPickle, dumps, loads, to_serialize
from distributed.protocol.compression import compressions
from distributed.protocol.exceptions import ProtocolError
from distributed.utils_test import gen_test

KIB = 1024
MANY = [None] * KIB
ZLIB = {"compression": "zlib"}


@pytest.fixture
def low_threshold(monkeypatch):
    monkeypatch.setattr(comm_utils, "OFFLOAD_THRESHOLD", 10 * KIB)
    assert offloading.OFFLOAD_THRESHOLD == 10 * KIB


class OutOfBand:
    """An object whose pickle refers to a buffer outside of it."""

    def __reduce_ex__(self, protocol):
        return OutOfBand, (pickle.PickleBuffer(bytearray(20 * KIB)),)

    def __init__(self, data=None):
        self.data = data


class ThreadTeller:
    """An object that arrives as the names of the threads that pickled and unpickled it."""

    #: The names of the threads that unpickled such objects.
    unpickled: ClassVar[list[str]] = []

    def __reduce__(self):
        return _tell_thread, (threading.current_thread().name,)


def _tell_thread(dumped_in):
    thread = threading.current_thread().name
    ThreadTeller.unpickled.append(thread)
    return dumped_in, thread


class Sized:
    """An object that states its size, or raises an error instead of it."""

    def __init__(self, size):
        self.size = size

    def __sizeof__(self):
        if self.size is None:
            raise ConnectionError
        return self.size


class Index:
    """A number that is not an int, such as those of NumPy."""

    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number


def dumps_is_expensive(message, context=None):
    """Return whether a comm serializes *message* in a thread."""
    try:
        dumps(message, context=context, weigh=weigh)
    except ExpensiveMessageError:
        return True
    return False


def odd(**attributes):
    """Return an object whose type has these attributes."""
    return type("Odd", (), attributes)()


class Broken:
    @property
    def nbytes(self):
        raise ConnectionError


class Proxy:
    def __getattr__(self, name):
        raise AssertionError("an estimate must not ask the other end of a proxy")


@pytest.mark.parametrize("allow_offload", [True, False])
@gen_test()
async def test_expensive_messages_are_converted_in_a_thread_if_allowed(
    low_threshold, allow_offload
):
    message = {"x": to_serialize([ThreadTeller(), *MANY]), "y": ToPickle("." * 20 * KIB)}
    frames = await to_frames(message, allow_offload=allow_offload)
    message = await from_frames(frames, allow_offload=allow_offload)
    for thread in message["x"][0]:
        assert thread.startswith(OFFLOAD_THREAD_NAME) is allow_offload
    frames = dumps({"x": to_serialize({"many": MANY * 20}), "y": ToPickle(ThreadTeller())})
    assert loads_is_expensive(frames)
    message = await from_frames(frames, deserialize=False)
    assert not message["y"][1].startswith(OFFLOAD_THREAD_NAME)


@gen_test()
async def test_cheap_messages_are_converted_without_a_turn_of_the_event_loop():
    turned = []
    asyncio.get_running_loop().call_soon(turned.append, True)
    message = {"x": to_serialize([ThreadTeller()]), "y": to_serialize(range(3))}
    result = await from_frames(await to_frames(message))
    assert set(result["x"][0]) == {threading.current_thread().name}
    assert result["y"] == range(3)
    assert isinstance((await from_frames(dumps(message), deserialize=False))["y"], Serialized)
    assert not turned


@gen_test()
async def test_options_reach_the_protocol_and_errors_the_caller(low_threshold):
    frames = await to_frames({"x": to_serialize(range(3))}, serializers=["pickle"])
    with pytest.raises(TypeError, match="pickle"):
        await from_frames(frames, deserializers=["msgpack"])
    # Both run in the thread.
    with pytest.raises(TypeError):
        await to_frames({"x": to_serialize([threading.Lock()] * KIB)}, on_error="raise")
    frames = dumps({"x": ToPickle(b"." * 20 * KIB)})
    assert loads_is_expensive(frames)
    with pytest.raises(ProtocolError):
        await from_frames([frames[0][:-1], *frames[1:]])


@pytest.mark.parametrize(
    ("message", "context", "expensive"),
    [
        (None, None, False),
        ("." * 20 * KIB, None, False),
        ({"op": "x", "a": 1, "b": [1, 2], "c": {"d": None}}, None, False),
        ([{"op": "x", "key": i} for i in range(100)], None, False),
        # msgpack packs all of it in one call, which does not release the GIL.
        (dict.fromkeys(range(KIB)), None, False),
        ({"x": MANY}, None, False),
        ({"x": to_serialize(tuple(MANY))}, None, True),
        ({"x": ToPickle(dict.fromkeys(range(KIB)))}, None, True),
        ({i: to_serialize(MANY[:100]) for i in range(10)}, None, True),
        ([{"op": "x"}, {"x": to_serialize(set(range(KIB)))}], None, True),
        ({"x": to_serialize(MANY[:10])}, None, False),
        ({"x": to_serialize(bytes(20 * KIB))}, None, False),
        ({"x": to_serialize(bytes(20 * KIB))}, ZLIB, True),
        ({i: to_serialize(bytearray(4 * KIB)) for i in range(10)}, None, False),
        ({"x": Serialized({}, [bytes(20 * KIB)])}, None, False),
        ({"x": Serialized({}, [bytes(20 * KIB)])}, ZLIB, False),
        ({"x": to_serialize(memoryview(bytes(40 * KIB))[::2])}, None, True),
        ({"x": to_serialize(odd(shape=(KIB, 3)))}, None, True),
        ({"x": to_serialize(odd(shape=(10, 3)))}, None, False),
        ({"x": to_serialize(odd(shape=(None, 3)))}, None, False),
        ({"x": to_serialize(odd(nbytes=20 * KIB))}, None, True),
        ({"x": to_serialize(odd(nbytes="many"))}, None, False),
        ({"x": to_serialize(Broken())}, None, False),
        ({"x": to_serialize(Proxy())}, None, False),
        ({"x": {"y": [(1, {"z": to_serialize(MANY)})]}}, None, True),
        ({"x": {"y": [(1, {"z": odd(nbytes=20 * KIB)})]}}, None, True),
        ([{"x": [[to_serialize(b""), odd(nbytes=20 * KIB)]]}], None, True),
        ({"x": to_serialize({"y": [odd(nbytes=20 * KIB)]})}, None, True),
        ({"x": ToPickle({"y": [MANY[:100]] * 10})}, None, True),
        ({"x": [*range(2 * KIB), odd(nbytes=20 * KIB)]}, None, True),
        ({"x": to_serialize({"y": [bytearray(20 * KIB)]})}, None, False),
        ({"x": to_serialize({"y": [bytes(20 * KIB)]})}, ZLIB, True),
        ({"x": to_serialize(Sized(20 * KIB))}, None, True),
        ({"x": to_serialize(Sized(10))}, None, False),
        ({"x": to_serialize(Sized(None))}, None, False),
        ({"x": to_serialize(odd(nbytes=Index(20 * KIB)))}, None, True),
        ({"x": to_serialize("." * 20 * KIB)}, None, True),
        # 12,500 bytes to compress, and few to copy.
        ({"x": to_serialize(OutOfBand(bytes(12_500)))}, ZLIB, True),
        ({"x": ToPickle(OutOfBand(bytes(12_500)))}, ZLIB, True),
    ],
    ids=range(39),
)
def test_pickled_compressed_and_copied_bytes_make_a_write_expensive(
    low_threshold, message, context, expensive
):
    assert dumps_is_expensive(message, context) is expensive


def test_many_elements_that_are_serialized_one_by_one_make_a_write_expensive(monkeypatch):
    monkeypatch.setattr(offloading, "OFFLOAD_THRESHOLD", 10 * 2**20)
    for elements, expensive in (
        ([1.5] * 10_000, False),
        ([1.5] * 10_000 + [b"x"], True),
        ([1.5] * 200 + [b"x"], False),
        ([bytearray(1)] * 10_000, True),
    ):
        assert dumps_is_expensive({"x": to_serialize(elements)}) is expensive


@pytest.mark.parametrize(
    ("message", "kwargs", "expensive"),
    [
        ({"x": "." * 9 * KIB}, {}, False),
        ({"x": "." * 20 * KIB}, {}, True),
        ({"x": to_serialize(bytes(20 * KIB))}, {}, False),
        ({"x": to_serialize(bytearray(20 * KIB))}, {"frame_split_size": KIB}, False),
        ({"x": to_serialize([bytearray(20 * KIB), b"x"])}, {}, False),
        ({"x": to_serialize(OutOfBand())}, {}, False),
        ({"x": ToPickle(OutOfBand())}, {}, False),
        ({"x": "." * 20 * KIB, "y": to_serialize(b"")}, {}, True),
        ({"x": to_serialize("." * 20 * KIB)}, {}, True),
        ({"x": to_serialize("." * 20 * KIB)}, {"frame_split_size": 7 * KIB}, True),
        ({"x": to_serialize("." * 20 * KIB)}, {"serializers": ["msgpack"]}, True),
        ({"x": to_serialize({"a": b"x", "b": ["." * 20 * KIB]})}, {}, True),
        ({i: to_serialize(b"") for i in range(KIB)}, {}, True),
        ({i: to_serialize(b"") for i in range(5000)}, {}, True),
    ],
    ids=range(14),
)
def test_parsed_bytes_make_a_read_expensive(low_threshold, message, kwargs, expensive):
    assert loads_is_expensive(dumps(message, **kwargs)) is expensive


#: 3 MB of maps, of which the event loop would read 4 MB per second.
SMALL_MAPS = msgpack.packb({"x": [{"a": 1}] * 10**6})


@pytest.mark.parametrize("deserialize", [True, False])
def test_many_small_containers_make_a_read_expensive(deserialize):
    assert reading_budget([SMALL_MAPS], deserialize) == 0
    assert reading_budget([SMALL_MAPS, b""], deserialize) == 0
    few = msgpack.packb({"x": ["." * 100] * 30_000})
    assert len(few) > 3_000_000
    assert reading_budget([few], deserialize) > 0


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, 100_000), (1, 3_000_000), (200, 10_000)],
    ids=["a little", "much", "many"],
)
@pytest.mark.parametrize("name", ["zlib", "lz4", "zstd", "snappy"])
@gen_test()
async def test_frames_that_inflate_to_much_are_inflated_in_a_thread(monkeypatch, name, count, size):
    if name not in compressions:
        pytest.skip(f"{name} is not installed")
    unpickled = []
    monkeypatch.setattr(ThreadTeller, "unpickled", unpickled)
    data = [to_serialize(bytes(size)) for _ in range(count)]
    message = {"before": ToPickle(ThreadTeller()), "x": data, "after": ToPickle(ThreadTeller())}
    frames = dumps(message, context={"compression": name})
    assert sum(map(len, frames)) < 200_000
    message = await from_frames(frames)
    assert [bytes(x) for x in message["x"]] == [bytes(size)] * count
    threads = [message["before"][1], message["after"][1]]
    # Each of them is unpickled once.
    assert unpickled == threads
    here = threading.current_thread().name
    inflated_here = count * size < 1_000_000
    # Few bytes inflate to many, so the first thread does not read the message either.
    assert threads == [here, here if inflated_here else f"{EXPENSIVE_THREAD_NAME}_0"]


@pytest.mark.parametrize(
    ("value", "thread"),
    [({"a": "." * 100}, OFFLOAD_THREAD_NAME), ({}, EXPENSIVE_THREAD_NAME)],
    ids=["in proportion", "out of proportion"],
)
@pytest.mark.parametrize("deserialize", [True, False])
@gen_test()
async def test_maps_out_of_proportion_to_their_bytes_are_read_in_another_thread(
    low_threshold, value, thread, deserialize
):
    message = [value] * 70_000
    frames = dumps([message, ToPickle(ThreadTeller())])
    assert len(frames[0]) >= offloading.LARGE_HEAD
    result, (_, read_in) = await from_frames(frames, deserialize)
    assert list(result) == message
    assert read_in == f"{thread}_0"


@gen_test()
async def test_a_message_out_of_proportion_does_not_delay_those_in_proportion(low_threshold):
    release = threading.Event()
    try:
        waiting = asyncio.create_task(offload_expensive(release.wait))
        bomb = dumps({"x": to_serialize(bytes(2_000_000))}, context=ZLIB)
        bomb_read = asyncio.create_task(from_frames(bomb))
        data = "." * 20 * KIB
        assert await from_frames(dumps(data)) == data
        assert not waiting.done()
        assert not bomb_read.done()
    finally:
        release.set()
    assert (await bomb_read)["x"] == bytes(2_000_000)
    await waiting


#: Maps that the event loop would read in 0.4 s.
NESTED_MAPS: list[Any] = [{1: {}}] * 200_000


@pytest.mark.parametrize("deserialize", [True, False])
@pytest.mark.parametrize("where", ["header", "pickled value", "msgpack", "msgpack in a list"])
@gen_test()
async def test_values_with_many_small_containers_are_read_in_a_thread(
    monkeypatch, where, deserialize
):
    offloaded = []

    async def counting(function, *args):
        offloaded.append(function)
        return await offload(function, *args)

    monkeypatch.setattr(offloading, "offload", counting)
    head, packed, *frames = dumps({"x": ToPickle(0) if "pickled" in where else to_serialize(b"")})
    header = msgpack.unpackb(packed, strict_map_key=False)
    if "msgpack" in where:
        header = {"serializer": "msgpack", "num-sub-frames": 1}
        frames = [msgpack.packb(NESTED_MAPS)]
        if "list" in where:
            header |= {"serializer": "dask", "is-collection": True, "type-serialized": "list"}
            header |= {"sub-headers": [{"serializer": "msgpack"}], "frame-lengths": [1]}
    else:
        header["x"] = NESTED_MAPS
    await from_frames([head, msgpack.packb(header), *frames], deserialize=deserialize)
    # Without deserializing, frames are not read.
    assert len(offloaded) == (deserialize or "msgpack" not in where)


def test_a_header_with_many_small_containers_is_not_read_to_choose_a_thread():
    head, header, frame = dumps({"x": to_serialize(b"")})
    header = msgpack.packb({**msgpack.unpackb(header), "x": NESTED_MAPS})
    assert reading_budget([head, header, frame]) > 0
    assert reading_budget([head, header, bytes(20_000_000)]) == 0


def test_dask_is_asked_for_the_size_of_other_objects(low_threshold, monkeypatch):
    message = {"x": [to_serialize(odd())]}
    monkeypatch.setitem(sys.modules, "dask.sizeof", SimpleNamespace(sizeof=lambda x: 20 * KIB))
    assert dumps_is_expensive(message)
    monkeypatch.setitem(sys.modules, "dask.sizeof", SimpleNamespace(sizeof=lambda x: 1 / 0))
    assert not dumps_is_expensive(message)


def test_a_container_that_contains_itself_is_examined_only_once(low_threshold):
    container = [None]
    container.append(container)
    assert dumps_is_expensive(ToPickle(container))


def test_only_arrays_of_objects_and_gaps_are_expensive(low_threshold):
    np = pytest.importorskip("numpy")
    values = np.zeros((200, 200))
    for array, expensive in (
        (values, False),
        (values.T, False),
        (values[10:], False),
        (values[:, ::2], True),
        (values.astype(object), True),
    ):
        assert dumps_is_expensive({"x": to_serialize(array)}) is expensive
    assert dumps_is_expensive({"x": to_serialize(values)}, ZLIB)
    assert not loads_is_expensive(dumps({"x": to_serialize(values)}))
    assert loads_is_expensive(dumps({"x": to_serialize(values.astype(object))}))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        [],
        {},
        {"num-sub-frames": 1, "compression": 5},
        {"num-sub-frames": 1, "is-collection": True},
        {"num-sub-frames": -1},
    ],
    ids=str,
)
def test_invalid_messages_are_not_expensive(low_threshold, header):
    assert not loads_is_expensive([b"", msgpack.packb(header), bytes(20 * KIB)])


@pytest.mark.parametrize("threshold", [None, False, 0])
def test_offloading_can_be_switched_off(monkeypatch, threshold):
    monkeypatch.setattr(comm_utils, "OFFLOAD_THRESHOLD", threshold)
    assert not dumps_is_expensive(to_serialize({"x": [0] * 1_000_000}))
    assert not loads_is_expensive(dumps(to_serialize("." * 20_000_000)))


@gen_test()
async def test_a_large_array_is_converted_in_the_event_loop_on_both_sides(monkeypatch):
    offloaded = []

    async def counting(function, *args):
        offloaded.append(function)
        return await offload(function, *args)

    async def counting_reads(read, frames):
        offloaded.append(loads)
        return await read_in_thread(read, frames)

    monkeypatch.setattr(framed, "offload", counting)
    monkeypatch.setattr(framed, "read_in_thread", counting_reads)
    size = 30 * KIB**2
    async with Server({"size": lambda data: len(data)}) as server:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            for large in (memoryview(bytearray(size)), bytes(size), bytearray(size)):
                assert await remote.size(data=to_serialize(large)) == size
            assert offloaded == []
            # Its size does not tell how many values are in it.
            assert await remote.size(data=bytes(size)) == size
            assert offloaded == [loads]
            offloaded.clear()
            assert await remote.size(data=to_serialize("." * size)) == size
            assert [call.__name__ for call in offloaded] == ["dumps", "loads"]
            assert await remote.size(data=ToPickle(dict.fromkeys(range(10**6)))) == 10**6
            # The pickle is in the header.
            assert [call.__name__ for call in offloaded[2:]] == ["dumps", "loads"]
            nested = [{"x": [ToPickle(dict.fromkeys(range(10**6)))]}]
            assert await remote.size(data=nested) == 1
            assert [call.__name__ for call in offloaded[4:]] == ["dumps", "loads"]


@pytest.mark.parametrize(
    ("setting", "expected"), [("10MiB", 10 * KIB**2), (123, 123), (False, None), (None, None)]
)
def test_the_threshold_is_read_from_the_configuration_at_its_first_use(
    monkeypatch, setting, expected
):
    monkeypatch.delattr(offloading, "OFFLOAD_THRESHOLD")
    with (
        config.set({"distributed.comm.offload": "much"}),
        pytest.raises(ValueError, match=r"distributed\.comm\.offload"),
    ):
        offloading.OFFLOAD_THRESHOLD  # noqa: B018
    with config.set({"distributed.comm.offload": setting}):
        assert expected == comm_utils.OFFLOAD_THRESHOLD
    assert expected == offloading.OFFLOAD_THRESHOLD


def test_the_modules_have_the_names_of_the_original():
    assert comm_utils.get_tcp_server_address is addressing.get_tcp_server_address
    assert comm_utils.get_tcp_server_addresses is addressing.get_tcp_server_addresses
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        offloading.missing  # noqa: B018


@pytest.mark.parametrize("threshold", [0, 1])
@pytest.mark.parametrize("size", [0, 255, 2**16 - 1, 2**16, 10**6])
@gen_test()
async def test_bytes_that_are_a_message_have_the_frame_of_msgpack(monkeypatch, size, threshold):
    monkeypatch.setattr(offloading, "OFFLOAD_THRESHOLD", threshold, raising=False)
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert [await pack_bytes(data)] == dumps(data)


@gen_test()
async def test_a_large_answer_of_bytes_is_packed_in_a_thread(monkeypatch):
    threads = []

    def packed(data):
        threads.append(threading.current_thread().name)
        return original(data)

    original = offloading._packed
    monkeypatch.setattr(offloading, "_packed", packed)
    answer = bytes(range(256)) * (12 * 4 * KIB)
    async with Server({"get": lambda: answer}) as server:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            assert await remote.get() == answer
            assert await remote.echo(data=b"few bytes") == b"few bytes"
    (thread,) = threads
    assert thread.startswith(OFFLOAD_THREAD_NAME)
