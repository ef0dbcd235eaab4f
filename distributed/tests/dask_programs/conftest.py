"""Fixtures for programs that use dask.distributed's own roles.

These tests run in an environment of their own, in which dask.distributed is installed on this core
(or, for comparison, as it was released); ``distributed/tests/test_dask_programs.py`` starts them.
"""

from __future__ import annotations

import pytest

from distributed import Client, LocalCluster


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
