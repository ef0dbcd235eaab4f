"""Opening a connection: names, several addresses, slow peers, the log and the final error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from tornado.netutil import Resolver

from distributed.comm import Comm, CommClosedError, connect, listen, tcp
from distributed.comm.attempts import on_failure
from distributed.comm.core import FatalCommClosedError
from distributed.comm.happy_eyeballs import interleave
from distributed.comm.tests.raw_peers import HANDSHAKE, RawPeer, connect_raw, message, raw_server
from distributed.comm.tests.transports import TRANSPORTS, Transport, unused_port
from distributed.utils_test import async_poll_for, captured_logger, gen_test

NAME = "node1.example.org"

over_ip = pytest.mark.parametrize("scheme", ["tcp", "tls", "ws", "wss"])


async def echo(comm: Comm) -> None:
    with contextlib.suppress(OSError):
        while True:
            await comm.write(await comm.read())


class Names(Resolver):
    """A resolver of names by a function of the test."""

    def initialize(self, find: Callable[[str, int], Awaitable[list[Any]]]) -> None:
        self.find = find

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[Any]:
        return await self.find(host, port)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Return a function that replaces the resolver of all connections."""

    def replace(find: Callable[[str, int], Awaitable[list[Any]]]) -> None:
        monkeypatch.setattr(tcp.TCPConnector.client, "resolver", Names(find=find))

    return replace


@contextlib.contextmanager
def unresponsive(port: int, host: str = "127.0.0.3") -> Iterator[None]:
    """Make *host* ignore new connections to *port*, as if its packets were dropped.

    Linux does so where the backlog of a listening socket is full.
    """
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.05)
            try:
                waiting.connect((host, port))
            except TimeoutError:
                break
        else:
            pytest.skip("this system accepts connections beyond the backlog")
        yield


def port_of(transport: Transport, listener: Any) -> int:
    return int(listener.get_host_port()[1])


def named(listener: Any) -> str:
    """Return the address of a listener at 127.0.0.1 with `NAME` as its host."""
    return str(listener.contact_address).replace("127.0.0.1", NAME)


# Several addresses


@over_ip
@gen_test()
async def test_a_host_is_reached_although_its_first_addresses_drop_packets(scheme, names):
    transport = TRANSPORTS[scheme]
    async with transport.listening(echo) as listener:
        port = port_of(transport, listener)

        async def find(host: str, port: int) -> list[Any]:
            hosts = ["127.0.0.3", "192.0.2.1", "127.0.0.1"]
            return [(socket.AF_INET, (host, port)) for host in hosts]

        names(find)
        with unresponsive(port):
            comm = await transport.connect(named(listener), timeout=2)
        await comm.write(1)
        assert await comm.read() == 1
        await comm.close()


@gen_test()
async def test_an_address_that_refuses_is_followed_by_the_next_one_at_once(names):
    # With this timeout, an address that does not answer would take minutes.
    async with listen("tcp://127.0.0.1:0", echo) as listener:

        async def find(host: str, port: int) -> list[Any]:
            hosts = [f"127.0.0.{number}" for number in range(200, 1, -1)] + ["127.0.0.1"]
            return [(socket.AF_INET, (host, port)) for host in hosts]

        names(find)
        comm = await asyncio.wait_for(connect(named(listener), timeout=3600), 20)
        await comm.close()


@gen_test()
async def test_an_address_whose_peer_never_answers_is_followed_by_another_one(names):
    # As where another program listens at one of the addresses.
    with socket.create_server(("127.0.0.4", 0)) as silent:
        port = silent.getsockname()[1]
        async with listen(f"tcp://127.0.0.1:{port}", echo) as listener:

            async def find(host: str, port: int) -> list[Any]:
                return [(socket.AF_INET, (host, port)) for host in ("127.0.0.4", "127.0.0.1")]

            names(find)
            comm = await connect(named(listener), timeout=1)
            await comm.close()


@gen_test()
async def test_the_families_of_addresses_take_turns():
    six = [(socket.AF_INET6, (f"2001:db8::{number}", 1, 0, 0)) for number in (1, 2, 3)]
    four = [(socket.AF_INET, (f"192.0.2.{number}", 1)) for number in (1, 2)]
    expected = [six[0], four[0], six[1], four[1], six[2]]
    assert interleave([*six, *four, *six]) == expected


