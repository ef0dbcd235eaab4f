"""The protocol: any Python object to frames of bytes, and back.

It uses neither sockets nor the event loop: :mod:`distributed.comm` moves the frames.  A message
takes this way: :mod:`~distributed.protocol.core` hands each wrapped value to
:mod:`~distributed.protocol.pieces`, which splits the frames that
:mod:`~distributed.protocol.objects` gets from a family (:mod:`~distributed.protocol.families`).
A receiver takes the same way back.
"""

from __future__ import annotations

import msgpack

from distributed.protocol import pickle
from distributed.protocol.compression import decompress, maybe_compress
from distributed.protocol.core import dumps, loads
from distributed.protocol.serialize import (
    Pickled,
    Serialize,
    Serialized,
    ToPickle,
    cuda_deserialize,
    cuda_serialize,
    dask_deserialize,
    dask_serialize,
    deserialize,
    deserialize_bytes,
    register_generic,
    register_serialization,
    register_serialization_family,
    serialize,
    serialize_bytelist,
    serialize_bytes,
    to_serialize,
)

__all__ = [
    "Pickled",
    "Serialize",
    "Serialized",
    "ToPickle",
    "cuda_deserialize",
    "cuda_serialize",
    "dask_deserialize",
    "dask_serialize",
    "decompress",
    "deserialize",
    "deserialize_bytes",
    "dumps",
    "loads",
    "maybe_compress",
    "msgpack",
    "pickle",
    "register_generic",
    "register_serialization",
    "register_serialization_family",
    "serialize",
    "serialize_bytelist",
    "serialize_bytes",
    "to_serialize",
]
