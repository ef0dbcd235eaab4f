"""The script that prints the minimum versions of the requirements, for ``make test-minimum``."""

from __future__ import annotations

import configparser
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Extras whose libraries this package uses, each with a minimum version.
EXTRAS = [
    "cli",
    "compression",
    "config",
    "libraries",
    "metrics",
    "security",
    "statistics",
    "tracebacks",
]


def minimum_versions(root: Path, *extras: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "minimum_versions.py"), *extras]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def test_each_requirement_has_a_minimum_version_that_is_not_newer_than_the_installed_one():
    result = minimum_versions(ROOT, *EXTRAS)
    assert result.returncode == 0, result.stderr
    minima = dict(line.split("==") for line in result.stdout.splitlines())
    assert {"tornado", "msgpack", "cloudpickle", "numpy", "lz4", "tblib"} <= minima.keys()
    for name, minimum in minima.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        assert version(minimum) <= version(installed), name


def test_the_makefile_installs_the_extras_that_are_tested():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(EXTRAS) <= set(config["options.extras_require"])
    assert f"MINIMUM_EXTRAS := {' '.join(EXTRAS)}" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("requirement", ["pandas", "pandas<3", "pandas==2"])
def test_a_requirement_without_a_minimum_version_is_an_error(tmp_path, requirement):
    (tmp_path / "scripts").mkdir()
    script = (ROOT / "scripts" / "minimum_versions.py").read_text()
    (tmp_path / "scripts" / "minimum_versions.py").write_text(script)
    (tmp_path / "setup.cfg").write_text(
        "[options]\ninstall_requires =\n    # why\n    tornado>=6.6\n"
        f"[options.extras_require]\nextra =\n    {requirement}\n"
    )
    assert minimum_versions(tmp_path).stdout == "tornado==6.6\n"
    result = minimum_versions(tmp_path, "extra")
    assert result.returncode == 1
    assert f"{requirement!r} has no minimum version" in result.stderr
