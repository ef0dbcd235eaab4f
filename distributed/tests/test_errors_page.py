"""The errors on ``docs/reference/errors.rst`` are raised, with the texts that the page shows."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from pathlib import Path

import pytest

from distributed import config
from distributed.batched import BatchedSend
from distributed.core import Server, connect, rpc
from distributed.protocol import dumps, loads, to_serialize
from distributed.protocol.limits import LoadPolicy
from distributed.tests import pages
from distributed.utils_test import gen_test, tls_security

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "errors.rst"
TOKEN = "Zr3mJ0hXl9cN4u2pVw7k"
SECTIONS = [
    "A connection cannot be made",
    "A connection is lost",
    "A call fails",
    "A message cannot be sent or read",
    "A program does not start",
]
#: Errors that take minutes: their texts are searched in the module that raises them.
SLOW = {"has given no sign of life for": "comm/keepalive.py"}


class NotImportable:
    """An object whose pickle refers to a module that does not exist."""

    def __reduce__(self):
        return __import__, ("no_such_module",)


class NotStarting(Server):
    async def start_unsafe(self):
        raise KeyError("x")


async def forever():
    await asyncio.Event().wait()


async def items():
    yield 1


async def answer_twice(comm):
    await comm.write(1)
    return 2


def abort(comm):
    comm.abort()


def takes_reply(reply):
    raise AssertionError("never called")


@contextlib.asynccontextmanager
async def served(handlers=None, listen=None, address="tcp://127.0.0.1:0", **arguments):
    async with Server(handlers or {}, **arguments) as server:
        await server.listen(address, **listen or {})
        async with rpc(server.address) as remote:
            yield server, remote


async def refused():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    await connect(f"tcp://127.0.0.1:{port}", timeout="200ms")


async def without_token():
    async with served(listen={"token": TOKEN}) as (_, remote):
        await remote.echo()


async def without_token_where_health_is_allowed():
    with config.set({"distributed.comm.auth.allow-health": True}):
        await without_token()


async def wrong_token():
    async with served(listen={"token": TOKEN}) as (server, _):
        await connect(server.address, token=TOKEN + "x")


async def not_encrypted():
    async with served() as (server, _):
        await connect(server.address, security=tls_security())


async def unknown_authority():
    listen = {"security": tls_security()}
    async with served(address="tls://127.0.0.1:0", listen=listen) as (server, _):
        await connect(server.address, ssl_context=ssl.create_default_context())


async def unknown_scheme():
    await connect("tpc://127.0.0.1:1")


async def another_protocol():
    async def answer(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await connect(f"tcp://127.0.0.1:{port}")


async def too_many_connections():
    with config.set({"distributed.comm.max-connections": 1}):
        async with served() as (server, remote):
            await remote.echo()
            async with rpc(server.address) as another:
                await another.echo()


async def lost():
    async with served({"abort": abort}) as (_, remote):
        await remote.call("abort")


async def closing():
    started, may_end = asyncio.Event(), asyncio.Event()

    async def wait():
        started.set()
        await may_end.wait()

    async with served({"wait": wait}) as (server, remote):
        await asyncio.gather(remote.echo(), remote.echo())  # opens two connections
        call = asyncio.create_task(remote.call("wait"))
        await started.wait()
        close = asyncio.create_task(server.close(timeout=20))
        try:
            await asyncio.sleep(0)
            await remote.echo()
        finally:
            may_end.set()
            await asyncio.wait([call, close])


async def closed_rpc():
    async with served() as (_, remote):
        remote.close_rpc()
        await remote.echo()


async def deadline():
    async with served({"forever": forever}) as (_, remote):
        await remote.within("20ms").forever()


async def unknown_operation():
    async with served() as (_, remote):
        await remote.unknown()


async def wrong_argument():
    async with served({"forever": forever}) as (_, remote):
        await remote.forever(x=1)


async def stream_that_is_called():
    async with served({"items": items}) as (_, remote):
        await remote.call("items")


async def two_answers():
    async with served({"answer_twice": answer_twice}) as (_, remote):
        await remote.answer_twice()


async def blocked():
    async with served(blocked_handlers=["echo"]) as (_, remote):
        await remote.echo()


async def not_serializable():
    async with served() as (_, remote):
        with socket.socket() as sock:
            await remote.echo(data=sock)


async def no_pickle():
    async with served(listen={"allow_pickle": False}) as (_, remote):
        await remote.echo(data=1j)


async def not_importable():
    async with served() as (_, remote):
        await remote.echo(data=NotImportable())


async def inflated():
    frames = dumps(to_serialize(bytes(2_000_000)), context={"compression": "zlib"})
    with config.set({"distributed.comm.max-inflated-size": "1MB"}):
        loads(frames, policy=LoadPolicy.from_config())


async def full_buffer():
    with config.set({"distributed.comm.batched.max-buffer-size": "1kB"}):
        async with served() as (server, _):
            comm = await connect(server.address)
            stream = BatchedSend("1s")
            stream.start(comm)
            try:
                for _ in range(3):
                    stream.send({"op": "x", "data": bytes(600)})
            finally:
                stream.abort()


async def port_in_use():
    async with served() as (server, _), Server({}) as another:
        await another.listen(server.address)


async def misspelt_argument():
    Server({}, interceptor=[])


async def nonsense_in_configuration():
    with config.set({"distributed.comm.timeouts.connect": "soon"}):
        await refused_by_configuration()


async def refused_by_configuration():
    async with served() as (_, remote):
        await remote.echo()


async def reserved_parameter():
    Server({"takes_reply": takes_reply})


async def reserved_operation():
    Server({"address": forever})


async def failed_start():
    async with NotStarting({}):
        raise AssertionError("it has started")


async def run_in_a_loop():
    coroutine = forever()
    try:
        asyncio.run(coroutine)
    finally:
        coroutine.close()


PROVOKED = [
    refused,
    without_token,
    without_token_where_health_is_allowed,
    wrong_token,
    not_encrypted,
    unknown_authority,
    unknown_scheme,
    another_protocol,
    too_many_connections,
    lost,
    closing,
    closed_rpc,
    deadline,
    unknown_operation,
    wrong_argument,
    stream_that_is_called,
    two_answers,
    blocked,
    not_serializable,
    no_pickle,
    not_importable,
    inflated,
    full_buffer,
    port_in_use,
    misspelt_argument,
    nonsense_in_configuration,
    reserved_parameter,
    reserved_operation,
    failed_start,
    run_in_a_loop,
]


def errors_on_the_page():
    """Return the error of each row: the literal in its first cell."""
    return [
        re.match(r"``(.+?)``", row[0])[1]
        for section in SECTIONS
        for row in pages.rows(PAGE, section)
    ]


def matches(pattern, text):
    """Return whether a text is that of the page, in which "…" stands for any text."""
    parts = map(re.escape, re.split(r" ?… ?", pattern))
    return re.fullmatch("(?s:.*)".join(parts), text) is not None


async def error_of(provoke):
    """Return type and text of the error that a function provokes, like Python's traceback."""
    with pytest.raises(Exception) as info:  # noqa: PT011
        await provoke()
    return f"{info.type.__name__}: {info.value}"


@pytest.mark.parametrize("provoke", PROVOKED, ids=lambda provoke: provoke.__name__)
@gen_test()
async def test_an_error_is_on_the_page(provoke):
    text = await error_of(provoke)
    assert any(matches(pattern, text) for pattern in errors_on_the_page()), text


@gen_test()
async def test_each_error_of_the_page_is_raised():
    texts = [await error_of(provoke) for provoke in PROVOKED]
    for pattern in errors_on_the_page():
        slow = [place for part, place in SLOW.items() if part in pattern]
        if slow:
            source = (ROOT / "distributed" / slow[0]).read_text()
            assert any(part in source for part in SLOW)
        else:
            assert any(matches(pattern, text) for text in texts), pattern


def test_a_text_is_compared_with_the_page():
    assert matches("OSError: … failed", "OSError: all failed")
    assert not matches("OSError: … failed", "OSError: all failed, but one")
