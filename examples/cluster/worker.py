"""The worker: runs tasks in threads, keeps their results, and gives them to whoever needs them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tornado.ioloop import PeriodicCallback

from cluster.peer import Peer, Ref, replace, wrap
from distributed.comm import get_local_address_for
from distributed.core import error_message
from distributed.metrics import monotonic
from distributed.protocol import Serialized, deserialize
from distributed.security import Security


class Worker(Peer):
    """Computes; by default as many tasks at a time as there are processors."""

    # State.  `data` is what this worker has; `attempts` the tasks that it was given and was not
    # relieved of, each with the attempt's number; `gone` are workers that were told to be lost and
    # were not named since.
    def __init__(
        self,
        scheduler: str,
        *,
        nthreads: int | None = None,
        address: str | None = None,
        security: Security | None = None,
        heartbeat: float = 0.5,
    ) -> None:
        self.nthreads = nthreads or os.cpu_count() or 1
        self.data: dict[str, Any] = {}
        self.attempts: dict[str, int] = {}
        self.gone: set[str] = set()
        self._executor = ThreadPoolExecutor(self.nthreads, thread_name_prefix="Task")
        self._fetching: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._where = address or get_local_address_for(scheduler)
        super().__init__(
            scheduler,
            "worker",
            security,
            handlers={"get_data": self.get_data, "put_data": self.put_data},
            stream_handlers={"compute": self.compute, "free": self.free},
        )
        self.periodic_callbacks["heartbeat"] = PeriodicCallback(
            lambda: self.send("heartbeat"), 1000 * heartbeat
        )

    async def start_unsafe(self) -> Worker:
        await super().start_unsafe()
        await self.listen(self._where, **self.security.get_listen_args("worker"))
        # What a task consists of is unpickled where it runs: if that fails, only the task does.
        await self.register(
            deserialize=False, op="register_worker", address=self.address, nthreads=self.nthreads
        )
        return self

    # What the scheduler says

    def compute(self, key: str, attempt: int, run: Any, holders: dict[str, Any]) -> None:
        self.attempts[key] = attempt
        self.gone.difference_update(*holders.values())
        self._ongoing_background_tasks.call_soon(self.run, key, attempt, run, holders)

    def free(self, key: str) -> None:
        """Forget a result, or a task; one that runs runs on, but for nobody."""
        self.data.pop(key, None)
        self.attempts.pop(key, None)

    def worker_gone(self, address: str) -> None:
        self.gone.add(address)
        super().worker_gone(address)

    # What others ask for

    def get_data(self, keys: list[str]) -> dict[str, Any]:
        return wrap({key: self.data[key] for key in keys if key in self.data})

    def put_data(self, data: dict[str, Any]) -> dict[str, int]:
        """Take data; return its sizes in bytes."""
        self.data.update(data)
        return {key: size_of(value) for key, value in data.items()}

    # Tasks

    async def run(self, key: str, attempt: int, run: Any, holders: dict[str, Any]) -> None:
        loop, report = asyncio.get_running_loop(), {"key": key, "attempt": attempt}

        def wanted() -> bool:
            return self.attempts.get(key) == attempt

        try:
            inputs, missing = await self.gather(holders)
            if missing:
                self.send("reschedule", **report, missing=missing)
            else:
                done = loop.run_in_executor(self._executor, execute, wanted, run, inputs)
                value, duration = await done
                if wanted():
                    self.data[key] = value
                    self.send("finished", **report, nbytes=size_of(value), duration=duration)
        except Exception as exc:  # noqa: BLE001  (it is the client's)
            self.send("erred", **report, error=error_message(exc))
        finally:
            if wanted():
                del self.attempts[key]

    async def gather(self, holders: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Get the inputs of a task; return them, and who did not have the missing ones."""
        values = {key: self.data[key] for key in holders if key in self.data}
        plan: defaultdict[str, list[str]] = defaultdict(list)
        for key in holders.keys() - values.keys():
            plan[next((a for a in holders[key] if a != self.address), self.address)].append(key)
        await asyncio.gather(*(self.fetch_into(values, *part) for part in plan.items()))
        absent = {address: set(keys) - values.keys() for address, keys in plan.items()}
        return values, {key: address for address, keys in absent.items() for key in keys}

    async def fetch_into(self, values: dict[str, Any], address: str, keys: list[str]) -> None:
        async with self._fetching[address]:  # one at a time, so that no two tasks fetch the same
            values |= {key: self.data[key] for key in keys if key in self.data}
            absent = [key for key in keys if key not in values]
            if absent and address != self.address and address not in self.gone:
                fetched = await self.fetch(address, absent)
                values |= fetched
                self.data |= fetched
                self.send("replicated", sizes={k: size_of(v) for k, v in fetched.items()})

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        """Stop; tasks that run are given up, and the scheduler has others run them."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        await super().close(timeout=timeout, reason=reason)


def execute(
    wanted: Callable[[], bool], run: Serialized, inputs: dict[str, Any]
) -> tuple[Any, float]:
    """Run a task, in a thread; return its result and how many seconds that took."""
    if not wanted():
        return None, 0
    function, args, kwargs = deserialize(run.header, run.frames)
    args, kwargs = replace((args, kwargs), Ref, lambda ref: inputs[ref.key])
    start = monotonic()
    return function(*args, **kwargs), monotonic() - start


def size_of(value: Any) -> int:
    """About how many bytes it takes to move this."""
    nbytes = getattr(value, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else sys.getsizeof(value)
