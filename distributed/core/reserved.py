"""Names that handlers cannot use, because requests or ``rpc`` objects use them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["RESERVED_OPERATIONS", "check_names"]

#: Keys of a request that are for the server, or arguments of a call that are for ``rpc``.
_KEYS = {
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
        *("connection_args", "deserialize", "deserializers", "interceptors", "limit"),
        *("live_comm", "pool", "retrying", "serializers", "status", "timeout", "within"),
    }
)


def check_names(handlers: Mapping[str, Callable[..., Any]], is_role: bool) -> None:
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
            if name in _KEYS and not (is_role and name == "close"):
                raise ValueError(
                    f"the handler of {op!r} has a parameter {name!r}, which it would never "
                    f"receive: in a request this key says {_KEYS[name]}; rename the parameter"
                )
        if "comm" in names[1:]:
            raise ValueError(
                f"the handler of {op!r} has a parameter 'comm' that is not its first: only the "
                "first parameter receives the comm of the request; move or rename it"
            )
