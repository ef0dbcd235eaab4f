"""Peers that are only sockets: they send bytes, which need not be messages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from distributed.protocol import dumps
from distributed.protocol.framing import pack_message

#: The handshake message of a peer.
HANDSHAKE = {"compression": None, "python": (3, 11, 0), "pickle-protocol": 5}


def u64(*numbers: int) -> bytes:
    """Return numbers as they are encoded in a prelude."""
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def packed(*frames: bytes) -> bytes:
    """Return the message with these frames as it is on the wire."""
    return b"".join(bytes(buffer) for buffer in pack_message(frames)[0])


def message(msg: Any) -> bytes:
    """Return a message as it is on the wire."""
    return packed(*map(bytes, dumps(msg)))


def resident(pid: int | str = "self") -> int:
    """Return the resident memory of a process, in bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class RawPeer:
    """The other end of a connection, which sends and receives bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size: int) -> bytes:
        """Read up to *size* bytes; none at the end."""
        return await asyncio.get_running_loop().sock_recv(self.sock, size)

    async def read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await self.receive(size - len(data))
            if not part:
                raise EOFError(f"{len(data)} of {size} bytes arrived")
            data += part
        return data

    async def read_until(self, end: bytes) -> bytes:
        """Read up to and including *end*."""
        data = b""
        while not data.endswith(end):
            data += await self.read_exactly(1)
        return data

    async def read_message(self) -> list[bytes]:
        """Read the frames of a message."""
        _, count = struct.unpack("<2Q", await self.read_exactly(16))
        lengths = struct.unpack(f"<{count}Q", await self.read_exactly(8 * count))
        return [await self.read_exactly(length) for length in lengths]

    async def handshake(self) -> None:
        await self.send(message(HANDSHAKE))
        await self.read_message()

    async def wait_closed(self) -> bytes:
        """Wait until the other side closes, and return the bytes that arrived before."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := await self.receive(2**16):
                received += part
        return received

    def reset(self) -> None:
        """Close with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.sock.close()


def connect_raw(address: str) -> RawPeer:
    """Connect a socket to a comm's address, without a turn of the event loop."""
    scheme, _, loc = address.partition("://")
    target: Any = loc
    if scheme != "unix":
        host, _, port = loc.partition("/")[0].rpartition(":")
        target = (host, int(port))
    sock = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
    sock.connect(target)
    return RawPeer(sock)


@asynccontextmanager
async def raw_peer(address: str) -> AsyncIterator[RawPeer]:
    """Connect a socket to a comm's address for the duration of a block."""
    with contextlib.closing(connect_raw(address)) as peer:
        yield peer


@asynccontextmanager
async def raw_server(serve: Callable[[RawPeer], Any]) -> AsyncIterator[str]:
    """Call *serve* with each peer that connects, and close its socket at the end of the block.

    Yields the host and port, as ``host:port``.
    """
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    serving: list[asyncio.Task[None]] = []

    async def serve_one(sock: socket.socket) -> None:
        with contextlib.closing(RawPeer(sock)) as peer, contextlib.suppress(OSError, EOFError):
            await serve(peer)
            await asyncio.Event().wait()

    async def accept() -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listening)
            serving.append(asyncio.create_task(serve_one(sock)))

    serving.append(asyncio.create_task(accept()))
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        listening.close()
