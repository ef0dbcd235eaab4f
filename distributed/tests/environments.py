"""Pythons in which something is really installed, or really is not.

What this package does with and without an optional dependency, and how it gets along with the
original, is tried in virtual environments of their own: made at the first need, kept in
``.environments/`` at the root of the checkout, made anew when what they need changes.  Delete that
directory at any time.

`environment`, `run_in` and `clean_environ` work without pytest; the fixtures at the end skip a test
where its environment cannot be made (no package registry in reach), but fail it where the variable
``CI`` is set, so that nothing is left untested unnoticed.
"""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

#: The checkout that this file is part of.
ROOT = Path(__file__).resolve().parents[2]

#: Where the environments are.
CACHE = ROOT / ".environments"

#: The release whose behaviour and bytes this project is compared with.
ORIGINAL = "distributed==2026.8.0"

# Written into an environment when all of it is there; one without is a half-made one.
_COMPLETE = "complete.json"


class EnvironmentUnavailable(RuntimeError):
    """A virtual environment could not be made; the message holds what pip said."""


def environment(name: str, requirements: Sequence[str], *, project: bool = False) -> Path:
    """The Python of a virtual environment with exactly these requirements.

    Parameters
    ----------
    name : str
        For people who look into the cache.
    requirements : sequence of str
        As pip takes them.
    project : bool
        Whether this checkout can be imported there (always as it is at the moment), with what it
        requires installed.

    Returns
    -------
    pathlib.Path
        The interpreter. Processes that ask for the same environment at once make it once.

    Raises
    ------
    EnvironmentUnavailable
        If it cannot be made.
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
        with _exclusive(path.with_suffix(".lock")):
            if not complete.exists():
                _make(path, python, requirements, project)
                complete.write_text(json.dumps(recipe, indent=2))
    return python


def _project_requirements() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup["options"]["install_requires"].split()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        # Released by the system however this process ends.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(path: Path, python: Path, requirements: Sequence[str], project: bool) -> None:
    shutil.rmtree(path, ignore_errors=True)
    _build_step(path, [sys.executable, "-m", "venv", str(path)])
    if requirements:
        options = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1"]
        _build_step(path, [str(python), "-m", "pip", "install", *options, *requirements])
    if project:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site_packages = _build_step(path, [str(python), "-c", code]).strip()
        (Path(site_packages) / "checkout.pth").write_text(f"{ROOT}\n")


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
            f"Could not make the virtual environment {path.name}: {' '.join(command)} failed with\n"
            f"{done.stdout}{done.stderr}"
        )
    return done.stdout


def clean_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process' environment without what would lead another Python, or its configuration, here.

    Parameters
    ----------
    extra : Mapping, optional
        Variables to add.
    """
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
    """Run code in another interpreter and return what became of it.

    Parameters
    ----------
    python : Path
        The interpreter, as of `environment`.
    code_or_argv : str or sequence of str
        Python code (indented as it may be), or arguments of the interpreter.
    timeout : float
        Seconds after which it and all processes that it started are killed.
    env : Mapping, optional
        Variables on top of `clean_environ`.
    cwd : Path, optional
        By default a directory of its own, empty before and gone afterwards.
    options : sequence of str
        Options of the interpreter, such as ``-Werror``.
    check : bool
        Whether it must succeed.

    Returns
    -------
    subprocess.CompletedProcess
        With ``stdout`` and ``stderr`` as text.

    Raises
    ------
    AssertionError
        If it takes too long or (with `check`) fails; the message shows all that it wrote.
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


def read_address(output: IO[bytes]) -> str:
    """The address that a server prints, whatever else it has logged before."""
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
    """A Python with the original, and not with this checkout."""
    return _or_skip("original", [ORIGINAL, "numpy"], project=False)


@pytest.fixture(scope="session")
def bare_python() -> Path:
    """A Python with this checkout and the three packages that it requires."""
    return _or_skip("bare", [], project=True)


@pytest.fixture(scope="session")
def yaml_python() -> Path:
    """A Python with this checkout, what it requires, and PyYAML."""
    return _or_skip("yaml", ["pyyaml"], project=True)


@pytest.fixture(scope="session")
def dask_python() -> Path:
    """A Python with this checkout, what it requires, and dask."""
    return _or_skip("dask", ["dask"], project=True)
