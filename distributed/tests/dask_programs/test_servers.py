"""What the roles have from the server that they are: files, threads, a monitor, a profile."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import dask
import pytest

from distributed import Client, Nanny, Scheduler, Worker, get_worker, profile
from distributed.core import Server
from distributed.system_monitor import SystemMonitor

#: Whether the event loop is profiled: not on CPython 3.11, where that can crash the process.
PROFILED = sys.version_info[:2] != (3, 11)


def _scheduler(**kwargs):
    return Scheduler(host="127.0.0.1", dashboard_address=":0", **kwargs)


async def _until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_roles_have_their_directory_on_sys_path_and_remove_it_without_a_thread(tmp_path):
    def entries():
        return [entry for entry in sys.path if entry.startswith(str(tmp_path))]

    def fill(directory):
        (Path(directory) / "file").write_text("x")

    def exists(directory):
        return Path(directory).exists()

    async def main():
        space = str(tmp_path / "dask-scratch-space")
        async with _scheduler() as scheduler:
            [of_scheduler] = entries()
            assert of_scheduler.startswith(os.path.join(space, "scheduler-"))
            async with Worker(scheduler.address) as worker:
                assert worker.local_directory in entries()
                async with Nanny(scheduler.address):
                    assert space in entries()
                assert entries() == [worker.local_directory, of_scheduler]
                fill(worker.local_directory)
            assert not exists(worker.local_directory)
        assert not exists(of_scheduler)
        assert entries() == []

    threads = threading.enumerate()
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        asyncio.run(main())
    assert not [
        thread
        for thread in threading.enumerate()
        if thread not in threads and thread.name.startswith("Dask-Offload")
    ]


def test_a_bare_server_makes_no_directory(tmp_path):
    async def main():
        async with Server({}, local_directory=str(tmp_path)):
            assert os.listdir(tmp_path) == []

    asyncio.run(main())


def test_the_monitor_is_that_of_the_roles():
    async def main():
        async with _scheduler() as scheduler, Worker(scheduler.address) as worker:
            for role in (scheduler, worker):
                assert type(role.monitor) is SystemMonitor
                assert {"gpu_name", "last_time", "proc"} <= set(vars(role.monitor))
            worker.monitor.get_process_memory = lambda: 12345
            assert worker.monitor.update()["memory"] == 12345

    asyncio.run(main())


def test_the_event_loop_is_profiled_from_the_first_role_to_the_last(monkeypatch):
    started = []
    watch = profile.watch

    def noting(**kwargs):
        started.append(kwargs)
        return watch(**kwargs)

    monkeypatch.setattr(profile, "watch", noting)

    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "Profile"]

    async def main():
        # That of an earlier test ends within one interval.
        await _until(lambda: not threads())
        async with _scheduler() as scheduler, Worker(scheduler.address):
            assert len(threads()) == PROFILED
            assert len(started) == PROFILED
            async with Client(scheduler.address, asynchronous=True) as client:
                if PROFILED:
                    await _until(lambda: scheduler.io_loop.profile)
                found = await client.profile(server=True)
                assert found["count"] >= 0
        await _until(lambda: not threads())

    with dask.config.set({"distributed.worker.profile.cycle": "20ms"}):
        asyncio.run(main())
    for kwargs in started:
        assert (kwargs["interval"], kwargs["cycle"]) == ("10ms", "20ms")


def test_no_event_loop_is_profiled_if_profiles_are_disabled(monkeypatch):
    monkeypatch.setattr(profile, "watch", None)

    async def main():
        async with _scheduler() as scheduler:
            assert list(scheduler.io_loop.profile) == []
            async with Client(scheduler.address, asynchronous=True) as client:
                assert (await client.profile(server=True))["count"] == 0

    with dask.config.set({"distributed.worker.profile.enabled": False}):
        asyncio.run(main())


@pytest.mark.parametrize("security", [None, False])
def test_security_false_is_the_same_as_none(security):
    async def main():
        async with (
            _scheduler(security=security) as scheduler,
            Worker(scheduler.address, security=security),
            Client(scheduler.address, security=security, asynchronous=True) as client,
        ):
            assert scheduler.address.startswith("tcp://")
            assert await client.submit(sum, [1, 2]) == 3

    asyncio.run(main())


def test_a_nanny_without_security_starts_its_worker():
    async def main():
        async with (
            _scheduler(security=False) as scheduler,
            Nanny(scheduler.address, security=False),
            Client(scheduler.address, security=False, asynchronous=True) as client,
        ):
            assert await client.submit(sum, [1, 2]) == 3

    asyncio.run(main())


def test_messages_do_not_wait_for_tasks_in_the_offload_executor():
    def occupy():
        worker = get_worker()
        worker.entered.set()
        assert worker.leave.wait(60)

    async def main():
        async with (
            _scheduler() as scheduler,
            Worker(scheduler.address, nthreads=2) as worker,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            worker.entered, worker.leave = threading.Event(), threading.Event()
            with dask.annotate(executor="offload"):
                occupied = client.submit(occupy, pure=False)
            await _until(worker.entered.is_set)
            try:
                # Above distributed.comm.offload: a thread serializes it.
                [large] = await client.scatter([[b"x" * 1000] * 20_000])
                assert len(await large) == 20_000
            finally:
                worker.leave.set()
            await occupied

    asyncio.run(main())
