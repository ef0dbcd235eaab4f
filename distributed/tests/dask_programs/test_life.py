"""Workers that come, go, are killed, spill, pause, restart and retire."""

from __future__ import annotations

import os
import signal
import time

import dask
import numpy as np
import pytest

from distributed import Client, LocalCluster, wait


@pytest.fixture
def own_cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


def test_results_of_a_killed_worker_are_computed_again(own_cluster, until):
    with Client(own_cluster) as client:
        futures = client.map(lambda x: np.full(1000, x), range(40), pure=False)
        wait(futures, timeout=60)
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGKILL)
        assert [int(array[0]) for array in client.gather(futures)] == list(range(40))
        until(lambda: len(client.scheduler_info()["workers"]) == 2)


def test_restart_forgets_tasks_and_replaces_processes(own_cluster):
    with Client(own_cluster) as client:
        before = set(client.run(os.getpid).values())
        future = client.submit(lambda: 1)
        future.result(timeout=30)
        client.restart(timeout=60)
        after = set(client.run(os.getpid).values())
        assert not before & after
        assert client.submit(lambda: 2).result(timeout=30) == 2


def test_retiring_a_worker_keeps_its_data(own_cluster):
    with Client(own_cluster) as client:
        futures = client.map(lambda x: x, range(20), pure=False)
        wait(futures, timeout=60)
        leaving = next(iter(client.scheduler_info()["workers"]))
        client.retire_workers([leaving])
        assert client.gather(futures) == list(range(20))


def test_a_cluster_scales_and_adapts(own_cluster, until):
    with Client(own_cluster) as client:
        own_cluster.scale(3)
        client.wait_for_workers(3, timeout=60)
        own_cluster.adapt(minimum=1, maximum=2, interval="100ms", wait_count=1)
        until(lambda: len(client.scheduler_info()["workers"]) <= 2)
        assert client.gather(client.map(lambda x: x + 1, range(100))) == list(range(1, 101))


def test_memory_is_spilled_and_read_again(tmp_path):
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit="300MiB",
            local_directory=str(tmp_path),
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        futures = [client.submit(np.full, 4_000_000, i, pure=False) for i in range(12)]
        wait(futures, timeout=120)
        spilled = client.run(lambda dask_worker: len(dask_worker.data.slow))
        assert sum(spilled.values()) > 0
        assert [int(future.result()[0]) for future in futures] == list(range(12))
        metered = client.run(lambda dask_worker: str(list(dask_worker.digests_total)))
        for activity in ("serialize", "compress", "disk-write", "disk-read", "deserialize"):
            assert f"'{activity}', 'seconds'" in str(metered)


def test_work_is_stolen_by_an_idle_worker(own_cluster):
    with Client(own_cluster) as client:
        first, _second = list(client.scheduler_info()["workers"])
        futures = client.map(
            lambda _: time.sleep(0.05),
            range(60),
            workers=[first],
            allow_other_workers=True,
            pure=False,
        )
        wait(futures, timeout=60)
        held = client.has_what()
        assert all(held.values())


def test_replicas_are_made_and_dropped(own_cluster, until):
    with Client(own_cluster) as client:
        client.amm.stop()
        future = client.submit(lambda: b"x" * 1000)
        wait(future, timeout=30)
        client.replicate([future], n=2)
        assert len(client.who_has([future])[future.key]) == 2
        client.amm.run_once()
        until(lambda: len(client.who_has([future])[future.key]) == 1)
        assert future.result(timeout=30) == b"x" * 1000


def test_a_worker_that_is_short_of_memory_pauses_and_resumes(until):
    memory = {
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": 0.5,
        "distributed.worker.memory.terminate": False,
        "distributed.worker.memory.monitor-interval": "50ms",
    }
    with (
        dask.config.set(memory),
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="600MiB", dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        full, other = list(client.scheduler_info()["workers"])

        def status(dask_scheduler):
            return dask_scheduler.workers[full].status.name

        large = client.submit(np.ones, 50_000_000, workers=[full])
        until(lambda: client.run_on_scheduler(status) == "paused")
        futures = client.map(lambda x: x, range(20), pure=False)
        assert client.gather(futures) == list(range(20))
        assert {where for (where,) in client.who_has(futures).values()} == {other}
        waiting = client.submit(lambda: "resumed", workers=[full])
        assert not waiting.done()
        del large
        assert waiting.result(timeout=60) == "resumed"
