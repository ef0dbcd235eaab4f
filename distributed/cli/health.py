"""``distributed-core health``: a probe of a server, whose exit code is the answer."""

from __future__ import annotations

import click

from distributed.base.text import shown
from distributed.cli.connections import connected, run_command
from distributed.cli.exit_codes import FAILED, OK
from distributed.cli.failures import CommandError
from distributed.cli.options import Access, access_options, json_option, timeout_option
from distributed.cli.output import echo_json

__all__ = ["command"]


@click.command("health", short_help="Ask whether a server serves, for probes.")
@click.argument("address")
@timeout_option("Time for connecting and the answer.", default="5s")
@json_option
@access_options
def command(address: str, timeout: float, as_json: bool, access: Access) -> int:
    """Ask whether the server at ADDRESS serves.

    For the probes of systemd, Docker and Kubernetes. With a long time limit, it
    waits until a server has started.

    \b
    Examples:
      distributed-core health tcp://127.0.0.1:8786
      distributed-core health tcp://127.0.0.1:8786 --timeout 60s && ./start-clients

    Exit codes: 0 the server serves, 1 it is closing or cannot tell, 2 wrong
    arguments, 3 no connection, 4 connected, but no answer in time.
    """
    security = access.apply()

    async def health() -> int:
        async with connected(address, security, timeout, allow_pickle=False) as connection:
            if not connection.runs_this_package:
                raise CommandError(
                    f"{connection.address} runs dask.distributed, which does not tell its health; "
                    f"'distributed-core ping {connection.address}' tells whether it answers"
                )
            left = connection.time_left()
            assert left is not None
            with connection.errors_of("'health'"):
                answer = await connection.remote.within(left).health()
            status = answer.get("status") if isinstance(answer, dict) else None
            if as_json:
                echo_json(answer)
            else:
                click.echo(shown(status))
            return OK if status == "serving" else FAILED

    return run_command(health())
