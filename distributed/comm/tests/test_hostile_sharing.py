"""Hostile peers that send file descriptors to a server in another process.

After each attack, the server has as many descriptors and mappings as before, and answers an honest
client.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from distributed.base import shared_memory
from distributed.comm import connect
from distributed.comm.control import pack_control
from distributed.comm.descriptors import MAX_DESCRIPTORS
from distributed.comm.tests.raw_peers import HANDSHAKE, RawPeer, connect_raw, message, packed, u64
from distributed.comm.tests.sharing_server import serving
from distributed.protocol import dumps, to_serialize
from distributed.utils_test import async_poll_for, gen_test

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux has this memory"),
    pytest.mark.skipif(not shared_memory.is_supported(), reason="the system forbids it"),
]

# Constants of linux/fcntl.h
F_ADD_SEALS = 1033
SEAL, SHRINK, GROW, WRITE = 1, 2, 4, 8

#: Size in bytes of the memory that honest peers send here.
SIZE = 8192

FEATURES = {"shared": (MAX_DESCRIPTORS, 2**50), "keepalive": (15, 30)}


@pytest.fixture(scope="module")
def server():
    """A server in another process."""
    with serving() as running:
        yield running


class Attacker:
    """A peer that sends descriptors."""

    def __init__(self, peer: RawPeer) -> None:
        self.peer = peer

    async def handshake(self, features: Any = FEATURES) -> None:
        hello = {**HANDSHAKE, "features": features} if features else HANDSHAKE
        await self.peer.send(message(hello))
        await self.peer.read_message()

    async def enable(self) -> None:
        """Agree upon descriptors, as honest peers do before they send some."""
        await self.peer.send(packed(b"", pack_control("descriptors", False, ())))
        frames = await self.peer.read_message()
        assert b"descriptors" in frames[1]
        self.send(packed(b"", pack_control("descriptors", False, (True,))), [os.eventfd(0)])

    def send(self, data: bytes, descriptors: list[int]) -> None:
        """Send bytes, and descriptors with the first one; then close the descriptors here."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        assert self.peer.sock.sendmsg([data], [rights] if descriptors else []) == len(data)
        for descriptor in descriptors:
            os.close(descriptor)

    async def received(self) -> None:
        """Wait until the server has received all bytes (SIOCOUTQ)."""
        await async_poll_for(
            lambda: not any(fcntl.ioctl(self.peer.sock, 0x5411, bytes(4))), period=0.001
        )


@asynccontextmanager
async def attacking(server):
    """Yield an attacker; check the server before and after the block."""
    honest = await connect(server.address)
    await honest.write({"op": "state"})
    before = await honest.read()
    peer = connect_raw(server.address)
    try:
        yield Attacker(peer)
    finally:
        peer.close()

    async def is_as_before():
        await honest.write({"op": "state"})
        return await honest.read() == before

    await async_poll_for(is_as_before, period=0.005)
    await honest.close()


# Descriptors


def memory(seals: int = SEAL | SHRINK | GROW, size: int = SIZE, name: str = "distributed") -> int:
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, F_ADD_SEALS, seals)
    return descriptor


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def regular_file() -> int:
    return os.open(__file__, os.O_RDONLY)


def file_in_memory() -> int:
    path = f"/dev/shm/distributed-test-{os.getpid()}"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    os.unlink(path)
    os.ftruncate(descriptor, SIZE)
    return descriptor


DESCRIPTORS: dict[str, Callable[[], int]] = {
    "pipe": pipe,
    "terminal": lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
    "device": lambda: os.open("/dev/zero", os.O_RDWR),
    "regular file": regular_file,
    "directory": lambda: os.open("/", os.O_RDONLY),
    "path": lambda: os.open("/", os.O_PATH),
    "file in memory": file_in_memory,
    "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "event": lambda: os.eventfd(0),
    "memory without seals": lambda: memory(0),
    "memory that can be sealed further": lambda: memory(SHRINK | GROW),
    "memory that can shrink": lambda: memory(SEAL | GROW),
    "memory that can grow": lambda: memory(SEAL | SHRINK),
    "memory sealed against writing only": lambda: memory(SEAL | WRITE),
    "empty memory": lambda: memory(size=0),
    "more memory than the host has": lambda: memory(size=2**48),
    "memory that cannot be mapped": lambda: memory(size=2**62),
}


def request(entries: list[tuple[int, ...]], count: int = 1, flags: int = 0) -> bytes:
    """Return the request to echo memory of which the table has these *entries*."""
    head, header, _ = map(bytes, dumps({"op": "echo", "x": to_serialize(memoryview(bytes(SIZE)))}))
    table = u64(count, *[flags] * count) + b"".join(u64(*entry) for entry in entries)
    return packed(b"", table, head, header)


#: An honest entry: frame 2 is all of the memory.
HONEST = (2, 0, 0, SIZE)


@gen_test()
async def test_an_honest_peer_that_sends_the_same_bytes_is_answered(server):
    async with attacking(server) as attacker:
        await attacker.handshake()
        await attacker.enable()
        attacker.send(request([HONEST]), [memory()])
        frames = await attacker.peer.read_message()
        assert frames[0] == b""
        assert len(frames) > 2


