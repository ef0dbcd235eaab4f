"""A server in a process of its own, to be attacked, and what is seen of it from outside.

`besieged` runs the server, and beside it an honest client in a third process who connects and calls
over and over again. When the siege is over, the client must have been answered in time throughout,
and the server must have no more memory and descriptors than before.

As a program it is that server (``python -m distributed.tests.besieged serve ADDRESS``) or that
client (``… call ADDRESS``). Each ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from distributed.comm.core import Comm, connect
from distributed.core import Server, Status, send_recv
from distributed.protocol import dumps, to_serialize
from distributed.protocol.framing import pack_message
from distributed.tests.environments import ROOT, clean_environ
from distributed.utils_test import async_poll_for, tls_security

MB = 2**20

#: Seconds within which an honest client is to be served, whatever others do.
PATIENCE = 2.0

#: Bytes of resident memory by which a server may differ from what it was before: what is imported
#: or compiled at first use, and pages of which something is in use.
LASTING = 6 * MB

#: The C library takes memory from the kernel for each large block alone, and so gives it back.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}

#: What a peer says of itself in the handshake.
HANDSHAKE = {"compression": None, "python": (3, 11, 0), "pickle-protocol": 5}

#: Where attackers come from, so that they can be told from honest clients by their address.
ATTACKERS = "127.0.0.2"


# Bytes


def u64(*numbers: int) -> bytes:
    """Return numbers as they are in a prelude."""
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def packed(*frames: bytes) -> bytes:
    """Return a message of these frames as it is on the wire."""
    return b"".join(bytes(buffer) for buffer in pack_message(frames)[0])


def message(msg: Any) -> bytes:
    """Return a message as it is on the wire."""
    return packed(*map(bytes, dumps(msg)))


# The server's process


async def _chunks(comm: Comm, count: int, size: int) -> Status:
    chunk = b"x" * size
    for _ in range(count):
        await comm.write(to_serialize(chunk))
    return Status.dont_reply


async def _wait() -> None:
    await asyncio.Event().wait()


def _give_memory_back() -> None:
    """Keep no memory for the next time that is not in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _blob(size: int) -> Any:
    return to_serialize(b"x" * size)


def _tls_args(role: str, address: str) -> dict[str, Any]:
    if not address.startswith(("tls:", "wss:")):
        return {}
    security = tls_security()
    return (
        security.get_listen_args(role)
        if role == "scheduler"
        else (security.get_connection_args(role))
    )


async def _end_of_input() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    loop.remove_reader(sys.stdin.fileno())


def _tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def _serve(address: str) -> None:
    logging.basicConfig(level=logging.INFO)
    server = Server(
        {"blob": _blob, "chunks": _chunks, "wait": _wait},
        stream_handlers={"note": lambda x=None: None},
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _give_memory_back)
    async with server:
        await server.listen(address, **_tls_args("scheduler", address))
        _tell(address=server.address)
        await _end_of_input()


# The honest client's process


async def _call(address: str) -> None:
    args = _tls_args("client", address)
    ended = asyncio.create_task(_end_of_input())
    kept = await connect(address, **args)
    calls, slowest = 0, 0.0
    while not ended.done():
        begin = time.monotonic()
        fresh = await connect(address, **args)
        for comm in (kept, fresh):
            if await send_recv(comm, op="echo", data=calls) != calls:
                raise ValueError(f"got the answer to another call than {calls}")
        await fresh.close()
        slowest = max(slowest, time.monotonic() - begin)
        calls += 1
        if calls == 5:
            _tell(ready=True)
        await asyncio.sleep(0.01)
    await kept.close()
    _tell(calls=calls, slowest=slowest)


# What is seen from outside


class Process:
    """A process that runs this module, and ends with its standard input."""

    def __init__(self, *argv: str, env: dict[str, str] | None = None):
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "distributed.tests.besieged", *argv],
            cwd=ROOT,
            env=clean_environ(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    async def hear(self) -> dict[str, Any]:
        """Return what the process tells next."""
        assert self.popen.stdout is not None
        line = await asyncio.to_thread(self.popen.stdout.readline)
        if not line:
            raise AssertionError(
                f"{self.popen.args!r} has ended; it logged\n{self.logged()[-5000:]}"
            )
        return dict(json.loads(line))

    def logged(self) -> str:
        """Return all that it has logged."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode(errors="replace")

    def end(self) -> None:
        """End it, and fail if it does not."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        try:
            self.popen.stdin.close()
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise
        finally:
            self.popen.stdout.close()
            self.log.close()

    def give_memory_back(self) -> None:
        """Have it keep no memory for the next time that is not in use; returns at once."""
        self.popen.send_signal(signal.SIGUSR1)

    def resident(self) -> int:
        """Return its resident memory, in bytes."""
        statm = Path(f"/proc/{self.popen.pid}/statm").read_text()
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def forget_peak(self) -> None:
        """Let `peak` begin anew."""
        Path(f"/proc/{self.popen.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the most resident memory that it has had, in bytes."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def cpu_seconds(self) -> float:
        """Return the processor time that it has taken."""
        # The name, which comes first, may hold anything.
        stat = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def limit_descriptors(self, number: int) -> None:
        """Let it have no descriptors from this number on but those that it has."""
        resource.prlimit(self.popen.pid, resource.RLIMIT_NOFILE, (number, number))

    def descriptors(self) -> int:
        """Return the number of its open descriptors."""
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))


