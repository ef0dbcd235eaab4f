"""Peers that leave at each stage of opening a connection, on both sides, over every transport.

They are plain sockets in a thread, since they have to be faster than the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import itertools
import logging
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgpack
import pytest
from tornado.websocket import WebSocketProtocol13

from distributed.comm import Comm, CommClosedError, connect, listen
from distributed.comm.auth import Authentication
from distributed.comm.core import FatalCommClosedError
from distributed.comm.inproc import InProcConnector, InProcListener, global_manager
from distributed.comm.tests.raw_peers import HANDSHAKE, connect_raw, packed, raw_server, u64
from distributed.comm.tests.transports import TRANSPORTS
from distributed.utils_test import async_poll_for, captured_logger, gen_test, tls_security

TOKEN = "the token of this test"

#: The stages at which a peer may leave.  At a stage that begins with "half", it has sent half of
#: its bytes.
ALL_STAGES = ["connected", "half hello", "hello", "half proof"]
TLS_STAGES = ["half TLS handshake", "TLS handshake"]
HTTP_STAGES = ["half upgrade", "upgrade"]
STAGES = {
    "tcp": ALL_STAGES,
    "unix": ALL_STAGES,
    "tls": ALL_STAGES[:1] + TLS_STAGES + ALL_STAGES[1:],
    "ws": ALL_STAGES[:1] + HTTP_STAGES + ALL_STAGES[1:],
    "wss": ALL_STAGES[:1] + TLS_STAGES + HTTP_STAGES + ALL_STAGES[1:],
}

_KEY = "Sec-Websocket-Key: "

over_sockets = pytest.mark.parametrize("scheme", sorted(STAGES))

Role = Literal["client", "server"]


class Case(NamedTuple):
    """A stage at which to leave, and whether to send a RST instead of a FIN."""

    stage: str
    reset: bool


def cases(scheme: str) -> list[Case]:
    return [Case(stage, reset) for stage in STAGES[scheme] for reset in (False, True)]


@functools.cache
def _tls_context(role: Role) -> ssl.SSLContext:
    security = tls_security()
    if role == "server":
        args = security.get_listen_args("scheduler")
    else:
        args = security.get_connection_args("client")
    context: ssl.SSLContext = args["ssl_context"]
    return context


class Leaver:
    """A peer that leaves at a stage."""

    def __init__(self, sock: socket.socket, scheme: str, role: Role, case: Case) -> None:
        self.sock = sock
        self.scheme = scheme
        self.role = role
        self.case = case
        sock.settimeout(5)

    def run(self) -> None:
        """Take part until the stage, and leave."""
        try:
            if self.case.reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The other side may have left as well.
            with contextlib.suppress(OSError):
                self._take_part()
        finally:
            self.sock.close()

    def _take_part(self) -> None:
        if self.case.stage == "connected":
            return
        if self.scheme in ("tls", "wss") and self._tls_ends():
            return
        if self.scheme in ("ws", "wss") and self._ends("upgrade", self._upgrade()):
            return
        authentication = Authentication(TOKEN, self.role)
        hello = {**HANDSHAKE, "auth": authentication.challenge()}
        if self._ends("hello", self._framed(hello)):
            return
        self.sock.recv(2**16)
        self._ends("proof", self._framed({"proof": b"x" * 32}))

    def _ends(self, name: str, data: bytes) -> bool:
        """Send the bytes of a stage, or half of them, and return whether it is the last one."""
        if self.case.stage == f"half {name}":
            data = data[: len(data) // 2]
        self.sock.sendall(data)
        return self.case.stage in (name, f"half {name}")

    def _tls_ends(self) -> bool:
        context = _tls_context(self.role)
        server_side = self.role == "server"
        if self.case.stage == "half TLS handshake":
            received, flight = ssl.MemoryBIO(), ssl.MemoryBIO()
            if server_side:
                received.write(self.sock.recv(2**16))
            with contextlib.suppress(ssl.SSLError):
                context.wrap_bio(received, flight, server_side=server_side).do_handshake()
            return self._ends("TLS handshake", flight.read())
        self.sock = context.wrap_socket(
            self.sock, server_side=server_side, do_handshake_on_connect=False
        )
        self.sock.do_handshake()
        return self.case.stage == "TLS handshake"

    def _upgrade(self) -> bytes:
        if self.role == "client":
            key = base64.b64encode(b"x" * 16).decode()
            lines = ["GET / HTTP/1.1", "Host: here", f"Sec-WebSocket-Key: {key}"]
            lines.append("Sec-WebSocket-Version: 13")
        else:
            request = self.sock.recv(2**16).decode()
            key = request.partition(_KEY)[2].partition("\r")[0]
            accept = WebSocketProtocol13.compute_accept_value(key)
            lines = ["HTTP/1.1 101 Switching Protocols", f"Sec-WebSocket-Accept: {accept}"]
        lines += ["Upgrade: websocket", "Connection: Upgrade", "", ""]
        return "\r\n".join(lines).encode()

    def _framed(self, message: Any) -> bytes:
        frame = msgpack.packb(message)
        if self.scheme not in ("ws", "wss"):
            return packed(frame)
        return b"".join(map(self._websocket_message, (u64(1), frame)))

    def _websocket_message(self, data: bytes) -> bytes:
        masked = self.role == "client"
        head = b"\x82"
        if len(data) < 126:
            head += bytes([len(data) | masked << 7])
        else:
            head += bytes([126 | masked << 7]) + struct.pack(">H", len(data))
        # With this mask, the data stays as it is.
        return head + b"\0\0\0\0" * masked + data


# The server leaves


@contextlib.contextmanager
def leaving_server(scheme: str, path: str) -> Iterator[tuple[str, list[Case]]]:
    """Run a server whose connections end at each of the stages in turn.

    Yields its address, and a list of the cases that have occurred.
    """
    if scheme == "unix":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen(1000)
    else:
        listening = socket.create_server(("127.0.0.1", 0), backlog=1000)
        path = f"127.0.0.1:{listening.getsockname()[1]}"
    occurred: list[Case] = []

    def serve() -> None:
        for case in itertools.cycle(cases(scheme)):
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            Leaver(sock, scheme, "server", case).run()
            occurred.append(case)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"{scheme}://{path}", occurred
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        listening.close()


@over_sockets
@gen_test()
async def test_connecting_to_a_server_that_leaves_at_any_stage_is_retried(scheme, tmp_path):
    transport = TRANSPORTS[scheme]
    with (
        captured_logger("", level=logging.WARNING) as log,
        leaving_server(scheme, str(tmp_path / "socket")) as (address, occurred),
    ):
        while len(occurred) < 10 * len(cases(scheme)):
            outcomes = await asyncio.gather(
                *(transport.connect(address, timeout=0.3, token=TOKEN) for _ in range(20)),
                return_exceptions=True,
            )
            for outcome in outcomes:
                assert isinstance(outcome, OSError), outcome
                assert not isinstance(outcome, FatalCommClosedError)
                assert "Timed out" in str(outcome)
                assert "<closed>" not in str(outcome)
    assert log.getvalue() == ""


@pytest.mark.parametrize("scheme", ["tcp", "tls", "ws", "wss"])
@gen_test()
async def test_connecting_where_the_system_gives_no_address_of_a_lost_connection(
    scheme, monkeypatch
):
    # Some systems give no address of a socket whose peer has disconnected.
    transport = TRANSPORTS[scheme]
    attempts = 0
    getsockname = socket.socket.getsockname

    def fail_at_first(sock: socket.socket) -> Any:
        nonlocal attempts
        if sock.getpeername()[1] == port:
            attempts += 1
            if attempts < 4:
                raise OSError(22, "Invalid argument")
        return getsockname(sock)

    async with transport.listening(lambda comm: None) as listener:
        address, port = listener.contact_address, listener.get_host_port()[1]
        monkeypatch.setattr(socket.socket, "getsockname", fail_at_first)
        comm = await transport.connect(address, timeout=20)
        assert attempts >= 4
        assert comm.same_host
        comm.abort()


# The client leaves


@over_sockets
@gen_test()
async def test_a_listener_whose_peers_leave_at_any_stage_stays_usable(scheme):
    transport = TRANSPORTS[scheme]
    handled: list[Comm] = []
    with captured_logger("", level=logging.WARNING) as log:
        # At its default path, for websockets.
        listener: Any = await listen(
            transport.listen_at.removesuffix("a/path"),
            handled.append,
            token=TOKEN,
            **transport.listen_args(),
        )

        def leave_at_every_stage() -> None:
            for _ in range(10):
                for case in cases(scheme):
                    peer = connect_raw(listener.contact_address)
                    Leaver(peer.sock, scheme, "client", case).run()

        await asyncio.to_thread(leave_at_every_stage)
        await async_poll_for(
            lambda: not listener._handshaking and not getattr(listener, "_opening", ()), timeout=10
        )
        assert not handled
        comm = await transport.connect(listener.contact_address, token=TOKEN)
        await async_poll_for(lambda: len(handled) == 1, timeout=10)
        await comm.close()
        await handled[0].close()
        listener.stop()
    assert log.getvalue() == ""


# Within a process


async def leave(comm: Comm, role: Role, stage: str) -> None:
    """Take part in the handshake until a stage, and close the comm."""
    if stage != "connected":
        authentication = Authentication(TOKEN, role)
        await comm.write({**HANDSHAKE, "auth": authentication.challenge()})
    if stage == "half proof":
        await comm.read()
    comm.abort()


@pytest.mark.parametrize("stage", ["connected", "hello", "half proof"])
@gen_test()
async def test_peers_that_leave_within_a_process(stage):
    class LeavingListener(InProcListener):
        async def on_connection(self, comm, handshake_overrides=None):
            await leave(comm, "server", stage)
            raise CommClosedError("it has left")

    with captured_logger("", level=logging.WARNING) as log:
        leaving = LeavingListener("", lambda comm: None)
        await leaving.start()
        with pytest.raises(OSError, match="Timed out"):
            await connect(leaving.contact_address, timeout=0.2, token=TOKEN)
        leaving.stop()

        handled: list[Comm] = []
        async with listen("inproc://", handled.append, token=TOKEN) as listener:
            connector = InProcConnector(global_manager)
            for _ in range(100):
                comm = await connector.connect(listener.contact_address.removeprefix("inproc://"))
                await leave(comm, "client", stage)
            await async_poll_for(lambda: not listener._handshaking, timeout=10)
            comm = await connect(listener.contact_address, token=TOKEN)
            await comm.close()
            await async_poll_for(lambda: handled, timeout=10)
            handled[0].abort()
    assert log.getvalue() == ""


# Answers that are wrong


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 abc Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n: :\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: ws://[\r\n\r\n",
        b"HTTP/1.1 101 \xff\r\nX: \xff\xfe\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
    ],
)
@gen_test()
async def test_a_wrong_answer_to_the_request_for_a_websocket_is_an_os_error(answer):
    async def serve(peer: Any) -> None:
        await peer.read_until(b"\r\n\r\n")
        await peer.send(answer)
        peer.close()

    async with raw_server(serve) as where:
        with pytest.raises(OSError, match=where):
            await connect(f"ws://{where}", timeout=0.2)
