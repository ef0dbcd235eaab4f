"""Helpers for the tests of ``examples/cluster``, which run its workers in processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from distributed.utils_test import async_poll_for, popen

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))

from cluster import Client, Nanny, Scheduler  # noqa: E402

#: Makes programs import this checkout, whether it is installed or not.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(EXAMPLES)])}


@contextlib.asynccontextmanager
async def cluster(nannies=2, *, nthreads=1, address="tcp://127.0.0.1:0", **kwargs):
    """Run a scheduler and a client here, and workers in processes, each with a nanny."""
    async with contextlib.AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(Scheduler(address, **kwargs))
        started = [Nanny(scheduler.address, f"--nthreads={nthreads}") for _ in range(nannies)]
        scheduler.nannies = await asyncio.gather(*map(stack.enter_async_context, started))
        client = await stack.enter_async_context(Client(scheduler.address))
        await workers_come(scheduler, nannies)
        yield scheduler, client


@contextlib.asynccontextmanager
async def program(role, *args):
    """Run a role as the documentation does; yield the process once it has printed its address."""
    command = ["python", "-m", "cluster", role, *args]
    with popen(command, capture_output=True, env=ENVIRONMENT) as process:
        process.address = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
        yield process


async def workers_come(scheduler, number):
    """Wait until the scheduler has this number of workers."""
    await async_poll_for(lambda: len(scheduler.state.workers) == number, timeout=20)


def divide_one_by(x):
    """Return 1 / x, in a function whose source is shown in remote tracebacks."""
    return 1 / x
