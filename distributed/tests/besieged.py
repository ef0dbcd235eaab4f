"""A server in another process for tests to attack, and measurements of it from outside.

`besieged` runs the server, and in a third process an honest client that connects and calls all the
time, now and then with a message that the server reads in a thread.  At the end, every call of the
client must have been answered in time, and the server must have as much memory and as many file
descriptors as before.

As a program, this module is that server (``python -m distributed.tests.besieged serve ADDRESS``) or
that client (``… call ADDRESS PID``).  Each ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from distributed.base import config
from distributed.comm.core import Comm, CommClosedError, connect
from distributed.comm.tests.raw_peers import RawPeer, resident
from distributed.core import Server, Status, send_recv
from distributed.protocol import to_serialize
from distributed.tests.environments import ROOT, clean_environ
from distributed.utils_test import async_poll_for, tls_security

MB = 2**20

#: Maximum number of seconds until an honest client is answered.  The specification demands such a
#: limit, so this is a wall-clock time.  If other processes keep the CPUs busy, it is the server's
#: processor time, and the wall-clock time is at most `MAX_WAIT`.
PATIENCE = 1.0
MAX_WAIT = 20.0

#: Maximum growth of a server's resident memory after an attack, in bytes: for modules imported or
#: compiled at first use, and for pages that are partly in use.
LASTING = 6 * MB

#: With this, the C library maps each large block separately, and so returns it to the kernel.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}

#: The name of this module, as a program.
MODULE = "distributed.tests.besieged"

#: The address from which attackers connect; honest clients have another one.
ATTACKERS = "127.0.0.2"


# The server's process


async def chunks(comm: Comm, count: int, size: int) -> Status:
    chunk = b"x" * size
    for _ in range(count):
        await comm.write(to_serialize(chunk))
    return Status.dont_reply


async def _wait() -> None:
    await asyncio.Event().wait()


def _block(seconds: float) -> None:
    time.sleep(seconds)


async def _first() -> AsyncIterator[int]:
    yield 1
    await asyncio.Event().wait()


async def _ignore(comm: Comm) -> None:
    await comm.write("ready")
    await asyncio.Event().wait()


def give_memory_back() -> None:
    """Return unused memory to the kernel."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def blob(size: int) -> Any:
    return to_serialize(b"x" * size)


def _tls_args(role: str, address: str) -> dict[str, Any]:
    if not address.startswith(("tls:", "wss:")):
        return {}
    security = tls_security()
    if role == "scheduler":
        return security.get_listen_args(role)
    return security.get_connection_args(role)


async def end_of_input() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    loop.remove_reader(sys.stdin.fileno())


