"""Find the source of a configuration value, for errors.

Only values are stored, without their sources, also by dask.  So the sources are read once more: the
last one with the same value is the answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from distributed.base import config_store
from distributed.base.config_store import canonical_name

__all__ = ["CODE", "MISSING", "find_source", "lookup", "source_of", "sources"]

#: The description of the source of values that no variable and no file contains.
CODE: Final = "distributed.config.set or dask.config.set"

MISSING: Any = object()


def lookup(key: str, section: Any) -> Any:
    """Return the value of the dotted *key* in nested dicts, or `MISSING`.

    The last part may have dots itself: the section ``logging`` has names of loggers.
    """
    part, dot, rest = key.partition(".")
    if not isinstance(section, Mapping):
        return MISSING
    found = section.get(canonical_name(key, section), MISSING)
    if found is not MISSING or not dot:
        return found
    return lookup(rest, section.get(canonical_name(part, section), MISSING))


def _same(one: Any, other: Any) -> bool:
    # By their text, since a float may be nan.
    return one is not MISSING and repr(one) == repr(other)


def sources(paths: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the description and the values of each source, highest priority first.

    Parameters
    ----------
    paths
        The files and directories that were read, lowest priority first.
    """
    for name, text in sorted(os.environ.items()):
        if name.startswith("DASK_"):
            yield f"environment variable {name}", _parsed(name, text)
    for path in reversed(list(config_store.config_files(paths))):
        yield f"file {str(path)!r}", _content(str(path))


def find_source(key: str, value: Any, found: Iterable[tuple[str, dict[str, Any]]]) -> str | None:
    """Return the description of the first source in which *key* has *value*, or None."""
    return next((source for source, values in found if _same(lookup(key, values), value)), None)


def source_of(key: str, value: Any, paths: Sequence[str]) -> str:
    """Return a description of the source of a value.

    Parameters
    ----------
    key
        The dotted key.
    value
        The value that it has now.
    paths
        The files and directories that were read, lowest priority first.
    """
    return find_source(key, value, sources(paths)) or CODE


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        return config_store.collect_env({name: text})
    except ValueError:
        return {}


def _content(path: str) -> dict[str, Any]:
    try:
        found = config_store.collect_files([path], warn=lambda message: None)
    except ValueError:
        return {}
    return found[0] if found else {}
