"""Fuzzing: the protocol reads hundreds of thousands of mutated messages.

`Mutator` changes bytes, frames and single values in headers of valid messages.  `take` reads the
result as a receiver does.  Nothing is unpickled, as a mutated pickle may run any code; every other
part of the protocol is tested.

As a program, this module fuzzes with atheris, guided by coverage (``make fuzz``).  It keeps the
inputs that reach new code in a directory, for the next run.
"""

from __future__ import annotations

import random
import resource
import struct
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from distributed.protocol import Serialize, dumps, loads, register_generic, serialize
from distributed.protocol.compression import compressions
from distributed.protocol.exceptions import (
    FamilyNotAllowedError,
    FramingError,
    ProtocolError,
    SerializationError,
)
from distributed.protocol.framing import Limits, MessageDecoder, pack_message
from distributed.protocol.limits import LoadPolicy
from distributed.protocol.tests.test_vectors import VECTORS, frames_of

#: The errors that reading any bytes may raise.
REFUSALS = (ProtocolError, FamilyNotAllowedError, SerializationError)

POLICY = LoadPolicy(allow_pickle=False, max_depth=100, max_inflated_size=2**20)
LIMITS = Limits(max_message_size=2**20, max_frames=1000)

#: Separates the frames in an input of the program.
SEPARATOR = b"\n--\n"

Frames = list[bytes]


class ByAttributes:
    """A class whose instances are serialized by their attributes."""

    def __init__(self, **attributes: Any):
        self.__dict__.update(attributes)


def seeds() -> list[Frames]:
    """Return the frames of valid messages."""
    register_generic(ByAttributes)
    plain = {"op": "x", "n": [1, -1, 2.5, None, True, b"b"], "s": {1, (2, "3")}, "m": {5: {}}}
    values: list[Any] = [
        b"a" * 50,
        bytearray(20),
        memoryview(bytes(48)).cast("d", (2, 3)),
        memoryview(b""),
        array("H", [1, 2, 3]),
        [b"a", {"k": bytearray(20), 5: [b"b"]}, (b"c", {b"d"})],
        ByAttributes(a=1, b=bytearray(5), c=ByAttributes(d=[b"e"])),
        *_arrays(),
    ]
    messages: list[tuple[Any, dict[str, Any]]] = [(plain, {})]
    messages += [({"x": Serialize(value), "y": plain}, {}) for value in values]
    messages += [(Serialize(values), {"frame_split_size": 7}), (Serialize([Serialize(b"")]), {})]
    messages += [({"x": Serialize([1, [2], {"a": None}])}, {"serializers": ["msgpack"]})]
    messages += [
        (Serialize(bytes(20_000)), {"context": {"compression": name}}) for name in codecs()
    ]
    messages += [([Serialize(b"a"), {"b": [Serialize(bytearray(b"c"))]}], {})]
    messages += [(Serialize(object), {"serializers": ["msgpack"]})]
    recorded = [frames_of(vector) for vector in VECTORS if len(vector.get("bytes", "")) < 2000]
    return [*recorded, *([bytes(f) for f in dumps(msg, **kwargs)] for msg, kwargs in messages)]


def codecs() -> list[str]:
    return [name for name in compressions if isinstance(name, str) and name != "auto"]


def _arrays() -> Iterator[Any]:
    try:
        import numpy as np
    except ImportError:
        return
    x = np.arange(12, dtype="i4").reshape(3, 4)
    yield from (x, x.T, x[::2, ::-1], np.broadcast_to(x[0], (1000, 4)), x[:0], np.float32(1.5))
    yield from (
        np.zeros(3, "M8[ns]"),
        np.array(["a", "bc"]),
        np.zeros(2, [("a", "i4"), ("b", "f8")]),
    )
    yield from (np.ma.masked_array(x, x > 3), np.array([None, 1], dtype=object))
    assert serialize(x)[0]["serializer"] == "dask"


