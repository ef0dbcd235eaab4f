"""Clocks, meters, and the callbacks that receive measurements."""

from __future__ import annotations

import asyncio
import math
import pickle
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from distributed.telemetry import meter as meter_module
from distributed.telemetry.meter import DelayedMetricsLedger, context_meter, meter


def clock(readings: Iterable[float]) -> Callable[[], float]:
    """Return a clock with these readings, one after the other."""
    return iter(readings).__next__


@pytest.fixture
def received():
    """The measurements of the context meter during a test."""
    seen: list[Any] = []
    with context_meter.add_callback(lambda *metric: seen.append(metric)):
        yield seen


@pytest.mark.parametrize("name", ["time", "monotonic", "thread_time", "process_time"])
def test_clocks_go_forward(name):
    read = getattr(meter_module, name)
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


def test_measurements_outside_the_block_are_dropped():
    seen = []
    context_meter.digest_metric("before", 1, "s")
    with context_meter.add_callback(lambda *metric: seen.append(metric)):
        pass
    context_meter.digest_metric("after", 1, "s")
    assert seen == []


def test_the_same_callback_installed_twice_is_called_twice(received):
    with context_meter.add_callback(lambda *metric: received.append(metric)):
        context_meter.digest_metric("x", 1, "s")
    assert received == [("x", 1, "s")] * 2


def test_a_callback_replaces_an_enclosing_one_with_the_same_key():
    seen = []
    with context_meter.add_callback(lambda label, *_: seen.append(("outer", label)), key="k"):
        with context_meter.add_callback(lambda label, *_: seen.append(("inner", label)), key="k"):
            context_meter.digest_metric("x", 1, "s")
        context_meter.digest_metric("y", 1, "s")
    assert seen == [("inner", "x"), ("outer", "y")]


def test_clear_callbacks_drops_measurements_inside_the_block(received):
    with context_meter.clear_callbacks():
        context_meter.digest_metric("x", 1, "s")
    context_meter.digest_metric("y", 1, "s")
    assert received == [("y", 1, "s")]


def test_an_error_of_a_callback_is_raised_in_the_measuring_code():
    def refuse(*metric):
        raise RuntimeError("no metrics today")

    with (
        context_meter.add_callback(refuse),
        pytest.raises(RuntimeError, match="no metrics today"),
    ):
        context_meter.digest_metric("x", 1, "s")


def test_a_meter_reports_the_difference_of_its_clock_readings(received):
    with context_meter.meter("x", unit="steps", func=clock([3, 7])) as m:
        assert m.start == 3
        assert math.isnan(m.stop)
        assert math.isnan(m.delta)
    assert (m.start, m.stop, m.delta) == (3, 7, 4)
    assert received == [("x", 4, "steps")]


def test_a_meter_reports_seconds_by_default(received):
    with context_meter.meter("x"):
        pass
    [(label, value, unit)] = received
    assert (label, unit) == ("x", "seconds")
    assert 0 <= value < 10


def test_a_meter_reports_if_its_block_raises(received):
    with pytest.raises(KeyError), context_meter.meter("x", func=clock([3, 7])):
        raise KeyError
    assert received == [("x", 4, "seconds")]


def test_a_meter_measures_without_callbacks():
    with context_meter.meter("x", func=clock([3, 7])) as m:
        pass
    assert m.delta == 4


def test_nested_meters_add_up_to_the_elapsed_time(received):
    read = clock([0, 1, 2, 4, 7, 10])
    with (
        context_meter.meter("a", func=read),
        context_meter.meter("b", func=read),
        context_meter.meter("c", func=read),
    ):
        pass
    assert received == [("c", 2, "seconds"), ("b", 4, "seconds"), ("a", 4, "seconds")]


def test_a_meter_subtracts_only_measurements_of_its_unit(received):
    with context_meter.meter("x", func=clock([0, 10])):
        context_meter.digest_metric("inner", 2, "seconds")
        context_meter.digest_metric("unrelated", 5, "bytes")
    assert received[-1] == ("x", 8, "seconds")


@pytest.mark.parametrize(("floor", "delta"), [(0.0, 0), (0.5, 0.5), (False, -2)])
def test_the_floor_is_the_minimum_result_if_a_clock_is_set_back(received, floor, delta):
    with context_meter.meter("x", func=clock([5, 3]), floor=floor):
        pass
    with meter(func=clock([5, 3]), floor=floor) as m:
        pass
    assert received == [("x", delta, "seconds")]
    assert m.delta == delta


def test_the_plain_meter_does_not_report(received):
    with meter(func=clock([3, 7])) as m:
        pass
    assert m.delta == 4
    assert received == []


def test_a_task_inherits_the_callbacks_of_its_creator(received):
    async def measure():
        context_meter.digest_metric("x", 1, "s")

    async def main():
        await asyncio.create_task(measure())

    asyncio.run(main())
    assert received == [("x", 1, "s")]


def test_a_plain_thread_does_not_inherit_callbacks(received):
    thread = threading.Thread(target=context_meter.digest_metric, args=("x", 1, "s"))
    thread.start()
    thread.join()
    assert received == []


@pytest.mark.parametrize("allow_offload", [False, True])
def test_a_callback_runs_in_its_own_thread_only_with_allow_offload(allow_offload):
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


def test_a_meter_subtracts_measurements_of_another_thread(received):
    async def main():
        with context_meter.meter("x", func=clock([0, 10])):
            await asyncio.to_thread(context_meter.digest_metric, "in thread", 4, "seconds")

    asyncio.run(main())
    assert received == [("in thread", 4, "seconds"), ("x", 6, "seconds")]


def test_the_context_meter_pickles_as_itself():
    assert pickle.loads(pickle.dumps(context_meter)) is context_meter


def test_a_ledger_yields_recorded_measurements_and_the_remaining_time():
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


def test_a_ledger_with_coarse_time_yields_all_time_under_one_label():
    ledger = DelayedMetricsLedger(func=clock([100, 110]))
    with ledger.record():
        context_meter.digest_metric("x", 2, "seconds")
        context_meter.digest_metric("y", 7, "bytes")
    assert list(ledger.finalize(coarse_time="failed")) == [
        ("y", 7, "bytes"),
        ("failed", 10, "seconds"),
    ]


@pytest.mark.parametrize(("floor", "rest"), [(0.0, 0), (False, -10)])
def test_the_remaining_time_of_a_ledger_is_at_least_the_floor(floor, rest):
    ledger = DelayedMetricsLedger(func=clock([100, 110]))
    with ledger.record():
        context_meter.digest_metric("x", 20, "seconds")
    assert list(ledger.finalize(floor=floor))[-1] == ("other", rest, "seconds")
