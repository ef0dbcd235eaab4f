"""The command channel of a contestant: one line of JSON in, one line of JSON out.

The first line that a contestant writes says that it is ready; a server's names its addresses.
After that, each line of its standard input has a ``command`` and its arguments, and is answered by
``{"result": …}`` or ``{"error": …}``. The contestant ends at the end of its input, or with its
parent process.

The output of libraries is redirected to the standard error, so that it cannot mix with answers.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.contestants.timing import repeat, repeat_async

Result = dict[str, Any]

_PR_SET_PDEATHSIG = 1


def cpu() -> Result:
    """Return the seconds of CPU time that this process has used."""
    return {"seconds": time.process_time()}


def memory() -> Result:
    """Return the bytes of resident memory, after collecting garbage and trimming the heap."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return {"resident": int(file.read().split()[1]) * resource.getpagesize()}


class Channel:
    """The standard streams, used for commands and answers."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))

    def write(self, answer: Result) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def answer(self, handlers: Mapping[str, Callable[..., Result]]) -> None:
        """Execute commands until the end of the input."""
        commands = {"cpu": cpu, "memory": memory, **handlers}
        for line in sys.stdin:
            command = json.loads(line)
            try:
                result = commands[command.pop("command")](**command)
            except Exception as error:  # noqa: BLE001 - any error is reported
                self.write(_failure(error))
            else:
                self.write({"result": result})

    async def answer_async(self, handlers: Mapping[str, Callable[..., Awaitable[Result]]]) -> None:
        """Execute commands like `answer`, while the event loop keeps running."""
        commands: dict[str, Callable[..., Any]] = {"cpu": cpu, "memory": memory, **handlers}
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as reader:
            while line := await loop.run_in_executor(reader, sys.stdin.readline):
                command = json.loads(line)
                try:
                    result = commands[command.pop("command")](**command)
                    if inspect.isawaitable(result):
                        result = await result
                except Exception as error:  # noqa: BLE001 - any error is reported
                    self.write(_failure(error))
                else:
                    self.write({"result": result})


def _failure(error: Exception) -> Result:
    traceback.print_exception(error)
    return {"error": traceback.format_exception_only(error)[-1].strip()}


def run(main: Callable[[], Any], loop: str) -> None:
    """Run a coroutine function on the event loop of this name: ``asyncio`` or ``uvloop``."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def call_blocking(
    connect: Callable[[str], Any],
    make_call: Callable[[Any], Callable[[], Any]],
    close: Callable[[Any], Any],
) -> None:
    """Run the client of a blocking library.

    *make_call* takes an open connection and returns a function that calls the server's ``add`` with
    1 and 2.
    """
    channel = Channel()
    opened: dict[str, Any] = {}

    def sequential(address: str, seconds: float) -> Result:
        if address not in opened:
            opened[address] = connect(address)
        call = make_call(opened[address])
        assert call() == 3
        return repeat(call, seconds)

    def close_all() -> Result:
        while opened:
            close(opened.popitem()[1])
        return {}

    channel.write({})
    channel.answer({"sequential": sequential, "close_all": close_all})


async def call_async(
    connect: Callable[[str], Awaitable[Any]],
    make_call: Callable[[Any], Callable[[], Awaitable[Any]]],
    close: Callable[[Any], Awaitable[Any]],
) -> None:
    """Run the client of an asynchronous library, like `call_blocking`."""
    channel = Channel()
    opened: dict[str, Any] = {}

    async def sequential(address: str, seconds: float) -> Result:
        if address not in opened:
            opened[address] = await connect(address)
        call = make_call(opened[address])
        assert await call() == 3
        return await repeat_async(call, seconds)

    async def close_all() -> Result:
        while opened:
            await close(opened.popitem()[1])
        return {}

    channel.write({})
    await channel.answer_async({"sequential": sequential, "close_all": close_all})
