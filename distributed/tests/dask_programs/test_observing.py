"""The dashboard, metrics, profiles and reports of a cluster."""

from __future__ import annotations

import json
import sys
import time
import urllib.request

import numpy as np

from distributed import performance_report, wait
from distributed.dashboard.scheduler import applications

#: Contexts and activities of the workers that must be metered.
FINE_METRICS = {
    ("execute", "thread-cpu"),
    ("execute", "memory-read"),
    ("get-data", "serialize"),
    ("get-data", "network"),
    ("gather-dep", "deserialize"),
    ("gather-dep", "network"),
}


def _get(url):
    with urllib.request.urlopen(url, timeout=60) as response:
        assert response.status == 200
        return response.read().decode()


#: All pages of the scheduler's dashboard, except one that starts measurements of the hardware.
PAGES = sorted({*applications, "/info/main/workers.html", "/json/counts.json"} - {"/hardware"})


def test_pages_of_the_dashboard(client):
    client.gather(client.map(lambda x: x, range(10)))
    link = client.dashboard_link.removesuffix("/status")
    pages = {page: _get(link + page) for page in PAGES}
    assert all("<html" in text.lower() for page, text in pages.items() if "json" not in page)
    assert json.loads(pages["/json/counts.json"])["workers"] == 2
    assert "ok" in _get(f"{link}/health")


def test_metrics_for_prometheus(client):
    client.submit(lambda: 1, pure=False).result(timeout=60)
    text = _get(client.dashboard_link.replace("/status", "/metrics"))
    assert "dask_scheduler_workers" in text
    assert "dask_scheduler_tasks" in text
    for worker in client.scheduler_info()["workers"].values():
        text = _get(f"http://127.0.0.1:{worker['services']['dashboard']}/metrics")
        assert "dask_worker_memory_bytes" in text
        assert "dask_worker_tick_count_total" in text


def test_a_performance_report(client, tmp_path):
    report = tmp_path / "report.html"
    with performance_report(str(report)):
        wait(client.map(lambda x: x, range(20), pure=False), timeout=60)
    assert "Dask Performance Report" in report.read_text()


def test_the_profile_of_tasks(client):
    wait(client.map(lambda _: time.sleep(0.3), range(4), pure=False), timeout=60)
    assert client.profile()["count"] > 0


def test_the_profile_of_event_loops(client, until):
    assert "children" in client.profile(server=True)
    assert "children" in client.profile(scheduler=True)
    if sys.version_info[:2] == (3, 11):
        return  # dask.distributed does not sample event loops there

    def samples_exist():
        client.gather(client.map(lambda x: x, range(100), pure=False))
        return client.profile(server=True)["count"] and client.profile(scheduler=True)["count"]

    until(samples_exist)


def test_fine_performance_metrics_are_not_empty(client):
    left, right = list(client.scheduler_info()["workers"])
    big = client.submit(np.ones, 1_000_000, workers=[left], pure=False)
    client.submit(np.sum, big, workers=[right], pure=False).result(timeout=60)

    def activities(dask_worker):
        return [key for key in dask_worker.digests_total if isinstance(key, tuple)]

    metered = [key for keys in client.run(activities).values() for key in keys]
    assert {(key[0], key[-2]) for key in metered} >= FINE_METRICS


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