# Values that code tends to forget.
_NUMBERS = (0, 1, 2, -1, -2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**64 - 1, -(2**63))
_VALUES: tuple[Any, ...] = (
    *_NUMBERS,
    *(None, True, False, 0.5, float("nan"), float("inf"), "", "dask", "pickle", "error", "cuda"),
    *("list", "set", "zlib", "lz4", "snappy", "zstd", "bytes", "memoryview", "numpy.ndarray"),
    *(b"", b"\x80\x05.", (), (0,), (-1,), (2**62,), (1, 2**62), (None,), ("zlib",), {}, {"a": 1}),
    *({"__Set__": True, "as-list": ({},)}, {"__Serialized__": 1}, {"__Pickled__": 1}),
    {"__Enum__": True, "name": "x", "__module__": "os", "__name__": "y"},
    {"__Enum__": True, "name": "running", "__module__": "distributed.core", "__name__": "Status"},
    {"is-collection": True, "sub-headers": (), "frame-lengths": (), "type-serialized": "set"},
)
_KEYS = (
    *("serializer", "type", "type-serialized", "sub-header", "sub-headers", "is-collection"),
    *("frame-lengths", "split-num-sub-frames", "split-offsets", "compression", "num-sub-frames"),
    *(
        "writeable",
        "key",
        "pickled-obj",
        "format",
        "shape",
        "strides",
        "dtype",
        "typecode",
        "count",
    ),
    *("simple", "complex", "header", "start", "stop", "broadcast_to", "pickle", "as-list", "name"),
    *("__Serialized__", "__Pickled__", "__Set__", "__Enum__", "__module__", "__name__"),
)
_BYTES = (
    *(b"\x00", b"\xff", b"\x80", b"\x90", b"\xc0", b"\xc4\xff", b"\xdd\xff\xff\xff\xff", b"\xc9"),
    *(b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8, b"\x91" * 200),
    *(b"\x28\xb5\x2f\xfd", b"\x78\x9c", b"\xff\xff\xff\x7f", bytes(8), struct.pack("<Q", 2**63)),
)


