"""``serve``: the factory, addresses, signals, exit codes."""

from __future__ import annotations

import signal
import subprocess

import pytest

from distributed.cli import exit_codes
from distributed.cli.serve import load_factory
from distributed.cli.tests import calculator
from distributed.cli.tests.conftest import ready_address
from distributed.cli.tests.test_program import assert_is_one_error
from distributed.core import running
from distributed.utils_test import popen

MODULE = "distributed.cli.tests.calculator"


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    """Restore the import path after each test."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("factory", ["server", "server_later"])
def test_a_server_is_served_at_all_addresses_until_a_signal(cli, tmp_path, factory, stop):
    path = f"unix://{tmp_path}/socket"
    args = ["serve", f"{MODULE}:{factory}", "-l", "tcp://127.0.0.1:0", "--listen", path]
    with popen(["python", "-m", "distributed.cli", *args], capture_output=True) as process:
        address = ready_address(process.stdout)
        assert cli("call", address, "add", "x=1") == (0, "1\n", "")
        assert cli("call", path, "add", "x=2") == (0, "2\n", "")
        process.send_signal(stop)
        output, _ = process.communicate()
        assert process.returncode == running.CLOSED
    assert b"Traceback" not in output


def test_requests_in_progress_are_cancelled_after_the_shutdown_timeout(command, server):
    args = ["serve", f"{MODULE}:server", "-l", "tcp://127.0.0.1:0", "--shutdown-timeout", "0s"]
    with popen(["python", "-m", "distributed.cli", *args], capture_output=True) as process:
        address = ready_address(process.stdout)
        arguments = [*command, "call", address, "forever", "--stream"]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as call:
            call.stdout.readline()
            process.send_signal(signal.SIGTERM)
            process.communicate()
            assert process.returncode == running.UNFINISHED
            _, err = call.communicate()
            assert call.returncode == exit_codes.FAILED
            assert b"was cancelled: the server closes" in err


def test_the_factory_may_be_a_function_a_class_or_a_nested_name():
    assert load_factory(f"{MODULE}:server") is calculator.server
    assert load_factory(f"{MODULE}:Unknown.__reduce__") is calculator.Unknown.__reduce__


def test_a_module_is_found_in_the_given_directory(tmp_path):
    (tmp_path / "module_of_a_test.py").write_text("thing = 3")
    assert load_factory("module_of_a_test:thing", str(tmp_path)) == 3


BROKEN = """
import os
raise LookupError("broken")
"""


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("calculator", "'calculator' is not of the form MODULE:FACTORY"),
        ("no_such_module:x", "there is no module 'no_such_module' in"),
        (f"{MODULE}:srver", "did you mean 'server'?"),
        ("broken_module_of_a_test:x", "LookupError: broken"),
        ("broken_module_of_a_test:x", "broken_module_of_a_test.py:3"),
        ("importing_module_of_a_test:x", "No module named 'no_such_module'"),
    ],
)
def test_a_factory_that_cannot_be_loaded_is_one_error(cli, tmp_path, name, error):
    (tmp_path / "broken_module_of_a_test.py").write_text(BROKEN)
    (tmp_path / "importing_module_of_a_test.py").write_text("import no_such_module")
    result = cli("serve", name, "--app-dir", tmp_path)
    assert_is_one_error(result, exit_codes.USAGE, error)


def test_a_directory_that_does_not_exist_is_an_error(cli):
    result = cli("serve", "a:b", "--app-dir", "/no/such")
    assert_is_one_error(result, exit_codes.USAGE, "--app-dir '/no/such' is not a directory")
