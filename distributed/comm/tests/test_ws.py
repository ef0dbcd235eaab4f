"""The ``ws://`` transport: its bytes, HTTP, shared ports, and hostile peers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketClosedError,
    WebSocketHandler,
    WebSocketProtocol13,
    websocket_connect,
)

from distributed.base import config
from distributed.comm import (
    connect,
    get_address_host,
    get_address_host_port,
    get_local_address_for,
    listen,
    resolve_address,
)
from distributed.comm.core import Comm, CommClosedError, FatalCommClosedError
from distributed.comm.tests.raw_peers import HANDSHAKE, RawPeer, raw_peer, raw_server, resident
from distributed.comm.tests.transports import TRANSPORTS, echo
from distributed.comm.websocket_pings import Turns
from distributed.protocol import dumps, to_serialize
from distributed.tests.environments import run_in
from distributed.utils_test import (
    async_poll_for,
    captured_logger,
    gen_test,
    tls_security,
)

LOCALHOST = "ws://127.0.0.1:0"
WS = TRANSPORTS["ws"]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' /proc and TCP options")


def count(number: int) -> bytes:
    return number.to_bytes(8, "little")


def message(msg: Any) -> list[bytes]:
    """Return the websocket messages that a message consists of."""
    frames = [bytes(frame) for frame in dumps(msg)]
    return [count(len(frames)), *frames]


async def assert_echo(address: str, **kwargs: Any) -> None:
    comm = await connect(address, **kwargs)
    await comm.write("hello")
    assert await comm.read() == "hello"
    await comm.close()


class WebSocketPeer:
    """A client that sends websocket messages, which need not be messages of a comm."""

    def __init__(self, websocket: WebSocketClientConnection) -> None:
        self.websocket = websocket
        self.over = False

    async def send(self, *messages: bytes | str) -> None:
        for data in messages:
            await self.websocket.write_message(data, binary=isinstance(data, bytes))

    async def read(self) -> Any:
        data = await self.websocket.read_message()
        self.over = data is None
        return data

    async def wait_closed(self) -> None:
        """Wait until the comm has closed the connection."""
        while not self.over:
            await self.read()


@asynccontextmanager
async def websocket_peer(address: str) -> AsyncIterator[WebSocketPeer]:
    peer = WebSocketPeer(await websocket_connect(address, max_message_size=2**30))
    try:
        yield peer
    finally:
        peer.websocket.close()
        await peer.wait_closed()


@asynccontextmanager
async def attacked() -> AsyncIterator[tuple[WebSocketPeer, Any]]:
    """Yield a websocket peer that has completed the handshake, and the comm at the other end."""
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with (
        listen(LOCALHOST, accepted.put) as listener,
        websocket_peer(listener.contact_address) as peer,
    ):
        await peer.send(*message(HANDSHAKE))
        assert await peer.read() == count(1)
        await peer.read()
        comm = await accepted.get()
        try:
            yield peer, comm
        finally:
            comm.abort()


class Collector(WebSocketHandler):
    """A websocket server that sends its handshake message and logs what it receives."""

    def initialize(self, **log: Any) -> None:
        self.log = log

    def open(self, *args: str, **kwargs: str) -> None:
        self.log["requests"].append(self.request)
        for data in message(HANDSHAKE):
            self.write_message(data, binary=True)

    def on_message(self, message: str | bytes) -> None:
        self.log["messages"].append(message)

    def on_ping(self, data: bytes) -> None:
        self.log["pings"].append(data)


@asynccontextmanager
async def http_server(*handlers: Any, **kwargs: Any) -> AsyncIterator[tuple[HTTPServer, int]]:
    server = HTTPServer(Application(list(handlers), log_function=lambda handler: None), **kwargs)
    server.listen(0, "127.0.0.1")
    try:
        yield server, next(iter(server._sockets.values())).getsockname()[1]
    finally:
        server.stop()
        await server.close_all_connections()


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, dict[str, list[Any]]]]:
    log: dict[str, list[Any]] = {"requests": [], "messages": [], "pings": []}
    async with http_server((r".*", Collector, log)) as (_, port):
        yield f"ws://127.0.0.1:{port}", log


async def answer_to(address: str, data: bytes) -> bytes:
    """Send bytes to a listener, and return its answer once it has closed."""
    async with raw_peer(address) as peer:
        await peer.send(data)
        return await peer.wait_closed()


# Bytes


@gen_test()
async def test_a_message_is_the_number_of_its_frames_followed_by_the_frames():
    async with collector() as (address, log):
        comm = await connect(address)
        await comm.write({"op": "x"})
        await comm.write({"x": to_serialize(b"abc")})
        await comm.close()
        await async_poll_for(lambda: len(log["messages"]) == 8, timeout=5)
    handshake, first, second = log["messages"][:2], log["messages"][2:4], log["messages"][4:]
    assert handshake[0] == count(1)
    described = set(msgpack.unpackb(handshake[1]))
    assert described - {"features"} == {"compression", "python", "pickle-protocol"}
    assert first == [count(1), msgpack.packb({"op": "x"})]
    assert second[0] == count(3)
    assert msgpack.unpackb(second[1]) == {"x": {"__Serialized__": 1}}
    assert second[3] == b"abc"


@gen_test(config={"distributed.comm.websockets.shard": 1000})
async def test_large_values_are_sent_in_shards():
    async with collector() as (address, log):
        comm = await connect(address)
        await comm.write({"x": to_serialize(b"x" * 2500)})
        await comm.close()
        await async_poll_for(lambda: len(log["messages"]) == 8, timeout=5)
    assert log["messages"][2] == count(5)
    assert [len(data) for data in log["messages"][5:]] == [1000, 1000, 500]


class Memory:
    """An object that is pickled with its data out of band, and unpickled as a memoryview of it."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return memoryview, (pickle.PickleBuffer(self.data),)


