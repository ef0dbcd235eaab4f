"""Failed calls are repeated where the handler was not started, or may run twice."""

from __future__ import annotations

import asyncio

import pytest

from distributed.base import config
from distributed.comm.tests.transports import unused_port
from distributed.core import CommClosedError, RequestRefused, Server, rpc
from distributed.tests.servers import TCP, TRANSPORTS, Gate, quiet, serving
from distributed.utils_test import gen_test


@pytest.fixture(autouse=True)
def _short_delays():
    with config.set({"distributed.comm.retry.delay": {"min": "1ms", "max": "5ms"}}):
        yield


class Counting:
    """A handler that counts its calls, and drops the connection of the first ones."""

    def __init__(self, failures):
        self.calls = 0
        self.failures = failures

    def handle(self, comm):
        self.calls += 1
        if self.calls <= self.failures:
            comm.abort()
        return self.calls


@gen_test()
async def test_a_call_is_repeated_until_the_server_listens():
    address = f"tcp://127.0.0.1:{unused_port()}"
    async with Server({}) as server, rpc(address, timeout=0.02) as remote:
        call = asyncio.create_task(remote.retrying(attempts=10**6).echo(data=1))
        with pytest.raises(OSError, match="127"):
            await remote.retrying(attempts=2).echo(data=1)
        await server.listen(address)
        assert await call == 1


@gen_test()
async def test_a_call_whose_handler_may_have_run_is_not_repeated():
    counting = Counting(failures=2)
    async with serving(TCP, {"count": counting.handle}) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(CommClosedError):
            await remote.retrying(attempts=5).count()
        assert counting.calls == 1


@TRANSPORTS
@gen_test()
async def test_a_call_is_not_repeated_because_its_handler_could_not_connect(transport):
    runs = []

    async def fetch():
        runs.append(1)
        async with rpc(f"tcp://127.0.0.1:{unused_port()}", timeout=0.02) as remote:
            await remote.echo()

    async with serving(transport, {"fetch": fetch}) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(OSError, match="127"):
            await remote.retrying(attempts=3).fetch()
    assert runs == [1]


@gen_test()
async def test_a_call_is_not_repeated_because_an_interceptor_could_not_connect_after_it():
    async def report(call, proceed):
        result = await proceed()
        async with rpc(f"tcp://127.0.0.1:{unused_port()}", timeout=0.02) as remote:
            await remote.report(result=result)

    counting = Counting(failures=0)
    async with (
        serving(TCP, {"count": counting.handle}) as server,
        rpc(server.address, interceptors=[report]) as remote,
    ):
        with pytest.raises(OSError, match="127"):
            await remote.retrying(attempts=3).count()
    assert counting.calls == 1


@gen_test()
async def test_an_idempotent_call_is_repeated():
    counting = Counting(failures=2)
    async with serving(TCP, {"count": counting.handle}) as server, rpc(server.address) as remote:
        with quiet():
            assert await remote.retrying(attempts=3, idempotent=True).count() == 3


@gen_test()
async def test_the_last_error_is_raised_when_all_attempts_have_failed():
    counting = Counting(failures=10)
    async with serving(TCP, {"count": counting.handle}) as server, rpc(server.address) as remote:
        with quiet(), pytest.raises(CommClosedError):
            await remote.retrying(attempts=3, idempotent=True).count()
        assert counting.calls == 3


@gen_test()
async def test_only_the_given_exceptions_are_retried():
    calls = []

    def fail():
        calls.append(1)
        raise KeyError("x")

    async with serving(TCP, {"fail": fail}) as server, rpc(server.address) as remote:
        with quiet():
            with pytest.raises(KeyError):
                await remote.retrying(idempotent=True).fail()
            assert len(calls) == 1
            with pytest.raises(KeyError):
                await remote.retrying(attempts=3, idempotent=True, on=KeyError).fail()
            assert len(calls) == 4


@gen_test()
async def test_retries_stay_within_the_deadline():
    async with rpc("tcp://127.0.0.1:1", timeout="10ms") as remote:
        for calls in (
            remote.within("50ms").retrying(attempts=10**6),
            remote.retrying(attempts=10**6).within("50ms"),
        ):
            # Either the last attempt or the deadline ends it.
            with pytest.raises(TimeoutError):
                await calls.echo()


@gen_test()
async def test_a_closing_server_refuses_a_request_so_that_it_can_be_sent_elsewhere():
    gate = Gate()
    async with serving(TCP, {"wait": gate.handle}) as server, rpc(server.address) as remote:
        comm = await remote.live_comm()
        remote.comms[comm] = True
        running = await gate.enter(remote.wait())
        other = await remote.live_comm()
        remote.comms[other] = True
        closing = asyncio.create_task(server.close(timeout=10))
        await asyncio.sleep(0)
        with quiet(), pytest.raises(RequestRefused, match="is closing and refuses new requests"):
            await remote.echo(data=1)
        assert issubclass(RequestRefused, RuntimeError)
        assert issubclass(RequestRefused, OSError)
        gate.open()
        assert await running is None
        await closing


@gen_test()
async def test_a_refused_call_is_repeated():
    gate = Gate()
    async with serving(TCP, {"wait": gate.handle}) as server, rpc(server.address) as remote:
        running = await gate.enter(remote.wait())
        other = await remote.live_comm()
        remote.comms[other] = True
        closing = asyncio.create_task(server.close(timeout=10))
        await asyncio.sleep(0)
        with quiet() as log, pytest.raises(OSError, match="127"):
            await remote.within("1s").retrying(attempts=3).echo(data=1)
        assert "refuses new requests" in log.getvalue()
        gate.open()
        await running
        await closing


@pytest.mark.parametrize("attempts", [0, -1, 1.5, "3", None])
def test_attempts_that_make_no_sense_are_an_error(attempts):
    with pytest.raises(ValueError, match="attempts"):
        rpc("tcp://127.0.0.1:1").retrying(attempts=attempts)


@pytest.mark.parametrize("on", [1, "OSError", [OSError], (OSError, 1)])
def test_invalid_classes_of_exceptions_are_an_error(on):
    with pytest.raises(TypeError, match="classes of exceptions"):
        rpc("tcp://127.0.0.1:1").retrying(on=on)
