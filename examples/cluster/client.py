"""The client: submits tasks and gathers their results."""

import asyncio
import itertools
from typing import Any
from weakref import WeakValueDictionary

from cluster.worker import Peer, Ref, replace
from distributed.core import CommClosedError, error_message, exception_from, wait_from_thread
from distributed.protocol import Serialized, serialize


class Future:
    """A task's result, to await or to pass to other tasks; kept as long as this object exists."""

    def __init__(self, client: "Client", key: str, mark: str) -> None:
        self.client, self.key, self.mark = client, key, mark  # mark: identifies this submission
        self.settled = asyncio.Event()  # set while the status is finished, erred or cancelled
        self.update("pending")

    def update(self, status: str, error: Any = None) -> None:
        self.status, self.error = status, error
        if status == "pending":
            self.settled.clear()
        else:
            self.settled.set()

    def cancel(self) -> None:
        """Cancel the task and its dependents, unless other clients want them."""
        self.client.send("cancel", key=self.key)
        self.update("cancelled")

    def __await__(self) -> Any:
        return self.client.gather(self).__await__()

    def __del__(self) -> None:
        self.client.loop.add_callback(self.client.release, self.key)  # from any thread


class Client(Peer):
    """Computes on a cluster.  Call its methods in its event loop, except `get`."""

    def __init__(self, scheduler: str) -> None:
        super().__init__(scheduler)
        self.stream_handlers["update"] = self.update
        self.futures: WeakValueDictionary[str, Future] = WeakValueDictionary()  # by key
        self.numbers = itertools.count(1)  # of submissions

    def submit(self, function: Any, /, *args: Any, key: str | None = None, **kwargs: Any) -> Future:
        """Call a function on a worker, with the results of futures among its arguments."""
        return self.submit_call((function, args, kwargs), key)

    def submit_call(self, call: Any, key: str | None = None, scattered: bool = False) -> Future:
        mark = f"{self.id}-{next(self.numbers)}"
        name = "scatter" if scattered else getattr(call[0], "__name__", "task")
        key = f"{name}-{mark}" if key is None else key
        if not isinstance(key, str):
            raise TypeError(f"a key must be a string, not {key!r}")
        future = self.futures.get(key)
        if future is None or future.status in ("cancelled", "erred"):
            needs: dict[str, Ref] = {}
            call = replace(call, Future, lambda f: needs.setdefault(f.key, Ref(f.key)))
            # Serialized here, so that an error is raised to the caller and does not end the stream.
            run = Serialized(*serialize(call, on_error="raise"))
            message = {"key": key, "mark": mark, "run": run, "needs": list(needs)}
            self.stream.send({"op": "submit", **message, "scattered": scattered})
            future = self.futures[key] = Future(self, key, mark)
        return future

    def map(self, function: Any, *iterables: Any) -> list[Future]:
        """Submit one call for each tuple of arguments, as the builtin `map`."""
        return [self.submit(function, *args) for args in zip(*iterables, strict=False)]

    async def scatter(self, values: Any) -> list[Future]:
        """Move values to workers; no other copy is kept."""
        if not await self.rpc(self.scheduler_address).workers():
            raise RuntimeError(f"{self.scheduler_address} has no workers to scatter data to")
        futures = []
        for value in values:
            await self.stream.drain()
            futures.append(self.submit_call((lambda it: it, (value,), {}), scattered=True))
        await asyncio.gather(*(future.settled.wait() for future in futures))
        return futures

    async def gather(self, futures: Any) -> Any:
        """Replace futures, also in nested builtin containers, by results, or raise an error."""
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
        gone = CommClosedError(f"{self.scheduler_address} is gone, or the client was closed")
        for future in [f for f in self.futures.values() if f.status == "pending"]:
            future.update("erred", error_message(gone))

    def get(self, graph: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute a dask graph, for ``x.compute(scheduler=client.get)``, in another thread."""
        return wait_from_thread(self.loop, self.compute, graph, keys)

    async def compute(self, graph: Any, keys: Any) -> Any:
        """Compute a dask graph or collection; return *keys*, nested lists, with results instead."""
        from dask._task_spec import convert_legacy_graph
        from dask.order import order

        nodes = convert_legacy_graph(getattr(graph, "__dask_graph__", lambda: graph)())
        token = f"{self.id}-{next(self.numbers)}"  # distinguishes equal keys of different graphs
        tasks: dict[Any, Future] = {}
        for key in sorted(nodes, key=order(nodes).__getitem__):
            inputs = {needed: tasks[needed] for needed in nodes[key].dependencies}
            tasks[key] = self.submit_call((nodes[key], (inputs,), {}), f"{key!r}-{token}")
        return await self.gather(replace(keys, (str, bytes, int, float, tuple), tasks.__getitem__))
