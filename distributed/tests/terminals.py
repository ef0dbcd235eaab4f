"""Type the commands of a tutorial into terminals, and compare their output with the page.

A page is a list of blocks, in order.  Blocks with a caption count, others are only shown:

* ``.. code-block:: python`` with a file name as its caption is the content of that file.  It is
  written to the directory of the first machine, or replaces the file there.
* ``.. code-block:: console`` with the caption ``Machine 2, terminal 1`` is what a reader types into
  that terminal, after ``$``, or ``>`` for further lines of a command, and what is shown there then.
  The line ``^C`` is Ctrl-C.  A block without ``$`` is further output of the last command, whose
  lines may come in any order.  A command without output on the page may write anything.

In output, ``...`` stands for any text, also of several lines.  A command whose output has appeared
may continue to run, as a server does.  If it ends, its output must be exactly that of the page.

Each machine has a directory, and each terminal is a shell in a pseudo-terminal.  ``scp FILES
HOST:`` copies files to the directory of the second machine.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distributed.tests import pages

_PROMPT = "<ready>"
_TERMINAL = re.compile(r"Machine (\d), terminal \d+")
_SCP = """#!/bin/sh
for last; do :; done
for file; do [ "$file" = "$last" ] || cp "$file" "$SECOND_MACHINE/"; done
"""


def is_typed(page: Path) -> bool:
    """Return whether a page is typed into terminals, instead of being run block by block."""
    return any(_TERMINAL.fullmatch(block.caption) for block in pages.blocks(page))


class Terminal:
    """A shell in a pseudo-terminal.

    Parameters
    ----------
    command
        The command that starts the shell, on the machine of the terminal.
    directory, environment
        Those of the shell.
    """

    def __init__(self, command: Sequence[str], directory: Path, environment: dict[str, str]):
        self._fd, terminal = pty.openpty()
        modes = termios.tcgetattr(terminal)
        modes[1] &= ~termios.ONLCR
        modes[3] &= ~(termios.ECHO | termios.ECHOCTL)
        termios.tcsetattr(terminal, termios.TCSANOW, modes)
        self._shell = subprocess.Popen(
            [sys.executable, "-c", _CONTROLLING, *command],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=directory,
            env=environment | {"PS1": _PROMPT, "PS2": "", "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(terminal)
        #: What the terminal has shown since the last command.
        self.shown = ""
        self.wait_for("")

    def type(self, line: str) -> None:
        """Type a line, or Ctrl-C, after the last command has ended, or while it runs."""
        if line == "^C":
            self._write("\x03")
        else:
            self.wait_for(None)
            self.shown = ""
            self._write(line + "\n")

    def _write(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, expected: str | None, timeout: float = 40, *, exact: bool = True) -> None:
        """Wait until the terminal shows some output, or with None, the prompt after any output.

        With *exact*, a command that has ended must not have written anything else.

        Raises
        ------
        AssertionError
            If the command ends with other output, or neither ends nor shows this output in time.
        """
        deadline = time.monotonic() + timeout
        while not self._shows(expected, exact):
            if _PROMPT in self.shown:
                raise AssertionError(f"expected:\n{expected}\ngot:\n{self.shown}")
            self._read(deadline - time.monotonic(), f"expected:\n{expected}")

    def _shows(self, expected: str | None, exact: bool) -> bool:
        if expected is None or not expected:
            return _PROMPT in self.shown
        parts = [re.escape(part) for part in expected.strip("\n").split("...")]
        end = _PROMPT if exact and _PROMPT in self.shown else "(?s:.*)"
        return re.fullmatch("(?s:.*)".join(parts) + "\n" + end, self.shown) is not None

    def _read(self, seconds: float, doing: str) -> None:
        ready, _, _ = select.select([self._fd], [], [], max(seconds, 0))
        if not ready:
            raise AssertionError(f"{doing}\nand in time only came:\n{self.shown}")
        try:
            data = os.read(self._fd, 65536)
        except OSError as exc:  # the kernel's way to report the end of a pseudo-terminal
            raise AssertionError(f"{doing}\nbut the shell has ended:\n{self.shown}") from exc
        self.shown += data.decode().replace("\r", "")

    def close(self) -> None:
        """Interrupt the command if one runs, and end the shell.

        Raises
        ------
        AssertionError
            If the command does not end.
        """
        try:
            while select.select([self._fd], [], [], 0)[0]:
                self._read(0, "closing the terminal")
            if _PROMPT not in self.shown:
                self._write("\x03")
                self.wait_for(None, timeout=20)
        finally:
            os.close(self._fd)  # the shell gets SIGHUP
            try:
                self._shell.wait(20)
            finally:
                self._shell.kill()
                self._shell.wait()


#: The shell gets its terminal, which makes Ctrl-C a signal for its command.
_CONTROLLING = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def play(
    page: Path,
    directory: Path,
    on: Callable[[int, list[str]], list[str]],
    addresses: dict[str, str],
) -> None:
    """Do what a page says.

    Parameters
    ----------
    page
        The page.
    directory
        An empty directory for the files of the machines.
    on
        Return the command that runs a command on a machine, 1 or 2.
    addresses
        Text of the page → the text that takes its place, such as the address of a machine.

    Raises
    ------
    AssertionError
        If a command has other output than the page shows, or does not end by Ctrl-C.
    """
    machines = {number: directory / f"machine-{number}" for number in (1, 2)}
    for made in (directory / "bin", *machines.values()):
        made.mkdir(exist_ok=True)
    scp = directory / "bin" / "scp"
    scp.write_text(_SCP)
    scp.chmod(0o755)
    path = [str(scp.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "SECOND_MACHINE": str(machines[2]),
        "HOME": str(directory),
    }
    terminals: dict[str, Terminal] = {}

    def terminal(title: str) -> Terminal:
        if title not in terminals:
            match = _TERMINAL.fullmatch(title)
            assert match is not None, f"{page}: {title!r} is neither a file nor a terminal"
            number = int(match[1])
            shell = on(number, ["bash", "--norc", "--noprofile", "--noediting", "-i"])
            terminals[title] = Terminal(shell, machines[number], environment)
            stack.callback(terminals[title].close)
        return terminals[title]

    with contextlib.ExitStack() as stack:
        for block in pages.blocks(page):
            source = block.source
            for text, other in addresses.items():
                source = source.replace(text, other)
            if block.caption.endswith(".py"):
                (machines[1] / block.caption).write_text(source)
            elif block.caption:
                with _place(page, block.line):
                    _type_and_compare(terminal(block.caption), source)


def _type_and_compare(terminal: Terminal, source: str) -> None:
    before, *commands = re.split(r"^(?:\$ (?=.)|(?=\^C$))", source, flags=re.MULTILINE)
    for line in before.splitlines():
        terminal.wait_for(f"...{line}", exact=False)
    for command in commands:
        typed, _, output = command.partition("\n")
        while output.startswith((">\n", "> ")):
            more, _, output = output.partition("\n")
            typed += "\n" + more[2:]
        terminal.type(typed)
        if typed == "^C":
            terminal.wait_for(None)
            if output.strip():
                terminal.wait_for(f"...{output}")
        else:
            terminal.wait_for(output)


@contextlib.contextmanager
def _place(page: Path, line: int) -> Iterator[None]:
    """Add the place of a block to its errors."""
    try:
        yield
    except AssertionError as exc:
        raise AssertionError(f"{page}, line {line}: {exc}") from exc
