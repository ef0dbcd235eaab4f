"""The processes of a contestant: started, commanded, stopped while others are measured, and ended.

Each process runs in a session of its own, so that its child processes are stopped and ended with
it.  Its standard error goes to a file, whose last line explains a failure.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lineup import Contestant
from distributed.tests.environments import clean_environ

#: Seconds before starting a process times out, and before a process that should end is killed.
START_TIMEOUT, END_TIMEOUT = 60.0, 5.0


class ContestantFailed(Exception):
    """A contestant's process ended, timed out or answered with an error."""


class Process:
    """A process that runs a contestant's program as the server or as the client."""

    def __init__(self, python: Path, contestant: Contestant, side: str, directory: Path):
        self.what = f"{contestant.title} ({side})"
        self._log = directory / f"{contestant.name}-{side}.log".replace(" ", "-")
        self._unread = b""  # bytes of its output after the last whole line
        self._stopped = False  # whether it is stopped by SIGSTOP
        module = f"benchmarks.contestants.{contestant.module}"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", module, side, *contestant.options],
                # this directory has the benchmarks and nothing else of this checkout
                cwd=directory,
                env=clean_environ(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.ready = self._read(START_TIMEOUT)
        except BaseException:
            self.end()
            raise

    def ask(self, command: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Send a command and return its result.

        Raises
        ------
        ContestantFailed
            If the process ended, did not answer within *timeout* seconds, or answered with an
            error.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ContestantFailed(self._how_it_ended()) from None
        answer = self._read(timeout)
        if "error" in answer:
            raise ContestantFailed(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise ContestantFailed(f"{self.what} did not answer within {timeout:.0f} s")
            data = os.read(descriptor, 2**16)
            if not data:
                raise ContestantFailed(self._how_it_ended())
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _how_it_ended(self) -> str:
        try:
            code = str(self._process.wait(END_TIMEOUT))
        except subprocess.TimeoutExpired:
            code = "an open process and a closed output"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"{self.what} ended with {code}: {lines[-1] if lines else 'no error output'}"

    def stop(self) -> None:
        """Stop the process, so that it uses no CPU time while others are measured."""
        self._signal(signal.SIGSTOP)
        self._stopped = True

    def resume(self) -> None:
        if self._stopped:
            self._signal(signal.SIGCONT)
            self._stopped = False

    def pin(self, core: int) -> None:
        """Pin all threads of the process to this core."""
        for thread in os.listdir(f"/proc/{self._process.pid}/task"):
            try:
                os.sched_setaffinity(int(thread), {core})
            except ProcessLookupError:  # the thread ended meanwhile
                pass

    def end(self) -> None:
        """Close its input, so that it can end by itself; then kill it and its child processes."""
        self.resume()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass


class Pair:
    """The processes of one contestant: a client, and a server if the contestant has one."""

    def __init__(self, contestant: Contestant, directory: Path):
        self.contestant = contestant
        self._processes: list[Process] = []  # the client is the last one
        self.addresses: dict[str, str] = {}  # transport → address of the server
        python = contestant.python()
        try:
            if contestant.server:
                server = Process(python, contestant, "serve", directory)
                self._processes.append(server)
                self.addresses = server.ready["addresses"]
            self._processes.append(Process(python, contestant, "call", directory))
        except BaseException:
            self.end()
            raise

    def ask(self, command: Mapping[str, Any], transport: str, timeout: float) -> dict[str, Any]:
        """Send a command to the client, with the server's address for this transport.

        Raises
        ------
        ContestantFailed
            If the transport is missing, or as `Process.ask` raises it.
        """
        if transport not in self.addresses and self.contestant.server and transport != "inproc":
            raise ContestantFailed(f"its server does not listen on {transport}")
        address = self.addresses.get(transport, transport)
        return self._processes[-1].ask({**command, "address": address}, timeout)

    def close_all(self) -> None:
        """Make the client close the connections that it opened for the previous commands."""
        self._processes[-1].ask({"command": "close_all"}, 60)

    def used(self, what: str) -> list[float]:
        """Return seconds of ``cpu`` or bytes of ``memory`` of each process; the client is last."""
        return [
            value
            for process in self._processes
            for value in process.ask({"command": what}, 60).values()
        ]

    def pin(self, cores: int) -> None:
        """Pin both sides to one core, or each to a core of its own."""
        if self.contestant.pinned:
            available = sorted(os.sched_getaffinity(0), reverse=True)[:cores]
            for process, core in zip(self._processes, itertools.cycle(available), strict=False):
                process.pin(core)

    def stop(self) -> None:
        for process in self._processes:
            process.stop()

    def resume(self) -> None:
        for process in self._processes:
            process.resume()

    def end(self) -> None:
        for process in reversed(self._processes):
            process.end()
