"""Arrays of the `sparse` library arrive as they were."""

from __future__ import annotations

from typing import Any

import pytest

from distributed.protocol import Serialize, deserialize, dumps, loads, serialize
from distributed.protocol.exceptions import ProtocolError
from distributed.protocol.tests.round_trips import echoed, family, in_each_way, received
from distributed.utils_test import gen_test

np: Any = pytest.importorskip("numpy", reason="NumPy is not installed")
sparse: Any = pytest.importorskip("sparse", reason="sparse is not installed")

DENSE = np.zeros((4, 1, 6))
DENSE[0, 0, 1], DENSE[2, 0, 5], DENSE[3, 0, 0] = 1.5, -2, 3

ARRAYS = {
    "COO": sparse.COO.from_numpy(DENSE),
    "COO filled with ones": sparse.COO.from_numpy(DENSE + 1, fill_value=1),
    "COO filled with nan": sparse.COO.from_numpy(np.array([np.nan, 1.0]), fill_value=np.nan),
    "COO of integers": sparse.COO.from_numpy(DENSE.astype("u1")),
    "COO of nothing": sparse.COO.from_numpy(np.zeros((3, 2))),
    "GCXS": sparse.GCXS.from_numpy(DENSE),
    "DOK": sparse.DOK.from_numpy(DENSE),
}


def assert_same(x, expected):
    assert type(x) is type(expected)
    assert x.shape == expected.shape
    assert x.dtype == expected.dtype
    assert x.nnz == expected.nnz
    np.testing.assert_array_equal(x.fill_value, expected.fill_value)
    np.testing.assert_array_equal(x.todense(), expected.todense())


@pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
@in_each_way
def test_it_arrives_as_it_was(x, way):
    assert_same(way(x), x)


@gen_test()
async def test_it_travels_over_a_connection():
    arrays = list(ARRAYS.values())
    for expected, arrived in zip(arrays, await echoed(arrays), strict=True):
        assert_same(arrived, expected)


def test_its_memory_is_sent_as_it_is_and_viewed_where_it_arrives():
    x = ARRAYS["COO"]
    assert family(x) == "dask"
    _, frames = serialize(x)
    assert np.shares_memory(np.frombuffer(frames[0], "u1"), x.coords)
    assert np.shares_memory(np.frombuffer(frames[1], "u1"), x.data)
    frames = received(dumps(Serialize(x)))
    assert np.shares_memory(np.frombuffer(frames[-1], "u1"), loads(frames).data)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (2, 1, 6)},
        {"shape": (4, 6)},
        {"shape": (4, 1, -6)},
        {"shape": None},
        {"nframes": [2, 1]},
        {"nframes": [-1, 3]},
        {"nframes": 3},
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused(changes):
    header, frames = serialize(ARRAYS["COO"])
    header["sub-header"].update(changes)
    with pytest.raises(ProtocolError):
        deserialize(header, frames)
