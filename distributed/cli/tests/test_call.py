"""``call``: arguments, answers, streams, errors, time limits."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys

import pytest

from distributed.cli import exit_codes
from distributed.cli.tests import calculator
from distributed.cli.tests.test_program import assert_is_one_error


def test_an_answer_is_printed(cli, server):
    assert cli("call", server, "add", "x=1", "y=2") == (0, "3\n", "")


def test_the_address_may_lack_its_scheme(cli, server):
    assert cli("call", server.removeprefix("tcp://"), "add", "x=1").out == "1\n"


def test_values_are_json(cli, server):
    value = {"a": [1, 2.5, None, True], "b": "two"}
    assert cli("call", server, "echo", f"data={json.dumps(value)}", "--json").json == value


def test_a_value_may_be_in_a_file_or_on_standard_input(cli, server, tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    path.write_text('"from a file"')
    assert cli("call", server, "echo", f"data=@{path}", "--json").json == "from a file"
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1]"))
    assert cli("call", server, "echo", "data=@-", "--json").json == [1]


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ("x=two", """is it text? x='"two"'"""),
        ("x", "'x' is not an argument of the form NAME=JSON"),
        ("=1", "is not an argument of the form NAME=JSON"),
        ("op=1", "no handler has an argument 'op'"),
        ("reply=false", "no handler has an argument 'reply'"),
        ("x=@/no/such/file", "cannot read the value of 'x'"),
    ],
)
def test_an_argument_that_makes_no_sense_is_an_error(cli, server, argument, error):
    assert_is_one_error(cli("call", server, "add", argument), exit_codes.USAGE, error)


def test_an_argument_that_is_given_twice_is_an_error(cli, server):
    result = cli("call", server, "add", "x=1", "x=2")
    assert_is_one_error(result, exit_codes.USAGE, "'x' is given twice")


def test_values_that_json_lacks_are_readable_and_in_json_have_a_type(cli, server):
    shown = cli("call", server, "mixed").out
    assert '"bytes": "<bytes: b\'abc\'>"' in shown
    assert cli("call", server, "mixed", "--json").json == {
        "bytes": {"type": "bytes", "base64": "YWJj"},
        "set": [1, 2],
        "infinite": "Infinity",
        "7": [1, None],
    }


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_text_of_the_server_cannot_control_the_terminal(cli, server, options):
    result = cli("call", server, "text", *options)
    assert "\x1b" not in result.out
    assert "\x9b" not in result.out
    assert json.loads(result.out) == "one\ntwo \x1b[2J \x9b2J"


def test_raw_writes_bytes_and_text_as_they_are(command, cli, server):
    run = subprocess.run([*command, "call", server, "data", "--raw"], capture_output=True)
    assert (run.stdout, run.stderr) == (b"\0\xff data", b"")
    assert cli("call", server, "echo", 'data="two"', "--raw").out == "two\n"


def test_the_items_of_a_stream_are_lines(cli, server):
    result = cli("call", server, "count", "n=3", "--stream")
    assert [json.loads(line) for line in result.lines] == [{"done": 1}, {"done": 2}, {"done": 3}]
    assert result.err == ""


def test_a_call_of_an_operation_that_streams_suggests_the_option(cli, server):
    result = cli("call", server, "count", "n=3")
    assert_is_one_error(result, exit_codes.USAGE, "'count'", "add --stream")


def test_a_progress_bar_is_on_standard_error(cli, server):
    args = ["--stream", "--progress", "--done", "done", "--total", 4]
    result = cli("call", server, "count", "n=2", *args)
    assert len(result.lines) == 2
    assert " 50%  2 of 4" in result.err


@pytest.mark.parametrize("option", [["--progress"], ["--total", "3"], ["--done", "x"]])
def test_progress_needs_a_stream(cli, server, option):
    assert_is_one_error(cli("call", server, "add", "x=1", *option), exit_codes.USAGE, "--stream")


def test_the_error_of_a_handler_is_one_line(cli, server):
    result = cli("call", server, "fail", 'text="two\\nlines \\u001b[2J"')
    assert_is_one_error(
        result, exit_codes.FAILED, "'fail' at tcp://", "ValueError: two lines \\x1b"
    )


def test_the_remote_traceback_is_shown_on_request(cli, server):
    result = cli("call", server, "fail", "--traceback")
    assert result.code == exit_codes.FAILED
    assert "calculator.py" in result.err
    assert result.err.splitlines()[-1].startswith("distributed-core: error: 'fail'")


def test_an_unknown_operation_is_an_error_that_names_the_nearest_one(cli, server):
    result = cli("call", server, "ad")
    assert_is_one_error(result, exit_codes.FAILED, "No handler", "'ad'", "did you mean 'add'?")
    assert_is_one_error(cli("call", server, "zzz"), exit_codes.FAILED, "No handler", "'zzz'")


def test_an_answer_that_cannot_be_unpickled_is_an_error_that_says_so(cli, server):
    result = cli("call", server, "unknown")
    assert_is_one_error(result, exit_codes.FAILED, "cannot be unpickled here", "'elsewhere'")


def test_nothing_is_unpickled_if_that_is_not_wanted(cli, server):
    result = cli("call", server, "unknown", "--no-pickle")
    assert_is_one_error(result, exit_codes.FAILED, "pickle")
    assert "elsewhere" not in result.err


@pytest.mark.parametrize("args", [["sleep"], ["forever", "--stream"]])
def test_a_time_limit_ends_a_call(cli, server, args):
    result = cli("call", server, *args, "--timeout", "100ms")
    assert result.code == exit_codes.TIMED_OUT
    assert "no answer in time" in result.err


@pytest.mark.parametrize("args", [["sleep"], ["count", "n=1000000", "interval=0.01", "--stream"]])
def test_ctrl_c_ends_a_call_without_a_traceback(command, server, args):
    calculator.sleeping.clear()
    with subprocess.Popen(
        [*command, "call", server, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        if "--stream" in args:
            process.stdout.readline()
        else:
            assert calculator.sleeping.wait(60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        # click ends the line of "^C".
        assert (process.returncode, err) == (exit_codes.INTERRUPTED, b"\n")
