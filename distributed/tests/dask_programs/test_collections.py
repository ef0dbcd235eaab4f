"""Arrays, data frames and bags: graphs, shuffles and rechunking."""

from __future__ import annotations

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest


def test_transpose_and_add(client):
    x = da.random.default_rng(0).random((2000, 2000), chunks=(500, 500)).persist()
    expected = x.compute()
    assert np.allclose((x + x.T).compute(), expected + expected.T)


@pytest.mark.parametrize("method", ["tasks", "p2p"])
def test_rechunk(client, method):
    x = da.arange(1_000_000, chunks=100_000).reshape(1000, 1000)
    with dask.config.set({"array.rechunk.method": method}):
        y = x.rechunk((1000, 50))
    assert (y.compute() == np.arange(1_000_000).reshape(1000, 1000)).all()


@pytest.mark.parametrize("method", ["tasks", "p2p"])
def test_a_data_frame_is_shuffled(client, method):
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"k": np.arange(10_000) % 97, "v": np.arange(10_000.0), "s": "text"})
    ddf = dd.from_pandas(frame, npartitions=10)
    with dask.config.set({"dataframe.shuffle.method": method}):
        shuffled = ddf.shuffle("k").compute()
        merged = ddf.merge(ddf.rename(columns={"v": "w"})[["k", "w"]].drop_duplicates("k"), on="k")
        assert len(merged) == 10_000
    assert shuffled.sort_values("v").v.tolist() == frame.v.tolist()


def test_a_group_by(client):
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"k": np.arange(1000) % 7, "v": np.arange(1000)})
    result = dd.from_pandas(frame, npartitions=5).groupby("k").v.sum().compute()
    assert result.sort_index().tolist() == frame.groupby("k").v.sum().tolist()


def test_a_bag(client):
    words = db.from_sequence(["one", "two", "two", "three"] * 100, npartitions=4)
    assert dict(words.frequencies().compute()) == {"one": 100, "two": 200, "three": 100}
