"""Objects that are one piece of plain memory: their headers are worked out once for all of a kind.

What the header of an array says depends on its type, shape and strides alone, and programs send
many arrays that have these in common.  So the header of one is kept, packed, for the next one; and
where a header arrives that has arrived before, what it was found to mean is used again.  The bytes
are those that :mod:`distributed.protocol.pieces` would make, which makes the first of each kind;
whatever is not plain (split or compressed frames, other families, pickled types) goes that way.

A library's serializers (:mod:`distributed.protocol.numpy`) register here which objects are plain;
:mod:`distributed.protocol.core` asks for each wrapped value of a message.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from distributed.protocol.dispatch import dask_deserialize, dask_serialize, typename
from distributed.protocol.families import families
from distributed.protocol.objects import Header
from distributed.protocol.pieces import pack_header, serialize_and_split
from distributed.protocol.utils import default_shard_size

__all__ = [
    "is_known_plain",
    "plain_frames",
    "plain_reader",
    "register_plain_memory",
    "remember_reader",
]

#: Headers that are kept in each direction, and bytes above which one that arrives is not.
_KEPT, _MAX_HEADER = 512, 1024

#: Turns the frame of an object into the object; None if it is no frame of such an object.
Reader = Callable[[Any], Any]

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


_keeping = threading.Lock()


class _Kept(dict[_K, _V], Generic[_K, _V]):
    """A dict that forgets what it was told first."""

    def keep(self, key: _K, value: _V) -> None:
        with _keeping:
            if len(self) >= _KEPT:
                del self[next(iter(self))]
            self[key] = value


class _Kind(NamedTuple):
    """A type whose objects are plain memory as long as these serializers are registered for it."""

    cls: type
    serialize: Callable[..., Any]
    describe: Callable[[Any], tuple[Hashable, memoryview] | None]
    deserialize: Callable[..., Any]
    prepare: Callable[[Header], Reader | None]

    def is_sent_so(self) -> bool:
        serialize = dask_serialize.resolved.get(self.cls) or dask_serialize.dispatch(self.cls)
        return serialize is self.serialize and families.get("dask") is _DASK

    def is_read_so(self) -> bool:
        deserialize = dask_deserialize.resolved.get(self.cls) or dask_deserialize.dispatch(self.cls)
        return deserialize is self.deserialize and families.get("dask") is _DASK


_kinds: dict[type, _Kind] = {}
_headers: _Kept[tuple[type, Hashable], bytes] = _Kept()
_readers: _Kept[bytes, tuple[_Kind, Reader]] = _Kept()
_DASK = families["dask"]


def register_plain_memory(
    cls: type,
    serialize: Callable[..., Any],
    describe: Callable[[Any], tuple[Hashable, memoryview] | None],
    deserialize: Callable[..., Any],
    prepare: Callable[[Header], Reader | None],
) -> None:
    """Say which objects of a type, and of it alone, are plain memory.

    Parameters
    ----------
    cls
        The type.
    serialize, deserialize
        What is registered for it with `dask_serialize` and `dask_deserialize`; where anything else
        is, that counts.
    describe
        Given an object, returns what determines its header, and its memory; None if it is not
        plain.
    prepare
        Given the header that *serialize* made of a plain object, returns what makes objects of
        frames that come with such headers; None if the header is no such header.
    """
    _kinds[cls] = _Kind(cls, serialize, describe, deserialize, prepare)


def plain_frames(obj: Any, split_size: int | None) -> tuple[bytes, memoryview] | None:
    """The header of *obj*, packed, and its memory; None if it is not plain."""
    kind = _kinds.get(type(obj))
    if kind is None or not kind.is_sent_so() or (described := kind.describe(obj)) is None:
        return None
    key, memory = described
    if len(memory) > (default_shard_size() if split_size is None else split_size):
        return None
    packed = _headers.get((kind.cls, key))
    if packed is None:
        header, _ = serialize_and_split(obj, size=split_size)
        header["num-sub-frames"] = 1
        packed = pack_header(header)
        _headers.keep((kind.cls, key), packed)
    return packed, memory


def plain_reader(packed: Any) -> Reader | None:
    """What makes objects of frames that come with the header *packed*, if that is known."""
    if len(packed) > _MAX_HEADER:
        return None
    kind, read = _readers.get(bytes(packed), _UNKNOWN)
    return read if kind is not None and kind.is_read_so() else None


_UNKNOWN: tuple[None, None] = None, None


def is_known_plain(packed: Any) -> bool:
    """Whether `plain_reader` knew what makes objects of such frames when it was asked last."""
    return len(packed) <= _MAX_HEADER and bytes(packed) in _readers


def remember_reader(packed: Any, header: Header, obj: Any) -> None:
    """Take note that *obj* came with the header *packed*, which is *header*."""
    kind = _kinds.get(type(obj))
    if (
        kind is None
        or len(packed) > _MAX_HEADER
        or header.get("serializer") != "dask"
        or header.get("type") != typename(kind.cls)
        or header.get("num-sub-frames") != 1
        or header.get("split-num-sub-frames") != (1,)
        or header.get("compression") != (None,)
        or not kind.is_read_so()
    ):
        return
    read = kind.prepare(header["sub-header"])
    if read is not None:
        _readers.keep(bytes(packed), (kind, read))
