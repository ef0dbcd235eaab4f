"""Which elements of a collection are pickled, so that they can be pickled together.

A header, a pickle and a frame for each element make a wrapped list of 100,000 numbers hundreds of
times slower than its pickle.  :mod:`distributed.protocol.objects` asks this module whether it may
pickle a collection whole.  It may if each element would be pickled: a receiver that accepts such
elements one by one accepts the whole, too, and no buffer is copied that would not be copied
otherwise.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from distributed.protocol.dispatch import Dispatch, cuda_serialize, dask_serialize
from distributed.protocol.families import families, pickle_protocol
from distributed.protocol.wrappers import Serialize, Serialized

__all__ = ["COLLECTIONS", "MAX_DEPTH", "ScalarPickler", "is_pickled_together"]

COLLECTIONS = (list, tuple, set, dict)

#: Maximum number of nested collections that are looked into: a list may contain itself.
MAX_DEPTH = 100

#: Maximum number of elements of a collection that is serialized as the original does.
_MAX_SMALL = 16

# The families that accept an object because of its type alone, with their tables.
_BY_TYPE = {"dask": (families["dask"], dask_serialize), "cuda": (families["cuda"], cuda_serialize)}
_PICKLE = families["pickle"]

# Types whose pickles are the same with and without cloudpickle, and have no buffers.
_SCALARS = frozenset((type(None), bool, int, float, str))


def is_pickled_together(x: Any, serializers: Sequence[str]) -> bool:
    """Return whether a wrapped collection is pickled whole.

    Parameters
    ----------
    x
        A list, tuple, set or dict.
    serializers
        Names of the families that may be used, in order.

    Examples
    --------
    >>> is_pickled_together([0.5] * 1000, ["dask", "pickle"])
    True
    >>> is_pickled_together([0.5] * 999 + [b"has a serializer"], ["dask", "pickle"])
    False
    """
    if len(x) <= _MAX_SMALL or (tables := _tables_before_pickle(serializers)) is None:
        return False
    level = x.values() if type(x) is dict else x
    # A collection in *x* is judged by its first element, as in check_dask_serializable.  Asking
    # each type once takes a small part of the time that pickling takes.
    for _ in range(MAX_DEPTH):
        types = set(map(type, level))
        leaves = types.difference(COLLECTIONS)
        if Serialize in leaves or Serialized in leaves:
            return False
        if any(_has_serializer(cls, tables) for cls in leaves):
            return False
        if len(leaves) == len(types):
            return True
        level = [
            next(iter(value.values() if type(value) is dict else value))
            for value in level
            if type(value) in COLLECTIONS and value
        ]
    return False


class ScalarPickler:
    """The pickles of numbers and texts among the elements of a collection.

    Parameters
    ----------
    serializers, context
        As for `distributed.protocol.objects.serialize`.
    """

    def __init__(self, serializers: Sequence[str], context: Any):
        self._serializers = serializers
        self._protocol = pickle_protocol(context)
        # Type -> whether its instances are pickled; asked at the first one.
        self._pickled: dict[type, bool] = {}

    def dumps(self, x: Any) -> bytes | None:
        """Return the pickle of *x*, the only frame of its family; None if it is not a scalar."""
        cls = type(x)
        if cls not in _SCALARS:
            return None
        pickled = self._pickled.get(cls)
        if pickled is None:
            tables = _tables_before_pickle(self._serializers)
            pickled = tables is not None and not _has_serializer(cls, tables)
            self._pickled[cls] = pickled
        return pickle.dumps(x, self._protocol) if pickled else None


def _tables_before_pickle(serializers: Sequence[str]) -> list[Dispatch] | None:
    """Return the tables of the types that are not pickled.

    Returns
    -------
    list of Dispatch, or None
        None if pickle is not allowed, or comes after families that may accept any object.
    """
    tables: list[Dispatch] = []
    for name in serializers:
        if name == "pickle":
            return tables if families.get(name) is _PICKLE else None
        family, table = _BY_TYPE.get(name, (None, None))
        if table is None or families.get(name) is not family:
            return None
        tables.append(table)
    return None


def _has_serializer(cls: type, tables: Sequence[Dispatch]) -> bool:
    for table in tables:
        try:
            table.dispatch(cls)
        except TypeError:
            continue
        return True
    return False
