"""``distributed-core config``: every configuration key, and a check."""

from __future__ import annotations

import json
from typing import Any

import click
from click.shell_completion import CompletionItem

from distributed.base.arguments import nearest
from distributed.base.config_keys import KEYS
from distributed.base.config_names import nearest_key, plain
from distributed.base.config_review import DEFAULT, Setting, settings, unknown_keys
from distributed.base.text import shown
from distributed.cli.exit_codes import FAILED, OK
from distributed.cli.failures import one_line
from distributed.cli.output import echo_json

__all__ = ["command"]


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [
        CompletionItem(key, help=entry.meaning)
        for key, entry in KEYS.items()
        if key.startswith(incomplete)
    ]


@click.command("config", short_help="Show and check the configuration.")
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=_complete)
@click.option("--changed", is_flag=True, help="Show only keys that are set somewhere.")
@click.option("--check", is_flag=True, help="Find misspelt keys and values that make no sense.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(keys: tuple[str, ...], changed: bool, check: bool, as_json: bool) -> int:
    """Show every configuration key with its value, source and meaning.

    KEY is a key or a section; without one, all keys are shown. The source is a
    file, an environment variable, or "default". Secrets are not shown.

    \b
    Examples:
      distributed-core config
      distributed-core config distributed.comm.timeouts
      distributed-core config --changed --json
      distributed-core config --check

    Exit codes: 0 success, 1 --check has found a mistake, 2 wrong arguments.
    """
    if check:
        if keys or changed:
            raise click.UsageError("--check checks everything: it takes neither keys nor --changed")
        return _check(as_json)
    found = [each for each in settings() if not changed or each.source != DEFAULT]
    if keys:
        found = _selected(keys, found)
    if as_json:
        echo_json([each._asdict() for each in found])
        return OK
    for each in found:
        click.echo(f"{each.key}: {_shown(each.value)}")
        if each.source != DEFAULT:
            click.echo(f"    from {shown(each.source)}; the default is {_shown(each.default)}")
        click.echo(f"    {each.meaning}")
        click.echo(f"    Allowed: {each.allowed}.")
        if each.error is not None:
            click.echo(f"    Error: {one_line(each.error)}")
    return OK


def _selected(keys: tuple[str, ...], found: list[Setting]) -> list[Setting]:
    sections = [plain(key).strip(".") for key in keys]
    for given, section in zip(keys, sections, strict=True):
        if not any(f"{key}.".startswith(f"{section}.") for key in KEYS):
            raise click.UsageError(f"there is no configuration key {given!r}; {_nearest(section)}")
    return [
        each
        for each in found
        if any(f"{each.key}.".startswith(f"{section}.") for section in sections)
    ]


def _nearest(key: str) -> str:
    parts = [each.split(".") for each in KEYS]
    known = {".".join(each[:depth]) for each in parts for depth in range(2, len(each) + 1)}
    near = nearest_key(key, sorted(known)) or nearest(key, known)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"expected one of {sorted({'.'.join(each[:2]) for each in parts})}, or a key in one"


def _shown(value: Any) -> str:
    """Return a value as it stands in a configuration file."""
    return shown(value) if isinstance(value, str) else shown(json.dumps(value, default=repr))


def _check(as_json: bool) -> int:
    """Print what is wrong with the configuration, and return the exit code."""
    invalid = [each for each in settings() if each.error is not None]
    unknown = unknown_keys()
    misspelt = [each for each in unknown if each.nearest is not None]
    code = FAILED if invalid or misspelt else OK
    if as_json:
        echo_json(
            {
                "ok": code == OK,
                "invalid": [{"key": it.key, "error": it.error} for it in invalid],
                "misspelt": [each._asdict() for each in misspelt],
                "unknown": [each._asdict() for each in unknown if each.nearest is None],
            }
        )
        return code
    # The text of one error may be that of a section of several keys.
    for error in dict.fromkeys(str(each.error) for each in invalid):
        click.echo(one_line(error))
    for each in misspelt:
        click.echo(
            f"Configuration key {each.key!r} (from {shown(each.source)}) does not exist and has no "
            f"effect; did you mean {each.nearest!r}?"
        )
    for each in unknown:
        if each.nearest is None:
            click.echo(
                f"Note: {shown(each.key)!r} (from {shown(each.source)}) is not a key of this "
                "package; it may be one of dask.distributed"
            )
    if code == OK:
        click.echo("No mistake was found.")
    return code
