"""The ``tcp://`` transport: hostile peers on raw sockets, socket options, and addresses."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from unittest.mock import Mock

import pytest
from tornado.netutil import Resolver
from tornado.tcpclient import TCPClient

from distributed.base import config
from distributed.comm import connect, get_address_host_port, listen, tcp
from distributed.comm.core import Comm, CommClosedError, FatalCommClosedError
from distributed.comm.tests.raw_peers import (
    HANDSHAKE,
    RawPeer,
    message,
    raw_peer,
    raw_server,
    resident,
    u64,
)
from distributed.comm.tests.transports import TRANSPORTS, echo, unused_port
from distributed.protocol import dumps, to_serialize
from distributed.utils_test import async_poll_for, captured_logger, gen_test, has_ipv6

LOCALHOST = "tcp://127.0.0.1:0"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' /proc and TCP options")


class Target:
    """A listener, and the comms that have completed the handshake."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Comm] = asyncio.Queue()
        self.listener: Any = None

    def raw_peer(self) -> AbstractAsyncContextManager[RawPeer]:
        return raw_peer(self.listener.contact_address)

    @asynccontextmanager
    async def after_handshake(self) -> AsyncIterator[tuple[RawPeer, Comm]]:
        async with self.raw_peer() as peer:
            await peer.handshake()
            comm = await self.accepted.get()
            try:
                yield peer, comm
            finally:
                comm.abort()


@asynccontextmanager
async def target(**kwargs: Any) -> AsyncIterator[Target]:
    """Listen, and check at the end that an honest peer is still served."""
    it = Target()
    async with listen(LOCALHOST, it.accepted.put, **kwargs) as it.listener:
        yield it
        honest = await connect(it.listener.contact_address)
        comm = await it.accepted.get()
        await honest.write("hello")
        assert await comm.read() == "hello"
        await honest.close()
        await comm.close()


@asynccontextmanager
async def attacked() -> AsyncIterator[tuple[RawPeer, Comm]]:
    """Yield a raw peer that has completed the handshake, and the comm at the other end."""
    async with target() as it, it.after_handshake() as ends:
        yield ends


# Hostile peers, before the handshake

GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(100)),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n" * 4,
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
    "no frames": u64(8, 0),
    "first bytes too few": u64(0, 1, 0),
    "not on a frame boundary": u64(16 + 3, 1, 5) + b"abcde",
    "no msgpack": u64(16 + 3, 1, 3) + b"\xc1\xc1\xc1",
    "truncated msgpack": u64(16 + 1, 1, 1) + b"\xdf",
    "frames missing": message({"x": to_serialize(1)})[:8]
    + u64(1)
    + message({"x": to_serialize(1)})[16:24],
    "no map": message([1, 2, 3]),
    "map without the keys": message({"hello": "world"}),
    "strange values": message({**HANDSHAKE, "pickle-protocol": "five"}),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
@gen_test()
async def test_an_invalid_handshake_closes_its_connection_and_no_other(data):
    with (
        config.set({"distributed.comm.timeouts.handshake": "300ms"}),
        captured_logger("distributed", level=logging.INFO) as log,
    ):
        async with target() as it, it.raw_peer() as peer:
            await peer.send(data)
            await peer.wait_closed()
            assert it.accepted.empty()
    lines = [line for line in log.getvalue().splitlines() if "failed before it began" in line]
    assert len(lines) == 1
    assert "Traceback" not in log.getvalue()


@pytest.mark.parametrize("part", [0, 1, 8, 23, 24, 40])
@gen_test()
async def test_half_a_handshake_is_closed_at_the_deadline(part):
    with config.set({"distributed.comm.timeouts.handshake": "100ms"}):
        async with target() as it, it.raw_peer() as peer:
            await peer.send(message(HANDSHAKE)[:part])
            await peer.wait_closed()
            assert it.accepted.empty()


