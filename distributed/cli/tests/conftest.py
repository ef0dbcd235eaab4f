"""Fixtures: the command line in this process, and servers for it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import pytest

from distributed.cli import main
from distributed.cli.tests import calculator
from distributed.tests.environments import clean_environ, read_address
from distributed.utils_test import popen


class Result(NamedTuple):
    """What a command has done."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output, which is one line of JSON."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@pytest.fixture
def cli(capsys):
    """Run a command in this process."""

    def run(*args: object) -> Result:
        code = main([str(each) for each in args])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server in a thread of this process."""
    address: list[str] = []
    is_ready = threading.Event()
    loop_and_stop: list[Any] = []

    async def serve() -> None:
        stop = asyncio.Event()
        async with calculator.server() as server:
            await server.listen("tcp://127.0.0.1:0")
            address.append(server.address)
            loop_and_stop.extend((asyncio.get_running_loop(), stop))
            is_ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server of the commands")
    thread.start()
    assert is_ready.wait(30)
    yield address[0]
    loop, stop = loop_and_stop
    loop.call_soon_threadsafe(stop.set)
    thread.join()


ORIGINAL = """
import asyncio
from distributed.core import Server

async def main():
    async with Server({"add": lambda x, y: x + y}) as server:
        await server.listen("tcp://127.0.0.1:0")
        print(server.address, flush=True)
        await server.finished()

asyncio.run(main())
"""


@pytest.fixture(scope="session")
def original(original_python, tmp_path_factory) -> Iterator[str]:
    """The address of a server that runs dask.distributed."""
    with popen(
        [str(original_python), "-c", ORIGINAL],
        capture_output=True,
        cwd=tmp_path_factory.mktemp("original"),
        env=clean_environ(),
    ) as process:
        assert process.stdout is not None
        yield read_address(process.stdout)


def ready_address(output: IO[bytes]) -> str:
    """Return the first address of a server that ``serve`` runs, from its log."""
    for line in output:
        found = re.search(rb" is ready at ([^\s,]+)", line)
        if found:
            return found[1].decode()
    raise AssertionError("the server ended before it was ready")


@pytest.fixture
def command() -> list[str]:
    """The command line as a process."""
    return [sys.executable, "-m", "distributed.cli"]
