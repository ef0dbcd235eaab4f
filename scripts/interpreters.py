"""Print the Python interpreters of this machine that this project supports, the oldest first.

Usage: ``python scripts/interpreters.py [--newest]``

One line for each release (3.11, 3.12, ...) with the path of an interpreter that runs and can create
environments. ``python3.N`` is looked for on the path, and below the directories of pyenv and uv.
``--newest`` prints only the last line, and nothing if the running Python is of the newest release.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST = 11
#: The last release to look for; the next ones are years away.
NEWEST = 20


def candidates(minor: int) -> Iterator[Path]:
    """Yield files that may be interpreters of Python 3.*minor*."""
    for directory in os.get_exec_path():
        yield Path(directory, f"python3.{minor}")
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python")
    for installed in (pyenv / "versions", uv):
        yield from sorted(installed.glob(f"*3.{minor}*/bin/python3.{minor}"))


def release_of(python: str | Path) -> tuple[int, ...] | None:
    """Return the version of an interpreter; None if it does not run or lacks ``venv``."""
    code = "import ensurepip, sys, venv; print(*sys.version_info[:3])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(map(int, done.stdout.split()))


def interpreters() -> Iterator[Path]:
    """Yield an interpreter of each supported release that is at hand, the oldest first."""
    for minor in range(OLDEST, NEWEST + 1):
        for path in candidates(minor):
            if path.exists() and (release_of(path) or ())[:2] == (3, minor):
                yield path
                break


def main(arguments: list[str]) -> int:
    found = list(interpreters())
    if "--newest" in arguments:
        found = found[-1:]
        if found and (release_of(found[0]) or ())[:2] <= sys.version_info[:2]:
            found = []
    sys.stdout.writelines(f"{path}\n" for path in found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
