"""The figures of a server: what it counts and measures, as one snapshot of plain values."""

from __future__ import annotations

import asyncio
import json
import os
import re
from contextlib import asynccontextmanager

import pytest

from distributed.base import config
from distributed.base.text import max_shown_length
from distributed.base.traffic import Traffic
from distributed.batched import BatchedSend
from distributed.comm import connect
from distributed.core import ConnectionPool, Server, requests, rpc, run_to_completion, timeout
from distributed.core.figures import aggregate, figures
from distributed.telemetry.loop_delay import INTERVAL, delay_of, measuring
from distributed.telemetry.request_counts import KEPT_ERRORS, LATENCY_BOUNDS, OUTCOMES
from distributed.tests.servers import (
    TCP,
    TRANSPORTS,
    Gate,
    ask,
    connected,
    quiet,
    serving,
)
from distributed.tests.test_costs import counting
from distributed.utils_test import async_poll_for, gen_test

over_sockets = pytest.mark.parametrize("transport", [TCP, "unix://", "ws://127.0.0.1:0"])


def outcomes(server, op):
    """Return the outcomes of an operation that have happened."""
    operation = figures(server)["operations"][op]
    assert set(operation["outcomes"]) == set(OUTCOMES)
    assert sum(operation["outcomes"].values()) == operation["count"] == sum(operation["buckets"])
    assert operation["errors"] == operation["count"] - operation["outcomes"]["ok"]
    return {outcome: number for outcome, number in operation["outcomes"].items() if number}


def fail(text="went wrong"):
    raise ValueError(text)


async def numbers(n):
    for number in range(n):
        yield number


async def chat(comm):
    await comm.write(await comm.read())
    await comm.read()


# The shape


