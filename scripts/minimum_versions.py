"""Print the requirements of ``setup.cfg`` with exactly their minimum versions, one per line.

Usage: ``python scripts/minimum_versions.py [EXTRA ...]``; without arguments, the requirements that
the package cannot run without.  An extra adds its own requirements.  A requirement without a
minimum version is an error.  Uses the standard library only.
"""

from __future__ import annotations

import configparser
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

SETUP_CFG = Path(__file__).resolve().parents[1] / "setup.cfg"
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*>=\s*(?P<version>[\w.]+)\s*(?:,.*)?")


def requirements(config: configparser.ConfigParser, extras: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the requirements, without comments."""
    texts = [config["options"]["install_requires"]]
    texts += [config["options.extras_require"][extra] for extra in extras]
    for line in "\n".join(texts).splitlines():
        if requirement := line.partition("#")[0].strip():
            yield requirement


def minimum(requirement: str) -> str:
    """Return the requirement of exactly the minimum version.

    Examples
    --------
    >>> minimum("tornado>=6.6"), minimum("pandas >= 2.0, <4")
    ('tornado==6.6', 'pandas==2.0')

    Raises
    ------
    ValueError
        If the requirement has no minimum version.
    """
    match = _REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise ValueError(f"setup.cfg: {requirement!r} has no minimum version, as in 'name>=1.0'")
    return f"{match['name']}=={match['version']}"


def main(extras: list[str]) -> int:
    config = configparser.ConfigParser()
    config.read(SETUP_CFG)
    try:
        lines = [minimum(requirement) for requirement in requirements(config, extras)]
    except (KeyError, ValueError) as exc:
        sys.stderr.write(f"minimum_versions: {exc}\n")
        return 1
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
