"""Attacks on a server in another process.

During each attack an honest client is answered within a second, and afterwards the server has as
much memory and as many file descriptors as before.  `besieged` checks this from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import zlib

import msgpack
import pytest

from distributed.comm.tests.raw_peers import HANDSHAKE, message, packed, u64
from distributed.protocol import ToPickle, dumps, to_serialize
from distributed.tests.besieged import MB, Siege, besieged
from distributed.utils_test import async_poll_for, gen_test

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

DEADLINE = {"timeouts__handshake": "1s"}

HELLO = message(HANDSHAKE)

#: Size in bytes of a reply that fills every buffer between the server and the peer several times.
LARGE = 4 * MB


def frames_of(data):
    """Return the frames of a request to echo *data*, serialized."""
    return [bytes(frame) for frame in dumps({"op": "echo", "data": to_serialize(data)})]


def with_header(changes, *data):
    """Return a request to echo the frames in *data*, whose header has these *changes*."""
    request, header, _ = frames_of(b"abc")
    header = {**msgpack.unpackb(header, strict_map_key=False), **changes}
    return packed(request, msgpack.packb(header), *data)


# Peers that make the server wait


@gen_test(timeout=110)
async def test_silence_after_connecting():
    async with besieged(**DEADLINE) as siege:
        for _ in range(500):
            await siege.connect()
        await siege.all_closed()


@gen_test(timeout=110)
async def test_silence_after_the_handshake_with_an_idle_timeout():
    async with besieged(timeouts__idle="1s") as siege:
        for _ in range(6):
            await asyncio.gather(*(siege.after_handshake() for _ in range(50)))
        await siege.all_closed()


@gen_test(timeout=110)
async def test_half_a_handshake():
    async with besieged(**DEADLINE) as siege:
        for size in range(1, len(HELLO)):
            for _ in range(4):
                await (await siege.connect()).send(HELLO[:size])
        await siege.all_closed()


@pytest.mark.parametrize("stage", ["handshake", "request"])
@gen_test(timeout=110)
async def test_bytes_one_by_one(stage):
    async def dribble(data):
        peer = await siege.connect()
        if stage == "request":
            await peer.handshake()
        try:
            for i in range(len(data)):
                await peer.send(data[i : i + 1])
                await asyncio.sleep(0.02)
        except ConnectionError:
            return
        raise AssertionError("the server did not close the connection")

    async with besieged(**DEADLINE, timeouts__idle="1s") as siege:
        # The length is valid, so only the deadline closes the connection.
        data = u64(16 + 60_000, 1, 60_000) + bytes(60_000)
        await asyncio.gather(*(dribble(data) for _ in range(100)))


# Peers that send invalid messages


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(100)),
    b"SSH-2.0-OpenSSH_9.6\r\n" * 4,
    bytes(64),
    b"\xff" * 64,
    *(random.Random(seed).randbytes(10**4) for seed in range(20)),
]

#: Frames that are not msgpack, or not a valid request.
NONSENSE = [
    b"\xc1\xc1\xc1",
    b"\xdf\xff\xff\xff\xff",  # a map of 2**32 - 1 entries
    b"\xdd\xff\xff\xff\xff" * 10,  # nested lists of 2**32 - 1 entries
    b"\xc6\xff\xff\xff\xff",  # 2**32 - 1 bytes
    b"\x91" * 50_000,  # a list in a list in a list …
    b"\x81\xa1a" * 50_000,
    msgpack.packb([1, 2, 3]),
    msgpack.packb({"op": ["echo"]}),
    msgpack.packb({"op": "echo", "x" * 1000: 1}),
    msgpack.packb({"op": "__class__", "reply": {}, "close": [], "serializers": 5}),
    msgpack.packb({"__Enum__": "x", "__module__": "os", "name": "system"}),
    msgpack.packb(msgpack.ExtType(5, b"abc")),
    *(random.Random(seed).randbytes(1000) for seed in range(20)),
]

LIES = [
    u64(8, 0),
    u64(0, 1, 0),
    u64(10, 1, 5),
    u64(16 + 3, 1, 5),
    u64(16 + 9, 1, 5),
    u64(2**40, 2**33),
    u64(2**64 - 1, 2**64 - 1),
    u64(16, 1, 2**63),
    u64(8 + 8 * 4, 4, *[2**62] * 4),
    u64(8 + 8 * 9_000_000, 9_000_000),
    u64(16, 1, 2**34),
    u64(8 + 8 * 16, 16, *[2**30] * 16),
]


async def give(siege: Siege, stage: str, data: bytes) -> None:
    """Send *data* at the start of a stage of a connection, and close."""
    peer = await siege.connect()
    if stage == "request":
        await peer.handshake()
    elif stage == "stream":
        await peer.handshake()
        await peer.send(message({"op": "connection_stream"}))
    elif stage == "body of a request":
        await peer.handshake()
        await peer.send(u64(16 + 2 * len(data), 1, 2 * len(data)))
    try:
        await peer.send(data)
        # Give the server time to answer.
        async with asyncio.timeout(0.05):
            await peer.wait_closed()
    except (TimeoutError, ConnectionError):
        pass
    peer.close()


STAGES = pytest.mark.parametrize("stage", ["handshake", "request", "body of a request", "stream"])


@STAGES
@gen_test(timeout=110)
async def test_garbage_at_every_stage(stage):
    async with besieged() as siege:
        for data in GARBAGE:
            await asyncio.gather(*(give(siege, stage, data) for _ in range(5)))


@STAGES
@gen_test(timeout=110)
async def test_nonsense_in_a_frame_at_every_stage(stage):
    async with besieged() as siege:
        for data in NONSENSE:
            await asyncio.gather(*(give(siege, stage, packed(data)) for _ in range(3)))


@pytest.mark.parametrize("stage", ["handshake", "request", "stream"])
@gen_test(timeout=110)
async def test_lengths_and_counts_that_lie_in_the_prelude(stage):
    async with besieged() as siege:
        for data in LIES:
            await asyncio.gather(
                *(give(siege, stage, data + bytes(more)) for more in (0, 10, 100_000))
            )


@gen_test(timeout=110)
async def test_counts_and_offsets_that_lie_in_a_header():
    lies = [
        {"num-sub-frames": 10**12},
        {"num-sub-frames": -1},
        {"num-sub-frames": "x"},
        {"split-num-sub-frames": [10**12]},
        {"split-num-sub-frames": [-5, 6]},
        {"split-offsets": [2**62]},
        {"split-offsets": [-1]},
        {"compression": ["zlib"]},
        {"compression": [None] * 10**5},
        {"serializer": "no such"},
        {"serializer": ["dask"]},
        {"type": "no.such.Type"},
        {"type-serialized": b"\x80\x05nonsense"},
        {"writeable": [10**12]},
        {"shape": [2**40, 2**40], "strides": [-8, 2**50], "dtype": [0, "<f8"]},
        {"lengths": [10**12]},
    ]
    async with besieged() as siege:
        peer = await siege.after_handshake()
        for lie in lies:
            await peer.send(with_header(lie, b"abc"))
            await peer.read_message()
        for index in (-1, 0, 2, 10**12, "x", None, [1]):
            request, *rest = frames_of(b"abc")
            request = msgpack.packb({"op": "echo", "data": {"__Serialized__": index}})
            await peer.send(packed(request, *rest))
            await peer.read_message()
        # The connection is still usable.
        await peer.send(message({"op": "echo", "data": "still there"}))
        assert await peer.read_message() == [msgpack.packb("still there")]


@gen_test(timeout=110)
async def test_messages_with_wrong_bytes_anywhere():
    rng = random.Random(4)
    frames = frames_of([b"abc", bytes(1000), bytearray(10)])
    async with besieged(allow_pickle=False) as siege:
        for _ in range(10):
            peer = await siege.after_handshake()
            for _ in range(100):
                changed = [bytearray(frame) for frame in frames]
                for _ in range(rng.randint(1, 4)):
                    frame = rng.choice(changed[:2])
                    frame[rng.randrange(len(frame))] = rng.randrange(256)
                await peer.send(packed(*map(bytes, changed)))
                await peer.read_message()


@gen_test(timeout=110)
async def test_inflating_frames():
    # Enough for the message itself and a few copies of the permitted inflated size.
    async with besieged(max_growth=(20 + 3 * 64) * MB, max_inflated_size="64MiB") as siege:
        size = 60 * MB
        bomb = zlib.compress(bytes(size))
        assert len(bomb) < size / 500
        peer = await siege.after_handshake()
        for count in (300, 2, 100):
            header = {
                "type": "list",
                "split-num-sub-frames": [1] * count,
                "split-offsets": list(range(count)),
                "compression": ["zlib"] * count,
                "num-sub-frames": count,
            }
            await peer.send(with_header(header, *[bomb] * count))
            answer = b"".join(await peer.read_message())
            assert b"distributed.comm.max-inflated-size" in answer


class Bomb:
    """An object that creates a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@gen_test(timeout=110)
