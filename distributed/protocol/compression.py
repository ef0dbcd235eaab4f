"""Compression of frames that become much smaller.

A codec is a `Compression` in the table `compressions`.  The codecs of libraries that are not
installed are missing; other packages may add theirs before connections are made.  A sender
compresses a sample first (`maybe_compress`), so data that does not shrink costs little.  A
receiver inflates no more bytes than the message may have (:mod:`distributed.protocol.limits`).

This module handles single frames.  The handshake (:mod:`distributed.comm`) negotiates the codec,
:mod:`distributed.protocol.core` compresses the frames, and headers state their codecs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from distributed.base import config
from distributed.base.buffers import ensure_memoryview, nbytes
from distributed.base.metering import metered
from distributed.base.text import shown_repr
from distributed.protocol.dispatch import takes_keyword
from distributed.protocol.exceptions import CompressionError, SerializationError
from distributed.protocol.limits import Reading, reading
from distributed.protocol.utils import Buffer

__all__ = [
    "Compression",
    "byte_sample",
    "compress_frames",
    "compressions",
    "decompress",
    "get_compression_settings",
    "inflated_size",
    "maybe_compress",
    "own_codecs",
]


class Compression(NamedTuple):
    """A codec.

    Attributes
    ----------
    name
        The name in headers and handshakes; None for no compression.
    compress
        Takes a bytes-like frame; returns the compressed frame.
    decompress
        Takes a compressed frame; returns the original bytes.  If it has a parameter ``max_size``,
        it receives the maximum size (bytes) of the result, or None, and raises `OverflowError`
        instead of inflating to more.  Otherwise the size is checked afterwards.
    """

    name: str | None
    compress: Callable[[Any], Any]
    decompress: Callable[..., Any]


def _identity(frame: Any) -> Any:
    return frame


#: Maximum number of bytes to inflate at a time if the total is not known, and to give to zlib at a
#: time.  The libraries release the GIL meanwhile.
_STEP = 2**20
_INPUT_STEP = 2**18


def _check_size(size: int, max_size: int | None) -> None:
    if max_size is not None and size > max_size:
        raise OverflowError(f"it inflates to {size:,} bytes")


def _joined(steps: Iterable[bytes], max_size: int | None) -> bytes:
    """Join the bytes that a codec inflates in steps, and stop it above the maximum size."""
    # The buffer grows, and becomes the result, without a copy of all at once.
    joined = io.BytesIO()
    for step in steps:
        if max_size is not None and joined.tell() + len(step) > max_size:
            raise OverflowError(f"it inflates to more than {max_size:,} bytes")
        joined.write(step)
    return joined.getvalue()


#: Maximum number of bytes that one byte inflates to: a match of 258 bytes takes two bits.
_ZLIB_RATIO = 1032


def _zlib_decompress(frame: Any, max_size: int | None = None) -> bytes:
    return _joined(_zlib_steps(ensure_memoryview(frame)), max_size)


def _zlib_steps(frame: memoryview) -> Iterator[bytes]:
    inflater = zlib.decompressobj()
    for start in range(0, len(frame), _INPUT_STEP):
        part: Any = frame[start : start + _INPUT_STEP]
        # zlib copies the rest of its input at each call, so the input is in steps as well.
        while not inflater.eof and (step := inflater.decompress(part, _STEP)):
            yield step
            part = inflater.unconsumed_tail
        if inflater.eof:
            return
    raise ValueError("it is incomplete")


def _function(module: str, name: str) -> Callable[..., Any]:
    """Return a function of a library, which is imported at the first call."""
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _lz4_compress(frame: Any) -> Any:
    return _function("lz4.block", "compress")(frame)


#: Maximum number of bytes that one byte inflates to: one byte of a match's length counts 255.
_LZ4_RATIO = 255


def _lz4_decompress(frame: Any, max_size: int | None = None) -> Any:
    (size,) = struct.unpack_from("<I", frame)
    if size > _LZ4_RATIO * nbytes(frame):
        raise ValueError(f"it cannot inflate to the {size:,} bytes that it states")
    _check_size(size, max_size)
    # A bytearray is writable, so an array needs no copy of it.
    return _function("lz4.block", "decompress")(frame, return_bytearray=True)


def _snappy_compress(frame: Any) -> Any:
    return _function("snappy", "compress")(frame)


#: Maximum number of bytes that one byte inflates to: a copy of 64 bytes takes three.
_SNAPPY_RATIO = 22


def _snappy_decompress(frame: Any, max_size: int | None = None) -> Any:
    size = _varint(frame)
    if size > _SNAPPY_RATIO * nbytes(frame):
        raise ValueError(f"it cannot inflate to the {size:,} bytes that it states")
    _check_size(size, max_size)
    return _function("snappy", "decompress")(frame)


def _varint(frame: Any) -> int:
    """Return the number at the start of *frame*: 7 bits per byte, lowest first."""
    number = 0
    for i, byte in enumerate(ensure_memoryview(frame)[:5]):
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number
    raise ValueError("it does not start with its size")


@functools.cache
def _zstd_settings() -> tuple[int, int]:
    return config.read("distributed.comm.zstd.level"), config.read("distributed.comm.zstd.threads")


def _zstd_compress(frame: Any) -> Any:
    level, threads = _zstd_settings()
    # Threads must not share a compressor, so each frame gets its own.
    return _function("zstandard", "ZstdCompressor")(level=level, threads=threads).compress(frame)


#: Maximum number of bytes that one byte inflates to: a block of 128 KiB takes four.
_ZSTD_RATIO = 2**15
#: Number of bytes to give to zstd at a time.
_ZSTD_INPUT_STEP = 2**10


def _zstd_decompress(frame: Any, max_size: int | None = None) -> Any:
    size: int = _function("zstandard", "frame_content_size")(frame)
    decompressor = _function("zstandard", "ZstdDecompressor")()
    if size >= 0:
        _check_size(size, max_size)
        return decompressor.decompress(frame)
    return _joined(_zstd_steps(decompressor, ensure_memoryview(frame)), max_size)


def _zstd_steps(decompressor: Any, frame: memoryview) -> Iterator[bytes]:
    # A stream_reader() would limit its output, but does not notice an incomplete frame.
    inflater = decompressor.decompressobj()
    for start in range(0, len(frame), _ZSTD_INPUT_STEP):
        yield inflater.decompress(frame[start : start + _ZSTD_INPUT_STEP])
        if inflater.eof:
            return
    raise ValueError("it is incomplete")


def _zstd_size(frame: Any) -> int:
    size: int = _function("zstandard", "frame_content_size")(frame)
    return size if size >= 0 else _ZSTD_RATIO * nbytes(frame)


_NONE = Compression(None, _identity, _identity)

compressions: dict[str | Literal[False] | None, Compression] = {
    None: _NONE,
    False: _NONE,
    "auto": _NONE,
    "zlib": Compression("zlib", zlib.compress, _zlib_decompress),
}
"""Codecs by name.  "auto" is lz4 if installed, else snappy if installed, else none."""


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


if _is_installed("snappy"):
    compressions["snappy"] = compressions["auto"] = Compression(
        "snappy", _snappy_compress, _snappy_decompress
    )
if _is_installed("lz4"):
    compressions["lz4"] = compressions["auto"] = Compression("lz4", _lz4_compress, _lz4_decompress)
if _is_installed("zstandard"):
    compressions["zstd"] = Compression("zstd", _zstd_compress, _zstd_decompress)


# Functions that return the inflated size of a frame in bytes, as the frame states it or else the
# largest possible.
_SIZES: dict[str, Callable[[Any], int]] = {
    "zlib": lambda frame: _ZLIB_RATIO * nbytes(frame),
    "lz4": lambda frame: int(struct.unpack_from("<I", frame)[0]),
    "snappy": _varint,
    "zstd": _zstd_size,
}

#: Number of bytes that are inflated in the time that a call of a codec takes by itself.
_BYTES_PER_CALL = 4096


def inflated_size(header: Mapping[str, Any], frames: Sequence[Any]) -> int:
    """Return the number of bytes to which the compressed frames of a value inflate, at most.

    An invalid frame counts little: `decompress` refuses it soon.
    """
    names = header.get("compression")
    if not isinstance(names, (tuple, list)):
        return 0
    total = 0
    for name, frame in zip(names, frames, strict=False):
        if name:
            total += _BYTES_PER_CALL
            try:
                # Other codecs count like zlib.
                total += _SIZES.get(name, _SIZES["zlib"])(frame)
            except Exception:  # noqa: BLE001 - each library raises its own errors
                continue
    return total


def get_compression_settings(key: str) -> str | None:
    """Return the name of the codec that is configured at *key*.

    Parameters
    ----------
    key
        For example ``"distributed.comm.compression"``.  Its value is a name, "auto", or false.

    Returns
    -------
    str or None
        The name; None for no compression.

    Raises
    ------
    ValueError
        If no codec of that name is installed or registered.
    """
    name = config.get(key)
    try:
        return compressions[name].name
    except (KeyError, TypeError):
        known = ",".join(repr(known) for known in compressions)
        # The text of the original, and the source.
        raise ValueError(
            f"Invalid compression setting {key}={name!r:.200} (from {config.source(key, name)}). "
            f"Valid options are {known}. "
            "lz4, snappy and zstd need their libraries (lz4, python-snappy, zstandard)."
        ) from None


def byte_sample(b: memoryview, size: int, n: int) -> memoryview:
    """Return *n* pieces of *size* bytes from random places, spread evenly over *b*.

    Returns
    -------
    memoryview
        The pieces in order, ``n * size`` bytes in total; all of *b* if it is not longer than that.
    """
    view = ensure_memoryview(b)
    if n * size >= len(view):
        return view
    if n < 1 or size < 1:
        return view[:0]
    stride = len(view) // n
    starts = [i * stride + random.randint(0, stride - size) for i in range(n)]
    return memoryview(b"".join([view[start : start + size] for start in starts]))


def maybe_compress(
    payload: Any,
    *,
    min_size: int = 10_000,
    sample_size: int = 10_000,
    nsamples: int = 5,
    min_ratio: float = 0.7,
    compression: str | Literal[False] | None = "auto",
) -> tuple[str | None, Any]:
    """Compress *payload* if it becomes much smaller.

    Parameters
    ----------
    payload
        A bytes-like frame.
    min_size
        Size (bytes) below which it is not compressed.
    sample_size, nsamples
        Size (bytes) and number of the pieces that are compressed first, as a sample.
    min_ratio
        Maximum compressed size, as a fraction of the original size.
    compression
        Name of the codec.

    Returns
    -------
    tuple
        The codec's name and the compressed frame, or None and *payload* itself.

    Raises
    ------
    ValueError
        If there is no codec of this name.

    Examples
    --------
    >>> name, frame = maybe_compress(bytes(100_000), compression="zlib")
    >>> name, len(frame) < 200
    ('zlib', True)
    >>> maybe_compress(b"short", compression="zlib")
    (None, b'short')
    """
    if not compression:
        return None, payload
    try:
        codec = compressions[compression]
    except KeyError:
        raise ValueError(f"no codec named {compression!r} is installed or registered") from None
    size = nbytes(payload)
    if codec.name is None or size < min_size or size >= 2**31:
        return None, payload
    view = ensure_memoryview(payload)
    sample = byte_sample(view, sample_size, nsamples)
    if len(sample) < size and nbytes(codec.compress(sample)) > min_ratio * len(sample):
        return None, payload
    compressed = codec.compress(view)
    if nbytes(compressed) > min_ratio * size:
        return None, payload
    return codec.name, compressed


def own_codecs(header: Mapping[str, Any], count: int) -> Sequence[str | None]:
    """Return the codec of each frame that a serializer has stated as ``"compression"``.

    Raises
    ------
    SerializationError
        If the header does not have a codec or None for each of *count* frames.
    """
    names: Sequence[str | None] = header["compression"]
    if not isinstance(names, (tuple, list)) or len(names) != count:
        raise SerializationError(
            f"a serializer stated {shown_repr(names, 200)} as the compression of {count} frames; "
            "expected the name of a codec or None for each of them"
        )
    return names


@metered("compress")
def compress_frames(
    header: dict[str, Any],
    frames: Sequence[Any],
    compression: str | Literal[False] | None,
) -> list[Any]:
    """Compress the frames of a value with `maybe_compress`, and state the codecs in its header.

    Frames for which *header* already states a codec are left as they are.
    """
    if not compression:
        return list(frames)
    compressed = [
        (name, frame) if name else maybe_compress(frame, compression=compression)
        for name, frame in zip(header["compression"], frames, strict=True)
    ]
    header["compression"] = tuple(name for name, _ in compressed)
    return [frame for _, frame in compressed]


@metered("decompress")
def decompress(header: Mapping[str, Any], frames: Iterable[Buffer]) -> list[Any]:
    """Inflate the frames of a value that are compressed according to its header.

    Raises
    ------
    CompressionError
        If the header names an unknown codec or does not name one for each frame, if a frame does
        not inflate with its codec, or if it inflates to more than
        ``distributed.comm.max-inflated-size`` allows.
    """
    frames = list(frames)
    names = header.get("compression")
    if not names:
        # The header of a value that was serialized in advance does not mention compression.
        return frames
    if not isinstance(names, (tuple, list)) or len(names) != len(frames):
        raise CompressionError(
            f"a header has compressions {shown_repr(names, 200)} for {len(frames)} frames"
        )
    if not any(names):
        return frames
    with reading(None, sum(map(nbytes, frames))) as message:
        for i, name in enumerate(names):
            if name:
                frames[i] = _inflate(name, frames[i], i, message)
    return frames


def _inflate(name: Any, frame: Any, position: int, message: Reading) -> Any:
    codec = compressions.get(name) if isinstance(name, str) else None
    if codec is None or codec.name is None:
        raise CompressionError(
            f"frame {position} is compressed with {shown_repr(name, 100)}, which is not installed "
            f"here (known: {[known for known in compressions if isinstance(known, str)]})"
        )
    what = f"frame {position} ({nbytes(frame)} bytes) does not inflate with {name}"
    room = message.room
    try:
        if takes_keyword(codec.decompress, "max_size"):
            inflated = codec.decompress(frame, max_size=room)
        else:
            inflated = codec.decompress(frame)
            _check_size(nbytes(inflated), room)
    except OverflowError as e:
        raise message.no_room(f"{what}: {e}") from None
    except Exception as e:  # each library raises its own errors
        raise CompressionError(f"{what}: {str(e) or type(e).__name__}") from e
    message.inflated += nbytes(inflated)
    return inflated
