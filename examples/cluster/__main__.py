"""Run ``python -m cluster scheduler|worker|nanny ADDRESS`` in the directory ``examples``."""

import argparse
import os

from cluster import Nanny, Scheduler, Worker
from cluster.worker import EXIT_CODE_CLOSED
from distributed.core import announce, end_with_parent, exit_without_threads, run


def main() -> int:
    """Run a server until it closes, a signal arrives, or (with --parent) its input ends."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    parser.add_argument("role", choices=["scheduler", "worker", "nanny"])
    parser.add_argument("address", help="address that the scheduler listens on")
    parser.add_argument("--nthreads", default=os.cpu_count(), help="number of tasks run at a time")
    parser.add_argument("--worker-ttl", default="30s", help="maximum time between heartbeats")
    parser.add_argument("--parent", action="store_true", help="end when the standard input ends")
    args = parser.parse_args()
    server = {
        "scheduler": lambda: Scheduler(args.address, worker_ttl=args.worker_ttl),
        "worker": lambda: Worker(args.address, nthreads=int(args.nthreads)),
        "nanny": lambda: Nanny(args.address, f"--nthreads={args.nthreads}"),
    }[args.role]()
    if args.parent:
        end_with_parent()
    code = run(server, services=[announce])
    return code or getattr(server, "lost_scheduler", False) or (args.parent and EXIT_CODE_CLOSED)


if __name__ == "__main__":
    exit_without_threads(main())  # tasks that were given up may still run in threads
