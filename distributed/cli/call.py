"""``distributed-core call``: one request, and its answer or the items of its stream."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click

from distributed.base.arguments import nearest
from distributed.cli.completing import complete_argument, complete_operation
from distributed.cli.connections import Connection, connected, run_command
from distributed.cli.exit_codes import USAGE
from distributed.cli.failures import CommandError, OutputClosed
from distributed.cli.options import Access, access_options, json_option, timeout_option
from distributed.cli.output import as_json, as_text
from distributed.cli.progress import Progress
from distributed.core.handlers import KEYS_OF_REQUESTS
from distributed.core.operations import Operation

__all__ = ["command"]

#: Maximum number of seconds to find the operation that was meant.
_SUGGESTION_LIMIT = 2.0


@click.command("call", short_help="Call an operation of a server.")
@click.argument("address")
@click.argument("op", shell_complete=complete_operation)
@click.argument("arguments", nargs=-1, metavar="[NAME=JSON]...", shell_complete=complete_argument)
@click.option("--stream", is_flag=True, help="Print the items of a streaming answer, line by line.")
@timeout_option("Time for connecting and the call; the handler is cancelled at its end.")
@json_option
@click.option("--raw", is_flag=True, help="Write text and bytes as they are, for files and pipes.")
@click.option("--progress", is_flag=True, help="Show the progress of a stream on standard error.")
@click.option("--total", type=float, metavar="N", help="The amount at which progress is complete.")
@click.option("--done", metavar="KEY", help="The key of an item that says how much is done.")
@click.option("--traceback", is_flag=True, help="Show the remote traceback of an error.")
@click.option("--no-pickle", is_flag=True, help="Do not unpickle anything that the server sends.")
@access_options
def command(
    address: str,
    op: str,
    arguments: tuple[str, ...],
    stream: bool,
    timeout: float | None,
    as_json: bool,
    raw: bool,
    progress: bool,
    total: float | None,
    done: str | None,
    traceback: bool,
    no_pickle: bool,
    access: Access,
) -> int:
    """Call the operation OP of the server at ADDRESS.

    The values of arguments are JSON. Text has quotes of its own, and a shell
    needs quotes around them. NAME=@FILE reads the JSON from a file, NAME=@-
    from standard input.

    The answer is printed as JSON. What JSON lacks, such as bytes and arrays, is
    shown as text, or with --json as a map with its type.

    \b
    Examples:
      distributed-core call tcp://127.0.0.1:8786 add x=1 y=2
      distributed-core call tcp://127.0.0.1:8786 greet name='"Ada"' --json
      distributed-core call tcp://127.0.0.1:8786 store data=@values.json
      distributed-core call tcp://127.0.0.1:8786 count n=3 --stream --timeout 10s
      distributed-core call tcp://127.0.0.1:8786 squares n=1000000 \\
          --stream --progress --done done --total 1000000

    Only call servers that you trust: an answer may contain pickled objects, and
    unpickling can run any code (see --no-pickle).

    Exit codes: 0 success, 1 the handler failed, 2 wrong arguments, 3 no
    connection, 4 time limit, 130 Ctrl-C.
    """
    kwargs = _parse(arguments)
    if raw and as_json:
        raise click.UsageError("--raw and --json cannot be combined")
    if (progress or total is not None or done is not None) and not stream:
        raise click.UsageError("--progress, --total and --done need --stream")
    security = access.apply()
    show_progress = progress or total is not None or done is not None
    printer = _Printer(as_json, raw, Progress(total, done) if show_progress else None)
    options = {"allow_pickle": False} if no_pickle else {}

    async def call() -> None:
        async with connected(address, security, timeout, **options) as connection:
            try:
                with connection.errors_of(f"{op!r}"):
                    await _call(connection, op, kwargs, stream, printer)
            except CommandError as exc:
                if "No handler for op" in str(exc) and connection.runs_this_package:
                    exc.args = (f"{exc}{await _suggestion(connection, op)}",)
                if traceback and exc.__cause__ is not None:
                    exc.details = _traceback(exc.__cause__)
                raise

    return run_command(call())


def _parse(arguments: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of the handler."""
    kwargs: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{argument!r} is not an argument of the form NAME=JSON")
        if name in kwargs:
            raise click.UsageError(f"the argument {name!r} is given twice")
        if name in KEYS_OF_REQUESTS:
            raise click.UsageError(
                f"no handler has an argument {name!r}: in a request this key says "
                f"{KEYS_OF_REQUESTS[name]}"
            )
        where = ""
        if text.startswith("@"):
            where = f" (in {text[1:]!r})"
            text = _read(name, text[1:])
        try:
            kwargs[name] = json.loads(text)
        except ValueError as exc:
            hint = "" if where or len(text) > 50 else f"; is it text? {name}='{json.dumps(text)}'"
            raise click.UsageError(
                f"the value of {name!r} is not JSON{where}: {exc}{hint}"
            ) from None
    return kwargs


def _read(name: str, path: str) -> str:
    try:
        # Input that was closed before the program began is empty.
        if path == "-":
            return "" if sys.stdin is None else sys.stdin.read()
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandError(f"cannot read the value of {name!r}: {exc}", USAGE) from exc


async def _call(
    connection: Connection, op: str, kwargs: dict[str, Any], stream: bool, printer: _Printer
) -> None:
    left = connection.time_left()
    calls = connection.remote if left is None else connection.remote.within(left)
    operation = Operation(calls, op)
    if not stream:
        printer.answer(await operation(**kwargs))
        return
    with printer:
        async with operation.stream(**kwargs) as items:
            async for item in items:
                printer.item(item)


async def _suggestion(connection: Connection, op: str) -> str:
    """Return the part of an error that names the operation most like *op*, if there is one."""
    left = connection.time_left()
    try:
        async with asyncio.timeout(_SUGGESTION_LIMIT if left is None else left):
            description = await connection.remote.describe()
    except Exception:  # noqa: BLE001  (the error of the call matters more)
        return ""
    near = nearest(op, description["operations"])
    return "" if near is None else f"; did you mean {near!r}?"


class _Printer:
    """Prints answers and items on standard output."""

    def __init__(self, as_json: bool, raw: bool, progress: Progress | None) -> None:
        self._as_json = as_json
        self._raw = raw
        self._progress = progress

    def __enter__(self) -> _Printer:
        if self._progress is not None:
            self._progress.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._progress is not None:
            self._progress.__exit__(*exc_info)

    def answer(self, value: Any) -> None:
        """Print the answer of a call."""
        if not self._print_raw(value):
            _echo(as_json(value) if self._as_json else as_text(value))

    def item(self, value: Any) -> None:
        """Print an item of a stream, as one line."""
        if self._progress is not None:
            self._progress.clear()
        if not self._print_raw(value):
            # One line for each item, also for a person.
            _echo(as_json(value))
        if self._progress is not None:
            self._progress.update(value)

    def _print_raw(self, value: Any) -> bool:
        if not self._raw or not isinstance(value, str | bytes | bytearray | memoryview):
            return False
        # Text gets a line break, as a line; bytes do not.
        _echo(value if isinstance(value, str) else bytes(value), nl=isinstance(value, str))
        return True


def _echo(text: str | bytes, nl: bool = True) -> None:
    """Print *text*; a closed pipe or a full disk must not look like a failure of the call."""
    try:
        click.echo(text, nl=nl)
    except OSError as exc:
        raise OutputClosed from exc


def _traceback(exc: BaseException) -> str:
    from distributed.base.text import shown_exception

    return shown_exception(exc, 20_000)
