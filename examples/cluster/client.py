"""The client: submits tasks, and gets results from the workers that have them."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from cluster.peer import Peer, Ref, replace, wrap
from distributed.core import CommClosedError, error_message
from distributed.protocol import Serialized, serialize, to_serialize
from distributed.remote_errors import exception_from
from distributed.security import Security

Graph = dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]


class Future:
    """The result of a task, to come: await it, or give it to other tasks as an argument.

    The result is kept for as long as this object, or a task that needs it.
    """

    # State: `status` is pending, finished, error or cancelled, and `settled` is set unless it is
    # pending; `workers` have the result.  The scheduler's messages change them.
    def __init__(self, client: Client, key: str) -> None:
        self.client, self.key, self.status = client, key, "pending"
        self.settled = asyncio.Event()
        self.workers: list[str] = []
        self.error: Mapping[str, Any] = {}

    def settle(
        self, status: str, workers: Iterable[str] = (), error: Mapping[str, Any] | None = None
    ) -> None:
        self.status, self.workers, self.error = status, list(workers), error or {}
        (self.settled.clear if status == "pending" else self.settled.set)()

    def done(self) -> bool:
        return self.settled.is_set()

    def cancel(self) -> None:
        """Give the task up, and what depends on it, unless another client wants that."""
        self.client.send("cancel", keys=[self.key])
        self.settle("cancelled")

    def __await__(self) -> Any:
        return self.client.gather(self).__await__()

    def __del__(self) -> None:
        if not self.client.event_loop.is_closed():
            # Garbage is collected in any thread.
            self.client.event_loop.call_soon_threadsafe(self.client.release, self.key)

    def __repr__(self) -> str:
        return f"<Future {self.key}: {self.status}>"


class Client(Peer):
    """Computes on a cluster.  Its methods belong to its event loop, except `get`.

    Examples
    --------
    >>> async def main(scheduler):
    ...     async with Client(scheduler) as client:
    ...         numbers = client.map(abs, [-1, -2, -3])
    ...         return await client.submit(sum, numbers)
    """

    # State.  `futures` are those that anybody has, one for each key.
    def __init__(self, scheduler: str, *, security: Security | None = None) -> None:
        self.futures: WeakValueDictionary[str, Future] = WeakValueDictionary()
        super().__init__(
            scheduler,
            "client",
            security,
            handlers={},
            stream_handlers={
                status: partial(self.settle, status)
                for status in ("pending", "finished", "erred", "cancelled")
            },
        )

    async def start_unsafe(self) -> Client:
        await super().start_unsafe()
        self.event_loop = asyncio.get_running_loop()
        await self.register(op="register_client", client=self.id)
        return self

    def submit(
        self, function: Callable[..., Any], *args: Any, key: str | None = None, **kwargs: Any
    ) -> Future:
        """Have a worker call a function; futures among the arguments are awaited and replaced."""
        key = key or new_key(function)
        return self.submit_graph({key: (function, args, kwargs)}, [key])[0]

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Future]:
        """Submit a call for each of some arguments."""
        calls = zip(*iterables, strict=False)
        tasks: Graph = {new_key(function): (function, args, {}) for args in calls}
        return self.submit_graph(tasks, list(tasks))

    def submit_graph(self, tasks: Graph, wanted: list[str]) -> list[Future]:
        """Submit tasks that name each other by `Ref` and return futures of some."""
        graph = {}
        for key, task in tasks.items():
            needs: set[str] = set()

            def refer(future: Future | Ref, needs: set[str] = needs) -> Ref:
                needs.add(future.key)
                return Ref(future.key)

            run = to_serialize(replace(task, Future | Ref, refer))
            # What cannot be serialized is an error here, not one of the stream.
            graph[key] = (Serialized(*serialize(run, on_error="raise")), list(needs))
        futures = [self.futures.setdefault(key, Future(self, key)) for key in wanted]
        self.stream.send({"op": "submit", "tasks": graph, "wanted": wanted})
        return futures

    async def scatter(self, values: Iterable[Any]) -> list[Future]:
        """Bring values to workers, which take turns."""
        addresses = list(await self.rpc(self.scheduler_address).workers())
        if not addresses:
            raise RuntimeError(f"{self.scheduler_address} has no workers to scatter data to")
        plan: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        data = {new_key(type(value)): value for value in values}
        for address, key in zip(itertools.cycle(addresses), data, strict=False):
            plan[address][key] = data[key]
        self.futures.update(futures := {key: Future(self, key) for key in data})
        for address, part in plan.items():
            sizes = await self.rpc(address).put_data(data=wrap(part))
            for key, nbytes in sizes.items():
                self.stream.send(
                    {"op": "scattered", "key": key, "address": address, "nbytes": nbytes}
                )
        return list(futures.values())

    async def gather(self, futures: Any) -> Any:
        """Return results in place of futures, in lists, tuples, sets and dicts.

        Raises
        ------
        Exception
            What a task raised; with the traceback of the worker, as far as it can be had.
        asyncio.CancelledError
            If one was cancelled.
        """
        found: dict[str, Future] = {}
        replace(futures, Future, lambda future: found.setdefault(future.key, future))
        values: dict[str, Any] = {}
        while missing := [future for key, future in found.items() if key not in values]:
            plan: defaultdict[str, list[Future]] = defaultdict(list)
            for future in missing:
                await future.settled.wait()
            for future in missing:
                if future.status == "cancelled":
                    raise asyncio.CancelledError(future.key)
                if future.status == "erred":
                    raise exception_from(future.error)
                if future.status == "finished":
                    plan[future.workers[0]].append(future)
            await asyncio.gather(*(self.fetch_into(values, *part) for part in plan.items()))
        return replace(futures, Future, lambda future: values[future.key])

    async def fetch_into(self, values: dict[str, Any], address: str, futures: list[Future]) -> None:
        values |= await self.fetch(address, [future.key for future in futures])
        for future in futures:
            if future.key not in values:
                self.look_elsewhere(future, address)

    def look_elsewhere(self, future: Future, address: str) -> None:
        if future.status == "finished" and address in future.workers:
            future.settle("pending")
            self.send("missing", key=future.key, address=address)

    def worker_gone(self, address: str) -> None:
        super().worker_gone(address)
        for future in list(self.futures.values()):
            self.look_elsewhere(future, address)

    def settle(self, status: str, key: str, **known: Any) -> None:
        if (future := self.futures.get(key)) is not None and future.status != "cancelled":
            future.settle(status, **known)

    def release(self, key: str) -> None:
        if key not in self.futures:
            self.send("release", keys=[key])

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        await super().close(timeout=timeout, reason=reason)
        error = error_message(
            CommClosedError(f"{self.scheduler_address} is gone, or client closed")
        )
        for future in self.futures.values():
            if not future.done():
                future.settle("erred", error=error)

    def get(self, graph: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute a dask graph, from another thread than that of the event loop.

        For ``collection.compute(scheduler=client.get)``.
        """
        computing = self.compute(graph, keys)
        return asyncio.run_coroutine_threadsafe(computing, self.event_loop).result()

    async def compute(self, graph: Any, keys: Any) -> Any:
        """Compute keys, in lists of lists as deep as may be, of a dask graph."""
        from dask._task_spec import convert_legacy_graph
        from dask.order import order
        from dask.utils import ensure_dict

        # what collections give to a scheduler is an expression, since dask 2025.4
        graph = graph.__dask_graph__() if hasattr(graph, "__dask_graph__") else graph
        nodes = convert_legacy_graph(ensure_dict(graph))
        rank = order(nodes)
        tasks: Graph = {}
        for key in sorted(nodes, key=rank.__getitem__):
            inputs = {needed: Ref(str(needed)) for needed in nodes[key].dependencies}
            tasks[str(key)] = (call_node, (nodes[key], inputs), {})
        wanted = list(_flat(keys))
        if absent := [key for key in wanted if key not in nodes]:
            raise KeyError(f"the graph does not have {absent}")
        values = await self.gather(self.submit_graph(tasks, [str(key) for key in wanted]))
        found = dict(zip(wanted, values, strict=True))

        def pick(key: Any) -> Any:
            return [pick(k) for k in key] if isinstance(key, list) else found[key]

        return pick(keys)


def _flat(keys: Any) -> Iterator[Any]:
    if isinstance(keys, list):
        for key in keys:
            yield from _flat(key)
    else:
        yield keys


def new_key(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__name__', 'task')}-{uuid.uuid4().hex}"


def call_node(node: Any, values: dict[Any, Any]) -> Any:
    return node(values)
