"""Messages to frames and back, in the event loop or in a thread; and hosts that can be contacted.

:mod:`distributed.protocol` turns messages into frames and back, and knows no event loop. Here is
decided whether that may take so long that it is done in a thread, for the sake of all other comms
of the loop. Comms ask `dumps_is_expensive` before they touch their streams, `loads_is_expensive`
when a whole message has arrived; `to_frames` and `from_frames` are that in one, for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final

from distributed.base import config
from distributed.base.buffers import nbytes
from distributed.base.event_loop import offload
from distributed.protocol.core import dumps, loads
from distributed.protocol.limits import LoadPolicy
from distributed.protocol.work import loads_work
from distributed.protocol.wrappers import Pickled, Serialize, Serialized, ToPickle

__all__ = [
    "OFFLOAD_THRESHOLD",
    "dumps_is_expensive",
    "from_frames",
    "loads_is_expensive",
    "to_frames",
]

#: Bytes from which on (de)serialization is done in a thread; None or 0 for never. The value of
#: ``distributed.comm.offload``, read when it is first needed and kept; assign to replace it.
OFFLOAD_THRESHOLD: int | None

#: Values of a message that are looked at. A batch of many small messages has more, but is then
#: not expensive for a single one of them.
_VALUES_LOOKED_AT: Final = 256

#: Pickling or packing one object takes about as long as copying so many bytes.
_BYTES_PER_OBJECT: Final = 64

#: Deserializing a byte rarely takes longer than copying so many.
_MAX_WORK_PER_BYTE: Final = 100

_CHEAP_TYPES: Final = frozenset({type(None), bool, int, float, str, bytes})
_CONTAINER_TYPES: Final = frozenset({list, tuple, dict, set, frozenset})


def __getattr__(name: str) -> Any:
    if name == "OFFLOAD_THRESHOLD":
        return _offload_threshold()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _offload_threshold() -> int | None:
    try:
        return OFFLOAD_THRESHOLD
    except NameError:
        switched_off = config.get("distributed.comm.offload") is False
        threshold = None if switched_off else config.get_bytes("distributed.comm.offload")
        # What was assigned in the meantime, by another thread, stays.
        value: int | None = globals().setdefault("OFFLOAD_THRESHOLD", threshold)
        return value


async def to_frames(msg: Any, allow_offload: bool = True, **kwargs: Any) -> list[Any]:
    """Serialize a message, in a thread if that is expensive.

    Parameters
    ----------
    msg
        The message.
    allow_offload
        Whether it may be done in a thread.
    kwargs
        See :func:`distributed.protocol.dumps`, which tells also what is raised.

    Returns
    -------
    list
        The frames, objects that support the buffer protocol.
    """
    if allow_offload and dumps_is_expensive(msg, kwargs.get("context")):
        return await offload(dumps, msg, **kwargs)
    return dumps(msg, **kwargs)


async def from_frames(
    frames: list[Any],
    deserialize: bool = True,
    deserializers: Sequence[str] | None = None,
    allow_offload: bool = True,
    policy: LoadPolicy | None = None,
) -> Any:
    """Deserialize a message, in a thread if that is expensive.

    Parameters
    ----------
    frames
        What `to_frames` gave.
    deserialize
        Whether wrapped values are deserialized; if false they are left as
        :class:`~distributed.protocol.Serialized`.
    deserializers
        See :func:`distributed.protocol.loads`, which tells also what is raised.
    allow_offload
        Whether it may be done in a thread.
    policy
        What may be done for the message; see :func:`distributed.protocol.loads`.
    """
    if allow_offload and deserialize and loads_is_expensive(frames):
        return await offload(loads, frames, deserialize, deserializers, policy)
    return loads(frames, deserialize, deserializers, policy)


def dumps_is_expensive(msg: Any, context: Mapping[str, Any] | None = None) -> bool:
    """Whether serializing *msg* is work for a thread.

    What counts is work: walking through many objects, copying memory that is not contiguous,
    compressing. An array that becomes a frame without being touched costs nothing, however large.
    The answer is an estimate that takes a bounded time: it is made from what is on the surface of
    the message and of the messages in a batch, and of their values, wrapped or not.

    Parameters
    ----------
    msg
        The message.
    context
        What the comm agreed upon with its peer, in particular the compression.
    """
    kind = type(msg)
    if kind in _CHEAP_TYPES:
        return False
    many = kind in _CONTAINER_TYPES and len(msg) > _VALUES_LOOKED_AT
    if kind is dict and not many and _CHEAP_TYPES.issuperset(map(type, msg.values())):
        return False
    threshold = _offload_threshold()
    if not threshold:
        return False
    if many and len(msg) * _BYTES_PER_OBJECT > threshold:
        return True
    values: Iterable[Any]
    if kind is dict:
        values = islice(msg.values(), _VALUES_LOOKED_AT) if many else msg.values()
    elif kind is list or kind is tuple:
        batch = chain.from_iterable(v.values() if type(v) is dict else (v,) for v in msg)
        values = islice(batch, _VALUES_LOOKED_AT)
    else:
        values = (msg,)
    compress = bool(context and context.get("compression"))
    values = [value for value in values if type(value) not in _CHEAP_TYPES]
    # Most are small, so that it need not be found out whether their bytes will be touched at all.
    for exactly in (False, True):
        work = 0
        for value in values:
            work += _dumps_work(value, compress, exactly)
        if work <= threshold:
            return False
    return True


def _dumps_work(value: Any, compress: bool, exactly: bool) -> int:
    """The work of serializing one value, as bytes that could be copied in the same time.

    It may be less unless it is to be told exactly.
    """
    kind = type(value)
    if kind is Serialized or kind is Pickled:
        return sum(map(nbytes, value.frames)) if compress else 0
    if kind is Serialize or kind is ToPickle:
        value = value.data
        kind = type(value)
    if kind in _CONTAINER_TYPES:
        return len(value) * _BYTES_PER_OBJECT
    if kind is bytes or kind is bytearray:
        return len(value) if compress else 0
    # Asked of the type: an instance may answer to any attribute, as proxies do.
    if hasattr(kind, "nbytes"):
        size: Any = value.nbytes
    elif hasattr(kind, "shape"):
        # Data frames do not know their size in bytes without looking at all of it.
        size = _BYTES_PER_OBJECT
        for extent in value.shape:
            size *= extent
    else:
        return 0
    if not isinstance(size, int):
        return 0
    if exactly and not compress and _goes_by_reference(value):
        return 0
    return size


def _goes_by_reference(value: Any) -> bool:
    """Whether a value is one piece of plain memory, which is sent as it is."""
    try:
        view = memoryview(value)
    except (TypeError, ValueError, BufferError):
        return False
    return view.contiguous and "O" not in view.format


def loads_is_expensive(frames: list[Any]) -> bool:
    """Whether deserializing *frames* is work for a thread.

    What counts is work, as for `dumps_is_expensive`: unpickling and inflating, but not a large
    array that becomes a view of its frame.

    Parameters
    ----------
    frames
        What `to_frames` gave.
    """
    if len(frames) == 1:
        # All of it is done in one go, during which no other thread could run.
        return False
    threshold = _offload_threshold()
    if not threshold or sum(map(len, frames)) * _MAX_WORK_PER_BYTE < threshold:
        return False
    return loads_work(frames, threshold) > threshold
