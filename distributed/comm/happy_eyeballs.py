"""Sockets that are connected to a host, which may have several addresses.

If a name has several addresses, some of them may not answer.  Therefore the attempts at them
overlap (RFC 8305, "happy eyeballs"): the next address is tried as soon as an attempt has failed, or
has taken a moment; the first connection is used, and the others are closed.  IPv4 and IPv6
addresses take turns.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Iterable
from typing import Any, TypeAlias

from tornado import netutil
from tornado.concurrent import future_set_result_unless_cancelled
from tornado.tcpclient import TCPClient

from distributed.comm.attempts import Attempts, current_attempts, enter_stage
from distributed.comm.racing import Race

#: The family of an address, and the address as a socket names it.
Address: TypeAlias = tuple[int, Any]

#: Seconds before the next address is tried beside one that has not answered (RFC 8305, section 5).
_DELAY = 0.25

#: Type of a non-blocking socket, which the system creates in one call if it can.
_NON_BLOCKING = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)


async def _getaddrinfo(
    host: str, port: int, *, family: int = 0, type: int = socket.SOCK_STREAM
) -> list[Address]:
    """Resolve *host*; a thread is used only if it is not an IP address.

    Returns
    -------
    list of (family, socket address)

    Raises
    ------
    socket.gaierror
        If *host* does not resolve, or has no address of this *family*.
    """
    try:
        found = socket.getaddrinfo(
            host, port, family, type, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except socket.gaierror as exc:
        # All other errors, such as an IPv6 address where *family* is IPv4, would occur again.
        if exc.errno != socket.EAI_NONAME:
            raise
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=type)
    return [(entry[0], entry[4]) for entry in found]


class _Resolver(netutil.Resolver):
    """A resolver that uses no thread for numeric addresses."""

    def initialize(self) -> None:
        pass

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[Address]:
        return await _getaddrinfo(host, port, family=family)


#: Its ``resolver`` resolves the names of hosts for all connections.
tcp_client = TCPClient(resolver=_Resolver())


class _Lookups:
    """The lookups in progress.

    Connections to one name at the same time share a lookup: the threads that look names up are few.
    """

    # A lookup is in `_running` from its first waiter until it has ended or its last waiter has
    # been cancelled.
    def __init__(self) -> None:
        # Event loop, resolver, name and port → the task, and the number of its waiters.
        self._running: dict[Any, tuple[asyncio.Task[list[Address]], int]] = {}

    async def addresses_of(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a name.

        Raises
        ------
        OSError
            If the name does not resolve.
        ValueError
            If it cannot be the name of a host.
        """
        resolver = tcp_client.resolver
        key = asyncio.get_running_loop(), resolver, host, port
        task, waiters = self._running.get(key, (None, 0))
        if task is None:
            task = asyncio.ensure_future(_resolve(resolver, host, port))
            task.add_done_callback(lambda task: self._ended(key, task))
        self._running[key] = task, waiters + 1
        try:
            return await asyncio.shield(task)
        finally:
            if not task.done():
                _, waiters = self._running[key]
                self._running[key] = task, waiters - 1
                if waiters == 1:
                    del self._running[key]
                    task.cancel()

    def _ended(self, key: Any, task: asyncio.Task[list[Address]]) -> None:
        if self._running.get(key, (None, 0))[0] is task:
            del self._running[key]
        if not task.cancelled():
            # Each waiter gets the error.
            task.exception()


_lookups = _Lookups()


async def _resolve(resolver: netutil.Resolver, host: str, port: int) -> list[Address]:
    return list(await resolver.resolve(host, port))


async def _look_up(host: str, port: int) -> list[Address]:
    try:
        return await _lookups.addresses_of(host, port)
    except UnicodeError as exc:
        raise ValueError(f"{host!r} cannot be the name of a host: {exc}") from exc


