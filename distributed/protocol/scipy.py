"""SciPy's sparse matrices, by the arrays that they are made of.

A matrix is an object with a few arrays as attributes, which travel as such.  A dictionary of keys
is sent as a matrix of coordinates.  Sparse *arrays* go to the next family, which is pickle, with
the memory of their parts out of band.  This module is imported when the first object of SciPy is
seen (see :mod:`distributed.protocol.dispatch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import scipy.sparse

from distributed.protocol.dispatch import dask_deserialize, dask_serialize
from distributed.protocol.generic import ObjectDictSerializer, register_generic
from distributed.protocol.utils import Buffer

__all__ = ["deserialize_scipy_sparse_dok", "serialize_scipy_sparse_dok"]

Header = dict[str, Any]

_by_attribute = ObjectDictSerializer("dask")


def serialize_scipy_sparse_dok(
    x: scipy.sparse.dok_matrix, context: Any = None
) -> tuple[Header, list[Any]]:
    """A dictionary of keys as the matrix of coordinates that it amounts to."""
    header, frames = _by_attribute.serialize(x.tocoo(), context)
    return {"coo_header": header}, frames


def deserialize_scipy_sparse_dok(
    header: Header, frames: Sequence[Buffer]
) -> scipy.sparse.dok_matrix:
    """The dictionary of keys for a matrix of coordinates."""
    return _by_attribute.deserialize(header["coo_header"], frames).todok()


register_generic(scipy.sparse.spmatrix)
dask_serialize.register(scipy.sparse.dok_matrix, serialize_scipy_sparse_dok)
dask_deserialize.register(scipy.sparse.dok_matrix, deserialize_scipy_sparse_dok)
