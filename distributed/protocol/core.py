"""Messages to frames, and back.

The first frame is the message in msgpack.  A value that msgpack cannot encode, or that the sender
has wrapped in :class:`~distributed.protocol.serialize.Serialize`, is replaced there by a reference
to later frames::

    {"op": "add", "x": {"__Serialized__": 1}, "y": {"__Pickled__": 3}}
                                         |                        |
    frame 1: header, frame 2: its data --+      frame 3: header --+

Most messages have no such value, and msgpack alone handles them.  Comms call this module, in a
thread if the message is expensive; :mod:`distributed.protocol.framing` puts the frames on the wire.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

import msgpack

from distributed.base import metering
from distributed.base.buffers import nbytes
from distributed.base.metering import unmetered
from distributed.base.text import shown, shown_repr
from distributed.protocol.compression import compress_frames, decompress, inflated_size
from distributed.protocol.exceptions import (
    FamilyNotAllowedError,
    HeaderError,
    MessageError,
    ProtocolError,
    SerializationError,
)
from distributed.protocol.extension import (
    EXTENSION_SIZES,
    msgpack_decode_default,
    msgpack_encode_default,
)
from distributed.protocol.families import check_families, pickle_frames
from distributed.protocol.header_cache import (
    cache_reader,
    cached_frames,
    cached_reader,
    cached_types,
)
from distributed.protocol.limits import LoadPolicy, reading
from distributed.protocol.objects import (
    OnError,
    accepted_serializers,
    accepts_pickles,
    check_family,
    load_pickled,
)
from distributed.protocol.pieces import (
    header_containers,
    merge_and_deserialize,
    pack_header,
    read_header,
    serialize_and_split,
)
from distributed.protocol.unpacking import MAX_UNCHECKED, count_containers, unpack
from distributed.protocol.utils import Buffer
from distributed.protocol.wrappers import Pickled, Serialize, Serialized, ToPickle

__all__ = ["UnfinishedMessageError", "Weigh", "dumps", "loads"]

#: Takes a value or frame, the result of the previous call, and the codec; see `dumps`.
Weigh: TypeAlias = Callable[[Any, int, Any], int]

#: The number of bytes that are inflated in the time in which one value is read.
_BYTES_PER_VALUE = 8192

#: The number of bytes that are inflated in the time in which one map or array is read.
_BYTES_PER_CONTAINER = 64

# The keys of maps that stand for other values.
_MARKERS = re.compile(rb"__(?:Serialized|Pickled|Set|Enum)__")

#: Minimum size (bytes) of a header that counts towards the budget.
_LARGE_HEADER = 2**16

#: Maximum size (bytes) of a message that is searched for markers.  A larger one may consist of one
#: long text or bytes object; searching that takes longer than a look at each map.
_MAX_SEARCHED_SIZE = 4096

#: Maximum size (bytes) of a message whose packer is kept: packers never give memory back.  The
#: first frame of a larger message is the memory of its packer.
_MAX_PACKER_SIZE = 2**20


# The functions that write and read a value, with and without measurements.
_METERED_WRITING = serialize_and_split, compress_frames
_WRITING = unmetered(serialize_and_split), unmetered(compress_frames)
_METERED_READING = decompress, merge_and_deserialize
_READING = unmetered(decompress), unmetered(merge_and_deserialize)


class _MessageWriter:
    """A writer of messages, one after the other."""

    # `_frames` is not None exactly while a message is being written.  If a serializer calls dumps()
    # meanwhile, that message gets another writer.
    def __init__(self) -> None:
        # Kept, as making a packer costs more than packing a small message.
        self._packer = self._make_packer()
        # The frames of the message so far; None while no message is being written.
        self._frames: list[Any] | None = None
        # The arguments of dumps() for this message.
        self._serializers: Sequence[str] | None = None
        self._on_error: OnError = "message"
        self._context: Any = None
        self._split_size: int | None = None
        self._weigh: Weigh | None = None
        # The negotiated codec; None or False for no compression.
        self._codec: str | Literal[False] | None = None
        # The last result of _weigh().
        self._weight = 0

    def write(
        self,
        msg: Any,
        serializers: Sequence[str] | None,
        on_error: OnError,
        context: Any,
        frame_split_size: int | None,
        weigh: Weigh | None,
    ) -> list[Any]:
        self._frames = frames = [b""]
        if context and context.get("allow-pickle") is False:
            serializers = accepted_serializers(serializers, context)
        if type(serializers) is str:
            check_families("serializers", serializers)
        self._serializers = serializers
        self._on_error = on_error
        self._context = context
        self._split_size = frame_split_size
        self._weigh = weigh
        self._weight = 0
        self._codec = context.get("compression") if context else None
        try:
            self._packer.pack(msg)
        except BaseException:
            self._packer.reset()
            raise
        finally:
            self._frames = self._context = None
        packed = self._packer.getbuffer()
        if len(packed) > _MAX_PACKER_SIZE:
            # Copying the bytes out of the packer would take as long as packing them.
            frames[0] = packed
            self._packer = self._make_packer()
        else:
            frames[0] = packed.tobytes()
            packed.release()
            self._packer.reset()
        return frames

    def _make_packer(self) -> msgpack.Packer:
        return msgpack.Packer(default=self._encode, use_bin_type=True, autoreset=False)

    def _encode(self, obj: Any) -> Any:
        """Return the replacement for an object that msgpack cannot encode."""
        cls = type(obj)
        while cls is Serialize and type(obj.data) in (Serialize, Serialized):
            obj = obj.data
            cls = type(obj)
        if cls is Serialize:
            if self._weigh is not None:
                self._weight = self._weigh(obj.data, self._weight, None)
            metered = metering.is_metered()
            # Cached headers are those of the default serializers, without compression.
            if self._serializers is None and not self._codec:
                if metered and type(obj.data) in cached_types:
                    with metering.measure("serialize"):
                        pair = cached_frames(obj.data, self._split_size)
                else:
                    pair = cached_frames(obj.data, self._split_size)
                if pair is not None:
                    assert self._frames is not None
                    index = len(self._frames)
                    self._frames += pair
                    return {"__Serialized__": index}
            split, compress = _METERED_WRITING if metered else _WRITING
            header, frames = split(
                obj, self._serializers, self._on_error, self._context, self._split_size
            )
            if self._codec:
                self._weigh_frames(frames)
            frames = compress(header, frames, self._codec)
            return {"__Serialized__": self._append(header, frames)}
        if cls is Serialized:
            return {"__Serialized__": self._append(dict(obj.header), obj.frames)}
        if cls is Pickled:
            self._check_pickling("a Pickled value")
            return {"__Pickled__": self._append(dict(obj.header), obj.frames)}
        if cls is ToPickle:
            self._check_pickling("a ToPickle value")
            return self._pickle(obj.data)
        encoded = msgpack_encode_default(obj)
        if encoded is not obj:
            return encoded
        if self._serializers is not None and "pickle" not in self._serializers:
            self._check_pickling(f"an object of type {cls.__name__}")
            raise SerializationError(
                f"Could not serialize object of type {cls.__name__} in a message: msgpack cannot "
                f"encode it, and pickle is not among the serializers {list(self._serializers)}"
            )
        return self._pickle(obj)

    def _check_pickling(self, what: str) -> None:
        if not accepts_pickles(self._context):
            raise SerializationError(
                f"Could not send {what} in a message: it would have to be pickled, and the "
                "receiver unpickles nothing ('distributed.comm.allow-pickle' is false there)"
            )

    def _pickle(self, obj: Any) -> dict[str, int]:
        if self._weigh is not None:
            self._weight = self._weigh(obj, self._weight, None)
        try:
            pickled, *buffers = pickle_frames(obj, self._context)
        except Exception as e:
            raise SerializationError(
                f"Could not serialize object of type {type(obj).__name__} in a message: {e}"
            ) from e
        header = {"pickled-obj": pickled, "compression": (None,) * len(buffers)}
        if buffers:
            if self._codec:
                self._weigh_frames(buffers)
            buffers = compress_frames(header, buffers, self._codec)
        return {"__Pickled__": self._append(header, buffers)}

    def _weigh_frames(self, frames: Sequence[Any]) -> None:
        """Add the frames that are to be compressed to the weight of the message."""
        if self._weigh is not None:
            for frame in frames:
                self._weight = self._weigh(frame, self._weight, self._codec)

    def _append(self, header: dict[str, Any], frames: Sequence[Any]) -> int:
        """Append the header and frames of a value to the message; return the header's index."""
        assert self._frames is not None
        header["num-sub-frames"] = len(frames)
        index = len(self._frames)
        self._frames.append(pack_header(header))
        self._frames += frames
        return index


