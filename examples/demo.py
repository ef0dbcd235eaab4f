"""Run the examples of the foundations page as a reader would: each in a process of its own.

Shows what they print. Exits with 0 if that is what the page says and nothing else was printed, and
with 1 and a word on what was different otherwise. Needs port 8888, which the examples name.
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
PORT = 8888
DEADLINE = 60.0  # seconds that an example may take; the slowest takes about four


class DemoError(Exception):
    """Something was not as the page says."""


def main() -> int:
    try:
        require_free_port()
        with running("server.py", " &") as server:
            wait_until_listening(server)
            with running("client.py") as client:
                expect_lines(client, "3", "1", "2", "3")  # and on and on, until it is stopped
            with running("client_rpc.py") as client:
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
            f"port {PORT}, which the examples name, is taken by another process. "
            f"End that one first; this finds it: ss -ltnp 'sport = :{PORT}'"
        ) from None


@contextmanager
def running(name: str, background: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run an example for the duration of a block, and fail if it complains of anything."""
    print(f"$ python examples/foundations/{name}{background}", flush=True)
    # the examples are older than Python's warning about their get_event_loop()
    quiet = "ignore:There is no current event loop:DeprecationWarning"
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-u", EXAMPLES / name],
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": quiet},
        )
        watchdog = threading.Timer(DEADLINE, process.kill)  # ends a read that waits for too long
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.terminate()
            process.communicate()
            complaints.seek(0)
            if text := complaints.read():
                raise DemoError(f"{name} complained:\n{text}")


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
    """Read lines and show them; an empty one stands for the end of the output."""
    assert client.stdout is not None
    for line in expected:
        printed = client.stdout.readline()
        print(printed, end="", flush=True)
        if printed.strip() != line:
            raise DemoError(f"printed was {printed!r}, and not {line!r}")


def expect_success(client: subprocess.Popen[str]) -> None:
    if code := client.wait():
        raise DemoError(f"the client ended with exit code {code}")


if __name__ == "__main__":
    sys.exit(main())
