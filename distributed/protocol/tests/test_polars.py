"""polars has no serializers here: it is pickled, with its memory out of band."""

from __future__ import annotations

import pickle as plain_pickle
from typing import Any

import pytest

from distributed.protocol import pickle, serialize
from distributed.protocol.tests.round_trips import family, in_each_way

pl: Any = pytest.importorskip("polars", reason="polars is not installed")

FRAME = pl.DataFrame(
    {"i": range(1000), "s": ["x", None] * 500, "l": [[1.5], []] * 500},
    schema_overrides={"i": pl.Int32},
)
OBJECTS = {
    "frame": FRAME,
    "empty frame": FRAME[:0],
    "slice": FRAME[10:20],
    "chunks": pl.concat([FRAME, FRAME], rechunk=False),
    "categories": FRAME.with_columns(pl.col("s").cast(pl.Categorical)),
    "series": FRAME["i"],
}


@pytest.mark.parametrize("x", OBJECTS.values(), ids=OBJECTS)
@in_each_way
def test_an_object_arrives_unchanged(x, way):
    arrived = way(x)
    assert type(arrived) is type(x)
    if isinstance(x, pl.DataFrame):
        assert arrived.schema == x.schema
    assert arrived.equals(x)


@in_each_way
def test_a_lazy_query_arrives_unchanged(way):
    query = FRAME.lazy().filter(pl.col("i") > 500).select(pl.col("i").sum())
    assert way(query).collect().equals(query.collect())


def test_a_frame_is_pickled_in_about_the_size_of_its_memory():
    frame = pl.DataFrame({"i": range(10**5)})
    _, frames = serialize(frame)
    assert family(frame) == "pickle"
    assert sum(len(memoryview(f)) for f in frames) < 1.1 * frame.estimated_size()


@pytest.mark.parametrize("x", [pl.DataFrame({"i": range(10**5)}), pl.Series("s", range(10**5))])
def test_memory_is_pickled_out_of_band(x):
    buffers = []
    assert len(pickle.dumps(x, buffer_callback=buffers.append)) < 500
    assert sum(memoryview(buffer).nbytes for buffer in buffers) > 8e5


def test_a_frame_can_be_unpickled_without_this_package():
    buffers = []
    pickled = pickle.dumps(FRAME, buffer_callback=buffers.append)
    assert b"distributed" not in pickled
    assert plain_pickle.loads(pickled, buffers=buffers).equals(FRAME)


def test_the_error_of_polars_is_raised_for_objects_that_it_cannot_write():
    with pytest.raises(pl.exceptions.ComputeError, match="Object"):
        pickle.dumps(
            pl.DataFrame({"o": [object()]}, schema={"o": pl.Object}), buffer_callback=print
        )
