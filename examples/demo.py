"""Run the examples of the foundations page, each in a process of its own, and show their output.

Exits with 0 if the output is that of the page, and otherwise with 1 and a message that names the
difference. The examples use port 8888, which must be free.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parent / "foundations"
# The clients need an event loop, which asyncio.get_event_loop() no longer creates from 3.14 on.
NEEDS_LOOP = sys.version_info >= (3, 14)
PORT = 8888
DEADLINE = 60.0  # maximum number of seconds for an example; the slowest takes about four


class DemoError(Exception):
    """An example did not behave as the page says."""


def main() -> int:
    try:
        require_free_port()
        with running("server.py", " &") as server:
            wait_until_listening(server)
            with running("client.py", needs_loop=NEEDS_LOOP) as client:
                expect_lines(client, "3", "1", "2", "3")  # it counts until it is stopped
            with running("client_rpc.py", needs_loop=NEEDS_LOOP) as client:
                expect_lines(client, "3", "")
                expect_success(client)
            if server.poll() is not None:
                raise DemoError(f"the server ended by itself, with exit code {server.returncode}")
    except DemoError as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    return 0


def require_free_port() -> None:
    try:
        socket.create_server(("", PORT)).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise DemoError(
            f"port {PORT}, which the examples use, is taken by another process. "
            f"End that process first; find it with: ss -ltnp 'sport = :{PORT}'"
        ) from None


@contextmanager
def running(
    name: str, background: str = "", needs_loop: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Run an example for the duration of a block; fail if it writes to its standard error."""
    command = [EXAMPLES / name]
    if needs_loop:
        command.insert(0, EXAMPLES.parent / "with_event_loop.py")
    shown = " ".join(str(path.relative_to(EXAMPLES.parents[1])) for path in command)
    print(f"$ python {shown}{background}", flush=True)
    # the examples use get_event_loop() in a way that newer releases of Python warn about
    quiet = "ignore:There is no current event loop:DeprecationWarning"
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": quiet, "DASK_LOGGING__DISTRIBUTED": "warning"},
        )
        watchdog = threading.Timer(DEADLINE, process.kill)  # ends a read that takes too long
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.terminate()
            process.communicate()
            errors.seek(0)
            if text := errors.read():
                raise DemoError(f"{name} wrote to its standard error:\n{text}")


def wait_until_listening(server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            socket.create_connection(("127.0.0.1", PORT), timeout=1).close()
            return
        except OSError as error:
            if server.poll() is not None:
                raise DemoError(f"the server ended with exit code {server.returncode}") from error
            if time.monotonic() > deadline:
                raise DemoError(f"the server does not listen on port {PORT}: {error}") from error
            time.sleep(0.02)


def expect_lines(client: subprocess.Popen[str], *expected: str) -> None:
    """Read and show lines; an empty line in *expected* stands for the end of the output."""
    assert client.stdout is not None
    for line in expected:
        printed = client.stdout.readline()
        print(printed, end="", flush=True)
        if printed.strip() != line:
            raise DemoError(f"the client printed {printed!r} instead of {line!r}")


def expect_success(client: subprocess.Popen[str]) -> None:
    if code := client.wait():
        raise DemoError(f"the client ended with exit code {code}")


if __name__ == "__main__":
    sys.exit(main())
