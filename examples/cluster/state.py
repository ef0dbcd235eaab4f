"""The scheduler's state and decisions, without I/O.

Events are methods that only record what has happened.  After one or more events, `settle` assigns
and frees the tasks that they concern, whatever the number of all tasks, and returns the messages to
send, each with its receiver (the address of a worker or the id of a client).  Functions and
arguments are never unpickled here.

A task is running while it has a `worker` and an `attempt`, and finished while it has only a
`worker`, which holds its result.  It is needed if a client wants it, or if a task that is needed
and not finished depends on it.  A task that is not needed is taken from its worker.  The scheduler
remembers it as long as a known task depends on it, in case the result of that one is lost.
"""

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Any

from distributed.core import error_message

SATURATION = 2  # maximum number of tasks per thread of a worker: one runs, one is ready to start;
QUEUE = 0.005  # but it gets more while they are expected to take less than these seconds per thread
MINIMUM_DURATION = 0.001  # seconds assumed for a task that takes less
UNKNOWN_DURATION = 0.1  # seconds assumed for a function that has not run yet
BANDWIDTH = 100e6  # bytes per second assumed between workers, to weigh transfer against waiting
ALLOWED_FAILURES = 3  # per task: maximum number of workers that die, and of failed fetches


class KilledWorker(Exception):
    """Too many workers died while they ran this task."""


class LostData(Exception):
    """Data is lost, or cannot be fetched, and cannot be computed again."""


@dataclass(eq=False, slots=True)
class WorkerState:
    address: str
    nthreads: int
    running: dict["Task", float] = field(default_factory=dict)  # task → expected seconds
    results: set["Task"] = field(default_factory=set)  # the tasks whose results it has

    def has_room(self) -> bool:
        tasks, seconds = len(self.running), sum(self.running.values())
        return tasks < SATURATION * self.nthreads or seconds < QUEUE * self.nthreads

    def start_delay(self, task: "Task") -> float:
        """Estimate the seconds until this worker can start a task with all its inputs."""
        absent = sum(needed.nbytes for needed in task.dependencies if needed.worker is not self)
        return sum(self.running.values()) / self.nthreads + absent / BANDWIDTH


@dataclass(eq=False, slots=True)
class Task:
    key: str
    number: int  # higher than those of the tasks that it depends on
    run: Any  # function and arguments, serialized; None if no longer known
    dependencies: list["Task"]
    dependents: set["Task"] = field(default_factory=set)  # known tasks that depend on it
    unfinished: int = 0  # number of its dependencies that are not reported as finished
    needers: int = 0  # number of its dependents that are needed and not finished
    is_needer: int = 0  # 1 if its dependencies count it among their needers, else 0
    scattered: bool = False  # True if it returns data of a client, which exists nowhere else
    wanted_by: dict[str, str] = field(default_factory=dict)  # client → mark of its future
    reported: str = "pending"  # its last status that these clients and its dependents know
    worker: WorkerState | None = None  # the worker that runs it or has its result
    attempt: int = 0  # a unique number while it runs, else 0
    deaths: int = 0  # number of workers that died while they ran it
    failures: int = 0  # number of failed fetches of its result since the last successful one
    failed_at: int = 0  # value of the clock at the last failed fetch
    nbytes: int = 0  # size of its result
    error: Any = None  # an error_message(), or None

    def status(self) -> str:
        if self.error is not None:
            return "erred"
        return "finished" if self.worker is not None and not self.attempt else "pending"

    def waits(self) -> bool:  # for a worker
        return bool(self.is_needer) and self.worker is None and not self.unfinished


