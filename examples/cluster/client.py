"""The client: submits tasks, and gets their results."""

import asyncio
import uuid
from typing import Any
from weakref import WeakValueDictionary

from cluster.worker import Peer, Ref, replace
from distributed.core import CommClosedError, error_message
from distributed.core.errors.messages import exception_from
from distributed.protocol import Serialized, serialize, to_serialize


class Future:
    """The result of a task, kept while this object is: to await, or an argument of other tasks."""

    # State: pending, or settled, and then finished, erred or cancelled.
    def __init__(self, client: "Client", key: str, mark: str) -> None:
        self.client, self.key, self.mark, self.settled = client, key, mark, asyncio.Event()
        self.update("pending")

    def update(self, status: str, error: Any = None) -> None:
        self.status, self.error = status, error
        if status == "pending":
            self.settled.clear()
        else:
            self.settled.set()

    def cancel(self) -> None:
        """Give the task up, and what depends on it; other clients still get what they want."""
        self.client.send("cancel", key=self.key)
        self.update("cancelled")

    def __await__(self) -> Any:
        return self.client.gather(self).__await__()

    def __del__(self) -> None:
        self.client.loop.add_callback(self.client.release, self.key)  # from any thread


class Client(Peer):
    """Computes on a cluster.  Its methods belong to its event loop, except `get`."""

    def __init__(self, scheduler: str) -> None:
        super().__init__(scheduler, "client", {})
        self.stream_handlers["update"] = self.update
        self.futures: WeakValueDictionary[str, Future] = WeakValueDictionary()  # that anybody has

    async def start_unsafe(self) -> "Client":
        await super().start_unsafe()
        self.event_loop = asyncio.get_running_loop()
        await self.register(self.id)
        return self

    def submit(self, function: Any, /, *args: Any, key: str | None = None, **kwargs: Any) -> Future:
        """Have a worker call a function; futures among the arguments are awaited and replaced."""
        return self.submit_call((function, args, kwargs), key)

    def submit_call(self, call: Any, key: str | None = None, scattered: bool = False) -> Future:
        mark = uuid.uuid4().hex
        name = "scatter" if scattered else getattr(call[0], "__name__", "task")
        key = f"{name}-{mark}" if key is None else key
        if not isinstance(key, str):
            raise TypeError(f"a key is a string, not {key!r}")
        future = self.futures.get(key)
        if future is None or future.status in ("cancelled", "erred"):
            needs: dict[str, Ref] = {}
            call = replace(call, Future, lambda f: needs.setdefault(f.key, Ref(f.key)))
            # What cannot be serialized is an error here, not one of the stream.
            run = Serialized(*serialize(to_serialize(call), on_error="raise"))
            message = {"key": key, "mark": mark, "run": run, "needs": list(needs)}
            self.stream.send({"op": "submit", **message, "scattered": scattered})
            future = self.futures[key] = Future(self, key, mark)
        return future

    def map(self, function: Any, *iterables: Any) -> list[Future]:
        """Submit a call for each of some arguments."""
        return [self.submit(function, *args) for args in zip(*iterables, strict=False)]

    async def scatter(self, values: Any) -> list[Future]:
        """Bring values to workers; they are not kept elsewhere."""
        if not await self.rpc(self.scheduler_address).workers():
            raise RuntimeError(f"{self.scheduler_address} has no workers to scatter data to")
        futures = []
        for value in values:
            await self.stream.drain()
            futures.append(self.submit_call((lambda it: it, (value,), {}), scattered=True))
        await asyncio.gather(*(future.settled.wait() for future in futures))
        return futures

    async def gather(self, futures: Any) -> Any:
        """Return results in place of futures, in lists, tuples, sets and dicts, or raise errors."""
        wanted: dict[str, Future] = {}
        replace(futures, Future, lambda future: wanted.setdefault(future.key, future))
        values: dict[str, Any] = {}
        while missing := [key for key in wanted if key not in values]:
            for future in map(wanted.__getitem__, missing):
                await future.settled.wait()
                if future.status == "cancelled":
                    raise asyncio.CancelledError(future.key)
                if future.status == "erred":
                    raise exception_from(future.error)
            values |= await self.rpc(self.scheduler_address).gather(keys=missing)
        return replace(futures, Future, lambda future: values[future.key])

    def update(self, key: str, mark: str, status: str, error: Any = None) -> None:
        future = self.futures.get(key)
        if future is not None and future.mark == mark and future.status != "cancelled":
            future.update(status, error)

    def release(self, key: str) -> None:
        if key not in self.futures:
            self.send("release", keys=[key])

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        await super().close(timeout=timeout, reason=reason)
        gone = CommClosedError(f"{self.scheduler_address} is gone, or client closed")
        for future in [f for f in self.futures.values() if f.status == "pending"]:
            future.update("erred", error_message(gone))

    def get(self, graph: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute a dask graph, as ``x.compute(scheduler=client.get)`` does, in another thread."""
        if asyncio._get_running_loop() is self.event_loop:
            raise RuntimeError("get() waits: call it in another thread than the event loop's")
        return asyncio.run_coroutine_threadsafe(self.compute(graph, keys), self.event_loop).result()

    async def compute(self, graph: Any, keys: Any) -> Any:
        """Compute a dask graph, or what makes one; return results in place of keys, in lists."""
        from dask._task_spec import convert_legacy_graph
        from dask.order import order

        nodes = convert_legacy_graph(getattr(graph, "__dask_graph__", lambda: graph)())
        token = uuid.uuid4().hex  # another graph may have other tasks under the same keys
        tasks: dict[Any, Future] = {}
        for key in sorted(nodes, key=order(nodes).__getitem__):
            inputs = {needed: tasks[needed] for needed in nodes[key].dependencies}
            tasks[key] = self.submit_call((nodes[key], (inputs,), {}), f"{key!r}-{token}")
        return await self.gather(replace(keys, (str, bytes, int, float, tuple), tasks.__getitem__))