def report(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def _serve(address: str) -> None:
    logging.basicConfig(level=logging.INFO)
    server = Server(
        {
            "blob": blob,
            "block": _block,
            "chunks": chunks,
            "first": _first,
            "ignore": _ignore,
            "wait": _wait,
        },
        stream_handlers={"note": lambda x=None: None},
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, give_memory_back)
    async with server:
        await server.listen(address, **_tls_args("scheduler", address))
        report(address=server.address)
        await end_of_input()


# The honest client's process


#: The values of a message of 2 MB.  Servers read it in the offload thread, as it has many frames.
PIECES = (b"x" * 1000,) * 2100


class _Caller:
    """A caller of ``echo`` on one connection.

    A server with an idle timeout closes a connection on which no complete request has arrived for
    that time.  On a loaded machine, that is also the time in which this process, or the server,
    waits for a processor.  Then, and only then, this caller connects again, as a pool does.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._args = _tls_args("client", address)
        self._idle = config.get_timedelta("distributed.comm.timeouts.idle") or math.inf
        # When the last request, or connecting, began: the server's idle time began later.
        self._began = 0.0
        self._comm: Comm

    async def connect(self) -> None:
        self._began = time.monotonic()
        self._comm = await connect(self._address, **self._args)

    async def echo(self, data: Any) -> Any:
        while True:
            began = time.monotonic()
            try:
                answer = await send_recv(self._comm, op="echo", data=data)
            except CommClosedError:
                if time.monotonic() - self._began < self._idle:
                    raise
                await self.connect()
            else:
                self._began = began
                return answer

    async def close(self) -> None:
        await self._comm.close()


async def _call(address: str, server: int) -> None:
    ended = asyncio.create_task(end_of_input())
    kept, fresh = _Caller(address), _Caller(address)
    await kept.connect()
    calls, slowest = 0, 0.0
    while not ended.done():
        begin, used = time.monotonic(), cpu_seconds(server)
        await fresh.connect()
        for caller in (kept, fresh):
            if await caller.echo(calls) != calls:
                raise ValueError(f"got the answer to another call than {calls}")
        if calls % 4 == 0:
            data = tuple(map(to_serialize, PIECES))
            if await kept.echo(data) != PIECES:
                raise ValueError("got the answer to another call than that of 2 MB")
        await fresh.close()
        waited = time.monotonic() - begin
        assert waited < MAX_WAIT
        if waited > slowest:
            slowest = max(slowest, min(waited, cpu_seconds(server) - used))
        calls += 1
        if calls == 5:
            report(ready=True)
        await asyncio.sleep(0.01)
    await kept.close()
    report(calls=calls, slowest=slowest)


# Measurements from outside


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process, in seconds."""
    # The second field, the name of the process, may contain any character.
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


class Process:
    """A process that runs a module, by default this one, and ends when its standard input does."""

    def __init__(self, *argv: str, env: dict[str, str] | None = None, module: str = MODULE):
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, *argv],
            cwd=ROOT,
            env=clean_environ(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    async def next_report(self) -> dict[str, Any]:
        """Return the next line of JSON that the process writes."""
        assert self.popen.stdout is not None
        line = await asyncio.to_thread(self.popen.stdout.readline)
        if not line:
            raise AssertionError(
                f"{self.popen.args!r} has ended; it logged\n{self.logged()[-5000:]}"
            )
        return dict(json.loads(line))

    def logged(self) -> str:
        """Return the log of the process so far."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode(errors="replace")

    def end(self) -> None:
        """Close its standard input, and raise if the process does not end."""
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
        """Let the process return unused memory to the kernel; does not wait for it."""
        self.popen.send_signal(signal.SIGUSR1)

    def resident(self) -> int:
        """Return its resident memory, in bytes."""
        return resident(self.popen.pid)

    def forget_peak(self) -> None:
        """Reset the value of `peak`."""
        Path(f"/proc/{self.popen.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the maximum resident memory since `forget_peak`, in bytes."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def cpu_seconds(self) -> float:
        """Return its processor time, in seconds."""
        return cpu_seconds(self.popen.pid)

    def limit_descriptors(self, number: int) -> None:
        """Let it open no file descriptors of this number or above."""
        resource.prlimit(self.popen.pid, resource.RLIMIT_NOFILE, (number, number))

    def descriptors(self) -> int:
        """Return the number of its open file descriptors."""
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))


class Siege:
    """A server under attack.

    Attributes
    ----------
    server
        Its process.
    address
        The address at which it listens.
    memory
        Its resident memory before the attack, in bytes.
    """

    def __init__(self, server: Process, address: str) -> None:
        self.server = server
        self.address = address
        self.memory = server.resident()
        self._peers: list[RawPeer] = []

    async def connect(self, receive_buffer: int | None = None) -> RawPeer:
        """Connect as an attacker.

        Parameters
        ----------
        receive_buffer
            Size of the kernel's receive buffer, in bytes.
        """
        scheme, _, where = self.address.partition("://")
        sock = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
        self._peers.append(peer := RawPeer(sock))
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        target: Any = where
        if scheme != "unix":
            sock.bind((ATTACKERS, 0))
            host, _, port = where.partition("/")[0].partition(":")
            target = (host, int(port))
        await asyncio.get_running_loop().sock_connect(sock, target)
        return peer

    async def after_handshake(self, receive_buffer: int | None = None) -> RawPeer:
        """Connect as an attacker, and complete the handshake."""
        peer = await self.connect(receive_buffer)
        await peer.handshake()
        return peer

    async def all_closed(self) -> None:
        """Wait until the server has closed the connections of all attackers."""
        open_ones = [peer for peer in self._peers if peer.sock.fileno() >= 0]
        await asyncio.gather(*(peer.wait_closed() for peer in open_ones))

    def withdraw(self) -> None:
        """Close the connections of all attackers."""
        for peer in self._peers:
            peer.close()

    @property
    def growth(self) -> int:
        """The maximum growth of the server's resident memory so far, in bytes."""
        return max(0, self.server.peak() - self.memory)


@contextlib.contextmanager
def running(
    *argv: str, env: dict[str, str] | None = None, module: str = MODULE
) -> Iterator[Process]:
    """Run a process for the duration of a block."""
    process = Process(*argv, env=env, module=module)
    try:
        yield process
    finally:
        process.end()


@contextlib.asynccontextmanager
async def honest_client(address: str, server: Process, env: dict[str, str]) -> AsyncIterator[None]:
    """Call a server all the time from another process; fail if one answer was slow."""
    with running("call", address, str(server.popen.pid), env=env) as client:
        assert await client.next_report() == {"ready": True}
        yield
        assert client.popen.stdin is not None
        client.popen.stdin.close()
        result = await client.next_report()
    assert result["calls"] >= 5
    assert result["slowest"] < PATIENCE


@contextlib.asynccontextmanager
async def besieged(
    address: str = "tcp://127.0.0.1:0",
    *,
    max_growth: int = 32 * MB,
    lasting: int = LASTING,
    **settings: Any,
) -> AsyncIterator[Siege]:
    """Run a server to attack, and check that it serves other peers meanwhile and recovers.

    Parameters
    ----------
    address
        The address at which it listens.
    max_growth
        Maximum growth of its memory during the attack, in bytes.
    lasting
        Maximum growth of its memory after the attack, in bytes.
    **settings
        Configuration below ``distributed.comm``; names are the ends of environment variables, as in
        ``timeouts__handshake="1s"``.
    """
    env = {f"DASK_DISTRIBUTED__COMM__{key.upper()}": str(value) for key, value in settings.items()}
    if address.startswith(("tls:", "wss:")):
        # Server and client find the certificate of this process; each would make its own otherwise.
        tls_security()
    with running("serve", address, env=env | ALLOCATOR) as server:
        contact = (await server.next_report())["address"]
        descriptors = server.descriptors()
        async with honest_client(contact, server, env):
            pass
        await async_poll_for(lambda: server.descriptors() <= descriptors, timeout=10)
        siege = Siege(server, contact)
        try:
            async with honest_client(contact, server, env):
                server.forget_peak()
                yield siege
                growth = siege.growth
        finally:
            siege.withdraw()
        await async_poll_for(lambda: server.descriptors() <= descriptors, timeout=10)

        def has_recovered() -> bool:
            server.give_memory_back()
            return server.resident() < siege.memory + lasting

        await async_poll_for(
            has_recovered,
            timeout=10,
            fail_func=lambda: _too_much(server.resident() - siege.memory),
        )
        assert growth < max_growth


def _too_much(nbytes: int) -> None:
    raise AssertionError(f"the server has kept {nbytes:,} bytes of memory")


if __name__ == "__main__":
    command, where, *server_pid = sys.argv[1:]
    asyncio.run(_serve(where) if command == "serve" else _call(where, int(server_pid[0])))
