"""Start ``dask scheduler`` and ``dask worker`` as a user does at a shell, and end them again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class Process:
    """A process that writes everything that it prints to a file."""

    def __init__(self, argv: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.argv = argv
        self.log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(env or {}),
                cwd=log.parent,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout: float = 60) -> int:
        """Wait for the end of the process and return its exit code."""
        return self._process.wait(timeout)

    def end(self) -> None:
        """Terminate the process, or kill it after 10 s; a worker ends when it loses its nanny."""
        if self.is_running():
            self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def started(
    directory: Path,
    name: str,
    *arguments: str,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """Run ``python -m dask ARGUMENTS`` while the context is entered.

    Parameters
    ----------
    directory
        Working directory; the output is written to ``NAME.log`` there.
    python
        Interpreter to use.
    env
        Variables in addition to those of this process.
    """
    process = Process([python, "-m", "dask", *arguments], directory / f"{name}.log", env)
    try:
        yield process
    finally:
        process.end()


@contextmanager
def scheduler(
    directory: Path,
    *arguments: str,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, Process]]:
    """Run ``dask scheduler`` while the context is entered; yield its address and the process."""
    file = directory / "scheduler.json"
    arguments = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0", *arguments)
    with started(
        directory,
        "scheduler",
        "scheduler",
        "--scheduler-file",
        str(file),
        *arguments,
        python=python,
        env=env,
    ) as process:
        deadline = time.monotonic() + 60
        while True:
            try:
                address = json.loads(file.read_text())["address"]
                break
            except (OSError, ValueError):
                assert process.is_running(), process.output
                assert time.monotonic() < deadline, process.output
                time.sleep(0.05)
        yield address, process
