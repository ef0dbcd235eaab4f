"""The scheduler: streams to and from workers and clients around a `ClusterState`."""

import contextlib
from functools import partial
from typing import Any

from cluster.state import ClusterState
from cluster.worker import fetch, logger
from distributed.batched import BatchedSend
from distributed.core import Comm, CommClosedError, Server
from distributed.security import Security
from distributed.utils import parse_timedelta


class Scheduler(Server):
    """A server that assigns tasks to workers, and drops those that are silent for `worker_ttl`."""

    def __init__(self, address: str, *, worker_ttl: float | str = "30s") -> None:
        self.state = state = ClusterState()
        self.streams: dict[str, BatchedSend] = {}  # address of a worker or id of a client → stream
        self.timeouts: dict[str, object] = {}  # worker address → timer, restarted by heartbeats
        self.unsettled = False  # True from an event until settle() runs
        self.worker_ttl = parse_timedelta(worker_ttl)
        self._listen_on = address
        events = (state.ended, state.missing, state.remove_worker, state.submit, state.release)
        ops = {event.__name__: partial(self.record, event) for event in (*events, state.cancel)}
        super().__init__(
            {"register": self.register, "gather": self.gather, "workers": lambda: [*state.workers]},
            stream_handlers=ops | {"heartbeat": self.heartbeat},
            deserialize=False,  # tasks, results and errors are passed on without unpickling
            security=Security(),
        )

    async def start_unsafe(self) -> "Scheduler":
        await self.listen(self._listen_on)
        return await super().start_unsafe()

    async def register(self, comm: Comm, name: str, nthreads: int) -> None:
        """Serve a worker, or a client (with 0 threads), until its comm closes."""
        if name in self.streams:
            raise ValueError(f"{name} is registered already")
        stream = self.streams[name] = BatchedSend(interval="2ms")
        try:
            if nthreads:
                self.heartbeat(name)
                self.record(self.state.add_worker, name, nthreads=nthreads)
            await comm.write("OK")
            stream.start(comm)
            await self.handle_stream(comm, extra={"sender": name})
        finally:
            self.streams.pop(name).abort()
            if name in self.timeouts:
                self.loop.remove_timeout(self.timeouts.pop(name))
            self.record(self.state.remove_worker, name)
            self.record(self.state.release, name, keys=list(self.state.tasks))
            self.rpc.remove(name)

    def record(self, event: Any, sender: str, **message: Any) -> None:
        """Record an event in the state; `settle` runs once per event-loop iteration."""
        event(sender, **message)
        if not self.unsettled:
            self.unsettled = True
            self.loop.add_callback(self.settle)

    def settle(self) -> None:
        self.unsettled = False
        for name, message in self.state.settle():
            with contextlib.suppress(KeyError, CommClosedError):  # the receiver has left
                try:
                    self.streams[name].send(message)
                except BufferError as exc:
                    self.drop(name, exc)

    def drop(self, name: str, why: Any) -> None:
        logger.warning("Dropping %s: %s", name, why)
        self.streams[name].abort()  # ends handle_stream() in register()

    def heartbeat(self, sender: str) -> None:
        if sender in self.timeouts:
            self.loop.remove_timeout(self.timeouts[sender])
        timer = self.loop.call_later(self.worker_ttl, self.drop, sender, "no heartbeat")
        self.timeouts[sender] = timer

    async def gather(self, keys: list[str]) -> dict[str, Any]:
        """Return results to a client, without those that were lost; these are computed again."""
        attempt = next(self.state.clock)
        values, missing = await fetch(self.rpc, self.state.holders(keys))
        self.record(self.state.missing, self.id, holders=missing, attempt=attempt)
        return values

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        """Tell all workers and clients to close, then close."""
        for stream in list(self.streams.values()):
            with contextlib.suppress(CommClosedError, BufferError, TimeoutError):  # unreachable
                stream.send({"op": "close", "reason": "the scheduler closes"})
                await stream.close(timeout=1)
        await super().close(timeout=timeout, reason=reason)