@pytest.mark.parametrize("size", [10, 1000, 2500, 3000])
@gen_test(config={"distributed.comm.websockets.shard": 1000})
async def test_received_buffers_are_writable(size):
    async with WS.pair() as (comm, other):
        await comm.write({"x": to_serialize(Memory(bytearray(b"x" * size)))})
        arrived = (await other.read())["x"]
        assert arrived == b"x" * size
        arrived[0] = 0


@gen_test()
async def test_websockets_are_not_compressed():
    async with collector() as (address, log):
        comm = await connect(address)
        await comm.close()
    assert "Sec-Websocket-Extensions" not in log["requests"][0].headers
    async with listen(LOCALHOST, echo) as listener:
        offering = await websocket_connect(listener.contact_address, compression_options={})
        assert offering.protocol is not None
        assert offering.protocol._compressor is None
        offering.close()
        await WebSocketPeer(offering).wait_closed()


# Paths and addresses


@pytest.mark.parametrize("path", ["", "/", "/comm", "/a/b"])
@gen_test()
async def test_a_listener_is_at_its_path(path):
    async with listen(LOCALHOST + path, echo) as listener:
        assert listener.contact_address == listener.listen_address
        assert re.fullmatch(r"ws://127\.0\.0\.1:[1-9]\d*" + path, listener.contact_address)
        comm = await connect(listener.contact_address)
        assert comm.peer_address == listener.contact_address
        assert comm.same_host
        await comm.close()


@gen_test()
async def test_connecting_to_another_path_is_retried_until_the_timeout():
    async with listen(LOCALHOST + "/here", echo) as listener:
        elsewhere = listener.contact_address.replace("here", "there")
        with pytest.raises(OSError, match=r"Timed out .*/there") as caught:
            await connect(elsewhere, timeout=0.3)
        assert "answers 404 Not Found" in str(caught.value.__cause__)


def test_an_address_with_a_path_has_a_host_and_a_port():
    assert get_address_host("ws://127.0.0.1:8786/a/b") == "127.0.0.1"
    assert get_address_host_port("wss://[::1]:8786/a") == ("::1", 8786)
    assert resolve_address("ws://127.0.0.1:8786/a") == "ws://127.0.0.1:8786/a"
    assert get_local_address_for("ws://127.0.0.1:8786/a") == "ws://127.0.0.1"


