"""Submitting tasks: results, errors, cancellation, retries, and data on workers."""

from __future__ import annotations

import operator
import time

import numpy as np
import pytest

from distributed import as_completed, get_client, rejoin, secede, wait, worker_client
from distributed.client import FutureCancelledError


def test_submit_and_map_and_gather(client):
    assert client.submit(operator.add, 1, 2).result(timeout=30) == 3
    futures = client.map(lambda x: x + 1, range(500))
    assert client.gather(futures) == list(range(1, 501))


def test_as_completed_yields_every_future_once(client):
    futures = client.map(lambda x: x * x, range(50), pure=False)
    assert sorted(future.result() for future in as_completed(futures)) == [x * x for x in range(50)]


def test_scatter_brings_data_to_all_workers(client):
    data = np.arange(1_000_000)
    future = client.scatter(data, broadcast=True)
    assert len(client.who_has([future])[future.key]) == 2
    assert client.submit(np.sum, future).result(timeout=30) == data.sum()


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyError, ValueError])
def test_an_error_of_a_task_is_raised_at_the_client(client, kind):
    def fail(kind):
        raise kind("it was meant to fail")

    future = client.submit(fail, kind, pure=False)
    with pytest.raises(kind, match="it was meant to fail"):
        future.result(timeout=30)
    assert future.traceback() is not None


def test_an_error_passes_through_tasks_that_depend_on_it(client):
    bad = client.submit(operator.truediv, 1, 0)
    with pytest.raises(ZeroDivisionError):
        client.submit(operator.add, bad, 1).result(timeout=30)


def test_a_task_that_fails_twice_succeeds_with_retries(client, tmp_path):
    counter = tmp_path / "attempts"

    def flaky(path):
        with open(path, "a") as file:
            file.write("x")
        with open(path) as file:
            attempts = len(file.read())
        if attempts < 3:
            raise OSError("not yet")
        return "done"

    assert client.submit(flaky, str(counter), retries=2, pure=False).result(timeout=30) == "done"


def test_a_cancelled_future_has_no_result(client):
    blocker = [client.submit(time.sleep, 0.5, pure=False) for _ in range(2)]
    future = client.submit(operator.add, 10, 20, pure=False)
    future.cancel()
    with pytest.raises(FutureCancelledError):
        future.result(timeout=30)
    wait(blocker, timeout=30)


def test_a_task_submits_tasks(client):
    def fibonacci(n):
        if n < 2:
            return n
        with_client = get_client()
        futures = with_client.map(fibonacci, [n - 1, n - 2], pure=False)
        secede()
        result = sum(with_client.gather(futures))
        rejoin()
        return result

    assert client.submit(fibonacci, 6).result(timeout=60) == 8


def test_a_task_that_waits_for_others_leaves_its_thread_to_them(client):
    def total(n):
        with worker_client(timeout=30) as inner:
            return sum(inner.gather(inner.map(lambda x: x * x, range(n), pure=False)))

    # Without the secession of worker_client, both threads of the cluster would be occupied.
    futures = client.map(total, [10, 20, 30])
    assert client.gather(futures) == [sum(x * x for x in range(n)) for n in (10, 20, 30)]


def test_large_results_travel_between_workers(client):
    left, right = list(client.scheduler_info()["workers"])
    array = client.submit(np.ones, 5_000_000, workers=[left])
    total = client.submit(np.sum, array, workers=[right])
    assert total.result(timeout=60) == 5_000_000


def test_a_remote_traceback_shows_the_users_code_only(client):
    import traceback

    def user_function():
        raise RuntimeError("in user code")

    future = client.submit(user_function, pure=False)
    with pytest.raises(RuntimeError) as caught:
        future.result(timeout=30)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "user_function"
