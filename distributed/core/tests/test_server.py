"""Stopping and closing a server, its background tasks, its statistics, and its cost."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict

import pytest
from tornado.ioloop import PeriodicCallback

import distributed.core
from distributed import core
from distributed.base import config
from distributed.core import CommClosedError, Server, Status
from distributed.core.tasks import AsyncTaskGroupClosedError
from distributed.telemetry.counter import Digest
from distributed.telemetry.monitor import SystemMonitor
from distributed.tests.servers import TCP, TRANSPORTS, Gate, ask, assert_usable, connected, serving
from distributed.utils_test import (
    assert_cannot_connect,
    async_poll_for,
    captured_logger,
    gen_test,
    throws,
)

# Stopping and closing


@pytest.mark.parametrize(("method", "callbacks"), [("stop", False), ("_stop_listeners", True)])
@gen_test()
async def test_stop_stops_listening_and_leaves_comms_open(method, callbacks):
    async with serving(TCP) as server, connected(server) as comm:
        server.start_periodic_callbacks()
        await assert_usable(comm)
        getattr(server, method)()
        await assert_usable(comm)
        await assert_cannot_connect(server.address, timeout=0.1)
        assert {callback.is_running() for callback in server.periodic_callbacks.values()} == {
            callbacks
        }
        assert server.status is Status.running


@TRANSPORTS
@gen_test()
async def test_close_closes_listeners_and_comms(transport):
    async with serving(transport) as server, connected(server) as comm:
        await assert_usable(comm)
        await server.close()
        with pytest.raises(CommClosedError):
            await comm.read()
        with pytest.raises(OSError, match=re.escape(server.address)):
            await core.connect(server.address, timeout=0.1)
        assert server.incoming_comms_open == 0


@gen_test()
async def test_close_closes_connections_whose_handshake_is_not_done():
    async with serving(TCP) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        # The server's half of the handshake
        assert await reader.read(1)
        await server.close()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(100_000)
        writer.close()


@TRANSPORTS
@gen_test()
async def test_a_close_leaves_no_connection_that_is_being_made_open(transport):
    async with serving(transport) as server:
        connecting = [asyncio.create_task(core.connect(server.address)) for _ in range(20)]
        await async_poll_for(lambda: server._comms, period=0)
        await server.close()
        made, pending = await asyncio.wait(connecting, timeout=0.5)
        for task in pending:
            task.cancel()
        await asyncio.wait(connecting)
        for task in made:
            if task.exception() is None:
                with pytest.raises(CommClosedError):
                    await ask(task.result(), {"op": "identity"})
                await task.result().close()
        assert not server._comms


@gen_test()
async def test_close_closes_the_pool():
    async with serving(TCP) as other, Server({}) as server:
        assert await server.rpc(other.address).echo(data=1) == 1
        assert server.outgoing_comms_open == 1
        await server.close()
        assert server.outgoing_comms_open == 0
        assert server.rpc.status is Status.closed


# Background tasks


@gen_test()
async def test_background_tasks_run_until_their_server_closes():
    gate = Gate()
    async with Server({}) as server:
        server._ongoing_background_tasks.call_soon(gate.handle, "soon")
        server._ongoing_background_tasks.call_later(600, gate.handle, "later")
        assert len(server._ongoing_background_tasks) == 2
        await gate.entered["soon"].wait()
    assert gate.cancelled["soon"].is_set()
    assert len(server._ongoing_background_tasks) == 0
    assert server._ongoing_background_tasks.closed


@gen_test()
async def test_a_closed_server_refuses_background_tasks():
    server = await Server({})
    await server.close()
    with pytest.raises(AsyncTaskGroupClosedError):
        server._ongoing_background_tasks.call_soon(asyncio.sleep, 0)


# Statistics


@TRANSPORTS
@gen_test()
async def test_ops_are_counted(transport):
    async with serving(transport, {"f": throws}) as server, connected(server) as comm:
        for _ in range(3):
            await ask(comm, {"op": "echo"})
        with captured_logger("distributed.core"):
            await ask(comm, {"op": "f", "x": 1})
        assert dict(server.counters["op"].components[0]) == {"echo": 3, "f": 1}


@gen_test()
async def test_ops_that_do_not_exist_are_not_counted():
    # Otherwise a peer could fill the memory of the server with invented names.
    async with serving(TCP, blocked_handlers=["echo"]) as server, connected(server) as comm:
        with captured_logger("distributed.core"):
            for op in ("nope", "echo", ("echo",), None):
                await ask(comm, {"op": op})
        assert dict(server.counters["op"].components[0]) == {}


@gen_test()
async def test_digest_metric_keeps_the_sum_and_the_maximum():
    async with Server({}) as server:
        for value in (1.5, 4, 0.5):
            server.digest_metric("transfer", value)
        assert server.digests_total["transfer"] == 6
        assert server.digests_total_since_heartbeat["transfer"] == 6
        assert server.digests_max["transfer"] == 4


@pytest.mark.parametrize("replace", [True, False])
@gen_test()
async def test_the_sums_since_the_heartbeat_can_be_cleared_or_replaced(replace):
    async with Server({}) as server:
        server.digest_metric("transfer", 1)
        if replace:
            server.digests_total_since_heartbeat = defaultdict(float)
        else:
            server.digests_total_since_heartbeat.clear()
        server.digest_metric("transfer", 2)
        assert server.digests_total_since_heartbeat["transfer"] == 2
        assert server.digests_total["transfer"] == 3


@gen_test()
async def test_the_monitor_can_be_replaced():
    async with Server({}) as server:
        server.monitor = mine = SystemMonitor(maxlen=5)
        sampled = mine.count
        server.periodic_callbacks["monitor"].callback()
        assert server.monitor is mine
        assert mine.count > sampled


@gen_test()
async def test_digests_are_none_without_a_digest_library():
    async with Server({}) as server:
        assert (server.digests is None) == (Digest is None)


@gen_test()
async def test_every_server_has_its_own_statistics():
    async with Server({}) as one, Server({}) as other:
        one.digest_metric("transfer", 1)
        one.counters["op"].add("f")
        assert "transfer" not in other.digests_total
        assert "op" not in other.counters


@gen_test()
async def test_monitor_watches_the_process():
    async with Server({}) as server:
        assert isinstance(server.monitor, SystemMonitor)
        assert server.monitor is server.monitor
        assert server.monitor.update()["memory"] > 0


@gen_test()
async def test_the_built_in_periodic_callbacks():
    server = Server({})
    assert set(server.periodic_callbacks) == {"monitor", "tick", "ticks", "shift_counters"}
    for callback in server.periodic_callbacks.values():
        assert isinstance(callback, PeriodicCallback)
    await server.close()


@gen_test()
async def test_periodic_callbacks_run_from_the_call_that_starts_them_to_close():
    def running():
        return [callback.is_running() for callback in server.periodic_callbacks.values()]

    server = Server({})
    assert running() == [False] * 4
    await server
    assert running() == [False] * 4
    server.start_periodic_callbacks()
    assert running() == [True] * 4
    await server.close()
    assert running() == [False] * 4


@gen_test()
async def test_a_periodic_callback_that_is_added_runs_once_callbacks_are_started():
    called = asyncio.Event()
    async with Server({}) as server:
        server.periodic_callbacks["mine"] = PeriodicCallback(called.set, 1)
        server.start_periodic_callbacks()
        await called.wait()
    assert not server.periodic_callbacks["mine"].is_running()


@gen_test(
    config={"distributed.admin.tick.interval": "2 ms", "distributed.admin.tick.cycle": "4 ms"}
)
async def test_ticks_are_measured():
    async with Server({}) as server:
        server.start_periodic_callbacks()
        before = time.time()
        await async_poll_for(lambda: server._tick_counter >= 3, period=0.001)
        assert before - 1 < server._last_tick < time.time() + 1
        assert server.digests_max["tick-duration"] > 0
        await async_poll_for(lambda: 0 < server._tick_interval_observed < 1, period=0.001)


@pytest.mark.parametrize("limit", ["replaced", "configured"])
@gen_test(config={"distributed.admin.tick.interval": "5 ms"})
async def test_a_blocked_loop_is_logged_as_unresponsive(monkeypatch, limit):
    if limit == "replaced":
        monkeypatch.setitem(vars(distributed.core), "tick_maximum_delay", 0.1)
        server = Server({})
    else:
        with config.set({"distributed.admin.tick.limit": "100 ms"}):
            server = Server({})
    async with server:
        server.start_periodic_callbacks()
        await async_poll_for(lambda: server._tick_counter, period=0.001)
        with captured_logger("distributed.core") as log:
            time.sleep(0.2)  # noqa: ASYNC251 - blocks the loop for longer than the limit
            await async_poll_for(lambda: log.getvalue(), period=0.001)
        assert "unresponsive in Server" in log.getvalue()


@gen_test(config={"distributed.admin.tick.interval": "5 ms"})
async def test_a_loop_that_is_blocked_for_less_than_the_limit_is_not_logged():
    async with Server({}) as server:
        server.start_periodic_callbacks()
        await async_poll_for(lambda: server._tick_counter, period=0.001)
        with captured_logger("distributed.core") as log:
            time.sleep(0.1)  # noqa: ASYNC251 - blocks the loop for less than the limit
            ticks = server._tick_counter
            await async_poll_for(lambda: server._tick_counter > ticks, period=0.001)
        assert log.getvalue() == ""


def test_tick_maximum_delay_is_configured():
    with config.set({"distributed.admin.tick.limit": "7 s"}):
        assert distributed.core.tick_maximum_delay == 7


# Cost and construction


@gen_test()
async def test_a_server_that_listens_starts_no_thread():
    before = threading.active_count()
    async with serving(TCP):
        assert threading.active_count() == before


def test_making_a_server_opens_no_file_and_no_socket_and_starts_no_thread():
    code = """
