"""What `distributed.metrics` promises."""

from __future__ import annotations

import asyncio
import math
import pickle
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from distributed.telemetry import meter as metrics
from distributed.telemetry.meter import DelayedMetricsLedger, context_meter, meter


def clock(readings: Iterable[float]) -> Callable[[], float]:
    """A clock that shows these readings, one after the other."""
    return iter(readings).__next__


@pytest.fixture
def heard():
    """What the context meter hears during a test."""
    seen: list[Any] = []
    with context_meter.add_callback(lambda *metric: seen.append(metric)):
        yield seen


@pytest.mark.parametrize("name", ["time", "monotonic", "thread_time", "process_time"])
def test_clocks_go_forward(name):
    read = getattr(metrics, name)
    first = read()
    assert isinstance(first, float)
    assert read() >= first


def test_a_metric_reaches_every_callback_from_the_outermost_to_the_innermost():
    seen = []
    with (
        context_meter.add_callback(lambda *metric: seen.append(("outer", *metric))),
        context_meter.add_callback(lambda *metric: seen.append(("inner", *metric))),
    ):
        context_meter.digest_metric(("a", "b"), 2, "bytes")
    assert seen == [("outer", ("a", "b"), 2, "bytes"), ("inner", ("a", "b"), 2, "bytes")]


def test_nobody_hears_what_is_measured_outside_the_block():
    seen = []
    context_meter.digest_metric("before", 1, "s")
    with context_meter.add_callback(lambda *metric: seen.append(metric)):
        pass
    context_meter.digest_metric("after", 1, "s")
    assert seen == []


def test_the_same_callback_installed_twice_is_called_twice(heard):
    with context_meter.add_callback(lambda *metric: heard.append(metric)):
        context_meter.digest_metric("x", 1, "s")
    assert heard == [("x", 1, "s")] * 2


def test_a_callback_with_the_same_key_stands_in_for_the_outer_one():
    seen = []
    with context_meter.add_callback(lambda label, *_: seen.append(("outer", label)), key="k"):
        with context_meter.add_callback(lambda label, *_: seen.append(("inner", label)), key="k"):
            context_meter.digest_metric("x", 1, "s")
        context_meter.digest_metric("y", 1, "s")
    assert seen == [("inner", "x"), ("outer", "y")]


def test_clear_callbacks_silences_a_block(heard):
    with context_meter.clear_callbacks():
        context_meter.digest_metric("x", 1, "s")
    context_meter.digest_metric("y", 1, "s")
    assert heard == [("y", 1, "s")]


def test_what_a_callback_raises_is_raised_where_it_was_measured():
    def refuse(*metric):
        raise RuntimeError("no metrics today")

    with (
        context_meter.add_callback(refuse),
        pytest.raises(RuntimeError, match="no metrics today"),
    ):
        context_meter.digest_metric("x", 1, "s")


def test_a_meter_digests_how_far_its_clock_went(heard):
    with context_meter.meter("x", unit="steps", func=clock([3, 7])) as m:
        assert m.start == 3
        assert math.isnan(m.stop)
        assert math.isnan(m.delta)
    assert (m.start, m.stop, m.delta) == (3, 7, 4)
    assert heard == [("x", 4, "steps")]


def test_a_meter_counts_seconds_by_default(heard):
    with context_meter.meter("x"):
        pass
    [(label, value, unit)] = heard
    assert (label, unit) == ("x", "seconds")
    assert 0 <= value < 10


def test_a_meter_digests_although_its_block_raises(heard):
    with pytest.raises(KeyError), context_meter.meter("x", func=clock([3, 7])):
        raise KeyError
    assert heard == [("x", 4, "seconds")]


def test_a_meter_measures_although_nobody_listens():
    with context_meter.meter("x", func=clock([3, 7])) as m:
        pass
    assert m.delta == 4


def test_nested_meters_add_up_to_the_time_that_passed(heard):
    read = clock([0, 1, 2, 4, 7, 10])
    with (
        context_meter.meter("a", func=read),
        context_meter.meter("b", func=read),
        context_meter.meter("c", func=read),
    ):
        pass
    assert heard == [("c", 2, "seconds"), ("b", 4, "seconds"), ("a", 4, "seconds")]


