"""A worker, which registers with a scheduler, sends it heartbeats, and computes."""

from __future__ import annotations

import os
import sys

from tornado.ioloop import PeriodicCallback

from distributed.batched import BatchedSend
from distributed.core import Server, connect, end_with_parent, run


class Worker(Server):
    def __init__(self, scheduler: str) -> None:
        super().__init__({"compute": self.compute})
        self.scheduler_address = scheduler
        self.stream = BatchedSend(interval="10ms")
        self.periodic_callbacks["heartbeat"] = PeriodicCallback(self.heartbeat, 100)

    async def start_unsafe(self) -> Worker:
        await super().start_unsafe()
        await self.listen("tcp://127.0.0.1:0")
        scheduler = self.rpc(self.scheduler_address)
        await scheduler.register(address=self.address, pid=os.getpid())
        comm = await connect(self.scheduler_address)
        await comm.write({"op": "worker_stream", "address": self.address, "reply": False})
        self.stream.start(comm)
        self.start_periodic_callbacks()
        return self

    def heartbeat(self) -> None:
        if not self.stream.closed():
            self.stream.send({"op": "heartbeat"})

    def compute(self, x: int) -> int:
        return x + 1

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        await self.stream.close()
        await super().close(timeout=timeout, reason=reason)


if __name__ == "__main__":
    scheduler, *options = sys.argv[1:]
    if "--parent" in options:
        # The nanny holds the other end of this pipe, which is closed even if the nanny is killed.
        end_with_parent()
    sys.exit(run(lambda: Worker(scheduler)))
