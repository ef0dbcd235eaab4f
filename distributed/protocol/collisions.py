"""Maps and sets made of a peer's keys, without the cost of keys that have equal hashes.

Python salts the hashes of text and bytes.  The hash of a tuple depends only on its numbers, so a
peer can choose thousands of tuples with one hash, and adding each of them to a map compares it to
all that are there.  These functions compare hashes first, which takes linear time, and refuse such
keys.  Plain numbers need no check: at most a few dozen of them can have the same hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, Final

import msgpack

from distributed.protocol.exceptions import MessageError

__all__ = ["make_dict", "make_set"]

#: Maximum number of keys with the same hash.  Honest keys reach 8 with the numbers -1 and -2, whose
#: hashes are equal, in three places of a tuple.
_MAX_EQUAL: Final = 32

#: The types in msgpack of which a peer can choose many values with the same hash.  Unpickled types
#: are not checked: their own hashes may be poor, and peers that may send pickles are trusted.
_CHECKED_TYPES: Final = frozenset((tuple, msgpack.Timestamp))


def make_dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dict of *pairs*; of equal keys, the last one counts.

    Raises
    ------
    MessageError
        If too many keys have the same hash.
    TypeError
        If a key is not hashable.
    """
    if len(pairs) > _MAX_EQUAL:
        _check_hashes([key for key, _ in pairs])
    return dict(pairs)


def make_set(elements: Collection[Any]) -> set[Any]:
    """Return a set of *elements*.

    Raises
    ------
    MessageError
        If too many of them have the same hash.
    TypeError
        If one of them is not hashable.

    Examples
    --------
    >>> make_set([1, "a", 1]) == {1, "a"}
    True
    """
    if len(elements) > _MAX_EQUAL:
        _check_hashes(elements)
    return set(elements)


def _check_hashes(keys: Collection[Any]) -> None:
    if _CHECKED_TYPES.isdisjoint(map(type, keys)):
        return
    checked = [key for key in keys if type(key) in _CHECKED_TYPES]
    counts = Counter(map(hash, checked))
    if len(checked) - len(counts) < _MAX_EQUAL:
        return
    most = max(counts.values())
    if most > _MAX_EQUAL:
        raise MessageError(
            f"{most:,} of {len(keys):,} keys of a map, or elements of a set, have the same hash; "
            f"at most {_MAX_EQUAL} may"
        )