@gen_test()
async def test_an_address_that_is_in_use_is_an_error_that_names_its_path():
    async with listen(LOCALHOST + "/x", echo) as listener:
        with pytest.raises(OSError, match=f"cannot listen at {listener.listen_address}"):
            await listen(listener.listen_address, echo)


def test_websockets_are_not_imported_before_they_are_used():
    code = """
    import sys
    import distributed.core
    from distributed.comm.registry import backends
    assert "ws" in backends
    assert not {"tornado.websocket", "tornado.httpserver", "tornado.web"} & sys.modules.keys()
    """
    run_in(sys.executable, code, env={"PYTHONPATH": ":".join(sys.path)})


# A port shared with an HTTP application


class Page(RequestHandler):
    def get(self) -> None:
        self.write("a page")


async def page(port: int, path: str = "/", **kwargs: Any) -> str:
    scheme = "https" if kwargs else "http"
    request = HTTPRequest(f"{scheme}://127.0.0.1:{port}{path}", **kwargs)
    client = AsyncHTTPClient(force_instance=True)
    try:
        return (await client.fetch(request)).body.decode()
    finally:
        client.close()


@pytest.mark.parametrize("path", ["", "/", "/comm"])
@gen_test()
async def test_a_port_is_shared_with_an_application(path):
    async with http_server(("/", Page)) as (server, port):
        async with listen(f"ws://127.0.0.1:{port}{path}", echo, http_server=server) as one:
            assert one.contact_address == f"ws://127.0.0.1:{port}{path}"
            await assert_echo(one.contact_address)
            assert await page(port) == "a page"
        assert await page(port) == "a page"


@gen_test()
async def test_the_address_of_a_shared_port_may_omit_the_port():
    async with (
        http_server() as (server, port),
        listen("ws:///comm", echo, http_server=server) as listener,
    ):
        assert listener.contact_address == f"ws://127.0.0.1:{port}/comm"
        await assert_echo(listener.contact_address)


@gen_test()
async def test_listeners_share_a_port_at_different_paths():
    async with (
        http_server() as (server, _),
        listen("ws:///one", echo, http_server=server) as one,
    ):
        two = await listen("ws:///two", echo, http_server=server)
        await assert_echo(one.contact_address)
        await assert_echo(two.contact_address)
        two.stop()
        await assert_echo(one.contact_address)
        with pytest.raises(OSError, match="Timed out") as caught:
            await connect(two.contact_address, timeout=0.2)
        assert "404" in str(caught.value.__cause__)


@gen_test()
async def test_a_path_can_be_listened_at_again():
    async with http_server() as (server, _):
        for _ in range(2):
            async with listen("ws:///comm", echo, http_server=server) as listener:
                await assert_echo(listener.contact_address)


class Owner:
    """An object with an HTTP server and a handler, like the roles of the original."""

    def __init__(self, http_server: HTTPServer) -> None:
        self.http_server = http_server

    async def handle_comm(self, comm: Comm) -> None:
        await echo(comm)


@gen_test()
async def test_a_method_as_handler_shares_the_http_server_of_its_object_on_the_same_port():
    async with http_server((r"/page", Page)) as (server, port):
        owner = Owner(server)
        async with listen(f"ws://127.0.0.1:{port}", owner.handle_comm) as listener:
            await assert_echo(listener.contact_address)
            assert await page(port, "/page") == "a page"
        async with listen(LOCALHOST, owner.handle_comm) as listener:
            assert get_address_host_port(listener.contact_address)[1] != port
            await assert_echo(listener.contact_address)


@gen_test()
async def test_an_encrypted_port_is_shared():
    tls = tls_security()
    context = tls.get_listen_args("scheduler")["ssl_context"]
    trusting = tls.get_connection_args("client")["ssl_context"]
    async with (
        http_server(("/", Page), ssl_options=context) as (server, port),
        listen("wss:///comm", echo, http_server=server) as listener,
    ):
        await assert_echo(listener.contact_address, **tls.get_connection_args("client"))
        assert await page(port, ssl_options=trusting) == "a page"