async def test_a_pickle_in_the_handshake_is_not_unpickled(tmp_path):
    marker = tmp_path / "exploded"
    wrapped = [bytes(frame) for frame in dumps({**HANDSHAKE, "x": ToPickle(Bomb(marker))})]
    serialized = [bytes(frame) for frame in dumps({**HANDSHAKE, "x": to_serialize(Bomb(marker))})]
    attacks = [
        *(packed(*frames) for frames in (wrapped, serialized)),
        # In one frame, like a handshake.
        *(packed(frame) for frame in (*wrapped, *serialized)),
        *(packed(msgpack.packb({**HANDSHAKE, "x": frame})) for frame in wrapped),
        *(
            packed(msgpack.packb({**HANDSHAKE, "x": msgpack.ExtType(1, frame)}))
            for frame in wrapped
        ),
    ]
    async with besieged() as siege:
        for data in attacks:
            await give(siege, "handshake", data)
        assert not marker.exists()
        # After the handshake it is unpickled, since the configuration allows it.
        await give(siege, "request", message({"op": "echo", "data": ToPickle(Bomb(marker))}))
        await async_poll_for(marker.exists, timeout=5)


@gen_test(timeout=110)
async def test_a_pickle_from_a_peer_without_the_token_is_not_unpickled(tmp_path):
    marker = tmp_path / "exploded"
    request = message({"op": "echo", "data": ToPickle(Bomb(marker))})
    async with besieged(auth__token="0123456789abcdef") as siege:
        for data in (HELLO + request, request, request + HELLO):
            for _ in range(20):
                await give(siege, "handshake", data)
        assert not marker.exists()


