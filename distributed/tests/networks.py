"""Two hosts and a network between them, created in the kernel; needs root.

A host is a network namespace.  `two_hosts` connects two of them by a veth pair, `netem_hosts` adds
delay and packet loss, and `relayed_hosts` does the same for kernels without netem.  `Host.on` runs
processes on a host.  All names are unique to the process, and everything is removed at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000

_numbers = itertools.count()


class Host(NamedTuple):
    """A host.

    Attributes
    ----------
    name
        The name of its namespace.
    address
        Its IP address, which the other host can reach.
    device
        The name of its network device.
    """

    name: str
    address: str
    device: str

    def on(self, *argv: str) -> list[str]:
        """Return the command that runs the command *argv* on the host."""
        return ["ip", "netns", "exec", self.name, *argv]

    def link(self, *change: str) -> None:
        """Change its network device: ``"down"`` or ``"up"``."""
        _ip("-n", self.name, "link", "set", self.device, *change)


def _ip(*args: str) -> None:
    _run("ip", *args)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def _namespaces() -> Iterator[tuple[Host, Host]]:
    """Create two hosts without a network; skip the test if that is not permitted."""
    if shutil.which("ip") is None:
        pytest.skip("creating networks needs the command 'ip' of iproute2")
    number = next(_numbers)
    first, second = (
        Host(f"dask-{os.getpid()}-{number}-{i}", f"10.213.87.{i}", f"dsk{os.getpid()}{number}{i}")
        for i in (1, 2)
    )
    with contextlib.ExitStack() as stack:
        for host in (first, second):
            try:
                _ip("netns", "add", host.name)
            except OSError as exc:
                pytest.skip(f"this machine does not permit network namespaces: {exc}")
            stack.callback(_ip, "netns", "del", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield first, second


def _connect(host: Host) -> None:
    _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.device)
    host.link("up")


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Yield two hosts that are connected by a veth pair, for the duration of a block."""
    with _namespaces() as (first, second):
        try:
            _ip(
                *("link", "add", first.device, "netns", first.name, "type", "veth"),
                *("peer", "name", second.device, "netns", second.name),
            )
        except OSError as exc:
            pytest.skip(f"this machine does not permit veth pairs: {exc}")
        for host in (first, second):
            _connect(host)
        yield first, second


@contextlib.contextmanager
def netem_hosts(delay: float, jitter: float, loss: float) -> Iterator[tuple[Host, Host]]:
    """Yield two hosts like those of `two_hosts`, with netem to delay and drop packets.

    Parameters
    ----------
    delay, jitter
        Mean delay of a packet and maximum deviation from it, in seconds.  A packet with a smaller
        delay overtakes others.
    loss
        Share of the packets that is lost, from 0 to 1.
    """
    if shutil.which("tc") is None:
        pytest.skip("delaying packets needs the command 'tc' of iproute2")
    with two_hosts() as hosts:
        for host in hosts:
            netem = f"netem delay {delay * 1000}ms {jitter * 1000}ms loss {loss * 100}%"
            try:
                _run(*host.on("tc", "qdisc", "add", "dev", host.device, "root", *netem.split()))
            except OSError as exc:
                pytest.skip(f"this kernel has no netem: {exc}")
        yield hosts


@contextlib.contextmanager
def relayed_hosts(delay: float, jitter: float, loss: float) -> Iterator[tuple[Host, Host]]:
    """Yield two hosts like those of `netem_hosts`, with a thread instead of netem."""
    with _namespaces() as hosts, contextlib.ExitStack() as stack:
        tunnels = []
        for host in hosts:
            try:
                tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                stack.callback(os.close, tunnel)
                name = host.device.encode()
                request = struct.pack("16sH22x", name, _IFF_TUN | _IFF_NO_PI)
                fcntl.ioctl(tunnel, _TUNSETIFF, request)
            except OSError as exc:
                pytest.skip(f"this machine does not permit tunnels: {exc}")
            tunnels.append(tunnel)
            _ip("link", "set", host.device, "netns", host.name)
            _connect(host)
        stack.enter_context(_Relay(tunnels, delay, jitter, loss))
        yield hosts


class _Relay:
    """Forwards packets between two tunnels, and delays and drops them."""

    def __init__(self, tunnels: list[int], delay: float, jitter: float, loss: float) -> None:
        self._tunnels = tunnels
        self._delay, self._jitter, self._loss = delay, jitter, loss
        self._random = random.Random(5)
        # Heap of (arrival time, number that orders equal times, tunnel, packet); only the thread
        # uses it.
        self._in_flight: list[tuple[float, int, int, bytes]] = []
        self._number = itertools.count()
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._run, name="relay")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        os.close(self._ended)
        self._thread.join()
        os.close(self._end)

    def _run(self) -> None:
        while True:
            timeout = None
            if self._in_flight:
                timeout = max(0.0, self._in_flight[0][0] - time.monotonic())
            readable, _, _ = select.select([*self._tunnels, self._end], [], [], timeout)
            if self._end in readable:
                return
            for tunnel in readable:
                self._take(tunnel)
            while self._in_flight and self._in_flight[0][0] <= time.monotonic():
                _, _, tunnel, packet = heapq.heappop(self._in_flight)
                os.write(tunnel, packet)

    def _take(self, tunnel: int) -> None:
        packet = os.read(tunnel, 2**16)
        if self._random.random() < self._loss:
            return
        delay = self._delay + self._random.uniform(-self._jitter, self._jitter)
        other = self._tunnels[1 - self._tunnels.index(tunnel)]
        entry = (time.monotonic() + delay, next(self._number), other, packet)
        heapq.heappush(self._in_flight, entry)
