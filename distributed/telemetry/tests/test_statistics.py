"""Counters, measurements, ticks and the system monitor of a server."""

from __future__ import annotations

import contextlib
import logging
import re
import time

import pytest

from distributed.base import config
from distributed.telemetry.monitor import SystemMonitor
from distributed.telemetry.statistics import Statistics
from distributed.tests.environments import run_here
from distributed.utils_test import async_poll_for, gen_test


@pytest.fixture
def statistics():
    statistics = Statistics("MyServer")
    yield statistics
    statistics.close()


def test_unused_parts_are_not_created():
    run_here("""
        import sys, threading
        from distributed.telemetry.statistics import Statistics
        statistics = Statistics("MyServer")
        statistics.make_periodic_callbacks()
        assert not {"psutil", "crick", "numpy", "gilknocker"} & set(sys.modules)
        assert threading.active_count() == 1
        assert statistics._monitor is None
    """)


def test_operations_are_counted_by_name(statistics):
    for op in ["identity", "add", "add"]:
        statistics.counters["op"].add(op)
    assert dict(statistics.counters["op"].components[0]) == {"identity": 1, "add": 2}


def test_digest_metric_adds_to_the_sum(statistics):
    statistics.digest_metric("x", 2)
    statistics.digest_metric("x", 3)
    statistics.digest_metric(("a", "b"), 0.5)
    assert statistics.digests_total == {"x": 5, ("a", "b"): 0.5}


def test_the_sum_since_the_heartbeat_can_be_cleared(statistics):
    statistics.digest_metric("x", 2)
    statistics.digests_total_since_heartbeat.clear()
    statistics.digest_metric("x", 3)
    assert statistics.digests_total_since_heartbeat == {"x": 3}
    assert statistics.digests_total == {"x": 5}


@pytest.mark.parametrize(("values", "largest"), [([2, 3, 1], 3), ([-5, -7], 0)])
def test_digest_metric_keeps_the_maximum(statistics, values, largest):
    for value in values:
        statistics.digest_metric("x", value)
    assert statistics.digests_max == {"x": largest}


def test_digests_are_none_without_their_library():
    run_here("""
        import sys
        sys.modules["crick"] = None
        from distributed.telemetry.statistics import Statistics
        statistics = Statistics("MyServer")
        statistics.digest_metric("x", 1)
        assert statistics.digests is None
        assert statistics.digests_total == {"x": 1}
    """)


def test_digests_hold_distributions(statistics):
    pytest.importorskip("crick")
    for i in range(101):
        statistics.digest_metric("x", i)
    assert statistics.digests is not None
    assert statistics.digests["x"].components[0].quantile(0.5) == pytest.approx(50, abs=1)


def test_shift_counters_shifts_every_counter(statistics):
    statistics.counters["op"].add("x")
    statistics.counters["other"].add("y")
    statistics.shift_counters()
    assert statistics.counters["op"].components[0]["x"] == pytest.approx(0.8)
    assert statistics.counters["other"].components[0]["y"] == pytest.approx(0.8)


def test_shift_counters_shifts_every_digest(statistics):
    pytest.importorskip("crick")
    statistics.digest_metric("x", 1)
    statistics.shift_counters()
    assert statistics.digests["x"].components[0].size() == pytest.approx(0.8)


def test_the_monitor_is_created_once(statistics):
    assert isinstance(statistics.monitor, SystemMonitor)
    assert statistics.monitor is statistics.monitor


def test_the_callbacks_can_be_created_before_the_event_loop_runs(statistics):
    callbacks = statistics.make_periodic_callbacks()
    assert {name: callback.callback_time for name, callback in callbacks.items()} == {
        "monitor": 500,
        "tick": 20,
        "ticks": 1000,
        "shift_counters": 5000,
    }
    assert not any(callback.is_running() for callback in callbacks.values())


def test_the_intervals_are_read_from_the_configuration(statistics):
    with config.set(
        {
            "distributed.admin.tick.interval": "1s",
            "distributed.admin.tick.cycle": "2s",
            "distributed.admin.system-monitor.interval": "3s",
        }
    ):
        callbacks = statistics.make_periodic_callbacks()
    assert callbacks["tick"].callback_time == 1000
    assert callbacks["ticks"].callback_time == 2000
    assert callbacks["monitor"].callback_time == 3000