@gen_test()
async def test_an_encrypted_listener_encrypts_the_port_that_it_shares():
    tls = tls_security()
    context = tls.get_listen_args("scheduler")["ssl_context"]
    trusting = tls.get_connection_args("client")["ssl_context"]
    with_keys = tls.get_connection_args("client")
    for own in (None, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)):
        async with http_server((r"/page", Page), ssl_options=own) as (server, port):
            owner = Owner(server)
            address = f"wss://127.0.0.1:{port}"
            async with listen(address, owner.handle_comm, ssl_context=context) as listener:
                assert listener.server is server
                await assert_echo(listener.contact_address, **with_keys)
                assert await page(port, "/page", ssl_options=trusting) == "a page"
                # The context of the listener also decides which peers may connect.
                keyless = ssl.create_default_context(cafile=tls.tls_ca_file)
                # Which error it is depends on the version of TLS and on the time.
                with pytest.raises(OSError):  # noqa: PT011
                    await page(port, "/page", ssl_options=keyless)


@gen_test()
async def test_the_tornado_objects_of_a_comm_and_a_listener_are_public():
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    listener = await listen(LOCALHOST, accepted.put)
    assert isinstance(listener.server, HTTPServer)
    client = await connect(listener.contact_address)
    server = await accepted.get()
    assert isinstance(client.sock, WebSocketClientConnection)
    assert isinstance(server.sock, WebSocketHandler)
    for comm in (client, server):
        comm.abort()
        assert comm.sock is None
    listener.stop()
    assert listener.server is None


@gen_test()
async def test_an_http_server_that_cannot_be_shared_is_an_error_with_the_reason():
    async with http_server() as (server, _):
        with pytest.raises(ValueError, match=r"port 1 with an HTTP server that listens at \[\d+\]"):
            await listen("ws://127.0.0.1:1", echo, http_server=server)
        with pytest.raises(ValueError, match=r"wss:// cannot share .* not encrypted"):
            await listen("wss://127.0.0.1", echo, http_server=server)
    bare = HTTPServer(lambda request: None)
    with pytest.raises(TypeError, match=r"does not serve a tornado\.web\.Application"):
        await listen("ws://127.0.0.1", echo, http_server=bare)


# Through HTTP


@gen_test()
async def test_the_request_may_have_more_headers():
    async with collector() as (address, log):
        headers = {"Authorization": "Bearer abc"}
        comm = await connect(address, extra_conn_args={"headers": headers})
        await comm.close()
    assert log["requests"][0].headers["Authorization"] == "Bearer abc"


@pytest.mark.parametrize(
    ("kwargs", "host"),
    [
        ({}, r"127\.0\.0\.1:\d+"),
        ({"server_hostname": "a.example"}, r"a\.example"),
        (
            {"server_hostname": "a.example", "extra_conn_args": {"headers": {"Host": "b.example"}}},
            r"b\.example",
        ),
    ],
)
@gen_test()
async def test_the_name_of_the_server_is_the_host_of_the_request(kwargs, host):
    async with collector() as (address, log):
        comm = await connect(address, **kwargs)
        await comm.close()
    assert re.fullmatch(host, log["requests"][0].headers["Host"])


@gen_test()
async def test_pages_of_other_sites_cannot_open_a_websocket():
    async with listen(LOCALHOST, echo) as listener:
        request = HTTPRequest(listener.contact_address, headers={"Origin": "http://evil.example"})
        with pytest.raises(HTTPClientError, match="403"):
            await websocket_connect(request)


@gen_test()
async def test_a_request_for_a_page_is_refused():
    async with listen(LOCALHOST, echo) as listener:
        with pytest.raises(HTTPClientError, match="400"):
            await page(get_address_host_port(listener.contact_address)[1])


