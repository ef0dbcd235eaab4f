"""Plugins for every test: virtual environments as fixtures, and the leak check after each test."""

from __future__ import annotations

import pytest

from distributed.base import logs

pytest_plugins = [
    "distributed.testing.plugin",
    "distributed.tests.environments",
    "distributed.tests.grafts",
]

# These run in another environment; see distributed/tests/test_dask_programs.py.
collect_ignore = ["distributed/tests/dask_programs"]

#: Files whose tests take a minute or more.  They are the first, so that at the end no process runs
#: a long one while the others have none left.
LONGEST = (
    "test_dask_programs.py",
    "test_hostile_peers.py",
    "test_interop_messages.py",
    "test_dask_mixed.py",
    "test_benchmarks.py",
    "test_hostile_messages.py",
    "test_dask_beside.py",
    "test_soak.py",
    "test_graft.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(autouse=True)
def fresh_logs() -> None:
    """Count the repeated log lines of each test separately."""
    logs.flush()
