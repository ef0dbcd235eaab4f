"""Which connection a listener closes if file descriptors run out."""

from __future__ import annotations

import contextlib
import math
import ssl
import sys
from typing import Any

import pytest

from distributed.comm import Comm
from distributed.comm.stream_listener import _silence
from distributed.comm.tests.raw_peers import HANDSHAKE, connect_raw, message
from distributed.comm.tests.transports import TRANSPORTS
from distributed.utils_test import async_poll_for, gen_test, tls_security

#: Elsewhere, a peer that has sent something is not told from a silent one.
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_INFO of Linux")

over_ip = pytest.mark.parametrize("scheme", ["tcp", "tls", "ws", "wss"])


def first_bytes(scheme: str) -> bytes:
    """Return a part of what a client sends first."""
    if scheme == "tcp":
        return message(HANDSHAKE)[:20]
    if scheme == "ws":
        return b"GET / HTTP/1.1\r\nHost: "
    flight = ssl.MemoryBIO()
    context = tls_security().get_connection_args("client")["ssl_context"]
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), flight).do_handshake()
    return flight.read()


def open_streams(listener: Any) -> list[Any]:
    return [stream for stream, _ in listener._unfinished() if not stream.closed()]


def number_heard(listener: Any) -> int:
    """Return the number of connections whose peers have sent something."""
    return sum(_silence(stream.socket) < math.inf for stream in open_streams(listener))


@on_linux
@over_ip
@gen_test()
async def test_a_connection_that_has_sent_nothing_is_closed_before_an_older_one_that_has(scheme):
    async with TRANSPORTS[scheme].listening(lambda comm: None) as listener:
        with (
            contextlib.closing(connect_raw(listener.contact_address)) as older,
            contextlib.closing(connect_raw(listener.contact_address)) as silent,
        ):
            await async_poll_for(lambda: len(open_streams(listener)) == 2, timeout=10)
            await older.send(first_bytes(scheme))
            await async_poll_for(lambda: number_heard(listener) == 1, timeout=10)
            assert listener._make_room()
            await silent.wait_closed()
            assert len(open_streams(listener)) == 1
            # The listener waits for more bytes of the other one.
            await async_poll_for(listener._make_room, timeout=10)
            await older.wait_closed()


@over_ip
@gen_test()
async def test_a_connection_with_unread_bytes_is_not_closed(scheme):
    async with TRANSPORTS[scheme].listening(lambda comm: None) as listener:
        with contextlib.closing(connect_raw(listener.contact_address)) as peer:
            await async_poll_for(lambda: len(open_streams(listener)) == 1, timeout=10)
            # Without a turn of the event loop, so that the listener does not read the bytes.
            peer.sock.sendall(first_bytes(scheme))
            assert not listener._make_room()
            assert len(open_streams(listener)) == 1


@pytest.mark.parametrize("scheme", ["tcp", "tls", "ws", "wss", "unix"])
@gen_test()
async def test_a_connection_whose_handshake_is_done_is_not_closed(scheme):
    transport = TRANSPORTS[scheme]
    handled: list[Comm] = []
    async with transport.listening(handled.append) as listener:
        comm = await transport.connect(listener.contact_address)
        # The listener may not have read the client's part yet.
        while listener._make_room():
            pass
        await comm.write("hello")
        await async_poll_for(lambda: handled, timeout=10)
        assert await handled[0].read() == "hello"
        assert not listener._make_room()
        await comm.close()
        await handled[0].close()


@on_linux
@gen_test()
async def test_choosing_a_connection_to_close_takes_the_same_time_however_many_there_are():
    async with TRANSPORTS["tcp"].listening(lambda comm: None) as listener:
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                peer = stack.enter_context(
                    contextlib.closing(connect_raw(listener.contact_address))
                )
                await peer.send(b"x")
            await async_poll_for(lambda: number_heard(listener) == 200, timeout=10)
            looked_at = 0
            unfinished_before = listener._unfinished

            def counted() -> Any:
                nonlocal looked_at
                for entry in unfinished_before():
                    looked_at += 1
                    yield entry

            listener._unfinished = counted
            listener._make_room()
            assert looked_at <= 64
