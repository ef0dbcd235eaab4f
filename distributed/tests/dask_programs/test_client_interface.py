"""Less common methods of the client: state, metadata, logs, tuning of data, and single workers."""

from __future__ import annotations

import asyncio
import logging

import dask
import numpy as np
import pytest

from distributed import (
    Client,
    SubprocessCluster,
    as_completed,
    fire_and_forget,
    get_task_metadata,
    get_task_stream,
    get_worker,
    local_client,
    print,
    span,
    wait,
)
from distributed.diagnostics import MemorySampler


def increment(x):
    return x + 1


def fail(x):
    raise ValueError(f"it was meant to fail with {x}")


def test_the_state_of_a_cluster_is_dumped(client, tmp_path):
    wait(client.map(increment, range(5), pure=False), timeout=30)
    client.dump_cluster_state(str(tmp_path / "dump"), format="yaml")
    assert (tmp_path / "dump.yaml").stat().st_size > 1000
    assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.workers)) == 2


def test_a_story_of_a_task_is_told_by_all(client):
    future = client.submit(increment, 1, pure=False)
    future.result(timeout=30)
    stories = client.story(future.key)
    assert any("memory" in str(line) for line in stories)


def test_an_error_is_raised_again_locally(client):
    future = client.submit(fail, 3, pure=False)
    wait(future, timeout=30)
    with pytest.raises(ValueError, match="with 3"):
        client.recreate_error_locally(future)


def test_a_failed_task_runs_again(client, tmp_path):
    marker = tmp_path / "marker"

    def need(path):
        with open(path) as file:
            return file.read()

    future = client.submit(need, str(marker))
    with pytest.raises(FileNotFoundError):
        future.result(timeout=30)
    marker.write_text("here")
    future.retry()
    assert future.result(timeout=30) == "here"


def test_data_are_rebalanced(client):
    def level_managed_memory(dask_scheduler):
        dask_scheduler.MEMORY_REBALANCE_MEASURE = "managed"
        dask_scheduler.MEMORY_REBALANCE_SENDER_MIN = 0.0
        dask_scheduler.MEMORY_REBALANCE_HALF_GAP = 0.0

    client.run_on_scheduler(level_managed_memory)
    first, second = list(client.scheduler_info()["workers"])
    futures = client.scatter([np.ones(2_000_000) * i for i in range(10)], workers=[first])
    wait(futures, timeout=30)
    client.rebalance(futures)
    assert client.has_what()[second]
    assert [int(array[0]) for array in client.gather(futures)] == list(range(10))


def test_data_are_gathered_directly_from_workers(client):
    futures = client.map(lambda x: np.full(100_000, x), range(10), pure=False)
    arrays = client.gather(futures, direct=True)
    assert [int(array[0]) for array in arrays] == list(range(10))
    scattered = client.scatter([1, 2, 3], direct=True)
    assert client.gather(scattered, direct=True) == [1, 2, 3]


def test_metadata_and_the_stream_of_tasks(client):
    client.set_metadata(["a", "b"], {"c": [1, 2]})
    assert client.get_metadata(["a", "b"]) == {"c": (1, 2)}
    with get_task_stream() as stream, get_task_metadata() as tasks:
        wait(client.map(increment, range(10), pure=False), timeout=30)
    assert len(stream.data) == 10
    assert set(tasks.state.values()) == {"memory"}


def test_events_are_recorded(client):
    client.log_event("topic-of-test", {"x": 1})
    assert client.get_events("topic-of-test")[0][1] == {"x": 1}
    assert client.get_events()


def test_logs_are_forwarded_to_the_client(client, until, caplog):
    client.forward_logging("program.of.test", level=logging.INFO)
    try:

        def log():
            logging.getLogger("program.of.test").warning("hello from a worker")

        client.submit(log, pure=False).result(timeout=30)
        until(lambda: "hello from a worker" in caplog.text)
    finally:
        client.unforward_logging("program.of.test")


def test_a_task_prints_at_the_client(client, until, capsys):
    client.submit(lambda: print("printed by a task"), pure=False).result(timeout=30)
    seen = []

    def arrived():
        seen.append(capsys.readouterr().out)
        return "printed by a task" in "".join(seen)

    until(arrived)


def test_tasks_of_which_no_future_is_kept_run(client, until, tmp_path):
    def touch(path):
        with open(path, "w"):
            pass

    fire_and_forget(client.submit(touch, str(tmp_path / "touched"), pure=False))
    until(lambda: (tmp_path / "touched").exists())


def test_batches_of_completed_futures_have_results(client):
    completed = as_completed(client.map(increment, range(30), pure=False), with_results=True)
    results = [result for batch in completed.batches() for _, result in batch]
    assert sorted(results) == list(range(1, 31))


def test_a_worker_is_restarted_alone(client, until):
    first, second = list(client.scheduler_info()["workers"])
    assert client.restart_workers([first], timeout=60) == {first: "OK"}
    until(lambda: len(client.scheduler_info()["workers"]) == 2)
    assert second in client.scheduler_info()["workers"]
    assert client.submit(increment, 1, pure=False).result(timeout=30) == 2


def test_resources_and_priorities_and_annotations(client):
    with dask.annotate(priority=10, retries=2, allow_other_workers=True):
        values = dask.delayed(increment)(1) + dask.delayed(increment)(2)
    with span("of the test"):
        assert values.compute() == 5


def test_a_coroutine_runs_as_a_task_and_on_workers(client):
    async def double(x):
        await asyncio.sleep(0)
        return 2 * x

    assert client.submit(double, 21, pure=False).result(timeout=30) == 42
    assert set(client.run(double, 4).values()) == {8}
    with pytest.raises(TypeError):
        client.run(double)


def test_run_can_return_errors_and_skip_the_wait(client, until):
    results = client.run(lambda: 1 / 0, on_error="return")
    assert all(isinstance(error, ZeroDivisionError) for error in results.values())
    assert client.run(lambda: 1 / 0, on_error="ignore") == {}

    async def set_flag(dask_worker):
        dask_worker.flag_of_test = True

    assert client.run(set_flag, wait=False) is None
    until(
        lambda: all(client.run(lambda dask_worker: hasattr(dask_worker, "flag_of_test")).values())
    )


def test_a_task_uses_the_client_of_its_worker(client):
    def total():
        with local_client() as inner:
            return sum(inner.gather(inner.map(increment, range(5), pure=False)))

    assert client.submit(total, pure=False).result(timeout=60) == 15


def test_a_task_knows_its_worker(client):
    futures = client.map(lambda _: get_worker().address, range(20), pure=False)
    assert set(client.gather(futures)) <= set(client.scheduler_info()["workers"])


def test_memory_is_sampled(client, until):
    sampler = MemorySampler()
    with sampler.sample("run", measure="managed", interval=0.05):
        data = client.submit(np.ones, 1_000_000, pure=False)
        wait(data, timeout=30)
        until(lambda: client.nbytes(summary=False).get(data.key))
    assert sampler.samples["run"]


def test_a_cluster_of_subprocesses():
    with (
        SubprocessCluster(
            n_workers=2, threads_per_worker=1, scheduler_kwargs={"dashboard": False}
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        assert client.gather(client.map(increment, range(10))) == list(range(1, 11))


def test_a_client_shuts_a_cluster_down():
    with Client(n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        assert client.submit(increment, 1).result(timeout=30) == 2
        client.shutdown()
        assert client.status == "closed"