class ClusterState:
    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}  # by key, each after the tasks that it depends on
        self.workers: dict[str, WorkerState] = {}  # by address
        self.durations: dict[str, float] = {}  # key up to "-" (the function) → seconds it took last
        self.clock = itertools.count(1)  # orders attempts and failures
        self._changed: list[tuple[int, Task]] = []  # a heap of tasks to review, the last first
        self._ready: list[tuple[int, Task]] = []  # a heap: those that wait for a worker, and others
        self._messages: list[tuple[str, dict[str, Any]]] = []  # (receiver, message), not sent yet

    def add_worker(self, address: str, nthreads: int) -> None:
        self.workers[address] = WorkerState(address, nthreads)

    def remove_worker(self, address: str, blame: bool = True) -> None:
        """Take all tasks from a worker; if it died, blame those that may have been running."""
        worker = self.workers.pop(address, WorkerState(address, 0))
        started = list(worker.running)[: worker.nthreads]
        for task in [*worker.running, *worker.results]:
            self._take_away(task)
            task.deaths += blame and task in started
            if task.deaths > ALLOWED_FAILURES:
                text = f"{task.deaths} workers died while they had {task.key!r}; last: {address}"
                task.error = error_message(KilledWorker(text))

    def ended(self, address: str, key: str, attempt: int, **outcome: Any) -> None:
        """Record the outcome of a task, unless the task was taken from this worker in between."""
        task = self.tasks.get(key)
        if task is not None and task.worker is not None and task.attempt == attempt:
            if "nbytes" not in outcome:
                self._take_away(task)
                task.error = outcome.get("error")
                self.missing(address, outcome.get("missing", {}), attempt)
                return
            del task.worker.running[task]
            task.worker.results.add(task)
            task.attempt, task.nbytes = 0, outcome["nbytes"]
            self._mark(task)
            task.run = None if task.scattered else task.run
            for needed in task.dependencies:
                needed.failures = 0 if needed.worker is not task.worker else needed.failures
            if "-" in key:
                self.durations[key.split("-")[0]] = outcome["duration"]

    def missing(self, name: str, holders: dict[str, str], attempt: int) -> None:
        """Record that an attempt could not fetch results from the workers that hold them."""
        for key, address in holders.items() & self.holders(holders).items():
            task = self.tasks[key]
            if task.failed_at < attempt:  # else this attempt began before a failure already counted
                task.failures, task.failed_at = task.failures + 1, next(self.clock)
                if task.failures > ALLOWED_FAILURES:
                    text = f"the result of {key!r} cannot be fetched: {task.failures} failures"
                    task.error = error_message(LostData(f"{text}; last from {address}"))
                if task.error or not task.scattered:
                    self._take_away(task)

    def submit(
        self, client: str, key: str, run: Any, needs: list[str], scattered: bool, mark: str = ""
    ) -> None:
        """Record that a client wants a task, new or known, that depends on those in *needs*."""
        if not isinstance(key, str):
            raise TypeError(f"a key must be a string, not {key!r}")
        self.release(client, [key])
        if key in self.tasks and not self.tasks[key].wanted_by:
            self._messages = self.settle()  # forgets the old task of that key if it is not needed
        if (task := self.tasks.get(key)) is None:
            dependencies = [self.tasks[name] for name in set(needs) if name in self.tasks]
            run = run if len(dependencies) == len(set(needs)) else None
            task = Task(key, next(self.clock), run, dependencies, scattered=scattered)
            for needed in dependencies:
                needed.dependents.add(task)
                task.unfinished += needed.reported != "finished"
            self.tasks[key] = task
        elif task.reported != "pending":
            self._send(client, "update", task, mark=mark, status=task.reported, error=task.error)
        task.wanted_by[client] = mark
        self._mark(task)

    def release(self, client: str, keys: list[str]) -> None:
        for task in map(self.tasks.get, keys):
            if task is not None and task.wanted_by.pop(client, None) is not None:
                self._mark(task)

    def cancel(self, client: str, key: str) -> None:
        """Release a task and its dependents for this client only, and tell the client so."""
        agenda, found = [self.tasks[key]] if key in self.tasks else [], set()
        while agenda:
            task = agenda.pop()
            found.add(task)
            agenda += task.dependents - found
            if (mark := task.wanted_by.pop(client, None)) is not None:
                self._mark(task)
                self._send(client, "update", task, mark=mark, status="cancelled")

    def settle(self) -> list[tuple[str, dict[str, Any]]]:
        """Assign, free and forget tasks as needed; return the messages to send."""
        while self._changed:  # outputs before their inputs: a task is freed after all that need it
            task = heapq.heappop(self._changed)[1]
            if self.tasks.get(task.key) is task:  # else it is forgotten
                self._review(task)
        if len(self._ready) > 2 * len(self.tasks) + 10:  # most of these wait no longer
            self._ready = sorted({entry for entry in self._ready if entry[1].waits()})
        while self._ready:  # in order of submission
            task = self._ready[0][1]
            if task.waits() and not self._start(task):
                break
            heapq.heappop(self._ready)
        messages, self._messages = self._messages, []
        return messages

    def _review(self, task: Task) -> None:
        """Update what follows from the facts about a task; mark the tasks that this concerns."""
        if task.attempt and task.unfinished:
            self._take_away(task)  # an input was lost, which it may still have to fetch
        if task.status() == "pending" and task.worker is None:
            task.error = next((n.error for n in task.dependencies if n.error), None)
            if task.run is None:
                why = "it was scattered, or a task that it depends on was released or cancelled"
                task.error = error_message(LostData(f"{task.key!r} cannot be computed: {why}"))
        status, needed = task.status(), bool(task.wanted_by or task.needers)
        change = (needed and status == "pending") - task.is_needer
        task.is_needer += change
        forget = not needed and not task.dependents
        if task.waits():
            heapq.heappush(self._ready, (task.number, task))
        if not needed and task.worker is not None:
            self._take_away(task)
        if status != task.reported:
            for dependent in task.dependents:
                dependent.unfinished += (task.reported == "finished") - (status == "finished")
                if status == "erred" or dependent.attempt or not dependent.unfinished:
                    self._mark(dependent)
            task.reported = status
            for client, mark in task.wanted_by.items():
                self._send(client, "update", task, mark=mark, status=status, error=task.error)
        if forget:
            del self.tasks[task.key]
        for required in task.dependencies if forget or change else ():
            required.needers += change
            required.dependents -= {task} if forget else set()
            self._mark(required)

    def _start(self, task: Task) -> bool:
        """Assign a task to the worker that can start it first; return whether a worker had room."""
        if free := [worker for worker in self.workers.values() if worker.has_room()]:
            worker = min(free, key=lambda worker: worker.start_delay(task))
            duration = self.durations.get(task.key.split("-")[0], UNKNOWN_DURATION)
            worker.running[task] = max(duration, MINIMUM_DURATION)
            task.worker, task.attempt = worker, next(self.clock)
            what = {"attempt": task.attempt, "run": task.run}
            inputs = self.holders([needed.key for needed in task.dependencies])
            self._send(worker.address, "compute", task, **what, holders=inputs)
            self.workers[worker.address] = self.workers.pop(worker.address)  # round robin on a tie
        return bool(free)

    def _take_away(self, task: Task) -> None:
        """Make the worker that runs a task or has its result forget it."""
        worker, task.worker = task.worker, None
        assert worker is not None
        worker.running.pop(task, None)
        worker.results.discard(task)
        task.attempt = 0
        self._mark(task)
        self._send(worker.address, "free", task)

    def _mark(self, task: Task) -> None:
        """Let settle() review a task."""
        heapq.heappush(self._changed, (-task.number, task))

    def _send(self, to: str, op: str, task: Task, **message: Any) -> None:
        self._messages.append((to, {"op": op, "key": task.key, **message}))

    def holders(self, keys: Any) -> dict[str, str]:
        """Return the address of the worker that has the result, for each key that is finished."""
        tasks = [self.tasks[key] for key in keys if key in self.tasks]
        return {t.key: t.worker.address for t in tasks if t.worker and t.status() == "finished"}
