"""``fd://`` addresses: sockets that another process has opened, and passes to the server."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from distributed.comm.registry import get_backend
from distributed.comm.socket_activation import has_inherited, inherited_addresses
from distributed.core import Server, rpc
from distributed.security import Security
from distributed.tests.servers import connected
from distributed.utils_test import captured_logger, gen_test, tls_security


@pytest.fixture
def tcp():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def unix(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/s")
        sock.listen()
        yield sock


def address_of(sock, scheme="tcp"):
    return f"{scheme}://127.0.0.1:{sock.getsockname()[1]}"


def passed(monkeypatch, count, names="", pid=None):
    """Set the variables of a service manager."""
    monkeypatch.setenv("LISTEN_FDS", str(count))
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() if pid is None else pid))
    monkeypatch.setenv("LISTEN_FDNAMES", names)


@gen_test()
async def test_a_server_listens_at_a_tcp_socket(tcp):
    async with Server({}) as server:
        await server.listen(f"fd://{tcp.fileno()}")
        assert server.address == server.listen_address == address_of(tcp)
        async with rpc(address_of(tcp)) as remote:
            assert await remote.echo(data=1) == 1


@gen_test()
async def test_a_server_listens_at_a_unix_socket_and_leaves_its_file(unix, tmp_path):
    path = unix.getsockname()
    async with Server({}) as server:
        await server.listen(f"fd://{unix.fileno()}")
        assert server.address == f"unix://{path}"
        async with connected(server) as comm:
            assert comm.extra_info["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == [Path(path)]


@gen_test()
async def test_a_server_listens_at_an_abstract_socket():
    if sys.platform != "linux":
        pytest.skip("abstract names exist on Linux only")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0activated-{os.getpid()}")
        sock.listen()
        async with Server({}) as server:
            await server.listen(f"fd://{sock.fileno()}")
            assert server.address == f"unix://@activated-{os.getpid()}"
            async with rpc(server.address) as remote:
                assert await remote.echo(data=1) == 1


@pytest.mark.parametrize("only", [0, 1])
@gen_test()
async def test_the_address_of_a_socket_for_all_interfaces_has_a_host(only):
    with socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind(("::", 0))
        sock.listen()
        async with Server({}) as server:
            await server.listen(f"fd://{sock.fileno()}")
            assert server.listen_address == f"tcp://[::]:{sock.getsockname()[1]}"
            # As for `tcp://:8786`, an IPv4 address if peers may use both versions.
            assert server.address.startswith("tcp://[") == bool(only)
            assert "[::]" not in server.address


@gen_test()
async def test_with_a_tls_context_connections_are_encrypted(tcp):
    async with Server({}) as server:
        await server.listen(f"fd://{tcp.fileno()}", **tls_security().get_listen_args("scheduler"))
        assert server.address == address_of(tcp, "tls")
        async with rpc(server.address, connection_args=client_args()) as remote:
            assert await remote.echo(data=1) == 1


def client_args():
    return {**tls_security().get_connection_args("client")}


@gen_test()
async def test_the_token_of_the_server_is_required(tcp):
    security = Security(token="a token of sixteen or more")
    async with Server({}, security=security) as server:
        await server.listen(f"fd://{tcp.fileno()}")
        with captured_logger("distributed.comm"):
            async with rpc(address_of(tcp)) as stranger:
                with pytest.raises(OSError, match="token"):
                    await stranger.echo()
        async with rpc(address_of(tcp), connection_args={"security": security}) as remote:
            assert await remote.echo(data=1) == 1


@gen_test()
async def test_encryption_can_be_required(tcp):
    async with Server({}) as server:
        with pytest.raises(RuntimeError, match="encryption required"):
            await server.listen(f"fd://{tcp.fileno()}", require_encryption=True)


@gen_test()
async def test_connections_wait_for_the_next_server(tcp):
    started, proceed = asyncio.Event(), asyncio.Event()

    async def work():
        started.set()
        await proceed.wait()

    async with Server({"work": work}) as old, rpc(address_of(tcp)) as remote:
        await old.listen(f"fd://{tcp.fileno()}")
        call = asyncio.create_task(remote.work())
        await started.wait()
        draining = asyncio.create_task(old.drain())
        # Unlike at an address of its own, the server does not accept and refuse.
        await asyncio.sleep(0)
        async with rpc(address_of(tcp)) as early:
            waiting = asyncio.create_task(early.identity())
            async with Server({}) as new:
                await new.listen(f"fd://{tcp.fileno()}")
                assert (await waiting)["id"] == new.id
        proceed.set()
        await call
        assert await draining


@gen_test()
async def test_a_server_may_listen_at_the_same_socket_again(tcp):
    for _ in range(2):
        async with Server({}) as server:
            await server.listen(f"fd://{tcp.fileno()}")
            async with rpc(address_of(tcp)) as remote:
                assert await remote.echo(data=1) == 1


# Names, and what cannot be used


def test_all_sockets_and_named_ones_have_addresses(monkeypatch):
    passed(monkeypatch, 3, "app:admin:app")
    assert has_inherited()
    assert inherited_addresses("fd://") == ["fd://3", "fd://4", "fd://5"]
    assert inherited_addresses("fd://admin") == ["fd://4"]
    assert inherited_addresses("fd://app") == ["fd://3", "fd://5"]
    assert inherited_addresses("fd://7") == ["fd://7"]
    with pytest.raises(ValueError, match=r"has the name 'web' \(names: app, admin, app\)"):
        inherited_addresses("fd://web")


def test_without_names_the_error_says_so(monkeypatch):
    passed(monkeypatch, 1)
    with pytest.raises(ValueError, match=r"\(names: none has a name\); FileDescriptorName="):
        inherited_addresses("fd://web")


@pytest.mark.parametrize(
    ("count", "pid", "error"),
    [
        (None, None, "LISTEN_FDS is not set: is the process started by a socket unit"),
        ("1", 1, r"LISTEN_PID=1 is another process"),
        ("many", None, "LISTEN_FDS='many' is not a number of sockets"),
        ("0", None, "LISTEN_FDS='0' is not"),
    ],
)
def test_sockets_that_were_not_passed_to_this_process_are_an_error(monkeypatch, count, pid, error):
    passed(monkeypatch, count, pid=pid)
    if count is None:
        monkeypatch.delenv("LISTEN_FDS")
    assert not has_inherited()
    with pytest.raises(ValueError, match=rf"no socket for fd://.* {error}"):
        inherited_addresses("fd://")


@gen_test()
async def test_one_listener_has_one_socket(monkeypatch):
    passed(monkeypatch, 2)
    async with Server({}) as server:
        with pytest.raises(ValueError, match=r"2 sockets: listen at each of fd://3, fd://4"):
            await server.listen("fd://")


@gen_test()
async def test_a_descriptor_that_is_not_a_listening_socket_is_an_error(tmp_path):
    def of(sock):
        return sock, sock.fileno()

    ours, theirs = socket.socketpair()
    file = (tmp_path / "file").open("w")  # the loop below closes it
    cases = [
        (of(ours), r"fd://\d+: file descriptor \d+ is a connection and .* needs Accept=no"),
        (of(file), r"file descriptor \d+ is not a socket"),
        (
            of(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
            "not a stream socket; .* needs List",
        ),
        ((theirs, 12345), "file descriptor 12345 is not open"),
        ((theirs, 2**40), "is not open"),
    ]
    async with Server({}) as server:
        for (resource, number), error in cases:
            with resource, pytest.raises(ValueError, match=error):
                await server.listen(f"fd://{number}")


def test_clients_cannot_connect_to_a_descriptor():
    with pytest.raises(ValueError, match="for listening only"):
        get_backend("fd").get_connector()


# Whole processes

PROGRAM = """
import os, sys
from distributed.core import Server, run

