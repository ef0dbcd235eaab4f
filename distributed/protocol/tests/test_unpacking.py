"""Reading msgpack: the same values as msgpack reads, in steps, and with bounds on equal hashes."""

from __future__ import annotations

import itertools

import msgpack
import pytest

from distributed.protocol import ToPickle, deserialize_bytes, dumps, limits, loads, serialize_bytes
from distributed.protocol.collisions import make_dict, make_set
from distributed.protocol.exceptions import CompressionError, MessageError
from distributed.protocol.unpacking import _containers, unpack

#: Tuples with the same hash.
COLLIDING = list(itertools.islice(itertools.product((-1, -2), repeat=10), 500))


@pytest.mark.parametrize(
    "value",
    [
        tuple(range(400_000)),
        ("x" * 3_000_000,),
        {"a": b"x" * 1_200_000, "b": tuple({"c": i} for i in range(60_000)), "d": "y" * 10**6},
        (b"x" * 65_000,) * 30,
        {i: (i, {i: "x"}) for i in range(90_000)},
        {("x", i): i for i in range(110_000)},
    ],
    ids=range(6),
)
def test_large_values_are_read_as_msgpack_reads_them(value):
    packed = msgpack.packb(value)
    assert len(packed) > 10**6
    assert unpack(memoryview(packed)) == value
    for invalid in (packed[:-1], packed + b"x"):
        with pytest.raises(ValueError, match=r"incomplete|extra"):
            unpack(invalid)


@pytest.mark.parametrize("padding", [0, 1, 2, 5, 6588])
def test_the_estimate_of_maps_and_arrays_is_at_most_a_fifth_too_low(padding):
    # A sample with a fixed step could find all maps of such a message, or none.
    item = b"\x81\xa0\x00" * (1 + padding // 3) + bytes(padding % 3)
    count = 13_500_000 // len(item)
    packed = item * count
    maps = count * (1 + padding // 3)
    assert all(1.25 * _containers(packed) >= maps for _ in range(100))


#: Values whose maps and arrays take more than 4 MB of memory.
MANY = {
    "maps": [{}] * 20_000 + ["x"] * 600_000,
    "arrays": [[0]] * 70_000 + ["x"] * 600_000,
    "both": [[{}]] * 15_000 + ["x"] * 600_000,
    "nested": [[[[{0: [1]}]]]] * 13_000 + ["x"] * 600_000,
    "arrays as keys": [{(i, (1,)): 0} for i in range(20_000)] + ["x"] * 600_000,
    "at the end": ["x" * 1_200_000, [{}] * 20_000],
}


@pytest.mark.parametrize("what", MANY)
def test_maps_and_arrays_that_take_too_much_memory_are_refused(what):
    policy = limits.LoadPolicy(max_inflated_size=4 * 10**6)
    packed = msgpack.packb(MANY[what])
    for read in (
        lambda: loads([packed], policy=policy),
        lambda: loads([packed, b""], policy=policy),
        lambda: loads([msgpack.packb({"x": {"__Serialized__": 1}}), packed], policy=policy),
    ):
        with pytest.raises(CompressionError, match=r"max-inflated-size' allows 4,000,000 bytes"):
            read()
    assert loads([packed]) == loads([packed], policy=policy._replace(max_inflated_size=None))


@pytest.mark.parametrize(
    "value",
    [
        [{}] * 15_000 + ["x"] * 600_000,
        ["汉字" * 10] * 50_000,
        [bytes(range(256)) * 16] * 500,
    ],
    ids=["fewer maps", "text that looks like maps", "bytes that look like maps"],
)
def test_values_that_take_less_memory_are_read(value):
    policy = limits.LoadPolicy(max_inflated_size=4 * 10**6)
    packed = msgpack.packb(value)
    assert len(packed) > 2**20
    assert loads([packed], policy=policy) == tuple(value)


def test_keys_with_equal_hashes_are_refused():
    with pytest.raises(MessageError, match="500 of 500 keys"):
        make_set(COLLIDING)
    with pytest.raises(MessageError, match="500 of 501 keys"):
        make_dict([("x", 0), *((key, 0) for key in COLLIDING)])
    packer = msgpack.Packer()
    pairs = b"".join(packer.pack(key) + b"\x00" for key in COLLIDING)
    with pytest.raises(MessageError, match="500 of 500 keys"):
        loads([packer.pack_map_header(500) + pairs])


def test_keys_of_honest_peers_are_accepted():
    keys = [
        (f"x-{i}", j, k, m) for i in range(50) for j in (-1, -2) for k in (-1, -2) for m in (-1, -2)
    ]
    assert make_set(keys) == set(keys)
    assert make_dict([(key, 1) for key in keys]) == dict.fromkeys(keys, 1)


class Counted:
    """An object that counts how often it is unpickled."""

    count = 0

    def __reduce__(self):
        return Counted._unpickled, ()

    @staticmethod
    def _unpickled():
        Counted.count += 1
        return Counted()


def test_values_are_unpickled_once_although_keys_need_a_second_look(monkeypatch):
    monkeypatch.setattr(Counted, "count", 0)
    frames = dumps({"x": ToPickle(Counted()), "y": "." * 5000, "z": {(1, 2): ToPickle(Counted())}})
    message = loads(frames)
    assert list(message["z"]) == [(1, 2)]
    assert Counted.count == 2


def test_stored_values_may_inflate_to_any_size(monkeypatch):
    monkeypatch.setattr(limits, "AUTO_SIZE", 1000)
    stored = serialize_bytes(bytes(10**6), compression="zlib")
    assert len(stored) < 10**4
    assert deserialize_bytes(stored) == bytes(10**6)
