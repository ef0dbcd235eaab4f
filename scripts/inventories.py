"""Write the inventories of other projects that the documentation links to.

``docs/inventories`` has one file per project: the names that our pages refer to, with their places.
So ``make docs`` needs no network, and gives the same result everywhere.  A name that is missing
there is a warning of Sphinx.  Then run this with the inventory of the project, which is
``objects.inv`` at its site or in its Debian package::

    python scripts/inventories.py objects.inv docs/inventories/python.inv asyncio.timeout
"""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

_HEADER = re.compile(rb"# Sphinx inventory version 2\n# Project: (.*)\n# Version: (.*)\n.*zlib.*\n")
_LINE = re.compile(r"(\S+)\s+py:(\w+)\s+-?\d+\s+(\S+)\s+.*")


def entries(inventory: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the kind and the page of each Python object in an inventory."""
    header = _HEADER.match(inventory)
    if header is None:
        raise ValueError("not an inventory of Sphinx in version 2")
    for line in zlib.decompress(inventory[header.end() :]).decode().splitlines():
        if match := _LINE.fullmatch(line):
            name, kind, place = match.groups()
            yield name, "mod" if kind == "module" else kind, place.partition("#")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inventory", type=Path, help="the complete inventory of the project")
    parser.add_argument("output", type=Path, help="the file to write, or to extend")
    parser.add_argument("names", nargs="*", help="the names to add")
    args = parser.parse_args()
    data = args.inventory.read_bytes()
    header = _HEADER.match(data)
    wanted = set(args.names)
    if args.output.exists():
        wanted |= {line.split()[0] for line in args.output.read_text().splitlines()[3:]}
    found = sorted(entry for entry in entries(data) if entry[0] in wanted)
    for name in sorted(wanted - {name for name, _, _ in found}):
        print(f"not in {args.inventory}: {name}")
    assert header is not None  # entries() has checked it
    project, version = (group.decode() for group in header.groups())
    lines = ["# Sphinx inventory version 1", f"# Project: {project}", f"# Version: {version}"]
    args.output.write_text("\n".join([*lines, *map(" ".join, found)]) + "\n")


if __name__ == "__main__":
    main()
