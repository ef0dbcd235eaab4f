"""polars needs no serializers here: it is pickled in its own format."""

from __future__ import annotations

from typing import Any

import pytest

from distributed.protocol import serialize
from distributed.protocol.tests.round_trips import echoed, family, in_each_way
from distributed.utils_test import gen_test

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
def test_it_arrives_as_it_was(x, way):
    arrived = way(x)
    assert type(arrived) is type(x)
    if isinstance(x, pl.DataFrame):
        assert arrived.schema == x.schema
    assert arrived.equals(x)


@in_each_way
def test_a_query_arrives_as_the_same_query(way):
    query = FRAME.lazy().filter(pl.col("i") > 500).select(pl.col("i").sum())
    assert way(query).collect().equals(query.collect())


@gen_test()
async def test_it_travels_over_a_connection():
    objects = list(OBJECTS.values())
    for expected, arrived in zip(objects, await echoed(objects), strict=True):
        assert arrived.equals(expected)


def test_it_is_pickled_in_a_format_that_is_no_larger_than_its_memory():
    frame = pl.DataFrame({"i": range(10**5)})
    _, frames = serialize(frame)
    assert family(frame) == "pickle"
    assert sum(len(memoryview(f)) for f in frames) < 1.1 * frame.estimated_size()