def test_a_meter_leaves_out_what_was_digested_in_its_unit_only(heard):
    with context_meter.meter("x", func=clock([0, 10])):
        context_meter.digest_metric("claimed", 2, "seconds")
        context_meter.digest_metric("unrelated", 5, "bytes")
    assert heard[-1] == ("x", 8, "seconds")


@pytest.mark.parametrize(("floor", "delta"), [(0.0, 0), (0.5, 0.5), (False, -2)])
def test_a_clock_that_is_set_back_yields_no_less_than_the_floor(heard, floor, delta):
    with context_meter.meter("x", func=clock([5, 3]), floor=floor):
        pass
    with meter(func=clock([5, 3]), floor=floor) as m:
        pass
    assert heard == [("x", delta, "seconds")]
    assert m.delta == delta


def test_the_plain_meter_tells_nobody(heard):
    with meter(func=clock([3, 7])) as m:
        pass
    assert m.delta == 4
    assert heard == []


def test_a_task_inherits_the_callbacks_of_its_maker(heard):
    async def measure():
        context_meter.digest_metric("x", 1, "s")

    async def main():
        await asyncio.create_task(measure())

    asyncio.run(main())
    assert heard == [("x", 1, "s")]


def test_a_plain_thread_does_not_inherit_callbacks(heard):
    thread = threading.Thread(target=context_meter.digest_metric, args=("x", 1, "s"))
    thread.start()
    thread.join()
    assert heard == []


@pytest.mark.parametrize("allow_offload", [False, True])
def test_a_callback_runs_in_the_measuring_thread_unless_it_must_not(allow_offload):
    async def main():
        called = asyncio.get_running_loop().create_future()

        def callback(label, value, unit):
            thread = threading.current_thread()
            called.get_loop().call_soon_threadsafe(called.set_result, (label, thread))

        with context_meter.add_callback(callback, allow_offload=allow_offload):
            await asyncio.to_thread(context_meter.digest_metric, "x", 1, "s")
        return await called

    label, thread = asyncio.run(main())
    assert label == "x"
    assert (thread is threading.main_thread()) == allow_offload


def test_allow_offload_needs_a_running_loop():
    with pytest.raises(RuntimeError, match="no running event loop"):
        context_meter.add_callback(print, allow_offload=True).__enter__()


def test_a_meter_leaves_out_what_another_thread_measured_on_its_behalf(heard):
    async def main():
        with context_meter.meter("x", func=clock([0, 10])):
            await asyncio.to_thread(context_meter.digest_metric, "in thread", 4, "seconds")

    asyncio.run(main())
    assert heard == [("in thread", 4, "seconds"), ("x", 6, "seconds")]


def test_the_context_meter_pickles_as_itself():
    assert pickle.loads(pickle.dumps(context_meter)) is context_meter


def test_a_ledger_yields_what_was_recorded_and_the_rest_of_the_time():
    ledger = DelayedMetricsLedger(func=clock([100, 110]))
    context_meter.digest_metric("not recorded", 1, "seconds")
    with ledger.record():
        context_meter.digest_metric("x", 2, "seconds")
        context_meter.digest_metric("y", 7, "bytes")
    assert list(ledger.finalize()) == [
        ("x", 2, "seconds"),
        ("y", 7, "bytes"),
        ("other", 8, "seconds"),
    ]


def test_a_ledger_books_all_time_under_one_label_if_told_so():
    ledger = DelayedMetricsLedger(func=clock([100, 110]))
    with ledger.record():
        context_meter.digest_metric("x", 2, "seconds")
        context_meter.digest_metric("y", 7, "bytes")
    assert list(ledger.finalize(coarse_time="failed")) == [
        ("y", 7, "bytes"),
        ("failed", 10, "seconds"),
    ]


@pytest.mark.parametrize(("floor", "rest"), [(0.0, 0), (False, -10)])
def test_a_ledger_with_more_recorded_than_passed_yields_no_less_than_the_floor(floor, rest):
    ledger = DelayedMetricsLedger(func=clock([100, 110]))
    with ledger.record():
        context_meter.digest_metric("x", 20, "seconds")
    assert list(ledger.finalize(floor=floor))[-1] == ("other", rest, "seconds")
