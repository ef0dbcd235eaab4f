"""Large memory is sent from where it is, and received to where it stays."""

from __future__ import annotations

import subprocess
import sys

import msgpack
import pytest

from distributed.protocol import dumps, loads

GIGABYTE = 10**9

# Both ends print by how many bytes the transfer increases their peak memory.
COMMON = """
import asyncio, sys
from distributed.comm import connect, listen
from distributed.protocol import to_serialize
from distributed.protocol.tests.fuzzing import peak_memory as peak

kind, size = sys.argv[1], int(sys.argv[2])

def make(size):
    if kind == "numpy":
        import numpy
        return numpy.ones(size, dtype="u1")
    return memoryview(bytearray(b"1") * size)
"""

RECEIVE = """
async def main():
    done = asyncio.Event()

    async def handle(comm):
        await comm.read()
        await comm.write("warm")
        before = peak()
        received = await comm.read()
        assert memoryview(received).nbytes == size and received[0] == received[-1] != 0
        await comm.write(peak() - before)
        await comm.close()
        done.set()

    async with listen("tcp://127.0.0.1:0", handle) as listener:
        print(listener.contact_address, flush=True)
        await done.wait()

asyncio.run(main())
"""

SEND = """
async def main():
    comm = await connect(sys.argv[3])
    await comm.write(to_serialize(make(1_000_000)))
    await comm.read()
    data = make(size)
    before = peak()
    await comm.write(to_serialize(data))
    grown_there = await comm.read()
    print(peak() - before, grown_there)
    await comm.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["memoryview", "numpy"])
def test_a_gigabyte_takes_a_gigabyte_at_the_receiver_and_nothing_at_the_sender(kind):
    if kind == "numpy":
        pytest.importorskip("numpy")
    common = [sys.executable, "-c"]
    with subprocess.Popen(
        [*common, COMMON + RECEIVE, kind, str(GIGABYTE)], stdout=subprocess.PIPE, text=True
    ) as receiver:
        assert receiver.stdout is not None
        address = receiver.stdout.readline().strip()
        try:
            sender = subprocess.run(
                [*common, COMMON + SEND, kind, str(GIGABYTE), address],
                capture_output=True,
                text=True,
                timeout=100,
            )
        finally:
            receiver.terminate()
    assert sender.returncode == 0, sender.stderr
    grown_here, grown_there = map(int, sender.stdout.split())
    assert grown_here < 0.05 * GIGABYTE
    assert 0.9 * GIGABYTE < grown_there < 1.05 * GIGABYTE


def test_the_packed_bytes_of_a_large_message_are_not_copied():
    for size in (10_000_000, 10, 2_000_000, 10):
        msg = {"op": "echo", "data": bytes(size), "reply": True}
        (frame,) = dumps(msg)
        assert bytes(frame) == msgpack.packb(msg)
        assert isinstance(frame, bytes if size == 10 else memoryview)
        if size != 10:
            # It is the memory of the packer, which later messages do not change.
            assert isinstance(frame.obj, msgpack.Packer)
        dumps({"op": "other", "data": bytes(range(256)) * (size // 256)})
        assert bytes(frame) == msgpack.packb(msg)
        assert loads([frame]) == msg
