"""Conversations with a handler over a comm of its own: ``async with remote.op.open(…) as comm``."""

from __future__ import annotations

import asyncio

import pytest

from distributed.core import CommClosedError, rpc, run_to_completion
from distributed.protocol import to_serialize
from distributed.tests.servers import TCP, TRANSPORTS, quiet, serving
from distributed.utils_test import async_poll_for, gen_test


class Chat:
    """A handler that answers each message, and notes what it received."""

    def __init__(self):
        self.received: list[object] = []
        self.ended = asyncio.Event()

    async def chat(self, comm, room):
        try:
            while True:
                message = await comm.read()
                self.received.append(message)
                if message == "fail":
                    raise KeyError(message)
                if message == "leave":
                    return "a value that is dropped"
                await comm.write((room, message))
        finally:
            self.ended.set()


@TRANSPORTS
@gen_test()
async def test_both_sides_write_and_read(transport):
    chat = Chat()
    async with serving(transport, {"chat": chat.chat}) as server, rpc(server.address) as remote:
        async with remote.chat.open(room="x") as comm:
            for message in ("a", "b"):
                await comm.write(message)
                assert await comm.read() == ("x", message)
        await chat.ended.wait()
        assert not [comm for comm in remote.comms if not comm.closed()]
        assert await remote.echo(data=1) == 1


@TRANSPORTS
@gen_test()
async def test_the_handler_reads_all_messages_that_the_caller_wrote_before_it_left(transport):
    received = []
    started, ended = asyncio.Event(), asyncio.Event()
    resume = asyncio.Event()

    async def collect(comm):
        started.set()
        await resume.wait()
        try:
            while True:
                received.append(await comm.read())
        except CommClosedError:
            ended.set()

    async with serving(transport, {"collect": collect}) as server, rpc(server.address) as remote:
        async with remote.collect.open() as comm:
            await started.wait()
            for number in range(10):
                await comm.write(number)
        [comm] = server._comms
        await async_poll_for(lambda: comm.has_unread)
        resume.set()
        await ended.wait()
        assert received == list(range(10))


@TRANSPORTS
@gen_test()
async def test_a_caller_that_leaves_cancels_a_handler_that_does_not_read(transport):
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(comm):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(transport, {"wait": wait}) as server, rpc(server.address) as remote:
        async with remote.wait.open():
            await entered.wait()
        await cancelled.wait()


@TRANSPORTS
@gen_test()
async def test_an_exception_of_the_handler_is_raised_by_the_next_read(transport):
    chat = Chat()
    async with serving(transport, {"chat": chat.chat}) as server, rpc(server.address) as remote:
        with quiet():
            async with remote.chat.open(room="x") as comm:
                await comm.write("fail")
                with pytest.raises(KeyError, match="fail"):
                    await comm.read()
                with pytest.raises(CommClosedError):
                    await comm.read()


@TRANSPORTS
@gen_test()
async def test_the_comm_is_closed_when_the_handler_returns(transport):
    chat = Chat()
    async with (
        serving(transport, {"chat": chat.chat}) as server,
        rpc(server.address) as remote,
        remote.chat.open(room="x") as comm,
    ):
        await comm.write("leave")
        with pytest.raises(CommClosedError):
            await comm.read()


@gen_test()
async def test_an_exception_in_the_block_closes_the_comm():
    chat = Chat()
    async with serving(TCP, {"chat": chat.chat}) as server, rpc(server.address) as remote:
        with pytest.raises(ZeroDivisionError):
            async with remote.chat.open(room="x"):
                raise ZeroDivisionError
        await chat.ended.wait()


@gen_test()
async def test_a_conversation_ends_at_its_deadline():
    chat = Chat()
    async with serving(TCP, {"chat": chat.chat}) as server, rpc(server.address) as remote:

        async def wait():
            async with remote.within("20ms").chat.open(room="x") as comm:
                await comm.read()

        with (
            quiet(),
            pytest.raises(TimeoutError, match=r"'chat' (took longer|was cancelled after)"),
        ):
            await wait()
        await chat.ended.wait()


@gen_test()
async def test_opening_an_operation_that_does_not_exist_is_an_error():
    async with serving(TCP) as server, rpc(server.address) as remote:
        with quiet():
            async with remote.nope.open() as comm:
                with pytest.raises(ValueError, match="No handler for op 'nope'"):
                    await comm.read()


@gen_test()
async def test_opening_a_handler_that_does_not_take_the_comm_is_an_error_that_names_calls():
    calls = []
    async with serving(TCP, {"add": calls.append}) as server, rpc(server.address) as remote:
        with quiet():
            async with remote.add.open() as comm:
                with pytest.raises(TypeError, match=r"does not take 'comm'.*remote\.add\(\.\.\.\)"):
                    await comm.read()
    assert not calls


@gen_test()
async def test_many_conversations_at_a_time():
    chat = Chat()
    async with serving(TCP, {"chat": chat.chat}) as server, rpc(server.address) as remote:

        async def talk(room):
            async with remote.chat.open(room=room) as comm:
                await comm.write("hello")
                return await comm.read()

        answers = await asyncio.gather(*map(talk, range(50)))
        assert answers == [(room, "hello") for room in range(50)]


@gen_test()
async def test_the_deadline_ends_a_conversation_whose_last_data_cannot_be_sent():
    entered, resume = asyncio.Event(), asyncio.Event()

    @run_to_completion
    async def busy(comm):
        # It does not read.
        entered.set()
        await resume.wait()

    writes = []

    async def converse(remote):
        async with remote.within("100ms").busy.open() as comm:
            await entered.wait()
            # The other side receives one message before the handler reads it.
            await comm.write("unread")
            writes.append(asyncio.create_task(comm.write(to_serialize(bytes(64 * 2**20)))))
            # Let the write begin; closing the comm waits for it.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async with serving(TCP, {"busy": busy}) as server, rpc(server.address) as remote:
        await remote.echo()
        with quiet(), pytest.raises(TimeoutError):
            await converse(remote)
        with pytest.raises(CommClosedError):
            await writes[0]
        resume.set()
        assert await remote.echo(data=1) == 1
