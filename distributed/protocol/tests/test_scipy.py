"""SciPy's sparse matrices and arrays arrive as they were."""

from __future__ import annotations

from typing import Any

import pytest

from distributed.protocol import Serialize, dumps, loads, serialize
from distributed.protocol.tests.round_trips import echoed, family, in_each_way, received
from distributed.utils_test import gen_test

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
def test_it_arrives_as_it_was(kind, way):
    assert_same(way(make(kind)), make(kind))


@pytest.mark.parametrize("kind", ["csr_matrix", "coo_matrix", "csr_array", "dok_matrix"])
@in_each_way
def test_nothing_but_zeros_arrives_as_it_was(kind, way):
    empty = getattr(sparse, kind)((3, 0))
    assert_same(way(empty), empty)


@gen_test()
async def test_it_travels_over_a_connection():
    for kind, arrived in zip(KINDS, await echoed(list(map(make, KINDS))), strict=True):
        assert_same(arrived, make(kind))


@pytest.mark.parametrize("kind", ["csr_matrix", "csr_array"])
def test_its_memory_is_sent_as_it_is_and_viewed_where_it_arrives(kind):
    x = make(kind)
    _, frames = serialize(x)
    views = [np.frombuffer(frame, "u1") for frame in frames]
    for part in (x.data, x.indices, x.indptr):
        assert any(np.shares_memory(view, part) for view in views)
    frames = received(dumps(Serialize(x)))
    views = [np.frombuffer(frame, "u1") for frame in frames]
    arrived = loads(frames)
    for part in (arrived.data, arrived.indices, arrived.indptr):
        assert any(np.shares_memory(view, part) for view in views)


def test_matrices_are_not_pickled():
    assert {family(make(f"{format}_matrix")) for format in FORMATS} == {"dask"}


@in_each_way
def test_a_matrix_can_be_computed_with_where_it_arrives(way):
    x = make("csr_matrix")
    np.testing.assert_array_equal((way(x) @ x.T).toarray(), (x @ x.T).toarray())
