"""The serializer families: each turns a single object into a header and frames, and back.

=========  =======================================================================
dask       types that are registered by :func:`register_serialization` and others
pickle     any object, with its large buffers out of band
msgpack    what msgpack can encode, in one frame
error      stands for a value that no other family could take; raises where it arrives
cuda       types that are registered for transports between devices
=========  =======================================================================

A family knows neither collections nor messages: which family a value goes to, and that the
elements of a list may go to several, is decided in :mod:`distributed.protocol.serialize`.
"""

from __future__ import annotations

import pickle as _stdlib_pickle
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgpack

from distributed.base.buffers import ensure_memoryview
from distributed.base.callables import has_keyword
from distributed.protocol import pickle
from distributed.protocol.dispatch import (
    Dispatch,
    cuda_deserialize,
    cuda_serialize,
    dask_deserialize,
    dask_serialize,
    typename,
)
from distributed.protocol.exceptions import SerializationError
from distributed.protocol.limits import may_unpickle
from distributed.protocol.utils import Buffer, join_frames, msgpack_opts

__all__ = [
    "Family",
    "Header",
    "families",
    "pickle_dumps",
    "pickle_loads",
    "register_serialization",
    "register_serialization_family",
    "typename",
]

Header: TypeAlias = dict[str, Any]


class Family(NamedTuple):
    """A way to serialize objects.

    Attributes
    ----------
    dumps
        Takes an object, and the message's context as keyword ``context`` if *wants_context*; gives
        a header and frames.  Raises `NotImplementedError` for an object that is none of its
        business.  None for a family that nothing is sent in.
    loads
        Takes a header and frames, gives the object.
    wants_context
        Whether *dumps* takes ``context``.
    """

    dumps: Callable[..., tuple[Header, Sequence[Any]]] | None
    loads: Callable[[Header, Sequence[Any]], Any]
    wants_context: bool


families: dict[str, Family] = {}
"""Families by the name that stands in headers as ``"serializer"``."""


def register_serialization_family(
    name: str,
    dumps: Callable[..., tuple[Header, Sequence[Any]]] | None,
    loads: Callable[[Header, Sequence[Any]], Any],
) -> None:
    """Add a way to serialize objects, which ``serializers=`` and ``deserializers=`` can name.

    Parameters
    ----------
    name
        How headers and callers call it.
    dumps
        A function of an object that returns a header (a dict of what msgpack can encode) and a
        list of bytes-like frames.  A parameter named ``context`` is given what is known of the
        message's way.  It raises `NotImplementedError` to leave an object to the next family.
    loads
        A function of such a header and frames that returns the object.

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


def register_serialization(
    cls: type,
    serialize: Callable[..., tuple[Header, Sequence[Any]]],
    deserialize: Callable[[Header, Sequence[Any]], Any],
) -> None:
    """Serialize instances of *cls* and its subclasses with functions of their own.

    Parameters
    ----------
    cls
        The type.
    serialize
        A function of an instance that returns a header (a dict of what msgpack can encode) and a
        list of bytes-like frames; it may have a ``context`` parameter.
    deserialize
        A function of such a header and frames that returns an instance.

    Raises
    ------
    TypeError
        If *cls* is no type.  ``dask_serialize.register_lazy`` is for libraries not yet imported.

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

# Functions are few and live long; types may be made by the thousand, so they are not kept.
_wants_context: weakref.WeakKeyDictionary[Callable[..., Any], bool] = weakref.WeakKeyDictionary()

# The pickled forms of types that do not change, in both directions: those of builtins, and of the
# libraries whose types have been met.
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
    cls = _TYPES_BY_PICKLE.get(pickled)
    if cls is None:
        cls = pickle.loads(pickled)
        # Any number of pickles may name one type, of which only ours is kept.
        if table.is_of_library(cls) and pickled == _pickle_type(table, cls):
            _TYPES_BY_PICKLE[pickled] = cls
    return cls


def _asks_for_context(func: Callable[..., Any]) -> bool:
    try:
        return _wants_context[func]
    except KeyError:
        wants = _wants_context[func] = has_keyword(func, "context")
        return wants
    except TypeError:  # callables that cannot be referenced weakly
        return has_keyword(func, "context")


def _dispatch_dumps(table: Dispatch, x: Any, context: Any = None) -> tuple[Header, Sequence[Any]]:
    cls = type(x)
    try:
        func = table.dispatch(cls)
    except TypeError:
        raise NotImplementedError(typename(cls)) from None
    if _asks_for_context(func):
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


def pickle_dumps(x: Any, context: Any = None) -> tuple[Header, list[Any]]:
    """Pickle *x*: the first frame is the pickle, the others are its out-of-band buffers.

    ``context["pickle-protocol"]`` bounds the protocol, where the peers agreed on one.
    """
    frames: list[Any] = [None]
    writeable: list[bool] = []

    def keep(buffer: _stdlib_pickle.PickleBuffer) -> None:
        view = ensure_memoryview(buffer)
        writeable.append(not view.readonly)
        frames.append(view)

    protocol = pickle.HIGHEST_PROTOCOL
    if context:
        protocol = min(protocol, context.get("pickle-protocol", protocol))
    frames[0] = pickle.dumps(x, buffer_callback=keep, protocol=protocol)
    return {"serializer": "pickle", "writeable": tuple(writeable)}, frames


def pickle_loads(header: Header, frames: Sequence[Any]) -> Any:
    """Unpickle what `pickle_dumps` gave; buffers are as writable as they were there."""
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
    return memoryview(bytearray(view)) if writeable else view.toreadonly()


# "msgpack"


def _msgpack_dumps(x: Any) -> tuple[Header, list[bytes]]:
    try:
        return {"serializer": "msgpack"}, [msgpack.packb(x, use_bin_type=True)]
    except Exception as e:
        raise NotImplementedError(f"msgpack cannot encode this {typename(type(x))}") from e


def _msgpack_loads(header: Header, frames: Sequence[Buffer]) -> Any:
    return msgpack.unpackb(join_frames(frames), use_list=False, **msgpack_opts)


# "error"


def _error_loads(header: Header, frames: Sequence[Buffer]) -> Any:
    text = "\n".join(bytes(frame).decode("utf-8", "replace") for frame in frames)
    raise SerializationError(text)


register_serialization_family("dask", _dask_dumps, _dask_loads)
register_serialization_family("pickle", pickle_dumps, pickle_loads)
register_serialization_family("msgpack", _msgpack_dumps, _msgpack_loads)
register_serialization_family("error", None, _error_loads)
register_serialization_family("cuda", _cuda_dumps, _cuda_loads)
