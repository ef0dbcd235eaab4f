"""``distributed-core serve``: run a server of a module until a signal arrives."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from distributed.base import config
from distributed.base.arguments import did_you_mean
from distributed.base.log_setup import initialize_logging
from distributed.base.text import shown_repr
from distributed.cli.exit_codes import USAGE
from distributed.cli.failures import CommandError
from distributed.cli.options import DURATION, Access, access_options, configure, has_tls
from distributed.core import Server
from distributed.core.running import INVALID, Service, run
from distributed.security import Security

__all__ = ["command", "load_factory"]

LEVELS = ("debug", "info", "warning", "error", "critical")


@click.command("serve", short_help="Run a server of a module.")
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option(
    "--listen",
    "-l",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="Where to listen; may be given several times. Default: the server's own default.",
)
@click.option(
    "--http",
    "http",
    metavar="ADDRESS",
    help="Where to serve the live page, probes and metrics over HTTP, such as 127.0.0.1:8787.",
)
@click.option(
    "--shutdown-timeout",
    type=DURATION,
    metavar="DURATION",
    help="Time for requests in progress after a signal. Default: distributed.server.shutdown-"
    "timeout.",
)
@click.option(
    "--app-dir",
    default=".",
    metavar="DIRECTORY",
    help="Where to look for MODULE first.",
    show_default=True,
)
@click.option(
    "--log-level", type=click.Choice(LEVELS), help="Log these lines and more severe ones."
)
@click.option("--log-json", is_flag=True, help="Log lines of JSON, for programs.")
@click.option("--no-pickle", is_flag=True, help="Do not unpickle anything that peers send.")
@access_options
def command(
    factory: str,
    addresses: Sequence[str],
    http: str | None,
    shutdown_timeout: float | None,
    app_dir: str,
    log_level: str | None,
    log_json: bool,
    no_pickle: bool,
    access: Access,
) -> int:
    """Run the server that FACTORY of MODULE makes.

    FACTORY is a function, plain or async, that returns a Server; a class of
    servers; or a Server. SIGTERM and Ctrl-C let requests in progress finish,
    within the shutdown timeout, and refuse new ones. A second signal ends the
    process at once.

    \b
    Examples:
      distributed-core serve calculator:server
      distributed-core serve calculator:server --listen tcp://:8786 \\
          --listen unix:///run/calculator.sock --http 127.0.0.1:8787
      distributed-core serve calculator:server --listen tls://:8786 \\
          --tls-ca-file ca.pem --tls-cert server.pem --tls-key server.key

    Exit codes: 0 all requests finished, 1 the server failed, 2 wrong arguments,
    3 requests were cancelled since they did not finish in time, 78 the
    configuration or an address is invalid, 130 and 143 a second signal.
    """
    if "" in (*addresses, http):
        # An unset variable of a unit file or a script; the empty address is all interfaces.
        raise click.UsageError(f"{'--http' if http == '' else '--listen'} needs an address")
    security = access.apply()
    if no_pickle:
        configure({"distributed.comm.allow-pickle": False})
    start_logging(log_level, log_json)
    return run(
        load_factory(factory, app_dir),
        addresses,
        services=[] if http is None else [_pages(http, security)],
        shutdown_timeout=shutdown_timeout,
        security=security if has_tls(security) else None,
    )


def load_factory(name: str, directory: str = ".") -> Any:
    """Return the object that ``module:attribute`` names.

    Parameters
    ----------
    name
        The names of the module and of its attribute, with a colon.
    directory
        Where to look for the module before the import path.

    Raises
    ------
    CommandError
        If it does not exist, or the module raises an error; the error gives its file and line.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise CommandError(f"{name!r} is not of the form MODULE:FACTORY", USAGE)
    if not os.path.isdir(directory):
        raise CommandError(f"--app-dir {directory!r} is not a directory", USAGE)
    sys.path.insert(0, os.path.abspath(directory))
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as exc:
        if isinstance(exc, ModuleNotFoundError) and f"{module_name}.".startswith(f"{exc.name}."):
            raise CommandError(
                f"there is no module {exc.name!r} in {os.path.abspath(directory)!r} or in the "
                "import path; --app-dir names another directory",
                USAGE,
            ) from exc
        frames = traceback.extract_tb(exc.__traceback__)
        where = f" ({frames[-1].filename}:{frames[-1].lineno})"
        raise CommandError(
            f"cannot import {module_name!r}: {type(exc).__name__}: {exc}{where}", USAGE
        ) from exc
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [each for each in dir(found) if not each.startswith("_")]
            hint = f"; {did_you_mean(part, names)}" if names else ""
            raise CommandError(f"{module_name!r} has no {attribute!r}{hint}", USAGE) from None
    if not isinstance(found, Server) and not callable(found):
        raise CommandError(
            f"{name!r} is {shown_repr(found)}, and neither a Server nor a function that "
            "returns one",
            USAGE,
        )
    return found


def start_logging(level: str | None, as_json: bool) -> None:
    """Configure the log of a server, as the configuration and the options say."""
    try:
        initialize_logging(config.config, level=level, json_lines=as_json)
    except (ValueError, RuntimeError, OSError) as exc:
        raise CommandError(str(exc), INVALID) from exc


def _pages(address: str, security: Security) -> Service:
    """Return the service with the pages at *address*."""
    # Imported late, because it imports Tornado's web framework.
    from distributed.pages import Pages

    try:
        # Browsers have no certificates, so TLS is a choice of its own here.
        return Pages(address, security=security if address.startswith("https:") else None)
    except (ValueError, TypeError) as exc:
        raise CommandError(f"--http {address!r}: {exc}", USAGE) from exc
