"""The scheduler: streams to and from workers and clients around a `ClusterState`."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from tornado.ioloop import PeriodicCallback

from cluster.state import ClusterState
from cluster.worker import fetch, logger
from distributed.batched import BatchedSend
from distributed.core import Comm, CommClosedError, Server
from distributed.metrics import monotonic
from distributed.security import Security
from distributed.utils import parse_timedelta


class Scheduler(Server):
    """Gives the tasks of clients to workers; one that is silent for the `worker_ttl` is lost."""

    # State, besides `state`: the stream to each worker and client, by its address or id; when it
    # was last heard of; and whether events have happened that the state has not settled yet.
    def __init__(self, address: str, *, worker_ttl: float | str = "30s") -> None:
        self.state = state = ClusterState()
        self.streams: dict[str, BatchedSend] = {}
        self.last_seen: dict[str, float] = {}
        self.unsettled = False
        self.worker_ttl = parse_timedelta(worker_ttl)
        self._where = address
        events = (state.ended, state.missing, state.remove_worker, state.submit, state.release)
        ops = {event.__name__: partial(self.note, event) for event in (*events, state.cancel)}
        super().__init__(
            {"register": self.register, "gather": self.gather, "workers": lambda: [*state.workers]},
            stream_handlers=ops | {"heartbeat": self.heartbeat},
            deserialize=False,  # what tasks, results and errors consist of is for others
            connection_args=Security().get_connection_args("scheduler"),
        )
        watch = PeriodicCallback(self.drop_silent_workers, 1000 * min(1, self.worker_ttl / 4))
        self.periodic_callbacks["worker-ttl"] = watch

    async def start_unsafe(self) -> "Scheduler":
        await super().start_unsafe()
        await self.listen(self._where, **Security().get_listen_args("scheduler"))
        return self

    async def register(self, comm: Comm, name: str, nthreads: int) -> None:
        """Exchange messages with a worker, or a client (that has no threads), until it leaves."""
        if name in self.streams:
            raise ValueError(f"{name} is registered already")
        stream = self.streams[name] = BatchedSend(interval="2ms")
        self.heartbeat(name)
        try:
            if nthreads:
                self.note(self.state.add_worker, name, nthreads=nthreads)
            await comm.write("OK")
            stream.start(comm)
            await self.handle_stream(comm, extra={"sender": name})
        finally:
            stream.abort()
            del self.streams[name], self.last_seen[name]
            self.note(self.state.remove_worker, name)
            self.note(self.state.release, name, keys=list(self.state.tasks))
            self.rpc.remove(name)

    def note(self, event: Callable[..., None], sender: str, **message: Any) -> None:
        """Tell the state what has happened; it settles at once what happens at the same time."""
        event(sender, **message)
        if not self.unsettled:
            self.unsettled = True
            asyncio.get_running_loop().call_soon(self.settle)

    def settle(self) -> None:
        self.unsettled = False
        for name, message in self.state.settle():
            if (stream := self.streams.get(name)) is not None:
                try:
                    stream.send(message)
                except (CommClosedError, BufferError) as exc:
                    logger.info("Dropping %s, which is gone or does not read: %s", name, exc)
                    stream.abort()

    def heartbeat(self, sender: str) -> None:
        self.last_seen[sender] = monotonic()

    def drop_silent_workers(self) -> None:
        for address in self.state.workers:
            if monotonic() - self.last_seen[address] > self.worker_ttl:
                logger.warning("No heartbeat of %s for %s s", address, self.worker_ttl)
                self.streams[address].abort()  # register() notices

    async def gather(self, keys: list[str]) -> dict[str, Any]:
        """Get results for a client; what is lost is left out, and computed again."""
        holders = self.state.holders(keys)
        values, missing = await fetch(self.rpc, holders)
        self.note(self.state.missing, self.id, holders=missing)
        return values

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        """Tell all workers and clients that this is the end, and close."""
        for stream in list(self.streams.values()):
            with contextlib.suppress(CommClosedError, BufferError, TimeoutError):  # it cannot know
                stream.send({"op": "close", "reason": "the scheduler closes"})
                await stream.close(timeout=1)
        await super().close(timeout=timeout, reason=reason)
