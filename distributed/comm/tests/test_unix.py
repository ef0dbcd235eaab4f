"""The ``unix://`` transport: names, files, permissions, and credentials of the peer."""

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
from unittest.mock import Mock

import pytest

from distributed.base import config
from distributed.base.host_addresses import get_ip
from distributed.comm import (
    connect,
    get_address_host,
    get_address_host_port,
    get_local_address_for,
    listen,
    normalize_address,
    resolve_address,
    unix,
)
from distributed.comm.core import CommClosedError, FatalCommClosedError
from distributed.comm.tests.raw_peers import raw_peer
from distributed.comm.tests.transports import TRANSPORTS, echo
from distributed.comm.unix_directory import remove_stale_directories
from distributed.tests.environments import run_here
from distributed.utils_test import async_poll_for, captured_logger, gen_test

UNIX = TRANSPORTS["unix"]

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
    async with listen(address, echo) as listener:
        assert listener.listen_address == listener.contact_address == address
        assert stat.S_ISSOCK(path_of(address).stat().st_mode)
        await assert_echo(address)


@gen_test()
async def test_a_listener_without_a_path_gets_a_new_one_in_a_private_directory():
    async with listen("unix://", echo) as one, await listen("unix://", echo) as two:
        assert one.contact_address != two.contact_address
        for listener in (one, two):
            directory = path_of(listener.contact_address).parent.stat()
            assert stat.S_IMODE(directory.st_mode) == 0o700
            assert directory.st_uid == os.getuid()
            await assert_echo(listener.contact_address)


@gen_test()
async def test_a_new_path_is_short_even_if_the_directory_for_temporary_files_is_long(
    monkeypatch, tmp_path
):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setattr(unix, "_private_directory", None)
    async with listen("unix://", echo) as listener:
        directory = path_of(listener.contact_address).parent
        assert directory.parent == Path("/tmp")
        assert list(long.iterdir()) == []
        await assert_echo(listener.contact_address)
    directory.rmdir()


@gen_test()
async def test_a_new_directory_is_created_if_the_first_was_removed(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(unix, "_private_directory", None)
    async with listen("unix://", echo) as listener:
        first = path_of(listener.contact_address).parent
    first.rmdir()
    async with listen("unix://", echo) as listener:
        await assert_echo(listener.contact_address)


@on_linux
@gen_test()
async def test_a_listener_at_an_abstract_name_is_found_there():
    address = f"unix://@distributed-test-{os.getpid()}"
    async with listen(address, echo) as listener:
        assert listener.contact_address == address
        await assert_echo(address)
        with pytest.raises(OSError, match=re.escape(f"cannot listen at {address}")) as caught:
            await listen(address, echo)
        assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match="Timed out"):
        await connect(address, timeout=0.1)
    async with listen(address, echo):
        await assert_echo(address)


@pytest.mark.parametrize("loc", ["./s", "../here/s"])
@gen_test()
async def test_a_relative_path_is_made_absolute(monkeypatch, tmp_path, loc):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    async with listen(f"unix://{loc}", echo) as listener:
        assert listener.contact_address == f"unix://{here}/s"
        await assert_echo(f"unix://{loc}")


@pytest.mark.parametrize(
    ("loc", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1:0", "127.0.0.1"),
        ("node-1.example.org:8786", "node-1.example.org"),
        ("[::1]:0", "[::1]"),
        (":8786", get_ip()),
        ("0.0.0.0:0", get_ip()),
        ("0.0.0.0", get_ip()),
    ],
)
@gen_test()
async def test_a_host_to_listen_at_means_a_new_path(loc, host):
    async with listen(f"unix://{loc}", echo) as one, await listen(f"unix://{loc}", echo) as two:
        addresses = {one.contact_address, two.contact_address}
        assert len(addresses) == 2
        for address in addresses:
            assert re.fullmatch(rf"unix://{re.escape(host)}:/.*/dask-unix-\w+/\d+", address)
            assert resolve_address(address) == normalize_address(address) == address
            assert get_address_host(address) == host.strip("[]")
            assert get_local_address_for(address) == f"unix://{host}"
            await assert_echo(address)
            # The host is optional.
            await assert_echo("unix://" + address.removeprefix(f"unix://{host}:"))


