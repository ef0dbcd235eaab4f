"""A serializer that sends an object attribute by attribute.

For classes whose instances consist of their ``__dict__``.  Each attribute goes through the
serializer for its type, so an array is neither pickled nor copied.  Attributes that msgpack can
encode are in the header, the others in frames of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed.base.text import shown_repr
from distributed.protocol import pickle
from distributed.protocol.dispatch import Dispatch, dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.limits import check_unpickling, may_unpickle
from distributed.protocol.objects import (
    _is_msgpack_serializable,
    can_be_key,
    deserialize,
    serialize,
)

__all__ = ["ObjectDictSerializer", "register_generic"]


class ObjectDictSerializer:
    """A serializer of objects by their ``__dict__``.

    Parameters
    ----------
    serializer
        The family for attributes that msgpack cannot encode; those it does not accept are pickled.

    Examples
    --------
    >>> class Point:
    ...     def __init__(self, x, y):
    ...         self.x, self.y = x, y
    >>> by_attribute = ObjectDictSerializer("dask")
    >>> header, frames = by_attribute.serialize(Point(1, bytearray(b"2")))
    >>> vars(by_attribute.deserialize(header, frames))
    {'x': 1, 'y': bytearray(b'2')}
    """

    def __init__(self, serializer: str):
        self.serializer = serializer

    def serialize(self, est: Any, context: Any = None) -> tuple[dict[str, Any], list[Any]]:
        """Return a header and frames for *est*; *context* is that of `serialize`."""
        frames: list[Any] = []
        return self._describe(type(est), est.__dict__, frames, context), frames

    def _describe(
        self, cls: type, attributes: dict[Any, Any], frames: list[Any], context: Any
    ) -> dict[str, Any]:
        """Return the header for *attributes*, and append their frames to *frames*."""
        simple: dict[Any, Any] = {}
        complex: dict[Any, dict[str, Any]] = {}
        for name, value in attributes.items():
            if _is_msgpack_serializable(value):
                simple[name] = value
                continue
            sub_frames: list[Any]
            if type(value) is dict and all(map(can_be_key, value)):
                # The original serializes dictionaries like objects.
                sub_frames = []
                sub_header = {"nested-dict": self._describe(dict, value, sub_frames, context)}
            else:
                sub_header, sub_frames = serialize(
                    value,
                    serializers=(self.serializer, "pickle"),
                    on_error="raise",
                    context=context,
                )
            complex[name] = {
                "header": sub_header,
                "start": len(frames),
                "stop": len(frames) + len(sub_frames),
            }
            frames += sub_frames
        return {
            "serializer": self.serializer,
            "type-serialized": pickle.dumps(cls),
            "simple": simple,
            "complex": complex,
        }

    def deserialize(self, header: dict[str, Any], frames: Sequence[Any]) -> Any:
        """Make an object from the result of `serialize`, without calling its ``__init__``."""
        cls = self._find_type(header["type-serialized"])
        est: Any = object.__new__(cls)
        est.__dict__.update(self._attributes(header, frames))
        return est

    def _attributes(self, header: dict[str, Any], frames: Sequence[Any]) -> dict[str, Any]:
        attributes = dict(header["simple"])
        end = 0
        for name, part in header["complex"].items():
            start, stop = part["start"], part["stop"]
            # An attribute may copy its frames, so no two attributes may have the same ones.
            if not end <= start <= stop <= len(frames):
                raise HeaderError(
                    f"attribute {shown_repr(name, 100)} cannot be in frames {start} to {stop}: "
                    f"it has to be in frames {end} to {len(frames)}"
                )
            end = stop
            sub_header = part["header"]
            if "nested-dict" in sub_header:
                attributes[name] = self._attributes(sub_header["nested-dict"], frames[start:stop])
            else:
                attributes[name] = deserialize(sub_header, frames[start:stop])
        return attributes

    @staticmethod
    def _find_type(pickled: bytes) -> type:
        if may_unpickle():
            cls: type = pickle.loads(pickled)
            return cls
        name = pickle.pickled_name(pickled)
        if name is None:
            check_unpickling("the type of an object")
        return dask_deserialize.find_type(str(name).removeprefix("builtins."))


def register_generic(
    cls: type,
    serializer_name: str = "dask",
    serialize_func: Dispatch = dask_serialize,
    deserialize_func: Dispatch = dask_deserialize,
) -> None:
    """Serialize instances of *cls* and its subclasses attribute by attribute.

    Parameters
    ----------
    cls
        The type; its instances must consist of their ``__dict__``.
    serializer_name
        The family for attributes that msgpack cannot encode.
    serialize_func, deserialize_func
        The tables in which the type is registered.

    Examples
    --------
    >>> class Model: ...
    >>> register_generic(Model)
    """
    by_attribute = ObjectDictSerializer(serializer_name)
    serialize_func.register(cls, by_attribute.serialize)
    deserialize_func.register(cls, by_attribute.deserialize)
