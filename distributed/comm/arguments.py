"""The keyword arguments of connections, and how a ``Security`` object becomes some of them.

``connect`` and ``listen``, and the classes of the layers above that take ``connection_args``, use
:func:`with_security`.  Each transport calls :func:`check_keywords`: an argument that a transport
would ignore may be the one that protects a server.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Set
from typing import Any, Final, Literal, Protocol, cast

from distributed.base.arguments import check_flag, nearest, unexpected_keyword
from distributed.comm.auth import choose_token

__all__ = [
    "CONNECT",
    "HINT",
    "LISTEN",
    "OBJECT_HINT",
    "SecuritySettings",
    "check_connection_args",
    "check_keywords",
    "with_security",
]

Side = Literal["connect", "listen"]

#: The arguments that every transport takes, so that a caller need not know which one it uses.
#: dask's Scheduler passes "handshake_overrides" to listen(), where the original ignores it, too.
LISTEN: Final = frozenset(
    {
        "allow_offload",
        "default_host",
        "default_port",
        "handshake_overrides",
        "require_encryption",
        "ssl_context",
    }
)
CONNECT: Final = frozenset(
    {"extra_conn_args", "require_encryption", "server_hostname", "ssl_context"}
)
#: The arguments of `connect` and `listen` that do not reach the transport.
_OURS: Final = frozenset({"allow_pickle", "deserialize", "security", "token"})
_OURS_CONNECT: Final = frozenset({*_OURS, "handshake_overrides", "timeout"})
#: All arguments.
_KNOWN: Final[Mapping[Side, frozenset[str]]] = {
    "connect": CONNECT | _OURS_CONNECT,
    "listen": LISTEN | _OURS | {"http_server"},
}
#: The arguments that a ``Security`` object gives.
_OF_SECURITY: Final = ("ssl_context", "require_encryption", "token", "extra_conn_args")

#: The end of errors about unknown arguments.
HINT: Final = (
    "Security is given as security=Security(...), or in parts as ssl_context=, "
    "require_encryption= and token=."
)
#: The same for objects that connect or listen later.
OBJECT_HINT: Final = (
    "Security is given as security=Security(...), for instance Security(token=...), or with "
    "connection_args=."
)


class SecuritySettings(Protocol):
    """The methods of :class:`distributed.security.Security` that connections use."""

    def default_role(self, side: Side) -> str: ...

    def get_connection_args(self, role: str) -> dict[str, Any]: ...

    def get_listen_args(self, role: str) -> dict[str, Any]: ...


def with_security(
    arguments: Mapping[str, Any], side: Side, role: str | None = None
) -> dict[str, Any]:
    """Return *arguments* with those of their ``security`` in its place.

    Parameters
    ----------
    arguments
        Keyword arguments of ``connect`` or ``listen``.
    side
        The function.
    role
        The role whose certificate to use; by default that which ``Security.default_role`` chooses.

    Raises
    ------
    TypeError
        If ``security`` is not a ``Security`` object, or *arguments* also contain what it gives.
    """
    result = dict(arguments)
    if not result or (security := result.pop("security", None)) is None:
        return result
    if isinstance(security, type) or not hasattr(security, "default_role"):
        raise TypeError(
            f"security= takes a distributed.Security object, not {security!r}; for instance "
            "Security(token=...), or Security() for the values of the configuration"
        )
    both = [name for name in _OF_SECURITY if result.get(name) is not None]
    if both:
        raise TypeError(
            f"security= and {both[0]}= cannot be combined: put everything into the Security "
            "object, or give all parts separately"
        )
    settings = cast(SecuritySettings, security)
    if role is None:
        role = settings.default_role(side)
    get = settings.get_listen_args if side == "listen" else settings.get_connection_args
    return {**result, **get(role)}


def check_keywords(where: str, arguments: Mapping[str, Any], known: Set[str]) -> None:
    """Raise `TypeError` if a transport does not know an argument, or it has a wrong type.

    Parameters
    ----------
    where
        What got the arguments, for the error.
    arguments
        The arguments.
    known
        The names that the transport knows.
    """
    if not arguments:
        return
    check_flag("require_encryption", arguments.get("require_encryption"))
    unknown = arguments.keys() - known
    if not unknown:
        return
    name = min(unknown)
    if name in _OURS_CONNECT:
        raise TypeError(
            f"{where} does not take {name}=, because distributed.comm.connect() and listen() "
            "do: call these instead"
        )
    raise unexpected_keyword(where, unknown, {*known, *_OURS}, HINT)


def check_names(where: str, arguments: Mapping[str, Any], side: Side) -> None:
    """Raise `TypeError` for the name of an argument that looks misspelled.

    Other unknown names may belong to the transport of another package: they are left to
    :func:`check_keywords` of the transport.
    """
    known = _KNOWN[side]
    if not arguments.keys() <= known:
        for name in arguments:
            if not isinstance(name, str) or (name not in known and nearest(name, known, 0.75)):
                raise unexpected_keyword(where, [name], known, HINT)


def check_connection_args(connection_args: Any, security: Any, role: str | None = None) -> Any:
    """Return the ``connection_args`` of an object that will connect, with those of *security*.

    Raises
    ------
    TypeError
        If *connection_args* is not a mapping, if a name in it is misspelled, if a value has a wrong
        type, or if *security* cannot be used; see :func:`check_names` and :func:`with_security`.
    ValueError
        If the token is empty.
    """
    if connection_args is None:
        connection_args = {}
    if not isinstance(connection_args, Mapping):
        raise TypeError(
            "connection_args must be a mapping of keyword arguments of connect(), such as "
            f"{{'ssl_context': ...}}, not {connection_args!r}. {HINT}"
        )
    check_names("connection_args", connection_args, "connect")
    if security is not None and connection_args.get("security") is not None:
        raise TypeError("security= is given twice, once of it in connection_args")
    if security is not None:
        connection_args = {**connection_args, "security": security}
    result = with_security(connection_args, "connect", role)
    if result:
        _check_values(result)
    return result


def _check_values(arguments: Mapping[str, Any]) -> None:
    """Check the arguments that `connect` would refuse each time."""
    for name in ("require_encryption", "allow_pickle", "deserialize"):
        check_flag(name, arguments.get(name))
    if (token := arguments.get("token")) is not None:
        choose_token(token)
    context = arguments.get("ssl_context")
    if context is not None and not isinstance(context, ssl.SSLContext):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not {context!r}")
    extra = arguments.get("extra_conn_args")
    if extra is not None and not isinstance(extra, Mapping):
        raise TypeError(f"extra_conn_args must be a mapping, not {extra!r}")
