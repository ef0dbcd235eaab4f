"""The client: submits tasks, and gets their results."""

import asyncio
import uuid
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

from cluster.worker import Peer, Ref, replace
from distributed.core import CommClosedError, error_message
from distributed.protocol import Serialized, serialize, to_serialize
from distributed.remote_errors import exception_from


class Future:
    """The result of a task, kept while this object is: to await, or an argument of other tasks."""

    # State: pending, or settled, and then finished, erred or cancelled.
    def __init__(self, client: "Client", key: str) -> None:
        self.client, self.key, self.settled = client, key, asyncio.Event()
        self.update("pending")

    def update(self, status: str, error: Any = None) -> None:
        self.status, self.error = status, error
        (self.settled.clear if status == "pending" else self.settled.set)()

    def cancel(self) -> None:
        """Give the task up, and what depends on it; other clients still get what they want."""
        self.client.send("cancel", key=self.key)
        self.update("cancelled")

    def __await__(self) -> Any:
        return self.client.gather(self).__await__()

    def __del__(self) -> None:
        if not self.client.event_loop.is_closed():  # garbage is collected in any thread
            self.client.event_loop.call_soon_threadsafe(self.client.release, self.key)


class Client(Peer):
    """Computes on a cluster.  Its methods belong to its event loop, except `get`."""

    # State: the futures that anybody has, one for each key.
    def __init__(self, scheduler: str) -> None:
        super().__init__(scheduler, "client", {})
        self.stream_handlers["update"] = self.update
        self.futures: WeakValueDictionary[str, Future] = WeakValueDictionary()

    async def start_unsafe(self) -> "Client":
        await super().start_unsafe()
        self.event_loop = asyncio.get_running_loop()
        await self.register(self.id)
        return self

    def submit(self, function: Any, *args: Any, key: str | None = None, **kwargs: Any) -> Future:
        """Have a worker call a function; futures among the arguments are awaited and replaced."""
        return self.submit_call((function, args, kwargs), key)

    def submit_call(self, call: Any, key: str | None = None, scattered: bool = False) -> Future:
        key = key or f"{getattr(call[0], '__name__', 'task')}-{uuid.uuid4().hex}"
        needs: dict[str, Ref] = {}
        call = replace(call, Future, lambda future: needs.setdefault(future.key, Ref(future.key)))
        # What cannot be serialized is an error here, not one of the stream.
        run = Serialized(*serialize(to_serialize(call), on_error="raise"))
        message = {"key": key, "run": run, "needs": list(needs), "scattered": scattered}
        self.stream.send({"op": "submit", **message})
        return self.futures.setdefault(key, Future(self, key))

    def map(self, function: Any, *iterables: Iterable[Any]) -> list[Future]:
        """Submit a call for each of some arguments."""
        return [self.submit(function, *args) for args in zip(*iterables, strict=False)]

    async def scatter(self, values: Iterable[Any]) -> list[Future]:
        """Bring values to workers; they are not kept elsewhere."""
        if not await self.rpc(self.scheduler_address).workers():
            raise RuntimeError(f"{self.scheduler_address} has no workers to scatter data to")
        calls: list[Any] = [(lambda it: it, (value,), {}) for value in values]
        futures = [self.submit_call(call, scattered=True) for call in calls]
        for future in futures:
            await future.settled.wait()
        return futures

    async def gather(self, futures: Any) -> Any:
        """Return results in place of futures, in lists, tuples, sets and dicts, or raise errors."""
        found: dict[str, Future] = {}
        replace(futures, Future, lambda future: found.setdefault(future.key, future))
        values: dict[str, Any] = {}
        while missing := [key for key in found if key not in values]:
            for future in map(found.__getitem__, missing):
                await future.settled.wait()
                if future.status == "cancelled":
                    raise asyncio.CancelledError(future.key)
                if future.status == "erred":
                    raise exception_from(future.error)
            values |= await self.rpc(self.scheduler_address).gather(keys=missing)
        return replace(futures, Future, lambda future: values[future.key])

    def update(self, key: str, status: str, error: Any) -> None:
        if (future := self.futures.get(key)) is not None and future.status != "cancelled":
            future.update(status, error)

    def release(self, key: str) -> None:
        if key not in self.futures:
            self.send("release", keys=[key])

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        await super().close(timeout=timeout, reason=reason)
        gone = CommClosedError(f"{self.scheduler_address} is gone, or client closed")
        for future in self.futures.values():
            if future.status == "pending":
                future.update("erred", error_message(gone))

    def get(self, graph: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute a dask graph, as ``x.compute(scheduler=client.get)`` does, in another thread."""

        async def compute() -> Any:
            return await self.gather(self.submit_graph(graph, keys))

        return asyncio.run_coroutine_threadsafe(compute(), self.event_loop).result()

    def submit_graph(self, graph: Any, keys: Any) -> Any:
        """Submit a dask graph; return futures in place of keys, which are in lists of lists."""
        from dask._task_spec import convert_legacy_graph
        from dask.order import order
        from dask.utils import ensure_dict

        # What collections give to a scheduler is an expression, since dask 2025.4.
        graph = graph.__dask_graph__() if hasattr(graph, "__dask_graph__") else graph
        nodes = convert_legacy_graph(ensure_dict(graph))
        futures: dict[Any, Future] = {}
        for key in sorted(nodes, key=order(nodes).__getitem__):
            inputs = {needed: futures[needed] for needed in nodes[key].dependencies}
            futures[key] = self.submit_call((nodes[key], (inputs,), {}), str(key))

        def of(keys: Any) -> Any:
            return list(map(of, keys)) if isinstance(keys, list) else futures[keys]

        return of(keys)
