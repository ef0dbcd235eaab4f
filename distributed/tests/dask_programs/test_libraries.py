"""Programs of others that compute on dask: joblib and scikit-learn, dask-ml, concurrent futures."""

from __future__ import annotations

import concurrent.futures
import math

import numpy as np
import pytest


def test_joblib_computes_on_the_cluster(client):
    joblib = pytest.importorskip("joblib")
    with joblib.parallel_config(backend="dask", wait_for_workers_timeout=60):
        results = joblib.Parallel()(joblib.delayed(math.sqrt)(i**2) for i in range(200))
    assert results == [float(i) for i in range(200)]


def test_joblib_scatters_large_arguments(client):
    joblib = pytest.importorskip("joblib")
    data = np.arange(500_000)
    with joblib.parallel_config(backend="dask", scatter=[data]):
        sums = joblib.Parallel()(joblib.delayed(np.sum)(data) for _ in range(8))
    assert set(sums) == {data.sum()}


def test_joblib_raises_the_error_of_a_call(client):
    joblib = pytest.importorskip("joblib")
    with (
        joblib.parallel_config(backend="dask"),
        pytest.raises(ValueError, match=r"math domain|nonnegative"),
    ):
        joblib.Parallel()(joblib.delayed(math.sqrt)(-1) for _ in range(4))


def test_scikit_learn_searches_a_grid(client):
    pytest.importorskip("sklearn")
    import joblib
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    x, y = make_classification(n_samples=300, random_state=0)
    search = GridSearchCV(LogisticRegression(), {"C": [0.01, 0.1, 1.0]}, cv=3, n_jobs=-1)
    with joblib.parallel_config(backend="dask"):
        search.fit(x, y)
    assert search.best_score_ > 0.8


def test_dask_ml_scales_and_clusters(client):
    pytest.importorskip("dask_ml", exc_type=ImportError)
    import dask.array as da
    from dask_ml.cluster import KMeans
    from dask_ml.preprocessing import StandardScaler

    generator = np.random.default_rng(0)
    points = np.concatenate([generator.normal(center, 0.1, (500, 2)) for center in (0, 5, 10)])
    generator.shuffle(points)
    x = da.from_array(points, chunks=(300, 2))
    scaled = StandardScaler().fit_transform(x)
    assert np.allclose(scaled.mean(axis=0).compute(), 0)
    labels = KMeans(n_clusters=3, random_state=0).fit(x).labels_.compute()
    nearest = np.round(points[:, 0] / 5).astype(int)
    assert all(len(set(labels[nearest == center])) == 1 for center in range(3))


def test_the_executor_of_a_client_is_one_of_concurrent_futures(client):
    with client.get_executor(pure=False) as executor:
        futures = [executor.submit(pow, i, 2) for i in range(20)]
        done = concurrent.futures.as_completed(futures, timeout=60)
        assert sorted(future.result() for future in done) == [i**2 for i in range(20)]
        assert list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
