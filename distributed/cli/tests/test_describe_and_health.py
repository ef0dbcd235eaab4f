"""``describe`` and ``health``."""

from __future__ import annotations

from distributed.cli import exit_codes
from distributed.cli.tests.test_program import assert_is_one_error
from distributed.tests.environments import read_address
from distributed.utils_test import popen


def test_the_description_shows_operations_with_signature_and_first_line(cli, server):
    result = cli("describe", server)
    assert (result.code, result.err) == (0, "")
    lines = result.lines
    assert lines[lines.index("  add(x: int, y: int = 0) -> int") + 1] == "      Return the sum."
    assert any(line.startswith("  count(n: int") and "[streams]" in line for line in lines)
    assert "Operations of every server: connection_stream, describe, dump_state, echo" in result.out


def test_the_description_is_json_on_request(cli, server):
    description = cli("describe", server, "--json").json
    assert description["operations"]["add"]["signature"] == "(x: int, y: int = 0) -> int"


def test_one_operation_is_described_alone(cli, server):
    assert cli("describe", server, "add").out.count("\n") == 2
    assert cli("describe", server, "add", "--json").json["doc"] == "Return the sum."


def test_an_operation_that_is_missing_names_the_nearest_one(cli, server):
    result = cli("describe", server, "adt")
    assert_is_one_error(result, exit_codes.FAILED, "did you mean 'add'?")


def test_the_health_of_a_server_is_its_exit_code(cli, server):
    assert cli("health", server) == (exit_codes.OK, "serving\n", "")
    assert cli("health", server, "--json").json == {"status": "serving"}


CLOSING = """
import asyncio
from distributed.core import Server
class Closing(Server):
    def health(self):
        return {"status": "closing"}

async def main():
    async with Closing({}) as server:
        await server.listen("tcp://127.0.0.1:0")
        print(server.address, flush=True)
        await server.finished()

asyncio.run(main())
"""


def test_a_server_that_closes_is_not_healthy(cli):
    with popen(["python", "-c", CLOSING], capture_output=True) as process:
        address = read_address(process.stdout)
        assert cli("health", address) == (exit_codes.FAILED, "closing\n", "")


def test_a_server_of_the_original_cannot_tell_and_the_error_says_what_can(cli, original):
    result = cli("health", original)
    assert_is_one_error(
        result, exit_codes.FAILED, "runs dask.distributed", f"distributed-core ping {original}"
    )
    result = cli("describe", original)
    assert_is_one_error(
        result, exit_codes.FAILED, "runs dask.distributed", f"call {original} identity"
    )


def test_other_commands_work_with_a_server_of_the_original(cli, original):
    assert cli("call", original, "add", "x=1", "y=2") == (0, "3\n", "")
    assert cli("call", original, "identity", "--json").json["type"] == "Server"
    assert cli("ping", original, "-n", 2, "--json").json["seconds"]["count"] == 2
    args = ["--duration", "10ms", "--size", "1kB", "--concurrency", 2, "--json"]
    assert set(cli("bench", original, *args).json["bandwidth"]) == {
        "message_bytes",
        "there_and_back",
    }
