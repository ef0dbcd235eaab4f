"""Kill workers and cut connections while a cluster computes, and check every result.

``python chaos.py`` runs unchanged on dask.distributed as released and on this core.  A scheduler
and three workers with nannies run as processes of their own.  Each worker reaches the scheduler
through a relay in this process.  Every two seconds a worker is killed, and every five seconds all
connections of one relay are cut.  A process that ends is started again, as by a service manager.

The last line shows the figures; lines before it show the progress.  The exit code is 1 if a result
is wrong, a task fails, the scheduler keeps a task that no client wants, or the computation does not
end before the deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

from distributed import Client

#: Numbers in each result; they take 1 MB.
SIZE = 125_000

#: Tasks in each group: four leaves, a tree of three sums, and a chain of three increments.
GROUP = 10

#: Groups that are computed at the same time.
CONCURRENT_GROUPS = 6

#: A task may lose its worker any number of times, instead of three times (the default).
ENVIRON = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1000000"}


class Relay:
    """A TCP relay in front of the scheduler, which can cut all connections.

    Each connection is two streams, of the worker and of the scheduler; both are in `_writers`.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self.cut()

    @property
    def port(self) -> int:
        return self._server.sockets[0].getsockname()[1]

    def cut(self) -> int:
        """Abort all connections and return their number."""
        writers = list(self._writers)
        for writer in writers:
            writer.transport.abort()
        return len(writers) // 2

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        pair = {writer, other_writer}
        self._writers |= pair
        try:
            await asyncio.gather(self._copy(reader, other_writer), self._copy(other_reader, writer))
        finally:
            self._writers -= pair

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**20):
                writer.write(data)
                await writer.drain()
        writer.close()


class Fleet:
    """Worker processes, started again when they end, and ended with the context."""

    def __init__(self, relays: list[Relay], directory: Path) -> None:
        self.started = 0
        self._relays = relays
        self._directory = directory
        self._processes: dict[int, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> Fleet:
        self._tasks = [asyncio.create_task(self._keep_running(i)) for i in range(len(self._relays))]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_running(self, place: int) -> None:
        arguments = ["--nthreads", "1", "--dashboard-address", ":0", "--local-directory"]
        while True:
            self.started += 1
            async with dask(
                self._directory / f"worker-{place}.log",
                "worker",
                f"tcp://127.0.0.1:{self._relays[place].port}",
                *arguments,
                str(self._directory),
            ) as process:
                self._processes[place] = process
                try:
                    await process.wait()
                finally:
                    del self._processes[place]

    def kill_one(self, choose: random.Random) -> bool:
        """Kill the worker of one of the nannies; return whether there was one."""
        for process in choose.sample(list(self._processes.values()), len(self._processes)):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children():
                    if any("spawn_main" in argument for argument in child.cmdline()):
                        child.send_signal(signal.SIGKILL)
                        return True
        return False


@contextlib.asynccontextmanager
async def dask(log: Path, *arguments: str):
    """Run ``python -m dask ARGUMENTS`` while the context is entered."""
    with log.open("a") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "dask", *arguments),
            stdout=output,
            stderr=output,
            env=os.environ | ENVIRON,
            cwd=log.parent,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # a worker ends when it loses its nanny
        await process.wait()


def leaf(number: int, seconds: float) -> np.ndarray:
    time.sleep(seconds)
    return np.full(SIZE, float(number))


def add(left: np.ndarray, right: np.ndarray, seconds: float) -> np.ndarray:
    time.sleep(seconds)
    return left + right


async def compute_group(client: Client, group: int, seconds: float, counts: Counter[str]) -> None:
    """Compute the tasks of a group, fetch the result of each, and check every number."""

    def submit(function, *arguments):
        return client.submit(function, *arguments, seconds, pure=False)

    numbers = [group * GROUP + i for i in range(4)]
    futures = [submit(leaf, number) for number in numbers]
    for left, right in ((0, 1), (2, 3), (4, 5)):
        futures.append(submit(add, futures[left], futures[right]))
        numbers.append(numbers[left] + numbers[right])
    for _ in range(3):
        futures.append(submit(add, futures[-1], 1))
        numbers.append(numbers[-1] + 1)
    try:
        results = await client.gather(futures)
    except Exception as exc:  # noqa: BLE001 - any error of a task is one too many
        counts["failed"] += len(futures)
        print(f"group {group} failed: {exc!r}")
        return
    for result, number in zip(results, numbers, strict=True):
        counts["tasks"] += 1
        if result.shape != (SIZE,) or not (result == number).all():
            counts["wrong"] += 1


