"""Objects to a header and frames, and back.

:func:`serialize` hands an object to the first family that accepts it.  A collection goes element
by element if that keeps large buffers out of pickles.  The header is a dict that msgpack can
encode; the frames are bytes-like and mostly the object's own memory.

:mod:`distributed.protocol.pieces` then splits large frames, and :mod:`distributed.protocol.core`
puts header and frames into a message.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgpack

from distributed.base.text import shown, shown_repr
from distributed.protocol import pickle
from distributed.protocol.collisions import make_dict, make_set
from distributed.protocol.compression import decompress
from distributed.protocol.dispatch import dask_serialize
from distributed.protocol.exceptions import (
    DeserializationError,
    FamilyNotAllowedError,
    HeaderError,
    ProtocolError,
    SerializationError,
)
from distributed.protocol.families import Header, check_families, families, pickle_dumps
from distributed.protocol.limits import Reading, check_unpickling, reading
from distributed.protocol.together import (
    COLLECTIONS,
    MAX_DEPTH,
    ScalarPickler,
    is_pickled_together,
)
from distributed.protocol.utils import join_frames
from distributed.protocol.wrappers import Serialize, Serialized

__all__ = [
    "Header",
    "OnError",
    "accepted_serializers",
    "accepts_pickles",
    "can_be_key",
    "check_dask_serializable",
    "check_family",
    "deserialize",
    "load_pickled",
    "merge_frames",
    "serialize",
]

OnError: TypeAlias = Literal["message", "raise"]

DEFAULT_SERIALIZERS = ("dask", "pickle")

_COLLECTIONS_BY_NAME: dict[str, type] = {cls.__name__: cls for cls in COLLECTIONS}

# Header keys that are added after `serialize`, for a message or for storing.
_ADDED_KEYS = frozenset(
    ("split-num-sub-frames", "split-offsets", "compression", "num-sub-frames", "count")
)

#: Maximum size (bytes) of the traceback that is sent for a value that could not be serialized.
_MAX_TRACEBACK_SIZE = 100_000


def check_dask_serializable(x: Any) -> bool:
    """Return whether *x* has a serializer in the "dask" family.

    A list, tuple, set or dict is judged by its first element, which may be a collection, too.

    Examples
    --------
    >>> check_dask_serializable([b"a", 1]), check_dask_serializable([1, b"a"])
    (True, False)
    """
    for _ in range(MAX_DEPTH):
        if type(x) not in COLLECTIONS:
            break
        if not x:
            return False
        x = next(iter(x.values() if type(x) is dict else x))
    try:
        dask_serialize.dispatch(type(x))
    except TypeError:
        return False
    return True


def _is_msgpack_serializable(v: Any) -> bool:
    """Return whether *v* is the same after msgpack, apart from lists, which become tuples."""
    return _is_made_of(v, (str, float, bool, bytes, type(None)))


def _is_dumpable(v: Any) -> bool:
    """Return whether *v* can be put into a message without pickling it."""
    return _is_made_of(v, (str, float, bool, bytes, type(None), Serialize, Serialized))


def _is_made_of(v: Any, leaves: tuple[type, ...]) -> bool:
    cls = type(v)
    if cls is int:
        return -(2**63) <= v < 2**64
    if cls in leaves:
        return True
    if cls in (list, tuple):
        return all(_is_made_of(element, leaves) for element in v)
    if cls is dict:
        return all(type(key) is str and _is_made_of(value, leaves) for key, value in v.items())
    return False


def can_be_key(key: Any) -> bool:
    """Return whether *key* can be a key of a dict in a header."""
    try:
        msgpack.packb(key)
    except Exception:  # noqa: BLE001 - msgpack raises errors of several types
        return False
    return True


def _is_iterated(x: Any, serializers: Sequence[str], iterate_collection: bool | None) -> bool:
    """Return whether the elements of *x* are serialized one by one."""
    cls = type(x)
    if iterate_collection is False or cls not in COLLECTIONS:
        return False
    if cls is dict and not all(map(can_be_key, x)):
        return False
    if iterate_collection or check_dask_serializable(x):
        return True
    # msgpack would turn a list into a tuple, so if it comes before pickle, lists go by element.
    return (
        cls is list
        and "msgpack" in serializers
        and not (
            "pickle" in serializers and serializers.index("pickle") < serializers.index("msgpack")
        )
    )


def accepts_pickles(context: Any) -> bool:
    """Return whether the receiver that *context* describes unpickles anything."""
    return not context or context.get("allow-pickle") is not False


def accepted_serializers(serializers: Sequence[str] | None, context: Any) -> Sequence[str] | None:
    """Return *serializers*, with "msgpack" for "pickle" if the receiver unpickles nothing.

    Examples
    --------
    >>> accepted_serializers(["dask", "pickle"], {"allow-pickle": False})
    ('dask', 'msgpack')
    """
    if accepts_pickles(context):
        return serializers
    names = DEFAULT_SERIALIZERS if serializers is None else serializers
    # A dict drops a second "msgpack".
    return tuple(dict.fromkeys("msgpack" if name == "pickle" else name for name in names))


def serialize(
    x: Any,
    serializers: Sequence[str] | None = None,
    on_error: OnError = "message",
    context: Any = None,
    iterate_collection: bool | None = None,
) -> tuple[Header, list[Any]]:
    """Turn an object into a header and frames.

    Parameters
    ----------
    x
        Any object.  A `Serialize` stands for its value; if that is a list, tuple, set or dict, its
        elements are serialized one by one, unless there are many and all would be pickled: then
        they are pickled together.  A `Serialized` stands for its header and frames.
    serializers
        Names of the families that may be used, in order; "dask" and "pickle" by default.
    on_error
        What to do with an object that no family accepts: "message" returns an explanation
        in its place, which the receiver raises; "raise" raises it here.
    context
        The options negotiated with the receiver, for the serializers that ask for them.
    iterate_collection
        Whether the elements of a list, tuple, set or dict are serialized one by one.  By default,
        they are if the first one has a serializer in the "dask" family; those of a list also if
        "msgpack" comes before "pickle".

    Returns
    -------
    tuple of dict and list
        The header, which msgpack can encode, and the frames, each bytes-like.

    Raises
    ------
    SerializationError
        For an object that no family accepts, if *on_error* is "raise"; a `TypeError`.
    ValueError
        For an unknown family or *on_error*.

    Examples
    --------
    >>> header, frames = serialize({"a": b"abc", "b": 1})
    >>> frames[0], [sub_header["serializer"] for sub_header in header["sub-headers"]]
    (b'abc', ['dask', 'pickle'])
    >>> deserialize(*serialize([b"abc", {"a": 1}]))
    [b'abc', {'a': 1}]
    """
    if on_error not in ("message", "raise"):
        raise ValueError(f"{on_error=}; expected 'message' or 'raise'")
    serializers = accepted_serializers(serializers, context) or DEFAULT_SERIALIZERS
    wrapped = type(x) is Serialize
    while type(x) is Serialize:
        x, iterate_collection = x.data, True
    if wrapped and type(x) in COLLECTIONS and is_pickled_together(x, serializers):
        try:
            return pickle_dumps(x, context)
        except Exception:  # noqa: BLE001 - the element that caused it raises it again below
            iterate_collection = True
    if type(x) is Serialized:
        header, merged = merge_frames(x.header, decompress(x.header, x.frames))
        return {key: header[key] for key in header if key not in _ADDED_KEYS}, merged
    if _is_iterated(x, serializers, iterate_collection):
        return _serialize_elements(x, serializers, on_error, context)
    failure: Exception | None = None
    for name in serializers:
        family = families.get(name)
        if family is None:
            # This raises, unless another thread has just registered the family.
            check_families("serializers", serializers)
            continue
        if family.dumps is None:
            continue
        try:
            if family.wants_context:
                header, frames = family.dumps(x, context=context)
            else:
                header, frames = family.dumps(x)
        except NotImplementedError:
            continue
        except Exception as e:  # noqa: BLE001 - handed to the caller or to the receiver
            failure = e
            break
        header["serializer"] = name
        return header, list(frames)
    return _explain(x, serializers, failure, on_error, context)


def _serialize_elements(
    x: Any, serializers: Sequence[str], on_error: OnError, context: Any
) -> tuple[Header, list[Any]]:
    sub_headers: list[Header] = []
    lengths: list[int] = []
    frames: list[Any] = []
    scalars = ScalarPickler(serializers, context)
    for element in x.values() if type(x) is dict else x:
        pickled = scalars.dumps(element)
        if pickled is not None:
            # As below, in a small part of the time.
            sub_headers.append({"serializer": "pickle", "writeable": ()})
            lengths.append(1)
            frames.append(pickled)
            continue
        sub_header, sub_frames = serialize(element, serializers, on_error, context)
        sub_headers.append(sub_header)
        lengths.append(len(sub_frames))
        frames += sub_frames
    if type(x) is dict:
        sub_headers = [{**header, "key": key} for header, key in zip(sub_headers, x, strict=True)]
    header = {
        "sub-headers": sub_headers,
        "is-collection": True,
        "frame-lengths": lengths,
        "type-serialized": type(x).__name__,
    }
    return header, frames


def _explain(
    x: Any,
    serializers: Sequence[str],
    failure: Exception | None,
    on_error: OnError,
    context: Any,
) -> tuple[Header, list[Any]]:
    message = f"Could not serialize object of type {type(x).__name__}"
    if not accepts_pickles(context):
        message += " for a receiver that unpickles nothing"
    if on_error == "raise":
        reason = failure or f"none of the serializers {shown_repr(serializers)} accepts it"
        raise SerializationError(f"{message}: {reason}") from failure
    frames = [message.encode()]
    if failure is not None:
        frames.append("".join(traceback.format_exception(failure)).encode()[:_MAX_TRACEBACK_SIZE])
    return {"serializer": "error"}, frames


def deserialize(
    header: Header, frames: Sequence[Any], deserializers: Sequence[str] | None = None
) -> Any:
    """Turn a header and frames back into an object.

    Parameters
    ----------
    header, frames
        The result of `serialize`, or the same bytes in other bytes-like objects.
    deserializers
        Names of the families that may be used; all by default.  "error" is always allowed: it only
        raises the reason why a value could not be sent.

    Raises
    ------
    FamilyNotAllowedError
        If the object is of another family; a `TypeError`.
    SerializationError
        If the sender could not serialize the object; a `TypeError`.
    HeaderError
        If header and frames do not match.
    DeserializationError
        If the object's own deserializer fails, or a pickle is malformed; the error is the
        ``__cause__``.
    Exception
        Any error that an object raises while it is unpickled.  A note says what was unpickled.
    """
    if not header.get("is-collection"):
        with reading():
            return _deserialize_one(header, frames, deserializers)
    with reading() as message:
        depth = message.depth
        try:
            return _deserialize_collection(header, frames, deserializers, message)
        finally:
            message.depth = depth


def check_family(name: Any, deserializers: Sequence[str]) -> None:
    """Raise `FamilyNotAllowedError` unless the family *name* is among *deserializers*."""
    if name not in deserializers and name != "error":
        raise FamilyNotAllowedError(
            f"Data serialized with {shown(name)} but only able to deserialize data with "
            f"{shown_repr(list(deserializers))}"
        )


def _deserialize_one(
    header: Header, frames: Sequence[Any], deserializers: Sequence[str] | None
) -> Any:
    name = header.get("serializer")
    if deserializers is not None:
        check_family(name, deserializers)
    family = families.get(name) if isinstance(name, str) else None
    if family is None:
        raise HeaderError(
            f"unknown serializer family {shown_repr(name, 100)} (known: {list(families)})"
        )
    try:
        return family.loads(header, frames)
    except (ProtocolError, FamilyNotAllowedError, SerializationError):
        raise
    except Exception as e:
        pickled = frames[0] if name == "pickle" and frames else b""
        if pickle.is_own_error(e):
            pickle.note_origin(e, pickled)
            raise
        what = header.get("type") or f"an object with {name}"
        raise DeserializationError(
            f"could not deserialize {shown(what, 200)}: {type(e).__name__}: {shown(e)}"
        ) from e


class _Collection:
    """A collection that is being deserialized, element by element.

    Parameters
    ----------
    header
        The header of the collection.
    start, stop
        The range of its frames.
    """

    def __init__(self, header: Header, start: int, stop: int):
        # The elements that are complete.
        self.elements: list[Any] = []
        # Index of the first frame of the next element.
        self.start = start
        # The header of each element.
        self.sub_headers = header.get("sub-headers")
        name = header.get("type-serialized")
        cls = _COLLECTIONS_BY_NAME.get(name) if isinstance(name, str) else None
        if cls is None:
            raise HeaderError(f"{shown_repr(name, 100)} is not a type of collection")
        self.cls = cls
        # The number of frames of each element.
        self.lengths = _checked_counts("frame-lengths", header.get("frame-lengths"), stop - start)
        count = len(self.lengths)
        if not isinstance(self.sub_headers, (tuple, list)) or len(self.sub_headers) != count:
            raise HeaderError(f"a collection of {count} elements does not have {count} headers")

    @property
    def complete(self) -> bool:
        return len(self.elements) == len(self.lengths)

    def next_element(self) -> tuple[Header, int, int]:
        """Return the header of the next element and the range of its frames."""
        i = len(self.elements)
        sub_header = self.sub_headers[i]  # type: ignore[index]
        if not isinstance(sub_header, dict):
            raise HeaderError(f"an element's header is {type(sub_header).__name__}, not a map")
        start = self.start
        self.start += self.lengths[i]
        return sub_header, start, self.start

    def make(self) -> Any:
        """Return the collection, which must be complete."""
        try:
            if self.cls is dict:
                keys = [sub_header["key"] for sub_header in self.sub_headers]  # type: ignore[union-attr]
                return make_dict(list(zip(keys, self.elements, strict=True)))
            return make_set(self.elements) if self.cls is set else self.cls(self.elements)
        except (KeyError, TypeError) as e:
            raise HeaderError(f"a {self.cls.__name__} cannot be made of its elements: {e}") from e


def _deserialize_collection(
    header: Header, frames: Sequence[Any], deserializers: Sequence[str] | None, message: Reading
) -> Any:
    # The collections around the next element, outermost first.  Python's own stack would be too
    # small for the depth that a peer can send.
    message.open_collection()
    open_ = [_Collection(header, 0, len(frames))]
    while True:
        innermost = open_[-1]
        if innermost.complete:
            value = innermost.make()
            open_.pop()
            message.depth -= 1
            if not open_:
                return value
            open_[-1].elements.append(value)
            continue
        sub_header, start, stop = innermost.next_element()
        if sub_header.get("is-collection"):
            message.open_collection()
            open_.append(_Collection(sub_header, start, stop))
        else:
            innermost.elements.append(
                _deserialize_one(sub_header, frames[start:stop], deserializers)
            )


def _checked_counts(what: str, counts: Any, total: int) -> Sequence[int]:
    """Return *counts*, the numbers of frames in a header, if they add up to *total*."""
    if (
        not isinstance(counts, (tuple, list))
        or not all(type(n) is int and n >= 0 for n in counts)
        or sum(counts) != total
    ):
        raise HeaderError(
            f"{what} {shown_repr(counts, 200)} of a value do not add up to its {total} frames"
        )
    return counts


def load_pickled(header: Header, frames: Sequence[Any]) -> Any:
    """Unpickle an object that stands in a message as `Pickled`.

    Raises
    ------
    HeaderError
        If the header has no pickle.
    PickleNotAllowedError
        If nothing is unpickled on this connection.
    DeserializationError
        If the pickle is malformed; the error is the ``__cause__``.
    Exception
        Any error that the object raises while it is unpickled.  A note says what was unpickled.
    """
    pickled = header.get("pickled-obj")
    if not isinstance(pickled, bytes):
        raise HeaderError("the header of a pickled object has no pickle")
    check_unpickling()
    try:
        return pickle.loads(pickled, buffers=frames)
    except Exception as e:
        if pickle.is_own_error(e):
            pickle.note_origin(e, pickled)
            raise
        raise DeserializationError(f"could not unpickle: {type(e).__name__}: {shown(e)}") from e


def merge_frames(header: Header, frames: Sequence[Any]) -> tuple[Header, list[Any]]:
    """Join the pieces of each frame; return the header, with all its keys, and the frames."""
    counts = header.get("split-num-sub-frames")
    if counts is None:
        return header, list(frames)
    counts = _checked_counts("split-num-sub-frames", counts, len(frames))
    merged = []
    start = 0
    for count in counts:
        if not count:
            raise HeaderError("a frame of a value has no pieces")
        merged.append(join_frames(frames[start : start + count]))
        start += count
    return header, merged