async def connect_to_host(host: str, port: int) -> socket.socket:
    """Return a socket that is connected to an address of *host*.

    Raises
    ------
    OSError
        If the name does not resolve, or no address can be reached.
    ValueError
        If it cannot be the name of a host.
    """
    attempts = current_attempts()
    found = None if attempts is None else attempts.known_addresses(host, port)
    if found is None:
        enter_stage(f"resolving the name {host!r}")
        if attempts is None:
            found = await _look_up(host, port)
        else:
            attempts.lookups += 1
            try:
                found = await _look_up(host, port)
            finally:
                attempts.lookups -= 1
            attempts.keep_addresses(host, port, found)
    if not found:
        raise OSError(f"the name {host!r} has no address")
    addresses = interleave(found)
    if len(addresses) == 1:
        enter_stage("connecting")
        return await connect_socket(*addresses[0])
    enter_stage(f"connecting to {', '.join(str(address[0]) for _, address in addresses)}")
    if attempts is not None:
        addresses.sort(key=attempts.times_reached)
    sock, address = await _connect_to_any(addresses, _delay(attempts, len(addresses)))
    if attempts is not None:
        attempts.reached(address)
    return sock


def interleave(addresses: Iterable[Address]) -> list[Address]:
    """Return the addresses without duplicates, so that their families take turns.

    The first one stays first, since the system prefers it (RFC 8305, section 4).

    Examples
    --------
    >>> interleave([(6, "a"), (6, "b"), (4, "c"), (6, "b")])
    [(6, 'a'), (4, 'c'), (6, 'b')]
    """
    families: dict[int, dict[Any, None]] = {}
    for family, address in addresses:
        families.setdefault(family, {})[address] = None
    turns = itertools.zip_longest(
        *([(family, address) for address in found] for family, found in families.items())
    )
    return [entry for turn in turns for entry in turn if entry is not None]


def _delay(attempts: Attempts | None, count: int) -> float:
    """Return the seconds before the next of *count* addresses is tried."""
    if attempts is None:
        return _DELAY
    # With a short timeout, all addresses are tried in the first half of the time.
    left = attempts.deadline - asyncio.get_running_loop().time()
    return min(_DELAY, max(0.0, left / (2 * count)))


async def _connect_to_any(addresses: list[Address], delay: float) -> tuple[socket.socket, Address]:
    """Return a socket that is connected to one of *addresses*, and that address.

    Raises
    ------
    OSError
        If none can be reached; the error of the last attempt that failed.
    """
    now = asyncio.get_running_loop().time
    waiting = iter(addresses)
    task: asyncio.Task[tuple[socket.socket, Address]] | None
    error: BaseException | None = None
    try:
        async with Race[tuple[socket.socket, Address]](_close) as race:
            while True:
                address = next(waiting, None)
                if address is not None:
                    race.enter(_connect_to(address))
                elif not race.running:
                    break
                task = await race.ended(None if address is None else now() + delay)
                if task is not None:
                    error = task.exception()
                    if not isinstance(error, OSError):
                        return task.result()
        assert error is not None
        raise error
    finally:
        # The traceback of the error refers to this frame.
        error = task = None


async def _connect_to(address: Address) -> tuple[socket.socket, Address]:
    return await connect_socket(*address), address


def _close(result: tuple[socket.socket, Address]) -> None:
    result[0].close()


async def connect_socket(family: int, address: tuple[Any, ...]) -> socket.socket:
    """Return a socket that is connected to *address*.

    Raises
    ------
    OSError
        If the connection cannot be made.
    """
    sock = socket.socket(family, _NON_BLOCKING)
    try:
        if sock.getblocking():
            sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            if not _is_connected(sock):
                await _until_writable(sock)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error)) from None
        return sock
    except BaseException:
        sock.close()
        raise


def _is_connected(sock: socket.socket) -> bool:
    """Return whether *sock* is connected already, as is usual within one host."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


async def _until_writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable = loop.create_future()
    loop.add_writer(sock, future_set_result_unless_cancelled, writable, None)
    try:
        await writable
    finally:
        loop.remove_writer(sock)
