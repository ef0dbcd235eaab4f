"""Processes of dask.distributed on this core and as released work together in one cluster."""

from __future__ import annotations

import pytest

from distributed.tests.environments import run_in
from distributed.tests.test_dask_programs import PROGRAMS


@pytest.mark.timeout(400)
@pytest.mark.parametrize("protocol", ["tcp", "tls", "ws"])
def test_a_cluster_has_processes_on_both_cores(grafted_python, released_python, protocol):
    run_in(
        grafted_python,
        ["-m", "pytest", "-q", "mixed.py", "-k", protocol],
        cwd=PROGRAMS,
        env={"OTHER_PYTHON": str(released_python)},
        timeout=300,
    )
