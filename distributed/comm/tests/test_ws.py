"""What is websockets' own: bytes, HTTP around them, shared ports, and peers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
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

from distributed import Server, rpc
from distributed.base import config
from distributed.comm import (
    connect,
    get_address_host,
    get_address_host_port,
    get_local_address_for,
    listen,
    resolve_address,
    ws,
)
from distributed.comm.core import Comm, CommClosedError, FatalCommClosedError
from distributed.comm.registry import backends
from distributed.comm.tests.test_tcp import resident
from distributed.comm.tests.transports import echo
from distributed.protocol import dumps, to_serialize
from distributed.tests.environments import clean_environ, read_address, run_in
from distributed.tests.test_original import CLIENT, SERVER
from distributed.utils_test import (
    async_poll_for,
    captured_logger,
    gen_test,
    popen,
    tls_security,
)

LOCALHOST = "ws://127.0.0.1:0"
HANDSHAKE = {"compression": None, "python": (3, 11, 0), "pickle-protocol": 5}

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")


def count(number: int) -> bytes:
    return number.to_bytes(8, "little")


def message(msg: Any) -> list[bytes]:
    """Return the websocket messages of a message."""
    frames = [bytes(frame) for frame in dumps(msg)]
    return [count(len(frames)), *frames]


async def assert_echo(address: str, **kwargs: Any) -> None:
    comm = await connect(address, **kwargs)
    await comm.write("hello")
    assert await comm.read() == "hello"
    await comm.close()


class RawPeer:
    """A client that speaks websocket, but no messages."""

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

    async def is_closed(self) -> bool:
        """Wait until the comm's side has closed."""
        while not self.over:
            await self.read()
        return True


@asynccontextmanager
async def raw_peer(address: str) -> AsyncIterator[RawPeer]:
    peer = RawPeer(await websocket_connect(address, max_message_size=2**30))
    try:
        yield peer
    finally:
        peer.websocket.close()
        await peer.is_closed()


