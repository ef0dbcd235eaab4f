"""A nanny, which runs a worker in a process of its own and restarts it when it dies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from distributed.core import ChildProcess, Server, announce, run

WORKER = Path(__file__).with_name("worker.py")


class Nanny(Server):
    def __init__(self, scheduler: str) -> None:
        super().__init__({"worker": self.worker})
        self.child = ChildProcess([sys.executable, WORKER, scheduler, "--parent"])

    async def start_unsafe(self) -> Nanny:
        await super().start_unsafe()
        await self.listen("tcp://127.0.0.1:0")
        await self.enter_async_context(self.child)
        return self

    def worker(self) -> dict[str, Any]:
        return {"pid": self.child.pid, "restarts": self.child.restarts}


if __name__ == "__main__":
    sys.exit(run(lambda: Nanny(sys.argv[1]), services=[announce]))
