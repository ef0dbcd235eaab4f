"""The cluster of ``examples/cluster`` loses no task when workers die and messages cross."""

from __future__ import annotations

import os
import random
import signal
import sys
from functools import partial

import pytest

from distributed.tests.clusters import cluster
from distributed.utils_test import async_poll_for, gen_test

from cluster.state import SATURATION, ClusterState  # isort: skip

LAYERS, WIDTH = 20, 50


def graph(chance):
    """Return the inputs of a thousand tasks in layers, three each from the layer before."""
    needs = {(0, i): [] for i in range(WIDTH)}
    for layer in range(1, LAYERS):
        for i in range(WIDTH):
            needs[layer, i] = [(layer - 1, j) for j in chance.sample(range(WIDTH), 3)]
    return needs


@gen_test(timeout=60)
async def test_a_thousand_dependent_tasks_survive_workers_that_are_killed_at_random():
    chance = random.Random(20261123)
    needs = graph(chance)
    expected = {}
    for name, inputs in needs.items():
        expected[name] = hash(name) % 1000 + sum(expected[i] for i in inputs) % 1000

    def compute(start, *inputs):
        return start + sum(inputs) % 1000

    async with cluster(4, nthreads=2) as (scheduler, client):
        finished = 0
        count = scheduler.stream_handlers["ended"]

        def counted(**message):
            nonlocal finished
            finished += "error" not in message
            count(**message)

        scheduler.stream_handlers["ended"] = counted
        futures = {}
        for name, inputs in needs.items():
            futures[name] = client.submit(
                compute, hash(name) % 1000, *(futures[i] for i in inputs), key=str(name)
            )
        last = {name: futures[name] for name in futures if name[0] == LAYERS - 1}
        del futures

        killed = []

        def alive():
            return {nanny.child.pid for nanny in scheduler.nannies}.difference(killed)

        def ready_for_another(threshold):
            return finished >= threshold and len(scheduler.state.workers) >= 2 and alive()

        for threshold in range(60, 1000, 80):
            await async_poll_for(partial(ready_for_another, threshold), timeout=30)
            killed.append(chance.choice(sorted(alive())))
            os.kill(killed[-1], signal.SIGKILL)
        assert await client.gather(last) == {name: expected[name] for name in last}
        assert finished > 1000
        assert len(killed) == 12


