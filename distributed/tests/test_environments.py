"""The virtual environments in which other tests run code."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from distributed.tests import environments
from distributed.tests.environments import EnvironmentUnavailable, environment, run_in

HERE = Path(sys.executable)
INSTALLED = """
    import importlib.metadata, json
    print(json.dumps([d.metadata["Name"].lower() for d in importlib.metadata.distributions()]))
"""


def installed(python):
    # Every environment has the first three; an editable install of the checkout, as by
    # `make test`, leaves its metadata in the checkout, which is on sys.path.
    given = {"pip", "setuptools", "wheel", "distributed-core"}
    return set(json.loads(run_in(python, INSTALLED).stdout)) - given


@pytest.fixture
def cache(tmp_path, monkeypatch):
    path = tmp_path / "environments"
    monkeypatch.setattr(environments, "CACHE", path)
    return path


def test_bare_python_has_the_requirements_of_the_project_and_nothing_else(bare_python):
    assert installed(bare_python) == {"cloudpickle", "msgpack", "tornado"}


def test_dask_python_has_dask_and_not_the_original(dask_python):
    assert "dask" in installed(dask_python)
    assert "distributed" not in installed(dask_python)


def test_yaml_python_has_pyyaml(yaml_python):
    assert installed(yaml_python) == {"cloudpickle", "msgpack", "tornado", "pyyaml"}


@pytest.mark.parametrize("fixture", ["bare_python", "dask_python", "yaml_python"])
def test_a_project_environment_imports_this_checkout(fixture, request):
    python = request.getfixturevalue(fixture)
    where = run_in(python, "import distributed; print(distributed.__file__)").stdout.strip()
    assert Path(where) == environments.ROOT / "distributed" / "__init__.py"


def test_original_python_imports_the_original_and_not_this_checkout(original_python):
    code = "import distributed, numpy, tblib; print(distributed.__file__)"
    where = Path(run_in(original_python, code).stdout.strip())
    assert where.is_relative_to(original_python.parents[1])


def test_a_second_call_reuses_the_environment(cache):
    python = environment("empty", [])
    witness = python.parents[1] / "witness"
    witness.touch()
    assert environment("empty", []) == python
    assert witness.exists()


def test_an_incomplete_environment_is_recreated(cache):
    python = environment("empty", [])
    (python.parents[1] / environments._COMPLETE).unlink()
    python.unlink()
    environment("empty", [])
    assert run_in(python, "print('alive')").stdout == "alive\n"


def test_each_set_of_requirements_has_its_own_environment(cache, monkeypatch):
    monkeypatch.setattr(environments, "_make", lambda path, *args: path.mkdir())
    assert environment("one", ["a"]) != environment("one", ["b"])


def test_concurrent_callers_create_an_environment_once(cache, monkeypatch):
    made = []
    barrier = threading.Barrier(4)

    def make(path, *args):
        made.append(path)
        path.mkdir()

    def ask():
        barrier.wait()
        environment("one", [])

    monkeypatch.setattr(environments, "_make", make)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_failed_installation_is_an_error_with_the_output_of_pip(cache):
    with pytest.raises(EnvironmentUnavailable, match=r"broken-.*(?s:.)*no-such-file\.whl"):
        environment("broken", ["./no-such-file.whl"])


def test_without_an_environment_a_test_is_skipped_with_the_reason(cache, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-file"):
        environments._or_skip("broken", ["./no-such-file.whl"], project=False)


def test_without_an_environment_a_test_fails_if_ci_is_set(cache, monkeypatch):
    monkeypatch.setenv("CI", "1")
    with pytest.raises(EnvironmentUnavailable):
        environments._or_skip("broken", ["./no-such-file.whl"], project=False)


def test_code_runs_outside_of_the_checkout():
    cwd = Path(run_in(HERE, "import os; print(os.getcwd())").stdout.strip())
    assert not cwd.is_relative_to(environments.ROOT)
    assert not cwd.exists()


def test_code_can_be_indented():
    code = """
        for i in range(2):
            print(i)
    """
    assert run_in(HERE, code).stdout == "0\n1\n"


def test_arguments_are_passed_to_the_interpreter():
    assert run_in(HERE, ["-c", "import sys; print(sys.argv[1])", "x y"]).stdout == "x y\n"


def test_the_configuration_of_the_caller_is_not_inherited(monkeypatch):
    monkeypatch.setenv("DASK_FOO", "1")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    code = "import os; print(os.environ.get('DASK_FOO'), os.environ.get('PYTHONPATH'))"
    assert run_in(HERE, code).stdout == "None None\n"


def test_environment_variables_can_be_added():
    code = "import os; print(os.environ['DASK_FOO'])"
    assert run_in(HERE, code, env={"DASK_FOO": "1"}).stdout == "1\n"


def test_the_error_for_a_failure_contains_the_output():
    code = "import sys; print('to stdout'); sys.exit('to stderr')"
    with pytest.raises(AssertionError, match=r"ended with 1(?s:.)*to stdout(?s:.)*to stderr"):
        run_in(HERE, code)


def test_a_failure_is_allowed_without_check():
    assert run_in(HERE, "raise SystemExit(3)", check=False).returncode == 3


def test_a_process_is_killed_with_its_children_at_the_timeout():
    code = """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        print("started", flush=True)
        time.sleep(1000)
    """
    # The child inherits stdout, so run_in reads its end only after the child has ended too.
    with pytest.raises(AssertionError, match=r"did not end within 2 s(?s:.)*started"):
        run_in(HERE, code, timeout=2)
