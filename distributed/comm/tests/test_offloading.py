from __future__ import annotations

import array
import asyncio
import pickle
import subprocess
import sys
import threading
from typing import Any

import msgpack
import pytest

from distributed.base.event_loop import OFFLOAD_THREAD_NAME, offload
from distributed.base.host_addresses import get_ip, get_ipv6
from distributed.comm import addressing, framed
from distributed.comm import offloading as utils
from distributed.comm.addressing import ensure_concrete_host
from distributed.comm.offloading import (
    dumps_is_expensive,
    from_frames,
    loads_is_expensive,
    to_frames,
)
from distributed.core import Server, rpc
from distributed.protocol import Serialized, ToPickle, dumps, loads, serialize, to_serialize
from distributed.protocol.exceptions import ProtocolError
from distributed.utils_test import gen_test, has_ipv6

KIB = 1024


@pytest.fixture
def low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "OFFLOAD_THRESHOLD", 10 * KIB)


class PickleBufferOwner:
    """Keeps its memory apart from its pickle."""

    def __init__(self, data: Any):
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return PickleBufferOwner, (pickle.PickleBuffer(self.data),)


class ThreadTeller:
    """Arrives as the names of the threads that pickled and unpickled it."""

    def __reduce__(self):
        return _tell_thread, (threading.current_thread().name,)


def _tell_thread(dumped_in: str) -> tuple[str, str]:
    return dumped_in, threading.current_thread().name


class Frame:
    """As a data frame is: its shape is known, its size is not."""

    def __init__(self, *shape: int):
        self._shape = shape

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape


def in_offload_thread(name: str) -> bool:
    return name.startswith(OFFLOAD_THREAD_NAME)


@gen_test()
async def test_a_message_survives_the_way_to_frames_and_back() -> None:
    message = {"op": "x", "data": to_serialize(range(3)), "text": "ä"}
    frames = await to_frames(message)
    assert await from_frames(frames) == {"op": "x", "data": range(3), "text": "ä"}
    unread = await from_frames(frames, deserialize=False)
    assert isinstance(unread["data"], Serialized)


@gen_test()
async def test_options_reach_the_protocol() -> None:
    frames = await to_frames({"x": to_serialize(range(3))}, serializers=["pickle"])
    with pytest.raises(TypeError, match="pickle"):
        await from_frames(frames, deserializers=["msgpack"])
    with pytest.raises(TypeError):
        await to_frames({"x": to_serialize(range(3))}, serializers=["msgpack"], on_error="raise")


@gen_test()
async def test_errors_reach_the_caller_from_the_thread(low_threshold) -> None:
    unserializable = to_serialize([threading.Lock()] * KIB)
    with pytest.raises(TypeError):
        await to_frames({"x": unserializable}, serializers=["pickle"], on_error="raise")
    frames = dumps({"x": ToPickle(b"." * 20 * KIB)})
    assert loads_is_expensive(frames)
    with pytest.raises(ProtocolError):
        await from_frames([frames[0][:-1], *frames[1:]])


@pytest.mark.parametrize("allow_offload", [True, False])
@gen_test()
async def test_expensive_work_is_done_in_a_thread_where_that_is_allowed(
    low_threshold, allow_offload: bool
) -> None:
    message = {"x": to_serialize([ThreadTeller()] + [None] * KIB), "y": ToPickle("." * 20 * KIB)}
    frames = await to_frames(message, allow_offload=allow_offload)
    message = await from_frames(frames, allow_offload=allow_offload)
    dumped_in, loaded_in = message["x"][0]
    assert in_offload_thread(dumped_in) is allow_offload
    assert in_offload_thread(loaded_in) is allow_offload


@gen_test()
async def test_cheap_work_is_done_in_the_event_loop() -> None:
    frames = await to_frames({"x": to_serialize([ThreadTeller()])})
    message = await from_frames(frames)
    assert set(message["x"][0]) == {threading.current_thread().name}


@gen_test()
async def test_what_is_left_serialized_needs_no_thread(low_threshold) -> None:
    frames = dumps({"x": to_serialize([0] * 20 * KIB), "y": ToPickle(ThreadTeller())})
    assert loads_is_expensive(frames)
    message = await from_frames(frames, deserialize=False)
    assert message["y"][1] == threading.current_thread().name


@gen_test()
async def test_cheap_work_does_not_suspend() -> None:
    loop = asyncio.get_running_loop()
    others_ran = False

    def other() -> None:
        nonlocal others_ran
        others_ran = True

    loop.call_soon(other)
    assert await from_frames(await to_frames({"op": "x"})) == {"op": "x"}
    assert not others_ran
    await asyncio.sleep(0)
    assert others_ran


MANY = [None] * KIB