class Mutator:
    """A source of mutated messages, which *seed* determines."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.seeds = seeds()

    def frames(self) -> Frames:
        """Return the frames of a valid message with one to eight mutations."""
        frames = list(self.random.choice(self.seeds))
        for _ in range(self.random.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            if frames:
                self.random.choice((self._values, self._values, self._bytes, self._order))(frames)
        return frames

    def stream(self) -> bytes:
        """Return the bytes of one to three such messages, with some lengths changed."""
        parts = []
        for _ in range(self.random.randint(1, 3)):
            frames = self.frames() if self.random.random() < 0.5 else self.random.choice(self.seeds)
            parts += [bytes(part) for part in pack_message(frames)[0]] if frames else []
        data = bytearray(b"".join(parts))
        for _ in range(self.random.randint(0, 3)):
            at = 8 * self.random.randint(0, 6)
            number = self.random.choice((*_NUMBERS[:3], *_NUMBERS[5:13], len(data), len(data) - at))
            data[at : at + 8] = struct.pack("<Q", number % 2**64)
        return bytes(data)

    def _order(self, frames: Frames) -> None:
        i, j = (self.random.randrange(len(frames)) for _ in range(2))
        match self.random.randrange(5):
            case 0:
                frames[i], frames[j] = frames[j], frames[i]
            case 1:
                del frames[i]
            case 2:
                frames.insert(i, frames[j])
            case 3:
                frames[i:] = self.random.choice(self.seeds)[i:]
            case 4:
                frames.insert(i, self.random.choice(_BYTES))

    def _bytes(self, frames: Frames) -> None:
        i = self.random.randrange(len(frames))
        frame = bytearray(frames[i])
        at = self.random.randint(0, len(frame))
        match self.random.randrange(5):
            case 0:
                frame[at : at + 1] = self.random.randbytes(1)
            case 1:
                frame[at:at] = self.random.choice(_BYTES)
            case 2:
                value = self.random.choice(_BYTES)
                frame[at : at + len(value)] = value
            case 3:
                del frame[at : at + self.random.randint(1, 9)]
            case 4:
                del frame[at:]
        frames[i] = bytes(frame)

    def _values(self, frames: Frames) -> None:
        i = self.random.randrange(min(len(frames), 4))
        try:
            value = msgpack.unpackb(frames[i], strict_map_key=False)
            frames[i] = msgpack.packb(self._changed(value))
        except (ValueError, TypeError):  # not msgpack, or keys that are not hashable
            return

    def _changed(self, value: Any) -> Any:
        """Return *value* with one element replaced."""
        inner = isinstance(value, (dict, list)) and len(value) and self.random.random() < 0.85
        if not inner:
            if isinstance(value, int) and self.random.random() < 0.3:
                return max(-(2**63), min(2**64 - 1, value + self.random.choice((-1, 1))))
            if isinstance(value, list) and self.random.random() < 0.3:
                return value * self.random.choice((0, 2, 5))
            return self.random.choice(_VALUES)
        if isinstance(value, list):
            i = self.random.randrange(len(value))
            return [*value[:i], self._changed(value[i]), *value[i + 1 :]]
        key = self.random.choice(list(value))
        match self.random.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, self.random.choice(_KEYS): self.random.choice(_VALUES)}
        return {**value, key: self._changed(value[key])}


def take(
    frames: Sequence[Any], deserialize: bool = True, deserializers: Sequence[str] | None = None
) -> bool:
    """Read a message as a receiver does, and pass it on; return whether it was valid."""
    try:
        msg = loads(frames, deserialize, deserializers, POLICY)
    except REFUSALS:
        return False
    if not deserialize:
        dumps(msg)
    return True


def take_stream(data: bytes, limits: Limits = LIMITS) -> int:
    """Read the messages of a stream as a receiver does; return the number of valid ones."""
    decoder = MessageDecoder(limits)
    rest = memoryview(data)
    right = size = 0
    while True:
        try:
            frames = decoder.buffer_updated(size) if size else None
            while frames is not None:
                right += take(frames)
                frames = decoder.next_message()
        except FramingError:
            return right
        if not rest:
            return right
        memory = decoder.get_buffer()
        size = min(len(memory), len(rest))
        memory[:size] = rest[:size]
        rest = rest[size:]


def peak_memory() -> int:
    """Return the peak memory (bytes) of this process."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    # Unlike getrusage(), this does not include the parent's peak.
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class Report(NamedTuple):
    """The result of reading mutated messages.

    Attributes
    ----------
    valid
        Number of messages that were still valid.
    slowest
        Longest CPU time (seconds) of one input.
    grown
        Number of bytes by which the peak memory of the process grew.
    """

    valid: int
    slowest: float
    grown: int


def run(seed: int, count: int) -> Report:
    """Read *count* mutated messages or streams.

    Raises
    ------
    AssertionError
        If an input raises any other error than `REFUSALS`; it contains the input.
    """
    mutator = Mutator(seed)
    valid = 0
    slowest = 0.0
    for frames in mutator.seeds:  # modules that these import do not count
        take(frames)
    peak_before = peak_memory()
    for i in range(count):
        stream = mutator.stream() if i % 3 == 2 else b""
        frames = [] if stream else mutator.frames()
        deserializers = ("dask", "msgpack") if i % 5 == 0 else None
        begin = time.process_time()
        try:
            valid += take_stream(stream) if stream else take(frames, i % 3 == 0, deserializers)
        except Exception as e:
            raise AssertionError(f"input {i} of seed {seed}: {stream or frames!r}") from e
        slowest = max(slowest, time.process_time() - begin)
    return Report(valid, slowest, peak_memory() - peak_before)


def main(corpus: Path) -> None:
    import atheris

    atheris.instrument_all()
    corpus.mkdir(parents=True, exist_ok=True)
    for i, frames in enumerate(seeds()):
        (corpus / f"seed-{i}").write_bytes(SEPARATOR.join(frames))
        (corpus / f"seed-stream-{i}").write_bytes(b"\xff" + b"".join(pack_message(frames)[0]))

    def one_input(data: bytes) -> None:
        if data[:1] == b"\xff":
            take_stream(data[1:])
        else:
            frames = data.split(SEPARATOR)
            take(frames)
            take(frames, deserialize=False)

    atheris.Setup([*sys.argv, str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(Path(__file__).parents[3] / ".fuzz" / "protocol")