@gen_test()
async def test_the_log_names_the_peer_without_handshake_and_the_key_of_the_deadline():
    with (
        config.set({"distributed.comm.timeouts.handshake": "50ms"}),
        captured_logger("distributed.comm", level=logging.INFO) as log,
    ):
        async with target() as it, it.raw_peer() as peer:
            host, port = peer.sock.getsockname()
            await peer.wait_closed()
    assert f"tcp://{host}:{port}" in log.getvalue()
    assert "distributed.comm.timeouts.handshake" in log.getvalue()


@gen_test()
async def test_a_slow_handshake_does_not_delay_other_peers():
    async with target() as it, it.raw_peer():
        comms = await asyncio.gather(*(connect(it.listener.contact_address) for _ in range(10)))
        for comm in comms:
            await comm.close()
            await (await it.accepted.get()).close()


@gen_test()
async def test_a_peer_that_disconnects_before_the_handshake_is_not_logged_as_a_warning():
    with captured_logger("distributed", level=logging.WARNING) as log:
        async with target() as it:
            for _ in range(20):
                async with it.raw_peer() as peer:
                    peer.reset()
    assert log.getvalue() == ""


@gen_test()
async def test_a_listener_that_stops_closes_the_connections_in_their_handshake():
    listener = await listen(LOCALHOST, echo)
    async with raw_peer(listener.contact_address) as peer:
        await peer.read_message()  # the handshake is in progress
        listener.stop()
        await peer.wait_closed()


# Hostile peers, after the handshake

LIES = {
    "no frames": (u64(8, 0), "no frames"),
    "first bytes too few": (u64(10, 1, 5), "cannot hold the lengths"),
    "not on a frame boundary": (u64(16 + 3, 1, 5), "do not end where a frame ends"),
    "beyond the last frame": (u64(16 + 9, 1, 5), "do not end where a frame ends"),
    "more frames than allowed": (u64(2**40, 2**33), "distributed.comm.max-frames"),
    "a length larger than any memory": (u64(16, 1, 2**63), "cannot allocate"),
    "lengths whose sum overflows": (u64(8 + 8 * 4, 4, *[2**62] * 4), "cannot allocate"),
}


@pytest.mark.parametrize(("data", "why"), LIES.values(), ids=LIES.keys())
@gen_test()
async def test_a_prelude_that_lies_closes_the_comm_with_the_reason(data, why):
    async with attacked() as (peer, comm):
        await peer.send(data)
        with pytest.raises(CommClosedError, match=re.escape(why)):
            await comm.read()
        assert comm.closed()
        await peer.wait_closed()


@gen_test()
async def test_a_message_above_the_limit_is_refused_before_it_arrives():
    with config.set({"distributed.comm.max-message-size": "1MiB"}):
        async with attacked() as (peer, comm):
            await peer.send(u64(16, 1, 2**20 + 1))
            with pytest.raises(CommClosedError, match=r"distributed\.comm\.max-message-size"):
                await comm.read()


@gen_test()
async def test_a_message_at_the_limit_is_read():
    with config.set({"distributed.comm.max-message-size": "1MiB"}):
        async with attacked() as (peer, comm):
            frame = dumps(bytes(2**20 - 5))[0]
            assert len(frame) == 2**20
            await peer.send(u64(16 + len(frame), 1, len(frame)) + frame)
            assert len(await comm.read()) == 2**20 - 5


@on_linux
@pytest.mark.parametrize(
    "claim",
    [
        u64(16, 1, 2**34),
        u64(16 + 2**34, 1, 2**34),
        u64(8 + 8 * 1_000_000, 1_000_000),
        u64(8 + 8 * 16, 16, *[2**30] * 16),
    ],
    ids=["one frame", "one frame in the first bytes", "many frames", "large frames"],
)
@gen_test()
async def test_a_length_without_data_costs_no_memory(claim):
    async with attacked() as (peer, comm):
        before = resident()
        reading = asyncio.create_task(comm.read())
        await peer.send(claim)
        await peer.send(bytes(100_000))
        done, _ = await asyncio.wait({reading}, timeout=0.2)
        if done:
            with pytest.raises(CommClosedError, match="cannot allocate"):
                reading.result()
        else:
            assert resident() - before < 32 * 2**20
            reading.cancel()
            await asyncio.wait({reading})