class UnfinishedMessageError(Exception):
    """Reading a message takes longer than `loads` was allowed.

    Attributes
    ----------
    finish
        A function that reads the rest and returns the message; for a thread.  Its parameter is the
        budget for that, as in `loads`.
    """

    def __init__(self, finish: Callable[..., Any]):
        super().__init__("the message takes long to read")
        self.finish = finish


class _BudgetExceededError(Exception):
    """Ends the call of msgpack when the budget is used up."""


class _MessageReader:
    """A reader of one message, which replaces references by the values they stand for."""

    # Each frame belongs to one value, and senders append frames in the order of the references.
    # So a reference must not be lower than `_next`: a message cannot use the same bytes twice.
    #
    # The head may be read again from its beginning: in a thread, or to check its keys (`unpack`).
    # No value is read twice then, since unpickling it may have effects.
    def __init__(
        self,
        frames: Sequence[Any],
        deserialize: bool,
        deserializers: Sequence[str] | None,
        policy: LoadPolicy | None,
        budget: int | None,
    ):
        # The arguments of loads(); `_budget` is what remains of it.
        self._frames = frames
        self._deserialize = deserialize
        self._deserializers = deserializers
        self._policy = policy
        self._budget = budget
        # Index of the first frame that no value has claimed.
        self._next = 1
        # The values that were read, with the value of `_next` after each, by the header's index.
        self._values: dict[int, tuple[Any, int]] = {}
        # Checks the values of this message against the limits; None until the first value that the
        # header cache cannot read.
        self._reading: AbstractContextManager[Any] | None = None
        # Whether reading a value has raised an error.
        self.failed = False

    def read(self) -> Any:
        """Return the message.

        Raises
        ------
        UnfinishedMessageError
            If reading the values takes longer than the budget allows.
        """
        try:
            return unpack(self._frames[0], self.decode, self._restart, self._policy)
        except _BudgetExceededError:
            pass
        except Exception as e:
            if self.failed or isinstance(e, _PLAIN_ERRORS):
                raise
            raise _not_msgpack(e) from e
        raise UnfinishedMessageError(self.finish)

    def finish(self, budget: int | None = None) -> Any:
        """Return the message, as `read` does with this budget; by default, without a limit."""
        self._budget = budget
        self._restart()
        return self.read()

    def _restart(self) -> None:
        """Prepare for reading the head again from its beginning."""
        self._next = 1

    def decode(self, obj: dict[Any, Any]) -> Any:
        """Return the value that a map stands for, or the map itself."""
        keys = len(obj)
        if keys == 1:
            ((key, index),) = obj.items()
            if type(index) is int:
                if key == "__Serialized__":
                    value = self._read_cached(index)
                    return self._read(self._serialized, index) if value is None else value
                if key == "__Pickled__":
                    return self._read(self._pickled, index)
        elif keys in EXTENSION_SIZES:
            return msgpack_decode_default(obj)
        return obj

    def _read(self, read: Callable[[int], Any], index: int) -> Any:
        if self._next <= index and index in self._values:
            value, self._next = self._values[index]
            return value
        if self._reading is None:
            self._reading = reading(self._policy, sum(map(nbytes, self._frames)))
        with self._reading:
            try:
                value = read(index)
            except _BudgetExceededError:
                raise
            except Exception:
                self.failed = True
                raise
        self._values[index] = value, self._next
        return value

    def _serialized(self, index: int) -> Any:
        header, frames = self._claim(index)
        if not self._deserialize:
            return Serialized(header, frames)
        self._spend(index, header, frames)
        inflate, merge = _METERED_READING if metering.is_metered() else _READING
        value = merge(header, inflate(header, frames), self._deserializers)
        if len(frames) == 1:
            cache_reader(self._frames[index], header, value)
        return value

    def _read_cached(self, index: int) -> Any:
        """Return the value whose header is at *index*, or None if its reader is not cached."""
        if (
            not self._next <= index < len(self._frames) - 1
            or not self._deserialize
            or (self._deserializers is not None and "dask" not in self._deserializers)
        ):
            return None
        read = cached_reader(self._frames[index])
        if read is None:
            return None
        if metering.is_metered():
            with metering.measure("deserialize"):
                value = read(self._frames[index + 1])
        else:
            value = read(self._frames[index + 1])
        if value is not None:
            self._next = index + 2
        return value

    def _pickled(self, index: int) -> Any:
        header, frames = self._claim(index)
        if self._deserializers is not None:
            check_family("pickle", self._deserializers)
        self._spend(index, header, frames)
        inflate, _ = _METERED_READING if metering.is_metered() else _READING
        return load_pickled(header, inflate(header, frames))

    def _spend(self, index: int, header: dict[str, Any], frames: Sequence[Any]) -> None:
        """Reduce the budget by what reading the value whose header is at *index* takes."""
        if self._budget is None:
            return
        work = inflated_size(header, frames)
        if b"msgpack" in self._frames[index]:
            # Its frames, or those of a part of it, may be msgpack.
            work += sum(map(count_containers, frames))
            work *= _BYTES_PER_CONTAINER
        self._take(_BYTES_PER_VALUE + work)

    def _take(self, work: int) -> None:
        assert self._budget is not None
        self._budget -= work
        if self._budget < 0:
            raise _BudgetExceededError

    def _claim(self, index: int) -> tuple[dict[str, Any], Sequence[Any]]:
        """Return the header at *index* and its frames, which no other value may refer to."""
        if not self._next <= index < len(self._frames):
            raise HeaderError(
                f"a message refers to frame {index} of {len(self._frames)}, "
                f"but the first {self._next} are taken"
            )
        packed = self._frames[index]
        if self._budget is not None:
            if len(packed) >= _LARGE_HEADER:
                self._take(len(packed))
            if containers := header_containers(packed):
                self._take(containers * _BYTES_PER_CONTAINER)
        header = read_header(packed)
        count = header.get("num-sub-frames")
        if type(count) is not int or not 0 <= count < len(self._frames) - index:
            raise HeaderError(
                f"the header in frame {index} of {len(self._frames)} states "
                f"{shown_repr(count, 100)} frames"
            )
        self._next = index + 1 + count
        return header, self._frames[index + 1 : self._next]