@gen_test()
async def test_a_new_path_without_a_host_has_none_in_its_address():
    async with listen("unix://", echo) as listener:
        assert listener.contact_address.startswith("unix:///")
        await assert_echo(listener.contact_address)


@on_linux
@gen_test()
async def test_both_ends_of_a_comm_are_at_the_host_of_the_listener(address):
    accepted = asyncio.get_running_loop().create_future()

    async def handle(comm):
        accepted.set_result((comm.local_address, comm.peer_address))
        await comm.close()

    async with listen(f"unix://192.0.2.7:{path_of(address)}", handle) as listener:
        assert listener.contact_address == f"unix://192.0.2.7:{path_of(address)}"
        comm = await connect(listener.contact_address)
        assert {get_address_host(end) for end in await accepted} == {"192.0.2.7"}
        await comm.close()


@pytest.mark.parametrize("kind", ["", "@"])
@gen_test()
async def test_a_name_that_is_too_long_is_an_error_with_the_limit(kind):
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
        async with listen(f"unix://{name}", echo):
            await assert_echo(f"unix://{name}")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("unix://", "needs the path of a socket"),
        ("unix://s", "needs the path of a socket, as in .* or unix://./app.sock"),
        ("unix://127.0.0.1:8786", "needs the path of a socket"),
        ("unix://@", "an abstract name is missing"),
        ("unix:///a\0b", "null character"),
    ],
)
@gen_test()
async def test_connecting_to_an_invalid_name_is_an_error(address, why):
    with pytest.raises(ValueError, match=why):
        await connect(address)


@pytest.mark.parametrize("loc", ["::1", "[::1", "::1:8786", "host:abc", "a:b:c"])
@gen_test()
async def test_an_address_that_is_neither_a_host_nor_a_path_is_an_error(loc):
    for use in (connect(f"unix://{loc}"), to_coroutine(lambda: listen(f"unix://{loc}", echo))):
        with pytest.raises(ValueError, match=r"neither a host nor the path .* an IPv6 host needs"):
            await use


async def to_coroutine(function):
    return await function()


@gen_test()
async def test_abstract_names_are_refused_on_platforms_without_them(monkeypatch):
    monkeypatch.setattr(unix, "_HAS_ABSTRACT_NAMES", False)
    with pytest.raises(ValueError, match="on Linux only: unix://@x"):
        await listen("unix://@x", echo)


@gen_test()
async def test_without_abstract_names_a_client_has_no_name(monkeypatch, address):
    monkeypatch.setattr(unix, "_HAS_ABSTRACT_NAMES", False)
    async with listen(address, echo):
        comm = await connect(address)
        assert comm.local_address == "unix://(unnamed)"
        assert comm.same_host
        await comm.close()


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
async def test_the_file_is_removed_when_the_listener_is_garbage_collected(address):
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


def test_the_directory_of_a_killed_process_is_removed_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process, address = listening_process("unix://")
    survivor, survivors_address = listening_process("unix://")
    process.kill()
    process.communicate()
    assert path_of(address).exists()
    next_process, next_address = listening_process("unix://")
    assert not path_of(address).parent.exists()
    assert path_of(survivors_address).exists()
    assert path_of(next_address).exists()
    for running in (survivor, next_process):
        running.communicate()
        assert running.returncode == 0
    assert list(tmp_path.iterdir()) == []


def leave(parent: Path, name: str = "dask-unix-0123abcd") -> Path:
    """Make what a killed process leaves behind; return its directory."""
    directory = parent / name
    directory.mkdir(0o700)
    (parent / f"{name}.dirlock").touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "1"))
    return directory


def remains(directory: Path) -> bool:
    """Return whether a directory remains after stale ones are removed."""
    remove_stale_directories(str(directory.parent))
    return directory.exists()


def test_only_directories_of_sockets_with_a_lock_file_are_removed(tmp_path):
    stale = leave(tmp_path)
    without_lock = leave(tmp_path, "dask-unix-11111111")
    (tmp_path / "dask-unix-11111111.dirlock").unlink()
    other_name = leave(tmp_path, "dask-unix-xyz")
    assert not remains(stale)
    assert not (tmp_path / "dask-unix-0123abcd.dirlock").exists()
    assert remains(without_lock)
    assert remains(other_name)


