"""Why the minimum versions of the required libraries are what they are.

Each test fails with older releases than ``setup.cfg`` allows; ``make test-minimum`` runs them with
exactly the minimum versions.
"""

from __future__ import annotations

import asyncio
import socket
import tracemalloc

import msgpack
import pytest

from distributed.comm import connect, listen
from distributed.comm.core import Comm
from distributed.comm.tests.raw_peers import packed, raw_peer
from distributed.comm.tests.test_ws_frames import FIN, PING, ends, frame
from distributed.protocol import loads
from distributed.utils_test import gen_test

MB = 2**20
#: An array of as many items as it has bytes, the first of which is such an array, and so on.
NESTED = (b"\xdd" + (65_000).to_bytes(4, "big")) * 500 + b"\xc0" * 62_500


def peak_of(function, *args) -> int:
    """Return the memory that a call which fails takes meanwhile, in bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(Exception, match=r"."):
            function(*args)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_msgpack_allocates_no_memory_for_items_that_do_not_exist():
    # msgpack 1.0.4 to 1.2.3 take 248 MB.
    assert peak_of(msgpack.unpackb, NESTED) < 64 * MB
    assert peak_of(loads, [NESTED]) < 64 * MB


@gen_test()
async def test_nested_arrays_in_a_handshake_take_little_memory():
    async with listen("tcp://127.0.0.1:0", lambda comm: None) as listener:
        tracemalloc.start()
        try:
            async with raw_peer(listener.contact_address) as peer:
                await peer.send(packed(NESTED))
                await peer.wait_closed()
            assert tracemalloc.get_traced_memory()[1] < 8 * MB
        finally:
            tracemalloc.stop()
        comm: Comm = await connect(listener.contact_address)
        comm.abort()


@pytest.mark.parametrize("role", ["server", "client"])
@gen_test()
async def test_pings_of_a_peer_that_does_not_read_are_not_all_answered(role):
    # Tornado 6.4 to 6.5.10 keep a pong for each of them.
    async with ends(role) as (peer, comm):
        stream = comm._stream
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        reading = asyncio.create_task(comm.read())
        for _ in range(100):
            await peer.send(*[frame(FIN | PING, bytes(125))] * 100)
        await peer.send(frame(FIN | 2, bytes(8)))
        await asyncio.wait([reading])
        assert "no frames" in str(reading.exception())
        assert stream._total_write_index - stream._total_write_done_index < 10_000
