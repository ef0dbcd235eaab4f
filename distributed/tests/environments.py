"""Virtual environments with and without optional packages, and functions that run code in them.

Tests of optional dependencies and of the original run in these environments.  An environment is
created at first use in ``.environments/`` at the root of the checkout, and recreated when its
requirements change.  The directory can be deleted at any time.  Equal files of libraries are on
disk once, as links.

`environment`, `run_in` and `clean_environ` work without pytest.  The fixtures at the end skip a
test if its environment cannot be created (no package registry, for instance); if the variable
``CI`` is set, the test fails instead.
"""

from __future__ import annotations

import configparser
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from distributed.tests.sharing import remove_unused, share_files

#: The root of this checkout.
ROOT = Path(__file__).resolve().parents[2]

#: The directory of the environments.
CACHE = ROOT / ".environments"

#: The release whose behaviour and bytes this project is compared with.
ORIGINAL = "distributed==2026.8.0"

# A file that is written last into an environment; without it, the environment is incomplete.
_COMPLETE = "complete.json"


class EnvironmentUnavailable(RuntimeError):
    """A virtual environment could not be created; the message contains the output of pip."""


def environment(name: str, requirements: Sequence[str], *, project: bool = False) -> Path:
    """Return the interpreter of a virtual environment with exactly these requirements.

    Processes that need the same environment concurrently create it once.

    Parameters
    ----------
    name : str
        The start of the directory's name.
    requirements : sequence of str
        In the syntax of pip.
    project : bool
        Whether to add this checkout (imported from its directory) and its requirements.

    Raises
    ------
    EnvironmentUnavailable
        If the environment cannot be created.
    """
    requirements = sorted([*requirements, *(_project_requirements() if project else [])])
    recipe = {
        "requirements": requirements,
        "project": str(ROOT) if project else None,
        "python": [platform.python_implementation(), platform.python_version(), sys.base_prefix],
    }
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    path = CACHE / f"{name}-{digest}"
    complete = path / _COMPLETE
    python = path / "bin" / "python"
    if not complete.exists():
        CACHE.mkdir(exist_ok=True)
        with exclusive(path.with_suffix(".lock")):
            if not complete.exists():
                _share_own_files()
                _make(path, python, requirements, project)
                complete.write_text(json.dumps(recipe, indent=2))
    return python


@functools.cache
def _share_own_files() -> None:
    """Let the environments link to the libraries of the environment that runs the tests."""
    if Path(sys.prefix).is_relative_to(ROOT):
        store = CACHE / "shared"
        # Threads and processes that need different environments get here at the same time.
        with exclusive(CACHE / "own-files.lock"):
            share_files(Path(sysconfig.get_path("purelib")), store)
            remove_unused(store)


def _project_requirements() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup["options"]["install_requires"].split()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is created if needed; wait until no other process holds it."""
    with path.open("w") as file:
        # The kernel releases the lock when the process ends, even if it is killed.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(path: Path, python: Path, requirements: Sequence[str], project: bool) -> None:
    shutil.rmtree(path, ignore_errors=True)
    _build_step(path, [sys.executable, "-m", "venv", "--without-pip", str(path)])
    site_packages = _site_packages(python, path)
    if requirements:
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        options = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1"]
        _build_step(path, [*pip, "install", "--no-compile", *options, *requirements])
        share_files(site_packages, CACHE / "shared")
    if project:
        (site_packages / "checkout.pth").write_text(f"{ROOT}\n")


def _site_packages(python: Path, path: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(_build_step(path, [str(python), "-c", code]).strip())


def _build_step(path: Path, command: Sequence[str]) -> str:
    done = subprocess.run(
        command,
        env=clean_environ(),
        cwd=path.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise EnvironmentUnavailable(
            f"Could not create the virtual environment {path.name}: "
            f"{' '.join(command)} failed with\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def clean_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process' environment variables without those of Python and dask, plus *extra*."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "DASK_", "COV_CORE_"))
        and name not in ("VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    }
    return environ | dict(extra or {})


def run_in(
    python: Path,
    code_or_argv: str | Sequence[str],
    *,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    options: Sequence[str] = (),
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run code in another interpreter and return its exit code and output, as text.

    Parameters
    ----------
    python : Path
        The interpreter, for instance from `environment`.
    code_or_argv : str or sequence of str
        Python code (indented or not), or arguments of the interpreter.
    timeout : float
        Seconds before the process and its children are killed.
    env : Mapping, optional
        Variables to add to `clean_environ`.
    cwd : Path, optional
        The working directory; default: a new, empty one, removed afterwards.
    options : sequence of str
        Options of the interpreter, such as ``-Werror``.
    check : bool
        Whether a failure is an error.

    Raises
    ------
    AssertionError
        If the timeout passes or (with `check`) the code fails; the message contains its output.
    """
    if isinstance(code_or_argv, str):
        argv = ["-c", textwrap.dedent(code_or_argv)]
    else:
        argv = list(code_or_argv)
    with tempfile.TemporaryDirectory(prefix="run-in-") as elsewhere:
        process = subprocess.Popen(
            [str(python), *options, *argv],
            env=clean_environ(env),
            cwd=cwd or elsewhere,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        problem = ""
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            problem = f"did not end within {timeout} s"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                stdout, stderr = process.communicate()
    if not problem and check and process.returncode:
        problem = f"ended with {process.returncode}"
    if problem:
        raise AssertionError(
            f"{python} {problem}; it ran\n{' '.join(argv)}\n"
            f"--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run_here(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a new process of this interpreter, with this checkout; warnings are errors."""
    argv = ["-c", textwrap.dedent(code), *map(str, arguments)]
    env = {"PYTHONPATH": str(ROOT)}
    return run_in(Path(sys.executable), argv, env=env, options=["-Werror"])


def read_address(output: IO[bytes]) -> str:
    """Return the first line of a server's output that is an address."""
    for line in output:
        text = line.decode().strip()
        if re.match(r"[a-z]+://", text):
            return text
    raise AssertionError("the server ended before it printed an address")


def _or_skip(name: str, requirements: Sequence[str], *, project: bool) -> Path:
    try:
        return environment(name, requirements, project=project)
    except EnvironmentUnavailable as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def original_python() -> Path:
    """A Python with the original and without this checkout."""
    return _or_skip("original", [ORIGINAL, "numpy"], project=False)


@pytest.fixture(scope="session")
def bare_python() -> Path:
    """A Python with this checkout and its three requirements."""
    return _or_skip("bare", [], project=True)


@pytest.fixture(scope="session")
def yaml_python() -> Path:
    """A Python with this checkout, its requirements, and PyYAML."""
    return _or_skip("yaml", ["pyyaml"], project=True)


@pytest.fixture(scope="session")
def dask_python() -> Path:
    """A Python with this checkout, its requirements, and dask."""
    return _or_skip("dask", ["dask"], project=True)
