"""A server in another process that receives shared memory, and reports what it has.

As a program (``python -m distributed.comm.tests.sharing_server [COUNT]``) it is a number of such
servers, each in a process of its own.  Each prints its process id, the address of its listener, and
that of a second one that leaves values serialized.  All end when their standard input does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from distributed.comm import Comm, CommClosedError, connect, listen
from distributed.protocol import Serialized, to_serialize

#: The name of this module, as a program.
MODULE = "distributed.comm.tests.sharing_server"

# What the operation "hold" keeps.
_held: list[Any] = []


def _fold(path: str, key: str) -> int:
    """Return the sum of the numbers (kB) in a line of smaps, for mappings of shared memory."""
    total = 0
    shared = False
    with open(path) as file:
        for line in file:
            name = line.split(":")[0]
            if "-" in name and " " in line and not name.istitle():
                shared = "/memfd:distributed" in line
            elif shared and name == key:
                total += int(line.split()[1])
    return total


def state() -> dict[str, int]:
    """Return the number of open descriptors, and of mappings of shared memory."""
    gc.collect()
    with open("/proc/self/maps") as file:
        maps = sum("/memfd:distributed" in line for line in file)
    return {"descriptors": len(os.listdir("/proc/self/fd")), "maps": maps}


def memory() -> dict[str, int]:
    """Return the resident part of shared memory in bytes, and the share of this process in it."""
    return {key: 1024 * _fold("/proc/self/smaps", key) for key in ("Rss", "Pss")}


def _first_byte(x: Any, value: int) -> str:
    """Write the first byte of a buffer; return "written", or the error."""
    try:
        memoryview(x).cast("B")[0] = value
    except TypeError as exc:
        return str(exc)
    return "written"


async def _answer(msg: dict[str, Any]) -> Any:
    op = msg["op"]
    x: Any = msg.get("x")
    if op == "echo":
        return to_serialize(x)
    if op == "hold":
        _held.append(x)
        return sum(bytes(memoryview(x).cast("B")[:: msg.get("step", 1)]))
    if op == "held":
        return to_serialize(_held[msg["index"]])
    if op == "memory":
        return memory()
    if op == "drop":
        _held.clear()
    if op == "write":
        return _first_byte(x, msg["value"])
    if op == "pass on":
        comm = await connect(msg["to"])
        await comm.write({"op": "hold", "x": x if isinstance(x, Serialized) else to_serialize(x)})
        answer = await comm.read()
        await comm.close()
        return answer
    return state()


async def handle(comm: Comm) -> None:
    """Answer requests, one after the other."""
    try:
        while True:
            msg = await comm.read()
            answer = await _answer(msg)
            del msg
            await comm.write(answer)
            del answer
    except CommClosedError:
        await comm.close()


async def _serve() -> None:
    async with (
        listen("unix://", handle) as plain,
        listen("unix://", handle, deserialize=False) as relay,
    ):
        described = [os.getpid(), plain.contact_address, relay.contact_address]
        os.write(sys.stdout.fileno(), json.dumps(described).encode() + b"\n")
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
        await ended.wait()


class Running(NamedTuple):
    """A running server."""

    pid: int
    address: str
    #: The address at which values are left serialized.
    relay: str


@contextmanager
def serving_many(count: int, environ: Mapping[str, str] | None = None) -> Iterator[list[Running]]:
    """Run several servers, each in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", MODULE, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **(environ or {})},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield [Running(*json.loads(process.stdout.readline())) for _ in range(count)]
        finally:
            process.stdin.close()


@contextmanager
def serving(environ: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run the server in another process."""
    with serving_many(1, environ) as (running,):
        yield running


def main(count: int) -> None:
    """Run servers in this process and its children."""
    children: list[int] = []
    for _ in range(count - 1):
        child = os.fork()
        if not child:
            children.clear()
            break
        children.append(child)
    asyncio.run(_serve())
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
