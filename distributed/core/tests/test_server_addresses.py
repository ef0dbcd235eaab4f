"""The addresses of a server; listening, also before the event loop runs."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest

from distributed import core
from distributed.core import Server, rpc
from distributed.tests.servers import (
    TCP,
    TRANSPORTS,
    assert_usable,
    connected,
    listen_args,
    serving,
    trusting,
)
from distributed.utils_test import (
    assert_can_connect,
    async_poll_for,
    captured_logger,
    gen_test,
    popen,
)


class Local(Server):
    """A server that listens on the loopback interface unless a host is given."""

    default_ip = "127.0.0.1"


# Addresses


@pytest.mark.parametrize("name", ["address", "listen_address", "host", "port"])
@gen_test()
async def test_a_server_that_does_not_listen_has_no_address(name):
    server = Server({})
    with pytest.raises(ValueError, match="of non-running Server"):
        getattr(server, name)
    await server.close()


@gen_test()
async def test_the_safe_attributes_of_a_server_that_does_not_listen():
    server = Server({})
    assert server.address_safe == "not-running"
    assert server.listeners == []
    assert server.listener is None
    await server.close()


@gen_test()
async def test_the_addresses_of_a_server_that_listens():
    async with serving(TCP) as server:
        assert server.address == f"tcp://127.0.0.1:{server.port}"
        assert server.address_safe == server.listen_address == server.address
        assert server.host == "127.0.0.1"
        assert server.port > 0
        assert server.listeners == [server.listener]
        await assert_can_connect(server.address)


@gen_test()
async def test_the_addresses_of_a_server_within_its_process():
    async with serving("inproc://") as server:
        assert server.address.startswith("inproc://")
        assert server.listen_address == server.address
        assert server.host in server.address
        await assert_can_connect(server.address)


@gen_test()
async def test_a_wildcard_is_in_the_listen_address_only():
    async with Server({}) as server:
        await server.listen("tcp://0.0.0.0:0")
        assert server.listen_address == f"tcp://0.0.0.0:{server.port}"
        assert "0.0.0.0" not in server.address
        await assert_can_connect(server.address)


@gen_test()
async def test_the_addresses_are_kept_after_close():
    async with serving(TCP) as server:
        address = server.address
    assert server.address == address


@gen_test()
async def test_an_address_that_is_set_replaces_that_of_the_listener():
    async with serving(TCP) as server:
        server._address = "tcp://192.0.2.1:5"
        server._listen_address = "tcp://192.0.2.2:6"
        assert server.address == server.address_safe == "tcp://192.0.2.1:5"
        assert server.listen_address == "tcp://192.0.2.2:6"
        assert (server.host, server.port) == ("192.0.2.1", 5)


@gen_test()
async def test_an_address_can_be_set_before_the_server_listens():
    server = Server({})
    server._address = "tcp://192.0.2.1:5"
    assert server.address == "tcp://192.0.2.1:5"
    await server.close()


# Forms of addresses


def free_port():
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@pytest.mark.parametrize(
    "form",
    [lambda port: port, lambda port: ("127.0.0.1", port), lambda port: f"tcp://127.0.0.1:{port}"],
    ids=["port", "host and port", "address"],
)
@gen_test()
async def test_listen_takes_an_address_in_several_forms(form):
    async with Local({}) as server:
        port = free_port()
        await server.listen(form(port))
        assert server.listen_address == f"tcp://127.0.0.1:{port}"


@gen_test()
async def test_listen_at_a_port_of_all_interfaces():
    async with Server({}) as server:
        await server.listen(0)
        await assert_can_connect(f"tcp://127.0.0.1:{server.port}")
        assert server.address != server.listen_address


@gen_test()
async def test_listen_at_an_address_without_a_scheme():
    async with Server({}) as server:
        await server.listen("127.0.0.1:0")
        assert server.listen_address.startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize("args", [(), (None,)])
@gen_test()
async def test_listen_at_the_default_port(args):
    class Scheduler(Local):
        default_port = free_port()

    async with Scheduler({}) as server:
        await server.listen(*args)
        assert server.listen_address == f"tcp://127.0.0.1:{Scheduler.default_port}"


@pytest.mark.parametrize("where", [1.5, b"tcp://:0", object(), {}])
@gen_test()
async def test_listen_at_another_type_is_a_type_error(where):
    async with Server({}) as server:
        with pytest.raises(TypeError, match=r"a port, .*address"):
            await server.listen(where)


@gen_test()
async def test_listen_at_an_unknown_scheme_is_an_error():
    async with Server({}) as server:
        with pytest.raises(ValueError, match="unknown address scheme 'pigeon'"):
            await server.listen("pigeon://loft:1")
        assert server.listeners == []


@gen_test()
async def test_listen_at_an_address_in_use_is_an_error():
    async with serving(TCP) as one, Server({}) as other:
        with pytest.raises(OSError, match=f"{one.port}"):
            await other.listen(one.address)
        assert other.address_safe == "not-running"
        await assert_can_connect(one.address)


@gen_test()
async def test_listen_passes_further_arguments_to_the_transport():
    async with Server({}) as server:
        await server.listen("tcp://0.0.0.0", default_host="192.0.2.7", default_port=0)
        assert server.host == "192.0.2.7"


@gen_test()
async def test_comms_get_the_allow_offload_of_listen():
    async with Server({}) as server:
        await server.listen(TCP, allow_offload=False)
        async with connected(server) as comm:
            await assert_usable(comm)
            (served,) = server._comms
            assert served.allow_offload is False


@TRANSPORTS
@gen_test()
async def test_a_server_listens_at_several_addresses(transport):
    async with Server({}) as server:
        await server.listen(TCP)
        first = server.address
        await server.listen(transport, **listen_args(transport))
        await server.listen(TCP)
        addresses = [listener.contact_address for listener in server.listeners]
        assert len(set(addresses)) == 3
        assert server.address == first == addresses[0]
        assert server.listener is server.listeners[0]
        with trusting(transport):
            for address in addresses:
                async with rpc(address) as remote:
                    assert await remote.identity() == server.identity()
    with trusting(transport):
        for address in addresses:
            with pytest.raises(OSError, match=re.escape(address)):
                await core.connect(address, timeout=0.1)


@gen_test()
async def test_addresses_are_bound_in_the_order_of_the_calls():
    async with Server({}) as server:
        server.listen("inproc://")
        server.listen(TCP)
        await server.listen("inproc://")
        schemes = [listener.listen_address.partition(":")[0] for listener in server.listeners]
        assert schemes == ["inproc", "tcp", "inproc"]


@gen_test()
async def test_a_listen_that_is_awaited_twice_binds_once():
    async with Server({}) as server:
        listening = server.listen(TCP)
        await listening
        await listening
        assert len(server.listeners) == 1


@gen_test()
async def test_a_listen_that_is_not_awaited_and_fails_is_logged():
    async with serving(TCP) as one, Server({}) as other:
        with captured_logger("distributed.core") as log:
            other.listen(one.address)
            await async_poll_for(lambda: log.getvalue())
        assert other.id in log.getvalue()
        assert one.address in log.getvalue()
        assert "OSError" in log.getvalue()
        assert other.listeners == []


@gen_test()
async def test_a_listen_that_is_awaited_and_fails_is_not_logged():
    async with serving(TCP) as one, Server({}) as other:
        with (
            captured_logger("distributed.core") as log,
            pytest.raises(OSError, match="listen"),
        ):
            await other.listen(one.address)
        assert log.getvalue() == ""


@gen_test()
async def test_a_closed_server_does_not_listen():
    server = Server({})
    await server.close()
    with pytest.raises(RuntimeError, match=r"cannot listen at tcp://.* is closed"):
        await server.listen(TCP)
    assert server.listeners == []


@gen_test()
async def test_a_close_before_an_address_is_bound_prevents_it():
    server = await Server({})
    listening = server.listen(TCP)
    await server.close()
    with pytest.raises(RuntimeError, match="cannot listen"):
        await listening
    assert server.listeners == []


@gen_test()
async def test_a_close_while_an_address_is_being_bound(monkeypatch):
    binding = asyncio.Event()

    async def bind_slowly(*args, **kwargs):
        binding.set()
        await asyncio.Event().wait()

    # All transports here bind at once; those of other packages may not.
    monkeypatch.setattr("distributed.core.listening.listen", bind_slowly)
    server = await Server({})
    listening = server.listen(TCP)
    waiting = asyncio.ensure_future(asyncio.wait_for(listening, 20))
    await binding.wait()
    await server.close()
    with pytest.raises(RuntimeError, match="cannot listen"):
        await waiting
    assert server.listeners == []


# Before the loop runs


@pytest.fixture
def loop():
    """The current event loop, which does not run yet."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


