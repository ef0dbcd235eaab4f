"""Readiness, stopping and signs of life for a service manager (sd_notify)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager

import pytest

from distributed.core import Server, run
from distributed.core.service_manager import notify
from distributed.tests.servers import TCP
from distributed.utils_test import captured_logger


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """A socket that gets the messages to the service manager."""
    name = f"{tmp_path}/notify" if request.param == "path" else f"@notify-{os.getpid()}"
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract names exist on Linux only")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def received(sock):
    """Return the messages so far."""
    messages = []
    while True:
        try:
            messages.append(sock.recv(4096).decode().split("\n"))
        except BlockingIOError:
            return messages


def test_the_manager_learns_when_the_server_is_ready_and_when_it_stops(manager):
    before = []

    @asynccontextmanager
    async def service(server):
        # Services belong to the start.
        before.extend(received(manager))
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
        yield
        before.append("left")
        before.extend(received(manager))

    server = Server({})
    assert run(server, TCP, services=[service], shutdown_timeout=7) == 0
    assert before[0] == "left"
    ready, stopping = before[1:]
    assert ready == ["READY=1", f"STATUS=Ready at {server.listeners[0].contact_address}"]
    assert stopping[:2] == ["STOPPING=1", "STATUS=Closing after SIGTERM"]
    # More than the time for requests in progress.
    assert stopping[2].startswith("EXTEND_TIMEOUT_USEC=2")


def test_a_server_that_fails_to_start_is_never_ready(manager):
    with captured_logger("distributed.core"):
        assert run(Server({}), "tpc://") == 78
    assert not [message for message in received(manager) if "READY=1" in message]


def test_the_watchdog_gets_signs_of_life_while_the_event_loop_runs(manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    found = []

    @asynccontextmanager
    async def service(server):
        async def count():
            while found.count(["WATCHDOG=1"]) < 3:
                found.extend(received(manager))
                await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGTERM)

        task = asyncio.create_task(count())
        yield
        await task

    assert run(Server({}), TCP, services=[service]) == 0


def test_the_watchdog_of_another_process_gets_none(manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("WATCHDOG_PID", "1")

    @asynccontextmanager
    async def service(server):
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
        yield

    assert run(Server({}), TCP, services=[service]) == 0
    assert ["WATCHDOG=1"] not in received(manager)


def test_without_a_manager_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


@pytest.mark.parametrize("name", ["/no/such/socket", "vsock:2:1234", "relative"])
def test_a_manager_that_cannot_be_reached_is_logged(name, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with captured_logger("distributed.core") as log:
        assert not notify("READY=1")
    assert name in log.getvalue()
    assert len(log.getvalue().splitlines()) == 1
