"""The cluster of ``examples/cluster`` loses nothing, whatever happens in whatever order."""

from __future__ import annotations

import os
import random
import signal
from functools import partial

import pytest

from distributed.tests.clusters import cluster
from distributed.utils_test import async_poll_for, gen_test

from cluster.state import ACTIVE, ClusterState  # isort: skip

LAYERS, WIDTH = 20, 50


def graph(chance):
    """A thousand tasks in layers, each with three inputs from the layer before."""
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
        count = scheduler.stream_handlers["finished"]

        def counted(**message):
            nonlocal finished
            finished += 1
            count(**message)

        scheduler.stream_handlers["finished"] = counted
        futures = {}
        for name, inputs in needs.items():
            futures[name] = client.submit(
                compute, hash(name) % 1000, *(futures[i] for i in inputs), key=str(name)
            )
        last = {name: futures[name] for name in futures if name[0] == LAYERS - 1}
        del futures

        killed = []

        def alive():
            return {nanny.process.pid for nanny in scheduler.nannies}.difference(killed)

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
    """Workers and a client that answer a `ClusterState`, out of step with it as over a network."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.state = ClusterState()
        self.inboxes, self.data, self.jobs, self.reports = {}, {}, {}, {}
        self.known = {}
        self.numbers = iter(range(10**6))
        self.state.add_client("client")
        self.inboxes["client"] = []

    def deliver(self, messages):
        for to, message in messages:
            self.inboxes[to].append(message)
        self.check()

    def come(self):
        address = f"worker-{next(self.numbers)}"
        self.inboxes[address], self.data[address] = [], set()
        self.jobs[address], self.reports[address] = {}, []
        self.deliver(self.state.add_worker(address, 1))

    def go(self, address):
        for table in (self.inboxes, self.data, self.jobs, self.reports):
            del table[address]
        self.deliver(self.state.remove_worker(address, blame=False))

    def step(self):
        """One thing happens: a message is read, a task ends, a report arrives."""
        kind, who = self.chance.choice(
            [("read", who) for who in self.inboxes if self.inboxes[who]]
            + [("work", who) for who in self.jobs if self.jobs[who]]
            + [("tell", who) for who in self.reports if self.reports[who]]
        )
        if kind == "tell":
            event, *args = self.reports[who].pop(0)
            self.deliver(getattr(self.state, event)(who, *args))
        elif kind == "work":
            self.work(who, *self.jobs[who].popitem())
        elif who == "client":
            message = self.inboxes[who].pop(0)
            if message["op"] != "worker-gone":
                self.known[message["key"]] = message["op"]
        else:
            message = self.inboxes[who].pop(0)
            if message["op"] == "compute":
                self.jobs[who][message["key"]] = message["attempt"], message["holders"]
            elif message["op"] == "free":
                self.data[who].discard(message["key"])
                self.jobs[who].pop(message["key"], None)

    def work(self, who, key, job):
        attempt, holders = job
        missing = {
            name: (addresses or [who])[0]
            for name, addresses in holders.items()
            if name not in self.data[who] and name not in self.data.get(addresses[0], ())
        }
        if missing:
            self.reports[who].append(("reschedule", key, attempt, missing))
        else:
            fetched = holders.keys() - self.data[who]
            self.data[who] |= {key, *fetched}
            self.reports[who].append(("replicated", dict.fromkeys(fetched, 1)))
            self.reports[who].append(("finished", key, attempt, 1, 0.1))

    def check(self):
        """What the comments in `cluster.state` promise."""
        state = self.state
        for task in state.tasks.values():
            assert bool(task.holders) == (task.state == "memory")
            assert (task.worker is not None) == (task.state == "processing")
            assert task.waiters == {t for t in task.dependents if t.state in ACTIVE}
            assert task.wanted_by or task.dependents
            if task.state == "waiting":
                assert task.waiting_on == {t for t in task.dependencies if t.state != "memory"}
                assert task.waiting_on
            if task.state == "released":
                assert not task.waiters
                assert not task.wanted_by
        for worker in state.workers.values():
            assert worker.has == {t for t in state.tasks.values() if worker.address in t.holders}
            assert worker.processing == {t for t in state.tasks.values() if t.worker is worker}


@pytest.mark.parametrize("seed", range(100))
def test_the_scheduler_keeps_its_promises_in_whatever_order_things_happen(seed):
    simulation = Simulation(seed)
    chance, state = simulation.chance, simulation.state
    tasks = {}
    for number in range(40):
        inputs = chance.sample(sorted(tasks), min(len(tasks), chance.randrange(4)))
        tasks[f"{chance.choice('fgh')}-{number}"] = (b"", inputs)
    wanted = chance.sample(sorted(tasks), 10)
    simulation.come()
    simulation.deliver(state.submit("client", tasks, wanted))
    for _ in range(200):
        if chance.random() < 0.05:
            simulation.come()
        if chance.random() < 0.05 and state.workers:
            simulation.go(chance.choice(sorted(state.workers)))
        if any(simulation.inboxes.values()) or any(simulation.jobs.values()):
            simulation.step()
    given_up = wanted[:2]
    simulation.deliver(state.cancel("client", given_up))
    simulation.come()
    while any(
        map(any, (t.values() for t in (simulation.inboxes, simulation.jobs, simulation.reports)))
    ):
        simulation.step()
    for key in wanted:
        if simulation.known.get(key) != "cancelled":
            assert simulation.known[key] == "finished"
            assert state.tasks[key].state == "memory"
    assert {simulation.known.get(key) for key in given_up} == {"cancelled"}
    simulation.deliver(state.remove_client("client"))
    assert not state.tasks