def test_a_server_made_before_the_loop_runs_listens_once_the_loop_runs(loop):
    async def call(server):
        await async_poll_for(lambda: server.listeners)
        async with rpc(server.address) as remote:
            assert await remote.add(x=1, y=2) == 3
        await server.close()

    server = Server({"add": lambda x, y: x + y})
    server.listen(TCP)
    assert server.address_safe == "not-running"
    loop.run_until_complete(call(server))


def test_a_listen_whose_loop_never_runs_leaves_nothing(loop):
    Server({}).listen(TCP)


def test_a_listen_before_the_loop_runs_that_fails_is_logged(loop):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        captured_logger("distributed.core") as log,
    ):
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        server = Server({})
        server.listen(address)
        loop.run_until_complete(async_poll_for(lambda: log.getvalue()))
        loop.run_until_complete(server.close())
    assert address in log.getvalue()


SCRIPT = """
import asyncio, sys
from distributed.core import Server

def add(comm, x=None, y=None):
    return x + y

s = Server({'add': add})
s.listen(sys.argv[1])

def tell():
    if s.listeners:
        print(s.address, flush=True)
    else:
        loop.call_later(0.01, tell)

loop = asyncio.get_event_loop()
loop.call_soon(tell)
loop.run_forever()
"""


@gen_test()
async def test_a_script_may_make_a_server_and_run_the_loop_forever():
    with popen(["python", "-W", "ignore", "-c", SCRIPT, TCP], capture_output=True) as process:
        assert process.stdout is not None
        address = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
        async with rpc(address) as remote:
            assert await remote.add(x=1, y=2) == 3


@gen_test()
async def test_a_script_whose_server_cannot_listen_prints_the_error():
    async with serving(TCP) as server:
        with popen(
            ["python", "-W", "ignore", "-c", SCRIPT, server.address], capture_output=True
        ) as process:
            assert process.stdout is not None
            line = await asyncio.to_thread(process.stdout.readline)
            assert f"listening at {server.address} failed" in line.decode()
            while line and f"cannot listen at {server.address}" not in line.decode():
                line = await asyncio.to_thread(process.stdout.readline)
            assert line
