"""Platforms without modules and functions of POSIX, as Windows; other releases of Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distributed.tests.environments import ROOT, clean_environ, run_here

#: Removes what Python lacks on Windows. The standard library is imported before, since it needs it.
WINDOWS = """
    import asyncio, multiprocessing, os, socket, ssl, subprocess, sys, tempfile
    import tornado.httpserver, tornado.simple_httpclient, tornado.web, tornado.websocket
    import cryptography.x509

    asyncio.new_event_loop().close()  # from now on, asyncio does not look at sys.platform
    for name in ("fcntl", "grp", "pwd", "resource", "termios"):
        sys.modules[name] = None
    names = "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_PATH fork geteuid getuid"
    for name in [*names.split(), "register_at_fork", "sysconf", "uname"]:
        if hasattr(os, name):
            delattr(os, name)
    pair, unix = socket.socketpair, socket.AF_UNIX
    socket.socketpair = lambda: pair(unix)  # Python's own event loop needs one
    for name in ("AF_UNIX", "SO_PEERCRED", "SO_REUSEPORT", "TCP_USER_TIMEOUT"):
        if hasattr(socket, name):
            delattr(socket, name)
    os.supports_dir_fd = set()
    sys.platform = "win32"
"""

SERVE = """
    from distributed.core import Server, connect, rpc
    from distributed.utils_test import tls_security

    async def call(address):
        encrypted = address.startswith(("tls:", "wss:"))
        security = tls_security() if encrypted else None
        async with Server({"add": lambda x, y: x + y}, security=security) as server:
            server.start_periodic_callbacks()
            await server.listen(address)
            async with rpc(server.address, security=security) as remote:
                assert await remote.add(x=1, y=2) == 3
            server.monitor.update()
            assert server.monitor.recent()["time"]

    async def main():
        for host in ("tcp://127.0.0.1:0", "tls://127.0.0.1:0", "inproc://", "ws://127.0.0.1:0",
                     "wss://127.0.0.1:0"):
            await call(host)

    asyncio.run(main())
"""

REFUSE = """
    from distributed.core import Server, connect

    async def error(call):
        try:
            await call()
        except NotImplementedError as error:
            print(error)

    async def main():
        async with Server({}) as server:
            await error(lambda: connect("unix:///tmp/app.sock"))
            await error(lambda: server.listen("unix:///tmp/app.sock"))
            await error(lambda: server.upload_file("x.py", b""))

    asyncio.run(main())
"""


def test_without_posix_each_transport_but_unix_works():
    run_here(WINDOWS + SERVE)


def test_without_posix_unix_sockets_and_scratch_directories_are_refused_with_the_reason():
    lines = run_here(WINDOWS + REFUSE).stdout.splitlines()
    assert len(lines) == 3
    assert all("use tcp://127.0.0.1 instead" in line for line in lines[:2])
    assert "a scratch directory needs POSIX" in lines[2]


CLIENT = ROOT / "examples" / "foundations" / "client_rpc.py"


@pytest.mark.skipif(sys.version_info < (3, 14), reason="get_event_loop() creates a loop")
def test_from_python_3_14_on_the_programs_of_the_document_need_an_event_loop():
    run = subprocess.run(
        [sys.executable, CLIENT], capture_output=True, text=True, env=environment()
    )
    assert "There is no current event loop" in run.stderr


def environment() -> dict[str, str]:
    return clean_environ({"PYTHONPATH": str(ROOT)})


def test_a_program_runs_with_an_event_loop_of_its_own(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, sys\n"
        "loop = asyncio.get_event_loop()\n"
        "loop.run_until_complete(asyncio.sleep(0))\n"
        "print(__name__, sys.argv[1:])\n"
    )
    with_loop = ROOT / "examples" / "with_event_loop.py"
    run = subprocess.run(
        [sys.executable, "-W", "error", with_loop, program, "x"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert (run.stdout, run.stderr) == ("__main__ ['x']\n", "")
