"""What is Unix domain sockets' own: names, files, permissions, and who the peer is."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed import Server, rpc
from distributed.base import config
from distributed.comm import (
    connect,
    get_address_host,
    get_address_host_port,
    get_local_address_for,
    listen,
    resolve_address,
    unix,
)
from distributed.comm.core import Comm, CommClosedError, FatalCommClosedError
from distributed.comm.registry import backends
from distributed.comm.tests.transports import echo
from distributed.protocol import to_serialize
from distributed.utils_test import async_poll_for, captured_logger, gen_test

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="exists on Linux only")


@pytest.fixture
def address(tmp_path) -> str:
    return f"unix://{tmp_path}/s"


def path_of(address: str) -> Path:
    return Path(address.removeprefix("unix://"))


async def assert_echo(address: str, **kwargs: Any) -> None:
    comm = await connect(address, **kwargs)
    await comm.write("hello")
    assert await comm.read() == "hello"
    await comm.close()


# Names


@gen_test()
async def test_a_listener_at_a_path_is_found_there(address):
    async with await listen(address, echo) as listener:
        assert listener.listen_address == listener.contact_address == address
        assert stat.S_ISSOCK(path_of(address).stat().st_mode)
        await assert_echo(address)


@gen_test()
async def test_a_listener_without_a_path_gets_a_new_one_where_nobody_else_can_enter():
    async with await listen("unix://", echo) as one, await listen("unix://", echo) as two:
        assert one.contact_address != two.contact_address
        for listener in (one, two):
            directory = path_of(listener.contact_address).parent.stat()
            assert stat.S_IMODE(directory.st_mode) == 0o700
            assert directory.st_uid == os.getuid()
            await assert_echo(listener.contact_address)


@gen_test()
async def test_a_new_path_is_short_however_long_that_of_temporary_files(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setattr(unix, "_private_directory", None)
    async with await listen("unix://", echo) as listener:
        directory = path_of(listener.contact_address).parent
        assert directory.parent == Path("/tmp")
        assert list(long.iterdir()) == []
        await assert_echo(listener.contact_address)
    directory.rmdir()


@gen_test()
async def test_a_new_directory_is_made_where_somebody_has_removed_it(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(unix, "_private_directory", None)
    async with await listen("unix://", echo) as listener:
        first = path_of(listener.contact_address).parent
    first.rmdir()
    async with await listen("unix://", echo) as listener:
        await assert_echo(listener.contact_address)


@on_linux
@gen_test()
async def test_an_abstract_name_needs_no_file():
    address = f"unix://@distributed-test-{os.getpid()}"
    async with await listen(address, echo) as listener:
        assert listener.contact_address == address
        await assert_echo(address)
        with pytest.raises(OSError, match=re.escape(f"cannot listen at {address}")) as caught:
            await listen(address, echo)
        assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match="Timed out"):
        await connect(address, timeout=0.1)
    async with await listen(address, echo):
        await assert_echo(address)


@gen_test()
async def test_a_relative_path_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    async with await listen("unix://s", echo) as listener:
        assert listener.contact_address == f"unix://{tmp_path}/s"
        await assert_echo("unix://s")


@pytest.mark.parametrize("kind", ["", "@"])
@gen_test()
async def test_a_name_that_is_too_long_is_an_error_that_tells_the_limit(kind):
    limit = 107 if sys.platform == "linux" else 103
    address = f"unix://{kind}/" + "x" * (limit - len(kind))
    expected = f"at most {limit} bytes, and this one has {limit + 1}: {re.escape(address)}"
    with pytest.raises(ValueError, match=expected):
        await listen(address, echo)
    with pytest.raises(ValueError, match=expected):
        await connect(address)


@on_linux
@gen_test()
async def test_the_longest_names_can_be_used(tmp_path):
    path = str(tmp_path / "x")
    for name in (path + "x" * (107 - len(path)), "@" + "x" * 106):
        async with await listen(f"unix://{name}", echo):
            await assert_echo(f"unix://{name}")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("unix://", "needs the path of a socket"),
        ("unix://@", "an abstract name is missing"),
        ("unix:///a\0b", "null character"),
    ],
)
@gen_test()
async def test_what_is_no_name_cannot_be_connected_to(address, why):
    with pytest.raises(ValueError, match=why):
        await connect(address)


@gen_test()
async def test_abstract_names_are_refused_where_there_are_none(monkeypatch):
    monkeypatch.setattr(unix, "_HAS_ABSTRACT_NAMES", False)
    with pytest.raises(ValueError, match="on Linux only: unix://@x"):
        await listen("unix://@x", echo)


@gen_test()
async def test_without_abstract_names_a_client_has_no_name(monkeypatch, address):
    monkeypatch.setattr(unix, "_HAS_ABSTRACT_NAMES", False)
    async with await listen(address, echo):
        comm = await connect(address)
        assert comm.local_address == "unix://(unnamed)"
        assert comm.same_host
        await comm.close()


def test_a_listener_that_was_not_started_has_no_address(address):
    listener = unix.UnixListener(address, echo)
    with pytest.raises(ValueError, match="non-started UnixListener"):
        _ = listener.contact_address
    listener.stop()


@gen_test()
async def test_starting_a_listener_again_binds_nothing_more(address):
    async with await listen(address, echo) as listener:
        assert await listener is listener
        await assert_echo(address)


# Files


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@gen_test()
async def test_only_the_owner_may_connect(address, umask):
    before = os.umask(umask)
    try:
        listener = await listen(address, echo)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path_of(address).stat().st_mode) == 0o600
    listener.stop()


@gen_test()
async def test_the_file_is_removed_when_the_listener_stops(address):
    listener = await listen(address, echo)
    listener.stop()
    assert not path_of(address).exists()
    listener = await listen("unix://", echo)
    listener.stop()
    assert not path_of(listener.contact_address).exists()


@gen_test()
async def test_the_file_is_removed_when_the_listener_is_forgotten(address):
    listener: Any = await listen(address, echo)
    listener.tcp_server.stop()
    del listener
    gc.collect()
    assert not path_of(address).exists()


LISTEN = """
import asyncio, sys
from distributed.comm import listen

