"""``ws://`` and ``wss://`` towards the ``websockets`` library, as its server and as its client."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
from websockets.asyncio.client import connect as library_connect
from websockets.asyncio.server import serve as library_serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.frames import Frame, Opcode

from distributed.comm import connect, listen
from distributed.comm.core import Comm, CommClosedError, FatalCommClosedError
from distributed.comm.tests.raw_peers import HANDSHAKE
from distributed.protocol import dumps, loads, to_serialize
from distributed.utils_test import gen_test, tls_security

schemes = pytest.mark.parametrize("scheme", ["ws", "wss"])


def contexts(scheme: str) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """Return the TLS contexts of a server and of a client."""
    if scheme == "ws":
        return None, None
    tls = tls_security()
    return (
        tls.get_listen_args("scheduler")["ssl_context"],
        tls.get_connection_args("client")["ssl_context"],
    )


class Peer:
    """A comm made of a websocket of the library."""

    def __init__(self, websocket: Any) -> None:
        self.websocket = websocket

    async def write(self, msg: Any, fragment: int | None = None) -> None:
        frames = [bytes(frame) for frame in dumps(msg)]
        for data in (len(frames).to_bytes(8, "little"), *frames):
            if fragment is None:
                await self.websocket.send(data)
            else:
                # An iterable is sent as a fragmented message.
                await self.websocket.send(
                    [data[i : i + fragment] for i in range(0, len(data), fragment)]
                )

    async def read(self) -> Any:
        count = int.from_bytes(await self.websocket.recv(), "little")
        return loads([await self.websocket.recv() for _ in range(count)])

    async def handshake(self) -> None:
        await self.write(HANDSHAKE)
        assert await self.websocket.recv() == (1).to_bytes(8, "little")
        assert set(msgpack.unpackb(await self.websocket.recv())) >= HANDSHAKE.keys()


@asynccontextmanager
async def library_is_client(scheme: str) -> AsyncIterator[tuple[Peer, Comm]]:
    server, client = contexts(scheme)
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    kwargs: dict[str, Any] = {} if server is None else {"ssl_context": server}
    async with (
        listen(f"{scheme}://127.0.0.1:0", accepted.put, **kwargs) as listener,
        library_connect(listener.contact_address, ssl=client, proxy=None, max_size=None) as ws,
    ):
        peer = Peer(ws)
        await peer.handshake()
        comm = await accepted.get()
        try:
            yield peer, comm
        finally:
            await comm.close()


@asynccontextmanager
async def library_is_server(scheme: str) -> AsyncIterator[tuple[Peer, Comm]]:
    server, client = contexts(scheme)
    peers: asyncio.Queue[Peer] = asyncio.Queue()

    async def handle(websocket: Any) -> None:
        peer = Peer(websocket)
        await peer.handshake()
        peers.put_nowait(peer)
        await websocket.wait_closed()

    async with library_serve(handle, "127.0.0.1", 0, ssl=server, max_size=None) as listening:
        port = listening.sockets[0].getsockname()[1]
        kwargs: dict[str, Any] = {} if client is None else {"ssl_context": client}
        comm = await connect(f"{scheme}://127.0.0.1:{port}", **kwargs)
        try:
            yield await peers.get(), comm
        finally:
            await comm.close()


ends = pytest.mark.parametrize("ends", [library_is_client, library_is_server])


@schemes
@ends
@gen_test()
async def test_messages_are_exchanged(ends, scheme):
    async with ends(scheme) as (peer, comm):
        for size in (0, 1, 125, 126, 65_535, 65_536, 3_000_000):
            msg = {"x": to_serialize(b"x" * size)}
            await asyncio.gather(comm.write(msg), peer.write(msg))
            assert (await peer.read())["x"] == (await comm.read())["x"] == b"x" * size


@schemes
@ends
@gen_test()
async def test_fragments_are_joined_and_control_frames_between_them_are_answered(ends, scheme):
    async with ends(scheme) as (peer, comm):
        gate = asyncio.Event()

        async def parts(data: bytes) -> AsyncIterator[bytes]:
            for i in range(len(data)):
                if i == 3:
                    await gate.wait()
                yield data[i : i + 1]

        frames = [bytes(frame) for frame in dumps({"op": "fragmented"})]
        await peer.websocket.send(len(frames).to_bytes(8, "little"))
        sending = asyncio.create_task(peer.websocket.send(parts(frames[0])))
        # The pong arrives although the message between whose fragments the ping was is not done.
        await (await peer.websocket.ping(b"between"))
        await peer.websocket.pong(b"unasked")
        gate.set()
        await sending
        assert await comm.read() == {"op": "fragmented"}
        await peer.write("again", fragment=5)
        assert await comm.read() == "again"


@schemes
@ends
@gen_test()
async def test_pings_are_answered_while_no_task_reads(ends, scheme):
    async with ends(scheme) as (peer, _):
        pongs = [await peer.websocket.ping(bytes([i]) * 125) for i in range(10)]
        await asyncio.gather(*pongs)


@ends
@gen_test()
async def test_our_pings_are_answered_and_the_connection_stays_open(ends):
    async with ends("ws") as (peer, comm):
        for _ in range(3):
            comm._protocol.write_ping(b"ours")
        await comm.write("after the pings")
        assert await peer.read() == "after the pings"
        await peer.write("open")
        assert await comm.read() == "open"


@schemes
@ends
@gen_test()
async def test_closing_a_comm_is_a_normal_closure(ends, scheme):
    async with ends(scheme) as (peer, comm):
        await comm.write("the last word")
        await comm.close()
        assert await peer.read() == "the last word"
        with pytest.raises(ConnectionClosed):
            await peer.websocket.recv()
        assert peer.websocket.close_code == 1000


@schemes
@ends
@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 4321])
@gen_test()
async def test_the_library_closes_and_gets_its_code_back(ends, scheme, code):
    async with ends(scheme) as (peer, comm):
        closing = asyncio.create_task(peer.websocket.close(code, "a reason"))
        with pytest.raises(CommClosedError) as info:
            await comm.read()
        await closing
        assert peer.websocket.protocol.close_rcvd.code == code
        if code >= 1002:
            assert f"{code} " in str(info.value)
            assert "a reason" in str(info.value)


@ends
@pytest.mark.parametrize(
    ("scheme", "opcode", "data", "code"),
    [
        ("ws", Opcode.TEXT, b"12345678", 1003),
        ("wss", Opcode.TEXT, b"12345678", 1003),
        ("ws", Opcode.TEXT, b"\xff", 1007),
        ("ws", Opcode.CONT, b"x", 1002),
        ("wss", Opcode.CONT, b"x", 1002),
    ],
)
@gen_test()
async def test_the_library_learns_why_its_frame_was_refused(ends, scheme, opcode, data, code):
    async with ends(scheme) as (peer, comm):
        protocol = peer.websocket.protocol
        protocol.send_frame(Frame(opcode, data))
        peer.websocket.send_data()
        with pytest.raises(CommClosedError):
            await comm.read()
        with pytest.raises(ConnectionClosedError):
            await peer.websocket.recv()
        assert protocol.close_rcvd.code == code


@pytest.mark.parametrize("end", ["code 1008", "HTTP 401"])
@schemes
@gen_test()
async def test_a_refusal_of_the_library_is_not_retried(scheme, end):
    server, client = contexts(scheme)
    attempts = 0

    async def handle(websocket: Any) -> None:
        await websocket.close(1008, "not on the list")

    def process(connection: Any, request: Any) -> Any:
        nonlocal attempts
        attempts += 1
        return connection.respond(401, "a name is required") if end == "HTTP 401" else None

    async with library_serve(
        handle, "127.0.0.1", 0, ssl=server, process_request=process
    ) as listening:
        port = listening.sockets[0].getsockname()[1]
        kwargs: dict[str, Any] = {} if client is None else {"ssl_context": client}
        with pytest.raises(FatalCommClosedError, match=r"not on the list|401 Unauthorized"):
            await connect(f"{scheme}://127.0.0.1:{port}", timeout=20, **kwargs)
    assert attempts == 1
