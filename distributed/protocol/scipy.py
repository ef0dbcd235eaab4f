"""SciPy's sparse matrices, attribute by attribute, so that their arrays are not pickled.

A `dok_matrix` (dictionary of keys) is sent as a `coo_matrix`.  Sparse *arrays* are left to the next
family, which is pickle, with the memory of their parts out of band.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import scipy.sparse

from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.exceptions import HeaderError
from distributed.protocol.generic import ObjectDictSerializer, register_generic
from distributed.protocol.limits import count_memory
from distributed.protocol.objects import Header
from distributed.protocol.utils import Buffer

__all__ = ["deserialize_scipy_sparse_dok", "serialize_scipy_sparse_dok"]

#: Number of bytes of an entry of a dictionary of keys: a tuple, its two indices, and the value.
_ENTRY_SIZE = 256

_by_attribute = ObjectDictSerializer("dask")


def serialize_scipy_sparse_dok(
    x: scipy.sparse.dok_matrix, context: Any = None
) -> tuple[Header, list[Any]]:
    """Return header and frames of the matrix in coordinate format."""
    header, frames = _by_attribute.serialize(x.tocoo(), context)
    return {"coo_header": header}, frames


def deserialize_scipy_sparse_dok(
    header: Header, frames: Sequence[Buffer]
) -> scipy.sparse.dok_matrix:
    """Return the matrix, converted back from coordinate format.

    Raises
    ------
    HeaderError
        If the frames do not contain a matrix in coordinate format.
    CompressionError
        If the dictionary would be larger than ``distributed.comm.max-inflated-size``.
    """
    x = _by_attribute.deserialize(header["coo_header"], frames)
    if not isinstance(x, scipy.sparse.coo_matrix):
        raise HeaderError(f"a dok_matrix was sent as a {type(x).__name__:.100}")
    size = sum(part.nbytes for part in (x.data, x.row, x.col))
    count_memory(_ENTRY_SIZE * x.data.size + size, "a dok_matrix")
    return x.todok()


register_generic(scipy.sparse.spmatrix)
dask_serialize.register(scipy.sparse.dok_matrix, serialize_scipy_sparse_dok)
dask_deserialize.register(scipy.sparse.dok_matrix, deserialize_scipy_sparse_dok)
