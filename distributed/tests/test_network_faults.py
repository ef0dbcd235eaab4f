"""Calls and streams between two hosts while the network is bad or down."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

import pytest

from distributed.tests.environments import ROOT, clean_environ
from distributed.tests.networks import netem_hosts, relayed_hosts, two_hosts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="creates network namespaces")

#: Seconds after which a connection without acknowledgements is closed.
TIMEOUT = 3

#: Maximum number of seconds between two checks of the kernel for that, with some margin.
GRANULARITY = 1.5

SERVER = """
import asyncio, sys
from distributed.core import Server

def tell(text):
    print(text, flush=True)

async def wait(comm):
    tell("entered")
    try:
        # It is cancelled when the connection is lost.
        await asyncio.Event().wait()
    finally:
        tell("left")

async def main():
    notes = []
    handlers = {"wait": wait, "notes": lambda: notes, "size": len}
    server = Server(handlers, stream_handlers={"note": lambda **note: notes.append(note)})
    async with server:
        await server.listen(sys.argv[1])
        tell(server.address)
        await asyncio.Event().wait()

asyncio.run(main())
"""

WAITING_CALLER = """
import asyncio, sys, time
from distributed.core import CommClosedError, rpc

async def main():
    async with rpc(sys.argv[1]) as remote:
        assert await remote.echo(data=1) == 1
        try:
            await remote.wait()
        except CommClosedError as exc:
            print(time.monotonic(), repr(exc), flush=True)

asyncio.run(main())
"""

SENDING_CALLER = """
import asyncio, sys, time
from distributed.core import CommClosedError, rpc

async def main():
    async with rpc(sys.argv[1]) as remote:
        data = bytes(100_000_000)
        await remote.echo(data=data)
        print("sending", flush=True)
        try:
            while True:
                await remote.echo(data=data)
        except CommClosedError as exc:
            print(time.monotonic(), repr(exc), flush=True)

asyncio.run(main())
"""

ROUGH_CALLER = """
import asyncio, json, sys
from distributed.batched import BatchedSend
from distributed.core import connect, rpc

async def main():
    async with rpc(sys.argv[1]) as remote:
        async def call(i):
            data = bytes([i]) * (10_000 * i)
            return await remote.echo(data=data) == data
        calls = await asyncio.gather(*map(call, range(30)))
        sequential = [await remote.echo(data=i) for i in range(10)]

        comm = await connect(sys.argv[1])
        await comm.write({"op": "connection_stream", "reply": False})
        stream = BatchedSend(interval="5ms")
        stream.start(comm)
        for i in range(500):
            stream.send({"op": "note", "i": i, "data": "x" * 500})
            if i % 10 == 0:
                await asyncio.sleep(0.005)
        await stream.close()
        notes = []
        while len(notes) < 500:
            notes = await remote.notes()
    print(json.dumps([calls, sequential, [note["i"] for note in notes]]), flush=True)

asyncio.run(main())
"""


@contextlib.contextmanager
def running(host, program, *args, **settings):
    """Run a program on a host with a configuration, and kill it at the end of the block."""
    env = {f"DASK_DISTRIBUTED__COMM__{key.upper()}": str(value) for key, value in settings.items()}
    process = subprocess.Popen(
        host.on(sys.executable, "-c", program, *args),
        cwd=ROOT,
        env=clean_environ(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def calling_process(program):
    """Run the server on one host and a caller on the other; yield hosts and processes."""
    settings = {"timeouts__tcp": f"{TIMEOUT}s"}
    with (
        two_hosts() as (client, server),
        running(server, SERVER, f"tcp://{server.address}:0", **settings) as serving,
    ):
        address = serving.stdout.readline().strip()
        with running(client, program, address, **settings) as calling:
            yield {"client": client, "server": server}, calling, serving


def assert_call_ends_after(down, calling):
    """Check that the call fails within the timeout after the link went down."""
    # The clock is the same in all processes of this machine.
    moment, _, error = calling.stdout.readline().partition(" ")
    assert error.startswith("CommClosedError")
    assert float(moment) - down < TIMEOUT + GRANULARITY


@pytest.mark.parametrize("where", ["client", "server"])
def test_a_call_over_a_link_that_goes_down_ends_within_the_timeout(where):
    with calling_process(WAITING_CALLER) as (hosts, calling, serving):
        assert serving.stdout.readline() == "entered\n"
        hosts[where].link("down")
        down = time.monotonic()
        assert_call_ends_after(down, calling)
        # The server notices it too, although it has nothing to send.
        assert serving.stdout.readline() == "left\n"
        assert time.monotonic() - down < TIMEOUT + GRANULARITY


def test_a_request_in_transit_when_the_link_goes_down_ends_within_the_timeout():
    with calling_process(SENDING_CALLER) as (hosts, calling, _):
        assert calling.stdout.readline() == "sending\n"
        hosts["client"].link("down")
        assert_call_ends_after(time.monotonic(), calling)


@pytest.mark.parametrize("hosts", [netem_hosts, relayed_hosts], ids=["netem", "relay"])
def test_packet_loss_and_delay_do_not_lose_or_reorder_messages(hosts):
    with (
        hosts(delay=0.1, jitter=0.02, loss=0.05) as (client, server),
        running(server, SERVER, f"tcp://{server.address}:0") as serving,
    ):
        address = serving.stdout.readline().strip()
        with running(client, ROUGH_CALLER, address) as calling:
            calls, sequential, notes = json.loads(calling.stdout.readline())
    assert calls == [True] * 30
    assert sequential == list(range(10))
    assert notes == list(range(500))
