"""Messages that take a server long to read, from a peer in another process.

While they are read, an honest client is answered within a second; see `besieged`.  All limits have
their defaults.
"""

from __future__ import annotations

import functools
import itertools
import sys
import zlib
from collections.abc import Iterable
from typing import Any

import msgpack
import pytest

from distributed.comm.tests.raw_peers import packed, u64
from distributed.protocol import dumps, to_serialize
from distributed.protocol.compression import compressions
from distributed.tests.besieged import MB, besieged
from distributed.utils_test import gen_test

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def frames_of(data: Any) -> list[bytes]:
    """Return the frames of a request to echo *data*, serialized."""
    return [bytes(frame) for frame in dumps({"op": "echo", "data": to_serialize(data)})]


def a_map(keys: Iterable[Any]) -> bytes:
    """Return msgpack of a map; Python could not make a dict of such keys in time."""
    packer = msgpack.Packer()
    pairs = [packer.pack(key) + packer.pack(None) for key in keys]
    return packer.pack_map_header(len(pairs)) + b"".join(pairs)


def a_request(data: bytes) -> bytes:
    """Return the first frame of a request to echo *data*, which is msgpack."""
    return b"\x82\xa2op\xa4echo\xa4data" + data


#: 20,000 tuples with the same hash: -1 and -2 have the same hash.
COLLIDING = list(itertools.islice(itertools.product((-1, -2), repeat=15), 20_000))


@pytest.mark.parametrize("where", ["map", "map in a header", "set", "collection"])
@gen_test(timeout=110)
async def test_keys_with_equal_hashes(where):
    async with besieged(lasting=16 * MB) as siege:
        peer = await siege.after_handshake()
        for _ in range(3):
            if where == "map":
                data = packed(a_request(a_map(COLLIDING)))
            elif where == "set":
                data = packed(a_request(msgpack.packb({"__Set__": True, "as-list": COLLIDING})))
            elif where == "map in a header":
                request, header, _ = frames_of(b"abc")
                header = msgpack.packb({**msgpack.unpackb(header, strict_map_key=False), "x": 0})
                data = packed(request, header[:-1] + a_map(COLLIDING), b"abc")
            else:
                sub_headers = [{"serializer": "msgpack", "key": key} for key in COLLIDING]
                request, header, _ = frames_of(b"abc")
                header = {
                    "is-collection": True,
                    "type-serialized": "dict",
                    "sub-headers": sub_headers,
                    "frame-lengths": [1] * len(sub_headers),
                    "num-sub-frames": len(sub_headers),
                }
                data = packed(request, msgpack.packb(header), *[b"\xc0"] * len(sub_headers))
            await peer.send(data)
            answer = b"".join(await peer.read_message())
            assert b"have the same hash" in answer


#: Messages of 14 MB or less that consist of millions of objects.
MANY_OBJECTS = {
    "maps": b"\xdd" + (4_500_000).to_bytes(4, "big") + b"\x81\xa0\x00" * 4_500_000,
    "maps in maps": b"\xdd" + (1_200_000).to_bytes(4, "big") + b"\x81\xa1a\x80" * 1_200_000,
    "lists": b"\xdd" + (3_000_000).to_bytes(4, "big") + b"\x91\x00" * 3_000_000,
    "fewer maps": b"\xdd" + (10**6).to_bytes(4, "big") + b"\x81\xa0\x00" * 10**6,
}


#: Those whose maps and arrays need more than 'distributed.comm.max-inflated-size' allows: 1 GiB.
TOO_MANY_OBJECTS = {"maps"}


@pytest.mark.parametrize("what", MANY_OBJECTS)
@gen_test(timeout=110)
async def test_messages_with_millions_of_small_objects(what):
    data = packed(b"\x82\xa2op\xa3nop\xa4data" + MANY_OBJECTS[what])
    refused = what in TOO_MANY_OBJECTS
    # Python does not return all of the memory of small objects.
    growth, lasting = (2 * len(data) + 64 * MB, 64 * MB) if refused else (800 * MB, 400 * MB)
    async with besieged(max_growth=growth, lasting=lasting) as siege:
        peer = await siege.after_handshake()
        for _ in range(2):
            await peer.send(data)
            answer = b"".join(await peer.read_message())
            assert (b"distributed.comm.max-inflated-size" in answer) == refused
            assert (b"nop" in answer) != refused


