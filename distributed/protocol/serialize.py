"""The names that the original has in its module ``serialize``; each is defined elsewhere.

====================  ====================================================================
wrappers              values in a message that say how they are sent
objects               an object to a header and frames, and back
pieces                header and frames, split and packed for a message or for storing
families              the serializer families, and how to register types and families
dispatch              the tables of types that have serializers of their own
builtin_types         serializers of bytes, bytearray, memoryview and array
generic               a serializer that works attribute by attribute
extension             sets and Enum members in msgpack
====================  ====================================================================
"""

from __future__ import annotations

from distributed.protocol import builtin_types as builtin_types
from distributed.protocol.dispatch import (
    cuda_deserialize,
    cuda_serialize,
    dask_deserialize,
    dask_serialize,
)
from distributed.protocol.extension import (
    import_allowed_module,
    msgpack_decode_default,
    msgpack_encode_default,
)
from distributed.protocol.families import (
    families,
    pickle_dumps,
    pickle_loads,
    register_serialization,
    register_serialization_family,
)
from distributed.protocol.generic import ObjectDictSerializer, register_generic
from distributed.protocol.objects import (
    _is_dumpable,
    _is_msgpack_serializable,
    check_dask_serializable,
    deserialize,
    serialize,
)
from distributed.protocol.pieces import (
    deserialize_bytes,
    merge_and_deserialize,
    nested_deserialize,
    serialize_and_split,
    serialize_bytelist,
    serialize_bytes,
)
from distributed.protocol.pieces import nested_deserialize as _nested_deserialize
from distributed.protocol.wrappers import Pickled, Serialize, Serialized, ToPickle, to_serialize

__all__ = [
    "ObjectDictSerializer",
    "Pickled",
    "Serialize",
    "Serialized",
    "ToPickle",
    "_is_dumpable",
    "_is_msgpack_serializable",
    "_nested_deserialize",
    "check_dask_serializable",
    "cuda_deserialize",
    "cuda_serialize",
    "dask_deserialize",
    "dask_serialize",
    "deserialize",
    "deserialize_bytes",
    "families",
    "import_allowed_module",
    "merge_and_deserialize",
    "msgpack_decode_default",
    "msgpack_encode_default",
    "nested_deserialize",
    "pickle_dumps",
    "pickle_loads",
    "register_generic",
    "register_serialization",
    "register_serialization_family",
    "serialize",
    "serialize_and_split",
    "serialize_bytelist",
    "serialize_bytes",
    "to_serialize",
]
