"""Calls between this package and the original, in both directions, over a real connection."""

from __future__ import annotations

import contextlib
import subprocess
import sys

from distributed.tests.environments import clean_environ, read_address, run_in
from distributed.utils_test import popen

#: Runs in either package, and has to mean the same in both.
SERVER = """
import asyncio
import sys
from distributed.core import Server

async def main():
    messages = []
    ready = asyncio.Event()

    def add(x, y):
        return x + y

    async def wait_for_messages(n):
        while len(messages) < n:
            ready.clear()
            await ready.wait()
        return messages

    def fail(text):
        raise ValueError(text)

    async def count(comm, n):
        for i in range(n):
            await comm.write(i)
        return "done"

    def note(x):
        messages.append(x)
        ready.set()

    server = Server(
        {"add": add, "fail": fail, "count": count, "wait_for_messages": wait_for_messages},
        stream_handlers={"note": note},
    )
    await server
    await server.listen("tcp://127.0.0.1:0")
    print(server.address, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""

#: Likewise.
CLIENT = """
import asyncio
import sys
from distributed.batched import BatchedSend
from distributed.core import ConnectionPool, Status, connect, rpc
from distributed.protocol import to_serialize

async def main(address):
    remote = rpc(address)
    assert await remote.add(x=1, y=2) == 3
    value = {"t": (1, 2.5, None, "s"), "s": {1, 2}, "b": b"b", 3: Status.running, "c": 1 + 2j}
    assert await remote.echo(data=value) == value
    big = bytes(range(256)) * 300_000
    assert await remote.echo(data=to_serialize(big)) == big
    nested = {"a": [big, {"k": big[:9]}]}
    assert await remote.echo(data=to_serialize(nested)) == {"a": (big, {"k": big[:9]})}
    assert await remote.add(x=1, y=2, reply=False) is None
    assert await remote.add(x=2, y=2) == 4
    try:
        await remote.fail(text="boom")
    except ValueError as exc:
        assert str(exc) == "boom"
        names = []
        traceback = exc.__traceback__
        while traceback is not None:
            names.append(traceback.tb_frame.f_code.co_name)
            traceback = traceback.tb_next
        shown = names + getattr(exc, "__notes__", [])
        assert any("fail" in line for line in shown), shown
    else:
        raise AssertionError("no error")
    assert await remote.add(x=1, y=2, close=True) == 3

    pool = await ConnectionPool()
    assert await asyncio.gather(*(pool(address).add(x=i, y=i) for i in range(50))) == [
        2 * i for i in range(50)
    ]
    await pool.close()

    comm = await connect(address)
    await comm.write({"op": "count", "n": 3, "reply": True})
    assert [await comm.read() for _ in range(4)] == [0, 1, 2, "done"]
    await comm.close()

    stream = BatchedSend(interval="2ms")
    comm = await connect(address)
    await comm.write({"op": "connection_stream", "reply": False})
    stream.start(comm)
    for i in range(100):
        stream.send({"op": "note", "x": i})
    assert await remote.wait_for_messages(n=100) == tuple(range(100))
    stream.send({"op": "close-stream"})
    await stream.close()
    await remote.close_rpc()
    print("all well")

asyncio.run(main(sys.argv[1]))
"""


@contextlib.contextmanager
def serving(python):
    with popen(
        [str(python), "-c", SERVER],
        capture_output=True,
        stdin=subprocess.PIPE,
        env=clean_environ(),
        cwd=None if python == sys.executable else "/",
    ) as server:
        yield read_address(server.stdout)
        server.stdin.close()
        assert server.wait(timeout=30) == 0


def test_the_programs_work_without_the_original():
    with serving(sys.executable) as address:
        done = run_in(sys.executable, ["-Werror", "-c", CLIENT, address])
    assert (done.stdout, done.stderr) == ("all well\n", "")


def test_the_original_calls_this_server(original_python):
    with serving(sys.executable) as address:
        done = run_in(original_python, ["-c", CLIENT, address])
    assert done.stdout == "all well\n"


def test_this_package_calls_the_original(original_python):
    with serving(original_python) as address:
        done = run_in(sys.executable, ["-Werror", "-c", CLIENT, address])
    assert (done.stdout, done.stderr) == ("all well\n", "")