@gen_test()
async def test_an_idle_connection_sends_pings():
    async with collector() as (address, log):
        with config.set({"distributed.comm.timeouts.tcp": "20ms"}):
            comm = await connect(address)
        await async_poll_for(lambda: len(log["pings"]) >= 3, timeout=5)
        await comm.close()


class FakeWebsocket:
    """A websocket whose turns are called by the test."""

    def __init__(self, sent: int | None = 0) -> None:
        self.sent = sent
        self.pings = 0
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def bytes_sent(self) -> int | None:
        return self.sent

    def send_ping(self) -> None:
        self.pings += 1


@gen_test()
async def test_the_websockets_of_an_event_loop_share_one_timer():
    loop = asyncio.get_running_loop()
    with config.set({"distributed.comm.timeouts.tcp": "1h"}):
        async with listen("ws://127.0.0.1:0", lambda comm: comm.read()) as listener:
            comms = [await connect(listener.contact_address) for _ in range(10)]
            timers = [handle for handle in loop._scheduled if not handle.cancelled()]
            assert len([handle for handle in timers if handle.when() > loop.time() + 600]) == 1
            await asyncio.gather(*(comm.close() for comm in comms))
    timers = [handle for handle in loop._scheduled if not handle.cancelled()]
    assert [handle for handle in timers if handle.when() > loop.time() + 600] == []


@gen_test()
async def test_only_idle_websockets_get_pings():
    turns = Turns(0.001)
    idle, busy, waiting = FakeWebsocket(), FakeWebsocket(), FakeWebsocket(None)
    many = [FakeWebsocket() for _ in range(250)]
    closing = FakeWebsocket()
    closing.closing = True
    for websocket in (idle, busy, waiting, closing, *many):
        turns.add(websocket)
    for _ in range(3):
        pings = idle.pings
        busy.sent += 1
        await async_poll_for(lambda pings=pings: idle.pings > pings, timeout=5, period=0)
    await async_poll_for(lambda: all(each.pings for each in many), timeout=5)
    assert busy.pings <= idle.pings - 3
    assert waiting.pings == closing.pings == 0
    for websocket in (idle, busy, waiting, *many):
        turns.discard(websocket)
    assert turns._timer is None


