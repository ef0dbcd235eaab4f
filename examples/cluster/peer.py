"""What workers and clients share: a stream to the scheduler and back, and ways to fetch data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from distributed.batched import BatchedSend
from distributed.core import Comm, CommClosedError, Server, connect
from distributed.protocol import to_serialize
from distributed.security import Security


class Peer(Server):
    """A server that lives as long as its stream to the scheduler."""

    dismissed = False  # by the scheduler
    lost_scheduler = False  # which went away without a word

    def __init__(self, scheduler: str, role: str, security: Security | None, **kwargs: Any) -> None:
        self.scheduler_address = scheduler
        self.security = security or Security()  # certificates and token of the configuration
        self.stream = BatchedSend(interval="2ms")
        super().__init__(connection_args=self.security.get_connection_args(role), **kwargs)
        self.stream_handlers |= {"worker-gone": self.worker_gone, "close": self.end}

    async def register(self, deserialize: bool = True, **request: Any) -> None:
        comm = await connect(
            self.scheduler_address, deserialize=deserialize, **self.connection_args
        )
        try:
            await comm.write(request)
            answer = await comm.read()
            if answer != "OK":
                raise RuntimeError(f"{comm.peer_address} refused: {answer['exception_text']}")
        except BaseException:
            comm.abort()
            raise
        self.stream.start(comm)
        self._ongoing_background_tasks.call_soon(self.obey, comm)

    async def obey(self, comm: Comm) -> None:
        await self.handle_stream(comm)
        if not self._close_begun:
            self.lost_scheduler = not self.dismissed
            await self.close(reason="the scheduler is gone")

    def send(self, op: str, **message: Any) -> None:
        with contextlib.suppress(CommClosedError):  # obey() notices, and closes
            self.stream.send({"op": op, **message})

    async def fetch(self, address: str, keys: Iterable[str]) -> dict[str, Any]:
        """Get data from a worker; what it does not have, or cannot give any more, is left out."""
        try:
            return dict(await self.rpc(address).get_data(keys=list(keys)))
        except OSError:
            return {}

    def worker_gone(self, address: str) -> None:
        self.rpc.remove(address, reason=f"The worker {address} is gone.")

    def end(self) -> None:
        self.dismissed = True  # the stream ends next

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        if self.stream.comm is not None:
            with contextlib.suppress(TimeoutError):
                await self.stream.close(timeout=1)
        await super().close(timeout=timeout, reason=reason)


@dataclass(frozen=True)
class Ref:
    """Stands, in the arguments of a task, for the result of another."""

    key: str


def replace(value: Any, kind: Any, with_what: Callable[[Any], Any]) -> Any:
    """Replace what is of a kind, also in lists, tuples, sets and dicts."""
    if isinstance(value, kind):
        return with_what(value)
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(replace(item, kind, with_what) for item in value)
    if type(value) is dict:
        return {key: replace(item, kind, with_what) for key, item in value.items()}
    return value


def wrap(data: dict[str, Any]) -> dict[str, Any]:
    """Data as it goes into a message: any object, by whatever is best for its type."""
    return {key: to_serialize(value) for key, value in data.items()}
