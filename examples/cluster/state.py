"""What the scheduler knows and what follows from it, without I/O.

Events come in as calls of methods, each of which returns the messages that are to be sent: pairs
of whom to (a worker's address or a client's id) and what.  Tasks are opaque: nothing is unpickled.

A task is in one of these states, and `ClusterState._move` is the only place where it changes:

==========  ======================================================================
released    known because others were made of it, but nobody needs its result now
waiting     needed; some of its dependencies are not in memory
queued      could run, but all workers have enough to do
processing  sent to a worker
memory      workers have the result
erred       it failed, or one that it depends on did
==========  ======================================================================
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed.core import error_message

Message = tuple[str, dict[str, Any]]

ACTIVE = {"waiting", "queued", "processing"}
SATURATION = 2  # tasks per thread that a worker is given: one runs, and the next is at hand
UNKNOWN_DURATION = 0.1  # seconds; what a function takes that never ran
BANDWIDTH = 100e6  # bytes per second between workers, to weigh moving data against waiting
ALLOWED_DEATHS = 3  # workers that may die with a task before that is blamed


class KilledWorker(Exception):
    """Too many workers died while they had this task."""


class LostData(Exception):
    """Data is gone, and nobody knows how to compute it again."""


@dataclass(eq=False, slots=True)
class Task:
    key: str
    run: Any  # what the worker is to do, serialized; None for data that was scattered
    priority: int
    dependencies: set[Task] = field(default_factory=set)
    dependents: set[Task] = field(default_factory=set)
    state: str = "released"
    waiting_on: set[Task] = field(default_factory=set)  # while waiting: what is not in memory
    waiters: set[Task] = field(default_factory=set)  # exactly the dependents that are ACTIVE
    wanted_by: set[str] = field(default_factory=set)  # clients
    holders: set[str] = field(default_factory=set)  # workers; not empty exactly in memory
    worker: Worker | None = None  # exactly while processing
    attempt: int = 0  # tells what a worker reports from what is out of date
    cost: float = 0  # seconds; its part of the worker's occupancy
    deaths: int = 0
    nbytes: int = 0
    error: Mapping[str, Any] | None = None


@dataclass(eq=False, slots=True)
class Worker:
    address: str
    nthreads: int
    processing: set[Task] = field(default_factory=set)
    has: set[Task] = field(default_factory=set)
    occupancy: float = 0  # seconds of work that it has


class ClusterState:
    # Mutable state: the three tables (clients: id → the tasks it wants), what each function took
    # last, the queue (entries of tasks that left it meanwhile are skipped), and, during an event
    # only, the tasks to look at again and the messages to send.
    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.workers: dict[str, Worker] = {}
        self.clients: dict[str, set[Task]] = {}
        self.durations: dict[str, float] = {}
        self.queue: list[tuple[int, str]] = []
        self._counter = itertools.count()
        self._todo: deque[Task] = deque()
        self._messages: list[Message] = []

    # Events from workers

    def add_worker(self, address: str, nthreads: int) -> list[Message]:
        self.workers[address] = Worker(address, nthreads)
        return self._settle()

    def remove_worker(self, address: str, *, blame: bool = True) -> list[Message]:
        """Have others do what a worker that is gone was doing, and again what only it had."""
        worker = self.workers.pop(address)
        for other in [*self.workers, *self.clients]:
            self._send(other, "worker-gone", address=address)
        for task in sorted(worker.processing, key=lambda task: task.priority):
            task.deaths += blame
            if task.deaths > ALLOWED_DEATHS:
                text = f"{task.deaths} workers died while they had {task.key!r}; last: {address}"
                task.error = error_message(KilledWorker(text))
            self._move(task, "released")
        for task in worker.has:
            self._drop(task, address)
        return self._settle()

    def finished(
        self, address: str, key: str, attempt: int, nbytes: int, duration: float
    ) -> list[Message]:
        task = self._current(address, key, attempt)
        if task is not None:
            name = _function(key)
            self.durations[name] = (self.durations.get(name, duration) + duration) / 2
            self._add_holder(task, address, nbytes)
            self._move(task, "memory")
        return self._settle()

    def erred(
        self, address: str, key: str, attempt: int, error: Mapping[str, Any]
    ) -> list[Message]:
        task = self._current(address, key, attempt)
        if task is not None:
            task.error = error
            self._move(task, "erred")
        return self._settle()

    def reschedule(
        self, address: str, key: str, attempt: int, missing: Mapping[str, str]
    ) -> list[Message]:
        """A worker could not get dependencies from the workers that were said to have them."""
        for dependency, holder in missing.items():
            self._forsake(dependency, holder)
        task = self._current(address, key, attempt)
        if task is not None:
            self._move(task, "released")
        return self._settle()

    def replicated(self, address: str, sizes: Mapping[str, int]) -> list[Message]:
        """A worker has copies of data, which it got from others."""
        for key, nbytes in sizes.items():
            task = self.tasks.get(key)
            if task is not None and task.state == "memory":
                self._add_holder(task, address, nbytes)
            elif task is None or task.worker is not self.workers[address]:
                # One that is to compute it now would take this for the end of that.
                self._send(address, "free", key=key)
        return self._settle()

    # Events from clients

    def add_client(self, client: str) -> list[Message]:
        self.clients[client] = set()
        return []

    def remove_client(self, client: str) -> list[Message]:
        messages = self.release(client, [task.key for task in self.clients[client]])
        del self.clients[client]
        return messages

    def submit(
        self, client: str, tasks: Mapping[str, tuple[Any, Iterable[str]]], wanted: Iterable[str]
    ) -> list[Message]:
        """Take a graph: key → what to run, and the keys of its dependencies."""
        new = [key for key in tasks if key not in self.tasks]
        for key in new:
            self.tasks[key] = Task(key, tasks[key][0], next(self._counter))
        for key in new:
            for dependency in tasks[key][1]:
                self._depend(self.tasks[key], dependency)
        for key in wanted:
            task = self.tasks[key]
            task.wanted_by.add(client)
            self.clients[client].add(task)
            self._report(task, client)
        self._todo.extend(self.tasks[key] for key in [*new, *wanted])
        return self._settle()

    def scattered(self, client: str, key: str, address: str, nbytes: int) -> list[Message]:
        task = self.tasks.setdefault(key, Task(key, None, next(self._counter)))
        task.wanted_by.add(client)
        self.clients[client].add(task)
        if address in self.workers:
            self._add_holder(task, address, nbytes)
            self._move(task, "memory")
        self._todo.append(task)
        return self._settle()

    def missing(self, client: str, key: str, address: str) -> list[Message]:
        """A client could not get a result from a worker that was said to have it."""
        self._forsake(key, address)
        messages = self._settle()
        if (task := self.tasks.get(key)) is not None:
            self._report(task, client)
        return messages + self._settle()

    def release(self, client: str, keys: Iterable[str]) -> list[Message]:
        for task in filter(None, map(self.tasks.get, keys)):
            task.wanted_by.discard(client)
            self.clients[client].discard(task)
            self._todo.append(task)
        return self._settle()

    def cancel(self, client: str, keys: Iterable[str]) -> list[Message]:
        """Forget tasks and what depends on them, unless another client wants any of it."""
        for task in list(filter(None, map(self.tasks.get, keys))):
            found, unseen = {task}, [task]
            while unseen:
                dependents = unseen.pop().dependents - found
                found |= dependents
                unseen += dependents
            others_want_it = any(t.wanted_by - {client} for t in found)
            for wanted in [task] if others_want_it else found:
                if client in wanted.wanted_by:
                    self._send(client, "cancelled", key=wanted.key)
                    wanted.wanted_by.discard(client)
                    self.clients[client].discard(wanted)
            self._todo.extend(found)
        return self._settle()

    # What follows

    def _settle(self) -> list[Message]:
        """Look at all that an event concerns until nothing follows; return what is to be sent."""
        while True:
            while self._todo:
                self._look_at(self._todo.popleft())
            if not self.queue or not self._have_room():
                break
            task = self.tasks.get(heapq.heappop(self.queue)[1])
            if task is not None and task.state == "queued":
                self._move(task, "processing")
        messages, self._messages = self._messages, []
        return messages

    def _look_at(self, task: Task) -> None:
        """Move a task to the state that it should have, where that is another one."""
        if self.tasks.get(task.key) is not task:
            return
        if not task.wanted_by and not task.waiters:
            if task.state != "erred":
                self._move(task, "released")
            if not task.dependents:
                del self.tasks[task.key]
                for dependency in task.dependencies:
                    dependency.dependents.discard(task)
                    self._todo.append(dependency)
        elif task.error is not None and task.state in ("released", "waiting", "queued"):
            self._move(task, "erred")
        elif task.state == "released":
            self._move(task, "waiting")
        elif task.state == "waiting" and not task.waiting_on:
            self._move(task, "processing" if self._have_room() else "queued")
        elif task.state == "queued" and task.waiting_on:
            self._move(task, "waiting")

    def _move(self, task: Task, state: str) -> None:
        """Change the state of a task, and note whom that concerns."""
        old, task.state = task.state, state
        if old == state:
            return
        if old == "processing" and (worker := task.worker) is not None:
            task.worker = None
            worker.processing.discard(task)
            worker.occupancy = worker.occupancy - task.cost if worker.processing else 0
            if state == "released":
                self._send(worker.address, "free", key=task.key)
        elif old == "memory":
            for holder in task.holders:
                self.workers[holder].has.discard(task)
                self._send(holder, "free", key=task.key)
            task.holders.clear()
            for client in task.wanted_by:
                self._send(client, "pending", key=task.key)
            for waiter in task.waiters:
                waiter.waiting_on.add(task)
                self._todo.append(waiter)

        if (old in ACTIVE) != (state in ACTIVE):
            for dependency in task.dependencies:
                if state in ACTIVE:
                    dependency.waiters.add(task)
                else:
                    dependency.waiters.discard(task)
                self._todo.append(dependency)

        if state == "waiting":
            task.waiting_on = {d for d in task.dependencies if d.state != "memory"}
            errors = [d.error for d in task.dependencies if d.state == "erred"]
            task.error = errors[0] if errors else None
            if task.run is None:
                text = f"the workers that had {task.key!r} are gone, and it was scattered"
                task.error = error_message(LostData(text))
        elif state == "queued":
            heapq.heappush(self.queue, (task.priority, task.key))
        elif state == "processing":
            self._start(task)
        elif state == "memory":
            for waiter in task.waiters:
                waiter.waiting_on.discard(task)
                self._todo.append(waiter)
        elif state == "erred":
            for dependent in task.waiters:
                if dependent.state != "processing":
                    dependent.error = task.error
                    self._todo.append(dependent)
        for client in task.wanted_by:
            self._report(task, client)
        self._todo.append(task)

    def _start(self, task: Task) -> None:
        """Give a task to the worker that will be done with it first."""

        def done_after(worker: Worker) -> tuple[float, int]:
            absent = sum(d.nbytes for d in task.dependencies if worker.address not in d.holders)
            return worker.occupancy / worker.nthreads + absent / BANDWIDTH, len(worker.has)

        worker = min(filter(_has_room, self.workers.values()), key=done_after)
        task.worker, task.attempt = worker, next(self._counter)
        task.cost = self.durations.get(_function(task.key), UNKNOWN_DURATION)
        worker.processing.add(task)
        worker.occupancy += task.cost
        holders = {d.key: list(d.holders) for d in task.dependencies}
        self._send(
            worker.address,
            "compute",
            key=task.key,
            attempt=task.attempt,
            run=task.run,
            holders=holders,
        )

    def _have_room(self) -> bool:
        return any(map(_has_room, self.workers.values()))

    def _current(self, address: str, key: str, attempt: int) -> Task | None:
        """The task that a worker reports on, unless it was taken away from it meanwhile."""
        task = self.tasks.get(key)
        if task is None or task.state != "processing" or task.attempt != attempt:
            return None
        return task

    def _add_holder(self, task: Task, address: str, nbytes: int) -> None:
        task.holders.add(address)
        task.nbytes = nbytes
        self.workers[address].has.add(task)

    def _drop(self, task: Task, address: str) -> None:
        """A worker has the result no more."""
        task.holders.discard(address)
        if task.state == "memory" and not task.holders:
            self._move(task, "released")

    def _forsake(self, key: str, address: str) -> None:
        """A worker could not be asked for a result; if it has it all the same, let it go."""
        task = self.tasks.get(key)
        if task is not None and address in task.holders:
            self.workers[address].has.discard(task)
            self._send(address, "free", key=key)
            self._drop(task, address)

    def _depend(self, task: Task, key: str) -> None:
        dependency = self.tasks.get(key)
        if dependency is None:
            text = f"{task.key!r} depends on {key!r}, which was released or cancelled"
            dependency = self.tasks[key] = Task(key, None, next(self._counter), state="erred")
            dependency.error = error_message(LostData(text))
        task.dependencies.add(dependency)
        dependency.dependents.add(task)

    def _report(self, task: Task, client: str) -> None:
        if task.state == "memory":
            self._send(client, "finished", key=task.key, workers=list(task.holders))
        elif task.state == "erred":
            self._send(client, "erred", key=task.key, error=task.error)

    def _send(self, to: str, op: str, **message: Any) -> None:
        if to in self.workers or to in self.clients:
            self._messages.append((to, {"op": op, **message}))


def _has_room(worker: Worker) -> bool:
    return len(worker.processing) < SATURATION * worker.nthreads


def _function(key: str) -> str:
    return key.partition("-")[0]