EXPENSIVE = {
    "list": to_serialize(MANY),
    "unwrapped value": {"x": MANY},
    "value": {"x": to_serialize(MANY)},
    "tuple": {"x": to_serialize(tuple(MANY))},
    "dict": {"x": ToPickle(dict.fromkeys(range(KIB)))},
    "set": {"x": to_serialize(set(range(KIB)))},
    "several values": {i: to_serialize(MANY[:100]) for i in range(10)},
    "in a batch": [{"op": "x"}, {"x": to_serialize(MANY)}],
    "in a tuple": ({"op": "x"}, to_serialize(MANY)),
    "large batch": [None] * KIB,
    "data frame": {"x": to_serialize(Frame(KIB, 3))},
    "memory that is not contiguous": {"x": to_serialize(memoryview(bytes(40 * KIB))[::2])},
}

CHEAP = {
    "none": None,
    "number": 1,
    "text": "." * 20 * KIB,
    "bytes": b"." * 20 * KIB,
    "request": {"op": "x", "a": 1, "b": [1, 2], "c": {"d": None}},
    "small list": to_serialize([0] * 10),
    "bytes by reference": {"x": to_serialize(bytes(20 * KIB))},
    "bytearray by reference": {"x": to_serialize(bytearray(20 * KIB))},
    "memory by reference": {"x": to_serialize(memoryview(bytes(20 * KIB)))},
    "several by reference": {i: to_serialize(bytearray(4 * KIB)) for i in range(10)},
    "array by reference": {"x": to_serialize(array.array("d", bytes(20 * KIB)))},
    "serialized before": {"x": Serialized(*serialize(MANY))},
    "small data frame": {"x": to_serialize(Frame(10, 3))},
    "object without a size": {"x": to_serialize(ThreadTeller())},
    "batch": [{"op": "x", "key": i} for i in range(100)],
}


@pytest.mark.parametrize("message", EXPENSIVE.values(), ids=EXPENSIVE.keys())
def test_work_that_is_expensive(low_threshold, message: Any) -> None:
    assert dumps_is_expensive(message)


@pytest.mark.parametrize("message", CHEAP.values(), ids=CHEAP.keys())
def test_work_that_is_cheap(low_threshold, message: Any) -> None:
    assert not dumps_is_expensive(message)


@pytest.mark.parametrize(
    "value",
    [bytes(20 * KIB), bytearray(20 * KIB), memoryview(bytes(20 * KIB))],
    ids=lambda value: type(value).__name__,
)
def test_what_is_to_be_compressed_is_expensive(low_threshold, value: Any) -> None:
    for message in ({"x": to_serialize(value)}, {"x": Serialized({}, [value])}):
        assert dumps_is_expensive(message, {"compression": "zlib"})
        assert not dumps_is_expensive(message, {"compression": None})


def test_numpy_arrays(low_threshold) -> None:
    np = pytest.importorskip("numpy")
    values = np.zeros((200, 200))
    for by_reference in (values, values.T, values[10:]):
        assert not dumps_is_expensive({"x": to_serialize(by_reference)})
    for to_be_copied in (values[:, ::2], values.astype(object)):
        assert dumps_is_expensive({"x": to_serialize(to_be_copied)})
    assert dumps_is_expensive({"x": to_serialize(values)}, {"compression": "zlib"})


def test_an_instance_is_not_asked_for_what_its_type_lacks(low_threshold) -> None:
    class Proxy:
        def __getattr__(self, name: str):
            raise ConnectionError("the estimate would have called the other end")

    assert not dumps_is_expensive({"x": to_serialize(Proxy())})


@pytest.mark.parametrize("threshold", [None, False, 0])
def test_offloading_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, threshold: Any) -> None:
    monkeypatch.setattr(utils, "OFFLOAD_THRESHOLD", threshold)
    assert not dumps_is_expensive(to_serialize([0] * 1_000_000))
    assert not loads_is_expensive(dumps(to_serialize("." * 20_000_000)))


OBJECTS = [object() for _ in range(1000)]


@pytest.mark.parametrize(
    ("message", "kwargs", "expensive"),
    [
        ({"x": "." * 20 * KIB}, {}, False),
        ({"x": to_serialize(bytes(100 * KIB))}, {}, False),
        ({"x": to_serialize(memoryview(bytearray(100 * KIB)))}, {"frame_split_size": KIB}, False),
        ({"x": to_serialize([bytearray(100 * KIB), b"x"])}, {}, False),
        ({"x": to_serialize(PickleBufferOwner(bytearray(100 * KIB)))}, {}, False),
        ({"x": ToPickle(PickleBufferOwner(bytearray(100 * KIB)))}, {}, False),
        ({"x": to_serialize("." * 100 * KIB)}, {}, True),
        ({"x": to_serialize("." * 100 * KIB)}, {"frame_split_size": 7 * KIB}, True),
        ({"x": to_serialize("." * 100 * KIB)}, {"serializers": ["msgpack"]}, True),
        ({"x": to_serialize({"a": b"x", "b": ["." * 100 * KIB]})}, {}, True),
        ({"x": ToPickle("." * 100 * KIB)}, {}, True),
        ({"x": OBJECTS}, {}, True),
        ({"x": to_serialize(OBJECTS)}, {}, True),
        ({"x": to_serialize([b"x"] * 100)}, {}, True),
        ({"x": to_serialize(bytes(100 * KIB))}, {"context": {"compression": "zlib"}}, False),
        (
            {"x": to_serialize(bytes(range(256)) * 40 * KIB)},
            {"context": {"compression": "zlib"}},
            True,
        ),
    ],
    ids=str,
)
def test_reading_is_expensive_by_the_work_and_not_by_the_size(
    monkeypatch, message, kwargs, expensive
) -> None:
    monkeypatch.setattr(utils, "OFFLOAD_THRESHOLD", 64 * KIB)
    assert loads_is_expensive(dumps(message, **kwargs)) is expensive


