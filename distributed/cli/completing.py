"""Completions in a shell that come from the server: operations and their arguments."""

from __future__ import annotations

import asyncio
from typing import Any

import click
from click.shell_completion import CompletionItem

from distributed.cli.options import Access
from distributed.comm import connect
from distributed.core import coerce_to_address, rpc

__all__ = ["complete_argument", "complete_operation"]

#: Seconds that a completion may take.
_LIMIT = 1.0


def _describe(ctx: click.Context) -> dict[str, Any]:
    """Return the operations of the server on the command line; none if it does not answer."""
    names = ("tls_ca_file", "tls_cert", "tls_key", "tls_ciphers", "token_file")
    access = Access(**{name: ctx.params.get(name) for name in names})

    async def ask() -> dict[str, Any]:
        address = coerce_to_address(ctx.params["address"])
        async with asyncio.timeout(_LIMIT):
            args: dict[str, Any] = {"security": access.apply(), "allow_pickle": False}
            comm = await connect(address, _LIMIT, **args)
            async with rpc(address, comm, connection_args=args) as remote:
                description = await remote.describe()
        operations = dict(description["operations"])
        return {op: it for op, it in operations.items() if op not in description["blocked"]}

    try:
        with ctx:
            return asyncio.run(ask())
    except Exception:  # noqa: BLE001  (a shell cannot show an error of a completion)
        return {}


def complete_operation(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the operations that begin with *incomplete*."""
    return [
        CompletionItem(op, help=operation.get("doc") or "")
        for op, operation in _describe(ctx).items()
        if op.startswith(incomplete)
    ]


def complete_argument(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the arguments of the operation that are not given yet."""
    operation = _describe(ctx).get(ctx.params.get("op") or "") or {}
    given = {str(argument).partition("=")[0] for argument in ctx.params.get("arguments") or ()}
    names = [parameter["name"] for parameter in operation.get("parameters") or ()]
    return [
        CompletionItem(f"{name}=")
        for name in names
        if name.startswith(incomplete) and name not in given
    ]
