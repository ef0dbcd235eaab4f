"""A nanny, which runs a worker in a process of its own and restarts it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from distributed.core import Server, run

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
        # Its input ends with this process, even after SIGKILL, and then it ends as well. In a
        # session of its own, it gets no interrupts from the keyboard.
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, WORKER, self.scheduler_address, "--parent"),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return self.process

    async def keep_alive(self, process: asyncio.subprocess.Process) -> None:
        while True:
            await ended(process)
            self.restarts += 1
            process = await self.start_worker()

    def worker(self) -> dict[str, Any]:
        return {"pid": self.process and self.process.pid, "restarts": self.restarts}

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        """Close, and let the worker close; kill it after 5 seconds."""
        await super().close(timeout=timeout, reason=reason)  # cancels keep_alive
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            alarm = asyncio.get_running_loop().call_later(5, self.process.kill)
            await ended(self.process)
            alarm.cancel()


async def ended(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a worker, and end the processes that it has started."""
    await process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@asynccontextmanager
async def announced(server: Server) -> AsyncIterator[None]:
    print(server.address, flush=True)
    yield


if __name__ == "__main__":
    sys.exit(run(lambda: Nanny(sys.argv[1]), services=[announced]))
