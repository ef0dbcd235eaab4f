"""Callbacks that share a timer, and the monitor that servers share."""

from __future__ import annotations

import asyncio
import re

from tornado.ioloop import IOLoop

from distributed.base import config
from distributed.base.logs import flush
from distributed.telemetry.monitor import SystemMonitor
from distributed.telemetry.process_monitor import ProcessMonitor
from distributed.telemetry.statistics import Statistics
from distributed.telemetry.timers import SharedCallback
from distributed.tests.environments import run_here
from distributed.utils_test import async_poll_for, captured_logger, gen_test


def scheduled():
    """Return the number of timers on the running event loop."""
    return sum(not handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)


@gen_test()
async def test_callbacks_of_one_interval_share_a_timer():
    called = []
    before = scheduled()
    callbacks = [SharedCallback(lambda i=i: called.append(i), 1) for i in range(100)]
    for callback in callbacks:
        callback.start()
    assert scheduled() == before + 1
    await async_poll_for(lambda: len(called) >= 300, period=0.001)
    assert called[:300] == list(range(100)) * 3
    for callback in callbacks[1:]:
        callback.stop()
    assert [callback.is_running() for callback in callbacks] == [True] + [False] * 99
    called.clear()
    await async_poll_for(lambda: len(called) >= 3, period=0.001)
    assert set(called) == {0}
    callbacks[0].stop()
    assert scheduled() == before


@gen_test()
async def test_a_callback_can_be_started_again_with_another_interval():
    called = asyncio.Event()
    callback = SharedCallback(called.set, 1e6)
    callback.start()
    callback.callback_time = 1
    callback.start()
    await called.wait()
    callback.stop()
    assert not callback.is_running()


@gen_test()
async def test_a_callback_that_another_one_stopped_is_not_called():
    called = []
    first = SharedCallback(lambda: called.append("first") or second.stop(), 1)
    second = SharedCallback(lambda: called.append("second"), 1)
    first.start()
    second.start()
    await async_poll_for(lambda: len(called) >= 2, period=0.001)
    first.stop()
    assert set(called) == {"first"}


@gen_test()
async def test_an_exception_in_a_callback_is_logged_and_does_not_end_the_others():
    called = []
    callbacks = [SharedCallback(lambda: 1 / 0, 1), SharedCallback(lambda: called.append(1), 1)]
    with captured_logger("tornado.application") as log:
        for callback in callbacks:
            callback.start()
        await async_poll_for(lambda: len(called) >= 2, period=0.001)
        for callback in callbacks:
            callback.stop()
    text = log.getvalue()
    assert "ZeroDivisionError" in text
    # Equal lines are counted.
    assert re.search(r"repeated \d+ times: Exception in callback", text)


def test_an_event_loop_with_a_started_callback_is_garbage_when_it_is_closed():
    run_here("""
        import asyncio, gc, weakref
        from distributed.telemetry.timers import SharedCallback, _timers
        async def main():
            SharedCallback(print, 1000).start()
        for _ in range(5):
            asyncio.run(main())  # Tornado forgets closed loops when it creates the next one
        gc.collect()
        assert len(_timers) == 1, dict(_timers)
    """)


@gen_test()
async def test_owners_share_one_monitor_and_one_sample_per_interval():
    with config.set({"distributed.admin.system-monitor.interval": "1h"}):
        owners = [Statistics(f"Server{i}") for i in range(10)]
        callbacks = [owner.make_periodic_callbacks()["monitor"] for owner in owners]
    for callback in callbacks:
        callback.callback()
    assert len({owner.monitor for owner in owners}) == 1
    assert owners[0].monitor.count == 1
    for owner in owners:
        owner.close()


def test_a_sample_is_taken_if_the_last_is_older_than_allowed():
    process_monitor = ProcessMonitor()
    monitor = process_monitor.join(process_monitor)
    process_monitor.sample(monitor, 3600)
    assert monitor.count == 1
    process_monitor.sample(monitor, 0)
    assert monitor.count == 2
    process_monitor.leave(process_monitor)


def test_an_owner_can_have_a_monitor_of_its_own():
    shared, own = Statistics("Server"), Statistics("Server", make_monitor=SystemMonitor)
    replaced = Statistics("Server")
    assert own.monitor is not shared.monitor
    assert replaced.monitor is shared.monitor
    replaced.monitor = mine = SystemMonitor(monitor_gil_contention=False)
    assert replaced.monitor is mine
    for owner in (shared, own, replaced):
        owner.close()


class User:
    pass


def test_the_last_user_closes_the_monitor(monkeypatch):
    closed = []
    monkeypatch.setattr(SystemMonitor, "close", lambda monitor: closed.append(monitor))
    process_monitor, first, second = ProcessMonitor(), User(), User()
    monitor = process_monitor.join(first)
    assert process_monitor.join(second) is monitor
    process_monitor.leave(first)
    process_monitor.leave(first)
    assert closed == []
    process_monitor.leave(second)
    assert closed == [monitor]
    assert process_monitor.join(first) is not monitor


def test_a_forked_child_has_a_monitor_of_its_own():
    run_here("""
        import os
        from distributed.telemetry.process_monitor import process_monitor
        class User: pass
        user = User()
        monitor = process_monitor.join(user)
        if not (child := os.fork()):
            os._exit(process_monitor.join(user) is monitor)
        assert os.waitpid(child, 0)[1] == 0
    """)


def test_a_monitor_that_cannot_measure_is_logged_once_per_outage():
    attempts = []

    class Exhausted:
        def __init__(self):
            attempts.append(1)
            if len(attempts) not in (3, 4):
                raise OSError(24, "Too many open files")

        def update(self):
            raise OSError(24, "Too many open files")

    statistics = Statistics("MyServer", make_monitor=Exhausted)
    callback = statistics.make_periodic_callbacks()["monitor"].callback
    with captured_logger("distributed.core") as log:
        statistics.prepare()
        callback()
        [line] = log.getvalue().splitlines()
        assert "MyServer cannot measure" in line
        assert "Too many open files" in line
        statistics.prepare()  # succeeds
        callback()
        callback()
        # The second line would be equal to the first one, so it is counted.
        flush()
        assert log.getvalue().splitlines()[1:] == [f"… repeated 1 times: {line}"]


def test_a_blocked_event_loop_is_logged_once_for_owners_of_one_name():
    owners = [Statistics(name, tick_limit=lambda: 0.0) for name in ("Worker", "Worker", "Nanny")]
    for owner in owners:
        owner.measure_tick()
    for _ in range(2):
        with captured_logger("distributed.core") as log:
            for owner in owners:
                owner.measure_tick()
        text = log.getvalue()
        assert (text.count("in Worker"), text.count("in Nanny")) == (1, 1)


@gen_test()
async def test_the_callbacks_run_on_the_loop_on_which_they_are_started():
    callback = SharedCallback(lambda: None, 1000)
    callback.start()
    assert callback.io_loop is IOLoop.current()
    callback.stop()
