"""How a contestant is commanded: a line of JSON comes in, a line of JSON goes out.

The first line that a contestant writes says that it is ready (a server: where it listens). After
that each line of its standard input names a ``command`` and its arguments, and is answered by
``{"result": …}`` or ``{"error": …}``. It ends when its standard input does, or with its parent.

What libraries print goes to the standard error, so that it cannot get in between.
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

from benchmarks.contestants.timing import repeat

Result = dict[str, Any]

_PR_SET_PDEATHSIG = 1


def cpu() -> Result:
    """Seconds of CPU that this process has used so far."""
    return {"seconds": time.process_time()}


def memory() -> Result:
    """Bytes of memory that this process cannot do without at the moment."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return {"resident": int(file.read().split()[1]) * resource.getpagesize()}


class Channel:
    """The two ends of the standard streams that commands and answers take."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def write(self, answer: Result) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def answer(self, handlers: Mapping[str, Callable[..., Result]]) -> None:
        """Do as commanded until there are no more commands."""
        commands = {"cpu": cpu, "memory": memory, **handlers}
        for line in sys.stdin:
            command = json.loads(line)
            try:
                result = commands[command.pop("command")](**command)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                self.write(_failure(error))
            else:
                self.write({"result": result})

    async def answer_async(self, handlers: Mapping[str, Callable[..., Awaitable[Result]]]) -> None:
        """`answer`, on an event loop that goes on meanwhile."""
        commands: dict[str, Callable[..., Any]] = {"cpu": cpu, "memory": memory, **handlers}
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as reader:
            while line := await loop.run_in_executor(reader, sys.stdin.readline):
                command = json.loads(line)
                try:
                    result = commands[command.pop("command")](**command)
                    if inspect.isawaitable(result):
                        result = await result
                except Exception as error:  # noqa: BLE001 - whatever it is, it is told
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
    connect: Callable[[str], Any], find_add: Callable[[Any], Any], close: Callable[[Any], Any]
) -> None:
    """Be the client of a library that blocks, given how to reach a server's ``add`` there."""
    channel = Channel()
    opened: dict[str, Any] = {}

    def sequential(address: str, seconds: float) -> Result:
        if address not in opened:
            opened[address] = connect(address)
        add = find_add(opened[address])
        assert add(1, 2) == 3
        return repeat(lambda: add(1, 2), seconds)

    def rest() -> Result:
        for each in opened.values():
            close(each)
        opened.clear()
        return {}

    channel.write({})
    channel.answer({"sequential": sequential, "rest": rest})