@gen_test(timeout=110)
async def test_headers_with_millions_of_small_objects():
    request, header, _ = frames_of(b"abc")
    header = msgpack.packb({**msgpack.unpackb(header, strict_map_key=False), "x": 0})
    data = packed(request, header[:-1] + MANY_OBJECTS["fewer maps"], b"abc")
    async with besieged(max_growth=400 * MB, lasting=200 * MB) as siege:
        peer = await siege.after_handshake()
        for _ in range(2):
            await peer.send(data)
            assert b"abc" in b"".join(await peer.read_message())


# Inflating frames


def inflating(name: str, frames: list[bytes]) -> bytes:
    """Return a request for an unknown op, with a list of bytes that are compressed one by one."""
    count = len(frames)
    request, header, *_ = frames_of([b"a" * 1000])
    request = request.replace(b"echo", b"nop!")
    changed = msgpack.unpackb(header)
    changed |= {
        "sub-headers": changed["sub-headers"] * count,
        "frame-lengths": [1] * count,
        "split-num-sub-frames": [1] * count,
        "split-offsets": list(range(count)),
        "compression": [name] * count,
        "num-sub-frames": count,
    }
    return packed(request, msgpack.packb(changed), *frames)


def zeros_in_zstd(size: int) -> bytes:
    """Return zeros as a frame of zstd that does not state its size."""
    zstandard = pytest.importorskip("zstandard")
    return bytes(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size)))


@functools.cache
def zeros(name: str, size: int) -> bytes:
    """Return zeros compressed with a codec; "zstd?" is zstd without the size."""
    if name == "zstd?":
        return zeros_in_zstd(size)
    if name not in compressions:
        pytest.skip(f"{name} is not installed")
    if name == "zlib":
        return zlib.compress(bytes(size), 1)
    return bytes(compressions[name].compress(bytes(size)))


@pytest.mark.parametrize(
    ("name", "count", "size"),
    [
        ("zlib", 1, 1000 * MB),
        ("zstd", 100, 10 * MB),
        ("zstd?", 100, 10 * MB),
        ("lz4", 100, 10 * MB),
        ("zlib", 100_000, 0),
    ],
)
@gen_test(timeout=110)
async def test_messages_that_inflate_to_a_gigabyte(name, count, size):
    data = inflating(name.rstrip("?"), [zeros(name, size)] * count)
    # The message, a copy of it, and the compressed frames.
    async with besieged(max_growth=2200 * MB, lasting=32 * MB) as siege:
        peer = await siege.after_handshake()
        await peer.send(data)
        assert b"nop!" in b"".join(await peer.read_message())


@gen_test(timeout=110)
async def test_messages_that_inflate_to_more_are_refused():
    data = inflating("zlib", [zeros("zlib", 10 * MB)] * 110)
    async with besieged(max_growth=1200 * MB) as siege:
        peer = await siege.after_handshake()
        await peer.send(data)
        answer = b"".join(await peer.read_message())
        assert b"'distributed.comm.max-inflated-size' allows 1,073,741,824 bytes" in answer


@gen_test(timeout=110)
async def test_many_messages_that_each_inflate_to_a_few_megabytes():
    data = inflating("zlib", [zeros("zlib", 5 * MB)])
    async with besieged(max_growth=400 * MB) as siege:
        peers = [await siege.after_handshake() for _ in range(40)]
        for peer in peers:
            await peer.send(data)
        for peer in peers:
            assert b"nop!" in b"".join(await peer.read_message())


@gen_test(timeout=110)
async def test_messages_that_inflate_to_much_are_inflated_one_after_the_other():
    data = inflating("zlib", [zeros("zlib", 150 * MB)])
    # Inflating takes twice the memory of the result.  The results before it may still be in use.
    async with besieged(max_growth=800 * MB, lasting=32 * MB) as siege:
        peers = [await siege.after_handshake() for _ in range(4)]
        for peer in peers:
            await peer.send(data)
        for peer in peers:
            assert b"nop!" in b"".join(await peer.read_message())


# Many frames


@gen_test(timeout=110)
async def test_ten_million_empty_frames():
    count = 10_000_000
    async with besieged() as siege:
        peer = await siege.after_handshake()
        await peer.send(u64(8 + 8 * count, count))
        await peer.wait_closed()


@pytest.mark.parametrize("size", [0, 1])
@gen_test(timeout=110)
async def test_a_million_small_frames(size):
    request = msgpack.packb({"op": "echo", "data": 1})
    frames = [request] + [bytes(size)] * 999_999
    data = packed(*frames)
    # A frame takes 80 bytes however small it is.
    async with besieged(max_growth=2 * len(data) + 80 * MB, lasting=32 * MB) as siege:
        peer = await siege.after_handshake()
        for _ in range(2):
            await peer.send(data)
            assert await peer.read_message() == [b"\x01"]
