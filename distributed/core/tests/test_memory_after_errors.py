"""Nothing stays in memory because of an error that was answered or caught: it is in no cycle."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import weakref
from itertools import product

import pytest

from distributed.comm import CommClosedError, connect
from distributed.core import Server, Status, rpc
from distributed.protocol import Serialized, to_serialize
from distributed.utils_test import gen_test

TRANSPORTS = ["tcp://127.0.0.1:0", "inproc://", "ws://127.0.0.1:0", "unix://"]


class Memory:
    """An object that a weak reference can refer to."""


#: The parts of `FailsToArrive` that were unpickled.
arrived: list[weakref.ref[Memory]] = []


class FailsToArrive:
    """An object that cannot be unpickled, although a part of it can."""

    def __reduce__(self):
        return _fail, (Memory(),)


def _fail(memory):
    arrived.append(weakref.ref(memory))
    raise KeyError("it does not arrive")


class Handlers:
    """Handlers that hold an object in a variable and fail; `held` are weak references to these."""

    def __init__(self):
        self.held = []

    def hold(self):
        memory = Memory()
        self.held.append(weakref.ref(memory))
        return memory

    def plain(self, x=None):
        memory = self.hold()
        raise ValueError(type(memory))

    async def coroutine(self):
        memory = self.hold()
        await asyncio.sleep(0)
        raise ValueError(type(memory))

    async def with_comm(self, comm):
        memory = self.hold()
        raise ValueError(type(memory))

    async def stream(self):
        memory = self.hold()
        yield 1
        raise ValueError(type(memory))

    def with_cause(self):
        memory = self.hold()
        try:
            raise KeyError("cause")
        except KeyError as exc:
            raise ValueError(type(memory)) from exc

    def cancelled(self):
        memory = self.hold()
        raise asyncio.CancelledError(type(memory))

    def cannot_be_pickled(self):
        memory = self.hold()
        exc = ValueError(type(memory))
        exc.lambda_ = lambda: None
        exc.generator = (x for x in ())
        try:
            raise exc
        finally:
            del exc

    def table(self):
        return {name: getattr(self, name) for name in ONE_ANSWER} | {"stream": self.stream}


ONE_ANSWER = ["plain", "coroutine", "with_comm", "with_cause", "cancelled", "cannot_be_pickled"]


@contextlib.contextmanager
def without_collections():
    """Do not collect garbage, and log to a text: pytest keeps the records, and so the errors."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [logging.StreamHandler(io.StringIO())]
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        root.handlers = handlers


@contextlib.asynccontextmanager
async def calling(address, handlers):
    """Run a server with these handlers; yield an `rpc` that is connected.  Collect no garbage."""
    async with Server(handlers) as server:
        await server.listen(address)
        async with rpc(server.address) as remote:
            await remote.identity()
            with without_collections():
                yield remote


async def call_and_fail(server, op, held, error=Exception, match=None, **kwargs):
    """Make a call that fails, while a variable of the caller refers to an object."""
    memory = Memory()
    held.append(weakref.ref(memory))
    with pytest.raises(error, match=match):
        await getattr(server, op)(**kwargs)


@pytest.mark.parametrize("address", TRANSPORTS)
@pytest.mark.parametrize("op", ONE_ANSWER)
@gen_test()
async def test_an_error_of_a_handler(address, op):
    handlers = Handlers()
    callers = []
    async with calling(address, handlers.table()) as remote:
        for _ in range(2):
            await call_and_fail(remote, op, callers, match="Memory|cancelled")
        # The server forgets a request at the latest when it waits for the next one.
        await remote.identity()
        assert [ref() for ref in (*handlers.held, *callers)] == [None] * 4


@pytest.mark.parametrize("address", TRANSPORTS)
@gen_test()
async def test_an_error_of_a_stream(address):
    handlers = Handlers()
    callers = []

    async def iterate(remote):
        memory = Memory()
        callers.append(weakref.ref(memory))
        with pytest.raises(ValueError, match="Memory"):
            async for _ in remote.stream.stream():
                pass

    async with calling(address, handlers.table()) as remote:
        for _ in range(2):
            await iterate(remote)
        await remote.identity()
        assert [ref() for ref in (*handlers.held, *callers)] == [None] * 4


