"""A cache of packed headers, for types whose objects often have equal headers.

The header of an array depends only on its type, shape and strides, which many arrays of one
program share.  :func:`cached_frames` keeps the packed header for the next such array to be sent;
:func:`cached_reader` keeps, for a header received before, the function that makes its arrays.  The
bytes are those of :mod:`distributed.protocol.pieces`, which makes the first header of each kind
and handles every value that cannot be cached: split or compressed frames, other families, pickled
types.

A library's serializers (:mod:`distributed.protocol.numpy`) register the types whose headers are
cached; :mod:`distributed.protocol.core` asks for each wrapped value of a message.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from distributed.base.metering import unmetered
from distributed.protocol.dispatch import dask_deserialize, dask_serialize, typename
from distributed.protocol.families import families
from distributed.protocol.objects import Header
from distributed.protocol.pieces import pack_header, serialize_and_split
from distributed.protocol.utils import default_shard_size

__all__ = [
    "cache_reader",
    "cached_frames",
    "cached_reader",
    "cached_types",
    "register_cached_headers",
]

#: Maximum number of headers in the cache, for each direction.
_CAPACITY = 512

#: Maximum size (bytes) of a received header that is cached.
_MAX_HEADER_SIZE = 1024

#: Makes an object from its frame; returns None if the frame does not fit the header.
Reader = Callable[[Any], Any]

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class _Cache(dict[_K, _V], Generic[_K, _V]):
    """A dict that evicts its oldest entry when it is full.

    Only `add` may change it.  Readers do not take the lock.
    """

    def __init__(self) -> None:
        super().__init__()
        # Held while an entry is evicted and added: several threads may write messages.
        self._lock = threading.Lock()

    def add(self, key: _K, value: _V) -> None:
        with self._lock:
            if len(self) >= _CAPACITY:
                del self[next(iter(self))]
            self[key] = value


class _CachedType(NamedTuple):
    """A type, and what its library has registered for it.

    Serializers that are registered for the type later replace these: then its headers are neither
    taken from the cache nor added to it.
    """

    cls: type
    serialize: Callable[..., Any]
    describe: Callable[[Any], tuple[Hashable, memoryview] | None]
    deserialize: Callable[..., Any]
    prepare: Callable[[Header], Reader | None]

    def has_own_serializer(self) -> bool:
        serialize = dask_serialize.resolved.get(self.cls) or dask_serialize.dispatch(self.cls)
        return serialize is self.serialize and families.get("dask") is _DASK

    def has_own_deserializer(self) -> bool:
        deserialize = dask_deserialize.resolved.get(self.cls) or dask_deserialize.dispatch(self.cls)
        return deserialize is self.deserialize and families.get("dask") is _DASK


_DASK = families["dask"]
_UNKNOWN: tuple[None, None] = None, None

cached_types: dict[type, _CachedType] = {}
"""Types whose headers are cached."""

_serialize_and_split = unmetered(serialize_and_split)
# Type and the first result of `describe` -> packed header.
_headers: _Cache[tuple[type, Hashable], bytes] = _Cache()
# Packed header -> its type, and the function that reads the frame that follows it.
_readers: _Cache[bytes, tuple[_CachedType, Reader]] = _Cache()


def register_cached_headers(
    cls: type,
    serialize: Callable[..., Any],
    describe: Callable[[Any], tuple[Hashable, memoryview] | None],
    deserialize: Callable[..., Any],
    prepare: Callable[[Header], Reader | None],
) -> None:
    """Cache the headers of a type's instances, but not those of its subclasses.

    Parameters
    ----------
    cls
        The type.
    serialize, deserialize
        The functions registered for it with `dask_serialize` and `dask_deserialize`.  The cache
        is not used while other functions are registered.
    describe
        Takes an object; returns a key that determines its header, and its memory.  Returns None
        for an object whose header must not be cached.
    prepare
        Takes a header that *serialize* made; returns the function that makes objects from frames
        with this header, or None if there is no such function.
    """
    cached_types[cls] = _CachedType(cls, serialize, describe, deserialize, prepare)


def cached_frames(obj: Any, split_size: int | None) -> tuple[bytes, memoryview] | None:
    """Return the packed header and the memory of *obj*; None if its header cannot be cached."""
    known = cached_types.get(type(obj))
    if known is None or not known.has_own_serializer() or (pair := known.describe(obj)) is None:
        return None
    key, memory = pair
    if len(memory) > (default_shard_size() if split_size is None else split_size):
        return None
    packed = _headers.get((known.cls, key))
    if packed is None:
        header, _ = _serialize_and_split(obj, size=split_size)
        header["num-sub-frames"] = 1
        packed = pack_header(header)
        _headers.add((known.cls, key), packed)
    return packed, memory


def cached_reader(packed: Any) -> Reader | None:
    """Return the function that reads frames with the header *packed*; None if it is not cached."""
    if len(packed) > _MAX_HEADER_SIZE:
        return None
    known, read = _readers.get(bytes(packed), _UNKNOWN)
    return read if known is not None and known.has_own_deserializer() else None


def cache_reader(packed: Any, header: Header, obj: Any) -> None:
    """Add the reader for a received header to the cache, if there is one.

    Parameters
    ----------
    packed, header
        The header, packed and unpacked.
    obj
        The object that was received with it.
    """
    known = cached_types.get(type(obj))
    if (
        known is None
        or len(packed) > _MAX_HEADER_SIZE
        or header.get("serializer") != "dask"
        or header.get("type") != typename(known.cls)
        or header.get("num-sub-frames") != 1
        or header.get("split-num-sub-frames") != (1,)
        or header.get("compression") != (None,)
        or not known.has_own_deserializer()
    ):
        return
    read = known.prepare(header["sub-header"])
    if read is not None:
        _readers.add(bytes(packed), (known, read))
