"""Messages to frames, and back.

The first frame is the message in msgpack.  What msgpack cannot encode, or what the sender has
wrapped in :class:`~distributed.protocol.serialize.Serialize`, stands in it as a reference to
frames that follow::

    {"op": "add", "x": {"__Serialized__": 1}, "y": {"__Pickled__": 3}}
                                         |                        |
    frame 1: header, frame 2: its data --+      frame 3: header --+

Most messages need none of that, so this module first of all stays out of msgpack's way.  It knows
no sockets: :mod:`distributed.comm.framed` calls it, in a thread where there is much to do, and
:mod:`distributed.protocol.framing` lays the frames out.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgpack

from distributed.base.buffers import ensure_memoryview
from distributed.protocol import pickle
from distributed.protocol.compression import decompress, maybe_compress
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
from distributed.protocol.header_cache import plain_frames, plain_reader, remember_reader
from distributed.protocol.limits import LoadPolicy, reading
from distributed.protocol.objects import (
    OnError,
    accepted_serializers,
    accepts_pickles,
    load_pickled,
)
from distributed.protocol.pieces import (
    merge_and_deserialize,
    pack_header,
    read_header,
    serialize_and_split,
)
from distributed.protocol.utils import Buffer
from distributed.protocol.wrappers import Pickled, Serialize, Serialized, ToPickle

__all__ = ["dumps", "loads"]

# What a map that stands for something else has among its keys.
_MARKERS = re.compile(rb"__(?:Serialized|Pickled|Set|Enum)__")

# Bytes of a message up to which it is searched for them: in a larger one, which may be large for a
# single text or array of bytes, that takes longer than asking for each map whether it is one.
_SEARCHED = 4096

# Bytes of a message above which the packer is replaced, as it never gives memory back.
_KEPT_MEMORY = 2**20


class _MessageWriter:
    """Makes the frames of one message after another."""

    # While _frames is not None, a message is being written and the other attributes are its.
    # A message may be written while another is (by a serializer that calls dumps), and then by
    # another writer.

    def __init__(self) -> None:
        self._packer = self._make_packer()
        self._frames: list[Any] | None = None
        self._serializers: Sequence[str] | None = None
        self._on_error: OnError = "message"
        self._context: Any = None
        self._split_size: int | None = None
        self._plain = False

    def write(
        self,
        msg: Any,
        serializers: Sequence[str] | None,
        on_error: OnError,
        context: Any,
        frame_split_size: int | None,
    ) -> list[Any]:
        self._frames = frames = [b""]
        if context and context.get("allow-pickle") is False:
            serializers = accepted_serializers(serializers, context)
        self._serializers = serializers
        self._on_error = on_error
        self._context = context
        self._split_size = frame_split_size
        self._plain = serializers is None and not (context and context.get("compression"))
        try:
            frames[0] = self._packer.pack(msg)
        except BaseException:
            self._packer.reset()
            raise
        finally:
            self._frames = self._context = None
        if len(frames[0]) > _KEPT_MEMORY:
            self._packer = self._make_packer()
        return frames

    def _make_packer(self) -> msgpack.Packer:
        return msgpack.Packer(default=self._encode, use_bin_type=True)

    def _encode(self, obj: Any) -> Any:
        """What stands in the message for an object that msgpack cannot encode."""
        cls = type(obj)
        while cls is Serialize and type(obj.data) in (Serialize, Serialized):
            obj = obj.data
            cls = type(obj)
        if cls is Serialize:
            if self._plain and (plain := plain_frames(obj.data, self._split_size)) is not None:
                assert self._frames is not None
                index = len(self._frames)
                self._frames += plain
                return {"__Serialized__": index}
            header, frames = serialize_and_split(
                obj, self._serializers, self._on_error, self._context, self._split_size
            )
            return {"__Serialized__": self._append(header, self._compress(header, frames))}
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
        buffers: list[Any] = []
        protocol = pickle.HIGHEST_PROTOCOL
        if self._context:
            protocol = min(protocol, self._context.get("pickle-protocol", protocol))
        try:
            pickled = pickle.dumps(
                obj,
                buffer_callback=lambda buffer: buffers.append(ensure_memoryview(buffer)),
                protocol=protocol,
            )
        except Exception as e:
            raise SerializationError(
                f"Could not serialize object of type {type(obj).__name__} in a message: {e}"
            ) from e
        header = {"pickled-obj": pickled, "compression": (None,) * len(buffers)}
        return {"__Pickled__": self._append(header, self._compress(header, buffers))}

    def _compress(self, header: dict[str, Any], frames: Sequence[Any]) -> list[Any]:
        """Compress what the peer agreed to, and note that in the header."""
        codec = self._context.get("compression") if self._context else None
        if not codec:
            return list(frames)
        compressed = [maybe_compress(frame, compression=codec) for frame in frames]
        header["compression"] = tuple(name for name, _ in compressed)
        return [frame for _, frame in compressed]

    def _append(self, header: dict[str, Any], frames: Sequence[Any]) -> int:
        """Append a value's frames to the message's, and return where its header is."""
        assert self._frames is not None
        header["num-sub-frames"] = len(frames)
        index = len(self._frames)
        self._frames.append(pack_header(header))
        self._frames += frames
        return index


class _MessageReader:
    """Puts values in the place of the maps that stand for them in one message."""

    # _next is the first frame that no value has claimed.  Senders append frames in the order of
    # the references, and each frame is one value's: that keeps a message from asking for the same
    # bytes time and again.  _reading is made for the first value that is more than plain memory.

    def __init__(
        self,
        frames: Sequence[Any],
        deserialize: bool,
        deserializers: Sequence[str] | None,
        policy: LoadPolicy | None,
    ):
        self._frames = frames
        self._deserialize = deserialize
        self._deserializers = deserializers
        self._policy = policy
        self._next = 1
        self._reading: AbstractContextManager[Any] | None = None

    def decode(self, obj: dict[Any, Any]) -> Any:
        """The value that a map stands for, or the map itself."""
        keys = len(obj)
        if keys == 1:
            ((key, index),) = obj.items()
            if type(index) is int:
                if key == "__Serialized__":
                    value = self._plain(index)
                    return self._read(self._serialized, index) if value is None else value
                if key == "__Pickled__":
                    return self._read(self._pickled, index)
        elif keys in EXTENSION_SIZES:
            return msgpack_decode_default(obj)
        return obj

    def _read(self, read: Callable[[int], Any], index: int) -> Any:
        if self._reading is None:
            self._reading = reading(self._policy)
        with self._reading:
            return read(index)

    def _serialized(self, index: int) -> Any:
        header, frames = self._claim(index)
        if not self._deserialize:
            return Serialized(header, frames)
        value = merge_and_deserialize(header, decompress(header, frames), self._deserializers)
        if len(frames) == 1:
            remember_reader(self._frames[index], header, value)
        return value

    def _plain(self, index: int) -> Any:
        """The value at *index*, if its header is one of those whose meaning is known."""
        if (
            not self._next <= index < len(self._frames) - 1
            or not self._deserialize
            or (self._deserializers is not None and "dask" not in self._deserializers)
        ):
            return None
        read = plain_reader(self._frames[index])
        value = None if read is None else read(self._frames[index + 1])
        if value is not None:
            self._next = index + 2
        return value

    def _pickled(self, index: int) -> Any:
        header, frames = self._claim(index)
        if self._deserializers is not None and "pickle" not in self._deserializers:
            raise FamilyNotAllowedError(
                "Data serialized with pickle but only able to deserialize data with "
                f"{list(self._deserializers)}"
            )
        return load_pickled(header, decompress(header, frames))

    def _claim(self, index: int) -> tuple[dict[str, Any], Sequence[Any]]:
        """The header at *index*, and the frames that are its."""
        if not self._next <= index < len(self._frames):
            raise HeaderError(
                f"a message refers to frame {index} of {len(self._frames)}, "
                f"of which {self._next} are taken"
            )
        header = read_header(self._frames[index])
        count = header.get("num-sub-frames")
        if type(count) is not int or not 0 <= count < len(self._frames) - index:
            raise HeaderError(
                f"the header in frame {index} of {len(self._frames)} has {count!r:.100} frames"
            )
        self._next = index + 1 + count
        return header, self._frames[index + 1 : self._next]


class _Writers(threading.local):
    # One writer per thread, kept because making a packer costs more than packing a small message.
    def __init__(self) -> None:
        self.idle = _MessageWriter()


_writers = _Writers()


def dumps(
    msg: Any,
    serializers: Sequence[str] | None = None,
    on_error: OnError = "message",
    context: Any = None,
    frame_split_size: int | None = None,
) -> list[Any]:
    """Turn a message into frames.

    Parameters
    ----------
    msg
        Any object.  Lists arrive as tuples; everything that msgpack cannot encode, apart from sets
        and Enum members, is pickled.  Wrap in ``Serialize`` what should go through the
        serializers instead.
    serializers
        Names of the families that ``Serialize`` may use, in order; "dask" and "pickle" if not
        given.  Without "pickle" among them nothing is pickled but what is wrapped in ``ToPickle``.
    on_error
        What happens to a wrapped object that none of them takes: "message" sends an explanation
        in its place, which is raised where it arrives; "raise" raises it here.
    context
        What was agreed with the receiver: "compression" names the codec, "pickle-protocol" bounds
        the protocol, "allow-pickle" is False where it unpickles nothing: "msgpack" then takes the
        place of "pickle" among the serializers.  It is handed to the serializers that ask for it.
    frame_split_size
        Bytes above which a frame is split; ``distributed.comm.shard`` if not given.

    Returns
    -------
    list of bytes-like
        The first is the message, which the others belong to.  They may be the memory of objects
        in *msg*.

    Raises
    ------
    TypeError
        For an object that cannot be serialized: always if it is not wrapped, else with
        ``on_error="raise"``.
    ValueError
        If *msg* is nested too deeply, or holds a string that is no Unicode.

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
    return writer.write(msg, serializers, on_error, context, frame_split_size)


