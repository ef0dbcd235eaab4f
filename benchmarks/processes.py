"""The processes of a contestant: started, commanded, stopped while others are measured, and ended.

Each runs in a session of its own, so that all that it started can be stopped and ended with it.
What it writes to its standard error is kept in a file, whose last lines explain a failure.
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

#: Seconds that a process may take until it is ready, and that it has to end by itself.
STARTING, ENDING = 60.0, 5.0


class ContestantFailed(Exception):
    """It ended, took too long, or said itself what went wrong."""


class Process:
    """A contestant's program, running as one of its two sides."""

    # State: `_unread` holds what came after the last whole line, `_stopped` is whether it is kept
    # from running.

    def __init__(self, python: Path, contestant: Contestant, side: str, directory: Path):
        self.what = f"{contestant.title} ({side})"
        self._log = directory / f"{contestant.name}-{side}.log".replace(" ", "-")
        self._unread = b""
        self._stopped = False
        module = f"benchmarks.contestants.{contestant.module}"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", module, side, *contestant.options],
                # here are the benchmarks, and nothing else of this checkout
                cwd=directory,
                env=clean_environ(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.ready = self._read(STARTING)
        except BaseException:
            self.end()
            raise

    def ask(self, command: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Give a command, and wait for what comes of it.

        Raises
        ------
        ContestantFailed
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
            code = str(self._process.wait(ENDING))
        except subprocess.TimeoutExpired:
            code = "its output only"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"{self.what} ended with {code}: {lines[-1] if lines else 'without a word'}"

    def stop(self) -> None:
        """Keep it from running, so that it takes nothing from others."""
        self._signal(signal.SIGSTOP)
        self._stopped = True

    def go_on(self) -> None:
        if self._stopped:
            self._signal(signal.SIGCONT)
            self._stopped = False

    def run_on(self, core: int) -> None:
        """Keep all its threads on this core."""
        for thread in os.listdir(f"/proc/{self._process.pid}/task"):
            try:
                os.sched_setaffinity(int(thread), {core})
            except ProcessLookupError:  # just ended
                pass

    def end(self) -> None:
        """End it and all that it started; it may close what it has open first."""
        self.go_on()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(ENDING)
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
    """The processes of one contestant: his client, and his server if he has one."""

    # State: the processes that were started, of which the last is the client.

    def __init__(self, contestant: Contestant, directory: Path):
        self.contestant = contestant
        self._processes: list[Process] = []
        self.addresses: dict[str, str] = {}
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
        """Have the client do something over this transport.

        Raises
        ------
        ContestantFailed
        """
        if transport not in self.addresses and self.contestant.server and transport != "inproc":
            raise ContestantFailed(f"there is no {transport}")
        address = self.addresses.get(transport, transport)
        return self._processes[-1].ask({**command, "address": address}, timeout)

    def rest(self) -> None:
        """Have the client close what it opened for the last commands."""
        self._processes[-1].ask({"command": "rest"}, 60)

    def used(self, what: str) -> list[float]:
        """Seconds of ``cpu`` or bytes of ``memory``, of each process; the client's last."""
        return [
            value
            for process in self._processes
            for value in process.ask({"command": what}, 60).values()
        ]

    def run_on(self, cores: int) -> None:
        """Keep both sides on one core, or on a core each."""
        if self.contestant.pinned:
            available = sorted(os.sched_getaffinity(0), reverse=True)[:cores]
            for process, core in zip(self._processes, itertools.cycle(available), strict=False):
                process.run_on(core)

    def stop(self) -> None:
        for process in self._processes:
            process.stop()

    def go_on(self) -> None:
        for process in self._processes:
            process.go_on()

    def end(self) -> None:
        for process in reversed(self._processes):
            process.end()
