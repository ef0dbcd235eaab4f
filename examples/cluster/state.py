"""What the scheduler knows and what follows from it, without I/O.

Events are methods that take note of what has happened and no more.  After one or several of them,
`settle` looks at all tasks, moves what is not where it should be, and returns what is to be sent:
to whom (a worker's address or a client's id) and what.  What tasks consist of is never unpickled.

A task runs while a `worker` is at an `attempt` at it, and is finished when that has the result.
It is needed if a client wants it, or if one depends on it that is needed and not finished.  What is
not needed is taken from its worker, and forgotten unless others depend on it: if the result of one
of those is lost, it is needed, and computed, again.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

from distributed.core import error_message

SATURATION = 2  # tasks per thread that a worker is given: one runs, and the next is at hand
UNKNOWN_DURATION = 0.1  # seconds; what a function takes that never ran
BANDWIDTH = 100e6  # bytes per second between workers, to weigh moving data against waiting
ALLOWED_FAILURES = 3  # deaths of workers with a task, and again failures to fetch its result


class KilledWorker(Exception):
    """Too many workers died while they had this task."""


class LostData(Exception):
    """Data is gone, or cannot be fetched, and computing it again does not help."""


@dataclass(eq=False, slots=True)
class WorkerState:
    address: str
    nthreads: int
    running: dict["Task", float] = field(default_factory=dict)  # task → seconds that it may take

    def done_after(self, task: "Task") -> float:
        absent = sum(needed.nbytes for needed in task.dependencies if needed.worker is not self)
        return sum(self.running.values()) / self.nthreads + absent / BANDWIDTH


@dataclass(eq=False, slots=True)
class Task:
    key: str
    run: Any  # what the worker is to do, serialized; None if that is not known any more
    dependencies: list["Task"]
    scattered: bool = False
    wanted_by: dict[str, str] = field(default_factory=dict)  # client → mark of its future
    told: str = "nothing"  # the status that these know
    worker: WorkerState | None = None  # runs it, or has its result
    attempt: int = 0  # while it runs, a number that no other run of it has
    deaths: int = 0
    failures: int = 0  # to get its result, and the moment of the last one
    failed_at: int = 0
    nbytes: int = 0
    error: Any = None

    def status(self) -> str:
        if self.error is not None:
            return "erred"
        return "finished" if self.worker is not None and not self.attempt else "pending"

    def can_run(self) -> bool:
        return all(needed.status() == "finished" for needed in self.dependencies)


class ClusterState:
    # State: tasks, each after those that it depends on; workers; how long functions (what keys
    # begin with) took last; a clock that numbers attempts; and messages that are yet to be sent.
    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.workers: dict[str, WorkerState] = {}
        self.durations: dict[str, float] = {}
        self.clock = itertools.count(1)
        self._messages: list[tuple[str, dict[str, Any]]] = []

    def add_worker(self, address: str, nthreads: int) -> None:
        self.workers[address] = WorkerState(address, nthreads)

    def remove_worker(self, address: str, blame: bool = True) -> None:
        """Take away what a worker had; if it died, one of the tasks that ran is to blame."""
        worker = self.workers.pop(address, None)
        started = list(worker.running)[: worker.nthreads] if worker else []
        for task in [task for task in self.tasks.values() if worker and task.worker is worker]:
            self._take_away(task)
            task.deaths += blame and task in started
            if task.deaths > ALLOWED_FAILURES:
                text = f"{task.deaths} workers died while they had {task.key!r}; last: {address}"
                task.error = error_message(KilledWorker(text))

    def ended(self, address: str, key: str, attempt: int, **outcome: Any) -> None:
        """A worker has run a task; if that was taken from it meanwhile, never mind."""
        task = self.tasks.get(key)
        if task is not None and task.worker is not None and task.attempt == attempt:
            if "nbytes" not in outcome:
                self._take_away(task)
                task.error = outcome.get("error")
                self.missing(address, outcome.get("missing", {}), attempt)
                return
            del task.worker.running[task]
            task.attempt, task.nbytes = 0, outcome["nbytes"]
            task.run = None if task.scattered else task.run
            for needed in task.dependencies:
                needed.failures = 0 if needed.worker is not task.worker else needed.failures
            if "-" in key:
                self.durations[key.split("-")[0]] = outcome["duration"]

    def missing(self, name: str, holders: dict[str, str], attempt: int) -> None:
        """At an attempt, results were not to be had from the workers that should have them."""
        for key, address in holders.items() & self.holders(holders).items():
            task = self.tasks[key]
            if task.failed_at < attempt:  # else it is known
                task.failures, task.failed_at = task.failures + 1, next(self.clock)
                if task.failures > ALLOWED_FAILURES:
                    text = f"the result of {key!r} cannot be fetched: {task.failures} failures"
                    task.error = error_message(LostData(f"{text}; last from {address}"))
                if task.error or not task.scattered:
                    self._take_away(task)

    def submit(
        self, client: str, key: str, run: Any, needs: list[str], scattered: bool, mark: str = ""
    ) -> None:
        """A client wants a task, new or known, that needs the results of others, from now on."""
        if not isinstance(key, str):
            raise TypeError(f"a key is a string, not {key!r}")
        self.release(client, [key])
        if key in self.tasks and not self.tasks[key].wanted_by:
            self._messages = self.settle()  # it may be forgotten, and another one of that name
        if (task := self.tasks.get(key)) is None:
            dependencies = [self.tasks[needed] for needed in needs if needed in self.tasks]
            run = run if len(dependencies) == len(needs) else None
            task = self.tasks[key] = Task(key, run, dependencies, scattered)
        task.wanted_by[client] = mark
        task.told = "nothing"

    def release(self, client: str, keys: list[str]) -> None:
        for key in self.tasks.keys() & set(keys):
            self.tasks[key].wanted_by.pop(client, None)

    def cancel(self, client: str, key: str) -> None:
        """Release a task and what depends on it, and tell so; other clients do get theirs."""
        cancelled: set[Task] = set()
        for task in self.tasks.values():
            if task.key == key or not cancelled.isdisjoint(task.dependencies):
                cancelled.add(task)
                if (mark := task.wanted_by.pop(client, None)) is not None:
                    self._send(client, "update", key=task.key, mark=mark, status="cancelled")

    def settle(self) -> list[tuple[str, dict[str, Any]]]:
        """Move what is not where it should be; return what is to be sent."""
        tasks = list(self.tasks.values())
        for task in tasks:  # from inputs to what is made of them: errors, and what was lost
            if task.attempt and not task.can_run():
                self._take_away(task)  # it may be about to fetch what was lost
            if task.status() == "pending" and task.worker is None:
                task.error = next((n.error for n in task.dependencies if n.error), None)
                if task.run is None:
                    why = "it was scattered, or what it depends on was released or cancelled before"
                    task.error = error_message(LostData(f"{task.key!r} cannot be computed: {why}"))

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
                news = {"key": task.key, "status": status, "error": task.error}
                for client, mark in task.wanted_by.items():
                    self._send(client, "update", mark=mark, **news)

        for task in reversed(waiting):  # what was submitted first comes first
            if task.worker is None and task.can_run() and not self._start(task):
                break
        messages, self._messages = self._messages, []
        return messages

    def _start(self, task: Task) -> bool:
        """Give a task to the worker that is done with it first, if one has room; tell whether."""
        if free := [w for w in self.workers.values() if len(w.running) < SATURATION * w.nthreads]:
            worker = min(free, key=lambda worker: worker.done_after(task))
            worker.running[task] = self.durations.get(task.key.split("-")[0], UNKNOWN_DURATION)
            task.worker, task.attempt = worker, next(self.clock)
            what = {"key": task.key, "attempt": task.attempt, "run": task.run}
            inputs = self.holders([needed.key for needed in task.dependencies])
            self._send(worker.address, "compute", **what, holders=inputs)
            self.workers[worker.address] = self.workers.pop(worker.address)  # equals take turns
        return bool(free)

    def _take_away(self, task: Task) -> None:
        """Have a worker, if it is there yet, forget a task that it runs or whose result it has."""
        worker, task.worker, task.attempt = task.worker, None, 0
        assert worker is not None
        worker.running.pop(task, None)
        self._send(worker.address, "free", key=task.key)

    def _send(self, to: str, op: str, **message: Any) -> None:
        self._messages.append((to, {"op": op, **message}))

    def holders(self, keys: Any) -> dict[str, str]:
        """Which worker has the result of each of these tasks that is finished: key → address."""
        tasks = [self.tasks[key] for key in keys if key in self.tasks]
        return {t.key: t.worker.address for t in tasks if t.worker and t.status() == "finished"}
