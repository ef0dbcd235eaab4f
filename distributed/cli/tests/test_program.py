"""The program: help, errors in one line, exit codes."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from distributed.base.version import __version__
from distributed.cli import exit_codes, main
from distributed.cli.program import _MODULES
from distributed.cli.tests.conftest import Result
from distributed.tests.environments import run_in


def assert_is_one_error(result: Result, code: int, *parts: str) -> None:
    assert result.code == code
    assert result.out == ""
    errors = [line for line in result.err.splitlines() if "so far" not in line]
    assert len(errors) == 1, result.err
    assert "error: " in errors[0]
    for part in parts:
        assert part in errors[0]


def test_the_help_lists_all_commands_and_the_exit_codes(cli):
    result = cli("--help")
    assert (result.code, result.err) == (0, "")
    for name in _MODULES:
        assert f"\n  {name} " in result.out
    for code in (exit_codes.FAILED, exit_codes.USAGE, exit_codes.UNREACHABLE, exit_codes.TIMED_OUT):
        assert f"{code} " in result.out.partition("Exit codes:")[2]


@pytest.mark.parametrize("name", _MODULES)
def test_the_help_of_each_command_has_an_example(cli, name):
    result = cli(name, "--help")
    assert result.code == 0
    assert "Examples" in result.out
    assert f"distributed-core {name} " in result.out.partition("Examples")[2]


@pytest.mark.parametrize("name", ["serve", "call", "describe", "health", "ping", "bench"])
def test_each_command_with_connections_has_the_options_for_tls_and_the_token(cli, name):
    shown = cli(name, "--help").out
    for option in ("--tls-ca-file", "--tls-cert", "--tls-key", "--tls-ciphers", "--token-file"):
        assert option in shown


def test_the_version_is_that_of_the_package(cli):
    assert __version__ in cli("--version").out


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["cal"], "there is no command 'cal'; did you mean 'call'?"),
        (["zzz"], "expected one of ['serve',"),
        (["call"], "missing argument 'ADDRESS'"),
        (["ping", "--cuont", "3"], "--cuont"),
        (["ping", "tcp://x", "-i", "soon"], "'soon' is not a duration"),
        (["ping", "tcp://x", "-i", "-1s"], "negative"),
        (["ping", "tcp://x", "--size", "big"], "'big' is not a size"),
        (["bench"], "give either the ADDRESS of a server, or --serve"),
        (["bench", "tcp://x", "-l", "tcp://y"], "--listen needs --serve"),
        (["ping", "tcp://127.0.0.1:99999"], "invalid port 99999"),
        (["ping", "nix://x"], "unknown address scheme 'nix'"),
    ],
)
def test_a_wrong_argument_is_one_line_on_standard_error(cli, args, error):
    assert_is_one_error(cli(*args), exit_codes.USAGE, error)


def test_a_configuration_that_makes_no_sense_is_one_line(cli, monkeypatch):
    from distributed.base import config

    with config.set({"distributed.comm.shard": "much"}):
        result = cli("ping", "tcp://127.0.0.1:1")
    assert_is_one_error(result, exit_codes.USAGE, "'distributed.comm.shard' is 'much'")


def test_without_click_the_error_names_the_extra(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("distributed.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "click", None)
    assert main(["--help"]) == exit_codes.USAGE
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'distributed-core[cli]'" in error


def test_python_m_without_click_names_the_extra(bare_python):
    code = "import runpy; runpy.run_module('distributed.cli', run_name='__main__')"
    run = run_in(bare_python, code, check=False)
    assert (run.returncode, run.stdout) == (exit_codes.USAGE, "")
    assert "pip install 'distributed-core[cli]'" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_reader_that_leaves_a_pipe_gets_no_traceback(command, server):
    arguments = [*command, "call", server, "forever", "--stream"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == exit_codes.FAILED


@pytest.mark.parametrize("args", [["config"], ["call", "SERVER", "add", "x=1"]])
def test_a_full_disk_is_not_an_error_of_the_server(command, server, args):
    args = [server if each == "SERVER" else each for each in args]
    with open("/dev/full", "wb") as full:
        run = subprocess.run([*command, *args], stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == exit_codes.FAILED
    assert run.stderr == (
        "distributed-core: error: cannot write to the standard output: No space left on device\n"
    )


def test_standard_streams_may_be_closed(command, server):
    # The result is the exit code alone, and no socket gets the number of a standard stream.
    call = shlex.join([*command, "call", server, "add", "x=1"])
    run = subprocess.run(f"{call} <&- >&-", shell=True, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (exit_codes.OK, "")
    run = subprocess.run(f"{call} y=@- <&-", shell=True, stderr=subprocess.PIPE, text=True)
    assert run.returncode == exit_codes.USAGE
    assert "the value of 'y' is not JSON" in run.stderr
    code = "import os; from distributed.cli.program import _open_standard_streams as open_them; "
    code += "open_them(); os._exit(os.open(os.devnull, os.O_RDONLY))"
    python = shlex.join([command[0], "-c", code])
    assert subprocess.run(f"{python} <&- >&- 2>&-", shell=True).returncode > 2
