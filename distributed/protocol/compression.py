"""Making frames smaller, where that is worth it.

A codec is a `Compression` in the table `compressions`; libraries that are not installed have none,
and code built on this package may add its own before connections are made.  What is tried is
sampled first (`maybe_compress`), so that data which does not shrink costs little.  This module
knows single frames only: which codec a connection uses is agreed in the handshake
(:mod:`distributed.comm.core`), which frames are compressed is up to
:mod:`distributed.protocol.core`, and the names of the codecs travel in the headers.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import random
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from distributed import config
from distributed.protocol.exceptions import CompressionError
from distributed.protocol.utils import Buffer
from distributed.utils import ensure_memoryview, nbytes

__all__ = [
    "Compression",
    "byte_sample",
    "compressions",
    "decompress",
    "get_compression_settings",
    "maybe_compress",
]


class Compression(NamedTuple):
    """A codec.

    Attributes
    ----------
    name
        How headers and handshakes call it; None for one that leaves frames alone.
    compress, decompress
        Each takes a bytes-like frame and returns another.
    """

    name: str | None
    compress: Callable[[Any], Any]
    decompress: Callable[[Any], Any]


def _identity(frame: Any) -> Any:
    return frame


_NONE = Compression(None, _identity, _identity)

compressions: dict[str | Literal[False] | None, Compression] = {
    None: _NONE,
    False: _NONE,
    "auto": _NONE,
    "zlib": Compression("zlib", zlib.compress, zlib.decompress),
}
"""Codecs by name.  "auto" is lz4 or snappy where one of them is installed, else none."""


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _from_module(module: str, function: str) -> Callable[[Any], Any]:
    """A function of a library, which is imported when it is first called."""

    def call(frame: Any) -> Any:
        return getattr(importlib.import_module(module), function)(frame)

    return call


@functools.cache
def _zstd_settings() -> tuple[int, int]:
    return config.get("distributed.comm.zstd.level"), config.get("distributed.comm.zstd.threads")


def _zstd_compress(frame: Any) -> Any:
    level, threads = _zstd_settings()
    # A compressor is not for several threads at once, so each frame gets its own.
    zstandard = importlib.import_module("zstandard")
    return zstandard.ZstdCompressor(level=level, threads=threads).compress(frame)


def _zstd_decompress(frame: Any) -> Any:
    return importlib.import_module("zstandard").ZstdDecompressor().decompress(frame)


if _is_installed("snappy"):
    compressions["snappy"] = compressions["auto"] = Compression(
        "snappy", _from_module("snappy", "compress"), _from_module("snappy", "decompress")
    )
if _is_installed("lz4"):
    compressions["lz4"] = compressions["auto"] = Compression(
        "lz4", _from_module("lz4.block", "compress"), _from_module("lz4.block", "decompress")
    )
if _is_installed("zstandard"):
    compressions["zstd"] = Compression("zstd", _zstd_compress, _zstd_decompress)


def get_compression_settings(key: str) -> str | None:
    """Name of the codec that the configuration asks for at *key*.

    Parameters
    ----------
    key
        For example ``"distributed.comm.compression"``, whose value is a name, "auto", or false.

    Returns
    -------
    str or None
        None for no compression.

    Raises
    ------
    ValueError
        If no codec of that name is installed or registered.
    """
    name = config.get(key)
    try:
        return compressions[name].name
    except (KeyError, TypeError):
        known = ", ".join(repr(known) for known in compressions)
        raise ValueError(
            f"Invalid compression setting {key}={name!r}. Valid options here are {known}; "
            "lz4, snappy and zstd need their libraries (lz4, python-snappy, zstandard)"
        ) from None


def byte_sample(b: memoryview, size: int, n: int) -> memoryview:
    """Pick *n* pieces of *size* bytes from random places spread over the whole of *b*.

    Returns
    -------
    memoryview
        The pieces in order, of ``n * size`` bytes together, or all of *b* if it is no longer.
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
    """Compress *payload* if that makes it much smaller.

    Parameters
    ----------
    payload
        A bytes-like frame.
    min_size
        Bytes below which it is left alone.
    sample_size, nsamples
        What is compressed first, for a guess: so many pieces of so many bytes.
    min_ratio
        The largest share of the original size that still counts as much smaller.
    compression
        Name of the codec.

    Returns
    -------
    tuple
        The codec's name and the compressed frame, or None and *payload* itself.

    Raises
    ------
    ValueError
        If there is no such codec.

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


def decompress(header: Mapping[str, Any], frames: Iterable[Buffer]) -> list[Any]:
    """Inflate those of a value's *frames* that its *header* says are compressed.

    Raises
    ------
    CompressionError
        If the header names an unknown codec, does not account for each frame, or a frame does not
        inflate with the codec that is named for it.
    """
    frames = list(frames)
    names = header.get("compression")
    if not names:
        # Values that were serialized ahead of time have no say about compression.
        return frames
    if not isinstance(names, (tuple, list)) or len(names) != len(frames):
        raise CompressionError(f"a header has compressions {names!r:.200} for {len(frames)} frames")
    if not any(names):
        return frames
    return [
        _inflate(name, frame, i) if name else frame
        for i, (name, frame) in enumerate(zip(names, frames, strict=True))
    ]


def _inflate(name: Any, frame: Any, position: int) -> Any:
    codec = compressions.get(name) if isinstance(name, str) else None
    if codec is None:
        raise CompressionError(
            f"frame {position} is compressed with {name!r:.100}, which is not installed here "
            f"(known: {[known for known in compressions if isinstance(known, str)]})"
        )
    try:
        return codec.decompress(frame)
    except Exception as e:  # each library has errors of its own
        raise CompressionError(
            f"frame {position} ({nbytes(frame)} bytes) does not inflate with {name}: {e}"
        ) from e
