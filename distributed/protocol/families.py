"""The serializer families: each turns an object into a header and frames, and back.

=========  ==============================================================================
dask       objects of types registered with :func:`register_serialization` or a `Dispatch`
pickle     any object, with its large buffers out of band
msgpack    objects that msgpack can encode, in one frame
error      the reason why no other family accepted a value; the receiver raises it
cuda       objects of types registered for transports between devices
=========  ==============================================================================

:mod:`distributed.protocol.objects` chooses the family of an object, and takes collections apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgpack

from distributed.base.arguments import did_you_mean
from distributed.base.buffers import ensure_memoryview
from distributed.base.callables import has_keyword
from distributed.base.shared_memory import is_shared
from distributed.base.text import shown_repr
from distributed.protocol import pickle
from distributed.protocol.dispatch import (
    Dispatch,
    cuda_deserialize,
    cuda_serialize,
    dask_deserialize,
    dask_serialize,
    takes_keyword,
    typename,
)
from distributed.protocol.exceptions import SerializationError
from distributed.protocol.limits import may_unpickle
from distributed.protocol.unpacking import unpack
from distributed.protocol.utils import Buffer, join_frames

__all__ = [
    "Family",
    "Header",
    "check_families",
    "families",
    "pickle_dumps",
    "pickle_frames",
    "pickle_loads",
    "pickle_protocol",
    "register_serialization",
    "register_serialization_family",
    "typename",
]

Header: TypeAlias = dict[str, Any]


class Family(NamedTuple):
    """A pair of functions that serialize and deserialize objects.

    Attributes
    ----------
    dumps
        Takes an object; returns a header and frames.  Raises `NotImplementedError` for an object
        that it does not accept.  None for a family that is only read.
    loads
        Takes a header and frames; returns the object.
    wants_context
        Whether *dumps* also takes the message's context, as keyword ``context``.
    """

    dumps: Callable[..., tuple[Header, Sequence[Any]]] | None
    loads: Callable[[Header, Sequence[Any]], Any]
    wants_context: bool


families: dict[str, Family] = {}
"""Families by name, which headers state as ``"serializer"``."""


def register_serialization_family(
    name: str,
    dumps: Callable[..., tuple[Header, Sequence[Any]]] | None,
    loads: Callable[[Header, Sequence[Any]], Any],
) -> None:
    """Add a serializer family, for use in ``serializers=`` and ``deserializers=``.

    Parameters
    ----------
    name
        The name of the family.
    dumps
        Takes an object; returns a header (a dict that msgpack can encode) and a list of bytes-like
        frames.  If it has a parameter ``context``, it receives the options negotiated with
        the receiver.  It raises `NotImplementedError` to leave an object to the next family.
    loads
        Takes such a header and frames; returns the object.

    Examples
    --------
    >>> from distributed.protocol import deserialize, serialize
    >>> def text_dumps(x):
    ...     if not isinstance(x, str):
    ...         raise NotImplementedError
    ...     return {}, [x.encode()]
    >>> def text_loads(header, frames):
    ...     return bytes(frames[0]).decode()
    >>> register_serialization_family("text", text_dumps, text_loads)
    >>> serialize("abc", serializers=["text", "pickle"])
    ({'serializer': 'text'}, [b'abc'])
    >>> del families["text"]
    """
    families[name] = Family(dumps, loads, dumps is not None and has_keyword(dumps, "context"))


def check_families(argument: str, names: Any) -> None:
    """Check an argument that names serializer families; None stands for the default families.

    Raises
    ------
    TypeError
        If it is not a collection of names, but for instance one name.
    ValueError
        If it contains an unknown name.
    """
    if names is None:
        return
    if not isinstance(names, Collection) or isinstance(names, str | bytes | Mapping):
        raise TypeError(
            f"{argument} must be a list of names of serializer families, such as "
            f"['dask', 'pickle'], not {names!r}"
        )
    for name in names:
        if name not in families:
            raise ValueError(
                f"unknown serializer family {name!r} in {argument}={list(names)!r} "
                f"(known: {list(families)}); {did_you_mean(name, families)}"
            )


def register_serialization(
    cls: type,
    serialize: Callable[..., tuple[Header, Sequence[Any]]],
    deserialize: Callable[[Header, Sequence[Any]], Any],
) -> None:
    """Serialize instances of *cls* and its subclasses with the given functions.

    Parameters
    ----------
    cls
        The type.
    serialize
        Takes an instance; returns a header (a dict that msgpack can encode) and a list of
        bytes-like frames.  It may have a ``context`` parameter.
    deserialize
        Takes such a header and frames; returns an instance.

    Raises
    ------
    TypeError
        If *cls* is not a type.  Use ``dask_serialize.register_lazy`` for the types of a library
        that is not imported yet.

    Examples
    --------
    >>> from distributed.protocol import deserialize, serialize
    >>> class Ratio:
    ...     def __init__(self, text):
    ...         self.text = text
    >>> register_serialization(
    ...     Ratio,
    ...     lambda ratio: ({}, [ratio.text.encode()]),
    ...     lambda header, frames: Ratio(bytes(frames[0]).decode()),
    ... )
    >>> header, frames = serialize(Ratio("1/3"))
    >>> frames, deserialize(header, frames).text
    ([b'1/3'], '1/3')
    """
    if not isinstance(cls, type):
        raise TypeError(
            f"serialization is registered for types, not for {cls!r}; "
            "use dask_serialize.register_lazy for a library that is not imported yet"
        )
    dask_serialize.register(cls, serialize)
    dask_deserialize.register(cls, deserialize)


# "dask" and "cuda"

# The pickles of builtin types and of library types seen so far, in both directions.  Other types
# are not cached: a program may create thousands of them.
_PICKLED_TYPES: dict[type, bytes] = {
    cls: pickle.dumps(cls) for cls in (bytes, bytearray, memoryview)
}
_TYPES_BY_PICKLE: dict[bytes, type] = {pickled: cls for cls, pickled in _PICKLED_TYPES.items()}


def _pickle_type(table: Dispatch, cls: type) -> bytes:
    pickled = _PICKLED_TYPES.get(cls)
    if pickled is None:
        pickled = pickle.dumps(cls)
        if table.is_of_library(cls):
            _PICKLED_TYPES[cls] = pickled
            _TYPES_BY_PICKLE[pickled] = cls
    return pickled


def _unpickle_type(table: Dispatch, pickled: bytes) -> type:
    if not isinstance(pickled, bytes):
        raise TypeError(f"the type of an object is {shown_repr(pickled, 100)}, not a pickle")
    cls = _TYPES_BY_PICKLE.get(pickled)
    if cls is None:
        cls = pickle.loads(pickled)
        # Many different pickles can name one type.  Only the one that this side writes is cached.
        if table.is_of_library(cls) and pickled == _pickle_type(table, cls):
            _TYPES_BY_PICKLE[pickled] = cls
    return cls


def _dispatch_dumps(table: Dispatch, x: Any, context: Any = None) -> tuple[Header, Sequence[Any]]:
    cls = type(x)
    try:
        func = table.dispatch(cls)
    except TypeError:
        raise NotImplementedError(typename(cls)) from None
    if takes_keyword(func, "context"):
        sub_header, frames = func(x, context=context)
    else:
        sub_header, frames = func(x)
    header = {
        "sub-header": sub_header,
        "type": typename(cls),
        "type-serialized": _pickle_type(table, cls),
    }
    return header, frames


def _dispatch_loads(table: Dispatch, header: Header, frames: Sequence[Any]) -> Any:
    if may_unpickle():
        cls = _unpickle_type(table, header["type-serialized"])
    else:
        cls = table.find_type(header["type"])
    return table.dispatch(cls)(header["sub-header"], frames)


def _dask_dumps(x: Any, context: Any = None) -> tuple[Header, Sequence[Any]]:
    return _dispatch_dumps(dask_serialize, x, context)


def _dask_loads(header: Header, frames: Sequence[Any]) -> Any:
    return _dispatch_loads(dask_deserialize, header, frames)


def _cuda_dumps(x: Any, context: Any = None) -> tuple[Header, Sequence[Any]]:
    return _dispatch_dumps(cuda_serialize, x, context)


def _cuda_loads(header: Header, frames: Sequence[Any]) -> Any:
    return _dispatch_loads(cuda_deserialize, header, frames)


# "pickle"


def pickle_frames(x: Any, context: Any) -> list[Any]:
    """Pickle *x*: return the pickle and its out-of-band buffers.

    ``context["pickle-protocol"]``, if given, is the highest protocol that may be used.
    """
    frames: list[Any] = [None]
    frames[0] = pickle.dumps(
        x,
        buffer_callback=lambda buffer: frames.append(ensure_memoryview(buffer)),
        protocol=pickle_protocol(context),
    )
    return frames


def pickle_protocol(context: Any) -> int:
    """Return the highest pickle protocol that the receiver described by *context* reads."""
    protocol: int = pickle.HIGHEST_PROTOCOL
    return min(protocol, context.get("pickle-protocol", protocol)) if context else protocol


def pickle_dumps(x: Any, context: Any = None) -> tuple[Header, list[Any]]:
    """Return the header and frames of *x* in the "pickle" family; see `pickle_frames`."""
    frames = pickle_frames(x, context)
    writeable = tuple([not view.readonly for view in frames[1:]])
    return {"serializer": "pickle", "writeable": writeable}, frames


def pickle_loads(header: Header, frames: Sequence[Any]) -> Any:
    """Unpickle the result of `pickle_dumps`; buffers are as writable as the sender's.

    Shared memory is as writable as its sender has decided.
    """
    pickled, *buffers = frames
    writeable = header.get("writeable")
    if writeable is None:
        writeable = (None,) * len(buffers)
    return pickle.loads(
        pickled,
        buffers=[
            _with_writability(buffer, wanted)
            for buffer, wanted in zip(buffers, writeable, strict=True)
        ],
    )


def _with_writability(buffer: Any, writeable: bool | None) -> memoryview:
    view = ensure_memoryview(buffer)
    if writeable is None or writeable is not view.readonly:
        return view
    if writeable and is_shared(view):
        # The sender of shared memory has decided that this process only reads it.
        return view
    return memoryview(bytearray(view)) if writeable else view.toreadonly()


# "msgpack"


def _msgpack_dumps(x: Any) -> tuple[Header, list[bytes]]:
    try:
        return {"serializer": "msgpack"}, [msgpack.packb(x, use_bin_type=True)]
    except Exception as e:
        raise NotImplementedError(f"msgpack cannot encode this {typename(type(x))}") from e


def _msgpack_loads(header: Header, frames: Sequence[Buffer]) -> Any:
    return unpack(join_frames(frames))


# "error"


def _error_loads(header: Header, frames: Sequence[Buffer]) -> Any:
    text = "\n".join(bytes(frame).decode("utf-8", "replace") for frame in frames)
    raise SerializationError(text)


register_serialization_family("dask", _dask_dumps, _dask_loads)
register_serialization_family("pickle", pickle_dumps, pickle_loads)
register_serialization_family("msgpack", _msgpack_dumps, _msgpack_loads)
register_serialization_family("error", None, _error_loads)
register_serialization_family("cuda", _cuda_dumps, _cuda_loads)
