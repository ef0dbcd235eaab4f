"""Actors, locks, queues, variables, events, publish/subscribe, plugins, files, and running code."""

from __future__ import annotations

import pytest

from distributed import (
    Event,
    Lock,
    MultiLock,
    NannyPlugin,
    Queue,
    SchedulerPlugin,
    Semaphore,
    Variable,
    WorkerPlugin,
    get_worker,
    wait,
)


class Counter:
    n = 0

    def increment(self):
        self.n += 1
        return self.n

    def fail(self):
        raise ValueError("an actor's error")


def test_an_actor_keeps_its_state(client):
    counter = client.submit(Counter, actor=True).result(timeout=30)
    results = [counter.increment().result() for _ in range(20)]
    assert results == list(range(1, 21))
    assert counter.n == 20  # an attribute of an actor is read remotely
    with pytest.raises(ValueError, match="an actor's error"):
        counter.fail().result()


def test_a_lock_excludes_others(client):
    def critical(name):
        with Lock("the-lock"):
            return name

    assert client.gather(client.map(critical, range(10))) == list(range(10))


def test_other_primitives(client):
    with MultiLock(["a", "b"]):
        pass
    with Semaphore(max_leases=2, name="two"):
        pass
    event = Event("start")
    waiting = client.submit(lambda: Event("start").wait(timeout=20), pure=False)
    event.set()
    assert waiting.result(timeout=30) is True


def test_a_queue_and_a_variable(client):
    queue = Queue("q")
    puts = client.map(lambda x: Queue("q").put(x), range(5), pure=False)
    assert sorted(queue.get(timeout=20) for _ in range(5)) == list(range(5))
    wait(puts, timeout=20)
    wait(puts, timeout=20)
    variable = Variable("v")
    variable.set(client.scatter([{"a": 1}])[0])
    assert variable.get(timeout=20).result(timeout=20) == {"a": 1}


def test_published_data_sets(client):
    client.publish_dataset(numbers=client.scatter({"a": 1}, hash=False)["a"])
    assert client.get_dataset("numbers").result(timeout=20) == 1
    client.unpublish_dataset("numbers")
    assert client.list_datasets() == ()


def test_events_reach_subscribers(client):
    import threading

    seen, arrived = [], threading.Event()

    def handler(event):
        seen.append(event[1])
        arrived.set()

    client.subscribe_topic("topic", handler)
    client.submit(lambda: get_worker().log_event("topic", {"x": 1}), pure=False).result(timeout=20)
    assert arrived.wait(20)
    assert [event["x"] for event in seen] == [1]
    client.unsubscribe_topic("topic")


def test_code_runs_on_workers_and_on_the_scheduler(client):
    assert set(client.run(lambda: 42).values()) == {42}
    names = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.workers))
    assert names == 2
    with pytest.raises(ZeroDivisionError):
        client.run(lambda: 1 / 0)


def test_plugins(client):
    class OnWorker(WorkerPlugin):
        name = "on-worker"

        def setup(self, worker):
            worker.plugin_was_here = True

    class OnScheduler(SchedulerPlugin):
        name = "on-scheduler"

        def start(self, scheduler):
            scheduler.plugin_was_here = True

    client.register_plugin(OnWorker())
    client.register_plugin(OnScheduler())
    assert all(client.run(lambda dask_worker: dask_worker.plugin_was_here).values())
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugin_was_here)
    client.unregister_worker_plugin("on-worker")


def test_a_plugin_of_nannies(client):
    class OnNanny(NannyPlugin):
        name = "on-nanny"

        def setup(self, nanny):
            nanny.plugin_was_here = True

    client.register_plugin(OnNanny())
    assert all(client.run(lambda dask_worker: dask_worker.plugin_was_here, nanny=True).values())
    client.unregister_worker_plugin("on-nanny", nanny=True)


def test_an_uploaded_module_can_be_imported(client, tmp_path):
    module = tmp_path / "uploaded_module_of_test.py"
    module.write_text("def answer():\n    return 42\n")
    client.upload_file(str(module))

    def use():
        import uploaded_module_of_test

        return uploaded_module_of_test.answer()

    assert client.submit(use, pure=False).result(timeout=30) == 42


def test_uploading_a_module_that_fails_raises(client, tmp_path):
    module = tmp_path / "broken_module_of_test.py"
    module.write_text("raise RuntimeError('broken on purpose')\n")
    with pytest.raises(RuntimeError, match="broken on purpose"):
        client.upload_file(str(module))
