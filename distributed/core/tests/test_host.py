"""Objects that this core shares with the roles above it."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections import deque

import pytest

import distributed.system_monitor
from distributed.base import config
from distributed.core import Server, host
from distributed.utils_test import async_poll_for, gen_test


class Profile(types.ModuleType):
    """A stand-in for ``distributed.profile``, a module of the original: threads without samples."""

    def __init__(self):
        super().__init__("distributed.profile")
        self.calls = []
        self.threads = []

    def watch(self, **kwargs):
        self.calls.append(kwargs)
        stop = kwargs["stop"]

        def wait():
            while not stop():
                threading.Event().wait(0.001)

        thread = threading.Thread(target=wait, name="Profile", daemon=True)
        thread.start()
        self.threads.append(thread)
        return deque()

    @property
    def running(self):
        return [thread for thread in self.threads if thread.is_alive()]


def configured(**changes):
    section = "distributed.worker.profile"
    values = {"enabled": True, "interval": "10ms", "cycle": "1s", **changes}
    return config.set({f"{section}.{name}": value for name, value in values.items()})


@pytest.fixture
def profile(monkeypatch):
    module = Profile()
    monkeypatch.setitem(sys.modules, "distributed.profile", module)
    # The version matters to `start_profile` only.
    fake = types.SimpleNamespace(
        modules=sys.modules, version_info=types.SimpleNamespace(major=3, minor=12)
    )
    monkeypatch.setattr(host, "sys", fake)
    with configured():
        yield module


def test_the_monitor_of_a_server_is_made_by_the_door_of_that_name():
    assert host.SystemMonitor is distributed.system_monitor.SystemMonitor


@gen_test()
async def test_without_the_roles_an_event_loop_has_no_profile():
    async with Server({}) as server:
        assert not hasattr(server.io_loop, "profile")


class Role(Server):
    """A server that asks for what is measured periodically."""

    async def start_unsafe(self):
        await super().start_unsafe()
        self.start_periodic_callbacks()
        return self


@gen_test()
async def test_a_server_that_does_not_ask_for_it_is_not_profiled(profile):
    async with Server({}):
        assert profile.calls == []


@gen_test()
async def test_an_event_loop_is_profiled_from_its_first_server_to_its_last(profile):
    async with Role({}) as first:
        async with Role({}) as second:
            assert len(profile.running) == 1
            assert first.io_loop.profile is second.io_loop.profile
            await first.close()
            assert len(profile.running) == 1
        await async_poll_for(lambda: not profile.running, period=0.001)
    async with Role({}):
        assert len(profile.running) == 1
    await async_poll_for(lambda: not profile.running, period=0.001)
    assert len(profile.calls) == 2


@gen_test()
async def test_the_profile_is_configured_as_that_of_the_original(profile):
    with configured(interval="7ms", cycle="70ms"):
        async with Role({}):
            [call] = profile.calls
    assert (call["interval"], call["cycle"]) == ("7ms", "70ms")


@gen_test()
async def test_a_server_that_fails_to_start_ends_the_profile(profile):
    running = []

    class Failing(Role):
        async def start_unsafe(self):
            await super().start_unsafe()
            running.extend(profile.running)
            raise OSError("no network")

    with pytest.raises(RuntimeError, match="failed to start"):
        await Failing({})
    assert len(running) == 1
    await async_poll_for(lambda: not profile.running, period=0.001)


def test_the_end_of_an_event_loop_ends_its_profile(profile):
    async def leave_open():
        server = Role({})
        await server
        server.stop()
        await server.rpc.close()
        return server

    server = asyncio.run(leave_open())
    [thread] = profile.threads
    thread.join(30)
    assert not thread.is_alive()
    assert server.status.name == "running"


@gen_test()
async def test_a_profile_that_is_disabled_is_empty(profile):
    with configured(enabled=False):
        async with Role({}) as server:
            assert list(server.io_loop.profile) == []
    assert profile.calls == []


@gen_test()
async def test_an_event_loop_of_python_3_11_is_not_profiled(profile):
    host.sys.version_info.minor = 11
    async with Role({}) as server:
        assert list(server.io_loop.profile) == []
    assert profile.calls == []
