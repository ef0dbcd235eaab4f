"""A nanny, which runs a worker in a process of its own and restarts it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

from distributed.core import Server

WORKER = Path(__file__).with_name("worker.py")


class Nanny(Server):
    def __init__(self, scheduler: str) -> None:
        super().__init__({"worker": self.worker})
        self.scheduler_address = scheduler
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0

    async def start_unsafe(self) -> Nanny:
        await super().start_unsafe()
        await self.listen("tcp://127.0.0.1:0")
        self._ongoing_background_tasks.call_soon(self.keep_alive, await self.start_worker())
        return self

    async def start_worker(self) -> asyncio.subprocess.Process:
        # in a session of its own, so that only the nanny gets interrupts from the keyboard
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, WORKER, self.scheduler_address, start_new_session=True
        )
        return self.process

    async def keep_alive(self, process: asyncio.subprocess.Process) -> None:
        while True:
            await process.wait()
            self.restarts += 1
            process = await self.start_worker()

    def worker(self) -> dict[str, Any]:
        return {"pid": self.process and self.process.pid, "restarts": self.restarts}

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        await super().close(timeout=timeout, reason=reason)  # cancels keep_alive
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGINT)
            await self.process.wait()


async def main(scheduler: str) -> None:
    async with Nanny(scheduler) as nanny:
        print(nanny.address, flush=True)
        await nanny.finished()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