async def every(seconds: float, action, condition=None) -> None:
    while True:
        await asyncio.sleep(seconds)
        while condition is not None and not await condition():
            await asyncio.sleep(0.1)
        action()


async def compute(
    client: Client,
    options: argparse.Namespace,
    counts: Counter[str],
    fleet: Fleet,
    relays: list[Relay],
) -> None:
    """Compute all groups during kills and cuts, then wait until the scheduler has no tasks."""
    choose = random.Random(options.seed)

    def kill() -> None:
        counts["kills"] += fleet.kill_one(choose)

    def cut() -> None:
        counts["cuts"] += 1
        counts["connections"] += choose.choice(relays).cut()

    def workers_of(dask_scheduler):
        return len(dask_scheduler.workers)

    async def enough_workers() -> bool:
        return await client.run_on_scheduler(workers_of) >= options.at_least

    def report() -> None:
        seconds = round(time.perf_counter() - start)
        print(f"{seconds:4} s: {counts['tasks']} tasks, {counts['kills']} kills", flush=True)

    groups = itertools.count()

    async def compute_groups() -> None:
        for group in groups:
            if group * GROUP >= options.tasks:
                return
            await compute_group(client, group, options.task_seconds, counts)

    await client.wait_for_workers(options.workers)
    start = time.perf_counter()
    chaos = [
        asyncio.create_task(every(options.kill_every, kill, enough_workers)),
        asyncio.create_task(every(options.cut_every, cut, enough_workers)),
        asyncio.create_task(every(10, report)),
    ]
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONCURRENT_GROUPS):
                tasks.create_task(compute_groups())
        counts["seconds"] = round(time.perf_counter() - start)
    finally:
        for task in chaos:
            task.cancel()

    def tasks_of(dask_scheduler):
        return len(dask_scheduler.tasks)

    while await client.run_on_scheduler(tasks_of):
        await asyncio.sleep(0.1)


async def read_address(file: Path, process: asyncio.subprocess.Process) -> str:
    while True:
        try:
            return json.loads(file.read_bytes())["address"]  # noqa: ASYNC240 - a small local file
        except (OSError, ValueError):
            if process.returncode is not None:
                raise SystemExit("the scheduler did not start") from None
            await asyncio.sleep(0.05)


async def run(options: argparse.Namespace, directory: Path) -> bool:
    counts: Counter[str] = Counter()
    file = directory / "scheduler.json"
    arguments = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0"]
    arguments += ["--scheduler-file", str(file)]
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        process = await enter(dask(directory / "scheduler.log", "scheduler", *arguments))
        address = await read_address(file, process)
        port = int(address.rpartition(":")[2])
        relays = [await enter(Relay(port)) for _ in range(options.workers)]
        fleet = await enter(Fleet(relays, directory))
        client = await enter(Client(address, asynchronous=True))
        try:
            async with asyncio.timeout(options.deadline):
                await compute(client, options, counts, fleet, relays)
        except TimeoutError:
            print(f"the deadline of {options.deadline} s has passed")
            counts["failed"] += 1
    print(
        f"{counts['tasks']} of {options.tasks} tasks, {counts['kills']} kills, "
        f"{counts['cuts']} cuts ({counts['connections']} connections), "
        f"{fleet.started} workers started, {counts['seconds']} s, {counts['wrong']} wrong, "
        f"{counts['failed']} failed"
    )
    good = not counts["wrong"] and not counts["failed"]
    return good and counts["tasks"] >= options.tasks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--task-seconds", type=float, default=0.02, help="duration of each task")
    parser.add_argument("--kill-every", type=float, default=2, metavar="SECONDS")
    parser.add_argument("--cut-every", type=float, default=5, metavar="SECONDS")
    parser.add_argument(
        "--at-least",
        type=int,
        default=0,
        metavar="WORKERS",
        help="kill and cut only while this number of workers is connected, for slow machines",
    )
    parser.add_argument("--deadline", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, help="directory for the logs of all processes")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = options.logs
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        directory = directory.resolve()
        return not asyncio.run(run(options, directory))


if __name__ == "__main__":
    sys.exit(main())