def test_a_callback_with_a_null_interval_is_omitted(statistics):
    with config.set({"distributed.admin.system-monitor.interval": None}):
        assert "monitor" not in statistics.make_periodic_callbacks()


@contextlib.contextmanager
def running(statistics, *names):
    """Run the named callbacks of statistics during a block."""
    made = statistics.make_periodic_callbacks()
    for name in names:
        made[name].start()
    try:
        yield
    finally:
        for name in names:
            made[name].stop()


async def until(condition):
    await async_poll_for(condition, period=0.001)


@gen_test()
async def test_the_monitor_takes_samples_while_its_callback_runs():
    statistics = Statistics("MyServer")
    with (
        config.set({"distributed.admin.system-monitor.interval": "10ms"}),
        running(statistics, "monitor"),
    ):
        await until(lambda: statistics._monitor and statistics.monitor.count >= 3)
    statistics.close()


@gen_test()
async def test_ticks_are_counted_and_their_duration_is_digested():
    statistics = Statistics("MyServer")
    began = time.time()
    with running(statistics, "tick"):
        await until(lambda: statistics._tick_counter >= 3)
    assert began <= statistics._last_tick <= time.time()
    assert 0 < statistics.digests_max["tick-duration"] <= statistics.digests_total["tick-duration"]


@gen_test()
async def test_a_cycle_observes_the_time_between_ticks():
    with config.set(
        {"distributed.admin.tick.interval": "5ms", "distributed.admin.tick.cycle": "50ms"}
    ):
        statistics = Statistics("MyServer")
        assert statistics._tick_interval_observed == 0.005
        with running(statistics, "tick", "ticks"):
            await until(lambda: statistics._tick_interval_observed != 0.005)
    assert 0.001 < statistics._tick_interval_observed < 5


def test_a_cycle_without_ticks_counts_as_one_interval(statistics):
    statistics.measure_tick()
    statistics.cycle_ticks()
    time.sleep(0.02)
    statistics.cycle_ticks()
    assert statistics._tick_interval_observed >= 0.02


def test_a_cycle_before_the_first_tick_observes_nothing(statistics):
    statistics.cycle_ticks()
    assert statistics._tick_interval_observed == 0.02


@gen_test()
async def test_a_blocked_loop_is_logged(caplog):
    with config.set({"distributed.admin.tick.limit": "50ms"}):
        statistics = Statistics("MyServer")
    with running(statistics, "tick"):
        await until(lambda: statistics._tick_counter >= 1)
        time.sleep(0.1)  # noqa: ASYNC251  blocks the loop on purpose
        await until(lambda: "unresponsive" in caplog.text)
    record = caplog.records[0]
    assert record.name == "distributed.core"
    assert record.levelno == logging.WARNING
    assert re.fullmatch(
        r"Event loop was unresponsive in MyServer for \d+\.\d\ds\.  This is often caused by "
        r"long-running GIL-holding functions or moving large chunks of data\. "
        r"This can cause timeouts and instability\.",
        record.message,
    )


def test_the_limit_is_read_at_each_tick(caplog):
    limit = 100.0
    statistics = Statistics("MyServer", tick_limit=lambda: limit)
    statistics.measure_tick()
    statistics.measure_tick()
    assert caplog.text == ""
    limit = -1
    statistics.measure_tick()
    assert "unresponsive" in caplog.text


def test_without_a_limit_nothing_is_logged(caplog):
    with config.set({"distributed.admin.tick.limit": None}):
        statistics = Statistics("MyServer")
    statistics.measure_tick()
    time.sleep(0.01)
    statistics.measure_tick()
    assert caplog.text == ""


def test_the_time_before_the_first_tick_is_not_measured(caplog):
    statistics = Statistics("MyServer", tick_limit=lambda: 0.001)
    time.sleep(0.01)
    statistics.measure_tick()
    assert caplog.text == ""


def test_the_time_while_the_callbacks_were_stopped_is_not_measured(caplog):
    statistics = Statistics("MyServer", tick_limit=lambda: 0.005)
    statistics.measure_tick()
    time.sleep(0.01)
    statistics.reset_ticks()
    statistics.measure_tick()
    assert caplog.text == ""
