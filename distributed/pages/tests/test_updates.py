from __future__ import annotations

import asyncio

import pytest

from distributed.core import Server
from distributed.pages.updates import Source, Updates, to_json
from distributed.telemetry.loop_delay import delay_of
from distributed.utils_test import gen_test


class CountingSource(Source):
    snapshots = 0
    error: Exception | None = None

    def figures(self):
        self.snapshots += 1
        if self.error is not None:
            raise self.error
        return super().figures()


class Browser:
    """Collects what a watcher is sent."""

    def __init__(self):
        self.events = []
        self.changed = asyncio.Event()

    async def send(self, events):
        self.events.append(events)
        self.changed.set()

    async def until(self, number):
        while len(self.events) < number:
            self.changed.clear()
            await self.changed.wait()


def make(server, max_watchers=None, timeout=5.0):
    source = CountingSource(server, "v1")
    return source, Updates(source, 0.01, max_watchers, timeout)


@gen_test()
async def test_one_snapshot_serves_all_watchers():
    async with Server({}) as server:
        source, updates = make(server)
        browsers = [Browser() for _ in range(5)]
        for browser in browsers:
            updates.watch(browser.send)
        for browser in browsers:
            await browser.until(5)
        await updates.close()
        # The first two events of each are the greeting, and the description with a snapshot.
        assert len({id(browser.events[3]) for browser in browsers}) == 1
        assert source.snapshots <= max(len(browser.events) for browser in browsers)


@gen_test()
async def test_nothing_is_computed_without_a_watcher():
    async with Server({}) as server:
        source, updates = make(server)
        assert source.snapshots == 0
        before = asyncio.all_tasks()
        browser = Browser()
        watching = updates.watch(browser.send)
        await browser.until(3)
        watching.cancel()
        await asyncio.wait([watching])
        count = source.snapshots
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)
        assert source.snapshots == count
        assert updates.watchers == 0


@gen_test()
async def test_the_delay_of_the_event_loop_is_measured_while_a_browser_watches():
    async with Server({}) as server:
        _, updates = make(server)
        delay = delay_of(asyncio.get_running_loop())
        browser = Browser()
        watching = updates.watch(browser.send)
        while not delay.count:
            await browser.until(len(browser.events) + 1)
        await browser.until(len(browser.events) + 2)
        assert b'"delay":null' not in browser.events[-1]
        watching.cancel()
        await asyncio.wait([watching])
        await updates.close()
        assert not delay._users


@gen_test()
async def test_a_watcher_can_come_back():
    async with Server({}) as server:
        _, updates = make(server)
        for _ in range(3):
            browser = Browser()
            watching = updates.watch(browser.send)
            await browser.until(3)
            assert browser.events[0].startswith(b"retry: 1000\nevent: hello\n")
            assert browser.events[1].startswith(b"event: describe\n")
            watching.cancel()
            await asyncio.wait([watching])


@gen_test()
async def test_a_watcher_that_leaves_does_not_disturb_the_others():
    async with Server({}) as server:
        _, updates = make(server)
        stays, leaves = Browser(), Browser()
        updates.watch(stays.send)
        watching = updates.watch(leaves.send)
        await leaves.until(2)
        watching.cancel()
        await stays.until(len(stays.events) + 3)
        await updates.close()


@gen_test()
async def test_a_slow_watcher_misses_snapshots():
    async with Server({}) as server:
        source, updates = make(server)
        seen = []

        async def slow(events):
            before = source.snapshots
            seen.append(events)
            while source.snapshots < before + 4:
                await asyncio.sleep(0)

        updates.watch(slow)
        while len(seen) < 5:
            await asyncio.sleep(0)
        await updates.close()
        assert source.snapshots >= 3 * len(seen)


@gen_test()
async def test_a_watcher_that_does_not_read_is_given_up():
    async with Server({}) as server:
        _, updates = make(server, timeout=0.01)

        async def stuck(events):
            await asyncio.Event().wait()

        with pytest.raises(TimeoutError):
            await updates.watch(stuck)
        assert updates.watchers == 0


@gen_test()
async def test_operations_are_described_again_when_they_change():
    async with Server({}) as server:
        _, updates = make(server)
        browser = Browser()
        updates.watch(browser.send)
        await browser.until(4)
        assert not any(b"event: describe" in events for events in browser.events[2:])
        server.handlers["late"] = lambda: None
        await browser.until(len(browser.events) + 2)
        assert b"late" in next(e for e in browser.events[2:] if b"event: describe" in e)
        await updates.close()


@gen_test()
async def test_a_blocked_description_is_not_shown():
    async with Server({"secret": lambda: None}, blocked_handlers=["describe"]) as server:
        assert b"secret" not in Source(server, "").description()


@gen_test()
async def test_an_error_in_a_snapshot_ends_the_watchers_and_the_next_one_tries_again():
    async with Server({}) as server:
        source, updates = make(server)
        source.error = ZeroDivisionError("a test")
        watching = [updates.watch(Browser().send) for _ in range(2)]
        for each in watching:
            with pytest.raises(ZeroDivisionError):
                await each
        source.error = None
        browser = Browser()
        updates.watch(browser.send)
        await browser.until(3)
        await updates.close()


def test_values_that_json_has_no_form_for_are_shown_as_text():
    assert to_json({"a": b"x", "b": [1.5, None]}) == b'{"a":"b\'x\'","b":[1.5,null]}'
