"""The commands on the page about the command line run, and print what the page shows."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from distributed.cli import exit_codes, main
from distributed.cli.program import _MODULES
from distributed.comm.tests.transports import unused_port
from distributed.core import running
from distributed.tests import pages
from distributed.utils_test import popen

PAGE = Path(__file__).parents[2] / "docs" / "command-line.rst"
BLOCKS = list(pages.blocks(PAGE))


def commands():
    """Yield each command of the page with its expected output."""
    for block in BLOCKS:
        if block.language == "console":
            for part in re.split(r"^\$ ", block.source, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield command, output


def is_server(command):
    return "--serve" in command or command.startswith("distributed-core serve")


@pytest.fixture
def shell(tmp_path):
    """A directory with the module of the page and the program, and its environment."""
    module = next(block for block in BLOCKS if block.language == "python")
    (tmp_path / "calculator.py").write_text(module.source)
    program = tmp_path / "bin" / "distributed-core"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m distributed.cli "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        "PATH": path,
        "HOME": str(tmp_path),
        "PYTHONPATH": str(PAGE.parents[1]),
        "PYTHONUTF8": "1",
    }
    return tmp_path, environment


def test_each_command_prints_what_the_page_shows(shell):
    directory, environment = shell
    ports = {str(port): str(unused_port()) for port in (8786, 8788, 8789)}

    def here(text):
        return re.sub(r"(?<=127\.0\.0\.1:)(878\d)", lambda match: ports[match[0]], text)

    checker = doctest.OutputChecker()
    code = 0
    exported = {}
    with contextlib.ExitStack() as stack:
        for command, expected in commands():
            command, expected = here(command), here(expected)
            if is_server(command):
                argv = [str(directory / "bin" / "distributed-core"), *shlex.split(command)[1:]]
                process = stack.enter_context(
                    popen(argv, capture_output=True, cwd=directory, env=environment)
                )
                output = process.stdout.readline().decode()
            elif command == "echo $?":
                output = f"{code}\n"
            elif command.startswith(("export ", "unset ")):
                name, _, value = command.partition(" ")[2].partition("=")
                exported[name] = value
                if not value:
                    del exported[name]
                continue
            elif command.startswith("distributed-core ") and not exported:
                # In this process, which saves the time of another one.
                both = io.StringIO()
                with contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
                    code = main(shlex.split(command)[1:])
                output = both.getvalue()
            else:
                run = subprocess.run(
                    ["bash", "-c", command],
                    cwd=directory,
                    env=environment | exported,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                output, code = run.stdout, run.returncode
            assert checker.check_output(expected, output, doctest.ELLIPSIS), (
                f"$ {command}\nexpected:\n{expected}\ngot:\n{output}"
            )


@pytest.mark.parametrize("name", _MODULES)
def test_each_command_has_an_example_on_the_page(name):
    assert any(f"distributed-core {name} " in command for command, _ in commands())


def test_the_page_documents_all_exit_codes():
    table = PAGE.read_text().partition("Exit codes\n===")[2]
    shown = {int(code) for code in re.findall(r"^   \* - (\d+)$", table, re.MULTILINE)}
    codes = {getattr(exit_codes, name) for name in exit_codes.__all__}
    codes |= {running.CLOSED, running.FAILED, running.UNFINISHED, running.INVALID, 143}
    assert shown == codes
