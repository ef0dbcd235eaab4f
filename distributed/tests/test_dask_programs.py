"""Programs that use dask.distributed's own roles run on this core.

Each test module in ``dask_programs`` is run by a pytest of its own, in an environment with
dask.distributed on this core.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distributed.tests.environments import ROOT, run_in

PROGRAMS = Path(__file__).parent / "dask_programs"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", sorted(path.stem for path in PROGRAMS.glob("test_*.py")))
def test_dask_runs_on_this_core(grafted_python, name):
    run_in(grafted_python, ["-m", "pytest", "-q", f"{name}.py"], cwd=PROGRAMS, timeout=380)


@pytest.mark.timeout(200)
def test_every_result_is_right_while_workers_are_killed_and_connections_cut(grafted_python):
    chaos = ROOT / "examples" / "dask" / "chaos.py"
    options = ["--tasks", "400", "--task-seconds", "0.05", "--cut-every", "3", "--at-least", "2"]
    options += ["--deadline", "150"]
    done = run_in(grafted_python, [str(chaos), *options], timeout=180)
    figures = re.search(r"(\d+) kills, (\d+) cuts .* 0 wrong, 0 failed$", done.stdout.rstrip())
    assert figures, done.stdout
    assert int(figures[1]) >= 3
    assert int(figures[2]) >= 1