@gen_test()
async def test_a_frame_that_is_not_a_message_raises():
    async with attacked() as (peer, comm):
        await peer.send(u64(16 + 3, 1, 3) + b"\xc1\xc1\xc1")
        with pytest.raises(Exception, match=r"\S"):
            await comm.read()


@gen_test()
async def test_closing_in_the_middle_of_a_message_is_an_error_that_says_so():
    async with attacked() as (peer, comm):
        await peer.send(message("x" * 1000)[:500])
        peer.close()
        with pytest.raises(CommClosedError, match="in the middle of a message"):
            await comm.read()


@pytest.mark.parametrize("sent", [0, 500])
@gen_test()
async def test_a_reset_connection_is_an_error_that_says_so(sent):
    async with attacked() as (peer, comm):
        reading = asyncio.create_task(comm.read())
        await peer.send(message("x" * 1000)[:sent])
        peer.reset()
        with pytest.raises(CommClosedError, match=r"reset by peer"):
            await reading
        assert comm.closed()


@gen_test()
async def test_a_write_after_a_reset_raises():
    async with attacked() as (peer, comm):
        peer.reset()
        # Before the kernel has received the reset, a write may still succeed.
        await async_poll_for(comm.closed, timeout=5)
        with pytest.raises(CommClosedError):
            await comm.write("x")


@gen_test()
async def test_a_write_in_which_the_connection_breaks_raises(monkeypatch):
    async with attacked() as (_, comm):
        stream = comm.stream
        broken = Mock(wraps=stream.socket)
        broken.send.side_effect = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        monkeypatch.setattr(stream, "socket", broken)
        with pytest.raises(CommClosedError, match="reset by peer"):
            await comm.write("x")
        assert comm.closed()


@gen_test()
async def test_messages_may_arrive_byte_by_byte():
    async with attacked() as (peer, comm):
        data = message({"x": to_serialize(b"abc"), "y": 1})
        reading = asyncio.create_task(comm.read())
        for i in range(len(data)):
            await peer.send(data[i : i + 1])
            await asyncio.sleep(0)
        assert await reading == {"x": b"abc", "y": 1}


@gen_test()
async def test_messages_may_arrive_many_at_once():
    async with attacked() as (peer, comm):
        await peer.send(b"".join(message(i) for i in range(5000)))
        assert [await comm.read() for _ in range(5000)] == list(range(5000))


@gen_test()
async def test_a_peer_that_sends_without_end_does_not_block_the_event_loop():
    async with attacked() as (peer, comm):

        async def read_forever() -> None:
            while True:
                await comm.read()

        reading = asyncio.create_task(read_forever())
        await peer.send(b"".join(message(i) for i in range(20_000)))
        turns = 0
        while reading.done() is False and turns < 100:
            await asyncio.sleep(0)
            turns += 1
        assert turns == 100
        reading.cancel()
        await asyncio.wait({reading})


@pytest.mark.parametrize("leading", range(4))
@gen_test()
async def test_the_sender_chooses_the_number_of_frames_in_the_first_buffer(leading):
    async with attacked() as (peer, comm):
        frames = [bytes(frame) for frame in dumps({"x": to_serialize(b"abc")})]
        assert len(frames) == 3
        lengths = [len(frame) for frame in frames]
        first = 8 + 8 * 3 + sum(lengths[:leading])
        await peer.send(u64(first, 3, *lengths) + b"".join(frames))
        assert await comm.read() == {"x": b"abc"}


@on_linux
@gen_test()
async def test_unread_messages_do_not_fill_the_memory():
    async with attacked() as (peer, comm):
        before = resident()
        block = message(bytes(10_000))
        sent = 0
        try:
            while True:
                async with asyncio.timeout(0.5):
                    await peer.send(block * 100)
                    sent += 100
        except TimeoutError:
            pass
        assert resident() - before < 64 * 2**20
        for _ in range(sent):
            assert len(await comm.read()) == 10_000


