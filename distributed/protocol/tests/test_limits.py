"""Limits on what reading a message may do."""

from __future__ import annotations

import msgpack
import pytest

from distributed.base import config
from distributed.comm import connect, listen
from distributed.protocol import Serialize, dumps, loads
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
    """Return the frames of an empty list within *depth* - 1 lists."""
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
    @pytest.mark.parametrize("depth", [1, 2, 10, 300, 500])
    def test_depth_is_not_bounded_by_the_stack(self, depth):
        assert depth_of(loads(nested(depth))) == depth

    def test_depth_is_bounded_by_the_configuration(self):
        policy = LoadPolicy(max_depth=10)
        assert depth_of(loads(nested(10), policy=policy)) == 10
        with pytest.raises(HeaderError, match=r"nested more than 10 deep.*max-depth"):
            loads(nested(11), policy=policy)

    @pytest.mark.parametrize("depth", [513, 600, 5000])
    def test_depth_is_bounded_by_default(self, depth):
        with pytest.raises(ProtocolError):
            loads(nested(depth))

    def test_depth_is_counted_for_each_value(self):
        policy = LoadPolicy(max_depth=1)
        assert loads(dumps([Serialize([b"a"]), Serialize([b"b"])]), policy=policy) == (
            [b"a"],
            [b"b"],
        )
        assert loads(dumps(Serialize([b"a", b"b", b"c"])), policy=policy) == [b"a", b"b", b"c"]
        with pytest.raises(HeaderError, match="max-depth"):
            loads(dumps(Serialize([[b"a"]])), policy=policy)

    def test_attributes_count_towards_the_depth(self):
        class Node:
            def __init__(self, child):
                self.child = child

        register_generic(Node)
        frames = dumps(Serialize([Node([Node([bytearray(b"a")])])]))
        assert loads(frames, policy=LoadPolicy(max_depth=3))[0].child[0].child == [b"a"]
        with pytest.raises(HeaderError, match="max-depth"):
            loads(frames, policy=LoadPolicy(max_depth=2))

    @pytest.mark.parametrize("depth", [1025, 100_000])
    def test_depth_of_plain_values_is_bounded(self, depth):
        with pytest.raises(MessageError):
            loads([b"\x91" * depth + b"\xc0"])

    def test_a_nested_value_that_can_be_sent_arrives(self):
        x = b"a"
        for _ in range(300):
            x = [x]
        assert loads(dumps(Serialize(x))) == x

    @pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
    @pytest.mark.parametrize("repeat", [1, 1000])
    def test_counts_of_elements_that_are_not_there_allocate_nothing(
        self, claim, repeat, memory_below
    ):
        with memory_below(1_000_000), pytest.raises(MessageError):
            loads([claim * repeat])

    def test_nested_counts_of_elements_allocate_little(self, memory_below):
        claims = b"\xdd\x00\x0f\x00\x00" * 1000
        with memory_below(150_000_000), pytest.raises(ProtocolError):
            loads([claims + bytes(1_000_000 - len(claims))])


class TestReading:
    def test_a_value_within_a_message_is_read_under_its_limits(self):
        with reading(LoadPolicy(allow_pickle=False)) as outer:
            with reading() as inner:
                assert inner is outer
            with reading(LoadPolicy()):
                assert may_unpickle()
            with pytest.raises(PickleNotAllowedError):
                check_unpickling()
        assert may_unpickle()

    def test_reading_ends_with_an_error(self):
        with pytest.raises(PickleNotAllowedError):
            loads(dumps(Serialize(1)), policy=LoadPolicy(allow_pickle=False))
        assert may_unpickle()


class TestConfiguration:
    def test_a_policy_is_made_from_the_configuration(self):
        keys = {"allow-pickle": False, "max-depth": 7, "max-inflated-size": "1kiB"}
        with config.set({f"distributed.comm.{key}": value for key, value in keys.items()}):
            assert LoadPolicy.from_config() == (False, 7, 1024)
            assert LoadPolicy.from_config(allow_pickle=True) == (True, 7, 1024)

    def test_default_configuration_and_default_policy_are_equal(self):
        assert LoadPolicy.from_config() == LoadPolicy()

    def test_a_limit_can_be_switched_off(self):
        keys = {"max-depth": None, "max-inflated-size": None}
        with config.set({f"distributed.comm.{key}": value for key, value in keys.items()}):
            assert LoadPolicy.from_config() == (True, None, None)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("allow-pickle", "maybe"), ("allow-pickle", None), ("max-depth", -1), ("max-depth", "x")],
    )
    def test_an_invalid_value_is_an_error_that_names_its_key(self, key, value):
        with (
            config.set({f"distributed.comm.{key}": value}),
            pytest.raises(ValueError, match=f"distributed.comm.{key}"),
        ):
            LoadPolicy.from_config()

    @gen_test()
    async def test_a_connection_uses_the_configuration_at_its_opening(self):
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