class _Writers(threading.local):
    """The writer of each thread."""

    def __init__(self) -> None:
        self.idle = _MessageWriter()


_writers = _Writers()


def dumps(
    msg: Any,
    serializers: Sequence[str] | None = None,
    on_error: OnError = "message",
    context: Any = None,
    frame_split_size: int | None = None,
    weigh: Weigh | None = None,
) -> list[Any]:
    """Turn a message into frames.

    Parameters
    ----------
    msg
        Any object.  Lists arrive as tuples.  Objects that msgpack cannot encode are pickled, apart
        from sets and Enum members.  Wrap a value in ``Serialize`` to send it through the
        serializers instead.
    serializers
        Names of the families that ``Serialize`` may use, in order; "dask" and "pickle" by default.
        Without "pickle", only values wrapped in ``ToPickle`` or ``Pickled`` are sent pickled.
    on_error
        What to do with a wrapped object that no family accepts: "message" sends an explanation in
        its place, which the receiver raises; "raise" raises it here.
    context
        The options negotiated with the receiver, as a dict.  "compression" names the codec,
        "pickle-protocol" is the highest protocol.  If "allow-pickle" is False, the receiver
        unpickles nothing, and "msgpack" replaces "pickle" among the serializers.  Serializers with
        a ``context`` parameter receive this dict.
    frame_split_size
        Bytes above which a frame is split; ``distributed.comm.shard`` by default.
    weigh
        Called before each value that msgpack does not encode, at any depth, is serialized: with the
        value, the result of the previous call (0 at first), and None.  Called also before each
        frame of a value is compressed: with the frame, the result of the previous call, and the
        codec.  An error that it raises ends the writing, and is raised here.

    Returns
    -------
    list of bytes-like
        The first is the message, to which the others belong.  They may share memory with objects
        in *msg*.

    Raises
    ------
    TypeError
        For an object that cannot be serialized.  For a wrapped object only if *on_error* is
        "raise".
    ValueError
        If *msg* is nested too deeply, or holds a string that is not valid Unicode.

    Examples
    --------
    >>> dumps({"op": "add", "x": 1})
    [b'\\x82\\xa2op\\xa3add\\xa1x\\x01']
    >>> loads(dumps({"op": "add", "x": {1, 2}, "y": Serialize([b"abc"])}))
    {'op': 'add', 'x': {1, 2}, 'y': [b'abc']}
    """
    writer = _writers.idle
    if writer._frames is not None:
        writer = _MessageWriter()
    return writer.write(msg, serializers, on_error, context, frame_split_size, weigh)


