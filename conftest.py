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


@pytest.fixture(autouse=True)
def fresh_logs() -> None:
    """Count the repeated log lines of each test separately."""
    logs.flush()
