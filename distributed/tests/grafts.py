"""dask.distributed on this core, installed for tests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed.graft import TESTED_VERSIONS, graft
from distributed.tests.environments import (
    CACHE,
    EnvironmentUnavailable,
    clean_environ,
    environment,
    exclusive,
)

VERSION = TESTED_VERSIONS[-1]

#: Requirements of the programs under ``dask_programs``.
_REQUIREMENTS = (
    f"dask[array,dataframe,diagnostics,distributed]=={VERSION}",
    "cryptography>=42",
    "lz4",
    "joblib",
    "prometheus_client",
    "pytest",
    "pytest-timeout",
)

#: Libraries that compute on dask.
_LIBRARIES = ("dask-ml", "scikit-learn")


def original_wheel() -> Path:
    """Return the wheel of dask.distributed as released; pip downloads it once.

    Raises
    ------
    EnvironmentUnavailable
        If pip cannot download it.
    """
    directory = CACHE / "wheels"
    directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory / "lock"):
        found = list(directory.glob(f"distributed-{VERSION}-*.whl"))
        if not found:
            pip("download", "--no-deps", "--dest", directory, f"distributed=={VERSION}")
            found = list(directory.glob(f"distributed-{VERSION}-*.whl"))
    return found[0]


def pip(*arguments: object, python: Path | None = None) -> str:
    """Run pip, for another interpreter if one is given, and return its output."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if python is not None:
        command += ["--python", str(python)]
    done = subprocess.run(
        [*command, *map(str, arguments)], env=clean_environ(), capture_output=True, text=True
    )
    if done.returncode:
        raise EnvironmentUnavailable(f"pip {arguments} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def grafted_environment(directory: Path) -> Path:
    """Return the interpreter of an environment in which dask's roles run on this core as it is now.

    Parameters
    ----------
    directory
        Where the grafted wheel is written.
    """
    wheel = graft(str(original_wheel()), directory)
    python = environment("dask-on-core", [*_REQUIREMENTS, *_LIBRARIES])
    # another process may use the environment: it stays as it is while this core is the same
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    installed = python.parents[1] / "core.sha256"
    with exclusive(python.parents[1] / "core.lock"):
        if not installed.exists() or installed.read_text() != digest:
            installed.unlink(missing_ok=True)
            pip("install", "--quiet", "--no-deps", "--force-reinstall", wheel, python=python)
            installed.write_text(digest)
    return python


def released_environment() -> Path:
    """Return the interpreter of an environment with dask.distributed as released."""
    return environment("dask-released", _REQUIREMENTS)


def _or_skip(make: Callable[..., Path], *arguments: Path) -> Path:
    try:
        return make(*arguments)
    except EnvironmentUnavailable as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def grafted_python(tmp_path_factory):
    """An interpreter with dask.distributed on this core."""
    return _or_skip(grafted_environment, tmp_path_factory.mktemp("grafted"))


@pytest.fixture(scope="session")
def released_python():
    """An interpreter with dask.distributed as released."""
    return _or_skip(released_environment)