@gen_test()
async def test_a_cancelled_connect_to_several_addresses_leaves_no_socket_open(names):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        async def find(host: str, port: int) -> list[Any]:
            return [(socket.AF_INET, (host, port)) for host in ("127.0.0.3", "192.0.2.1")]

        names(find)
        with unresponsive(port):
            with captured_logger("distributed.comm", level=logging.DEBUG):
                connecting = asyncio.create_task(connect(f"tcp://{NAME}:{port}", timeout=0.5))
                tasks = asyncio.all_tasks()
                await async_poll_for(lambda: len(asyncio.all_tasks()) > len(tasks) + 1, timeout=5)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
        assert asyncio.all_tasks() <= tasks


# Slow name resolution


@over_ip
@gen_test()
async def test_a_lookup_may_take_most_of_the_timeout(scheme, names):
    transport = TRANSPORTS[scheme]
    lookups = 0

    async def find(host: str, port: int) -> list[Any]:
        nonlocal lookups
        lookups += 1
        await asyncio.sleep(0.3)
        return [(socket.AF_INET, ("127.0.0.1", port))]

    names(find)
    handled: list[Comm] = []
    async with transport.listening(handled.append) as listener:
        comm = await transport.connect(named(listener), timeout=1.2)
        await comm.close()
        await async_poll_for(lambda: handled, timeout=5)
        # No further attempt has waited for the lookup as well.
        assert lookups == len(handled) == 1
        await handled[0].close()


@gen_test()
async def test_the_error_says_that_a_name_was_being_resolved(names):
    async def find(host: str, port: int) -> list[Any]:
        await asyncio.Event().wait()
        return []

    names(find)
    with pytest.raises(OSError, match=rf"Timed out .* no result yet: resolving .* '{NAME}'"):
        await connect(f"tcp://{NAME}:1", timeout=0.1)


@gen_test()
async def test_attempts_after_a_lookup_use_its_result(names):
    lookups = 0

    async def find(host: str, port: int) -> list[Any]:
        nonlocal lookups
        lookups += 1
        return [(socket.AF_INET, ("127.0.0.1", port))]

    names(find)
    port = unused_port()
    with captured_logger("distributed.comm", level=logging.DEBUG) as log:
        connecting = asyncio.create_task(connect(f"tcp://{NAME}:{port}", timeout=20))
        await async_poll_for(lambda: "trying again" in log.getvalue(), timeout=10)
        async with listen(f"tcp://127.0.0.1:{port}", lambda comm: None):
            comm = await connecting
            await comm.close()
    assert lookups == 1


@gen_test()
async def test_connections_to_one_name_at_the_same_time_share_a_lookup(names):
    lookups = 0
    found = asyncio.Event()

    async def find(host: str, port: int) -> list[Any]:
        nonlocal lookups
        lookups += 1
        await found.wait()
        return [(socket.AF_INET, ("127.0.0.1", port))]

    names(find)
    async with listen("tcp://127.0.0.1:0", echo) as listener:
        connecting = [asyncio.create_task(connect(named(listener))) for _ in range(20)]
        await async_poll_for(lambda: lookups == 1, timeout=5)
        # The others need the lookup.
        connecting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting[0]
        found.set()
        for comm in await asyncio.gather(*connecting[1:]):
            await comm.close()
    assert lookups == 1


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
@pytest.mark.parametrize("host", [f"{'a' * 70}.example.org", "a..b", "a\0b"])
@gen_test()
async def test_a_host_name_that_cannot_exist_is_a_value_error_at_once(scheme, host):
    with pytest.raises(ValueError, match="cannot be the name of a host"):
        await connect(f"{scheme}://{host}:1", timeout=30)


# Slow peers


async def copy(source: RawPeer, target: RawPeer) -> None:
    while data := await source.receive(2**16):
        await target.send(data)
    target.sock.shutdown(socket.SHUT_WR)


@contextlib.asynccontextmanager
async def slow_path_to(address: str, delay: float) -> AsyncIterator[str]:
    """Yield an address from which bytes reach *address* only after *delay* seconds."""

    async def relay(peer: RawPeer) -> None:
        await asyncio.sleep(delay)
        with contextlib.closing(connect_raw(address)) as there:
            await asyncio.gather(copy(peer, there), copy(there, peer))

    scheme, _, loc = address.partition("://")
    _, slash, path = loc.partition("/")
    async with raw_server(relay) as where:
        yield f"{scheme}://{where}{slash}{path}"


