"""The scheduler: streams to and from workers and clients around a `ClusterState`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tornado.ioloop import PeriodicCallback

from cluster.state import ClusterState, Message
from distributed.batched import BatchedSend
from distributed.core import Comm, CommClosedError, Server
from distributed.metrics import monotonic
from distributed.security import Security
from distributed.utils import parse_timedelta

Event = Callable[..., list[Message]]

logger = logging.getLogger("distributed.cluster.scheduler")


class Scheduler(Server):
    """Gives the tasks of clients to workers.

    Parameters
    ----------
    address
        Where to listen.
    security
        Certificates and token; by default those of the configuration.
    worker_ttl
        How long a worker may be silent until it counts as lost, in seconds or like ``"30s"``.
    """

    default_port = 8786

    # State, besides ClusterState: `streams` to each worker and client, by the name that it has
    # there, and `last_seen`, when each worker was last heard of.
    def __init__(
        self,
        address: str | None = None,
        *,
        security: Security | None = None,
        worker_ttl: float | str = "30s",
    ) -> None:
        security = security or Security()
        self.state = ClusterState()
        self.streams: dict[str, BatchedSend] = {}
        self.last_seen: dict[str, float] = {}
        self.worker_ttl = parse_timedelta(worker_ttl)
        self._where = address
        self._listen_args = security.get_listen_args("scheduler")
        super().__init__(
            handlers={
                "register_worker": self.register_worker,
                "register_client": self.register_client,
                "workers": self.workers,
            },
            stream_handlers={
                "heartbeat": self.heartbeat,
                **{
                    name: self._event(getattr(self.state, name))
                    for name in (
                        *("finished", "erred", "reschedule", "replicated"),
                        *("submit", "scattered", "missing", "release", "cancel"),
                    )
                },
            },
            # a task goes to its worker, and an error to its client, as they came
            deserialize=False,
            connection_args=security.get_connection_args("scheduler"),
        )
        self.periodic_callbacks["worker-ttl"] = PeriodicCallback(
            self.forget_silent_workers, 1000 * min(1, self.worker_ttl / 4)
        )

    async def start_unsafe(self) -> Scheduler:
        await super().start_unsafe()
        await self.listen(self._where, **self._listen_args)
        return self

    async def register_worker(self, comm: Comm, address: str, nthreads: int) -> None:
        if address in self.state.workers:
            raise ValueError(f"a worker at {address} is registered already")
        self.last_seen[address] = monotonic()
        add = partial(self.state.add_worker, address, nthreads)
        await self.stream_with(address, comm, add, partial(self.state.remove_worker, address))
        self.rpc.remove(address)

    async def register_client(self, comm: Comm, client: str) -> None:
        add = partial(self.state.add_client, client)
        await self.stream_with(client, comm, add, partial(self.state.remove_client, client))

    async def stream_with(self, name: str, comm: Comm, add: Event, remove: Event) -> None:
        """Make the comm a stream in both directions, for as long as it lasts."""
        await comm.write("OK")
        self.streams[name] = BatchedSend(interval="2ms")
        self.streams[name].start(comm)
        self.send(add())
        try:
            await self.handle_stream(comm, extra={"sender": name})
        finally:
            self.streams.pop(name).abort()
            self.send(remove())

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return what each worker has to do, by its address."""
        return {
            address: {"processing": len(worker.processing), "occupancy": worker.occupancy}
            for address, worker in self.state.workers.items()
        }

    def heartbeat(self, sender: str) -> None:
        self.last_seen[sender] = monotonic()

    def forget_silent_workers(self) -> None:
        for address in list(self.state.workers):
            if monotonic() - self.last_seen[address] > self.worker_ttl:
                logger.warning("No heartbeat of %s for %s s", address, self.worker_ttl)
                self.streams[address].abort()

    def _event(self, event: Event) -> Callable[..., None]:
        return lambda sender, **message: self.send(event(sender, **message))

    def send(self, messages: Iterable[Message]) -> None:
        for to, message in messages:
            stream = self.streams[to]
            try:
                stream.send(message)
            except CommClosedError:
                logger.debug("%s has left; whoever reads its stream will notice", to)
            except BufferError as exc:
                logger.warning("Dropping %s, which does not read: %s", to, exc)
                stream.abort()

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        """Tell all workers and clients that this is the end, and close."""
        for stream in list(self.streams.values()):
            with contextlib.suppress(CommClosedError, BufferError, TimeoutError):  # it cannot know
                stream.send({"op": "close"})
                await stream.close(timeout=1)
        await super().close(timeout=timeout, reason=reason)
