"""Connecting: notices, errors, TLS, tokens."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from distributed.cli import exit_codes
from distributed.cli.tests.conftest import ready_address
from distributed.cli.tests.test_program import assert_is_one_error
from distributed.comm.tests.transports import unused_port
from distributed.security import tests as security_tests
from distributed.tests.environments import read_address
from distributed.utils_test import popen

TLS = Path(security_tests.__file__).parent / "data" / "tls"
CERTIFICATE = ["--tls-cert", TLS / "cert.pem", "--tls-key", TLS / "key.pem"]
OPTIONS = ["--tls-ca-file", TLS / "ca.pem", *CERTIFICATE]
SERVE = ["serve", "distributed.cli.tests.calculator:server"]


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text("a secret of more than 16 characters\n")
    return path


@pytest.fixture(scope="module")
def guarded(token):
    """A process with ``serve`` whose peers need a certificate and the token."""
    args = [*SERVE, "-l", "tls://127.0.0.1:0", *OPTIONS, "--token-file", token]
    with popen(
        ["python", "-m", "distributed.cli", *map(str, args)], capture_output=True
    ) as process:
        yield ready_address(process.stdout)


def test_a_refusal_is_told_after_the_first_attempt_while_others_follow(command):
    address = f"tcp://127.0.0.1:{unused_port()}"
    with subprocess.Popen(
        [*command, "call", address, "identity", "--timeout", "10 minutes"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stderr.readline()
        assert process.poll() is None
        process.kill()
        process.communicate()
    assert line == f"{address}: refused so far, retrying for another 600 s\n"


def test_a_server_that_begins_to_listen_later_is_reached(command):
    address = f"tcp://127.0.0.1:{unused_port()}"
    with subprocess.Popen(
        [*command, "call", address, "add", "x=1", "--timeout", "60s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert "refused so far" in process.stderr.readline()
        with popen(["python", "-m", "distributed.cli", *SERVE, "-l", address]):
            out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "1\n", "")


def test_no_connection_is_one_error_after_the_notice(cli):
    address = f"tcp://127.0.0.1:{unused_port()}"
    result = cli("call", address, "identity", "--timeout", "600ms")
    assert_is_one_error(result, exit_codes.UNREACHABLE, address, "after 0.6 s", "refused")
    assert result.err.count(f"{address}: refused so far") == 1


def test_a_unix_socket_that_is_missing_is_told(cli, tmp_path):
    result = cli("call", f"unix://{tmp_path}/none", "identity", "--timeout", "600ms")
    assert "not there so far" in result.err
    assert result.code == exit_codes.UNREACHABLE


def test_the_options_give_the_certificate_and_the_token(cli, guarded, token):
    result = cli("call", guarded, "add", "x=1", *OPTIONS, "--token-file", token)
    assert result == (0, "1\n", "")


def test_the_options_last_as_long_as_the_command(cli, guarded, token):
    from distributed.base import config

    before = config.get("distributed.comm.auth.token-file")
    cli("call", guarded, "add", "x=1", *OPTIONS, "--token-file", token)
    assert config.get("distributed.comm.auth.token-file") == before


def test_a_call_without_the_token_is_an_error_that_names_it(cli, guarded):
    result = cli("call", guarded, "add", "x=1", *OPTIONS)
    assert_is_one_error(result, exit_codes.UNREACHABLE, "requires a token")


def test_a_wrong_token_is_an_error(cli, guarded, tmp_path):
    (tmp_path / "other").write_text("another secret of more than 16 characters")
    result = cli("call", guarded, "add", "x=1", *OPTIONS, "--token-file", tmp_path / "other")
    assert_is_one_error(result, exit_codes.UNREACHABLE, "the token is wrong")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "give --tls-ca-file and --tls-cert"),
        (["--tls-ca-file", TLS / "ca.pem"], "--tls-cert is missing"),
        (CERTIFICATE, "--tls-ca-file is missing"),
        (["--tls-ca-file", "/none", *CERTIFICATE], "No such file"),
        ([*OPTIONS, "--tls-ciphers", "ROT13"], "'ROT13' is not valid"),
        ([*OPTIONS, "--token-file", "/none"], "cannot read --token-file '/none'"),
        ([*OPTIONS, "--token-file", "/dev/null"], "'/dev/null' is empty"),
    ],
)
def test_options_that_do_not_suffice_are_an_error_before_connecting(cli, options, error):
    result = cli("call", "tls://127.0.0.1:1", "add", "x=1", *options)
    assert_is_one_error(result, exit_codes.USAGE, error)


def test_the_certificate_may_be_that_of_the_configuration(cli, guarded, token):
    from distributed.base import config

    values = {
        "distributed.comm.tls.ca-file": str(TLS / "ca.pem"),
        "distributed.comm.tls.client.cert": str(TLS / "cert.pem"),
        "distributed.comm.tls.client.key": str(TLS / "key.pem"),
        "distributed.comm.auth.token-file": str(token),
    }
    with config.set(values):
        assert cli("call", guarded, "add", "x=1") == (0, "1\n", "")


def test_options_for_tls_are_not_ignored_by_an_address_without_it(cli, server):
    result = cli("call", server, "add", "x=1", *OPTIONS)
    assert_is_one_error(result, exit_codes.USAGE, "encryption required")


def test_a_server_that_leaves_during_a_call_is_an_error(cli):
    with popen(["python", "-c", LEAVING], capture_output=True, terminate_timeout=1) as process:
        result = cli("call", read_address(process.stdout), "leave")
        process.wait()
    assert_is_one_error(result, exit_codes.UNREACHABLE, "the connection was lost")


LEAVING = """
import asyncio, os
from distributed.core import Server

async def main():
    async with Server({"leave": lambda: os._exit(0)}) as server:
        await server.listen("tcp://127.0.0.1:0")
        print(server.address, flush=True)
        await server.finished()

asyncio.run(main())
"""
