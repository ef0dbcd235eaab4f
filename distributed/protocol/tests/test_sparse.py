"""Arrays of the `sparse` library arrive unchanged."""

from __future__ import annotations

from typing import Any

import pytest

from distributed.protocol import Serialize, deserialize, dumps, loads, serialize
from distributed.protocol.exceptions import ProtocolError
from distributed.protocol.tests.round_trips import any_shares_memory, family, in_each_way, received

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


@pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS)
@in_each_way
def test_an_array_arrives_unchanged(x, way):
    arrived = way(x)
    assert type(arrived) is type(x)
    assert arrived.shape == x.shape
    assert arrived.dtype == x.dtype
    assert arrived.nnz == x.nnz
    np.testing.assert_array_equal(arrived.fill_value, x.fill_value)
    np.testing.assert_array_equal(arrived.todense(), x.todense())


def test_memory_is_copied_by_neither_sender_nor_receiver():
    x = ARRAYS["COO"]
    assert family(x) == "dask"
    _, frames = serialize(x)
    assert any_shares_memory(frames[:1], x.coords)
    assert any_shares_memory(frames[1:], x.data)
    frames = received(dumps(Serialize(x)))
    assert any_shares_memory(frames[-1:], loads(frames).data)


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
def test_a_false_header_is_refused(changes):
    header, frames = serialize(ARRAYS["COO"])
    header["sub-header"].update(changes)
    with pytest.raises(ProtocolError):
        deserialize(header, frames)
