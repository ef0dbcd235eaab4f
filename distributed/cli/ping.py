"""``distributed-core ping``: the time of round trips to a server."""

from __future__ import annotations

import asyncio
from time import perf_counter

import click

from distributed.cli.connections import Connection, connected, run_command
from distributed.cli.options import (
    DURATION,
    SIZE,
    Access,
    access_options,
    json_option,
    timeout_option,
)
from distributed.cli.output import echo_json
from distributed.cli.samples import histogram, histogram_lines, in_units, summary

__all__ = ["command"]


@click.command("ping", short_help="Measure round trips to a server.")
@click.argument("address")
@click.option(
    "--count",
    "-n",
    type=click.IntRange(min=1),
    default=100,
    metavar="N",
    help="Number of round trips.",
    show_default=True,
)
@click.option(
    "--interval",
    "-i",
    type=DURATION,
    default="0s",
    metavar="DURATION",
    help="Pause between two round trips.",
    show_default=True,
)
@click.option(
    "--size",
    type=SIZE,
    default="0",
    metavar="SIZE",
    help="Number of bytes that travel each way.",
    show_default=True,
)
@timeout_option("Time for connecting and all round trips.")
@json_option
@access_options
def command(
    address: str,
    count: int,
    interval: float,
    size: int,
    timeout: float | None,
    as_json: bool,
    access: Access,
) -> int:
    """Measure round trips to the server at ADDRESS.

    Each one is a call of the operation "echo", which every server has, also one
    that runs dask.distributed. All use one connection. Ctrl-C ends the command
    with the figures so far.

    \b
    Examples:
      distributed-core ping tcp://127.0.0.1:8786
      distributed-core ping tcp://127.0.0.1:8786 -n 20 -i 100ms --size 1MiB --json
    """
    security = access.apply()

    async def ping() -> None:
        samples: list[float] = []
        async with connected(address, security, timeout, allow_pickle=False) as connection:
            try:
                with connection.errors_of("'echo'"):
                    await _ping(connection, count, interval, size, samples)
            finally:
                # Also after Ctrl-C.
                if samples:
                    _show(connection.address, size, samples, as_json)

    return run_command(ping())


async def _ping(
    connection: Connection, count: int, interval: float, size: int, samples: list[float]
) -> None:
    data = bytes(size) if size else None
    echo = connection.remote.call
    # The first call of a connection takes longer.
    async with asyncio.timeout(connection.time_left()):
        await echo("echo", data=data)
        for i in range(count):
            if i and interval:
                await asyncio.sleep(interval)
            start = perf_counter()
            await echo("echo", data=data)
            samples.append(perf_counter() - start)


def _show(address: str, size: int, samples: list[float], as_json: bool) -> None:
    figures = summary(samples)
    if as_json:
        buckets = [bucket._asdict() for bucket in histogram(samples)]
        echo_json({"address": address, "bytes": size, "seconds": figures, "histogram": buckets})
        return
    click.echo(f"{len(samples)} round trips to {address}, {size:,} bytes each way")
    shown = [f"{name} {in_units(figures[name])}" for name in ("min", "median", "p99", "max")]
    click.echo(f"  {', '.join(shown)}\n")
    for line in histogram_lines(samples):
        click.echo(line)