def names_in(value):
    """Yield the names in a snapshot that do not depend on what the server does."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from names_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from names_in(inner)


@gen_test()
async def test_figures_are_json_and_each_name_is_documented():
    gate = Gate()
    handlers = {"wait": gate.handle, "fail": fail}
    async with serving(TCP, handlers) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(ValueError, match="went wrong"):
            await remote.fail()
        call = await gate.enter(remote.wait())
        snapshot = figures(server)
        gate.open()
        await call
    assert json.loads(json.dumps(snapshot, allow_nan=False)) == snapshot
    documented = set(re.findall(r"``\"?([\w.-]+)\"?``", figures.__doc__))
    chosen_by_server = {"wait", "fail", "tcp", *snapshot["server"]["versions"]}
    assert set(names_in(snapshot)) - chosen_by_server - documented == set()


@gen_test()
async def test_the_server_is_described():
    server = Server({})
    before = figures(server)["server"]
    assert (before["address"], before["addresses"]) == (None, [])
    assert before["started"] is before["uptime"] is None
    async with server:
        await server.listen("inproc://")
        await server.listen(TCP)
        snapshot = figures(server)
    described = snapshot["server"]
    assert described["type"] == "Server"
    assert described["id"] == server.id
    assert described["status"] == "running"
    assert described["address"] == server.address
    assert described["addresses"] == [each.contact_address for each in server.listeners]
    assert described["pid"] == os.getpid()
    assert described["started"] + described["uptime"] == pytest.approx(snapshot["time"])
    assert {"distributed", "python", "tornado", "msgpack"} <= set(described["versions"])
    assert figures(server)["server"]["status"] == "closed"


# Requests


@TRANSPORTS
@gen_test()
async def test_requests_are_counted_by_operation_and_outcome(transport):
    async with serving(transport, {"fail": fail}) as server, rpc(server.address) as remote:
        for _ in range(3):
            await remote.echo(data=1)
        with quiet(), pytest.raises(ValueError, match="went wrong"):
            await remote.fail()
        assert outcomes(server, "echo") == {"ok": 3}
        assert outcomes(server, "fail") == {"error": 1}
        assert set(figures(server)["operations"]) == {"echo", "fail"}
        sums = dict.fromkeys(OUTCOMES, 0) | {"ok": 3, "error": 1}
        assert figures(server)["requests"]["outcomes"] == sums


@gen_test()
async def test_a_deadline_and_a_cancelled_caller_are_outcomes_of_their_own():
    gate = Gate()
    async with serving(TCP, {"wait": gate.handle}) as server, rpc(server.address) as remote:
        call = await gate.enter(remote.wait(key="cancelled"), "cancelled")
        assert figures(server)["operations"]["wait"]["in_progress"] == 1
        call.cancel()
        await gate.cancelled["cancelled"].wait()
        await async_poll_for(lambda: outcomes(server, "wait") == {"cancelled": 1}, timeout=10)
        assert figures(server)["operations"]["wait"]["in_progress"] == 0
        with quiet(), pytest.raises(TimeoutError):
            async with timeout(0.05):
                await remote.wait(key="late")
        await async_poll_for(
            lambda: outcomes(server, "wait") == {"cancelled": 1, "timeout": 1}, timeout=10
        )


@gen_test()
async def test_a_caller_that_has_left_before_the_answer_is_an_outcome():
    gate = Gate()

    @run_to_completion
    async def stubborn():
        return await gate.handle()

    async with serving(TCP, {"stubborn": stubborn}) as server, connected(server) as comm:
        await gate.enter(comm.write({"op": "stubborn"}))
        comm.abort()
        (served,) = server._comms
        await async_poll_for(served.closed, timeout=10)
        gate.open()
        await async_poll_for(
            lambda: outcomes(server, "stubborn") == {"disconnected": 1}, timeout=10
        )


@gen_test()
async def test_a_result_that_cannot_be_serialized_is_an_error():
    handlers = {"lock": lambda: object.__new__(Unserializable)}
    async with serving(TCP, handlers) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises((TypeError, ValueError)):
            await remote.lock()
        assert outcomes(server, "lock") == {"error": 1}
        assert figures(server)["errors"][0]["op"] == "lock"


class Unserializable:
    def __reduce__(self):
        raise TypeError("stays here")


@gen_test()
async def test_names_that_have_no_handler_get_no_counts_of_their_own():
    async with serving(TCP, blocked_handlers=["identity"]) as server, connected(server) as comm:
        with quiet():
            for i in range(50):
                await ask(comm, {"op": f"invented {i}\n"})
            for msg in ({"op": "identity"}, {"op": ["a list"]}, {"x": 1}, "text"):
                await ask(comm, msg)
        snapshot = figures(server)
        assert snapshot["operations"] == {}
        assert snapshot["requests"]["rejected"] == {
            "unknown-op": 51,
            "blocked": 1,
            "closing": 0,
            "malformed": 2,
        }


@gen_test()
async def test_requests_to_a_closing_server_are_counted():
    gate = Gate()
    async with (
        serving(TCP, {"wait": gate.handle}) as server,
        rpc(server.address) as remote,
        connected(server) as comm,
    ):
        await ask(comm, {"op": "echo"})
        call = await gate.enter(remote.wait())
        closing = asyncio.create_task(server.close(timeout=30))
        await asyncio.sleep(0)
        with quiet():
            await ask(comm, {"op": "echo"})
        assert figures(server)["requests"]["rejected"]["closing"] == 1
        gate.open()
        await call
        await closing


@gen_test()
async def test_the_latency_of_a_request_ends_when_its_answer_was_written(monkeypatch):
    clock = iter([10.0, 10.3, 20.0, 20.0005, 30.0, 1000.0])
    async with serving(TCP) as server, rpc(server.address) as remote:
        monkeypatch.setattr(requests, "perf_counter", lambda: next(clock))
        for _ in range(3):
            await remote.echo(data=1)
        await async_poll_for(lambda: outcomes(server, "echo") == {"ok": 3}, timeout=10)
        operation = figures(server)["operations"]["echo"]
    assert operation["seconds"] == pytest.approx(970.3005)
    buckets = dict(zip([*LATENCY_BOUNDS, "more"], operation["buckets"], strict=True))
    below = next(bound for bound in LATENCY_BOUNDS if bound >= 0.0005 + 1e-9)
    assert {bound for bound, number in buckets.items() if number} <= {0.0005, below, 0.5, "more"}
    assert buckets[0.5] == buckets["more"] == 1
    # The quantile is in the bucket of the value; above the last bound it is that bound.
    assert 0.25 <= operation["quantiles"]["0.5"] <= 0.5
    assert operation["quantiles"]["0.99"] == LATENCY_BOUNDS[-1]


# Connections and peers


@TRANSPORTS
@gen_test()
async def test_peers_are_listed_with_their_transport_and_operation(transport):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle}) as server,
        rpc(server.address) as remote,
        connected(server) as idle,
    ):
        await ask(idle, {"op": "echo"})
        call = await gate.enter(remote.wait())
        snapshot = figures(server)
        gate.open()
        await call
    scheme = transport.partition("://")[0]
    assert [peer["op"] for peer in snapshot["peers"]] == ["wait", None]
    for peer in snapshot["peers"]:
        assert peer["transport"] == scheme
        assert peer["address"].startswith(scheme)
        assert peer["seconds"] >= 0
    assert snapshot["requests"]["in_progress"] == 1
    connections = snapshot["connections"]
    assert (connections["open"], connections["active"], connections["accepted"]) == (2, 1, 2)


@gen_test()
async def test_a_snapshot_costs_the_same_calls_with_more_connections_than_it_lists():
    costs = []
    async with serving("unix://") as server:
        comms = []
        for connections in (30, 300):
            comms += [await connect(server.address) for _ in range(connections - len(comms))]
            await async_poll_for(lambda n=connections: len(server._comms) == n, timeout=30)
            with counting() as counts:
                snapshot = figures(server, max_peers=20)
            costs.append(counts["ours"])
            assert len(snapshot["peers"]) == 20
            assert snapshot["peers_omitted"] == connections - 20
            assert snapshot["connections"]["open"] == connections
        for comm in comms:
            comm.abort()
    # The generator of idle peers is resumed once per peer that is listed.
    assert abs(costs[1] - costs[0]) <= 2


@gen_test()
async def test_refused_connections_are_counted_by_reason():
    limits = {"distributed.comm.max-connections": 2, "distributed.comm.max-connections-per-host": 1}
    with config.set(limits):
        server = Server({})
    async with server:
        await server.listen(TCP)
        comms = [await connect(server.address) for _ in range(2)]
        await async_poll_for(
            lambda: figures(server)["connections"]["refused"]["max-connections-per-host"] == 1,
            timeout=10,
        )
        server._server_requests._admission.limit = 1
        comms.append(await connect(server.address))
        await async_poll_for(
            lambda: figures(server)["connections"]["refused"]["max-connections"] == 1, timeout=10
        )
        for comm in comms:
            comm.abort()


@asynccontextmanager
async def raw_connection(server):
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield writer
    finally:
        writer.close()
        await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])


def failed(server):
    return {k: n for k, n in figures(server)["connections"]["failed"].items() if n}


@pytest.mark.parametrize("transport", [TCP, "ws://127.0.0.1:0"])
@gen_test()
async def test_failed_handshakes_are_counted_by_reason(transport):
    with config.set({"distributed.comm.timeouts.handshake": "50ms"}):
        async with serving(transport) as server:
            with quiet():
                async with raw_connection(server):
                    await async_poll_for(
                        lambda: (
                            figures(server)["connections"]["handshaking"] == 1
                            or failed(server) == {"timeout": 1}
                        ),
                        timeout=10,
                    )
                    await async_poll_for(lambda: failed(server) == {"timeout": 1}, timeout=10)
                async with raw_connection(server) as writer:
                    writer.write(b"\xff" * 200)
                    await async_poll_for(
                        lambda: failed(server) == {"timeout": 1, "other": 1}, timeout=10
                    )
            assert figures(server)["connections"]["handshaking"] == 0
            assert figures(server)["connections"]["accepted"] == 0


@gen_test()
async def test_a_wrong_token_is_counted_as_failed_authentication():
    async with Server({}) as server:
        await server.listen(TCP, token="a secret of this test")
        with quiet(), pytest.raises(OSError, match="token"):
            await connect(server.address, token="another secret of this test", timeout=5)
        await async_poll_for(lambda: failed(server) == {"authentication": 1}, timeout=10)


# Streams


@gen_test()
async def test_streams_and_conversations_are_counted():
    gate = Gate()
    handlers = {"numbers": numbers, "chat": chat}
    streams = {"take": lambda i: None, "wait": gate.handle, "fail": fail}
    async with serving(TCP, handlers, stream_handlers=streams) as server:
        async with rpc(server.address) as remote:
            async with remote.numbers.stream(n=1000) as items:
                assert await anext(items) == 0
                assert figures(server)["streams"]["answers"] == 1
                async for _ in items:
                    pass
            async with remote.chat.open() as comm:
                await comm.write("x")
                assert await comm.read() == "x"
                assert figures(server)["streams"]["conversations"] == 1
                await comm.write("end")
        comm = await connect(server.address)
        await comm.write({"op": "connection_stream", "reply": False})
        await comm.write([{"op": "take", "i": i} for i in range(5)])
        await comm.write({"op": "wait"})
        await gate.entered[None].wait()
        now = figures(server)["streams"]
        assert (now["open"], now["opened"], now["messages"], now["handlers"]) == (1, 1, 6, 1)
        assert (now["answers"], now["items"], now["conversations"], now["failed"]) == (
            0,
            1000,
            0,
            0,
        )
        with quiet():
            await comm.write({"op": "fail"})
            await async_poll_for(lambda: not server._comms, timeout=10)
        assert figures(server)["streams"]["failed"] == 1
        assert figures(server)["streams"]["open"] == 0
        await comm.close()


# Traffic


@TRANSPORTS
@gen_test()
async def test_messages_and_bytes_are_counted_each_way_by_transport(transport):
    scheme = transport.partition("://")[0]
    sizes = [10, 100_000, 3_000_000]
    async with serving(transport) as server, connected(server) as comm:
        sent = 0
        for size in sizes:
            # A bytearray is a frame of its own.
            sent += await comm.write({"op": "echo", "data": bytearray(size)})
            await comm.read()
        traffic = figures(server)["traffic"]
    assert set(traffic) == {scheme}
    traffic = traffic[scheme]
    assert traffic["messages_received"] == traffic["messages_sent"] == 3
    if scheme == "inproc":
        assert traffic["bytes_received"] == 0
    else:
        assert traffic["bytes_received"] == sent
        assert traffic["bytes_sent"] > sum(sizes)


@gen_test()
async def test_the_traffic_of_the_pool_belongs_to_its_server():
    async with serving(TCP) as server, Server({}) as caller:
        for _ in range(2):
            await caller.rpc(server.address).echo(data=1)
        theirs, own = figures(server)["traffic"]["tcp"], figures(caller)["traffic"]["tcp"]
    assert own["messages_sent"] == theirs["messages_received"] == 2
    assert own["bytes_sent"] == theirs["bytes_received"] > 0
    assert own["bytes_received"] == theirs["bytes_sent"] > 0


@over_sockets
@gen_test()
async def test_a_write_that_is_larger_than_the_buffers_of_the_kernel_waits(transport):
    async with (
        serving(transport, {"large": lambda: bytearray(20_000_000)}) as server,
        connected(server) as comm,
    ):
        await ask(comm, {"op": "large"})
        traffic = figures(server)["traffic"][transport.partition("://")[0]]
    assert traffic["waits"] >= 1
    assert traffic["seconds_waited"] > 0
    assert traffic["writes_waiting"] == 0


@gen_test()
async def test_a_write_counts_as_waiting_until_it_ends():
    traffic = Traffic()
    for end in (asyncio.Future.set_result, asyncio.Future.set_exception):
        written = asyncio.get_running_loop().create_future()
        wait = asyncio.create_task(traffic.wait(written))
        await async_poll_for(lambda: traffic.writes_waiting == 1, timeout=10)
        end(written, OSError("the peer has left") if end.__name__ == "set_exception" else None)
        await asyncio.wait([wait])
        assert traffic.writes_waiting == 0
        if wait.exception() is not None:
            assert "the peer has left" in str(wait.exception())
    assert traffic.waits == 2


# The pool and BatchedSend


@gen_test()
async def test_the_pool_counts_calls_that_wait_for_a_connection():
    gate = Gate()
    async with serving(TCP, {"wait": gate.handle}) as server, Server({}, connection_limit=1) as own:
        remote = own.rpc(server.address)
        first = await gate.enter(remote.wait())
        second = asyncio.create_task(remote.echo(data=2))
        await async_poll_for(lambda: figures(own)["pool"]["waiting"] == 1, timeout=10)
        pool = figures(own)["pool"]
        assert (pool["limit"], pool["open"], pool["active"], pool["waits"]) == (1, 1, 1, 1)
        gate.open()
        await first
        assert await second == 2
        pool = figures(own)["pool"]
        assert (pool["open"], pool["active"], pool["waiting"], pool["waits"]) == (1, 0, 0, 1)
        assert pool["seconds_waited"] > 0
        own.rpc = ConnectionPool(limit=float("inf"))
        assert figures(own)["pool"]["limit"] is None


@gen_test()
async def test_the_queues_of_batched_sends_are_counted():
    received = []
    streams = {"take": lambda i: received.append(i)}
    async with serving(TCP, stream_handlers=streams) as server:
        comm = await connect(server.address)
        await comm.write({"op": "connection_stream", "reply": False})
        batched = BatchedSend(interval="1ms")
        batched.start(comm)
        for i in range(3):
            batched.send({"op": "take", "i": i})
        queue = figures(server)["batched"]
        assert (queue["open"], queue["messages"], queue["messages_written"]) == (1, 3, 0)
        assert queue["bytes"] == batched.buffered_bytes > 0
        await async_poll_for(lambda: len(received) == 3, timeout=10)
        queue = figures(server)["batched"]
        assert (queue["messages"], queue["bytes"], queue["messages_written"]) == (0, 0, 3)
        assert queue["batches_written"] == 1
        assert queue["unacknowledged"] == batched.unacknowledged
        await batched.close()
        assert figures(server)["batched"]["open"] == 0


# The event loop, the process, errors


@gen_test()
async def test_the_delay_of_the_event_loop_is_measured_while_it_is_wanted():
    loop = asyncio.get_running_loop()
    async with Server({}) as server:
        assert figures(server)["event_loop"]["delay"] is None
        with measuring() as delay, measuring():
            await async_poll_for(lambda: delay.count >= 1, timeout=10)
            # Block the loop past the next measurement.
            end = loop.time() + INTERVAL + 0.1
            while loop.time() < end:
                pass
            before = delay.count
            await async_poll_for(lambda: delay.count > before, timeout=10)
            measured = figures(server)["event_loop"]
        assert measured["delay_max"] >= 0.1
        assert measured["delay_sum"] >= measured["delay_max"]
        assert sum(measured["delay_buckets"]) == measured["delay_count"] >= 2
        assert delay_of(loop)._timer is None


@gen_test()
async def test_figures_of_the_process():
    async with Server({}) as server:
        before = figures(server)["process"]
        descriptor = os.dup(0)
        after = figures(server)["process"]
        os.close(descriptor)
    assert after["open_fds"] == before["open_fds"] + 1
    assert after["cpu_seconds"] >= before["cpu_seconds"] > 0
    assert after["virtual_memory"] >= after["memory"] > 1_000_000
    assert 0 < after["start_time"] <= figures(server)["time"]
    assert after["threads"] >= 1
    assert len(after["gc_collections"]) == 3


@gen_test()
async def test_recent_errors_are_limited_printable_and_newest_first():
    async with serving(TCP, {"fail": fail}) as server, connected(server) as comm:
        with quiet():
            for i in range(KEPT_ERRORS + 5):
                await ask(comm, {"op": "fail", "text": f"error {i}"})
            await ask(comm, {"op": "<script>\n\x1b[2J" + "x" * 10_000})
            await ask(comm, {"op": "fail", "text": "y" * 100_000})
        snapshot = figures(server)
    errors = snapshot["errors"]
    assert len(errors) == KEPT_ERRORS
    assert snapshot["errors_total"] == KEPT_ERRORS + 7
    assert [each["message"] for each in errors[2:4]] == ["error 104", "error 103"]
    assert errors[2].keys() == {"time", "op", "peer", "type", "message"}
    assert (errors[2]["op"], errors[2]["type"]) == ("fail", "ValueError")
    assert errors[2]["peer"].startswith("tcp://127.0.0.1:")
    assert errors[1]["op"].startswith("<script>\\n\\x1b[2J")
    for error in errors:
        assert all(text.isprintable() for key, text in error.items() if key != "time")
        assert all(len(text) <= 2 * max_shown_length() for k, text in error.items() if k != "time")


@gen_test()
async def test_the_figures_of_several_servers_add_up():
    async with (
        serving(TCP, {"fail": fail}) as first,
        serving("unix://") as second,
        rpc(first.address) as one,
        rpc(second.address) as two,
    ):
        await one.echo(data=1)
        await two.echo(data=1)
        await two.identity()
        with quiet(), pytest.raises(ValueError, match="went wrong"):
            await one.fail()
        both = aggregate([figures(first), figures(second)])
        assert both.keys() - figures(first).keys() == {"servers"}
    assert json.loads(json.dumps(both, allow_nan=False)) == both
    assert [each["id"] for each in both["servers"]] == [first.id, second.id]
    assert both["operations"]["echo"]["count"] == both["operations"]["echo"]["outcomes"]["ok"] == 2
    assert sum(both["operations"]["echo"]["buckets"]) == 2
    assert both["operations"]["echo"]["quantiles"]["0.5"] > 0
    assert both["operations"]["identity"]["count"] == both["operations"]["fail"]["errors"] == 1
    assert set(both["traffic"]) == {"tcp", "unix"}
    assert both["connections"]["open"] == len(both["peers"]) == 2
    assert both["pool"]["limit"] == 1024
    assert both["errors_total"] == len(both["errors"]) == 1
    assert both["latency_bounds"] == list(LATENCY_BOUNDS)
