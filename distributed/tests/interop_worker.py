"""A `Server` of this package that acts as a worker in a cluster of the original.

It registers with the original's Scheduler, sends heartbeats, stores data and returns it, and runs
functions. It computes tasks if dask is installed, since a task is an object of dask. It has no
spilling and no stealing, and does not fetch the inputs of tasks from other workers.

Run as a program, it is such a worker until the standard input ends.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import time
from typing import Any

from distributed import Server, Status, connect
from distributed.batched import BatchedSend
from distributed.comm import Comm
from distributed.protocol import to_serialize


class Guest(Server):
    """A worker named ``"guest"``, which registers with the scheduler at the given address."""

    def __init__(self, scheduler: str):
        self.scheduler_address = scheduler
        self.data: dict[str, Any] = {}  # by key
        self.asked: list[str] = []  # ops of the messages that came over the stream, in order
        self.reply: dict[str, Any] = {}  # the scheduler's answer to the registration
        self.stream = BatchedSend(interval="2ms")
        super().__init__(
            {"get_data": self.get_data, "run": self.run, "update_data": self.update_data},
            stream_handlers={"compute-task": self.compute_task, "free-keys": self.free_keys},
        )

    async def start_unsafe(self) -> Guest:
        await super().start_unsafe()
        await self.listen("tcp://127.0.0.1:0")
        comm = await connect(self.scheduler_address)
        await comm.write(
            {
                "op": "register-worker",
                "reply": False,
                "address": self.address,
                "status": Status.running.name,
                "nthreads": 1,
                "name": "guest",
                "now": time.time(),
                "resources": {},
                "memory_limit": 2**30,
                "local_directory": "",
                "services": {},
                "nanny": None,
                "pid": os.getpid(),
                "versions": {"host": {}, "packages": {}},
                "metrics": self.metrics(),
                "extra": {},
                "stimulus_id": "a-guest-comes",
                "server_id": self.id,
            }
        )
        self.reply = await comm.read()
        assert self.reply["status"] == "OK", self.reply
        self.stream.start(comm)
        self._ongoing_background_tasks.call_soon(self.handle_stream, comm)
        return self

    async def close(self, timeout: Any = None, reason: str = "") -> None:
        await self.stream.close()
        await super().close(timeout, reason)

    def metrics(self) -> dict[str, Any]:
        transfer = ("bytes", "count", "count_total")
        return {
            "task_counts": {},
            "bandwidth": {"total": 10**8, "workers": {}, "types": {}},
            "digests_total_since_heartbeat": {},
            "managed_bytes": 0,
            "spilled_bytes": {"memory": 0, "disk": 0},
            "transfer": {f"{way}_{x}": 0 for way in ("incoming", "outgoing") for x in transfer},
            "event_loop_interval": 0.02,
            "cpu": 0.0,
            "memory": 10**7,
            "time": time.time(),
            "host_net_io": {"read_bps": 0.0, "write_bps": 0.0},
            "host_disk_io": {"read_bps": 0.0, "write_bps": 0.0},
            "num_fds": 0,
        }

    async def heartbeat(self) -> dict[str, Any]:
        answer: dict[str, Any] = await self.rpc(self.scheduler_address).heartbeat_worker(
            address=self.address,
            now=time.time(),
            metrics=self.metrics(),
            executing={},
            extensions={},
        )
        return answer

    # Called by the scheduler and its clients

    def update_data(self, data: dict[str, Any]) -> dict[str, Any]:
        self.data.update(data)
        return {
            "nbytes": {key: sys.getsizeof(value) for key, value in data.items()},
            "status": "OK",
        }

    async def get_data(self, comm: Comm, keys: list[str], **kwargs: Any) -> Status:
        data = {key: to_serialize(self.data[key]) for key in keys}
        await comm.write({"status": "OK", "data": data})
        # The caller confirms that it has received the data.
        assert await comm.read() == "OK"
        return Status.dont_reply

    def run(self, function: bytes, args: bytes = b"", kwargs: Any = None, wait: bool = True) -> Any:
        positional = pickle.loads(args) if args else ()
        return {"status": "OK", "result": to_serialize(pickle.loads(function)(*positional))}

    # Sent by the scheduler over the stream

    def compute_task(self, key: str, run_id: int, run_spec: Any, **kwargs: Any) -> None:
        self.asked.append("compute-task")
        begin = time.time()
        value = run_spec()
        self.data[key] = value
        self.stream.send(
            {
                "op": "task-finished",
                "status": "OK",
                "key": key,
                "run_id": run_id,
                "nbytes": sys.getsizeof(value),
                "type": pickle.dumps(type(value)),
                "typename": type(value).__name__,
                "metadata": {},
                "thread": 0,
                "startstops": ({"action": "compute", "start": begin, "stop": time.time()},),
                "stimulus_id": f"computed-{key}",
            }
        )

    def free_keys(self, keys: list[str], **kwargs: Any) -> None:
        self.asked.append("free-keys")
        for key in keys:
            self.data.pop(key, None)


async def main(scheduler: str) -> None:
    async with Guest(scheduler) as guest:
        sys.stdout.write(f"{guest.address}\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
