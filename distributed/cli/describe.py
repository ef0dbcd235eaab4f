"""``distributed-core describe``: the operations of a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from distributed.base.arguments import did_you_mean
from distributed.base.text import shown
from distributed.cli.completing import complete_operation
from distributed.cli.connections import connected, run_command
from distributed.cli.failures import CommandError
from distributed.cli.options import Access, access_options, json_option, timeout_option
from distributed.cli.output import echo_json

__all__ = ["command"]

#: The operations that every server of this package has.
_BUILT_IN = frozenset({"connection_stream", "describe", "dump_state", "echo", "health", "identity"})


@click.command("describe", short_help="Show the operations of a server.")
@click.argument("address")
@click.argument("op", required=False, shell_complete=complete_operation)
@timeout_option("Time for connecting and the answer.")
@json_option
@access_options
def command(
    address: str, op: str | None, timeout: float | None, as_json: bool, access: Access
) -> int:
    """Show the operations of the server at ADDRESS, or the operation OP alone.

    \b
    Examples:
      distributed-core describe tcp://127.0.0.1:8786
      distributed-core describe tcp://127.0.0.1:8786 add --json

    A server that runs dask.distributed does not describe its operations.
    """
    security = access.apply()

    async def describe() -> None:
        async with connected(address, security, timeout, allow_pickle=False) as connection:
            if not connection.runs_this_package:
                raise CommandError(
                    f"{connection.address} runs dask.distributed, which does not describe its "
                    "operations; 'distributed-core call "
                    f"{connection.address} identity' tells what it is"
                )
            left = connection.time_left()
            calls = connection.remote if left is None else connection.remote.within(left)
            with connection.errors_of("'describe'"):
                description = await calls.describe()
            if op is None:
                echo_json(description) if as_json else _show(description, connection.address)
                return
            operation = description["operations"].get(op)
            if operation is None:
                raise CommandError(
                    f"{connection.address} has no operation {op!r}; "
                    f"{did_you_mean(op, description['operations'])}"
                )
            echo_json(operation) if as_json else _show_operation(op, operation)

    return run_command(describe())


def _show(description: Mapping[str, Any], address: str) -> None:
    blocked = set(description["blocked"])
    operations = {op: it for op, it in description["operations"].items() if op not in blocked}
    own = {op: it for op, it in operations.items() if op not in _BUILT_IN}
    click.echo(f"{shown(address)} has {len(own)} operation{'s' * (len(own) != 1)} of its own:")
    for op, operation in own.items():
        _show_operation(op, operation)
    if description["stream_operations"]:
        click.echo("\nOperations of one-way streams:")
        for op, operation in description["stream_operations"].items():
            _show_operation(op, operation)
    built_in = ", ".join(sorted(_BUILT_IN & operations.keys()))
    click.echo(f"\nOperations of every server: {built_in}")
    if blocked:
        click.echo(f"Blocked operations: {', '.join(map(shown, sorted(blocked)))}")


def _show_operation(op: str, operation: Mapping[str, Any]) -> None:
    signature = operation["signature"]
    notes = []
    if operation["streams"]:
        notes.append("streams")
    if operation["comm"]:
        notes.append("may stream or converse")
    note = f"  [{', '.join(notes)}]" if notes else ""
    click.echo(f"  {shown(op)}{shown(signature) if signature else '(...)'}{note}")
    if operation["doc"]:
        click.echo(f"      {shown(operation['doc'])}")
