"""Which comm a call uses: none with unread data, and not more than the limit."""

from __future__ import annotations

import asyncio

import pytest

from distributed.core import ConnectionPool, Status, connect, rpc, send_recv
from distributed.tests.servers import TCP, TRANSPORTS, Gate, ask, quiet, serving
from distributed.utils_test import async_poll_for, gen_test


async def twice(comm):
    await comm.write("first")
    return "second"


async def three_times(comm):
    for word in ("first", "second", "third"):
        await comm.write(word)
    return Status.dont_reply


async def once(comm):
    await comm.write("first")
    return Status.dont_reply


async def write_and_fail(comm):
    await comm.write("first")
    raise ZeroDivisionError("after the answer")


def answered(comm):
    return "answered"


HANDLERS = {
    "twice": twice,
    "three_times": three_times,
    "once": once,
    "write_and_fail": write_and_fail,
    "answered": answered,
}


@TRANSPORTS
@pytest.mark.parametrize("pooled", [False, True])
@gen_test()
async def test_a_handler_that_writes_and_returns_a_value_is_an_error_at_the_caller(
    transport, pooled
):
    async with (
        serving(transport, HANDLERS) as server,
        ConnectionPool() as pool,
        rpc(server.address) as own,
    ):
        remote = pool(server.address) if pooled else own
        with quiet():
            with pytest.raises(TypeError, match=r"Status\.dont_reply.*remote\.twice\.stream"):
                await remote.twice()
            with pytest.raises(TypeError, match=r"remote\.three_times\.stream"):
                await remote.three_times()
            with pytest.raises(ZeroDivisionError, match="after the answer"):
                await remote.write_and_fail()
        assert await remote.once() == "first"
        assert await remote.answered() == "answered"
        for number in range(5):
            assert await remote.echo(data=number) == number


@gen_test()
async def test_on_a_comm_of_its_own_a_caller_reads_all_messages():
    async with serving(TCP, HANDLERS) as server:
        comm = await connect(server.address)
        assert await send_recv(comm, op="three_times") == "first"
        assert [await comm.read() for _ in range(2)] == ["second", "third"]
        assert await ask(comm, {"op": "twice"}) == "first"
        assert await comm.read() == "second"
        await comm.close()


@TRANSPORTS
@gen_test()
async def test_the_answer_of_a_handler_that_writes_it_arrives_when_the_handler_has_ended(transport):
    wrote, resume = asyncio.Event(), asyncio.Event()

    async def early(comm):
        await comm.write("early")
        wrote.set()
        await resume.wait()
        return Status.dont_reply

    async with serving(transport, {"early": early}) as server, rpc(server.address) as remote:
        call = asyncio.create_task(remote.early())
        await wrote.wait()
        for number in range(5):
            assert await remote.echo(data=number) == number
        assert not call.done()
        resume.set()
        assert await call == "early"


@pytest.mark.parametrize("answer", [{"call-info": "end"}, {"call-info": "written", "value": 1}])
@pytest.mark.parametrize("deadline", [None, 100])
@gen_test()
async def test_an_answer_that_looks_like_a_message_of_the_core_arrives_unchanged(answer, deadline):
    async def later(comm):
        return answer

    handlers = {"now": lambda: answer, "later": later}
    async with serving(TCP, handlers) as server, rpc(server.address) as remote:
        calls = remote if deadline is None else remote.within(deadline)
        assert await calls.now() == answer
        assert await calls.later() == answer
        assert await calls.echo(data=[answer]) == (answer,)


@TRANSPORTS
@pytest.mark.parametrize("deadline", [None, 100])
@gen_test()
async def test_a_task_that_a_handler_has_left_behind_may_write_the_answer(transport, deadline):
    tasks = []

    async def later(comm, answers):
        async def write():
            for answer in answers:
                await comm.write(answer)

        tasks.append(asyncio.create_task(write()))
        return Status.dont_reply

    async with serving(transport, {"later": later}) as server, rpc(server.address) as own:
        remote = own if deadline is None else own.within(deadline)
        assert await remote.later(answers=["one"]) == "one"
        assert await remote.later(answers=[{"call-info": "end"}]) == {"call-info": "end"}
        with quiet():
            assert await remote.later(answers=["one", "two"]) == "one"
            assert await remote.echo(data="three") == "three"
            await tasks[-1]


@TRANSPORTS
@pytest.mark.parametrize("pooled", [False, True])
@gen_test()
async def test_a_comm_that_receives_something_while_idle_is_not_used_again(transport, pooled):
    comms = []

    def keep(comm):
        comms.append(comm)

    async with (
        serving(transport, {"keep": keep}) as server,
        ConnectionPool() as pool,
        rpc(server.address) as own,
    ):
        remote = pool(server.address) if pooled else own
        # Without the feature, the handler gets the comm itself.
        comm = await (pool.connect(server.address) if pooled else own.live_comm())
        assert await ask(comm, {"op": "keep"}) is None
        if pooled:
            pool.reuse(server.address, comm)
        else:
            own.comms[comm] = True
        await comms[0].write("unexpected")
        await async_poll_for(lambda: comm.has_unread)
        with quiet() as log:
            assert await remote.echo(data=1) == 1
        assert comm.closed()
        assert "it received data after the answer" in log.getvalue()


@TRANSPORTS
@gen_test()
async def test_calls_beyond_the_limit_of_an_rpc_wait(transport):
    gate = Gate()
    async with (
        serving(transport, {"wait": gate.handle}) as server,
        rpc(server.address, limit=2) as remote,
    ):
        calls = [asyncio.create_task(remote.wait(key=key)) for key in range(5)]
        await gate.entered[0].wait()
        await gate.entered[1].wait()
        assert len(remote.comms) == 2
        for key in range(5):
            assert not any(gate.entered[later].is_set() for later in range(key + 2, 5))
            gate.open(key)
            assert await calls[key] == key
        assert len(remote.comms) == 2


@gen_test()
async def test_a_call_that_waits_for_its_turn_can_be_cancelled():
    gate = Gate()
    async with (
        serving(TCP, {"wait": gate.handle}) as server,
        rpc(server.address, limit=1) as remote,
    ):
        first = await gate.enter(remote.wait())
        waiting = [asyncio.create_task(remote.echo(data=number)) for number in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        gate.open()
        await first
        assert await asyncio.gather(*waiting[1:]) == [1, 2]
        assert await remote.echo(data=3) == 3


@gen_test()
async def test_closing_an_rpc_ends_the_calls_that_wait_for_their_turn():
    gate = Gate()
    async with serving(TCP, {"wait": gate.handle}) as server:
        remote = rpc(server.address, limit=1)
        first = await gate.enter(remote.wait())
        waiting = [asyncio.create_task(remote.echo(data=number)) for number in range(3)]
        await asyncio.sleep(0)
        await remote.close_rpc()
        outcomes = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert all(isinstance(outcome, OSError) for outcome in outcomes)


@gen_test()
async def test_a_failed_connection_does_not_take_a_place():
    remote = rpc("tcp://127.0.0.1:1", limit=1, timeout=0.1)
    async with remote:
        for _ in range(3):
            with pytest.raises(OSError, match=r"127\.0\.0\.1:1"):
                await remote.echo()


@pytest.mark.parametrize("limit", [0, -1, None, "many", True, float("nan")])
def test_a_limit_that_makes_no_sense_is_an_error(limit):
    with pytest.raises(ValueError, match="limit must be a number from 1"):
        rpc("tcp://127.0.0.1:1", limit=limit)