def loads(
    frames: Sequence[Any],
    deserialize: bool = True,
    deserializers: Sequence[str] | None = None,
    policy: LoadPolicy | None = None,
    budget: int | None = None,
) -> Any:
    """Turn frames back into a message.

    Parameters
    ----------
    frames
        The result of `dumps`, or the same bytes in other bytes-like objects.  Objects of the
        message may keep their memory.
    deserialize
        Whether to deserialize values that were wrapped in ``Serialize``.  Otherwise they arrive as
        ``Serialized``, which `dumps` sends on unchanged.
    deserializers
        Names of the families that may be used; all by default.
    policy
        The limits of the connection: whether anything is unpickled, and how deep and large the
        message may become.  By default, those configured when a message was first read.
    budget
        Maximum number of bytes to inflate in this call; each value counts as some kilobytes more.
        By default, there is no maximum.

    Raises
    ------
    UnfinishedMessageError
        If the budget is used up.  Its ``finish`` returns the message, or raises the same error if
        the budget that it gets is used up too.
    ProtocolError
        If the frames are not a valid message; a `ValueError`.
    FamilyNotAllowedError
        If a value is of a family that is not among *deserializers*; a `TypeError`.
    SerializationError
        If the sender could not serialize a value; a `TypeError`.
    Exception
        Any error that an object raises while it is unpickled.  A note says what was unpickled.
    """
    if not frames:
        raise MessageError("a message of no frames")
    head = frames[0]
    if len(head) <= _MAX_SEARCHED_SIZE and _MARKERS.search(head) is None:
        return _unpack_plain(head, None, policy)
    if len(frames) == 1:
        # There is no frame to refer to, so a map that looks like a reference is an ordinary map.
        return _unpack_plain(head, msgpack_decode_default, policy)
    return _MessageReader(frames, deserialize, deserializers, policy, budget).read()


def _unpack_plain(
    head: Buffer, hook: Callable[[dict[Any, Any]], Any] | None, policy: LoadPolicy | None
) -> Any:
    try:
        if len(head) <= MAX_UNCHECKED:
            # The usual case, without the call of a function.
            return msgpack.unpackb(head, object_hook=hook, use_list=False, strict_map_key=False)
        return unpack(head, hook, policy=policy)
    except _PLAIN_ERRORS:
        raise
    except Exception as e:
        raise _not_msgpack(e) from e


#: Errors of reading a message that are raised as they are.
_PLAIN_ERRORS = ProtocolError, FamilyNotAllowedError, SerializationError


def _not_msgpack(e: Exception) -> MessageError:
    # msgpack raises several types of error.
    return MessageError(f"a message is not msgpack: {type(e).__name__}: {shown(e)}")
