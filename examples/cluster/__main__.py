"""``python -m cluster scheduler|worker|nanny ADDRESS``, in the directory above this one."""

from __future__ import annotations

import argparse
import asyncio
import atexit
import os
import signal
import sys

from cluster import Nanny, Peer, Scheduler, Worker
from distributed.core import Server


async def serve(server: Server, parent: bool) -> int:
    """Run a server until it closes, a signal arrives, or the input ends where that is said."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    if parent:
        loop.add_reader(sys.stdin, asked.set)
    async with server:
        print(server.address, flush=True)
        waiting = {asyncio.create_task(c) for c in (server.finished(), asked.wait())}
        _, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
    loop.remove_reader(sys.stdin)
    return int(isinstance(server, Peer) and server.lost_scheduler)


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    parser.add_argument("role", choices=["scheduler", "worker", "nanny"])
    parser.add_argument("address", help="where the scheduler listens")
    parser.add_argument("--nthreads", type=int, help="tasks that a worker runs at a time")
    parser.add_argument("--worker-ttl", default="30s", help="how long a worker may be silent")
    parser.add_argument("--parent", action="store_true", help="end when the standard input ends")
    args = parser.parse_args()
    servers = {
        "scheduler": lambda: Scheduler(args.address, worker_ttl=args.worker_ttl),
        "worker": lambda: Worker(args.address, nthreads=args.nthreads),
        "nanny": lambda: Nanny(args.address, *(f"--nthreads={n}" for n in [args.nthreads] if n)),
    }
    return await serve(servers[args.role](), args.parent)


if __name__ == "__main__":
    code = asyncio.run(main())
    atexit._run_exitfuncs()
    os._exit(code)  # there may be threads in which tasks run that nobody waits for