class Simulation:
    """Workers and a client of a `ClusterState`, with messages delayed as on a network."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.state = ClusterState()
        # Gets the same events, and reviews all tasks each time.
        self.reference = ClusterState()
        self.inboxes = {"client": []}  # peer → messages that it has not read
        self.data = {}  # worker → key → the run that gave the result
        self.jobs = {}  # worker → key → (attempt, run, holders)
        self.reports = {}  # worker → messages that the scheduler has not read
        self.known = {}  # key → status that the client has read
        self.marks, self.runs = {}, {}  # of the last submission of each key
        self.numbers = iter(range(10**6))

    def event(self, name, *args, **kwargs):
        """Pass an event to the state, which settles at once or with the next event."""
        getattr(self.state, name)(*args, **kwargs)
        getattr(self.reference, name)(*args, **kwargs)
        if self.chance.random() < 0.7:
            self.settle()

    def submit(self, key, inputs):
        """Submit a key for the client, with a different run each time."""
        mark = self.marks[key] = f"mark-{next(self.numbers)}"
        self.runs[key] = f"run-{next(self.numbers)}"
        self.known.pop(key, None)
        self.event("submit", "client", key, self.runs[key], inputs, False, mark)

    def settle(self):
        messages = self.state.settle()
        for task in self.reference.tasks.values():
            self.reference._mark(task)
        assert sorted(map(repr, messages)) == sorted(map(repr, self.reference.settle()))
        for to, message in messages:
            if to in self.inboxes:
                self.inboxes[to].append(message)
        self.check()

    def add_worker(self):
        address = f"worker-{next(self.numbers)}"
        self.inboxes[address], self.data[address] = [], {}
        self.jobs[address], self.reports[address] = {}, []
        self.event("add_worker", address, 1)

    def remove_worker(self, address):
        for table in (self.inboxes, self.data, self.jobs, self.reports):
            del table[address]
        self.event("remove_worker", address, blame=False)

    def step(self):
        """Let one thing happen: a message is read, a task ends, or a report arrives."""
        kind, peer = self.chance.choice(
            [("read", peer) for peer in self.inboxes if self.inboxes[peer]]
            + [("work", peer) for peer in self.jobs if self.jobs[peer]]
            + [("report", peer) for peer in self.reports if self.reports[peer]]
        )
        if kind == "report":
            self.event("ended", peer, **self.reports[peer].pop(0))
        elif kind == "work":
            self.work(peer, *self.jobs[peer].popitem())
        elif peer == "client":
            message = self.inboxes[peer].pop(0)
            if message["mark"] == self.marks[message["key"]]:
                self.known[message["key"]] = message["status"]
        else:
            message = self.inboxes[peer].pop(0)
            if message["op"] == "compute":
                job = message["attempt"], message["run"], message["holders"]
                self.jobs[peer][message["key"]] = job
            elif message["op"] == "free":
                self.data[peer].pop(message["key"], None)
                self.jobs[peer].pop(message["key"], None)

    def work(self, peer, key, job):
        attempt, run, holders = job
        missing = {
            name: address
            for name, address in holders.items()
            if name not in self.data[peer] and name not in self.data.get(address, ())
        }
        if not missing:
            self.data[peer][key] = run
        outcome = {"missing": missing} if missing else {"nbytes": 1, "duration": 0.1}
        self.reports[peer].append({"key": key, "attempt": attempt, **outcome})

    def check(self):
        """Check the invariants of `cluster.state` after it has settled."""
        state = self.state
        tasks = list(state.tasks.values())
        needed = {t for t in tasks if t.wanted_by}
        known = set()
        for task in reversed(tasks):
            if task in needed and task.status() == "pending":
                needed.update(task.dependencies)
            known.update(task.dependencies)
        for task in tasks:
            assert task in needed or task in known
            assert task in needed or task.worker is None
            assert all(state.tasks[t.key] is t for t in task.dependencies)
            assert task.worker is None or state.workers[task.worker.address] is task.worker
            if task.attempt:
                assert task.status() == "pending"
                assert not task.unfinished
            if task.status() == "finished" and task.worker.address in self.data:
                assert self.data[task.worker.address][task.key] == task.run
        for worker in state.workers.values():
            running = {t for t in tasks if t.worker is worker and t.attempt}
            assert worker.running.keys() == running
            assert len(running) <= SATURATION * worker.nthreads
            if len(running) < SATURATION * worker.nthreads:
                waiting = {t for t in needed if t.status() == "pending" and t.worker is None}
                assert not any(not t.unfinished for t in waiting)


@pytest.mark.parametrize("seed", range(100))
def test_all_wanted_tasks_finish_whatever_the_order_of_events(seed):
    simulation = Simulation(seed)
    chance, state = simulation.chance, simulation.state
    tasks = {}
    for number in range(40):
        inputs = chance.sample(sorted(tasks), min(len(tasks), chance.randrange(4)))
        tasks[f"{chance.choice('fgh')}-{number}"] = inputs
    wanted = chance.sample(sorted(tasks), 10)
    # Tasks that no other depends on are submitted repeatedly, with the same inputs.
    leaves = {f"leaf-{number}": chance.sample(wanted, number) for number in range(4)}
    tasks |= leaves
    wanted += leaves
    simulation.add_worker()
    for key, inputs in tasks.items():
        simulation.submit(key, inputs)
    for key in sorted(tasks.keys() - wanted):
        simulation.event("release", "client", [key])
    for _ in range(200):
        if chance.random() < 0.05:
            simulation.add_worker()
        if chance.random() < 0.05 and state.workers:
            simulation.remove_worker(chance.choice(sorted(state.workers)))
        if chance.random() < 0.1:
            key = chance.choice(list(leaves))
            simulation.event(
                *chance.choice([("release", "client", [key]), ("cancel", "client", key)])
            )
            simulation.submit(key, tasks[key])
        if any(simulation.inboxes.values()) or any(simulation.jobs.values()):
            simulation.step()
    given_up = wanted[:2]
    for key in given_up:
        simulation.event("cancel", "client", key)
    simulation.add_worker()
    simulation.settle()
    while any(
        map(any, (t.values() for t in (simulation.inboxes, simulation.jobs, simulation.reports)))
    ):
        simulation.step()
        simulation.settle()
    for key in wanted:
        if simulation.known.get(key) != "cancelled":
            assert simulation.known[key] == "finished"
            assert state.tasks[key].status() == "finished"
            assert state.tasks[key].run == simulation.runs[key]
    assert {simulation.known.get(key) for key in given_up} == {"cancelled"}
    simulation.event("release", "client", list(state.tasks))
    simulation.settle()
    assert not state.tasks


def calls_in(function):
    """Return the number of calls, also of builtin functions, that a function makes."""
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(previous)
    return calls


def busy_state(number, inputs=()):
    """Return a state with one worker and a number of tasks that it has no room for."""
    state = ClusterState()
    state.add_worker("worker", 1)
    for key in range(number):
        state.submit("client", f"f-{key}", b"", list(inputs), False)
    state.settle()
    return state


def end(state):
    """Let the oldest task of the worker end, and the scheduler assign others."""
    task = next(iter(state.workers["worker"].running))
    state.ended("worker", task.key, task.attempt, nbytes=1, duration=1)
    state.settle()


def submit_and_release(state):
    state.submit("client", "g-1", b"", [], False)
    state.settle()
    state.release("client", ["g-1"])
    state.settle()


def submit_and_cancel(state):
    state.submit("client", "g-1", b"", [], False)
    state.submit("client", "h-1", b"", ["g-1"], False)
    state.settle()
    state.cancel("client", "g-1")
    state.settle()


def lose_the_worker(state):
    state.remove_worker("worker")
    state.add_worker("worker", 1)
    state.settle()


@pytest.mark.parametrize("event", [end, submit_and_release, submit_and_cancel, lose_the_worker])
def test_the_work_per_event_does_not_depend_on_the_number_of_tasks(event):
    few, many = (calls_in(partial(event, busy_state(number))) for number in (50, 1000))
    assert 0 < many <= few + 10


@pytest.mark.parametrize("number_of_inputs", [0, 1])
def test_the_work_per_task_does_not_depend_on_the_number_of_tasks(number_of_inputs):
    def run(number):
        inputs = [f"f-{key}" for key in range(number_of_inputs)]
        state = busy_state(number_of_inputs)
        for key in range(number):
            state.submit("client", f"g-{key}", b"", inputs, False)
        state.submit("client", "sum", b"", [f"g-{key}" for key in range(number)], False)
        state.settle()
        while state.workers["worker"].running:
            end(state)
        assert state.tasks["sum"].status() == "finished"
        state.release("client", list(state.tasks))
        state.settle()
        assert not state.tasks

    few, many = (calls_in(partial(run, number)) for number in (50, 1000))
    assert many < 1.2 * (1000 / 50) * few


def test_tasks_that_were_cancelled_while_no_worker_was_free_are_forgotten():
    state = busy_state(10)
    for number in range(1000):
        state.submit("client", f"g-{number}", b"", [], False)
        state.settle()
        state.cancel("client", f"g-{number}")
        state.settle()
        assert len(state._ready) + len(state._changed) <= 3 * len(state.tasks) + 10


def test_a_worker_gets_more_tasks_while_they_are_short():
    state = busy_state(100)
    worker = state.workers["worker"]
    assert len(worker.running) == SATURATION
    task = next(iter(worker.running))
    state.ended("worker", task.key, task.attempt, nbytes=1, duration=1e-6)
    state.settle()
    # One of them was assigned before the function was known to be short.
    assert len(worker.running) == SATURATION
    task = next(iter(worker.running))
    state.ended("worker", task.key, task.attempt, nbytes=1, duration=1e-6)
    state.settle()
    assert len(worker.running) == 5
