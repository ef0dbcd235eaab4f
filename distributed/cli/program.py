"""The program ``distributed-core``: its commands, and how an error becomes a line and a code.

The module of a command is imported when the command is used.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Final, TextIO

import click

from distributed.base import config
from distributed.base.arguments import nearest
from distributed.base.version import __version__
from distributed.cli.exit_codes import FAILED, INTERRUPTED, OK, USAGE
from distributed.cli.failures import CommandError, OutputClosed, one_line

__all__ = ["NAME", "program", "run"]

#: The name of the program.
NAME: Final = "distributed-core"

#: Command → its module, which has it as the attribute ``command``.
_MODULES: Final = {
    "serve": "distributed.cli.serve",
    "call": "distributed.cli.call",
    "describe": "distributed.cli.describe",
    "health": "distributed.cli.health",
    "ping": "distributed.cli.ping",
    "bench": "distributed.cli.bench",
    "config": "distributed.cli.config",
    "completion": "distributed.cli.completion",
}

#: The errors of a pipe without a reader, and of a file that cannot be written.
_OUTPUT_ERRORS: Final = frozenset(
    {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
)


class _Program(click.Group):
    """The group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _MODULES.get(cmd_name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(module).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _MODULES:
            near = nearest(args[0], _MODULES)
            hint = f"; did you mean {near!r}?" if near else f": expected one of {list(_MODULES)}"
            ctx.fail(f"there is no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name=NAME)
@click.option("-v", "--verbose", is_flag=True, help="Log what the command does, also details.")
@click.pass_context
def program(ctx: click.Context, verbose: bool) -> None:
    """Run servers, call them, and measure the way to them.

    ADDRESS is that of a server, such as tcp://10.0.0.1:8786, tls://host:8786,
    unix:///run/server.sock or ws://host:8787. Without a scheme it is tcp://.

    \b
    Examples:
      distributed-core serve calculator:server --listen tcp://127.0.0.1:8786
      distributed-core describe tcp://127.0.0.1:8786
      distributed-core call tcp://127.0.0.1:8786 add x=1 y=2

    Exit codes: 0 success, 1 the operation failed, 2 wrong arguments or
    configuration, 3 no connection, 4 time limit, 130 Ctrl-C.
    """
    if verbose:
        ctx.with_resource(_level(logging.DEBUG))
    elif ctx.invoked_subcommand != "serve" and config.get("logging.distributed", None) is None:
        # The error of the command says it, too.
        ctx.with_resource(_level(logging.CRITICAL))


@contextlib.contextmanager
def _level(level: int) -> Iterator[None]:
    """Set the level of this package's log lines until the command ends."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def run(args: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; errors are lines on standard error."""
    _open_standard_streams()
    before = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        result = _run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return result
    except (OutputClosed, OSError) as exc:
        error = exc.__cause__ if isinstance(exc, OutputClosed) else exc
        assert isinstance(error, OSError)
        if error.errno not in _OUTPUT_ERRORS:
            raise
        # A reader that has left wants to hear no more.
        if error.errno != errno.EPIPE:
            _show_error(NAME, f"cannot write to the standard output: {error.strerror}")
        _give_up_stdout()
        return FAILED
    finally:
        warnings.showwarning = before


def _run(args: Sequence[str] | None) -> int:
    try:
        result: Any = program.main(
            None if args is None else list(args),
            prog_name=NAME,
            standalone_mode=False,
        )
    except click.exceptions.Exit as exc:
        return int(exc.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.UsageError as exc:
        path = NAME if exc.ctx is None else exc.ctx.command_path
        _show_error(path, f"{_plain(exc.format_message())} (see '{path} --help')")
        return USAGE
    except click.ClickException as exc:
        _show_error(NAME, exc.format_message())
        return USAGE
    except CommandError as exc:
        if exc.details:
            click.echo(exc.details, err=True)
        _show_error(NAME, exc)
        return exc.exit_code
    return result if isinstance(result, int) else OK


def _plain(text: str) -> str:
    """Return a message of click in the form of this program's."""
    text = text.rstrip(".")
    return text[:1].lower() + text[1:] if text[:2].istitle() or text[1:2] == " " else text


def _show_error(path: str, text: object) -> None:
    click.echo(f"{path}: error: {one_line(text)}", err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    click.echo(f"{NAME}: warning: {one_line(message)}", err=True)


def _open_standard_streams() -> None:
    """Open those that are closed: a socket with such a number would get what libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def _give_up_stdout() -> None:
    """Prevent the error of the interpreter when it flushes the output at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
