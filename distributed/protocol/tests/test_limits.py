"""What is done for a message at most, whatever it asks for."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest

from distributed.base import config
from distributed.comm import connect, listen
from distributed.protocol import Serialize, deserialize, dumps, loads, serialize
from distributed.protocol.exceptions import (
    CompressionError,
    HeaderError,
    MessageError,
    PickleNotAllowedError,
    ProtocolError,
)
from distributed.protocol.generic import register_generic
from distributed.protocol.limits import LoadPolicy, check_unpickling, may_unpickle, reading
from distributed.utils_test import gen_test


def nested(depth):
    """Frames of a list of a list of ... of nothing."""
    header = msgpack.packb({"num-sub-frames": 0})[1:]
    one = msgpack.packb({"is-collection": True, "frame-lengths": [], "type-serialized": "list"})
    inner = one[1:].replace(b"\xadframe-lengths\x90", b"\xadframe-lengths\x91\x00")
    key = msgpack.packb("sub-headers")
    packed = b"\x85" + header + (inner + key + b"\x91\x84") * (depth - 1) + one[1:] + key + b"\x90"
    return [msgpack.packb({"__Serialized__": 1}), packed]


def depth_of(x):
    depth = 0
    while isinstance(x, list):
        depth += 1
        x = x[0] if x else None
    return depth


class TestDepth:
    @pytest.mark.parametrize("depth", [1, 2, 500])
    def test_is_not_bounded_by_the_stack(self, depth):
        assert depth_of(loads(nested(depth))) == depth

    def test_is_bounded_by_the_configuration(self):
        policy = LoadPolicy(max_depth=10)
        assert depth_of(loads(nested(10), policy=policy)) == 10
        with pytest.raises(HeaderError, match=r"nested more than 10 deep.*max-depth"):
            loads(nested(11), policy=policy)

    def test_is_bounded_by_default_where_msgpack_does_not(self):
        with pytest.raises(ProtocolError):
            loads(nested(513))

    def test_is_counted_anew_for_each_value(self):
        policy = LoadPolicy(max_depth=1)
        assert loads(dumps([Serialize([b"a"]), Serialize([b"b"])]), policy=policy) == (
            [b"a"],
            [b"b"],
        )
        assert loads(dumps(Serialize([b"a", b"b", b"c"])), policy=policy) == [b"a", b"b", b"c"]
        with pytest.raises(HeaderError, match="max-depth"):
            loads(dumps(Serialize([[b"a"]])), policy=policy)

    def test_is_that_of_attributes_too(self):
        class Node:
            def __init__(self, child):
                self.child = child

        register_generic(Node)
        frames = dumps(Serialize([Node([Node([bytearray(b"a")])])]))
        assert loads(frames, policy=LoadPolicy(max_depth=3))[0].child[0].child == [b"a"]
        with pytest.raises(HeaderError, match="max-depth"):
            loads(frames, policy=LoadPolicy(max_depth=2))

    @pytest.mark.parametrize("depth", [1025, 100_000])
    def test_of_plain_values_is_bounded(self, depth):
        with pytest.raises(MessageError):
            loads([b"\x91" * depth + b"\xc0"])

    def test_that_can_be_sent_arrives(self):
        x = b"a"
        for _ in range(300):
            x = [x]
        assert loads(dumps(Serialize(x))) == x


class TestCounts:
    """Numbers in headers that lie; that of frames is `test_framing`'s."""

    @pytest.mark.parametrize(
        "header",
        [
            {"shape": (2**62, 2**62), "format": "B"},
            {"shape": (0, 2**62, 2**62), "format": "d"},
            {"shape": (-1,), "format": "B"},
            {"shape": (2**70,), "format": "B"},
            {"shape": (1,) * 100, "format": "B"},
            {"shape": "abc", "format": "B"},
        ],
        ids=str,
    )
    def test_of_the_shape_of_a_view_allocate_nothing(self, header):
        complete, _ = serialize(memoryview(b""))
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError):
                deserialize({**complete, "sub-header": header}, [b""])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000

    @pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
    @pytest.mark.parametrize("repeat", [1, 1000])
    def test_of_elements_allocate_nothing(self, claim, repeat):
        tracemalloc.start()
        try:
            with pytest.raises(MessageError):
                loads([claim * repeat])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000


class TestReading:
    def test_what_is_read_within_belongs_to_it(self):
        with reading(LoadPolicy(allow_pickle=False)) as outer:
            with reading() as inner:
                assert inner is outer
            with reading(LoadPolicy()):
                assert may_unpickle()
            with pytest.raises(PickleNotAllowedError):
                check_unpickling()
        assert may_unpickle()

    def test_ends_with_an_error_too(self):
        with pytest.raises(PickleNotAllowedError):
            loads(dumps(Serialize(1)), policy=LoadPolicy(allow_pickle=False))
        assert may_unpickle()


class TestConfiguration:
    def test_is_what_a_policy_is_made_of(self):
        keys = {"allow-pickle": False, "max-depth": 7, "max-inflated-size": "1kiB"}
        with config.set({f"distributed.comm.{key}": value for key, value in keys.items()}):
            assert LoadPolicy.from_config() == (False, 7, 1024)
            assert LoadPolicy.from_config(allow_pickle=True) == (True, 7, 1024)

    def test_has_the_defaults_of_a_policy(self):
        assert LoadPolicy.from_config() == LoadPolicy()

    def test_may_say_that_there_is_no_limit(self):
        keys = {"max-depth": None, "max-inflated-size": None}
        with config.set({f"distributed.comm.{key}": value for key, value in keys.items()}):
            assert LoadPolicy.from_config() == (True, None, None)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("allow-pickle", "maybe"), ("allow-pickle", None), ("max-depth", -1), ("max-depth", "x")],
    )
    def test_that_is_wrong_is_named(self, key, value):
        with (
            config.set({f"distributed.comm.{key}": value}),
            pytest.raises(ValueError, match=f"distributed.comm.{key}"),
        ):
            LoadPolicy.from_config()

    @gen_test()
    async def test_holds_for_connections_that_are_opened_under_it(self):
        received = []

        async def handle(comm):
            with pytest.raises(CompressionError, match="max-inflated-size"):
                await comm.read()
            received.append(await comm.read())
            await comm.write("done")
            await comm.close()

        with config.set({"distributed.comm.max-inflated-size": "10kiB"}):
            async with listen("tcp://127.0.0.1:0", handle) as listener:
                comm = await connect(listener.contact_address)
                comm._context["compression"] = "zlib"
                await comm.write(Serialize(bytes(100_000)))
                await comm.write(Serialize(bytes(10_240)))
                assert await comm.read() == "done"
                await comm.close()
        assert received == [bytes(10_240)]