@gen_test()
async def test_a_peer_that_does_not_answer_pings_stays_connected():
    pings = asyncio.Event()

    async def serve(peer: RawPeer) -> None:
        request = await peer.read_until(b"\r\n\r\n")
        (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", request)
        accept = WebSocketProtocol13.compute_accept_value(key)
        await peer.send(ACCEPT + b"Upgrade: websocket\r\n")
        await peer.send(f"Sec-Websocket-Accept: {accept}\r\n\r\n".encode())
        for data in message(HANDSHAKE):
            await peer.send(bytes([0x82, len(data)]) + data)
        received = b""
        while data := await peer.receive(2**16):
            received += data
            if received.count(b"\x89\x80") >= 5:
                pings.set()
        peer.close()

    async with raw_server(serve) as where:
        with config.set({"distributed.comm.timeouts.tcp": "40ms"}):
            comm = await connect(f"ws://{where}")
            await pings.wait()
            assert not comm.closed()
            await comm.close()


@on_linux
@gen_test(config={"distributed.comm.timeouts.tcp": "17s"})
async def test_the_kernel_disconnects_a_silent_peer_after_the_configured_time():
    async with WS.pair() as ends:
        for end in ends:
            sock = end._stream.socket
            assert sock.getsockopt(socket.SOL_TCP, socket.TCP_USER_TIMEOUT) == 17_000
            assert sock.getsockopt(socket.SOL_TCP, socket.TCP_NODELAY)


# Closing


@gen_test()
async def test_closing_with_unread_messages_loses_no_written_message():
    async with attacked() as (peer, comm):
        await peer.send(*[data for i in range(20) for data in message(b"x" * 1000)])
        await async_poll_for(lambda: comm._inbox._messages, timeout=5)
        await comm.write("the last word")
        closing = asyncio.create_task(comm.close())
        assert await peer.read() == count(1)
        assert msgpack.unpackb(await peer.read()) == "the last word"
        assert await peer.read() is None
        await closing
        assert peer.websocket.close_code == 1000


@gen_test()
async def test_closing_does_not_wait_long_for_a_close_frame():
    async with attacked() as (peer, comm):
        # Tornado stops receiving while messages are unread, so the peer does not answer the close.
        await comm.write(1)
        await comm.write(2)
        await comm.write(3)
        await comm.close()
        assert await peer.read() == count(1)


@gen_test()
async def test_the_close_code_and_reason_of_the_peer_are_in_the_error():
    async with attacked() as (peer, comm):
        peer.websocket.close(4000, "enough of this")
        with pytest.raises(CommClosedError, match=r"4000 .*enough of this"):
            await comm.read()
        assert comm.closed()


@gen_test()
async def test_closing_in_the_middle_of_a_message_is_an_error_that_says_so():
    async with attacked() as (peer, comm):
        await peer.send(count(3), b"\x80")
        peer.websocket.close()
        with pytest.raises(CommClosedError, match="in the middle of a message"):
            await comm.read()


# Hostile peers, after the handshake

LIES = {
    "no frames": ([count(0)], "no frames"),
    "more frames than allowed": ([count(2**63)], "distributed.comm.max-frames"),
    "a short count": ([b"1234567"], "8 bytes, and not with 7 bytes"),
    "a long count": ([bytes(9)], "8 bytes, and not with 9 bytes"),
    "a count as text": (["12345678"], "not with 8 characters"),
    "a frame as text": ([count(1), "frame"], "text"),
}


@pytest.mark.parametrize(("data", "why"), LIES.values(), ids=LIES.keys())
@gen_test()
async def test_an_invalid_message_closes_the_comm_with_the_reason(data, why):
    async with attacked() as (peer, comm):
        await peer.send(*data)
        with pytest.raises(CommClosedError, match=re.escape(why)):
            await comm.read()
        assert comm.closed()
        await peer.wait_closed()


@pytest.mark.parametrize("sizes", [[2**20 + 1], [2**19, 2**19, 1]], ids=["one", "sum"])
@gen_test(config={"distributed.comm.max-message-size": "1MiB"})
async def test_a_message_above_the_limit_is_refused(sizes):
    async with attacked() as (peer, comm):
        with contextlib.suppress(OSError, WebSocketClosedError):
            await peer.send(count(len(sizes)), *[bytes(size) for size in sizes])
        with pytest.raises(
            CommClosedError, match=r"distributed\.comm\.max-message-size.*1,048,576"
        ):
            await comm.read()
        await peer.wait_closed()


@gen_test(config={"distributed.comm.max-message-size": "1MiB"})
async def test_a_message_at_the_limit_is_read():
    async with attacked() as (peer, comm):
        frame = dumps(bytes(2**20 - 5))[0]
        assert len(frame) == 2**20
        await peer.send(count(1), bytes(frame))
        assert len(await comm.read()) == 2**20 - 5


@gen_test()
async def test_concurrent_writers_do_not_mix_their_messages():
    async with listen(LOCALHOST, echo) as listener:
        comm = await connect(listener.contact_address)
        sent = [[i, to_serialize(bytes([i]) * 10_000_000)] for i in range(4)]
        writing = [asyncio.create_task(comm.write(msg)) for msg in sent]
        for i in range(4):
            number, data = await comm.read()
            assert (number, bytes(data)) == (i, bytes([i]) * 10_000_000)
        await asyncio.gather(*writing)
        await comm.close()


@gen_test()
async def test_unread_messages_do_not_fill_the_memory():
    async with attacked() as (peer, comm):

        async def send_all() -> None:
            for _ in range(500):
                await peer.send(*message(bytes(100_000)))

        sending = asyncio.create_task(send_all())
        done, _ = await asyncio.wait({sending}, timeout=0.5)
        assert not done
        assert comm._inbox._size < 1_000_000
        for _ in range(500):
            assert len(await comm.read()) == 100_000
        await sending


@gen_test()
async def test_a_peer_that_sends_without_end_does_not_block_the_event_loop():
    async with attacked() as (peer, comm):
        count_read = 0

        async def read_forever() -> None:
            nonlocal count_read
            while True:
                await comm.read()
                count_read += 1

        sending = [
            peer.websocket.write_message(data, binary=True)
            for i in range(20_000)
            for data in message(i)
        ]
        reading = asyncio.create_task(read_forever())
        longest = 0
        while count_read < 5000:
            before = count_read
            await asyncio.sleep(0)
            longest = max(longest, count_read - before)
        assert longest <= 100
        reading.cancel()
        await asyncio.gather(reading, *sending, return_exceptions=True)


@on_linux
@gen_test()
async def test_a_length_without_data_costs_no_memory():
    async with attacked() as (peer, comm):
        await peer.send(count(1))
        before = resident()
        reading = asyncio.create_task(comm.read())
        assert peer.websocket.protocol is not None
        stream: Any = peer.websocket.protocol.stream
        await stream.write(b"\x82\xff" + (2**40).to_bytes(8, "big") + bytes(4 + 100_000))
        done, _ = await asyncio.wait({reading}, timeout=0.2)
        assert not done
        assert resident() - before < 32 * 2**20
        reading.cancel()
        await asyncio.wait({reading})
        stream.close()


@gen_test()
async def test_a_length_larger_than_any_memory_is_refused():
    async with attacked() as (peer, comm):
        assert peer.websocket.protocol is not None
        stream: Any = peer.websocket.protocol.stream
        await stream.write(b"\x82\xff" + b"\xff" * 8)
        with pytest.raises(CommClosedError, match="larger than any memory"):
            await comm.read()
        await peer.wait_closed()


# Hostile peers, before the handshake

GARBAGE = {
    "tcp": count(58) + count(1) + count(42),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(100)),
    "zeros": bytes(64),
    "text": b"hello, is this HTTP?\r\n",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
@gen_test(config={"distributed.comm.timeouts.handshake": "1h"})
async def test_bytes_that_are_not_http_are_refused_at_once_and_logged_once(data):
    with (
        captured_logger("distributed.comm", level=logging.INFO, propagate=False) as log,
        captured_logger("tornado", level=logging.INFO, propagate=False) as tornado_log,
    ):
        async with listen(LOCALHOST, echo) as listener:
            assert b"400" in await answer_to(listener.contact_address, data)
            await assert_echo(listener.contact_address)
    assert log.getvalue().count("does not speak HTTP") == 1
    assert log.getvalue().count("\n") == 1
    assert tornado_log.getvalue() == ""


@pytest.mark.parametrize(
    "data", [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n"]
)
@gen_test(config={"distributed.comm.timeouts.handshake": "100ms"})
async def test_half_a_request_is_closed_at_the_deadline(data):
    with captured_logger("distributed.comm", level=logging.INFO) as log:
        async with listen(LOCALHOST, echo) as listener:
            assert await answer_to(listener.contact_address, data) == b""
    assert log.getvalue().count("distributed.comm.timeouts.handshake") == 1


@gen_test(config={"distributed.comm.timeouts.handshake": "100ms"})
async def test_a_silent_websocket_is_closed_at_the_deadline():
    with captured_logger("distributed.comm", level=logging.INFO) as log:
        async with (
            listen(LOCALHOST, echo) as listener,
            websocket_peer(listener.contact_address) as peer,
        ):
            await peer.wait_closed()
    assert log.getvalue().count("distributed.comm.timeouts.handshake") == 1


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([count(2), b"x", b"y"], "frames"),
        ([count(1), b"x" * 100_000], "distributed.comm.max-handshake-size"),
        ([b"x" * 100_000], "distributed.comm.max-handshake-size"),
        ([count(1), b"\xc1"], "plain msgpack"),
        (message({"x": to_serialize(1)}), "frames"),
        (message([1, 2]), "not a map"),
    ],
    ids=["frames", "large", "large at once", "no msgpack", "serialized", "no map"],
)
@gen_test()
async def test_a_handshake_that_is_not_one_small_frame_of_plain_values_is_refused(messages, why):
    handled: list[Comm] = []
    with captured_logger("distributed.comm", level=logging.INFO) as log:
        async with (
            listen(LOCALHOST, handled.append) as listener,
            websocket_peer(listener.contact_address) as peer,
        ):
            with contextlib.suppress(OSError, WebSocketClosedError):
                await peer.send(*messages)
            await peer.wait_closed()
            await async_poll_for(lambda: log.getvalue(), timeout=5)
    assert handled == []
    assert why in log.getvalue()
    assert log.getvalue().count("failed before it began") == 1