def test_files_in_the_directory_of_a_dead_process_are_kept(tmp_path):
    directory = leave(tmp_path)
    (directory / "notes").write_text("mine")
    (directory / "subdirectory").mkdir()
    assert remains(directory)
    assert (directory / "notes").read_text() == "mine"
    assert (directory / "subdirectory").is_dir()


def test_no_link_is_followed_when_stale_directories_are_removed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(elsewhere / "1"))
    space = tmp_path / "space"
    space.mkdir()
    linked = space / "dask-unix-0123abcd"
    linked.symlink_to(elsewhere)
    (space / "dask-unix-0123abcd.dirlock").touch()
    directory = leave(space, "dask-unix-11111111")
    (directory / "2").symlink_to(elsewhere / "1")
    assert remains(linked)
    assert remains(directory)
    assert (elsewhere / "1").exists()


def test_a_lock_file_with_two_names_is_not_taken(tmp_path):
    directory = leave(tmp_path)
    os.link(tmp_path / "dask-unix-0123abcd.dirlock", tmp_path / "other name")
    assert remains(directory)


def test_a_directory_that_others_can_enter_is_kept(tmp_path):
    directory = leave(tmp_path)
    directory.chmod(0o755)
    assert remains(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("what", ["", ".dirlock"])
def test_what_belongs_to_another_user_is_kept(tmp_path, what):
    directory = leave(tmp_path)
    os.chown(f"{directory}{what}", 12345, -1)
    assert remains(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@gen_test()
async def test_a_stale_socket_of_another_user_is_not_replaced(address):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path_of(address)))
    os.chown(path_of(address), 12345, -1)
    with pytest.raises(PermissionError, match="the socket of another user, 12345, is there"):
        await listen(address, echo)
    assert path_of(address).exists()


def test_a_forked_child_makes_its_own_directory_and_keeps_that_of_its_parent(tmp_path):
    run_here(
        """
        import os, sys, tempfile
        from distributed.comm import unix
        tempfile.tempdir = sys.argv[1]
        path = unix._new_path()
        if not (child := os.fork()):
            other = unix._new_path()
            os._exit(os.path.dirname(other) == os.path.dirname(path))
        assert os.waitpid(child, 0)[1] == 0
        assert os.path.isdir(os.path.dirname(path))
        """,
        tmp_path,
    )


@gen_test()
async def test_a_socket_whose_process_was_killed_is_replaced(address):
    process, _ = listening_process(address)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path_of(address).exists()
    with pytest.raises(OSError, match="Timed out"):
        await connect(address, timeout=0.1)
    async with listen(address, echo):
        await assert_echo(address)


@gen_test()
async def test_a_socket_with_a_listener_is_not_replaced(address):
    async with listen(address, echo):
        with captured_logger("distributed.comm"):
            expected = f"cannot listen at {address}: another socket listens there already"
            with pytest.raises(OSError, match=re.escape(expected)) as caught:
                await listen(address, echo)
        assert caught.value.errno == errno.EADDRINUSE
        await assert_echo(address)


@gen_test()
async def test_a_socket_with_a_full_backlog_is_not_replaced(address):
    with (
        socket.socket(socket.AF_UNIX) as busy,
        socket.socket(socket.AF_UNIX) as one,
    ):
        busy.bind(str(path_of(address)))
        busy.listen(0)
        one.connect(str(path_of(address)))
        with pytest.raises(OSError, match="another socket listens there already"):
            await listen(address, echo)
        with pytest.raises(OSError, match="Timed out") as caught:
            await connect(address, timeout=0.1)
        assert "too many connections wait to be accepted" in str(caught.value.__cause__)
    assert path_of(address).exists()


@gen_test()
async def test_a_file_that_is_not_a_socket_is_not_replaced(address):
    path_of(address).write_text("precious")
    with pytest.raises(OSError, match="a file that is not a socket is there"):
        await listen(address, echo)
    assert path_of(address).read_text() == "precious"


@gen_test()
async def test_a_listener_does_not_remove_the_file_of_its_successor(address):
    listener = await listen(address, echo)
    path_of(address).unlink()
    async with listen(address, echo):
        listener.stop()
        await assert_echo(address)


