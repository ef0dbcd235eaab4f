"""A scheduler, which tracks its workers by their registration and their heartbeats."""

from __future__ import annotations

import sys
from typing import Any

from distributed.core import Comm, Server, announce, run


class Scheduler(Server):
    def __init__(self) -> None:
        self.workers: dict[str, dict[str, Any]] = {}  # address -> pid and number of heartbeats
        super().__init__(
            handlers={
                "register": self.register,
                "worker_stream": self.worker_stream,
                "list_workers": self.list_workers,
                "compute": self.compute,
            },
            stream_handlers={"heartbeat": self.heartbeat},
        )

    def register(self, address: str, pid: int) -> None:
        self.workers[address] = {"pid": pid, "heartbeats": 0}

    async def worker_stream(self, comm: Comm, address: str) -> None:
        """Handle the stream of a worker until it disconnects, then forget the worker."""
        try:
            await self.handle_stream(comm, extra={"address": address})
        finally:
            self.workers.pop(address, None)

    def heartbeat(self, address: str) -> None:
        self.workers[address]["heartbeats"] += 1

    def list_workers(self) -> dict[str, dict[str, Any]]:
        return self.workers

    async def compute(self, x: Any) -> Any:
        """Call compute on a worker; the workers take turns."""
        if not self.workers:
            raise RuntimeError("no worker is registered")
        address = next(iter(self.workers))
        self.workers[address] = self.workers.pop(address)
        return await self.rpc(address).compute(x=x)


if __name__ == "__main__":
    sys.exit(run(Scheduler, sys.argv[1], services=[announce]))
