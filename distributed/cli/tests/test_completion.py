"""Shell completion: scripts, commands, keys, operations of the server."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.shell_completion import BashComplete

from distributed.cli.program import NAME, program
from distributed.cli.tests.test_program import assert_is_one_error

VARIABLE = "_DISTRIBUTED_CORE_COMPLETE"


def completions(*args: object) -> list[str]:
    *before, incomplete = map(str, args)
    found = BashComplete(program, {}, NAME, VARIABLE).get_completions(before, incomplete)
    return [item.value for item in found]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_for_the_program(cli, shell):
    result = cli("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert f"{VARIABLE}={shell}_complete" in result.out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.out, text=True, check=True)


def test_another_shell_is_an_error(cli):
    assert_is_one_error(cli("completion", "tcsh"), 2, "'tcsh'")


def test_the_variable_of_the_script_makes_the_program_answer(cli, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"{NAME} heal")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        cli()
    assert capsys.readouterr().out == "plain,health\n"


def test_commands_and_options_are_completed():
    assert completions("c") == ["call", "config", "completion"]
    assert "--tls-ca-file" in completions("call", "--t")


def test_keys_of_the_configuration_are_completed():
    found = completions("config", "distributed.comm.timeouts.c")
    assert found == ["distributed.comm.timeouts.connect"]


def test_operations_and_arguments_are_those_of_the_server(server):
    assert completions("call", server, "s") == ["sleep"]
    assert completions("describe", server, "f") == ["fail", "forever"]
    assert completions("call", server, "add", "") == ["x=", "y="]
    assert completions("call", server, "add", "x=1", "") == ["y="]


def test_a_server_that_does_not_answer_has_no_completions():
    assert completions("call", "tcp://127.0.0.1:99999", "s") == []