class RawPeer:
    """Somebody at the other end of a connection who writes bytes, not messages."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

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

    async def read_message(self) -> list[bytes]:
        """Read the frames of a message."""
        _, count = struct.unpack("<2Q", await self.read_exactly(16))
        lengths = struct.unpack(f"<{count}Q", await self.read_exactly(8 * count))
        return [await self.read_exactly(length) for length in lengths]

    async def shake_hands(self) -> None:
        await self.send(message(HANDSHAKE))
        await self.read_message()

    async def see_it_closed(self) -> None:
        """Wait until the other side has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.receive(2**16):
                pass

    def reset(self) -> None:
        """Close with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Siege:
    """A server under attack.

    Attributes
    ----------
    server
        Its process.
    address
        Where it listens.
    """

    def __init__(self, server: Process, address: str) -> None:
        self.server = server
        self.address = address
        self._peers: list[RawPeer] = []
        self.memory = server.resident()

    async def connect(self, receive_buffer: int | None = None) -> RawPeer:
        """Connect as an attacker.

        Parameters
        ----------
        receive_buffer
            Bytes that the kernel may keep of what this peer does not read.
        """
        scheme, _, where = self.address.partition("://")
        sock = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
        self._peers.append(peer := RawPeer(sock))
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        target: Any = where
        if scheme != "unix":
            sock.bind((ATTACKERS, 0))
            host, _, port = where.partition("/")[0].partition(":")
            target = (host, int(port))
        await asyncio.get_running_loop().sock_connect(sock, target)
        return peer

    async def past_the_handshake(self, receive_buffer: int | None = None) -> RawPeer:
        """Connect as an attacker who behaves for as long as the handshake takes."""
        peer = await self.connect(receive_buffer)
        await peer.shake_hands()
        return peer

    async def all_closed(self) -> None:
        """Wait until the server has closed the connections of all attackers."""
        open_ones = [peer for peer in self._peers if peer.sock.fileno() >= 0]
        await asyncio.gather(*(peer.see_it_closed() for peer in open_ones))

    def withdraw(self) -> None:
        """Close the connections of all attackers."""
        for peer in self._peers:
            peer.sock.close()

    @property
    def growth(self) -> int:
        """The most resident memory of the server during the siege above that before."""
        return max(0, self.server.peak() - self.memory)


@contextlib.contextmanager
def running(*argv: str, env: dict[str, str] | None = None) -> Iterator[Process]:
    """Run a process for the duration of a block."""
    process = Process(*argv, env=env)
    try:
        yield process
    finally:
        process.end()


@contextlib.asynccontextmanager
async def honest_client(address: str, env: dict[str, str]) -> AsyncIterator[None]:
    """Call a server all the time from another process; fail if it is ever slow to answer."""
    with running("call", address, env=env) as client:
        assert await client.hear() == {"ready": True}
        yield
        assert client.popen.stdin is not None
        client.popen.stdin.close()
        told = await client.hear()
    assert told["calls"] >= 5
    assert told["slowest"] < PATIENCE


@contextlib.asynccontextmanager
async def besieged(
    address: str = "tcp://127.0.0.1:0", *, max_growth: int = 32 * MB, **settings: Any
) -> AsyncIterator[Siege]:
    """Run a server to attack, and see that it serves others throughout and recovers.

    Parameters
    ----------
    address
        Where it listens.
    max_growth
        Bytes by which its memory may grow while it is attacked.
    **settings
        Configuration below ``distributed.comm``, as the end of a variable's name:
        ``timeouts__handshake="1s"``.
    """
    env = {f"DASK_DISTRIBUTED__COMM__{key.upper()}": str(value) for key, value in settings.items()}
    with running("serve", address, env=env | ALLOCATOR) as server:
        contact = (await server.hear())["address"]
        descriptors = server.descriptors()
        async with honest_client(contact, env):
            pass
        await async_poll_for(lambda: server.descriptors() <= descriptors, timeout=10)
        siege = Siege(server, contact)
        try:
            async with honest_client(contact, env):
                server.forget_peak()
                yield siege
                growth = siege.growth
        finally:
            siege.withdraw()
        await async_poll_for(lambda: server.descriptors() <= descriptors, timeout=10)

        def has_recovered() -> bool:
            server.give_memory_back()
            return server.resident() < siege.memory + LASTING

        await async_poll_for(
            has_recovered,
            timeout=10,
            fail_func=lambda: _too_much(server.resident() - siege.memory),
        )
        assert growth < max_growth


def _too_much(nbytes: int) -> None:
    raise AssertionError(f"the server has kept {nbytes:,} bytes of memory")


if __name__ == "__main__":
    command, where = sys.argv[1:]
    asyncio.run({"serve": _serve, "call": _call}[command](where))