@gen_test()
async def test_a_first_request_larger_than_a_handshake_may_follow_it_at_once():
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with (
        listen(LOCALHOST, accepted.put) as listener,
        websocket_peer(listener.contact_address) as peer,
    ):
        await peer.send(*message(HANDSHAKE), *message(b"x" * 1_000_000))
        comm = await accepted.get()
        assert len(await comm.read()) == 1_000_000
        comm.abort()


@gen_test()
async def test_a_listener_that_stops_closes_connections_without_a_websocket():
    listener = await listen(LOCALHOST, echo)
    answer = asyncio.create_task(answer_to(listener.contact_address, b"GET / HTTP/1.1\r\n"))
    await async_poll_for(lambda: listener._opening, timeout=5)
    listener.stop()
    assert await answer == b""


# Servers without websockets

ACCEPT = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
OTHER_SERVERS = {
    "tcp": (GARBAGE["tcp"], "does not speak HTTP"),
    "tls": (bytes([21, 3, 3, 0, 2, 2, 70]), "speaks? TLS|HTTP but TLS"),
    "smtp": (b"220 mail.example ESMTP\r\n", "does not speak HTTP"),
    "another accept": (
        ACCEPT + b"Upgrade: websocket\r\nSec-Websocket-Accept: abc\r\n\r\n",
        "does not belong to the request",
    ),
    "another protocol": (ACCEPT + b"Upgrade: h2c\r\n\r\n", "another protocol"),
    "a page": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "does not open a websocket"),
    "forbidden": (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "403 Forbidden"),
    "elsewhere": (
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        "400 Bad Request",
    ),
}


