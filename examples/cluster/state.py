"""What the scheduler knows and what follows from it, without I/O.

Events are methods that take note of what has happened and no more.  After one or several of them,
`settle` looks at all tasks, moves what is not where it should be, and returns what is to be sent:
to whom (a worker's address or a client's id) and what.  What tasks consist of is never unpickled.

A task runs while a `worker` is at an `attempt` at it, and is finished when that has the result.
It is needed if a client wants it, or if another one is needed, and is not finished, that depends on
it.  What is not needed is taken from its worker, and forgotten unless others depend on it: if the
result of one of those is lost, it is needed, and computed, again.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed.core import error_message

SATURATION = 2  # tasks per thread that a worker is given: one runs, and the next is at hand
UNKNOWN_DURATION = 0.1  # seconds; what a function takes that never ran
BANDWIDTH = 100e6  # bytes per second between workers, to weigh moving data against waiting
ALLOWED_DEATHS = 3  # workers that may die with a task before that is blamed


class KilledWorker(Exception):
    """Too many workers died while they had this task."""


class LostData(Exception):
    """Data is gone, and nobody knows how to compute it again."""


@dataclass(eq=False, slots=True)
class Worker:
    address: str
    nthreads: int
    running: dict["Task", float] = field(default_factory=dict)  # task → seconds that it may take


@dataclass(eq=False, slots=True)
class Task:
    key: str
    run: Any  # what the worker is to do, serialized; None if that is not known any more
    dependencies: list["Task"]
    scattered: bool = False
    wanted_by: set[str] = field(default_factory=set)  # clients
    told: str = "nothing"  # the status that these know
    worker: Worker | None = None  # runs it, or has its result
    attempt: int = 0  # while it runs, a number that no other run of it has
    deaths: int = 0
    nbytes: int = 0
    error: Mapping[str, Any] | None = None

    def status(self) -> str:
        if self.error is not None:
            return "erred"
        return "finished" if self.worker is not None and not self.attempt else "pending"

    def can_run(self) -> bool:
        return all(needed.status() == "finished" for needed in self.dependencies)


class ClusterState:
    # State: tasks, each after those that it depends on; workers; how long functions (what keys
    # begin with) took last; and messages that are yet to be sent.
    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.workers: dict[str, Worker] = {}
        self.durations: dict[str, float] = {}
        self._attempts = itertools.count(1)
        self._messages: list[tuple[str, dict[str, Any]]] = []

    def add_worker(self, address: str, nthreads: int) -> None:
        self.workers[address] = Worker(address, nthreads)

    def remove_worker(self, address: str, blame: bool = True) -> None:
        """Take away what a worker had; if it died, one of the tasks that it ran may be to blame."""
        worker = self.workers.pop(address, None)
        for key, task in self.tasks.items():
            if worker is not None and task.worker is worker:
                task.deaths += blame and task in worker.running
                self._take_away(task)
                if task.deaths > ALLOWED_DEATHS:
                    text = f"{task.deaths} workers died while they had {key!r}; last: {address}"
                    task.error = error_message(KilledWorker(text))

    def ended(self, address: str, key: str, attempt: int, **outcome: Any) -> None:
        """A worker has run a task; if that was taken from it meanwhile, never mind."""
        task = self.tasks.get(key)
        if task is not None and task.worker is not None and task.attempt == attempt:
            if "error" in outcome:
                self._take_away(task)
                task.error = outcome["error"]
            else:
                del task.worker.running[task]
                task.attempt, task.nbytes = 0, outcome["nbytes"]
                task.run = None if task.scattered else task.run
                self.durations[key.split("-")[0]] = outcome["duration"]

    def missing(self, name: str, holders: Mapping[str, str]) -> None:
        """Results were not to be had from the workers that were said to have them."""
        for key, address in holders.items():
            task, worker = self.tasks.get(key), self.workers.get(address)
            if task is not None and task.status() == "finished" and task.worker is worker:
                self._take_away(task)

    def submit(self, client: str, key: str, run: Any, needs: list[str], scattered: bool) -> None:
        """A client wants a task, new or known, that needs the results of others."""
        if (task := self.tasks.get(key)) is None:
            found = [self.tasks[needed] for needed in needs if needed in self.tasks]
            run = run if len(found) == len(needs) else None
            task = self.tasks[key] = Task(key, run, found, scattered)
        task.wanted_by.add(client)
        task.told = "nothing"

    def release(self, client: str, keys: Iterable[str]) -> None:
        for key in self.tasks.keys() & set(keys):
            self.tasks[key].wanted_by.discard(client)

    def cancel(self, client: str, key: str) -> None:
        """Release a task and what depends on it, and tell so; other clients do get theirs."""
        found: set[Task] = set()
        for task in self.tasks.values():
            if task.key == key or not found.isdisjoint(task.dependencies):
                found.add(task)
                if client in task.wanted_by:
                    task.wanted_by.discard(client)
                    self._send(client, "update", key=task.key, status="cancelled", error=None)

    def settle(self) -> list[tuple[str, dict[str, Any]]]:
        """Move what is not where it should be; return what is to be sent."""
        tasks = list(self.tasks.values())
        for task in tasks:  # from inputs to what is made of them: errors, and what was lost
            if task.status() == "pending":
                self._check_inputs(task)

        needed: set[Task] = set()
        known: set[Task] = set()  # needed, or others that are known depend on them
        waiting: list[Task] = []
        for task in reversed(tasks):  # from what is wanted to its inputs: what is needed
            status = task.status()
            if task.wanted_by or task in needed:
                known.add(task)
                if status == "pending":
                    needed.update(task.dependencies)
                    waiting.append(task)
            elif task.worker is not None:
                self._take_away(task)
            if task in known:
                known.update(task.dependencies)
            else:
                del self.tasks[task.key]
            if status != task.told:
                task.told = status
                for client in task.wanted_by:
                    self._send(client, "update", key=task.key, status=status, error=task.error)

        for task in reversed(waiting):  # what was submitted first comes first
            if task.worker is None and task.can_run() and not self._start(task):
                break
        messages, self._messages = self._messages, []
        return messages

    def _check_inputs(self, task: Task) -> None:
        """See that a pending task can have its inputs."""
        if task.worker is not None and not task.can_run():
            self._take_away(task)  # it may be about to fetch what was lost
        if task.worker is None:
            errors = [needed.error for needed in task.dependencies if needed.error is not None]
            if task.run is None:
                why = "it was scattered, or what it depends on was released or cancelled before"
                errors = [error_message(LostData(f"{task.key!r} cannot be computed: {why}"))]
            task.error = errors[0] if errors else None

    def _start(self, task: Task) -> bool:
        """Give a task to the worker that is done with it first, if one has room; tell whether."""

        def done_after(worker: Worker) -> float:
            absent = sum(needed.nbytes for needed in task.dependencies if needed.worker != worker)
            return sum(worker.running.values()) / worker.nthreads + absent / BANDWIDTH

        if free := [w for w in self.workers.values() if len(w.running) < SATURATION * w.nthreads]:
            worker = min(free, key=done_after)
            worker.running[task] = self.durations.get(task.key.split("-")[0], UNKNOWN_DURATION)
            task.worker, task.attempt = worker, next(self._attempts)
            what = {"key": task.key, "attempt": task.attempt, "run": task.run}
            inputs = self.holders(needed.key for needed in task.dependencies)
            self._send(worker.address, "compute", **what, holders=inputs)
            # Of equals, another one comes first the next time.
            self.workers[worker.address] = self.workers.pop(worker.address)
        return bool(free)

    def _take_away(self, task: Task) -> None:
        """Have a worker, if it is there yet, forget a task that it runs or whose result it has."""
        worker, task.worker, task.attempt = task.worker, None, 0
        assert worker is not None
        worker.running.pop(task, None)
        self._send(worker.address, "free", key=task.key)

    def _send(self, to: str, op: str, **message: Any) -> None:
        self._messages.append((to, {"op": op, **message}))

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        """Which worker has the result of each of these tasks that is finished: key → address."""
        tasks = [self.tasks[key] for key in keys if key in self.tasks]
        return {t.key: t.worker.address for t in tasks if t.worker and t.status() == "finished"}