import asyncio, sys
from distributed.core import Server

async def main():
    first = Server({})  # reads the configuration
    seen = []

    def hook(event, args):
        if event.split(".")[0] in ("open", "os", "socket", "subprocess", "_thread", "import"):
            seen.append((event, str(args)))

    sys.addaudithook(hook)
    servers = [Server({}) for _ in range(100)]
    found = list(seen)
    for server in (first, *servers):
        await server.close()
    print(found)

asyncio.run(main())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="no_such_keyword"):
        Server({}, no_such_keyword=1)


def test_a_handler_that_is_not_callable_is_an_error_that_names_its_op():
    with pytest.raises(TypeError, match="the handler of 'add' is not callable: 3"):
        Server({"add": 3})
    with pytest.raises(TypeError, match="the stream handler of 'note' is not callable"):
        Server({}, stream_handlers={"note": "x"})


def test_subclasses_may_use_short_private_names():
    taken = {name for name in dir(Server({})) if name.startswith("_") and name[1] != "_"}
    assert not taken & {
        *("_close", "_fail", "_answer", "_calls", "_serving", "_serve", "_name", "_scratch"),
        *("_statistics", "_binding", "_admission", "_start", "_stop", "_task", "_tasks", "_loop"),
    }


@gen_test()
async def test_the_grace_of_close_may_be_given_with_a_unit():
    server = await Server({})
    with pytest.raises(ValueError, match="soon"):
        await server.close(timeout="soon")
    assert server.status is Status.running
    await server.close(timeout="200ms")
    assert server.status is Status.closed
