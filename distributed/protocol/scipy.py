"""SciPy's sparse matrices, attribute by attribute, so that their arrays are not pickled.

A `dok_matrix` (dictionary of keys) is sent as a `coo_matrix`.  Sparse *arrays* are left to the next
family, which is pickle, with the memory of their parts out of band.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import scipy.sparse

from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.generic import ObjectDictSerializer, register_generic
from distributed.protocol.objects import Header
from distributed.protocol.utils import Buffer

__all__ = ["deserialize_scipy_sparse_dok", "serialize_scipy_sparse_dok"]

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
    """Return the matrix, converted back from coordinate format."""
    return _by_attribute.deserialize(header["coo_header"], frames).todok()


register_generic(scipy.sparse.spmatrix)
dask_serialize.register(scipy.sparse.dok_matrix, serialize_scipy_sparse_dok)
dask_deserialize.register(scipy.sparse.dok_matrix, deserialize_scipy_sparse_dok)
