"""The nanny: runs a worker in a process of its own, and another one whenever that dies."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from distributed.comm import get_local_address_for
from distributed.core import Server
from distributed.security import Security


class Nanny(Server):
    """Keeps a worker alive.

    Its arguments are those of ``python -m cluster worker``; certificates and a token reach the
    process by the configuration.  Closing, it lets the worker close, and kills it after a while.
    """

    process: asyncio.subprocess.Process | None = None

    def __init__(self, scheduler: str, *args: str) -> None:
        super().__init__({"worker": self.worker})
        self.command = [sys.executable, "-m", "cluster", "worker", scheduler, *args, "--parent"]
        self.restarts = 0
        self._where = get_local_address_for(scheduler)

    async def start_unsafe(self) -> Nanny:
        await super().start_unsafe()
        await self.listen(self._where, **Security().get_listen_args("worker"))
        self._ongoing_background_tasks.call_soon(self.keep_alive, await self.start_worker())
        return self

    async def start_worker(self) -> asyncio.subprocess.Process:
        path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        # It ends when its input does: a nanny that is killed leaves no worker behind.  It is in a
        # session of its own, since an interrupt from the keyboard is the nanny's to pass on.
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
            start_new_session=True,
        )
        return self.process

    async def keep_alive(self, process: asyncio.subprocess.Process) -> None:
        while await process.wait():  # one that ends well was told to
            await asyncio.sleep(min(0.1 * self.restarts, 5))
            self.restarts += 1
            process = await self.start_worker()
        self._ongoing_background_tasks.call_soon(self.close, reason="the worker has ended")

    def worker(self) -> dict[str, Any]:
        return {"pid": self.process and self.process.pid, "restarts": self.restarts}

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        await super().close(timeout=timeout, reason=reason)  # ends keep_alive, too
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                await asyncio.wait_for(self.process.wait(), 5)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