# Hostile servers


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        u64(8, 0),
        message([1, 2]),
        message({"hello": "world"}),
        u64(16 + 3, 1, 3) + b"\xc1\xc1\xc1",
    ],
    ids=["http", "no frames", "no map", "map without the keys", "no msgpack"],
)
@gen_test()
async def test_connecting_to_another_kind_of_server_fails_without_a_retry(data):
    async with raw_server(lambda peer: peer.send(data)) as where:
        address = f"tcp://{where}"
        with pytest.raises(FatalCommClosedError, match=re.escape(address)):
            await connect(address, timeout=20)


@gen_test()
async def test_another_protocol_is_not_reported_as_too_many_frames():
    answer = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    async with raw_server(lambda peer: peer.send(answer)) as where:
        with pytest.raises(FatalCommClosedError, match="speak another protocol") as caught:
            await connect(f"tcp://{where}", timeout=20)
    assert "max-frames" not in str(caught.value)


@gen_test()
async def test_connecting_to_a_silent_server_times_out():
    async with raw_server(lambda peer: peer.wait_closed()) as where:
        address = f"tcp://{where}"
        with pytest.raises(OSError, match=f"Timed out trying to connect to {address}"):
            await connect(address, timeout=0.2)


@gen_test()
async def test_connecting_to_a_server_that_resets_is_retried():
    connections = 0

    async def serve(peer: RawPeer) -> None:
        nonlocal connections
        connections += 1
        if connections < 3:
            peer.reset()
        else:
            await peer.send(message(HANDSHAKE))

    async with raw_server(serve) as where:
        comm = await connect(f"tcp://{where}", timeout=20)
        assert connections == 3
        await comm.close()


# Sockets


def socket_of(comm: Comm) -> socket.socket:
    return comm.stream.socket  # type: ignore[attr-defined]


TCP = TRANSPORTS["tcp"]


@gen_test()
async def test_small_messages_are_sent_without_delay():
    async with TCP.pair() as pair:
        for comm in pair:
            assert socket_of(comm).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@on_linux
@pytest.mark.parametrize(("timeout", "seconds"), [("30s", 30), ("10s", 10), ("2 minutes", 120)])
@gen_test()
async def test_the_kernel_disconnects_a_silent_peer_after_the_configured_time(timeout, seconds):
    with config.set({"distributed.comm.timeouts.tcp": timeout}):
        async with TCP.pair() as pair:
            for comm in pair:
                sock = socket_of(comm)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert sock.getsockopt(socket.SOL_TCP, socket.TCP_USER_TIMEOUT) == seconds * 1000
                idle = sock.getsockopt(socket.SOL_TCP, socket.TCP_KEEPIDLE)
                interval = sock.getsockopt(socket.SOL_TCP, socket.TCP_KEEPINTVL)
                count = sock.getsockopt(socket.SOL_TCP, socket.TCP_KEEPCNT)
                assert idle + interval * count == pytest.approx(seconds, abs=max(5, seconds / 10))


@on_linux
@gen_test()
async def test_without_a_timeout_the_kernel_keeps_its_own():
    with config.set({"distributed.comm.timeouts.tcp": None}):
        async with TCP.pair() as pair:
            for comm in pair:
                assert not socket_of(comm).getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@gen_test()
async def test_the_address_of_a_stream_is_its_host_and_port_while_it_is_open():
    async with TCP.pair() as (client, _):
        stream = client.stream
        assert "tcp://" + tcp.get_stream_address(stream) == client.local_address
        client.abort()
        with pytest.raises(CommClosedError, match="the stream is closed and has no address"):
            tcp.get_stream_address(stream)


@pytest.mark.parametrize(
    ("error", "calls"), [(socket.EAI_FAMILY, 1), (socket.EAI_AGAIN, 1), (socket.EAI_NONAME, 2)]
)
@gen_test()
async def test_only_a_name_is_resolved_in_a_thread(monkeypatch, error, calls):
    called = []

    def fail(*args, **kwargs):
        called.append(threading.current_thread() is threading.main_thread())
        raise socket.gaierror(error, "no address")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(socket.gaierror, match="no address"):
        await tcp._getaddrinfo("node1.example.org", 80, family=socket.AF_INET)
    assert called == [True, False][:calls]