@pytest.mark.parametrize(
    "frames",
    [
        [b"", bytes(100 * KIB)],
        [b"", msgpack.packb({"num-sub-frames": -1}), bytes(100 * KIB)],
        [b"", msgpack.packb({"num-sub-frames": 1, "compression": 5}), bytes(100 * KIB)],
        [b"", msgpack.packb({"num-sub-frames": 1, "is-collection": True}), bytes(100 * KIB)],
        [b"", msgpack.packb([]), bytes(100 * KIB)],
        [b"", msgpack.packb({}), bytes(100 * KIB)],
    ],
    ids=["no msgpack", "negative", "no codecs", "no elements", "no map", "no number"],
)
def test_what_is_no_message_is_not_expensive(monkeypatch, frames) -> None:
    monkeypatch.setattr(utils, "OFFLOAD_THRESHOLD", 64 * KIB)
    assert not loads_is_expensive(frames)


@gen_test()
async def test_a_large_array_needs_no_thread_on_either_side(monkeypatch) -> None:
    threads = []

    async def counted(function, *args, **kwargs):
        threads.append(function)
        return await offload(function, *args, **kwargs)

    monkeypatch.setattr(framed, "offload", counted)
    size = 30 * KIB**2
    async with Server({"size": lambda data: len(data), "give": lambda data: data}) as server:
        await server.listen("tcp://127.0.0.1:0")
        async with rpc(server.address) as remote:
            for large in (memoryview(bytearray(size)), bytes(size), bytearray(size)):
                assert await remote.size(data=to_serialize(large)) == size
            assert await remote.size(data=bytes(size)) == size
            assert threads == []
            assert await remote.size(data=to_serialize("." * size)) == size
            assert threads == [loads]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("10MiB", 10 * KIB**2), ("5 kB", 5000), (123, 123), (False, None), (None, None)],
)
def test_the_threshold_is_configured_and_not_read_before_it_is_needed(
    setting: Any, expected: int | None
) -> None:
    program = (
        "import distributed.comm.offloading as u; from distributed import config\n"
        f"with config.set({{'distributed.comm.offload': {setting!r}}}):\n"
        f"    assert u.OFFLOAD_THRESHOLD == {expected!r}, u.OFFLOAD_THRESHOLD\n"
        f"assert u.OFFLOAD_THRESHOLD == {expected!r}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_bad_threshold_is_an_error_that_names_the_key() -> None:
    program = (
        "import distributed.comm.offloading as u; from distributed import config\n"
        "with config.set({'distributed.comm.offload': 'much'}): u.OFFLOAD_THRESHOLD"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode
    assert "distributed.comm.offload" in process.stderr.splitlines()[-1]


def test_the_module_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        utils.missing  # noqa: B018


def test_addresses_of_servers_are_found_here_too() -> None:
    from distributed.comm import utils

    assert utils.get_tcp_server_address is addressing.get_tcp_server_address
    assert utils.get_tcp_server_addresses is addressing.get_tcp_server_addresses


def test_frames_are_those_of_the_protocol() -> None:
    message = {"op": "x", "data": to_serialize(range(3))}
    frames = asyncio.run(to_frames(message))
    assert [bytes(f) for f in frames] == [bytes(f) for f in dumps(message)]
    assert asyncio.run(from_frames(frames)) == loads(frames)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "h", "*"])
def test_a_host_that_can_be_contacted_stays(host: str) -> None:
    assert ensure_concrete_host(host) == host
    assert ensure_concrete_host(host, default_host="d") == host


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "::0", "0:0:0:0:0:0:0:0"])
def test_a_host_that_means_all_interfaces_is_replaced(host: str) -> None:
    assert ensure_concrete_host(host, default_host="d") == "d"


@pytest.mark.parametrize("host", ["", "0.0.0.0"])
def test_all_interfaces_are_contacted_at_the_address_of_this_host(host: str) -> None:
    assert ensure_concrete_host(host) == get_ip()


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
def test_all_interfaces_are_contacted_at_the_address_of_this_host_over_ipv6() -> None:
    assert ensure_concrete_host("::") == get_ipv6()
