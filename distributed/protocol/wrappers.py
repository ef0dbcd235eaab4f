"""What a message may hold in place of a value, to say how the value should travel.

========== ========================================= =====================================
wrapper    the sender                                arrives as
========== ========================================= =====================================
Serialize  asks for a value to be serialized apart   the value; `Serialized` where the
           from the message                          receiver leaves values serialized
Serialized holds a value that was serialized before  as `Serialize`
ToPickle   asks for a value to be pickled            always the value
Pickled    holds a value that was pickled before     always the value
========== ========================================= =====================================

The wrappers know neither how serialization works nor what a message looks like; that is
:mod:`distributed.protocol.serialize` and :mod:`distributed.protocol.core`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Pickled", "Serialize", "Serialized", "ToPickle", "to_serialize"]

T = TypeVar("T")

# A peer that runs the original looks the wrappers up here when they were pickled inside of
# something else.
_HOME = "distributed.protocol.serialize"


class _Wrapper(Generic[T]):
    data: T

    def __init__(self, data: T):
        self.data = data

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {reprlib.repr(self.data)}>"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and bool(other.data == self.data)

    def __hash__(self) -> int:
        return hash(self.data)


class Serialize(_Wrapper[T]):
    """A value to be serialized apart from the message that it stands in.

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
    """A value to be pickled apart from the message, and unpickled even by those who pass it on.

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
            and other.header == self.header
            and list(other.frames) == list(self.frames)
        )

    __hash__ = None  # type: ignore[assignment]


class Serialized(_HeaderAndFrames):
    """A value that stays serialized: it can be passed on as it is.

    Parameters
    ----------
    header, frames
        What :func:`~distributed.protocol.serialize.serialize` gave, or arrived in a message.
    """


class Pickled(_HeaderAndFrames):
    """A value that was pickled, to be sent as it is.

    Parameters
    ----------
    header
        With the pickle in ``"pickled-obj"``.
    frames
        Its out-of-band buffers.
    """


for _wrapper in (Serialize, ToPickle, Serialized, Pickled):
    _wrapper.__module__ = _HOME
