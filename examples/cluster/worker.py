"""`Peer`, the base of workers and clients; `Worker`; and `Nanny`, which runs one in a process."""

import asyncio
import contextlib
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from tornado.ioloop import PeriodicCallback

from distributed.batched import BatchedSend, rough_size
from distributed.comm import get_local_address_for
from distributed.core import ChildProcess, Comm, CommClosedError, Server, error_message, send_recv
from distributed.metrics import monotonic
from distributed.protocol.serialize import _nested_deserialize, to_serialize
from distributed.security import Security

logger = logging.getLogger("distributed.cluster")
EXIT_CODE_CLOSED = 85  # of a worker that closed as intended; a task could exit with 0


class Peer(Server):
    """A server with a stream to and from the scheduler; closes when that ends."""

    def __init__(self, scheduler: str, nthreads: int = 0, **handlers: Any) -> None:
        self.scheduler_address, self.nthreads = scheduler, nthreads
        self.stream = BatchedSend(interval="2ms")
        # A worker unpickles values in the threads of tasks, so that an error fails only one task.
        super().__init__(handlers, deserialize=not nthreads, security=Security())
        self.stream_handlers["close"] = self.close
        self.lost_scheduler = False

    async def start_unsafe(self) -> Self:
        await super().start_unsafe()
        if self.nthreads:  # a worker, from which others fetch results
            await self.listen(get_local_address_for(self.scheduler_address))
        comm = await self.rpc.connect(self.scheduler_address)
        name = self.address if self.nthreads else self.id
        await send_recv(comm, op="register", name=name, nthreads=self.nthreads)
        self.stream.start(comm)
        self._ongoing_background_tasks.call_soon(self.handle_scheduler, comm)
        self.start_periodic_callbacks()
        return self

    async def handle_scheduler(self, comm: Comm) -> None:
        await self.handle_stream(comm)
        self.lost_scheduler = not (self.stream.please_stop or self._close_begun)
        await self.close(reason="the stream to the scheduler has ended")

    def send(self, op: str, **message: Any) -> None:
        with contextlib.suppress(CommClosedError):  # handle_scheduler() returns, too, and closes
            self.stream.send({"op": op, **message})


class Worker(Peer):
    """A server that runs tasks in threads; by default one for each processor."""

    def __init__(self, scheduler: str, *, nthreads: int | None = None) -> None:
        super().__init__(scheduler, nthreads or os.cpu_count() or 1, get_data=self.get_data)
        self.data: dict[str, Any] = {}  # key → result
        self.attempts: dict[str, int] = {}  # key → number of the attempt, until it ends or is freed
        self._threads = ThreadPoolExecutor(self.nthreads, thread_name_prefix="Task")
        self._unpickling = threading.Lock()
        self.stream_handlers |= {"compute": self.compute, "free": self.free}
        self.periodic_callbacks["heartbeat"] = PeriodicCallback(lambda: self.send("heartbeat"), 500)

    def get_data(self, keys: list[str]) -> dict[str, Any]:
        return {key: to_serialize(self.data[key]) for key in keys if key in self.data}

    def free(self, key: str) -> None:
        """Forget a task and its result; a thread that runs it continues, its result is dropped."""
        self.data.pop(key, None)
        self.attempts.pop(key, None)

    def compute(self, key: str, attempt: int, run: Any, holders: dict[str, str]) -> None:
        self.attempts[key] = attempt
        self._ongoing_background_tasks.call_soon(self.run, key, attempt, run, holders)

    async def run(self, key: str, attempt: int, run: Any, holders: dict[str, str]) -> None:
        inputs = {need: self.data[need] for need in holders if need in self.data}
        elsewhere = {need: holders[need] for need in holders.keys() - inputs.keys()}
        try:
            fetched, missing = await fetch(self.rpc, elsewhere)
            outcome: dict[str, Any] = {"missing": missing}
            if not missing:
                call = self._threads.submit(self.execute, key, attempt, run, inputs, fetched)
                outcome = await asyncio.wrap_future(call)
        except Exception as exc:  # noqa: BLE001  (any error here is that of the task)
            outcome = {"error": error_message(exc)}
        if self.attempts.get(key) == attempt:
            del self.attempts[key]
            if "value" in outcome:
                self.data[key] = outcome.pop("value")
            await self.stream.drain()
            self.send("ended", key=key, attempt=attempt, **outcome)

    def execute(self, key: str, attempt: int, run: Any, inputs: Any, fetched: Any) -> Any:
        """Run a task, in a thread; return its result with duration and size, or its error."""
        try:
            if self.attempts.get(key) != attempt:
                return {}  # it was freed while it waited for a thread
            with self._unpickling:  # otherwise another thread may use a half-imported package
                fetched, call = _nested_deserialize((fetched, run))
            function, args, kwargs = replace(call, Ref, (inputs | fetched).__getitem__)
            start = monotonic()
            value = function(*args, **kwargs)
            return {"value": value, "duration": monotonic() - start, "nbytes": rough_size(value)}
        except BaseException as exc:  # noqa: BLE001  (SystemExit, too, must end only the task)
            return {"error": error_message(exc)}

    async def close(self, timeout: float | None = None, reason: str = "") -> None:
        """Give up all tasks, tell the scheduler to assign them to other workers, and close."""
        self.send("remove_worker", blame=False)
        with contextlib.suppress(TimeoutError):
            await self.stream.close(timeout=1)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await super().close(timeout=timeout, reason=reason)


async def fetch(pool: Any, holders: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the results that could be fetched, and the holders of those that could not."""
    values: dict[str, Any] = {}

    async def ask(address: str) -> None:
        keys = [key for key, holder in holders.items() if holder == address]
        try:
            values.update(await pool(address).get_data(keys=keys))
        except OSError as exc:
            logger.warning("Cannot get results from %s: %s", address, exc)

    await asyncio.gather(*map(ask, set(holders.values())))
    return values, {key: holders[key] for key in holders.keys() - values.keys()}


class Ref(str):
    """The key of a task, in place of its result in the arguments of another task."""


def replace(value: Any, kind: Any, substitute: Any) -> Any:
    """Replace each object of a kind by `substitute(object)`, in nested builtin containers, too."""
    if isinstance(value, kind):
        return substitute(value)
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(replace(item, kind, substitute) for item in value)
    if type(value) is dict:
        return {key: replace(item, kind, substitute) for key, item in value.items()}
    return value


class Nanny(Server):
    """A server that runs ``python -m cluster worker ARGUMENTS``, and restarts it when it dies."""

    def __init__(self, scheduler: str, *args: str) -> None:
        command = [sys.executable, "-m", "cluster", "worker", scheduler, *args, "--parent"]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self.child = child = ChildProcess(command, env=env, final=[EXIT_CODE_CLOSED])
        handlers = {"worker": lambda: {"pid": child.pid, "restarts": child.restarts}}
        super().__init__(handlers, security=Security())
        self._listen_on = get_local_address_for(scheduler)

    async def start_unsafe(self) -> "Nanny":
        await self.listen(self._listen_on)
        await self.enter_async_context(self.child)
        self._ongoing_background_tasks.call_soon(self.close_with_child)
        return await super().start_unsafe()

    async def close_with_child(self) -> None:
        await self.child.ended()
        await self.close(reason="the worker has ended")
