"""The log of slow calls, at the caller and at the server."""

from __future__ import annotations

import asyncio
import re

import pytest

from distributed.base import config
from distributed.core import rpc
from distributed.core.slow_calls import SlowCalls
from distributed.tests.servers import TCP, TRANSPORTS, quiet, serving
from distributed.utils_test import gen_test


async def lines(log, n):
    """Return the log lines about slow calls, once there are *n*."""
    while len(found := re.findall(r"^Slow .*$", log.getvalue(), re.MULTILINE)) < n:
        await asyncio.sleep(0)
    return found


async def count(n):
    for number in range(n):
        yield number


async def repeat(comm):
    await comm.write(await comm.read())


@TRANSPORTS
@gen_test()
async def test_a_slow_call_is_one_line_at_each_side(transport):
    slow = [SlowCalls(0)]
    handlers = {"count": count, "repeat": repeat}
    with quiet() as log:
        async with (
            serving(transport, handlers, interceptors=slow) as server,
            rpc(server.address, interceptors=slow) as remote,
        ):
            address = re.escape(server.address)
            await remote.echo(data=1)
            at_server, at_client = await lines(log, 2)
            assert re.fullmatch(r"Slow call: 'echo' for \S+ took \d+\.\d{3} s", at_server)
            assert re.fullmatch(rf"Slow call: 'echo' of {address} took \d+\.\d{{3}} s", at_client)
            assert [item async for item in remote.count.stream(n=3)] == [0, 1, 2]
            assert all("Slow stream: 'count'" in line for line in (await lines(log, 4))[2:])
            async with remote.repeat.open() as comm:
                await comm.write("hello")
                assert await comm.read() == "hello"
            assert all("Slow conversation: 'repeat'" in line for line in (await lines(log, 6))[4:])


@gen_test()
async def test_the_time_of_a_stream_is_that_until_its_end():
    resume = asyncio.Event()

    async def wait():
        yield 1
        await resume.wait()

    with quiet() as log:
        async with (
            serving(TCP, {"wait": wait}) as server,
            rpc(server.address, interceptors=[SlowCalls(0)]) as remote,
        ):
            stream = remote.wait.stream()
            assert await anext(stream) == 1
            assert "Slow" not in log.getvalue()
            resume.set()
            assert [item async for item in stream] == []
            assert len(await lines(log, 1)) == 1


@gen_test()
async def test_the_line_names_the_failure():
    def fail():
        raise ZeroDivisionError

    with quiet() as log:
        async with (
            serving(TCP, {"fail": fail}) as server,
            rpc(server.address, interceptors=[SlowCalls("0 s")]) as remote,
        ):
            with pytest.raises(ZeroDivisionError):
                await remote.fail()
            [line] = await lines(log, 1)
    assert line.endswith(" s and failed: ZeroDivisionError")


@gen_test()
async def test_a_fast_call_is_not_logged():
    slow = [SlowCalls("1 hour")]
    with quiet() as log:
        async with (
            serving(TCP, interceptors=slow) as server,
            rpc(server.address, interceptors=slow) as remote,
        ):
            assert await remote.echo(data=1) == 1
    assert "Slow" not in log.getvalue()


@gen_test()
async def test_a_server_logs_slow_requests_as_configured():
    with quiet() as log:
        async with serving(TCP) as server, rpc(server.address) as remote:
            assert server.interceptors == ()
            await remote.echo(data=1)
        assert "Slow" not in log.getvalue()
        with config.set({"distributed.admin.slow-call": "0s"}):
            async with serving(TCP) as server, rpc(server.address) as remote:
                await remote.echo(data=1)
                assert len(await lines(log, 1)) == 1


@pytest.mark.parametrize("threshold", [None, -1, "soon", float("nan")])
def test_an_invalid_threshold_is_an_error(threshold):
    with pytest.raises((ValueError, TypeError)):
        SlowCalls(threshold)