@asynccontextmanager
async def past_the_handshake(**kwargs: Any) -> AsyncIterator[tuple[RawPeer, Comm]]:
    """Connect a raw peer to a comm."""
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with (
        await listen(LOCALHOST, accepted.put, **kwargs) as listener,
        raw_peer(listener.contact_address) as peer,
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
    """A server that speaks websocket and says its part of the handshake, and notes what comes."""

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


@asynccontextmanager
async def raw_server(answer: bytes, after_request: bool = True) -> AsyncIterator[str]:
    """Listen with a server that speaks no websocket; give its address without the scheme."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if after_request:
                await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await reader.read()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await server.wait_closed()


async def answer_to(address: str, data: bytes) -> bytes:
    """Send bytes to a listener and return all that it answers until it closes."""
    host, port = get_address_host_port(address)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


# Bytes


@gen_test()
async def test_a_message_is_the_number_of_its_frames_and_then_the_frames():
    async with collector() as (address, log):
        comm = await connect(address)
        await comm.write({"op": "x"})
        await comm.write({"x": to_serialize(b"abc")})
        await comm.close()
        await async_poll_for(lambda: len(log["messages"]) == 8, timeout=5)
    handshake, first, second = log["messages"][:2], log["messages"][2:4], log["messages"][4:]
    assert handshake[0] == count(1)
    assert set(msgpack.unpackb(handshake[1])) == {"compression", "python", "pickle-protocol"}
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
    """Travels as a buffer next to its pickle, and arrives as what that has become."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return memoryview, (pickle.PickleBuffer(self.data),)


@pytest.mark.parametrize("size", [10, 1000, 2500, 3000])
@gen_test(config={"distributed.comm.websockets.shard": 1000})
async def test_arrived_memory_may_be_written_to(size):
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with await listen(LOCALHOST, accepted.put) as listener:
        comm = await connect(listener.contact_address)
        other = await accepted.get()
        await comm.write({"x": to_serialize(Memory(bytearray(b"x" * size)))})
        arrived = (await other.read())["x"]
        assert arrived == b"x" * size
        arrived[0] = 0
        await comm.close()
        other.abort()


@gen_test()
async def test_websockets_are_not_compressed():
    async with collector() as (address, log):
        comm = await connect(address)
        await comm.close()
    assert "Sec-Websocket-Extensions" not in log["requests"][0].headers
    async with await listen(LOCALHOST, echo) as listener:
        offering = await websocket_connect(listener.contact_address, compression_options={})
        assert offering.protocol is not None
        assert offering.protocol._compressor is None
        offering.close()
        await RawPeer(offering).is_closed()


# With the original


@contextlib.contextmanager
def serving(python):
    with popen(
        [str(python), "-c", SERVER.replace("tcp://", "ws://")],
        capture_output=True,
        stdin=subprocess.PIPE,
        env=clean_environ(),
        cwd=None if python == sys.executable else "/",
    ) as server:
        yield read_address(server.stdout)
        server.stdin.close()
        assert server.wait(timeout=30) == 0


def test_the_original_calls_this_server(original_python):
    with serving(sys.executable) as address:
        assert address.startswith("ws://")
        done = run_in(original_python, ["-c", CLIENT, address])
    assert done.stdout == "all well\n"


def test_this_package_calls_the_original(original_python):
    with serving(original_python) as address:
        assert address.startswith("ws://")
        done = run_in(sys.executable, ["-Werror", "-c", CLIENT, address])
    assert (done.stdout, done.stderr) == ("all well\n", "")


# Paths and addresses


@pytest.mark.parametrize("path", ["", "/", "/comm", "/a/b"])
@gen_test()
async def test_a_listener_is_at_its_path(path):
    async with await listen(LOCALHOST + path, echo) as listener:
        assert listener.contact_address == listener.listen_address
        assert re.fullmatch(r"ws://127\.0\.0\.1:[1-9]\d*" + path, listener.contact_address)
        comm = await connect(listener.contact_address)
        assert comm.peer_address == listener.contact_address
        assert comm.same_host
        await comm.close()


@pytest.mark.parametrize("address", ["ws://", "ws://:0", "ws://0.0.0.0/comm"])
@gen_test()
async def test_a_listener_on_all_interfaces_is_contacted_at_one(address):
    async with await listen(address, echo) as listener:
        assert get_address_host(listener.contact_address) not in ("", "0.0.0.0", "::")
        await assert_echo(listener.contact_address)


@gen_test()
async def test_nothing_is_at_another_path_and_one_may_come_to_be_there():
    async with await listen(LOCALHOST + "/here", echo) as listener:
        elsewhere = listener.contact_address.replace("here", "there")
        with pytest.raises(OSError, match=r"Timed out .*/there.* answers 404 Not Found"):
            await connect(elsewhere, timeout=0.3)


def test_an_address_with_a_path_has_a_host_and_a_port():
    assert get_address_host("ws://127.0.0.1:8786/a/b") == "127.0.0.1"
    assert get_address_host_port("wss://[::1]:8786/a") == ("::1", 8786)
    assert resolve_address("ws://127.0.0.1:8786/a") == "ws://127.0.0.1:8786/a"
    assert get_local_address_for("ws://127.0.0.1:8786/a") == "ws://127.0.0.1"


@gen_test()
async def test_an_address_that_is_in_use_is_named():
    async with await listen(LOCALHOST + "/x", echo) as listener:
        with pytest.raises(OSError, match=f"cannot listen at {listener.listen_address}"):
            await listen(listener.listen_address, echo)


def test_the_backends_are_registered():
    assert isinstance(backends["ws"], ws.WSBackend)
    assert isinstance(backends["wss"], ws.WSSBackend)


def test_websockets_are_not_imported_before_they_are_used():
    code = """
    import sys
    import distributed.core
    from distributed.comm.registry import backends
    assert "ws" in backends
    assert not {"tornado.websocket", "tornado.httpserver", "tornado.web"} & sys.modules.keys()
    """
    run_in(sys.executable, code, env={"PYTHONPATH": ":".join(sys.path)})


# Calls


@gen_test()
async def test_a_server_is_called_at_a_path():
    async with Server({"add": lambda x, y: x + y}) as server:
        await server.listen(LOCALHOST + "/rpc")
        assert server.address.endswith("/rpc")
        async with rpc(server.address) as remote:
            assert await remote.add(x=1, y=2) == 3


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
        async with await listen(f"ws://127.0.0.1:{port}{path}", echo, http_server=server) as one:
            assert one.contact_address == f"ws://127.0.0.1:{port}{path}"
            await assert_echo(one.contact_address)
            assert await page(port) == "a page"
        assert await page(port) == "a page"


@gen_test()
async def test_a_shared_port_need_not_be_named():
    async with (
        http_server() as (server, port),
        await listen("ws:///comm", echo, http_server=server) as listener,
    ):
        assert listener.contact_address == f"ws://127.0.0.1:{port}/comm"
        await assert_echo(listener.contact_address)


@gen_test()
async def test_listeners_share_a_port_at_different_paths():
    async with (
        http_server() as (server, _),
        await listen("ws:///one", echo, http_server=server) as one,
    ):
        two = await listen("ws:///two", echo, http_server=server)
        await assert_echo(one.contact_address)
        await assert_echo(two.contact_address)
        two.stop()
        await assert_echo(one.contact_address)
        with pytest.raises(OSError, match="404"):
            await connect(two.contact_address, timeout=0.2)


@gen_test()
async def test_a_path_that_was_given_back_can_be_taken_again():
    async with http_server() as (server, _):
        for _ in range(2):
            async with await listen("ws:///comm", echo, http_server=server) as listener:
                await assert_echo(listener.contact_address)


class Owner:
    """Has an HTTP server, as the roles of the original do."""

    def __init__(self, http_server: HTTPServer) -> None:
        self.http_server = http_server

    async def handle_comm(self, comm: Comm) -> None:
        await echo(comm)


@gen_test()
async def test_the_server_of_the_handler_s_object_is_shared_where_the_port_is_its():
    async with http_server((r"/page", Page)) as (server, port):
        owner = Owner(server)
        async with await listen(f"ws://127.0.0.1:{port}", owner.handle_comm) as listener:
            await assert_echo(listener.contact_address)
            assert await page(port, "/page") == "a page"
        async with await listen(LOCALHOST, owner.handle_comm) as listener:
            assert get_address_host_port(listener.contact_address)[1] != port
            await assert_echo(listener.contact_address)


@gen_test()
async def test_an_encrypted_port_is_shared():
    tls = tls_security()
    context = tls.get_listen_args("scheduler")["ssl_context"]
    trusting = tls.get_connection_args("client")["ssl_context"]
    async with (
        http_server(("/", Page), ssl_options=context) as (server, port),
        await listen("wss:///comm", echo, http_server=server) as listener,
    ):
        await assert_echo(listener.contact_address, **tls.get_connection_args("client"))
        assert await page(port, ssl_options=trusting) == "a page"


@gen_test()
async def test_a_server_that_cannot_be_shared_is_told_why():
    async with http_server() as (server, _):
        with pytest.raises(ValueError, match=r"port 1 with an HTTP server that listens at \[\d+\]"):
            await listen("ws://127.0.0.1:1", echo, http_server=server)
        with pytest.raises(ValueError, match=r"wss:// cannot share .* not encrypted"):
            await listen("wss://127.0.0.1", echo, http_server=server)
    bare = HTTPServer(lambda request: None)
    with pytest.raises(TypeError, match=r"no tornado\.web\.Application"):
        await listen("ws://127.0.0.1", echo, http_server=bare)


# Through HTTP


@gen_test()
async def test_the_request_may_have_headers_for_a_proxy():
    async with collector() as (address, log):
        headers = {"Authorization": "Bearer abc"}
        comm = await connect(address, extra_conn_args={"headers": headers})
        await comm.close()
    assert log["requests"][0].headers["Authorization"] == "Bearer abc"


@gen_test()
async def test_pages_of_other_sites_open_no_websocket():
    async with await listen(LOCALHOST, echo) as listener:
        request = HTTPRequest(listener.contact_address, headers={"Origin": "http://evil.example"})
        with pytest.raises(HTTPClientError, match="403"):
            await websocket_connect(request)


@gen_test()
async def test_a_browser_is_told_that_there_is_only_a_websocket():
    async with await listen(LOCALHOST, echo) as listener:
        with pytest.raises(HTTPClientError, match="400"):
            await page(get_address_host_port(listener.contact_address)[1])


@gen_test()
async def test_a_connection_that_is_idle_is_kept_busy():
    async with collector() as (address, log):
        with config.set({"distributed.comm.timeouts.tcp": "20ms"}):
            comm = await connect(address)
        await async_poll_for(lambda: len(log["pings"]) >= 3, timeout=5)
        await comm.close()


@gen_test()
async def test_a_peer_that_answers_no_pings_is_not_given_up():
    pings = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", request)
        accept = WebSocketProtocol13.compute_accept_value(key)
        writer.write(ACCEPT + b"Upgrade: websocket\r\n")
        writer.write(f"Sec-Websocket-Accept: {accept}\r\n\r\n".encode())
        for data in message(HANDSHAKE):
            writer.write(bytes([0x82, len(data)]) + data)
        received = b""
        while data := await reader.read(2**16):
            received += data
            if received.count(b"\x89\x80") >= 5:
                pings.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with config.set({"distributed.comm.timeouts.tcp": "40ms"}):
        comm = await connect(address)
        await pings.wait()
        assert not comm.closed()
        await comm.close()
    server.close()
    await server.wait_closed()


@on_linux
@gen_test(config={"distributed.comm.timeouts.tcp": "17s"})
async def test_a_host_that_is_gone_is_given_up_after_the_configured_time():
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    async with await listen(LOCALHOST, accepted.put) as listener:
        comm: Any = await connect(listener.contact_address)
        other = await accepted.get()
        for end in (comm, other):
            sock = end._stream.socket
            assert sock.getsockopt(socket.SOL_TCP, socket.TCP_USER_TIMEOUT) == 17_000
            assert sock.getsockopt(socket.SOL_TCP, socket.TCP_NODELAY)
            end.abort()


# Closing


@gen_test()
async def test_what_was_written_arrives_though_its_writer_has_not_read_all():
    async with past_the_handshake() as (peer, comm):
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
async def test_a_peer_that_does_not_confirm_the_end_is_waited_for_only_briefly():
    async with past_the_handshake() as (peer, comm):
        # Nobody takes what Tornado receives for this peer, so that it does not see the end.
        await comm.write(1)
        await comm.write(2)
        await comm.write(3)
        async with asyncio.timeout(5):
            await comm.close()
        assert await peer.read() == count(1)


@gen_test()
async def test_the_reason_for_which_a_peer_closes_is_told():
    async with past_the_handshake() as (peer, comm):
        peer.websocket.close(4000, "enough of this")
        with pytest.raises(CommClosedError, match=r"4000 .*enough of this"):
            await comm.read()
        assert comm.closed()


@gen_test()
async def test_a_peer_that_closes_in_the_middle_of_a_message_is_told_as_that():
    async with past_the_handshake() as (peer, comm):
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
async def test_what_is_no_message_closes_the_comm_with_the_reason(data, why):
    async with past_the_handshake() as (peer, comm):
        await peer.send(*data)
        with pytest.raises(CommClosedError, match=re.escape(why)):
            await comm.read()
        assert comm.closed()
        assert await peer.is_closed()


@pytest.mark.parametrize("sizes", [[2**20 + 1], [2**19, 2**19, 1]], ids=["one", "sum"])
@gen_test(config={"distributed.comm.max-message-size": "1MiB"})
async def test_a_message_above_the_limit_is_refused(sizes):
    async with past_the_handshake() as (peer, comm):
        with contextlib.suppress(OSError, WebSocketClosedError):
            await peer.send(count(len(sizes)), *[bytes(size) for size in sizes])
        with pytest.raises(
            CommClosedError, match=r"distributed\.comm\.max-message-size.*1,048,576"
        ):
            await comm.read()
        assert await peer.is_closed()


@gen_test(config={"distributed.comm.max-message-size": "1MiB"})
async def test_a_message_at_the_limit_is_read():
    async with past_the_handshake() as (peer, comm):
        frame = dumps(bytes(2**20 - 5))[0]
        assert len(frame) == 2**20
        await peer.send(count(1), bytes(frame))
        assert len(await comm.read()) == 2**20 - 5


@gen_test()
async def test_two_readers_at_once_are_refused_and_the_first_goes_on():
    async with past_the_handshake() as (peer, comm):
        reading = asyncio.create_task(comm.read())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already reading"):
            await comm.read()
        await peer.send(*message("for the first"))
        assert await reading == "for the first"


@gen_test()
async def test_writers_at_once_do_not_mix_their_messages():
    async with await listen(LOCALHOST, echo) as listener:
        comm = await connect(listener.contact_address)
        sent = [[i, to_serialize(bytes([i]) * 10_000_000)] for i in range(4)]
        writing = [asyncio.create_task(comm.write(msg)) for msg in sent]
        for i in range(4):
            number, data = await comm.read()
            assert (number, bytes(data)) == (i, bytes([i]) * 10_000_000)
        await asyncio.gather(*writing)
        await comm.close()


@gen_test()
async def test_a_peer_that_nobody_reads_from_has_to_wait():
    async with past_the_handshake() as (peer, comm):

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
async def test_a_peer_that_sends_without_end_delays_nobody_else():
    async with past_the_handshake() as (peer, comm):
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
    async with past_the_handshake() as (peer, comm):
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
async def test_a_length_that_nobody_has_memory_for_is_refused():
    async with past_the_handshake() as (peer, comm):
        assert peer.websocket.protocol is not None
        stream: Any = peer.websocket.protocol.stream
        await stream.write(b"\x82\xff" + b"\xff" * 8)
        with pytest.raises(CommClosedError, match="more bytes than any memory has"):
            await comm.read()
        assert await peer.is_closed()


# Hostile peers, before the handshake

GARBAGE = {
    "tcp": count(58) + count(1) + count(42),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(100)),
    "zeros": bytes(64),
    "text": b"hello, is anybody there?\r\n",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
@gen_test(config={"distributed.comm.timeouts.handshake": "20s"})
async def test_what_is_not_http_is_refused_at_once_and_logged_once(data):
    with (
        captured_logger("distributed.comm", level=logging.INFO, propagate=False) as log,
        captured_logger("tornado", level=logging.INFO, propagate=False) as tornado_log,
    ):
        async with await listen(LOCALHOST, echo) as listener:
            async with asyncio.timeout(2):
                assert b"400" in await answer_to(listener.contact_address, data)
            await assert_echo(listener.contact_address)
    assert log.getvalue().count("does not speak HTTP") == 1
    assert log.getvalue().count("\n") == 1
    assert tornado_log.getvalue() == ""


@pytest.mark.parametrize(
    "data", [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n"]
)
@gen_test(config={"distributed.comm.timeouts.handshake": "100ms"})
async def test_half_a_request_is_waited_for_no_longer_than_the_deadline(data):
    with captured_logger("distributed.comm", level=logging.INFO) as log:
        async with await listen(LOCALHOST, echo) as listener:
            assert await answer_to(listener.contact_address, data) == b""
    assert log.getvalue().count("distributed.comm.timeouts.handshake") == 1


@gen_test(config={"distributed.comm.timeouts.handshake": "100ms"})
async def test_a_websocket_on_which_nothing_is_said_is_closed_after_the_deadline():
    with captured_logger("distributed.comm", level=logging.INFO) as log:
        async with (
            await listen(LOCALHOST, echo) as listener,
            raw_peer(listener.contact_address) as peer,
        ):
            assert await peer.is_closed()
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
async def test_a_handshake_is_one_small_frame_of_plain_values(messages, why):
    handled: list[Comm] = []
    with captured_logger("distributed.comm", level=logging.INFO) as log:
        async with (
            await listen(LOCALHOST, handled.append) as listener,
            raw_peer(listener.contact_address) as peer,
        ):
            with contextlib.suppress(OSError, WebSocketClosedError):
                await peer.send(*messages)
            assert await peer.is_closed()
            await async_poll_for(lambda: log.getvalue(), timeout=5)
    assert handled == []
    assert why in log.getvalue()
    assert log.getvalue().count("failed before it began") == 1


@gen_test()
async def test_a_first_request_larger_than_a_handshake_may_follow_it_at_once():
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with (
        await listen(LOCALHOST, accepted.put) as listener,
        raw_peer(listener.contact_address) as peer,
    ):
        await peer.send(*message(HANDSHAKE), *message(b"x" * 1_000_000))
        comm = await accepted.get()
        assert len(await comm.read()) == 1_000_000
        comm.abort()


@gen_test()
async def test_a_listener_that_stops_closes_connections_on_which_there_is_no_websocket_yet():
    listener = await listen(LOCALHOST, echo)
    answer = asyncio.create_task(answer_to(listener.contact_address, b"GET / HTTP/1.1\r\n"))
    await async_poll_for(lambda: listener._opening, timeout=5)
    listener.stop()
    assert await answer == b""


# Servers that are none

ACCEPT = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
NO_SERVERS = {
    "tcp": (GARBAGE["tcp"], "does not speak HTTP"),
    "tls": (bytes([21, 3, 3, 0, 2, 2, 70]), "speaks? TLS|HTTP but TLS"),
    "smtp": (b"220 mail.example ESMTP\r\n", "does not speak HTTP"),
    "another accept": (
        ACCEPT + b"Upgrade: websocket\r\nSec-Websocket-Accept: abc\r\n\r\n",
        "does not belong to the request",
    ),
    "another protocol": (ACCEPT + b"Upgrade: h2c\r\n\r\n", "another protocol"),
    "a page": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "opens no websocket"),
    "forbidden": (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "403 Forbidden"),
    "elsewhere": (
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        "400 Bad Request",
    ),
}


@pytest.mark.parametrize(("answer", "why"), NO_SERVERS.values(), ids=NO_SERVERS.keys())
@gen_test()
async def test_connecting_to_what_opens_no_websocket_fails_at_once(answer, why):
    with captured_logger("tornado", level=logging.INFO, propagate=False) as tornado_log:
        async with raw_server(answer) as address:
            with pytest.raises(FatalCommClosedError, match=why) as info:
                await connect(f"ws://{address}/x", timeout=20)
            assert f"ws://{address}/x" in str(info.value)
    assert tornado_log.getvalue() == ""


@gen_test()
async def test_a_proxy_whose_server_is_not_there_yet_is_tried_again():
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
async def test_connecting_to_a_server_that_says_nothing_times_out(answer):
    async with raw_server(answer) as address:
        with pytest.raises(OSError, match=f"Timed out trying to connect to ws://{address}"):
            await connect(f"ws://{address}", timeout=0.2)
