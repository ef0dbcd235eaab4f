"""The dashboard, metrics, profiles and reports of a cluster."""

from __future__ import annotations

import urllib.request

from distributed import performance_report, wait


def _get(url):
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.status == 200
        return response.read().decode()


def test_pages_of_the_dashboard(client):
    link = client.dashboard_link.removesuffix("/status")
    for page in (
        "status",
        "workers",
        "tasks",
        "system",
        "profile",
        "graph",
        "info/main/workers.html",
    ):
        assert "<html" in _get(f"{link}/{page}").lower()
    assert "ok" in _get(f"{link}/health")


def test_metrics_for_prometheus(client):
    client.submit(lambda: 1, pure=False).result(timeout=30)
    text = _get(client.dashboard_link.replace("/status", "/metrics"))
    assert "dask_scheduler_workers" in text
    assert "dask_scheduler_tasks" in text


def test_a_performance_report(client, tmp_path):
    report = tmp_path / "report.html"
    with performance_report(str(report)):
        wait(client.map(lambda x: x, range(20), pure=False), timeout=30)
    assert "Dask Performance Report" in report.read_text()


def test_the_profile_of_tasks_and_of_event_loops(client):
    import time

    wait(client.map(lambda _: time.sleep(0.3), range(4), pure=False), timeout=30)
    assert client.profile()["count"] > 0
    assert isinstance(client.profile(server=True), dict)


def test_fine_performance_metrics_are_not_empty(client):
    import numpy as np

    left, right = list(client.scheduler_info()["workers"])
    big = client.submit(np.ones, 1_000_000, workers=[left], pure=False)
    client.submit(np.sum, big, workers=[right], pure=False).result(timeout=30)

    def activities(dask_worker):
        return [str(key) for key in dask_worker.digests_total]

    seen = " ".join(key for keys in client.run(activities).values() for key in keys)
    for activity in ("serialize", "deserialize", "network", "thread-cpu"):
        assert activity in seen


def test_logs_and_stacks(client):
    assert set(client.get_worker_logs()) == set(client.scheduler_info()["workers"])
    client.get_scheduler_logs()
    client.call_stack()
    client.get_task_stream()
    client.get_versions(check=True)


def test_the_system_monitor(client):
    recent = client.run(lambda dask_worker: dask_worker.monitor.recent())
    for figures in recent.values():
        assert {"cpu", "memory", "time"} <= set(figures)
    queried = client.run(lambda dask_worker: dask_worker.monitor.range_query(0))
    assert all(figures["cpu"] for figures in queried.values())
