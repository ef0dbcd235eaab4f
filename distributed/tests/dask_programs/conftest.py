"""Fixtures for programs that use dask.distributed's own roles.

These tests run in an environment of their own, in which dask.distributed is installed on this core
(or, for comparison, as it was released); ``distributed/tests/test_dask_programs.py`` starts them.
"""

from __future__ import annotations

import time

import pytest

import distributed.core
from distributed import Client, LocalCluster

#: Whether dask.distributed runs on this core here.
ON_THIS_CORE = hasattr(distributed.core, "__core_version__")


def pytest_collection_modifyitems(items):
    if not ON_THIS_CORE:
        for item in items:
            if item.get_closest_marker("only_this_core"):
                item.add_marker(pytest.mark.skip(reason="dask.distributed as released lacks this"))


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes with nannies, one thread each."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def until():
    """Wait until a condition is true; fail if it is not within 60 s."""

    def until(condition, timeout=60):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "the condition did not become true in time"
            time.sleep(0.05)

    return until