@pytest.mark.parametrize(
    ("scheme", "token"),
    [("tcp", "a token of this test"), ("tls", None), ("wss", "a token of this test")],
)
@gen_test()
async def test_an_answer_may_take_most_of_the_timeout(scheme, token):
    transport = TRANSPORTS[scheme]
    listener = await transport.listen(echo, token=token)
    async with slow_path_to(listener.contact_address, 0.8) as address:
        comm = await transport.connect(address, timeout=1.5, token=token)
        await comm.write(1)
        assert await comm.read() == 1
        await comm.close()
    listener.stop()


@gen_test()
async def test_a_later_attempt_succeeds_where_the_first_one_gets_no_answer():
    connections = 0

    async def serve(peer: RawPeer) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await peer.send(message(HANDSHAKE))

    async with raw_server(serve) as where:
        comm = await connect(f"tcp://{where}", timeout=1)
        assert connections == 2
        await comm.close()


@gen_test()
async def test_a_final_error_of_a_later_attempt_ends_the_first_one():
    connections = 0

    async def serve(peer: RawPeer) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with raw_server(serve) as where:
        with pytest.raises(FatalCommClosedError):
            await connect(f"tcp://{where}", timeout=1)


@gen_test()
async def test_the_error_says_in_which_stage_the_attempts_were():
    async with raw_server(lambda peer: peer.wait_closed()) as where:
        with pytest.raises(OSError, match=r"\d attempts had no result yet: in the handshake"):
            await connect(f"tcp://{where}", timeout=0.2)
        with pytest.raises(OSError, match="no result yet: opening the websocket"):
            await connect(f"ws://{where}", timeout=0.2)
        with pytest.raises(OSError, match="no result yet: in the TLS handshake"):
            await TRANSPORTS["tls"].connect(f"tls://{where}", timeout=0.2)


@gen_test()
async def test_a_timeout_of_the_caller_cancels_all_attempts():
    async with raw_server(lambda peer: peer.wait_closed()) as where:
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await connect(f"tcp://{where}", timeout=1)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        # One task serves each connection.
        await async_poll_for(
            lambda: all("serve_one" in repr(task) for task in asyncio.all_tasks() - before),
            timeout=5,
        )


# The log and the error


@gen_test()
async def test_a_refused_connection_is_logged_once_while_it_is_retried():
    address = f"tcp://127.0.0.1:{unused_port()}"
    with captured_logger("distributed.comm", level=logging.INFO) as log:
        connecting = asyncio.create_task(connect(address, timeout=5))
        await async_poll_for(log.getvalue, timeout=10)
        async with listen(address, echo):
            comm = await connecting
            await comm.close()
    logged = log.getvalue()
    assert logged.count("Could not connect") == logged.count("\n") == 1
    assert re.search(rf"{address} so far, retrying for another \d.* s: .*refused", logged)


@gen_test()
async def test_a_watcher_learns_of_each_failed_attempt_from_the_first_one():
    address = f"tcp://127.0.0.1:{unused_port()}"
    failures = []
    first = asyncio.Event()

    def watch(attempts):
        failures.append((attempts.addr, type(attempts.failure)))
        first.set()

    before = on_failure.set(watch)
    try:
        connecting = asyncio.create_task(connect(address, timeout=3600))
        await first.wait()
        assert not connecting.done()
        async with listen(address, echo):
            comm = await connecting
            await comm.close()
    finally:
        on_failure.reset(before)
    assert failures[0] == (address, CommClosedError)


@gen_test()
async def test_a_connection_that_succeeds_soon_is_not_logged():
    address = f"tcp://127.0.0.1:{unused_port()}"
    with captured_logger("distributed.comm", level=logging.DEBUG) as log:
        connecting = asyncio.create_task(connect(address, timeout=3600))
        await async_poll_for(lambda: "trying again" in log.getvalue(), timeout=10)
        async with listen(address, echo):
            comm = await connecting
            await comm.close()
    assert "so far" not in log.getvalue()


@gen_test()
async def test_the_final_error_counts_the_attempts_and_gives_the_reason_of_each_kind():
    connections = 0

    async def serve(peer: RawPeer) -> None:
        nonlocal connections
        connections += 1
        if connections % 2:
            peer.reset()
        else:
            await peer.read_message()
            peer.close()

    async with raw_server(serve) as where:
        with pytest.raises(OSError, match="Timed out") as caught:
            await connect(f"tcp://{where}", timeout=0.5)
    text = str(caught.value)
    assert len(re.findall(r"\d+ attempts? failed: ", text)) == 2
    assert "ConnectionResetError" in text
    assert "Stream is closed" in text
    assert isinstance(caught.value.__cause__, OSError)
