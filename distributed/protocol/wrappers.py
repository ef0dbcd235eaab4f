"""Wrappers: values in a message that say how they are sent.

========== ========================================= =====================================
wrapper    meaning at the sender                     the receiver gets
========== ========================================= =====================================
Serialize  a value to serialize apart from the       the value, or a `Serialized` if it
           message                                   leaves values serialized
Serialized a value that is already serialized        the same as for `Serialize`
ToPickle   a value to pickle                         the value
Pickled    a value that is already pickled           the value
========== ========================================= =====================================

The wrappers only hold data; :mod:`distributed.protocol.core` handles them.

dask counts and identifies them by their data, in two ways that do not need it to be imported: its
``sizeof`` uses ``__sizeof__``, and its ``tokenize`` uses ``__dask_tokenize__``.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Generic, TypeVar

from distributed.base.buffers import ensure_memoryview, nbytes, size_of

__all__ = ["Pickled", "Serialize", "Serialized", "ToPickle", "to_serialize"]

T = TypeVar("T")

# A wrapper may be pickled inside another object.  Its pickle must name the module where the
# original has the class.
_HOME = "distributed.protocol.serialize"


class _Plain:
    pass


# sys.getsizeof() adds this number of bytes to __sizeof__() for what precedes an object in memory.
_OVERHEAD = sys.getsizeof(_Plain()) - _Plain().__sizeof__()


def _without_overhead(size: int) -> int:
    return max(size - _OVERHEAD, 0)


def _token(data: Any) -> Any:
    """Return what dask's ``tokenize`` makes of *data*; it has imported the module."""
    return sys.modules["dask.base"].normalize_token(data)


class _Wrapper(Generic[T]):
    data: T

    def __init__(self, data: T):
        self.data = data

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {reprlib.repr(self.data)}>"

    def __sizeof__(self) -> int:
        return _without_overhead(size_of(self.data))

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, _token(self.data)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and bool(other.data == self.data)

    def __hash__(self) -> int:
        return hash(self.data)


class Serialize(_Wrapper[T]):
    """A value to serialize apart from the message that contains it.

    Parameters
    ----------
    data
        The value.

    Examples
    --------
    >>> message = {"op": "update", "data": to_serialize(123)}
    >>> message["data"]
    <Serialize: 123>
    """


to_serialize = Serialize


class ToPickle(_Wrapper[T]):
    """A value to pickle apart from the message; every receiver unpickles it, even to pass it on.

    Parameters
    ----------
    data
        The value.
    """


class _HeaderAndFrames:
    def __init__(self, header: dict[str, Any], frames: Sequence[Any]):
        self.header = header
        self.frames = frames

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"<{name} {self._what()}, {len(self.frames)} frames>"

    def __sizeof__(self) -> int:
        frames = sys.getsizeof(self.frames) + sum(map(nbytes, self.frames))
        return _without_overhead(size_of(self.header) + frames)

    def __dask_tokenize__(self) -> Any:
        # The hash of a frame does not depend on whether it is a bytes object or a view.
        frames = [sha256(ensure_memoryview(frame)).hexdigest() for frame in self.frames]
        return type(self).__name__, _token(_without_count(self.header)), frames

    def _what(self) -> str:
        for key in ("type", "type-serialized", "serializer"):
            what = self.header.get(key)
            if isinstance(what, str):
                return reprlib.repr(what)
        return "value"

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is type(self)
            and isinstance(other, _HeaderAndFrames)
            and _without_count(other.header) == _without_count(self.header)
            and list(other.frames) == list(self.frames)
        )

    __hash__ = None  # type: ignore[assignment]


def _without_count(header: dict[str, Any]) -> dict[str, Any]:
    # A message adds the number of frames to a header, so it does not tell values apart.
    return {key: value for key, value in header.items() if key != "num-sub-frames"}


class Serialized(_HeaderAndFrames):
    """A serialized value, which can be sent on unchanged.

    Parameters
    ----------
    header, frames
        The result of :func:`~distributed.protocol.serialize.serialize`, or those of a message.
    """


class Pickled(_HeaderAndFrames):
    """A pickled value, to send unchanged.

    Parameters
    ----------
    header
        A dict with the pickle as ``"pickled-obj"``.
    frames
        The out-of-band buffers of the pickle.
    """


for _wrapper in (Serialize, ToPickle, Serialized, Pickled):
    _wrapper.__module__ = _HOME