async def main():
    listener = await listen(sys.argv[1], print)
    print(listener.contact_address, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


def listening_process(address: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_files_and_directory_are_removed_when_the_process_ends():
    process, address = listening_process("unix://")
    assert path_of(address).exists()
    process.communicate()
    assert process.returncode == 0
    assert not path_of(address).parent.exists()


@gen_test()
async def test_a_socket_whose_process_was_killed_is_replaced(address):
    process, _ = listening_process(address)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path_of(address).exists()
    with pytest.raises(OSError, match="Timed out"):
        await connect(address, timeout=0.1)
    async with await listen(address, echo):
        await assert_echo(address)


@gen_test()
async def test_a_socket_that_is_alive_is_not_replaced(address):
    async with await listen(address, echo):
        with captured_logger("distributed.comm"):
            expected = f"cannot listen at {address}: another socket listens there already"
            with pytest.raises(OSError, match=re.escape(expected)) as caught:
                await listen(address, echo)
        assert caught.value.errno == errno.EADDRINUSE
        await assert_echo(address)


@gen_test()
async def test_a_socket_that_is_too_busy_to_accept_is_not_replaced(address):
    with (
        socket.socket(socket.AF_UNIX) as busy,
        socket.socket(socket.AF_UNIX) as one,
    ):
        busy.bind(str(path_of(address)))
        busy.listen(0)
        one.connect(str(path_of(address)))
        with pytest.raises(OSError, match="another socket listens there already"):
            await listen(address, echo)
        with pytest.raises(OSError, match="too many connections wait to be accepted"):
            await connect(address, timeout=0.1)
    assert path_of(address).exists()


@gen_test()
async def test_a_file_that_is_no_socket_is_not_replaced(address):
    path_of(address).write_text("precious")
    with pytest.raises(OSError, match="a file that is not a socket is there"):
        await listen(address, echo)
    assert path_of(address).read_text() == "precious"


@gen_test()
async def test_a_listener_does_not_remove_the_file_of_its_successor(address):
    listener = await listen(address, echo)
    path_of(address).unlink()
    async with await listen(address, echo):
        listener.stop()
        await assert_echo(address)


@gen_test()
async def test_of_many_that_listen_at_once_at_a_stale_socket_one_succeeds(address):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path_of(address)))
    with captured_logger("distributed.comm"):
        outcomes = await asyncio.gather(
            *(listen(address, echo) for _ in range(20)), return_exceptions=True
        )
        (listener,) = (it for it in outcomes if not isinstance(it, BaseException))
        await assert_echo(address)
    listener.stop()


