"""Values on their way between workers: errors, sizes, tokens, and the event loop."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from dask.base import tokenize
from dask.sizeof import sizeof

from distributed.protocol import (
    Pickled,
    Serialize,
    Serialized,
    ToPickle,
    serialize,
)


@pytest.mark.parametrize("wrap", [Serialize, ToPickle])
def test_the_size_of_a_wrapped_value_is_that_of_the_value(wrap):
    for value in (2**100, "a" * 1000, np.ones(1000), [1] * 1000):
        assert sizeof(wrap(value)) == sizeof(value)


def test_the_size_of_a_serialized_value_is_that_of_its_frames():
    for kind in (Serialized, Pickled):
        assert sizeof(kind({}, [])) == sizeof({}) + sizeof([])
        size = sizeof(kind({"a": 1}, [b"1" * 5000, memoryview(bytes(5000))]))
        assert 10_000 < size < 11_000


def test_wrapped_values_have_tokens():
    def wrapped():
        x = np.arange(10)
        header, frames = serialize(x)
        yield from (Serialize(x), ToPickle(x), Serialized(header, frames), Pickled(header, frames))
        yield from (Serialize(x + 1), ToPickle(1), Serialized({}, []), Serialized(header, [b"1"]))

    with dask.config.set({"tokenize.ensure-deterministic": True}):
        first, second = (list(map(tokenize, wrapped())) for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)


class Unreadable:
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise KeyError("an object's own error")


def test_an_objects_own_error_in_unpickling_is_raised_at_the_client(client):
    future = client.submit(Unreadable, pure=False)
    with pytest.raises(KeyError, match="an object's own error"):
        future.result(timeout=30)


def test_large_values_are_serialized_outside_of_the_event_loop(client, until):
    left, right = list(client.scheduler_info()["workers"])
    texts = client.submit(lambda: [f"{i:050}" for i in range(300_000)], workers=[left], pure=False)
    assert client.submit(len, texts, workers=[right], pure=False).result(timeout=60) == 300_000

    def offloaded(dask_worker):
        return sorted(key[0] for key in dask_worker.digests_total if "offload" in key)

    # A worker counts what it has sent after the receiver has it.
    until(lambda: client.run(offloaded) == {left: ["get-data"], right: ["gather-dep"]})


def test_information_about_files_is_an_argument_of_tasks(client):
    fs = pytest.importorskip("pyarrow.fs")
    info = fs.FileInfo("/data/x.parquet", fs.FileType.File, size=5)
    assert client.submit(lambda files: files[0].size, [info], pure=False).result(timeout=30) == 5
