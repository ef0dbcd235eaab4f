"""Run ``python -m cluster scheduler|worker|nanny ADDRESS`` in the directory ``examples``."""

import argparse
import asyncio
import atexit
import os
import signal
import sys

from cluster import Nanny, Scheduler, Worker
from cluster.worker import EXIT_CODE_CLOSED


async def main() -> int:
    """Run a server until it closes, a signal arrives, or (with --parent) its input ends."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    parser.add_argument("role", choices=["scheduler", "worker", "nanny"])
    parser.add_argument("address", help="address that the scheduler listens on")
    parser.add_argument("--nthreads", default=os.cpu_count(), help="number of tasks run at a time")
    parser.add_argument("--worker-ttl", default="30s", help="maximum time between heartbeats")
    parser.add_argument("--parent", action="store_true", help="end when the standard input ends")
    args = parser.parse_args()
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end.set)
    if args.parent:
        loop.add_reader(sys.stdin, lambda: end.set() if loop.remove_reader(sys.stdin) else None)
    roles = {
        "scheduler": lambda: Scheduler(args.address, worker_ttl=args.worker_ttl),
        "worker": lambda: Worker(args.address, nthreads=int(args.nthreads)),
        "nanny": lambda: Nanny(args.address, f"--nthreads={args.nthreads}"),
    }
    async with roles[args.role]() as server:
        print(server.address, flush=True)
        asyncio.create_task(server.finished()).add_done_callback(lambda _: end.set())
        await end.wait()
    return getattr(server, "lost_scheduler", False) or (args.parent and EXIT_CODE_CLOSED)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        atexit.register(stream.flush)
    code = asyncio.run(main())
    atexit._run_exitfuncs()
    os._exit(code)  # does not join the threads of tasks that were given up