@gen_test()
async def test_listening_waits_while_another_process_looks_for_stale_sockets(address):
    directory = os.open(path_of(address).parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        listening = asyncio.ensure_future(listen(address, echo))
        done, _ = await asyncio.wait({listening}, timeout=0.05)
        assert not done
    finally:
        os.close(directory)
    (await listening).stop()


@gen_test()
async def test_a_directory_that_stays_locked_is_told_of(monkeypatch, address):
    monkeypatch.setattr(unix, "_LOCK_ATTEMPTS", 3)
    directory = os.open(path_of(address).parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"cannot listen at unix://.* locked"):
            await listen(address, echo)
    finally:
        os.close(directory)


@gen_test()
async def test_a_directory_that_is_missing_is_told_of(address):
    with pytest.raises(FileNotFoundError, match=f"cannot listen at {address}/x"):
        await listen(f"{address}/x", echo)


@pytest.mark.skipif(os.getuid() == 0, reason="root may do anything")
@gen_test()
async def test_a_socket_that_is_forbidden_is_tried_once(address):
    async with await listen(address, echo):
        path_of(address).chmod(0)
        with pytest.raises(FatalCommClosedError, match="Permission denied"):
            await connect(address)


@gen_test()
async def test_what_the_kernel_forbids_is_tried_once(monkeypatch, address):
    # As the test above, where permissions do not hold for root.
    class Forbidden(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "socket", Forbidden)
    with pytest.raises(FatalCommClosedError, match=f"connect to {address}: Permission denied"):
        await connect(address)


# Peers


@on_linux
@gen_test()
async def test_extra_info_tells_who_the_peer_is(address):
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    here = {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid()}
    async with await listen(address, accepted.put):
        comm = await connect(address)
        other = await accepted.get()
        assert comm.extra_info == other.extra_info == here
        await comm.close()
        assert comm.extra_info == here
        await other.close()


@on_linux
@gen_test()
async def test_extra_info_tells_of_another_process(address):
    process, _ = listening_process(address)
    try:
        comm = await connect(address)
        assert comm.extra_info["pid"] == process.pid
        await comm.close()
    finally:
        process.communicate()


@on_linux
@gen_test()
async def test_connections_can_be_told_apart_on_both_sides(address):
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with await listen(address, accepted.put):
        comms = [await connect(address) for _ in range(5)]
        others = [await accepted.get() for _ in range(5)]
        names = [comm.local_address for comm in comms]
        assert len(set(names)) == 5
        assert sorted(names) == sorted(other.peer_address for other in others)
        for comm in comms + others:
            comm.abort()


@gen_test()
async def test_a_peer_that_is_no_peer_is_told_of_once_and_leaves_others_alone(address):
    with captured_logger("distributed.comm") as log:
        async with await listen(address, echo):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(path_of(address)))
                raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await async_poll_for(lambda: "failed before it began" in log.getvalue(), timeout=5)
            await assert_echo(address)
    assert log.getvalue().count("\n") == 1
    assert address in log.getvalue()


@gen_test()
async def test_silence_ends_at_the_deadline_of_the_handshake(address):
    with (
        config.set({"distributed.comm.timeouts.handshake": "100ms"}),
        captured_logger("distributed.comm") as log,
    ):
        async with await listen(address, echo):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(path_of(address)))
                await async_poll_for(lambda: "did not complete" in log.getvalue(), timeout=5)


@gen_test()
async def test_a_token_may_be_required(address):
    async with await listen(address, echo, token="sesame"):
        await assert_echo(address, token="sesame")
        with (
            captured_logger("distributed.comm"),
            pytest.raises(FatalCommClosedError, match="token"),
        ):
            await connect(address, token="simsalabim")


@gen_test()
async def test_where_encryption_is_required_it_is_refused(address):
    expected = f"encryption required by Dask configuration.*{address}"
    with pytest.raises(RuntimeError, match=expected):
        await listen(address, echo, require_encryption=True)
    with pytest.raises(RuntimeError, match=expected):
        await connect(address, require_encryption=True)


@gen_test()
async def test_a_reset_in_the_middle_of_a_message_closes_the_comm(address):
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    async with await listen(address, accepted.put):
        comm = await connect(address)
        other = await accepted.get()
        await other.stream.write(b"\xc8\0\0\0")
        other.abort()
        with pytest.raises(CommClosedError, match=r"in the middle of a message|reset"):
            await comm.read()


# What other parts make of addresses


def test_all_addresses_are_on_this_host():
    hosts = {get_address_host(address) for address in ("unix:///a", "unix:///b", "unix://@c")}
    assert hosts == {socket.gethostname()}


def test_an_address_has_no_port():
    with pytest.raises(ValueError, match="don't know how to extract host and port"):
        get_address_host_port("unix:///run/app.sock")


def test_resolving_makes_paths_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_address("unix:///run/../run/app.sock") == "unix:///run/app.sock"
    assert resolve_address("unix://app.sock") == f"unix://{tmp_path}/app.sock"


def test_who_can_reach_an_address_can_reach_a_new_one():
    assert get_local_address_for("unix:///run/app.sock") == "unix://"


def test_the_backend_is_registered():
    assert isinstance(backends["unix"], unix.UnixBackend)


@gen_test()
async def test_a_server_is_called_over_a_unix_socket(address):
    async with Server({"ping": lambda: "pong"}) as server:
        await server.listen(address)
        assert server.address == address
        async with rpc(address) as remote:
            assert await remote.ping() == "pong"
            assert (await remote.identity())["type"] == "Server"
        assert await server.rpc(address).ping() == "pong"
        answers = await asyncio.gather(*(server.rpc(address).echo(data=i) for i in range(50)))
        assert answers == list(range(50))
    assert not path_of(address).exists()


@pytest.mark.timeout(300)
@gen_test(timeout=240)
async def test_a_message_may_be_larger_than_2_gib(address):
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    size = 2**31 + 200_000_000
    async with await listen(address, accepted.put):
        comm = await connect(address)
        other = await accepted.get()
        sent = bytearray(size)
        sent[-5:] = b"tail!"
        writing = asyncio.create_task(comm.write({"x": to_serialize(sent)}))
        arrived = memoryview((await other.read())["x"])
        assert await writing > size
        assert arrived.nbytes == size
        assert bytes(arrived[-5:]) == b"tail!"
        await comm.close()
        await other.close()
