"""A description of the machine and the installed versions, kept with the results."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from distributed import __version__
from distributed.tests.environments import run_in

_INSTALLED = """
    import importlib.metadata, json
    installed = importlib.metadata.distributions()
    print(json.dumps({each.metadata["Name"].lower(): each.version for each in installed}))
"""


def describe() -> dict[str, str]:
    """Return the machine, its operating system and the version of this project."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "distributed-core": __version__,
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def versions(python: Path, requirements: Sequence[str]) -> str:
    """Return the names and installed versions of the requirements, separated by commas.

    Raises
    ------
    AssertionError
        If the interpreter fails or does not answer in time.
    KeyError
        If a requirement is not installed.
    """
    installed = json.loads(run_in(python, _INSTALLED).stdout)
    names = [re.split(r"[=\[]", requirement)[0].lower() for requirement in requirements]
    return ", ".join(f"{name} {installed[name]}" for name in names)
