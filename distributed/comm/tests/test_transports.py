"""Rules that several transports share but not all, each checked over those that have it."""

from __future__ import annotations

import asyncio
import errno
import re
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from distributed import Server, rpc
from distributed.comm import connect, get_address_host, get_address_host_port, listen
from distributed.comm.core import Comm
from distributed.comm.registry import backends, get_backend
from distributed.comm.tests.raw_peers import connect_raw
from distributed.comm.tests.transports import TRANSPORTS, Transport, echo
from distributed.protocol import to_serialize
from distributed.utils_test import gen_test

BACKENDS = {
    "tcp": "TCPBackend",
    "tls": "TLSBackend",
    "unix": "UnixBackend",
    "ws": "WSBackend",
    "wss": "WSSBackend",
    "inproc": "InProcBackend",
}


def over(*names: str) -> Any:
    """Parametrize a test over some transports."""
    return pytest.mark.parametrize("transport", [TRANSPORTS[name] for name in names], ids=names)


@pytest.mark.parametrize(("scheme", "name"), BACKENDS.items())
def test_the_backend_is_registered(scheme, name):
    assert type(backends[scheme]).__name__ == name


# Listeners


@over("tcp", "tls", "unix", "ws", "wss")
def test_a_listener_that_was_not_started_has_no_address(transport: Transport):
    scheme, _, loc = transport.listen_at.partition("://")
    listener: Any = get_backend(scheme).get_listener(loc, echo, True, **transport.listen_args())
    expected = f"non-started {type(listener).__name__}"
    with pytest.raises(ValueError, match=expected):
        _ = listener.listen_address
    with pytest.raises(ValueError, match=expected):
        _ = listener.contact_address
    listener.stop()


@over("tcp", "tls", "unix", "ws", "wss")
@gen_test()
async def test_starting_a_listener_again_binds_nothing_more(transport: Transport):
    async with transport.listening(echo) as listener:
        address = listener.listen_address
        assert await listener is listener
        assert listener.listen_address == listener.contact_address == address


@over("tcp", "tls", "ws", "wss")
@gen_test()
async def test_port_0_is_a_free_port(transport: Transport):
    async with transport.listening(echo) as listener:
        assert get_address_host_port(listener.contact_address)[1] > 0


@over("tcp", "tls", "unix", "ws", "wss")
@gen_test()
async def test_an_address_that_is_in_use_is_an_error_that_names_it(transport: Transport):
    async with transport.listening(echo) as listener:
        address = listener.listen_address
        with pytest.raises(OSError, match=re.escape(f"cannot listen at {address}")) as caught:
            await transport.listen(echo, address)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("where", ["", ":0", "0.0.0.0", "0.0.0.0:0"])
@over("tcp", "ws")
@gen_test()
async def test_a_listener_on_all_interfaces_has_a_contact_address_with_a_host(transport, where):
    scheme, _, _ = transport.listen_at.partition("://")
    async with transport.listening(echo, address=f"{scheme}://{where}") as listener:
        assert get_address_host(listener.contact_address) not in ("", "0.0.0.0", "::")
        _, port = get_address_host_port(listener.contact_address)
        for address in (listener.contact_address, f"{scheme}://127.0.0.1:{port}"):
            await (await connect(address)).close()


@over("tcp", "unix")
@gen_test()
async def test_many_waiting_connections_are_accepted_in_few_event_loop_iterations(transport):
    async with transport.listening(echo) as listener:
        peers = [connect_raw(listener.contact_address) for _ in range(200)]
        turns = 0
        while len(listener._handshaking) < len(peers):
            await asyncio.sleep(0)
            turns += 1
            assert turns < 20
        for peer in peers:
            peer.close()


@over("tcp", "unix")
@gen_test()
async def test_a_connection_accepted_just_before_the_listener_stops_is_closed(transport):
    seen: list[Comm] = []
    listener = await transport.listen(seen.append)
    peer = connect_raw(listener.contact_address)
    (sock,) = listener.tcp_server._sockets.values()
    listener.tcp_server._accept(sock, IOLoop.READ)
    listener.stop()
    assert await peer.wait_closed() == b""
    peer.close()
    assert seen == []


# Encryption


@over("tcp", "unix", "ws")
@gen_test()
async def test_plain_transports_are_refused_if_encryption_is_required(transport: Transport):
    async with transport.listening(echo) as listener:
        address = listener.contact_address
        expected = (
            f"encryption required by Dask configuration, refusing communication from/to '{address}'"
        )
        with pytest.raises(RuntimeError, match=re.escape(expected)):
            await connect(address, require_encryption=True)
    with pytest.raises(RuntimeError, match=r"encryption required .* from/to"):
        await listen(transport.listen_at, echo, require_encryption=True)


@over("tls", "wss", "inproc")
@gen_test()
async def test_other_transports_are_not_refused_if_encryption_is_required(transport: Transport):
    required = {"require_encryption": True}
    listen_args = transport.listen_args() | required
    async with listen(transport.listen_at, echo, **listen_args) as listener:
        comm = await connect(listener.contact_address, **(transport.connect_args() | required))
        await comm.close()


@pytest.mark.parametrize("context", [None, "context", {}])
@pytest.mark.parametrize("scheme", ["tls", "wss"])
@gen_test()
async def test_encrypted_transports_need_a_context(scheme, context):
    if (scheme, context) != ("wss", None):  # It trusts the authorities of the system.
        with pytest.raises(TypeError, match=re.escape(f"Instead got {context!r}")):
            await connect(f"{scheme}://127.0.0.1:1", ssl_context=context)
    with pytest.raises(TypeError, match="TLS expects a `ssl_context` argument"):
        await listen(f"{scheme}://127.0.0.1:0", echo, ssl_context=context)


# Messages and calls


@over(*TRANSPORTS)
@gen_test()
async def test_a_second_reader_is_refused_and_the_first_continues(transport: Transport):
    async with transport.pair() as (client, server):
        reading = asyncio.create_task(client.read())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another coroutine is already reading"):
            await client.read()
        await server.write("for the first")
        assert await reading == "for the first"


@over("tls", "unix", "ws", "wss")
@gen_test()
async def test_a_server_is_called(transport: Transport):
    connection_args = transport.connect_args()
    async with Server({"add": lambda x, y: x + y}, connection_args=connection_args) as server:
        await server.listen(transport.listen_at, **transport.listen_args())
        async with rpc(server.address, connection_args=connection_args) as remote:
            assert await remote.add(x=1, y=2) == 3
        answers = await asyncio.gather(
            *(server.rpc(server.address).echo(data=i) for i in range(50))
        )
        assert answers == list(range(50))


@pytest.mark.timeout(300)
@over("tcp", "tls", "unix")
@gen_test(timeout=240)
async def test_a_message_may_be_larger_than_2_gib(transport: Transport):
    size = 2**31 + 200_000_000
    async with transport.pair() as (client, server):
        data = bytearray(size)
        data[-5:] = b"tail!"
        writing = asyncio.create_task(client.write({"x": to_serialize(data)}))
        arrived = memoryview((await server.read())["x"])
        assert await writing > size
        assert arrived.nbytes == size
        assert bytes(arrived[-5:]) == b"tail!"
        await server.write("still usable")
        assert await client.read() == "still usable"