@pytest.mark.parametrize("address", [a for a in TRANSPORTS if not a.startswith("inproc")])
@gen_test()
async def test_a_request_that_cannot_be_read(address):
    arrived.clear()
    async with calling(address, {"plain": Handlers().plain}) as remote:
        for _ in range(2):
            await call_and_fail(
                remote, "plain", [], match="arrive", x=to_serialize(FailsToArrive())
            )
        await remote.identity()
        assert len(arrived) == 2
        assert [ref() for ref in arrived] == [None] * 2


async def abort(comm):
    comm.abort()
    return Status.dont_reply


async def wait(comm):
    await asyncio.Event().wait()


async def truncated(comm):
    """Answer by a value whose pickle has ended before it began."""
    await comm.write(Serialized({"serializer": "pickle"}, [b""]))
    return Status.dont_reply


#: Operations whose answer is not whole: how long the caller waits, and what it gets.
INCOMPLETE = {
    "abort": (60, CommClosedError),
    "truncated": (60, CommClosedError),
    "wait": (0.01, TimeoutError),
}


@pytest.mark.parametrize(
    ("address", "op"),
    # Over inproc nothing is pickled, so no pickle is truncated.
    [pair for pair in product(TRANSPORTS, INCOMPLETE) if pair != ("inproc://", "truncated")],
)
@gen_test()
async def test_a_call_without_a_whole_answer(address, op):
    limit, error = INCOMPLETE[op]
    callers = []
    handlers = {"abort": abort, "truncated": truncated, "wait": wait}
    async with calling(address, handlers) as remote:
        for _ in range(2):
            await call_and_fail(remote.within(limit), op, callers, error)
        await remote.identity()
        assert [ref() for ref in callers] == [None] * 2


@pytest.mark.parametrize("address", TRANSPORTS)
@gen_test()
async def test_a_server_that_is_not_there(address):
    callers = []
    async with Server({}) as server:
        await server.listen(address)
        nowhere = server.address
    async with rpc(nowhere, timeout=0.05) as remote:
        with without_collections():
            for _ in range(2):
                await call_and_fail(remote, "identity", callers, OSError)
            assert [ref() for ref in callers] == [None] * 2


@pytest.mark.parametrize("address", TRANSPORTS)
@gen_test()
async def test_a_connection_of_its_own_that_fails(address):
    callers = []

    async def fail(nowhere):
        memory = Memory()
        callers.append(weakref.ref(memory))
        with pytest.raises(OSError, match=r"Timed out|cannot connect|no listener"):
            await connect(nowhere, timeout=0.05)

    async def read(contact):
        memory = Memory()
        callers.append(weakref.ref(memory))
        comm = await connect(contact)
        await comm.write({"op": "abort"})
        with pytest.raises(CommClosedError):
            await comm.read()
        with pytest.raises(CommClosedError):
            await comm.read()
        with pytest.raises(CommClosedError):
            await comm.write(1)

    async def read_truncated(contact):
        memory = Memory()
        callers.append(weakref.ref(memory))
        comm = await connect(contact)
        await comm.write({"op": "truncated"})
        with pytest.raises(CommClosedError, match="truncated"):
            await comm.read()

    with without_collections():
        async with Server({"abort": abort, "truncated": truncated}) as server:
            await server.listen(address)
            nowhere = server.address
            await read(nowhere)
            if not address.startswith("inproc"):
                await read_truncated(nowhere)
        await fail(nowhere)
        assert [ref() for ref in callers] == [None] * (2 if address.startswith("inproc") else 3)


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
@gen_test()
async def test_a_server_that_does_not_speak_the_protocol(scheme):
    def accept(reader, writer):
        writers.append(writer)
        writer.write(b"SSH-2.0-other\r\n" * 100)

    async def fail(address):
        memory = Memory()
        callers.append(weakref.ref(memory))
        with pytest.raises(OSError, match=address):
            await connect(address, timeout=5)

    writers, callers = [], []
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with without_collections():
            for _ in range(2):
                await fail(f"{scheme}://127.0.0.1:{port}")
            assert [ref() for ref in callers] == [None] * 2
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
