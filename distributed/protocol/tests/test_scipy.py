"""SciPy's sparse matrices and arrays arrive unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from distributed.protocol import Serialize, dumps, loads, serialize
from distributed.protocol.tests.round_trips import any_shares_memory, family, in_each_way, received

np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")
sparse: Any = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")

FORMATS = ["csr", "csc", "coo", "bsr", "dia", "dok", "lil"]
KINDS = [f"{format}_{kind}" for kind in ("matrix", "array") for format in FORMATS]


def make(kind):
    dense = np.zeros((4, 6))
    dense[0, 1], dense[2, 5], dense[3, 0] = 1.5, -2, 3
    return getattr(sparse, kind)(dense)


def assert_same(x, expected):
    assert type(x) is type(expected)
    assert x.shape == expected.shape
    assert x.dtype == expected.dtype
    assert x.nnz == expected.nnz
    np.testing.assert_array_equal(x.toarray(), expected.toarray())


@pytest.mark.parametrize("kind", KINDS)
@in_each_way
def test_a_matrix_or_array_arrives_unchanged(kind, way):
    assert_same(way(make(kind)), make(kind))


@pytest.mark.parametrize("kind", ["csr_matrix", "coo_matrix", "csr_array", "dok_matrix"])
@in_each_way
def test_an_empty_matrix_or_array_arrives_unchanged(kind, way):
    empty = getattr(sparse, kind)((3, 0))
    assert_same(way(empty), empty)


@pytest.mark.parametrize("kind", ["csr_matrix", "csr_array"])
def test_memory_is_copied_by_neither_sender_nor_receiver(kind):
    x = make(kind)
    sent, frames = serialize(x)[1], received(dumps(Serialize(x)))
    arrived = loads(frames)
    for name in ("data", "indices", "indptr"):
        assert any_shares_memory(sent, getattr(x, name))
        assert any_shares_memory(frames, getattr(arrived, name))


def test_matrices_are_not_pickled():
    assert {family(make(f"{format}_matrix")) for format in FORMATS} == {"dask"}


@in_each_way
def test_a_received_matrix_can_be_multiplied(way):
    x = make("csr_matrix")
    np.testing.assert_array_equal((way(x) @ x.T).toarray(), (x @ x.T).toarray())
