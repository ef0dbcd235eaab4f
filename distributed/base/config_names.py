"""The names of configuration keys: listing those of nested dicts, and the nearest known one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from distributed.base.arguments import nearest

__all__ = ["is_known", "leaves", "nearest_key", "plain"]

#: Minimum likeness of a misspelt key and the key that was meant; 1: they are equal.
_LIKENESS = 0.8
#: The section in which a key is also found by its last part alone.  In others, dask's roles have
#: keys that end as one of another section does.
_COMM = "distributed.comm."


def plain(key: str) -> str:
    """Return *key* as the defaults spell it: ``-`` and ``_`` are equivalent."""
    return key.replace("_", "-")


def leaves(section: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all values in nested dicts.

    Examples
    --------
    >>> list(leaves({"a": {"x": 1, "y": {}}, "b": 2}))
    ['a.x', 'a.y', 'b']
    """
    if isinstance(section, Mapping):
        for name, value in section.items():
            if isinstance(value, Mapping) and value:
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"


def is_known(key: str, known: Iterable[str]) -> bool:
    """Return whether *key* is one of the *known* keys, or a section of one."""
    # Sections may be set as a whole, to null or to an empty dict.
    return any(f"{each}.".startswith(f"{key}.") for each in known)


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """Return the key in *known* that is most like *key*, or None if none is like it.

    Parameters
    ----------
    key
        An unknown key, in its `plain` form.
    known
        The known keys, in their plain form.

    Examples
    --------
    >>> known = ["distributed.comm.timeouts.connect", "distributed.comm.shard"]
    >>> nearest_key("distributed.comm.timeouts.conect", known)
    'distributed.comm.timeouts.connect'
    >>> nearest_key("distributed.comm.connect", known)
    'distributed.comm.timeouts.connect'
    >>> nearest_key("distributed.worker.memory.target", known)
    """
    first, second, *rest = [*key.split("."), ""] if "." not in key else key.split(".")
    start = f"{first}.{second}."
    known = list(known)
    if not rest or not any(each.startswith(f"{first}.") for each in known):
        return nearest(key, known, _LIKENESS)
    inside = [each.removeprefix(start) for each in known if each.startswith(start)]
    if not inside:
        # The section is misspelt.
        sections = {each.split(".")[1] for each in known if each.startswith(f"{first}.")}
        section = nearest(second, sections)
        corrected = f"{first}.{section}.{'.'.join(rest)}"
        return None if section is None else nearest_key(corrected, known)
    # What all begin with would make any two keys of one section alike.
    near = nearest(key.removeprefix(start), inside, _LIKENESS)
    if near is None and start == _COMM:
        # A key in the wrong section.
        by_last = {each.rpartition(".")[2]: each for each in inside}
        near = by_last.get(nearest(rest[-1], by_last, _LIKENESS) or "")
    return None if near is None else start + (_in_section(".".join(rest), inside) or near)


def _in_section(key: str, known: list[str]) -> str | None:
    """Return the key of the same section that is most like *key*, or has a word in common."""
    section, dot, last = key.rpartition(".")
    names = [each.removeprefix(section + dot) for each in known if each.startswith(section + dot)]
    names = [each for each in names if "." not in each]
    near = nearest(last, names, _LIKENESS)
    if near is None:
        words = frozenset(last.split("-"))
        alike = [each for each in names if words.intersection(each.split("-"))]
        near = alike[0] if len(alike) == 1 else None
    return None if near is None else section + dot + near