@gen_test()
async def test_the_resolver_of_the_client_of_connectors_may_be_replaced(monkeypatch):
    class Hosts(Resolver):
        def initialize(self):
            pass

        async def resolve(self, host, port, family=socket.AF_UNSPEC):
            assert host == "node1.example.org"
            return [(socket.AF_INET, ("127.0.0.1", port))]

    assert isinstance(tcp.TCPConnector.client, TCPClient)
    assert tcp.TLSConnector.client is tcp.TCPConnector.client
    monkeypatch.setattr(tcp.TCPConnector.client, "resolver", Hosts())
    async with listen(LOCALHOST, echo) as listener:
        port = get_address_host_port(listener.contact_address)[1]
        comm = await connect(f"tcp://node1.example.org:{port}")
        await comm.close()


@on_linux
@gen_test()
async def test_the_backlog_is_configured():
    with config.set({"distributed.comm.socket-backlog": 77}):
        listener = await listen(LOCALHOST, echo)
    (sock,) = listener.tcp_server._sockets.values()
    # For a listening socket, tcpi_sacked of struct tcp_info is its backlog.
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    assert struct.unpack_from("=I", info, 28)[0] == 77
    listener.stop()


# Addresses


@gen_test()
async def test_the_default_host_is_where_a_listener_on_all_interfaces_is_contacted():
    listener = await listen("tcp://0.0.0.0:0", echo, default_host="127.0.0.2")
    assert listener.contact_address.startswith("tcp://127.0.0.2:")
    listener.stop()


@gen_test()
async def test_the_default_port_is_for_addresses_without_one():
    port = unused_port()
    listener = await listen("tcp://127.0.0.1", echo, default_port=port)
    assert listener.listen_address == f"tcp://127.0.0.1:{port}"
    listener.stop()


@gen_test()
async def test_a_name_can_be_connected_to():
    listener: Any = await listen(LOCALHOST, echo)
    comm = await connect(f"tcp://localhost:{listener.get_host_port()[1]}")
    await comm.close()
    listener.stop()


@pytest.mark.parametrize("reset", [False, True])
@gen_test()
async def test_connecting_by_name_to_a_peer_that_disconnects_at_once_is_retried(reset):
    # In a thread, since it has to be faster than this event loop.
    accepted = 0
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def hang_up() -> None:
            nonlocal accepted
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                accepted += 1
                if reset:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()

        hanging_up = asyncio.create_task(asyncio.to_thread(hang_up))
        try:
            with pytest.raises(
                OSError, match=f"Timed out trying to connect to tcp://localhost:{port}"
            ):
                await connect(f"tcp://localhost:{port}", timeout=0.3)
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            await hanging_up
    assert accepted > 1


@gen_test()
async def test_an_unknown_name_is_an_error_that_names_it():
    with pytest.raises(OSError, match=r"Timed out trying to connect to tcp://no\.such\.invalid:1"):
        await connect("tcp://no.such.invalid:1", timeout=0.3)


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
@gen_test()
async def test_ipv6():
    listener = await listen("tcp://[::1]:0", echo)
    assert re.fullmatch(r"tcp://\[::1\]:\d+", listener.contact_address)
    comm = await connect(listener.contact_address)
    assert comm.peer_address == listener.contact_address
    assert comm.local_address.startswith("tcp://[::1]:")
    assert comm.same_host
    await comm.write("hello")
    assert await comm.read() == "hello"
    await comm.close()
    listener.stop()


@gen_test()
async def test_listening_at_an_address_of_another_host_is_an_error_that_names_it():
    with pytest.raises(OSError, match=r"cannot listen at tcp://203\.0\.113\.1:0"):
        await listen("tcp://203.0.113.1:0", echo)


def test_the_backend_takes_its_classes_from_attributes():
    class Connector(tcp.TCPConnector):
        pass

    class Listener(tcp.TCPListener):
        pass

    class Backend(tcp.TCPBackend):
        _connector_class = Connector
        _listener_class = Listener

    backend = Backend()
    assert type(backend.get_connector()) is Connector
    assert type(backend.get_listener("127.0.0.1:0", echo, True)) is Listener