@gen_test()
async def test_one_of_many_listeners_that_start_at_a_stale_socket_succeeds(address):
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
async def test_starting_a_listener_waits_for_the_lock_of_the_directory(monkeypatch, address):
    directory = os.open(path_of(address).parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        flock = Mock(side_effect=fcntl.flock)
        monkeypatch.setattr(fcntl, "flock", flock)
        listening = asyncio.ensure_future(listen(address, echo))
        await async_poll_for(lambda: flock.call_count > 2, timeout=5)
        assert not listening.done()
    finally:
        os.close(directory)
    (await listening).stop()


@gen_test()
async def test_a_directory_that_stays_locked_is_an_error(monkeypatch, address):
    monkeypatch.setattr(unix, "_LOCK_ATTEMPTS", 3)
    directory = os.open(path_of(address).parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"cannot listen at unix://.* locked"):
            await listen(address, echo)
    finally:
        os.close(directory)


@gen_test()
async def test_a_missing_directory_is_an_error_with_the_address(address):
    with pytest.raises(FileNotFoundError, match=f"cannot listen at {address}/x"):
        await listen(f"{address}/x", echo)


@pytest.mark.skipif(os.getuid() == 0, reason="root may do anything")
@gen_test()
async def test_a_forbidden_socket_is_tried_once(address):
    async with listen(address, echo):
        path_of(address).chmod(0)
        with pytest.raises(FatalCommClosedError, match="Permission denied"):
            await connect(address)


@gen_test()
async def test_a_connection_that_the_kernel_forbids_is_tried_once(monkeypatch, address):
    # Like the test above, which cannot run as root, because permissions do not apply to root.
    class Forbidden(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "socket", Forbidden)
    with pytest.raises(FatalCommClosedError, match=f"connect to {address}: Permission denied"):
        await connect(address)


# Peers


@on_linux
@gen_test()
async def test_extra_info_has_the_credentials_of_the_peer():
    here = {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid()}
    async with UNIX.pair() as (comm, other):
        assert comm.extra_info == other.extra_info == here
        await comm.close()
        assert comm.extra_info == here


@on_linux
@gen_test()
async def test_extra_info_has_the_process_id_of_another_process(address):
    process, _ = listening_process(address)
    try:
        comm = await connect(address)
        assert comm.extra_info["pid"] == process.pid
        await comm.close()
    finally:
        process.communicate()


@on_linux
@gen_test()
async def test_each_connection_has_a_name_that_both_sides_know():
    async with UNIX.pair() as (one, other_one), UNIX.pair() as (two, other_two):
        assert one.local_address != two.local_address
        assert one.local_address == other_one.peer_address
        assert two.local_address == other_two.peer_address


@gen_test()
async def test_garbage_is_logged_once_and_does_not_affect_other_peers(address):
    with captured_logger("distributed.comm") as log:
        async with listen(address, echo):
            async with raw_peer(address) as peer:
                await peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await async_poll_for(lambda: "failed before it began" in log.getvalue(), timeout=5)
            await assert_echo(address)
    assert log.getvalue().count("\n") == 1
    assert address in log.getvalue()


@gen_test()
async def test_a_silent_peer_is_closed_at_the_deadline_of_the_handshake(address):
    with (
        config.set({"distributed.comm.timeouts.handshake": "100ms"}),
        captured_logger("distributed.comm") as log,
    ):
        async with listen(address, echo), raw_peer(address) as peer:
            await peer.wait_closed()
    assert "did not complete" in log.getvalue()


@gen_test()
async def test_a_reset_in_the_middle_of_a_message_closes_the_comm():
    async with UNIX.pair() as (comm, other):
        await other.stream.write(b"\xc8\0\0\0")
        other.abort()
        with pytest.raises(CommClosedError, match=r"in the middle of a message|reset"):
            await comm.read()


# Addresses


def test_all_addresses_are_on_this_host():
    hosts = {get_address_host(address) for address in ("unix:///a", "unix:///b", "unix://@c")}
    assert hosts == {get_ip()}


def test_an_address_has_no_port():
    with pytest.raises(ValueError, match="don't know how to extract host and port"):
        get_address_host_port("unix:///run/app.sock")


def test_resolving_makes_paths_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_address("unix:///run/../run/app.sock") == "unix:///run/app.sock"
    assert resolve_address("unix://./app.sock") == f"unix://{tmp_path}/app.sock"


def test_the_local_address_for_a_peer_is_a_new_path():
    assert get_local_address_for("unix:///run/app.sock") == "unix://"
    assert get_local_address_for("unix://h:/run/app.sock") == "unix://h"
