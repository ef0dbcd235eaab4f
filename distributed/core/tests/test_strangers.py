"""A server that requires a token may tell peers without it whether it serves, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from distributed.base import config
from distributed.comm import connect, listen
from distributed.comm.handshake import MAX_QUESTIONS
from distributed.core import CommClosedError, Server, rpc
from distributed.protocol import to_serialize
from distributed.tests.servers import (
    ADDRESSES,
    TCP,
    TRANSPORTS,
    Explosive,
    is_encrypted,
    listen_args,
    quiet,
    trusting,
)
from distributed.utils_test import async_poll_for, captured_logger, gen_test, tls_security

TOKEN = {"token": "a secret of this test"}


@contextlib.asynccontextmanager
async def guarded(transport=TCP, handlers=None, allow=True, cls=Server, **kwargs):
    """Run a server that requires a token."""
    with config.set({"distributed.comm.auth.allow-health": allow}):
        async with cls(handlers or {}, **kwargs) as server:
            await server.listen(transport, **listen_args(transport), **TOKEN)
            with trusting(transport):
                yield server


class Called:
    """Handlers that note their calls."""

    def __init__(self):
        self.ops: list[str] = []

    def note(self, **kwargs):
        self.ops.append("note")

    async def count(self):
        self.ops.append("count")
        yield 1

    async def chat(self, comm):
        self.ops.append("chat")

    def handlers(self):
        return {"note": self.note, "count": self.count, "chat": self.chat}


@TRANSPORTS
@gen_test()
async def test_a_peer_without_the_token_learns_the_health(transport):
    async with guarded(transport) as server:
        async with rpc(server.address) as remote:
            for _ in range(3):
                assert await remote.health() == {"status": "serving"}
            assert len(remote.comms) == 1
        # No comm of such a peer gets to the server.
        assert not server._comms
        async with rpc(server.address, connection_args=TOKEN) as remote:
            assert await remote.health() == {"status": "serving"}
            assert await remote.echo(data=1) == 1


@TRANSPORTS
@gen_test()
async def test_a_peer_without_the_token_is_refused_everything_else(transport):
    called = Called()
    stream_handlers = {"note": called.note}
    async with (
        guarded(transport, called.handlers(), stream_handlers=stream_handlers) as server,
        rpc(server.address) as remote,
    ):
        for op in ("note", "echo", "identity", "dump_state", "close", "connection_stream", "none"):
            with pytest.raises(PermissionError, match=r"requires a token .*only .*'health'"):
                await remote.call(op)
        with pytest.raises(PermissionError, match="requires a token"):
            await remote.describe()
        with pytest.raises(PermissionError, match="requires a token"):
            await anext(remote.count.stream())
        async with remote.chat.open() as comm:
            with pytest.raises(PermissionError, match="requires a token"):
                await comm.read()
        comm = await connect(server.address, **connection_args(transport))
        await comm.write({"op": "connection_stream", "reply": False})
        await comm.write([{"op": "note"}])
        assert (await comm.read())["denied"]
        assert (await comm.read())["denied"]
        comm.abort()
        assert called.ops == []
        assert await remote.health() == {"status": "serving"}


@TRANSPORTS
@gen_test()
async def test_by_default_a_peer_without_the_token_is_disconnected(transport):
    async with guarded(transport, allow=False) as server, rpc(server.address) as remote:
        with captured_logger("distributed.comm"), pytest.raises(OSError, match="token"):
            await remote.health()


@TRANSPORTS
@gen_test()
async def test_a_peer_with_a_wrong_token_is_disconnected(transport):
    async with guarded(transport) as server:
        args = {"token": "a guess of this test"}
        async with rpc(server.address, connection_args=args) as remote:
            with captured_logger("distributed.comm"), pytest.raises(OSError, match="token"):
                await remote.health()


@pytest.mark.parametrize("transport", [it for it in ADDRESSES if it != "inproc://"])
@pytest.mark.parametrize("wrap", [lambda x: x, to_serialize, lambda x: [x]])
@gen_test()
async def test_nothing_of_a_peer_without_the_token_is_unpickled(transport, wrap):
    async with guarded(transport) as server, rpc(server.address) as remote:
        with captured_logger("distributed.comm"), quiet() as log:
            with pytest.raises(CommClosedError):
                await remote.health(data=wrap(Explosive()))
            with pytest.raises(CommClosedError):
                await remote.echo(data=wrap(Explosive()))
        assert "ZeroDivisionError" not in log.getvalue()
        assert await remote.health() == {"status": "serving"}


@pytest.mark.parametrize(
    "message", [None, 1, "health", ["health"], {}, {"op": None}, {"op": ["health"]}, {"op": {}}]
)
@TRANSPORTS
@gen_test()
async def test_nonsense_of_a_peer_without_the_token_is_refused(transport, message):
    async with guarded(transport) as server:
        comm = await connect(server.address, **connection_args(transport))
        await comm.write(message)
        assert (await comm.read())["denied"] is True
        comm.abort()


def connection_args(transport):
    if not is_encrypted(transport):
        return {}
    return {"ssl_context": tls_security().get_connection_args("client")["ssl_context"]}


@pytest.mark.parametrize("transport", [it for it in ADDRESSES if it != "inproc://"])
@gen_test()
async def test_a_message_above_the_limit_of_the_handshake_disconnects_the_peer(transport):
    async with guarded(transport) as server, rpc(server.address) as remote:
        with captured_logger("distributed.comm"), pytest.raises(CommClosedError):
            await remote.health(data="x" * 200_000)


@TRANSPORTS
@gen_test()
async def test_a_peer_without_the_token_is_disconnected_after_the_time_of_the_handshake(transport):
    async with guarded(transport) as server, rpc(server.address) as remote:
        with config.set({"distributed.comm.timeouts.handshake": "50ms"}):
            assert await remote.health() == {"status": "serving"}
            [comm] = remote.comms
            await async_poll_for(comm.closed)
        # The next call connects again.
        assert await remote.health() == {"status": "serving"}


@TRANSPORTS
@gen_test()
async def test_a_peer_without_the_token_gets_a_limited_number_of_answers(transport):
    async with guarded(transport) as server:
        comm = await connect(server.address, **connection_args(transport))
        for _ in range(MAX_QUESTIONS):
            await comm.write({"op": "health"})
            assert await comm.read() == {"status": "serving"}
        with pytest.raises(CommClosedError):
            await comm.read()
        comm.abort()


@gen_test()
async def test_peers_without_the_token_are_disconnected_when_the_server_closes():
    async with guarded() as server:
        comm = await connect(server.address)
        await comm.write({"op": "health"})
        assert await comm.read() == {"status": "serving"}
        await server.close()
        with pytest.raises(CommClosedError):
            await comm.read()


@gen_test()
async def test_a_subclass_adds_to_the_health_and_its_failure_is_not_shown():
    class Own(Server):
        failing = False

        async def health(self):
            await asyncio.sleep(0)
            if self.failing:
                raise KeyError("a detail")
            return {**super().health(), "queue": 3}

    async with guarded(cls=Own) as server, rpc(server.address) as remote:
        # Arguments are dropped.
        assert await remote.health(x=1) == {"status": "serving", "queue": 3}
        server.failing = True
        with quiet(), pytest.raises(Exception, match="KeyError in health") as info:
            await remote.health()
        assert "a detail" not in str(info.value)


@gen_test()
async def test_a_blocked_health_is_refused():
    async with guarded(blocked_handlers=["health"]) as server, rpc(server.address) as remote:
        with pytest.raises(PermissionError):
            await remote.health()


@gen_test()
async def test_a_listener_without_a_server_refuses_peers_without_the_token():
    with config.set({"distributed.comm.auth.allow-health": True}):
        async with listen(TCP, pytest.fail, **TOKEN) as listener:
            with captured_logger("distributed.comm"), pytest.raises(OSError, match="token"):
                await connect(listener.contact_address)