@gen_test(timeout=110)
async def test_guesses_at_the_token_from_the_host_of_an_honest_client():
    async def guess(number):
        peer = await siege.connect()
        challenge = {"scheme": "hmac-sha256", "nonce": bytes(32)}
        await peer.send(packed(msgpack.packb({**HANDSHAKE, "auth": challenge})))
        await peer.read_message()
        await peer.send(packed(msgpack.packb({"proof": bytes([number]) * 32})))
        (answer,) = await peer.read_message()
        assert msgpack.unpackb(answer) == {"refused": "the token is wrong"}
        await peer.wait_closed()

    async with besieged("unix://", auth__token="0123456789abcdef") as siege:
        for _ in range(4):
            await asyncio.gather(*map(guess, range(20)))


# Peers that do not read


@pytest.mark.parametrize("size", [100, MB], ids=["small replies", "large replies"])
@gen_test(timeout=110)
async def test_a_flood_of_requests_whose_replies_are_not_read(size):
    request = message({"op": "echo", "data": bytes(size)})
    flood = request * max(1, 100_000 // size)
    limit = 400 * MB

    async def send_flood(peer):
        sent = 0
        try:
            while sent < limit:
                # The timeout means that the server has stopped reading.
                async with asyncio.timeout(1):
                    await peer.send(flood)
                sent += len(flood)
        except TimeoutError:
            return sent
        raise AssertionError("the server did not stop reading")

    async with besieged() as siege:
        peers = [await siege.after_handshake(receive_buffer=4096) for _ in range(5)]
        sent = await asyncio.gather(*map(send_flood, peers))
        assert max(sent) < limit / 5


@pytest.mark.parametrize("how", ["one call", "many calls", "calls sent ahead"])
@pytest.mark.timeout(180)
@gen_test(timeout=120)
async def test_a_slow_reader_of_2_gb_of_replies(how):
    count = 2048
    one = message({"op": "chunks", "count": count, "size": MB})
    call = message({"op": "blob", "size": MB})
    total = count * MB

    async with besieged(max_growth=64 * MB) as siege:
        peer = await siege.after_handshake(receive_buffer=2**16)
        if how == "one call":
            await peer.send(one)
        elif how == "calls sent ahead":
            await peer.send(call * count)
        buffer = bytearray(2**18)
        loop = asyncio.get_running_loop()
        received = 0
        for i in range(count):
            if how == "many calls":
                await peer.send(call)
            while received < (i + 1) * MB:
                received += await loop.sock_recv_into(peer.sock, buffer)
            # Slower than the server sends.
            await asyncio.sleep(0.001)
        assert total <= received < total * 1.01
        # Of a second answer, read only the first bytes.
        await peer.send(one)
        await peer.receive(1000)
        peer.close()


# Streams

#: Messages of a stream, many of which are in one batch.
STREAMED = {
    "handled": {"op": "note", "x": 1},
    "without a handler": {"op": "no such handler"},
    "not maps": "no map",
    "with a wrong argument": {"op": "note", "y": 1},
}


@pytest.mark.parametrize("what", STREAMED)
@gen_test(timeout=110)
async def test_batches_of_100_000_messages(what):
    batch = message([STREAMED[what]] * 100_000)
    start = message({"op": "connection_stream", "reply": False})
    # Objects that other tasks made meanwhile keep some of the memory that the messages had in use.
    async with besieged(max_growth=64 * MB, lasting=32 * MB) as siege:
        peer = await siege.after_handshake()
        await peer.send(start + batch)
        # The server may have closed the connection already.
        with contextlib.suppress(ConnectionError):
            await peer.send(message([{"op": "close-stream"}]))
        await siege.all_closed()
        assert len(siege.server.logged()) < 200_000


# Peers that reset the connection

REQUEST = message({"op": "echo", "data": bytes(1000)})

#: The bytes to send, and the number of bytes to read, before the connection is reset.
MIDDLES = {
    "the beginning": (b"", 0),
    "the handshake": (HELLO[:20], 0),
    "an unread handshake": (HELLO, 0),
    "a pause": (HELLO, 40),
    "a prelude": (HELLO + REQUEST[:12], 40),
    "a request": (HELLO + REQUEST[:500], 40),
    "requests": (HELLO + REQUEST * 100, 40),
    "a reply": (HELLO + message({"op": "blob", "size": LARGE}), 100_000),
    "the first of many replies": (HELLO + message({"op": "blob", "size": MB}) * 100, 100_000),
    "a reply in parts": (HELLO + message({"op": "chunks", "count": 99, "size": MB}), 10 * MB),
    "the beginning of a stream": (HELLO + message({"op": "connection_stream"}), 40),
    "a stream": (
        HELLO
        + message({"op": "connection_stream"})
        + message([{"op": "note", "x": i} for i in range(100)]) * 10
        + REQUEST[:500],
        40,
    ),
}


@pytest.mark.parametrize("middle", MIDDLES)
@gen_test(timeout=110)
async def test_resets_at_every_stage(middle):
    data, size = MIDDLES[middle]
    # Up to 30 answers at a time.
    async with besieged(max_growth=64 * MB + 30 * LARGE) as siege:
        for _ in range(30):
            peer = await siege.connect()
            await peer.send(data)
            await peer.read_exactly(size)
            peer.reset()


# Too many peers


@gen_test(timeout=110)
async def test_more_connections_than_a_host_may_have():
    async with besieged(max_connections_per_host=20) as siege:
        for i in range(200):
            peer = await siege.after_handshake()
            await peer.send(message({"op": "echo", "data": i}))
            answer = b"".join(await peer.read_message())
            assert (b"distributed.comm.max-connections-per-host" in answer) == (i >= 20)


@gen_test(timeout=110)
async def test_refused_connections_that_stay_silent_are_bounded_in_number():
    async with besieged(max_connections_per_host=20) as siege:
        before = siege.server.descriptors()
        peers = [await siege.after_handshake() for _ in range(800)]
        # By default, 500 refused connections wait.  A few descriptors are the honest client's.
        limit = before + 20 + 500 + 10
        await async_poll_for(lambda: siege.server.descriptors() < limit, timeout=10)
        # The first ones were admitted.
        await asyncio.gather(*(peer.wait_closed() for peer in peers[20:250]))
        assert siege.server.logged().count("refuses a connection") < 5


@gen_test(timeout=110)
async def test_more_silent_connections_than_there_are_descriptors():
    async with besieged() as siege:
        siege.server.limit_descriptors(100)
        for _ in range(400):
            await siege.connect()
        # A peer that completes the handshake is accepted.
        await siege.after_handshake()
        assert siege.server.logged().count("Too many connections") == 1


@gen_test(timeout=110)
async def test_more_connections_than_there_are_descriptors():
    async with besieged() as siege:
        peers = [await siege.after_handshake() for _ in range(50)]
        siege.server.limit_descriptors(siege.server.descriptors() - 1)
        await async_poll_for(lambda: "Too many connections" in siege.server.logged(), timeout=5)
        # No connection is closed, so new peers have to wait, and the server is nearly idle.
        busy = siege.server.cpu_seconds()
        await asyncio.sleep(0.5)
        assert siege.server.cpu_seconds() - busy < 0.25
        for peer in peers:
            await peer.send(message({"op": "echo", "data": 1}))
            assert await peer.read_message() == [msgpack.packb(1)]
            peer.close()


# Other transports


OTHER_TRANSPORTS = pytest.mark.parametrize(
    "address", ["unix://", "tls://127.0.0.1:0", "ws://127.0.0.1:0", "wss://127.0.0.1:0"]
)


@OTHER_TRANSPORTS
@gen_test(timeout=110)
async def test_silence_and_garbage_over_other_transports(address):
    async with besieged(address, **DEADLINE) as siege:
        for _ in range(200):
            await siege.connect()
        for data in (*GARBAGE, *map(packed, NONSENSE), *LIES, HELLO[:20]):
            await give(siege, "handshake", data)
        for _ in range(50):
            (await siege.connect()).reset()
        await siege.all_closed()


@OTHER_TRANSPORTS
@gen_test(timeout=110)
async def test_more_silence_than_there_are_descriptors_over_other_transports(address):
    async with besieged(address) as siege:
        siege.server.limit_descriptors(100)
        for _ in range(400):
            await siege.connect()
        await async_poll_for(lambda: "Too many connections" in siege.server.logged(), timeout=5)
        assert siege.server.logged().count("Too many connections") == 1


def about_arrays():
    """Return requests whose arrays claim gigabytes, or are slow to compare or to show."""
    np = pytest.importorskip("numpy")
    repeated = np.broadcast_to(np.zeros(1, "u1"), 2**34)
    wide = np.broadcast_to(np.zeros(1, "u1"), (7,) * 16)
    masked = np.ma.MaskedArray(repeated, mask=np.broadcast_to(np.zeros(1, "?"), 2**34))
    one_element = dumps({"x": to_serialize(np.zeros(1, "?"))})

    def changed(data, **changes):
        request, header, *data = dumps({"op": "echo", "data": to_serialize(data)})
        header = msgpack.unpackb(header, strict_map_key=False)
        header["sub-header"] |= changes
        return packed(request, msgpack.packb(header), *map(bytes, data))

    mask_header = msgpack.unpackb(one_element[1])["sub-header"]
    yield changed(masked, **{"mask-header": mask_header})
    yield changed(np.zeros(1, "i4"), dtype=(0, "i4," * 300_000))
    yield changed(np.zeros(1, "i4"), dtype=(0, "(" + "1," * 300_000 + ")i4"))
    for request in (
        {"op": "echo", "data": to_serialize(repeated), "serializers": ["pickle"]},
        {"op": "echo", "data": to_serialize((repeated, masked)), "serializers": ["pickle"]},
        {"op": to_serialize(wide)},
        {"data": to_serialize(wide)},
        to_serialize(wide),
    ):
        yield packed(*map(bytes, dumps(request)))


@gen_test(timeout=110)
async def test_headers_of_arrays_that_claim_gigabytes():
    np = pytest.importorskip("numpy")
    async with besieged() as siege:
        peer = await siege.after_handshake()
        # The server imports numpy now.
        await peer.send(packed(*frames_of(np.zeros((1, 1), "M8[s]"))))
        await peer.read_message()
        await peer.send(packed(*frames_of(np.ma.MaskedArray([1], mask=[True]))))
        await peer.read_message()
        siege.memory = siege.server.resident()
        siege.server.forget_peak()
        for request in about_arrays():
            await peer.send(request)
            await peer.read_message()
        # The connection is still usable.
        await peer.send(message({"op": "echo", "data": "still there"}))
        assert await peer.read_message() == [msgpack.packb("still there")]


# Calls of several messages


@gen_test(timeout=110)
async def test_streams_whose_items_are_not_consumed():
    info = {"stream": 10**9, "timeout": 1e300}
    request = message({"op": "chunks", "count": 10**6, "size": MB, "call-info": info})

    async def receive_all(peer):
        received = 0
        try:
            while True:
                async with asyncio.timeout(1):
                    received += len(await peer.receive(MB))
        except TimeoutError:
            # The server waits for credits.
            return received

    async with besieged(max_growth=64 * MB) as siege:
        peers = [await siege.after_handshake() for _ in range(10)]
        for peer in peers:
            await peer.send(request)
        received = await asyncio.gather(*map(receive_all, peers))
        assert max(received) < 17 * MB


@gen_test(timeout=110)
async def test_peers_without_the_token_that_may_ask_for_the_health():
    settings = {"auth__token": "a secret of this test", "auth__allow_health": "true"}
    health = message({"op": "health"})
    nonsense = [health * 1000, packed(b"\xc1"), message({"op": "x"}) * 1000, u64(2**60) * 3, b"\0"]

    async def attack(i):
        peer = await siege.connect()
        await peer.send(HELLO)
        with contextlib.suppress(OSError):
            for _ in range(5):
                async with asyncio.timeout(1):
                    await peer.send(nonsense[i % len(nonsense)])

    async with besieged(timeouts__handshake="3s", **settings) as siege:
        await asyncio.gather(*(attack(i) for i in range(200)))
        await siege.all_closed()
