"""Checks of the handlers that a server is given, and of their names.

Some names are reserved, because requests or ``rpc`` objects use them.  A server blocks others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distributed.base import config

__all__ = [
    "KEYS_OF_REQUESTS",
    "RESERVED_OPERATIONS",
    "blocked_names",
    "check_handlers",
    "check_reserved",
]

#: Keys of a request that are for the server, or arguments of a call that are for ``rpc``.
KEYS_OF_REQUESTS = {
    "op": "the operation",
    "reply": "whether the server answers",
    "close": "whether the server closes the comm after the answer",
    "deserializers": "the serialization families of the answer",
}

#: Names of operations that ``remote.NAME`` does not reach: the attributes of ``rpc`` objects and of
#: calls through a pool, and the operation that closes a comm.
RESERVED_OPERATIONS = frozenset(
    {
        *("active", "addr", "address", "call", "close", "close_comms", "close_rpc", "comms"),
        *("connection_args", "describe", "deserialize", "deserializers", "interceptors", "limit"),
        *("live_comm", "pool", "retrying", "serializers", "status", "timeout", "within"),
    }
)


def check_reserved(handlers: Mapping[str, Callable[..., Any]], is_role: bool) -> None:
    """Check that callers can reach all operations, and all parameters of their handlers.

    A parameter ``comm`` must be the first one, since it is the comm of the request.  A parameter
    ``serializers`` is allowed: it receives the serialization families that the caller accepts.

    Parameters
    ----------
    handlers
        Operations: name → handler.
    is_role
        Whether the server is a role of the original; one of its handlers uses ``close``.

    Raises
    ------
    ValueError
        If a name is reserved.
    """
    for op, handler in handlers.items():
        if op in RESERVED_OPERATIONS:
            raise ValueError(
                f"no operation can be named {op!r}, since remote.{op} of a caller is something "
                "else: rename it"
            )
        try:
            names = list(inspect.signature(handler).parameters)
        except (ValueError, TypeError):
            # Some functions written in C have no signature.
            continue
        for name in names:
            if name in KEYS_OF_REQUESTS and not (is_role and name == "close"):
                raise ValueError(
                    f"the handler of {op!r} has a parameter {name!r}, which it would never "
                    f"receive: in a request this key says {KEYS_OF_REQUESTS[name]}; rename the "
                    "parameter"
                )
        if "comm" in names[1:]:
            raise ValueError(
                f"the handler of {op!r} has a parameter 'comm' that is not its first: only the "
                "first parameter receives the comm of the request; move or rename it"
            )


def check_handlers(argument: str, handlers: Any) -> None:
    """Raise TypeError unless *handlers* maps names to functions."""
    if not isinstance(handlers, Mapping):
        raise TypeError(
            f"{argument} must be a mapping of names to functions, such as {{'add': add}}, not "
            f"{handlers!r}"
        )
    for op, handler in handlers.items():
        if not isinstance(op, str):
            raise TypeError(f"a name in {argument} must be text, not {op!r}")
        if not callable(handler):
            kind = argument.replace("_", " ").removesuffix("s")
            raise TypeError(f"the {kind} of {op!r} is not callable: {handler!r}")


def blocked_names(server_name: str, given: Any) -> tuple[list[str], str]:
    """Return the names of blocked operations, and where they are given, for errors.

    They are those *given*, or those of the configuration.
    """
    source = "blocked_handlers"
    if given is None:
        source = f"distributed.{server_name.lower()}.blocked-handlers"
        given = config.get(source, default=None) or ()
    # list() would make a list of the letters of a text, and no operation would be blocked.
    is_list = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    names: list[Any] = list(given) if is_list else []
    if not is_list or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{source} has to be a list of names such as ['run'], got {given!r}")
    return names, source