@pytest.mark.parametrize("make", DESCRIPTORS.values(), ids=DESCRIPTORS)
@gen_test()
async def test_descriptors_of_anything_but_sealed_memory_are_refused(server, make):
    async with attacking(server) as attacker:
        await attacker.handshake()
        await attacker.enable()
        attacker.send(request([HONEST]), [make()])
        assert await attacker.peer.wait_closed() == b""


@gen_test()
async def test_one_bad_descriptor_among_good_ones_is_refused(server):
    async with attacking(server) as attacker:
        await attacker.handshake()
        await attacker.enable()
        attacker.send(request([HONEST], count=3), [memory(), memory(), pipe()])
        assert await attacker.peer.wait_closed() == b""


LIES: dict[str, bytes] = {
    "more bytes than the memory has": request([(2, 0, 0, SIZE + 1)]),
    "bytes after the memory": request([(2, 0, SIZE, SIZE)]),
    "an offset that overflows": request([(2, 0, 2**64 - SIZE, SIZE)]),
    "a length that overflows": request([(2, 0, SIZE, 2**64 - SIZE)]),
    "no bytes": request([(2, 0, 0, 0)]),
    "another region": request([(2, 1, 0, SIZE)]),
    "the first frame": request([(0, 0, 0, SIZE)]),
    "a place after the end": request([(3, 0, 0, SIZE)]),
    "a place far after the end": request([(2**63, 0, 0, SIZE)]),
    "two frames in one place": request([HONEST, HONEST]),
    "places out of order": request([(3, 0, 0, SIZE), HONEST]),
    "more descriptors than came": request([HONEST], count=2),
    "too many descriptors": request([HONEST], count=MAX_DESCRIPTORS + 1),
    "no descriptors": request([], count=0),
    "2**64-1 descriptors": packed(b"", u64(2**64 - 1), b"\x80"),
    "a table that ends early": packed(b"", u64(1, 0, 2, 0), b"\x80"),
    "an empty table": packed(b"", b"", b"\x80"),
    "no table": packed(b"", b"\x01", b"\x80"),
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES)
@gen_test()
async def test_lies_about_sizes_and_places_are_refused(server, data):
    async with attacking(server) as attacker:
        await attacker.handshake()
        await attacker.enable()
        attacker.send(data, [memory()])
        assert await attacker.peer.wait_closed() == b""


@gen_test()
async def test_the_size_of_shared_frames_counts_as_that_of_the_message():
    environ = {"DASK_DISTRIBUTED__COMM__MAX_MESSAGE_SIZE": "1000000"}
    with serving(environ) as server:
        async with attacking(server) as attacker:
            await attacker.handshake()
            await attacker.enable()
            attacker.send(request([(2, 0, 0, 1_000_001)]), [memory(size=2_000_000)])
            assert await attacker.peer.wait_closed() == b""


@gen_test()
async def test_descriptors_that_the_message_does_not_refer_to_are_closed(server):
    async with attacking(server) as attacker:
        await attacker.handshake()
        await attacker.enable()
        attacker.send(request([HONEST]), [memory(), memory(), pipe()])
        assert await attacker.peer.wait_closed() == b""


@gen_test()
async def test_descriptors_with_an_ordinary_message_are_closed(server):
    async with attacking(server) as attacker:
        await attacker.handshake()
        await attacker.enable()
        attacker.send(message({"op": "state"}), [memory() for _ in range(MAX_DESCRIPTORS)])
        assert await attacker.peer.wait_closed() == b""


@gen_test()
async def test_descriptors_beyond_the_limit_are_closed(server):
    async with attacking(server) as attacker:
        await attacker.handshake()
        await attacker.enable()
        # The bytes of one message, one by one, each with many descriptors.
        for byte in request([HONEST])[:2]:
            attacker.send(bytes([byte]), [memory() for _ in range(MAX_DESCRIPTORS)])
            await attacker.received()
        attacker.send(b"x", [memory()])
        assert await attacker.peer.wait_closed() == b""


@pytest.mark.parametrize("size", [1, 30, 100])
@gen_test()
async def test_descriptors_of_a_message_that_ends_early_are_closed(server, size):
    async with attacking(server) as attacker:
        await attacker.handshake()
        await attacker.enable()
        attacker.send(request([HONEST])[:size], [memory()])
        await attacker.received()


@pytest.mark.parametrize("stage", ["before the handshake", "no feature", "not announced"])
@gen_test()
async def test_descriptors_that_were_not_agreed_upon_never_reach_the_server(server, stage):
    async with attacking(server) as attacker:
        if stage == "before the handshake":
            attacker.send(message(HANDSHAKE), [memory(), pipe()])
            await attacker.peer.read_message()
        else:
            await attacker.handshake(None if stage == "no feature" else FEATURES)
        attacker.send(message({"op": "state"}), [memory(), pipe()])
        # It is an ordinary message for the server.
        assert b"descriptors" in (await attacker.peer.read_message())[0]
        attacker.send(request([HONEST]), [memory()])
        assert await attacker.peer.wait_closed() == b""


@pytest.mark.parametrize("offer", [1, (1,), (1, 2, 3), (-1, 5), ("a", 5), (1.5, 2)])
@gen_test()
async def test_an_invalid_offer_ends_the_handshake(server, offer):
    async with attacking(server) as attacker:
        await attacker.handshake({"shared": offer})
        assert await attacker.peer.wait_closed() == b""