def loads(
    frames: Sequence[Any],
    deserialize: bool = True,
    deserializers: Sequence[str] | None = None,
    policy: LoadPolicy | None = None,
) -> Any:
    """Turn frames back into a message.

    Parameters
    ----------
    frames
        What `dumps` gave, or the same bytes in other bytes-like objects.  Objects of the message
        may keep their memory.
    deserialize
        Whether values that were wrapped in ``Serialize`` are deserialized.  If not they arrive as
        ``Serialized``, which `dumps` sends on as they came.
    deserializers
        Names of the families that may be used; all if not given.
    policy
        What may be done for the message, as a connection knows it: whether anything is unpickled,
        and how deep and large it may become.  The configuration's when it was first needed if not
        given.

    Raises
    ------
    ProtocolError
        If the frames are no message, whatever is wrong with them; a `ValueError`.
    FamilyNotAllowedError, SerializationError
        If a value is of another family than *deserializers*, or could not be serialized by the
        sender; both are `TypeError`.
    """
    if not frames:
        raise MessageError("a message of no frames")
    head = frames[0]
    if len(head) <= _SEARCHED and _MARKERS.search(head) is None:
        return _unpack(head, None)
    if len(frames) == 1:
        # Nothing can be referred to, so what looks like a reference is the sender's own map.
        return _unpack(head, msgpack_decode_default)
    return _unpack(head, _MessageReader(frames, deserialize, deserializers, policy).decode)


def _unpack(head: Buffer, hook: Callable[[dict[Any, Any]], Any] | None) -> Any:
    try:
        # As `msgpack_opts` has it, but those would have to be taken apart for each message.
        return msgpack.unpackb(head, object_hook=hook, use_list=False, strict_map_key=False)
    except (ProtocolError, FamilyNotAllowedError, SerializationError):
        raise
    except Exception as e:
        # msgpack raises errors of several kinds; what may go wrong in decode() raises ours, but
        # for recursion.
        raise MessageError(f"a message is not msgpack: {type(e).__name__}: {e}") from e