class Child(Server):
    def health(self):
        return {"pid": os.getpid(), "inheritable": os.get_inheritable(3)}

server = Child({})
sys.exit(run(server, sys.argv[1:]))
"""


MANAGER = """
import os, sys
tcp, unix, program = sys.argv[1:4]
os.dup2(int(tcp), 3)
os.dup2(int(unix), 4)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-c", program, *sys.argv[4:]])
"""


@contextmanager
def started(command, **kwargs):
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **kwargs) as process:
        try:
            yield process
            process.terminate()
            assert process.wait(20) == 0, process.stderr.read()
        finally:
            process.kill()


@pytest.mark.parametrize("addresses", [[], ["fd://"], ["fd://web", "fd://4"]])
@gen_test()
async def test_a_process_listens_at_the_sockets_that_it_inherits(tcp, unix, addresses):
    # At descriptors 3 and 4, as a service manager passes them.  Only the process itself knows its
    # number before it runs the program.
    sources = [fcntl.fcntl(sock, fcntl.F_DUPFD, 20) for sock in (tcp, unix)]
    command = [sys.executable, "-S", "-c", MANAGER, *map(str, sources), PROGRAM, *addresses]
    env = {**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:local"}
    try:
        with started(command, pass_fds=sources, env=env) as process:
            for address in (address_of(tcp), f"unix://{unix.getsockname()}"):
                async with rpc(address) as remote:
                    assert await remote.health() == {"pid": process.pid, "inheritable": False}
    finally:
        for source in sources:
            os.close(source)


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is missing"
)
@gen_test()
async def test_systemd_starts_a_server_at_the_first_connection(tcp, tmp_path):
    address = address_of(tcp)
    tcp.close()
    listen = address.removeprefix("tcp://")
    command = ["systemd-socket-activate", f"--listen={listen}", f"--listen={tmp_path}/s"]
    command += [f"--setenv={name}" for name in os.environ if name.startswith("PYTHON")]
    command += [sys.executable, "-c", PROGRAM, "fd://"]
    with started(command) as process:
        for each in (address, f"unix://{tmp_path}/s"):
            async with rpc(each) as remote:
                assert (await remote.health())["pid"] == process.pid
