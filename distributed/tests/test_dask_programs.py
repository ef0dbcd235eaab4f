"""Programs that use dask.distributed's own roles run on this core.

Each test module in ``dask_programs`` is run by a pytest of its own, in an environment with
dask.distributed on this core.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed.tests.environments import run_in

PROGRAMS = Path(__file__).parent / "dask_programs"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", sorted(path.stem for path in PROGRAMS.glob("test_*.py")))
def test_dask_runs_on_this_core(grafted_python, name):
    run_in(grafted_python, ["-m", "pytest", "-q", f"{name}.py"], cwd=PROGRAMS, timeout=380)
