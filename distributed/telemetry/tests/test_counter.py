"""Counters and digests over several time scales."""

from __future__ import annotations

import pytest

from distributed.telemetry import counter
from distributed.telemetry.counter import Counter
from distributed.tests.environments import run_here


def test_new_items_are_counted_in_the_first_component():
    ops = Counter()
    for op in ["identity", "add", "add"]:
        ops.add(op)
    assert [dict(component) for component in ops.components] == [{"identity": 1, "add": 2}, {}, {}]
    assert ops.size() == 3


def test_the_default_intervals_are_five_seconds_a_minute_and_an_hour():
    assert tuple(Counter().intervals) == (5, 60, 3600)


def test_the_count_of_an_unknown_item_is_zero():
    assert Counter().components[0]["never"] == 0


def test_counts_move_to_longer_intervals_as_in_the_original():
    ops = Counter((1, 2, 4, 9))
    ops.add("a")
    flow = []
    for _ in range(3):
        ops.shift()
        flow.append([component["a"] for component in ops.components])
    # Printed by dask.distributed 2026.8.0.
    assert flow == [
        pytest.approx([0.8, 0.18, 0.019, 0.001]),
        pytest.approx([0.64, 0.306, 0.05035, 0.00365]),
        pytest.approx([0.512, 0.3906, 0.0890625, 0.0083375]),
    ]


def test_shifting_keeps_the_total():
    ops = Counter()
    for i in range(100):
        ops.add(i % 7)
        ops.shift()
    assert ops.size() == pytest.approx(100)


def test_a_single_interval_keeps_its_counts():
    ops = Counter([5])
    ops.add("a")
    ops.shift()
    assert dict(ops.components[0]) == {"a": 1}


def test_digest_is_none_without_its_library():
    run_here("""
        import sys
        sys.modules["crick"] = None
        from distributed import counter
        assert counter.Digest is None
    """)


def test_the_digest_library_is_not_imported_before_a_digest_is_created():
    run_here("""
        import sys
        from distributed import counter
        assert not {"crick", "numpy"} & set(sys.modules), sys.modules.keys()
    """)


@pytest.fixture
def digest():
    pytest.importorskip("crick")
    assert counter.Digest is not None
    return counter.Digest()


def test_a_digest_estimates_quantiles(digest):
    for i in range(101):
        digest.add(i)
    assert digest.size() == 101
    assert digest.components[0].quantile(0.5) == pytest.approx(50, abs=1)


def test_a_digest_accepts_arrays(digest):
    numpy = pytest.importorskip("numpy")
    digest.update(numpy.arange(101.0))
    assert digest.size() == 101


def test_weights_move_to_longer_intervals_as_in_the_original(digest):
    for i in range(100):
        digest.add(i)
    digest.shift()
    digest.shift()
    # Printed by dask.distributed 2026.8.0.
    sizes = [component.size() for component in digest.components]
    assert sizes == pytest.approx([64, 35.0722222, 0.9277777])
    assert digest.components[1].quantile(0.5) == pytest.approx(49.5, abs=1)
