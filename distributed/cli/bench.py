"""``distributed-core bench``: the rate of calls and the bandwidth between two machines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

import click

from distributed.cli.connections import Connection, connected, run_command
from distributed.cli.options import (
    DURATION,
    SIZE,
    Access,
    access_options,
    has_tls,
    json_option,
    timeout_option,
)
from distributed.cli.output import echo_json
from distributed.cli.samples import in_units, percentile
from distributed.core import Server
from distributed.core.running import run
from distributed.protocol import Serialize, to_serialize

__all__ = ["command"]

#: Number of messages of bandwidth measurements that are under way at the same time.
_IN_FLIGHT = 4


@click.command("bench", short_help="Measure calls per second and bandwidth.")
@click.argument("address", required=False)
@click.option("--serve", is_flag=True, help="Be the other side: a server for measurements.")
@click.option(
    "--listen",
    "-l",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="Where --serve listens; may be given several times. Default: any port.",
)
@click.option(
    "--duration",
    type=DURATION,
    default="2s",
    metavar="DURATION",
    help="Time of each measurement.",
    show_default=True,
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1, max=10_000),
    default=64,
    metavar="N",
    help="Number of concurrent calls, each on a connection of its own.",
    show_default=True,
)
@click.option(
    "--size",
    type=SIZE,
    default="16MiB",
    metavar="SIZE",
    help="Number of bytes of a message whose bandwidth is measured.",
    show_default=True,
)
@timeout_option("Time for the whole command.")
@json_option
@access_options
def command(
    address: str | None,
    serve: bool,
    addresses: Sequence[str],
    duration: float,
    concurrency: int,
    size: int,
    timeout: float | None,
    as_json: bool,
    access: Access,
) -> int:
    """Measure calls per second and bandwidth to the server at ADDRESS.

    The server is one that "bench --serve" runs, or any other, also one of
    dask.distributed: then its operation "echo" is called, and the bandwidth is
    that of messages which travel there and back.

    \b
    Examples, on two machines:
      distributed-core bench --serve --listen tcp://:8786
      distributed-core bench tcp://10.0.0.1:8786 --duration 10s

    \b
    And on one, to compare transports:
      distributed-core bench --serve -l tcp://127.0.0.1:8786 -l unix:///tmp/bench.sock
      distributed-core bench unix:///tmp/bench.sock --json
    """
    if serve == (address is not None):
        raise click.UsageError("give either the ADDRESS of a server, or --serve")
    if addresses and not serve:
        raise click.UsageError("--listen needs --serve")
    security = access.apply()
    if serve:
        from distributed.cli.serve import start_logging

        start_logging("info", False)
        return run(
            BenchServer, addresses or "tcp://:0", security=security if has_tls(security) else None
        )
    assert address is not None

    async def bench() -> None:
        async with connected(address, security, timeout, allow_pickle=False) as connection:
            with connection.errors_of("the measurement"):
                async with asyncio.timeout(connection.time_left()):
                    figures = await _measure(connection, duration, concurrency, size)
        if as_json:
            echo_json(figures)
        else:
            _show(figures)

    return run_command(bench())


class BenchServer(Server):
    """The server side of measurements: operations that take data, and that return it."""

    # It may listen on all interfaces, and needs no pickles.
    allow_pickle = False

    def __init__(self, **kwargs: Any) -> None:
        handlers = {"bench_receive": self.bench_receive, "bench_send": self.bench_send}
        super().__init__(handlers, **kwargs)
        self._data = b""

    def bench_receive(self, data: Any) -> int:
        """Return the size of *data*."""
        return len(data)

    def bench_send(self, size: int) -> Serialize:
        """Return *size* random bytes."""
        if len(self._data) != size:
            self._data = os.urandom(size)
        return to_serialize(self._data)


async def _measure(
    connection: Connection, duration: float, concurrency: int, size: int
) -> dict[str, Any]:
    """Return the figures of all measurements, for JSON."""
    call = connection.remote.call
    operations: dict[str, Any] = {}
    if connection.runs_this_package:
        operations = (await connection.remote.describe())["operations"]
    figures: dict[str, Any] = {"address": connection.address, "duration": duration}

    def echo() -> Awaitable[Any]:
        return call("echo", data=None)

    await echo()
    times: list[float] = []
    figures["sequential"] = {
        "calls_per_second": await _rate(echo, duration, 1, times),
        "median": percentile(times, 50),
        "p99": percentile(times, 99),
    }
    times.clear()
    figures["concurrent"] = {
        "calls": concurrency,
        "calls_per_second": await _rate(echo, duration, concurrency, times),
        "median": percentile(times, 50),
        "p99": percentile(times, 99),
    }
    data = to_serialize(os.urandom(size))
    ways: dict[str, tuple[Callable[[], Awaitable[Any]], int]]
    if "bench_receive" in operations and "bench_send" in operations:
        ways = {
            "to_server": (lambda: call("bench_receive", data=data), size),
            "from_server": (lambda: call("bench_send", size=size), size),
        }
    else:
        ways = {"there_and_back": (lambda: call("echo", data=data), 2 * size)}
    figures["bandwidth"] = {"message_bytes": size}
    for name, (send, transferred) in ways.items():
        await send()
        rate = await _rate(send, duration, _IN_FLIGHT, [])
        figures["bandwidth"][name] = {"bytes_per_second": rate * transferred}
    return figures


async def _rate(
    call: Callable[[], Awaitable[Any]], duration: float, concurrency: int, times: list[float]
) -> float:
    """Return the number of calls per second, and append the time of each to *times*.

    Parameters
    ----------
    call
        Makes one call.
    duration
        Seconds after which no further call begins.  There is at least one call.
    concurrency
        Number of calls at the same time.
    times
        The result, in seconds.
    """
    start = perf_counter()

    async def repeat() -> None:
        while True:
            begin = perf_counter()
            await call()
            now = perf_counter()
            times.append(now - begin)
            if now - start >= duration:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(repeat())
    return len(times) / (perf_counter() - start)


def _show(figures: dict[str, Any]) -> None:
    click.echo(f"{figures['address']}, {figures['duration']:g} s for each line")
    for name, what in (("sequential", "1 call at a time"), ("concurrent", None)):
        each = figures[name]
        what = what or f"{each['calls']} calls at a time"
        click.echo(
            f"  {what:<24} {each['calls_per_second']:>10,.0f} calls/s   "
            f"median {in_units(each['median'])}, p99 {in_units(each['p99'])}"
        )
    bandwidth = figures["bandwidth"]
    names = {
        "to_server": "to the server",
        "from_server": "from the server",
        "there_and_back": "there and back",
    }
    for name, what in names.items():
        if name in bandwidth:
            rate = bandwidth[name]["bytes_per_second"] / 1e9
            click.echo(
                f"  {what:<24} {rate:>10.2f} GB/s      "
                f"messages of {bandwidth['message_bytes']:,} bytes"
            )
