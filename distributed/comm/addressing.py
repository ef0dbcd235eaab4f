"""Parsing and formatting of addresses such as ``tcp://127.0.0.1:8786``.

An address consists of a *scheme*, which names the transport, and a *loc*, which the transport
interprets, separated by ``://``.  Most locs have the form ``host:port``, with IPv6 hosts in
brackets.  ``distributed.comm.default-scheme`` replaces a missing scheme.

This module opens no connection.  It asks the backend of the scheme if an answer depends on the
transport.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from distributed.base import config
from distributed.base.host_addresses import (
    get_ip,
    get_ip_interface,
    get_ip_of_either_version,
    get_ipv6,
    host_of,
)
from distributed.base.text import shown, shown_repr
from distributed.comm.registry import get_backend

if TYPE_CHECKING:
    import socket

    from tornado.tcpserver import TCPServer

__all__ = [
    "address_from_user_args",
    "addresses_from_user_args",
    "ensure_concrete_host",
    "get_address_host",
    "get_address_host_port",
    "get_local_address_for",
    "get_tcp_server_address",
    "get_tcp_server_addresses",
    "is_unspecified",
    "normalize_address",
    "parse_address",
    "parse_host_port",
    "resolve_address",
    "unparse_address",
    "unparse_host_port",
    "uri_from_host_port",
]

_SEPARATOR: Final = "://"

#: Schemes whose loc is a name without a port, rather than a network address.
_NAMED_SCHEMES: Final = frozenset({"inproc", "unix"})

#: Schemes that a `Security` that requires encryption permits: encrypted, or inside the process.
_SECURE_SCHEMES: Final = frozenset({"inproc", "tls", "wss"})

_LOC = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[^:\[\]]*))(?::(?P<port>[^:]*))?")


class _Security(Protocol):
    """The part of a `distributed.security.Security` that this module uses."""

    @property
    def require_encryption(self) -> bool | None: ...


def parse_address(addr: str, strict: bool = False) -> tuple[str, str]:
    """Split an address into its scheme and its loc.

    Parameters
    ----------
    addr
        The address, with or without a scheme.
    strict
        Whether a missing scheme is an error, instead of being replaced by the default.

    Returns
    -------
    scheme, loc : str

    Raises
    ------
    TypeError
        If *addr* is not a string.
    ValueError
        If *strict* and the scheme is missing.

    Examples
    --------
    >>> parse_address("tcp://127.0.0.1:8786")
    ('tcp', '127.0.0.1:8786')
    >>> parse_address("127.0.0.1")
    ('tcp', '127.0.0.1')
    """
    if not isinstance(addr, str):
        raise TypeError(f"expected str, got {type(addr).__name__!r}")
    scheme, separator, loc = addr.rpartition(_SEPARATOR)
    if separator:
        return scheme, loc
    if strict:
        raise ValueError(
            f"Invalid url scheme. Must include protocol like tcp://localhost:8000. "
            f"Got {shown(addr)}"
        )
    return config.read("distributed.comm.default-scheme"), loc


def unparse_address(scheme: str, loc: str) -> str:
    """Return the address of a scheme and a loc, the inverse of `parse_address`.

    Examples
    --------
    >>> unparse_address("tcp", "127.0.0.1:8786")
    'tcp://127.0.0.1:8786'
    """
    return f"{scheme}{_SEPARATOR}{loc}"


def normalize_address(addr: str) -> str:
    """Return the address with its scheme, for comparisons, without resolving names.

    Raises
    ------
    TypeError
        If *addr* is not a string.

    Examples
    --------
    >>> normalize_address("tls://[::1]:8786"), normalize_address("localhost:8786")
    ('tls://[::1]:8786', 'tcp://localhost:8786')
    """
    return unparse_address(*parse_address(addr))


def parse_host_port(
    address: str | tuple[Any, ...], default_port: str | int | None = None
) -> tuple[str, int]:
    """Split an address or loc of the form ``host:port``.

    Parameters
    ----------
    address
        ``host:port``, with or without a scheme, IPv6 hosts in brackets.  Or a tuple that begins
        with host and port, as sockets name their ends.
    default_port
        The port if *address* has none.

    Returns
    -------
    host : str
        Without brackets; empty if *address* means every interface.
    port : int
        0 if *address* means any free one.

    Raises
    ------
    TypeError
        If *address* is neither a string nor a tuple.
    ValueError
        If *address* is invalid, or has no port and there is no *default_port*.

    Examples
    --------
    >>> parse_host_port("tcp://[fe80::1%eth0]:8786")
    ('fe80::1%eth0', 8786)
    >>> parse_host_port("localhost", 8786)
    ('localhost', 8786)
    """
    if isinstance(address, tuple):
        if len(address) < 2 or not isinstance(address[0], str):
            raise ValueError(f"invalid address {shown_repr(address)}: expected (host, port)")
        host, port = host_of(address), address[1]
        loc = host
    elif isinstance(address, str):
        loc = address.rpartition(_SEPARATOR)[2]
        match = _LOC.fullmatch(loc)
        if match is None:
            raise ValueError(
                f"invalid address {shown_repr(loc)}; maybe: ipv6 needs brackets like [::1]"
            )
        host = match["bracketed"] or match["plain"] or ""
        port = match["port"]
    else:
        raise TypeError(f"expected an address or (host, port), got {type(address).__name__!r}")
    if port is None:
        port = default_port
    if port is None or port == "":
        raise ValueError(f"missing port number in address {shown_repr(loc)}")
    return host, _parse_port(port, address)


def _parse_port(port: Any, source: object) -> int:
    """Return *port* as a number; errors quote *source*."""
    if isinstance(port, str) and port.isascii() and port.isdigit():
        port = int(port)
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(
            f"invalid port {shown_repr(port)} in address {shown_repr(source)}: expected a number "
            "from 0 to 65535"
        )
    return port


def unparse_host_port(host: str, port: int | str | None = None) -> str:
    """Return the loc of a host and a port, the inverse of `parse_host_port`.

    Examples
    --------
    >>> unparse_host_port("::1", 8786), unparse_host_port("127.0.0.1")
    ('[::1]:8786', '127.0.0.1')
    """
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return host if port is None else f"{host}:{port}"


def get_address_host(addr: str) -> str:
    """Return the host of an address.

    Raises
    ------
    ValueError
        If the address is invalid; see ``Backend.get_address_host``.

    Examples
    --------
    >>> get_address_host("tcp://127.0.0.1:8786")
    '127.0.0.1'
    """
    scheme, loc = parse_address(addr)
    return get_backend(scheme).get_address_host(loc)


def get_address_host_port(addr: str, strict: bool = False) -> tuple[str, int]:
    """Return the host and the port of an address.

    Parameters
    ----------
    addr
        The address.
    strict
        Whether a missing scheme is an error, instead of being replaced by the default.

    Raises
    ------
    ValueError
        If the address is invalid, or addresses of its scheme have no port.

    Examples
    --------
    >>> get_address_host_port("tcp://127.0.0.1:8786")
    ('127.0.0.1', 8786)
    """
    scheme, loc = parse_address(addr, strict=strict)
    try:
        return get_backend(scheme).get_address_host_port(loc)
    except NotImplementedError:
        raise ValueError(
            f"don't know how to extract host and port for address {shown_repr(addr)}"
        ) from None


def resolve_address(addr: str) -> str:
    """Return the address with its scheme and with names resolved.

    The call may block while it asks a resolver.

    Raises
    ------
    OSError
        If a name does not resolve.
    ValueError
        If the address is invalid.

    Examples
    --------
    >>> resolve_address("127.0.0.1:8786")
    'tcp://127.0.0.1:8786'
    """
    scheme, loc = parse_address(addr)
    return unparse_address(scheme, get_backend(scheme).resolve_address(loc))


def get_local_address_for(addr: str) -> str:
    """Return an address of this host, without a port, that the host of *addr* can connect to.

    Raises
    ------
    OSError
        If a name does not resolve.
    ValueError
        If the address is invalid.

    Examples
    --------
    >>> get_local_address_for("tcp://127.0.0.1:8786")
    'tcp://127.0.0.1'
    """
    scheme, loc = parse_address(addr)
    return unparse_address(scheme, get_backend(scheme).get_local_address_for(loc))


def get_tcp_server_addresses(server: TCPServer) -> list[tuple[Any, ...]]:
    """Return the addresses at which a Tornado server listens, as its sockets name them.

    Raises
    ------
    RuntimeError
        If the server was not started, was stopped, or has no Internet socket.
    """
    # Tornado has no public name for the sockets of a server.
    sockets: list[socket.socket] = list(server._sockets.values())
    addresses = [
        sock.getsockname()
        for sock in sockets
        # For AF_INET and AF_INET6 the address is (host, port, …).
        if sock.fileno() != -1 and sock.family.name.startswith("AF_INET")
    ]
    if not addresses:
        why = "it has no Internet socket" if sockets else "not started yet?"
        if sockets and all(sock.fileno() == -1 for sock in sockets):
            why = "it was stopped"
        raise RuntimeError(f"TCP Server {server!r} has no address: {why}")
    return addresses


def get_tcp_server_address(server: TCPServer) -> tuple[Any, ...]:
    """Return the first address at which a Tornado server listens.

    Raises
    ------
    RuntimeError
        See `get_tcp_server_addresses`.
    """
    return get_tcp_server_addresses(server)[0]


def uri_from_host_port(
    host_arg: str | None, port_arg: str | int | None, default_port: str | int | None
) -> str:
    """Return the address to listen at from a host and a port option.

    Parameters
    ----------
    host_arg
        A host, or an address with or without scheme and port; None or empty for every interface.
    port_arg
        A port, or None. Port 0 means any free one, and contradicts no port in *host_arg*.
    default_port
        The port if neither option has one.

    Raises
    ------
    TypeError
        If *host_arg* is not a string.
    ValueError
        If an option is invalid, or the two name different ports.

    Examples
    --------
    >>> uri_from_host_port("localhost", None, 8786)
    'tcp://localhost:8786'
    >>> uri_from_host_port("tls://[::1]:0", None, 8786)
    'tls://[::1]:0'
    """
    scheme, loc = parse_address("" if host_arg is None else host_arg)
    port = None if port_arg is None else _parse_port(port_arg, f"{host_arg or ''}:{port_arg}")
    if scheme in _NAMED_SCHEMES and (not port or "/" in loc or "@" in loc):
        # A name has no port.  Command lines of the original always pass one.
        return unparse_address(scheme, loc)
    host, loc_port = parse_host_port(loc, default_port if port is None else port)
    if port and loc_port and port != loc_port:
        raise ValueError(f"port number given twice in options: host {host_arg} and port {port_arg}")
    return unparse_address(scheme, unparse_host_port(host, loc_port))


def address_from_user_args(
    host: str | None = None,
    port: str | int | None = None,
    interface: str | None = None,
    protocol: str | None = None,
    peer: Any = None,
    security: _Security | Literal[False] | None = None,
    default_port: str | int = 0,
) -> str:
    """Return the address to listen at from a user's options.

    Parameters
    ----------
    host
        A host, or an address with or without scheme and port.
    port
        A port; 0 or None for none.
    interface
        A network interface whose address to listen at, instead of *host*.
    protocol
        A scheme; it replaces the one in *host*.
    peer
        Not used; callers of the original pass it.
    security
        None or False for none.  If it requires encryption and *protocol* is not given, ``tls``
        replaces a scheme without encryption.
    default_port
        The port if there is a host, but no port.

    Returns
    -------
    str
        Empty if no option is given: the listener uses its defaults.

    Raises
    ------
    ValueError
        If options are invalid or contradict each other.

    Examples
    --------
    >>> address_from_user_args(host="localhost", protocol="tls", default_port=8786)
    'tls://localhost:8786'
    >>> address_from_user_args(protocol="inproc")
    'inproc://'
    """
    if interface:
        if host:
            raise ValueError(f"Can not specify both interface and host: {interface!r}, {host!r}")
        host = unparse_host_port(get_ip_interface(interface))
    nowhere = not (host or port)
    scheme = _scheme_from_user_args(host, protocol, security)
    if scheme is not None:
        host = unparse_address(scheme, parse_address(host or "")[1])
    return (host or "") if nowhere else uri_from_host_port(host, port, default_port)


def _scheme_from_user_args(
    host: str | None, protocol: str | None, security: _Security | Literal[False] | None
) -> str | None:
    """Return the scheme that replaces the one of *host*, or None."""
    if protocol:
        scheme = protocol.rstrip(":/")
        if _SEPARATOR in scheme:
            raise ValueError(f"protocol must be a scheme such as 'tcp', not {protocol!r}")
        return scheme
    must_encrypt = security and security.require_encryption
    if must_encrypt and not (host and parse_address(host)[0] in _SECURE_SCHEMES):
        return "tls"
    return None


def addresses_from_user_args(
    host: Any = None,
    port: Any = None,
    interface: Any = None,
    protocol: Any = None,
    peer: Any = None,
    security: _Security | Literal[False] | None = None,
    default_port: str | int = 0,
) -> list[str]:
    """Return the addresses to listen at from a user's options.

    This is `address_from_user_args` for options that may be lists or tuples: *host*, *port*,
    *interface* and *protocol*.  Their elements are paired by position; any other value is used for
    each address.

    Raises
    ------
    ValueError
        If options are invalid or contradict each other, or lists differ in length.

    Examples
    --------
    >>> addresses_from_user_args(host="localhost", port=[8786, 8787], protocol=["tcp", "tls"])
    ['tcp://localhost:8786', 'tls://localhost:8787']
    """
    options = {"host": host, "port": port, "interface": interface, "protocol": protocol}
    lists = {name: value for name, value in options.items() if isinstance(value, list | tuple)}
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "options that are lists must have the same length, to be paired: "
            + ", ".join(f"{n} {name}s in {lists[name]!r}" for name, n in lengths.items())
        )
    count = next(iter(lengths.values()), 1)
    return [
        address_from_user_args(
            **{name: value[i] if name in lists else value for name, value in options.items()},
            peer=peer,
            security=security,
            default_port=default_port,
        )
        for i in range(count)
    ]


def ensure_concrete_host(host: str, default_host: str | None = None) -> str:
    """Return the host at which a listener at *host* can be contacted.

    Parameters
    ----------
    host
        A host name or an IP address; empty, ``"0.0.0.0"`` and ``"::"`` mean every interface.
    default_host
        The result for those; by default the address from which this host connects to others, of
        the same IP version.  If *host* is empty, it is an IPv4 address if this host has one.

    Examples
    --------
    >>> ensure_concrete_host("127.0.0.1")
    '127.0.0.1'
    >>> ensure_concrete_host("0.0.0.0", default_host="node1.example.org")
    'node1.example.org'
    """
    if not is_unspecified(host):
        return host
    if default_host:
        return default_host
    if not host:
        return get_ip_of_either_version()
    return get_ipv6() if ":" in host else get_ip()


def is_unspecified(host: str) -> bool:
    """Return whether *host*, a name or an IP address, means every interface.

    Examples
    --------
    >>> [is_unspecified(host) for host in ("", "0.0.0.0", "::", "::1", "localhost")]
    [True, True, True, False, False]
    """
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