def answering(answer: bytes) -> Callable[[RawPeer], Any]:
    """Return a server that sends *answer* to an HTTP request."""

    async def serve(peer: RawPeer) -> None:
        await peer.read_until(b"\r\n\r\n")
        await peer.send(answer)

    return serve


@pytest.mark.parametrize(("answer", "why"), OTHER_SERVERS.values(), ids=OTHER_SERVERS.keys())
@gen_test()
async def test_connecting_to_a_server_without_websockets_fails_without_a_retry(answer, why):
    with captured_logger("tornado", level=logging.INFO, propagate=False) as tornado_log:
        async with raw_server(answering(answer)) as where:
            with pytest.raises(FatalCommClosedError, match=why) as info:
                await connect(f"ws://{where}/x", timeout=20)
            assert f"ws://{where}/x" in str(info.value)
    assert tornado_log.getvalue() == ""


@gen_test()
async def test_a_proxy_whose_server_is_unavailable_is_retried():
    requests = 0

    class Proxy(RequestHandler):
        def get(self) -> None:
            nonlocal requests
            requests += 1
            self.set_status(503)

    async with http_server(("/comm", Proxy)) as (server, port):
        connecting = asyncio.create_task(connect(f"ws://127.0.0.1:{port}/comm", timeout=20))
        await async_poll_for(lambda: requests >= 2, timeout=5)
        async with await listen("ws:///comm", echo, http_server=server):
            await (await connecting).close()


@pytest.mark.parametrize("answer", [b"", b"H", b"HTTP/1.1 101 Sw"])
@gen_test()
async def test_connecting_to_a_silent_server_times_out(answer):
    async with raw_server(answering(answer)) as where:
        with pytest.raises(OSError, match=f"Timed out trying to connect to ws://{where}"):
            await connect(f"ws://{where}", timeout=0.2)
