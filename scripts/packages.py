"""Build the wheel and the source distribution, check both, and use them with several interpreters.

Usage: ``python scripts/packages.py [PYTHON ...]``, for instance ``python3.11 python3.13``; without
arguments, each interpreter that ``interpreters.py`` finds.

``build``, ``twine`` and ``check-wheel-contents`` must be installed beside the running Python. Each
distribution is installed into a fresh environment of each interpreter, where the examples of the
foundations page run. An interpreter that is not found, or too old, is skipped with a message.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from interpreters import OLDEST, interpreters, release_of

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "demo.py"


class CheckFailed(Exception):
    """A command failed; the message contains its output."""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command and return its output."""
    # An installed package is imported in the environment, so nothing else may be on the path.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise CheckFailed(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout


def build(directory: Path) -> list[Path]:
    """Build and check both distributions; the wheel is built from the source distribution."""
    run(sys.executable, "-m", "build", "--outdir", directory, ROOT)
    built = sorted(directory.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *built)
    run(
        sys.executable,
        "-m",
        "check_wheel_contents",
        *(path for path in built if path.suffix == ".whl"),
    )
    return built


def use(distribution: Path, python: str | Path, directory: Path) -> None:
    """Install a distribution into a fresh environment, and run the examples there."""
    environment = directory / "environment"
    run(python, "-m", "venv", "--clear", environment)
    inside = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (inside, "-m", "pip", "--disable-pip-version-check", "--no-input")
    run(*pip, "install", "--quiet", distribution)
    run(*pip, "check")
    where = run(inside, "-c", "import distributed; print(distributed.__file__)", cwd=directory)
    if not Path(where.strip()).is_relative_to(environment):
        raise CheckFailed(f"{distribution.name} was not imported from its environment: {where}")
    run(inside, "-W", "error", DEMO, cwd=directory)
    shutil.rmtree(environment)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(pythons: Sequence[str | Path]) -> int:
    used = 0
    with tempfile.TemporaryDirectory(prefix="packages-") as scratch:
        try:
            built = build(Path(scratch, "dist"))
            for path in built:
                say(f"{path.name}: built and checked, {path.stat().st_size / 1e6:.2f} MB")
            for python in pythons:
                version = release_of(python)
                if version is None or version[:2] < (3, OLDEST):
                    say(f"{python}: skipped, {'not found' if version is None else 'too old'}")
                    continue
                for path in built:
                    use(path, python, Path(scratch))
                    say(f"{python} ({'.'.join(map(str, version))}): {path.name} works")
                used += 1
        except CheckFailed as exc:
            sys.stderr.write(f"packages: {exc}\n")
            return 1
    if not used:
        sys.stderr.write(f"packages: none of {', '.join(map(str, pythons))} can be used\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(interpreters())))
