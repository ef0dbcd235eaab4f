"""``serve``: the factory, addresses, signals, exit codes."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import re
import signal
import socket
import subprocess

import pytest

from distributed.cli import exit_codes
from distributed.cli.serve import load_factory
from distributed.cli.tests import calculator
from distributed.cli.tests.conftest import ready_address
from distributed.cli.tests.test_program import assert_is_one_error
from distributed.core import Server, rpc, running
from distributed.security import Security
from distributed.utils_test import (
    async_poll_for,
    captured_logger,
    gen_test,
    popen,
    tls_security,
)

MODULE = "distributed.cli.tests.calculator"


@pytest.fixture(autouse=True)
def import_path(monkeypatch):
    """Restore the import path after each test."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(
    ("factory", "stop"), [("server", signal.SIGTERM), ("server_later", signal.SIGINT)]
)
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


def test_a_server_listens_at_a_socket_that_it_inherits(cli, command):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fd = listening.fileno()
        address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        args = ["serve", f"{MODULE}:server", "--listen", f"fd://{fd}"]
        with popen([*command, *args], pass_fds=[fd], capture_output=True):
            # The kernel keeps the connection until the server accepts it; a notice may say so.
            assert cli("call", address, "add", "x=1", "--timeout", "60s")[:2] == (0, "1\n")


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
    (tmp_path / "module_of_a_test.py").write_text("def make(): return 3")
    assert load_factory("module_of_a_test:make", str(tmp_path))() == 3


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
        (f"{MODULE}:server.x", f"'{MODULE}' has no 'server.x'"),
        (f"{MODULE}:__name__", "and neither a Server nor a function that returns one"),
        (".calculator:server", "'.calculator:server' is not of the form MODULE:FACTORY"),
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


def test_the_pages_are_served_over_http(command):
    pytest.importorskip("prometheus_client")
    args = ["serve", f"{MODULE}:server", "-l", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]
    with popen([*command, *args], capture_output=True) as process:
        host = next(
            found[1] for line in process.stdout if (found := re.search(rb"http://([\d.:]+)", line))
        ).decode()

        def get(path):
            connection = http.client.HTTPConnection(host)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read()
            finally:
                connection.close()

        status, metrics = get("/metrics")
        assert (status, metrics[:24]) == (200, b"# HELP dask_server_info ")
        address = ready_address(process.stdout)
        with subprocess.Popen(
            [*command, "call", address, "forever", "--stream"], stdout=subprocess.PIPE
        ) as call:
            call.stdout.readline()
            assert get("/ready") == (200, b'{"status":"serving"}\n')
            process.send_signal(signal.SIGTERM)
            next(line for line in process.stdout if b"Received SIGTERM" in line)
            assert get("/ready") == (503, b'{"status":"closing"}\n')
            assert get("/health")[0] == 200
            call.kill()
            call.stdout.read()
        assert process.wait() == running.CLOSED


@pytest.mark.parametrize("option", ["--listen", "--http"])
def test_an_empty_address_is_an_error(cli, option):
    result = cli("serve", f"{MODULE}:server", option, "")
    assert_is_one_error(result, exit_codes.USAGE, f"{option} needs an address")


def test_an_address_of_pages_that_makes_no_sense_is_an_error(cli):
    result = cli("serve", f"{MODULE}:server", "--http", "ftp://127.0.0.1")
    assert_is_one_error(result, exit_codes.USAGE, "--http 'ftp://127.0.0.1'", "ftp")


def test_log_lines_are_json_on_request(command):
    args = ["serve", f"{MODULE}:server", "-l", "tcp://127.0.0.1:0", "--log-json"]
    with popen([*command, *args], capture_output=True) as process:
        line = json.loads(process.stdout.readline())
    assert "is ready at" in line["message"]


def test_the_level_of_the_log_is_that_of_the_option(command, tmp_path):
    path = f"unix://{tmp_path}/socket"
    args = ["serve", f"{MODULE}:server", "-l", path, "--log-level", "warning"]
    with popen([*command, *args], capture_output=True) as process:
        assert subprocess.run([*command, "health", path], capture_output=True).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.communicate()[0] == b""


def test_a_server_without_pickle_refuses_pickled_data(command):
    args = ["serve", f"{MODULE}:server", "-l", "tcp://127.0.0.1:0", "--no-pickle"]

    async def send(address):
        async with rpc(address) as remote:
            return await remote.echo(data=calculator.Unknown())

    with popen([*command, *args], capture_output=True) as process:
        address = ready_address(process.stdout)
        with pytest.raises(Exception, match="allow-pickle"):
            asyncio.run(send(address))


@gen_test()
async def test_the_security_of_a_server_comes_before_that_of_run():
    server = Server({}, security=tls_security())
    with captured_logger("distributed.core", level=logging.WARNING) as log:
        serving = asyncio.create_task(
            running.serve(server, "tls://127.0.0.1:0", security=Security(token="x" * 32))
        )
        await async_poll_for(lambda: server.listeners, timeout=30)
        async with rpc(server.address, security=tls_security()) as remote:
            await remote.echo()
        await server.close()
        assert await serving == running.CLOSED
    assert "has security settings of its own" in log.getvalue()
