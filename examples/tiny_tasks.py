"""Run many tiny tasks on the cluster of ``examples/cluster``, and print what one of them costs.

``python examples/tiny_tasks.py 5000`` runs the scheduler and two workers in processes of their own.
It prints the time until all results have arrived, and the CPU time (user and system) of all four
processes for each task.  The time depends on other load; the CPU time hardly does.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

EXAMPLES = Path(__file__).parent
sys.path.append(str(EXAMPLES))

from cluster import Client  # noqa: E402

WORKERS = 2


def inc(x: int) -> int:
    return x + 1


@contextmanager
def program(*args: str) -> Iterator[Popen[str]]:
    """Run a role of the cluster, and end it."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), *sys.path])}
    command = [sys.executable, "-m", "cluster", *args]
    with Popen(command, stdout=PIPE, stderr=DEVNULL, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.terminate()


def address_of(process: Popen[str]) -> str:
    """Return the address that a program prints once it is ready."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used, from Linux's ``/proc``."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def compute(address: str, number: int, pids: list[int]) -> None:
    """Compute the tasks three times."""
    async with Client(address) as client:
        for _ in range(3):
            start, used = time.perf_counter(), cpu_seconds(pids)
            assert await client.gather(client.map(inc, range(number))) == [*range(1, number + 1)]
            seconds = time.perf_counter() - start
            each = (cpu_seconds(pids) - used) / number
            print(f"{number} tasks: {seconds:.2f} s, {each * 1e6:.0f} µs of CPU time each")


def main(number: int) -> None:
    with ExitStack() as stack:
        scheduler = stack.enter_context(program("scheduler", "tcp://127.0.0.1:0"))
        address = address_of(scheduler)
        worker = "worker", address, "--nthreads=1"
        workers = [stack.enter_context(program(*worker)) for _ in range(WORKERS)]
        for each in workers:
            address_of(each)
        pids = [os.getpid(), *(each.pid for each in (scheduler, *workers))]
        asyncio.run(compute(address, number, pids))


if __name__ == "__main__":
    main(int(sys.argv[1]))
