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
    """Gives the tasks of clients to workers; one that is silent for the `worker_ttl` is lost."""

    def __init__(self, address: str, *, worker_ttl: float | str = "30s") -> None:
        self.state = state = ClusterState()
        self.streams: dict[str, BatchedSend] = {}  # to each worker and client, by address or id
        self.alarms: dict[str, object] = {}  # what goes off when a worker is silent
        self.unsettled = False  # whether events have happened that are yet to be settled
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

    async def start_unsafe(self) -> "Scheduler":
        await self.listen(self._where, **Security().get_listen_args("scheduler"))
        return await super().start_unsafe()

    async def register(self, comm: Comm, name: str, nthreads: int) -> None:
        """Exchange messages with a worker, or a client (that has no threads), until it leaves."""
        if name in self.streams:
            raise ValueError(f"{name} is registered already")
        stream = self.streams[name] = BatchedSend(interval="2ms")
        try:
            if nthreads:
                self.heartbeat(name)
                self.note(self.state.add_worker, name, nthreads=nthreads)
            await comm.write("OK")
            stream.start(comm)
            await self.handle_stream(comm, extra={"sender": name})
        finally:
            self.streams.pop(name).abort()
            if name in self.alarms:
                self.loop.remove_timeout(self.alarms.pop(name))
            self.note(self.state.remove_worker, name)
            self.note(self.state.release, name, keys=list(self.state.tasks))
            self.rpc.remove(name)

    def note(self, event: Any, sender: str, **message: Any) -> None:
        """Tell the state what has happened; it settles at once what happens at the same time."""
        event(sender, **message)
        if not self.unsettled:
            self.unsettled = True
            self.loop.add_callback(self.settle)

    def settle(self) -> None:
        self.unsettled = False
        for name, message in self.state.settle():
            with contextlib.suppress(KeyError, CommClosedError):  # it is gone
                try:
                    self.streams[name].send(message)
                except BufferError as exc:
                    self.drop(name, exc)

    def drop(self, name: str, why: Any) -> None:
        logger.warning("Dropping %s: %s", name, why)
        self.streams[name].abort()  # register() notices

    def heartbeat(self, sender: str) -> None:
        if sender in self.alarms:
            self.loop.remove_timeout(self.alarms[sender])
        self.alarms[sender] = self.loop.call_later(
            self.worker_ttl, self.drop, sender, "no heartbeat"
        )

    async def gather(self, keys: list[str]) -> dict[str, Any]:
        """Get results for a client; what is lost is left out, and computed again."""
        attempt = next(self.state.clock)
        values, missing = await fetch(self.rpc, self.state.holders(keys))
        self.note(self.state.missing, self.id, holders=missing, attempt=attempt)
        return values

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        """Tell all workers and clients that this is the end, and close."""
        for stream in list(self.streams.values()):
            with contextlib.suppress(CommClosedError, BufferError, TimeoutError):  # it cannot know
                stream.send({"op": "close", "reason": "the scheduler closes"})
                await stream.close(timeout=1)
        await super().close(timeout=timeout, reason=reason)
