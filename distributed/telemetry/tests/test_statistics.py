"""What `distributed.telemetry.statistics` promises."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import re
import subprocess
import sys
import threading
import time
import timeit
from pathlib import Path

import pytest

import distributed
from distributed.base import config
from distributed.core.metering import context_meter_to_server_digest
from distributed.telemetry.meter import context_meter
from distributed.telemetry.monitor import SystemMonitor
from distributed.telemetry.statistics import Statistics

ROOT = str(Path(distributed.__file__).parent.parent)


def run(test):
    """Make a test function of a coroutine function."""

    @functools.wraps(test)
    def wrapper(*args, **kwargs):
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return wrapper


@pytest.fixture
def statistics():
    statistics = Statistics("MyServer")
    yield statistics
    statistics.close()


def test_it_costs_microseconds_to_make():
    Statistics("MyServer")
    seconds = min(timeit.repeat(lambda: Statistics("MyServer"), number=100, repeat=5)) / 100
    assert seconds < 200e-6


def test_what_is_not_used_is_not_made():
    script = (
        "import sys, threading\n"
        "from distributed.telemetry.statistics import Statistics\n"
        "statistics = Statistics('MyServer')\n"
        "assert not {'psutil', 'crick', 'numpy', 'gilknocker'} & set(sys.modules)\n"
        "assert threading.active_count() == 1\n"
        "assert statistics._monitor is None\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


def test_operations_are_counted_by_name(statistics):
    for op in ["identity", "add", "add"]:
        statistics.counters["op"].add(op)
    assert dict(statistics.counters["op"].components[0]) == {"identity": 1, "add": 2}


def test_digest_metric_sums_up(statistics):
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
def test_digest_metric_keeps_the_largest(statistics, values, largest):
    for value in values:
        statistics.digest_metric("x", value)
    assert statistics.digests_max == {"x": largest}


def test_digests_are_there_only_with_their_library():
    script = (
        "import sys; sys.modules['crick'] = None\n"
        "from distributed.telemetry.statistics import Statistics\n"
        "statistics = Statistics('MyServer')\n"
        "statistics.digest_metric('x', 1)\n"
        "assert statistics.digests is None\n"
        "assert statistics.digests_total == {'x': 1}\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


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


def test_there_is_one_monitor(statistics):
    assert isinstance(statistics.monitor, SystemMonitor)
    assert statistics.monitor is statistics.monitor


def test_the_callbacks_can_be_made_before_a_loop_runs(statistics):
    callbacks = statistics.make_periodic_callbacks()
    assert {name: callback.callback_time for name, callback in callbacks.items()} == {
        "monitor": 500,
        "tick": 20,
        "ticks": 1000,
        "shift_counters": 5000,
    }
    assert not any(callback.is_running() for callback in callbacks.values())


def test_making_the_callbacks_makes_no_monitor(statistics):
    statistics.make_periodic_callbacks()
    assert statistics._monitor is None


def test_the_intervals_are_configured(statistics):
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


def test_a_callback_with_a_null_interval_is_left_out(statistics):
    with config.set({"distributed.admin.system-monitor.interval": None}):
        assert "monitor" not in statistics.make_periodic_callbacks()


class Callbacks:
    """The callbacks of statistics, running."""

    def __init__(self, statistics, *names):
        made = statistics.make_periodic_callbacks()
        self.callbacks = [made[name] for name in names]

    def __enter__(self):
        for callback in self.callbacks:
            callback.start()

    def __exit__(self, *exc_info):
        for callback in self.callbacks:
            callback.stop()


async def until(condition):
    """Let the loop run until something has come true."""
    while not condition():
        await asyncio.sleep(0.001)


@run
async def test_the_monitor_takes_samples_while_its_callback_runs():
    statistics = Statistics("MyServer")
    with (
        config.set({"distributed.admin.system-monitor.interval": "10ms"}),
        Callbacks(statistics, "monitor"),
    ):
        await until(lambda: statistics._monitor and statistics.monitor.count >= 3)
    statistics.close()


@run
async def test_ticks_are_counted_and_their_duration_is_digested():
    statistics = Statistics("MyServer")
    began = time.time()
    with Callbacks(statistics, "tick"):
        await until(lambda: statistics._tick_counter >= 3)
    assert began <= statistics._last_tick <= time.time()
    assert 0 < statistics.digests_max["tick-duration"] <= statistics.digests_total["tick-duration"]


@run
async def test_a_cycle_observes_the_time_between_ticks():
    with config.set(
        {"distributed.admin.tick.interval": "5ms", "distributed.admin.tick.cycle": "50ms"}
    ):
        statistics = Statistics("MyServer")
        assert statistics._tick_interval_observed == 0.005
        with Callbacks(statistics, "tick", "ticks"):
            await until(lambda: statistics._tick_interval_observed != 0.005)
    assert 0.001 < statistics._tick_interval_observed < 5


def test_a_cycle_in_which_the_loop_did_not_tick_counts_in_full(statistics):
    statistics.measure_tick()
    statistics.cycle_ticks()
    time.sleep(0.02)
    statistics.cycle_ticks()
    assert statistics._tick_interval_observed >= 0.02


def test_a_cycle_before_the_first_tick_observes_nothing(statistics):
    statistics.cycle_ticks()
    assert statistics._tick_interval_observed == 0.02


@run
async def test_a_blocked_loop_is_logged(caplog):
    with config.set({"distributed.admin.tick.limit": "50ms"}):
        statistics = Statistics("MyServer")
    with Callbacks(statistics, "tick"):
        await until(lambda: statistics._tick_counter >= 1)
        time.sleep(0.1)  # noqa: ASYNC251  blocking the loop is what this is about
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


def test_the_limit_is_asked_for_at_each_tick(caplog):
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


def test_the_time_before_the_first_tick_is_not_held_against_the_loop(caplog):
    statistics = Statistics("MyServer", tick_limit=lambda: 0.001)
    time.sleep(0.01)
    statistics.measure_tick()
    assert caplog.text == ""


def test_the_time_while_the_callbacks_stood_still_is_not_held_against_the_loop(caplog):
    statistics = Statistics("MyServer", tick_limit=lambda: 0.005)
    statistics.measure_tick()
    time.sleep(0.01)
    statistics.reset_ticks()
    statistics.measure_tick()
    assert caplog.text == ""


class Measured(Statistics):
    @context_meter_to_server_digest("tag")
    async def method(self, x, *, y=1):
        """Say what x and y are."""
        context_meter.digest_metric("label", x, "seconds")
        context_meter.digest_metric(("a", "b"), y, "bytes")
        return x, y

    @context_meter_to_server_digest("tag")
    async def in_a_thread(self):
        await asyncio.to_thread(context_meter.digest_metric, "label", 1, "count")

    def digest_metric(self, name, value):
        self.thread = threading.current_thread()
        super().digest_metric(name, value)


@run
async def test_what_a_decorated_method_measures_is_digested():
    server = Measured("Measured")
    assert await server.method(2, y=3) == (2, 3)
    assert server.digests_total == {("tag", "label", "seconds"): 2, ("tag", "a", "b", "bytes"): 3}


@run
async def test_what_is_measured_outside_of_a_decorated_method_is_not_digested():
    server = Measured("Measured")
    await server.method(2)
    context_meter.digest_metric("label", 40, "seconds")
    assert server.digests_total[("tag", "label", "seconds")] == 2


@run
async def test_what_another_thread_measures_is_digested_in_the_loops_thread():
    server = Measured("Measured")
    await server.in_a_thread()
    await until(lambda: server.digests_total)
    assert server.digests_total == {("tag", "label", "count"): 1}
    assert server.thread is threading.main_thread()


def test_a_decorated_method_keeps_its_name_signature_and_kind():
    method = Measured("Measured").method
    assert method.__name__ == "method"
    assert method.__doc__ == "Say what x and y are."
    assert list(inspect.signature(method).parameters) == ["x", "y"]
    assert inspect.iscoroutinefunction(method)


def test_decorating_a_plain_method_is_an_error_that_says_what_to_do():
    def plain(self):
        pass

    with pytest.raises(TypeError, match="declare it with 'async def'"):
        context_meter_to_server_digest("tag")(plain)
