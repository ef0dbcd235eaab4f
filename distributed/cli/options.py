"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from distributed.base import config
from distributed.base.quantities import parse_bytes, parse_timedelta
from distributed.cli.exit_codes import USAGE
from distributed.cli.failures import CommandError
from distributed.security import Security

__all__ = [
    "DURATION",
    "SIZE",
    "Access",
    "access_options",
    "configure",
    "has_tls",
    "json_option",
    "timeout_option",
]

F = TypeVar("F", bound=Callable[..., Any])


class _Duration(click.ParamType):
    """A duration, in seconds or with a unit."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            seconds = float(parse_timedelta(value))
        except (ValueError, TypeError) as exc:
            self.fail(f"{value!r} is not a duration such as 500ms, 2s or '1 minute': {exc}")
        if seconds < 0:
            self.fail(f"{value!r} is negative")
        return seconds


class _Size(click.ParamType):
    """A number of bytes, with or without a unit."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            size = parse_bytes(value)
        except (ValueError, TypeError) as exc:
            self.fail(f"{value!r} is not a size such as 10kB or 64MiB: {exc}")
        if size < 0:
            self.fail(f"{value!r} is negative")
        return size


DURATION: Final = _Duration()
SIZE: Final = _Size()


def configure(settings: dict[str, Any]) -> None:
    """Set values of the configuration until the command ends."""
    click.get_current_context().with_resource(config.set(settings))


@dataclass(frozen=True)
class Access:
    """How a command proves its identity, and what it expects of peers.

    What is not given is as configured (``distributed.comm.tls``, ``distributed.comm.auth``).
    """

    tls_ca_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ciphers: str | None = None
    token_file: str | None = None

    def settings(self) -> dict[str, Any]:
        """Return the configuration keys and values that the options stand for."""
        values = {
            "distributed.comm.tls.ca-file": self.tls_ca_file,
            "distributed.comm.tls.ciphers": self.tls_ciphers,
            "distributed.comm.auth.token-file": self.token_file,
        }
        for role in ("client", "scheduler", "worker"):
            values[f"distributed.comm.tls.{role}.cert"] = self.tls_cert
            # A key of the configuration belongs to the certificate of the configuration.
            if self.tls_cert is not None or self.tls_key is not None:
                values[f"distributed.comm.tls.{role}.key"] = self.tls_key or ""
        result: dict[str, Any] = {key: it for key, it in values.items() if it is not None}
        if self.token_file is not None:
            # A token of the configuration would be preferred.
            result["distributed.comm.auth.token"] = None
        return {key: it or None for key, it in result.items()}

    def apply(self) -> Security:
        """Set the configuration of this process, and return the settings of connections.

        Raises
        ------
        CommandError
            If a file cannot be read, or the options do not fit together.
        """
        tls = (self.tls_ca_file, self.tls_cert, self.tls_key, self.tls_ciphers)
        configure(self.settings())
        try:
            security = Security(require_encryption=True) if any(tls) else Security()
            for role in ("client", "scheduler") if any(tls) else ():
                wanted = security.get_tls_config_for_role(role)
                if not wanted["ca_file"] or not wanted["cert"]:
                    missing = "--tls-cert" if wanted["ca_file"] else "--tls-ca-file"
                    raise CommandError(
                        f"{missing} is missing: both sides of a TLS connection show a certificate "
                        "(--tls-cert), and check that of the other side (--tls-ca-file)",
                        USAGE,
                    )
            security.get_connection_args(security.default_role("connect"))
            if self.token_file is not None:
                _check_token(self.token_file)
        except OSError as exc:
            raise CommandError(exc.strerror or str(exc), USAGE) from exc
        except ValueError as exc:
            raise CommandError(str(exc), USAGE) from exc
        return security


def has_tls(security: Security) -> bool:
    """Return whether *security* has what TLS needs: an authority, and a certificate."""
    role = security.default_role("connect")
    return security.get_connection_args(role)["ssl_context"] is not None


def _check_token(path: str) -> None:
    try:
        token = Path(path).expanduser().read_text().strip()
    except OSError as exc:
        raise CommandError(f"cannot read --token-file {path!r}: {exc.strerror}", USAGE) from exc
    except UnicodeDecodeError as exc:
        raise CommandError(f"--token-file {path!r} is not text", USAGE) from exc
    if not token:
        raise CommandError(f"--token-file {path!r} is empty", USAGE)


def access_options(function: F) -> F:
    """Add the options for TLS and the token; the function gets them as ``access``."""

    def with_access(**kwargs: Any) -> Any:
        given = {field.name: kwargs.pop(field.name) for field in fields(Access)}
        return function(access=Access(**given), **kwargs)

    with_access.__name__ = function.__name__
    with_access.__doc__ = inspect.getdoc(function)
    # Decorators below this one have added their options to the function.
    with_access.__click_params__ = getattr(  # type: ignore[attr-defined]
        function, "__click_params__", []
    )
    file = click.Path(dir_okay=False)
    decorated: Any = with_access
    for option in (
        click.option(
            "--token-file", type=file, metavar="FILE", help="A file with the token of both sides."
        ),
        click.option("--tls-ciphers", metavar="TEXT", help="Ciphers up to TLS 1.2."),
        click.option(
            "--tls-key",
            type=file,
            metavar="FILE",
            help="The key of the certificate, if it is in a file of its own.",
        ),
        click.option("--tls-cert", type=file, metavar="FILE", help="The certificate of this side."),
        click.option(
            "--tls-ca-file",
            type=file,
            metavar="FILE",
            help="The certificates of the authorities that sign those of peers.",
        ),
    ):
        decorated = option(decorated)
    result: F = decorated
    return result


def timeout_option(help: str, default: str | None = None) -> Callable[[F], F]:
    """Return the decorator that adds ``--timeout``."""
    return click.option(
        "--timeout",
        type=DURATION,
        default=default,
        metavar="DURATION",
        help=help,
        show_default=True,
    )


def json_option(function: F) -> F:
    """Add ``--json``; the function gets it as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        function
    )
