"""Addresses: strings such as ``tcp://127.0.0.1:8786``, taken apart and put together.

An address is a *scheme*, which names the transport, and a *loc*, which the transport understands;
between them stands ``://``. Most locs are ``host:port``, IPv6 hosts in brackets. Where a scheme is
missing, ``distributed.comm.default-scheme`` is meant.

This module opens no connection and knows no transport: what it cannot read off the string it asks
the backend of the scheme. Every address that a user or a peer gives passes through it.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from distributed.base import config
from distributed.base.host_addresses import get_ip, get_ip_interface, get_ipv6
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

#: Schemes whose loc is a name rather than a place in the network: a port is not part of it.
_NAMED_SCHEMES: Final = frozenset({"inproc", "unix"})

#: Schemes that need no replacement where a `Security` requires encryption: they are encrypted, or
#: do not leave the process.
_SECURE_SCHEMES: Final = frozenset({"inproc", "tls", "wss"})

_LOC = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[^:\[\]]*))(?::(?P<port>[^:]*))?")


class _Security(Protocol):
    """The part of a `distributed.security.Security` that matters to addresses."""

    @property
    def require_encryption(self) -> bool | None: ...


def parse_address(addr: str, strict: bool = False) -> tuple[str, str]:
    """Split an address into its scheme and its loc.

    Parameters
    ----------
    addr
        The address, with or without a scheme.
    strict
        Whether a missing scheme is an error rather than the default scheme.

    Returns
    -------
    scheme, loc : str

    Raises
    ------
    TypeError
        If *addr* is no string.
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
            f"Invalid url scheme. Must include protocol like tcp://localhost:8000. Got {addr}"
        )
    return config.get("distributed.comm.default-scheme"), loc


def unparse_address(scheme: str, loc: str) -> str:
    """The address of a scheme and a loc; undoes `parse_address`.

    Examples
    --------
    >>> unparse_address("tcp", "127.0.0.1:8786")
    'tcp://127.0.0.1:8786'
    """
    return f"{scheme}{_SEPARATOR}{loc}"


def normalize_address(addr: str) -> str:
    """The address with its scheme, for comparing; names in it are not resolved.

    Raises
    ------
    TypeError
        If *addr* is no string.

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
        ``host:port``, with or without a scheme, IPv6 hosts in brackets. Or a tuple of host and
        port, as sockets name their ends; what follows in it is left out.
    default_port
        The port where *address* has none.

    Returns
    -------
    host : str
        Without brackets. Empty where *address* means every interface.
    port : int
        0 where *address* means any free one.

    Raises
    ------
    TypeError
        If *address* is neither a string nor a tuple.
    ValueError
        If *address* cannot be understood, or has no port and there is no *default_port*.

    Examples
    --------
    >>> parse_host_port("tcp://[fe80::1%eth0]:8786")
    ('fe80::1%eth0', 8786)
    >>> parse_host_port("localhost", 8786)
    ('localhost', 8786)
    """
    if isinstance(address, tuple):
        if len(address) < 2 or not isinstance(address[0], str):
            raise ValueError(f"invalid address {address!r}: expected (host, port)")
        host, port = address[:2]
        loc = str(host)
    elif isinstance(address, str):
        loc = address.rpartition(_SEPARATOR)[2]
        match = _LOC.fullmatch(loc)
        if match is None:
            raise ValueError(f"invalid address {loc!r}; maybe: ipv6 needs brackets like [::1]")
        host = match["bracketed"] or match["plain"] or ""
        port = match["port"]
    else:
        raise TypeError(f"expected an address or (host, port), got {type(address).__name__!r}")
    if port is None:
        port = default_port
    if port is None or port == "":
        raise ValueError(f"missing port number in address {loc!r}")
    return host, _parse_port(port, address)


def _parse_port(port: Any, source: object) -> int:
    """*port* as a number. *source* is what to name in an error."""
    if isinstance(port, str) and port.isascii() and port.isdigit():
        port = int(port)
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(
            f"invalid port {port!r} in address {source!r}: expected a number from 0 to 65535"
        )
    return port


def unparse_host_port(host: str, port: int | str | None = None) -> str:
    """The loc of a host and a port; undoes `parse_host_port`.

    Examples
    --------
    >>> unparse_host_port("::1", 8786), unparse_host_port("127.0.0.1")
    ('[::1]:8786', '127.0.0.1')
    """
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return host if port is None else f"{host}:{port}"


def get_address_host(addr: str) -> str:
    """The host of an address.

    Raises
    ------
    ValueError
        If the address cannot be understood; see `Backend.get_address_host`.

    Examples
    --------
    >>> get_address_host("tcp://127.0.0.1:8786")
    '127.0.0.1'
    """
    scheme, loc = parse_address(addr)
    return get_backend(scheme).get_address_host(loc)


def get_address_host_port(addr: str, strict: bool = False) -> tuple[str, int]:
    """The host and the port of an address.

    Parameters
    ----------
    addr
        The address.
    strict
        Whether a missing scheme is an error rather than the default scheme.

    Raises
    ------
    ValueError
        If the address cannot be understood, or addresses of its kind have no port.

    Examples
    --------
    >>> get_address_host_port("tcp://127.0.0.1:8786")
    ('127.0.0.1', 8786)
    """
    scheme, loc = parse_address(addr, strict=strict)
    try:
        return get_backend(scheme).get_address_host_port(loc)
    except NotImplementedError:
        raise ValueError(f"don't know how to extract host and port for address {addr!r}") from None


def resolve_address(addr: str) -> str:
    """The address with its scheme, and names in it replaced by what they stand for.

    May block while it asks a resolver.

    Raises
    ------
    OSError
        If a name does not resolve.
    ValueError
        If the address cannot be understood.

    Examples
    --------
    >>> resolve_address("127.0.0.1:8786")
    'tcp://127.0.0.1:8786'
    """
    scheme, loc = parse_address(addr)
    return unparse_address(scheme, get_backend(scheme).resolve_address(loc))


def get_local_address_for(addr: str) -> str:
    """An address, without a port, to listen at such that the host of *addr* can reach it.

    Raises
    ------
    OSError
        If a name does not resolve.
    ValueError
        If the address cannot be understood.

    Examples
    --------
    >>> get_local_address_for("tcp://127.0.0.1:8786")
    'tcp://127.0.0.1'
    """
    scheme, loc = parse_address(addr)
    return unparse_address(scheme, get_backend(scheme).get_local_address_for(loc))


def get_tcp_server_addresses(server: TCPServer) -> list[tuple[Any, ...]]:
    """The addresses at which a Tornado server listens, as its sockets name them.

    Raises
    ------
    RuntimeError
        If the server was not started, was stopped, or listens at no Internet socket.
    """
    # Tornado offers no public way to see the sockets of a server.
    sockets: list[socket.socket] = list(server._sockets.values())
    addresses = [
        sock.getsockname()
        for sock in sockets
        # AF_INET and AF_INET6 by what they are called: a socket's name is (host, port, …) there.
        if sock.fileno() != -1 and sock.family.name.startswith("AF_INET")
    ]
    if not addresses:
        why = "it has no Internet socket" if sockets else "not started yet?"
        if sockets and all(sock.fileno() == -1 for sock in sockets):
            why = "it was stopped"
        raise RuntimeError(f"TCP Server {server!r} has no address: {why}")
    return addresses


def get_tcp_server_address(server: TCPServer) -> tuple[Any, ...]:
    """The first of the addresses at which a Tornado server listens.

    Raises
    ------
    RuntimeError
        See `get_tcp_server_addresses`.
    """
    return get_tcp_server_addresses(server)[0]


def uri_from_host_port(
    host_arg: str | None, port_arg: str | int | None, default_port: str | int | None
) -> str:
    """The address to listen at that a host and a port option mean together.

    Parameters
    ----------
    host_arg
        A host, or an address with or without scheme and port; None or empty for every interface.
    port_arg
        A port, None for none. Port 0 means any free one, so that it contradicts no other.
    default_port
        The port where neither has one.

    Raises
    ------
    TypeError
        If *host_arg* is no string.
    ValueError
        If an option cannot be understood, or the two name different ports.

    Examples
    --------
    >>> uri_from_host_port("localhost", None, 8786)
    'tcp://localhost:8786'
    >>> uri_from_host_port("tls://[::1]:0", None, 8786)
    'tls://[::1]:0'
    """
    scheme, loc = parse_address("" if host_arg is None else host_arg)
    port = None if port_arg is None else _parse_port(port_arg, f"{host_arg or ''}:{port_arg}")
    if scheme in _NAMED_SCHEMES and not port:
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
    """The address to listen at that a user's options mean together.

    Parameters
    ----------
    host
        A host, or an address with or without scheme and port.
    port
        A port; 0 or None for none.
    interface
        A network interface on whose address to listen, instead of *host*.
    protocol
        A scheme; it replaces the one in *host*.
    peer
        Not used: an address may be chosen by whom it is to be reached from, but no scheme needs
        that. It is taken because callers pass it.
    security
        None or False for none. If it requires encryption and *protocol* is not given, a scheme that
        is not encrypted becomes ``tls``.
    default_port
        The port where there is a host, but no port.

    Returns
    -------
    str
        Empty where no option is given, so that a listener decides all by itself.

    Raises
    ------
    ValueError
        If options cannot be understood or contradict each other.

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
        host = get_ip_interface(interface)
    nowhere = not (host or port)
    scheme = _scheme_from_user_args(host, protocol, security)
    if scheme is not None:
        host = unparse_address(scheme, parse_address(host or "")[1])
    return (host or "") if nowhere else uri_from_host_port(host, port, default_port)


def _scheme_from_user_args(
    host: str | None, protocol: str | None, security: _Security | Literal[False] | None
) -> str | None:
    """The scheme that is to replace the one of *host*, or None."""
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
    """The addresses to listen at that a user's options mean together.

    As `address_from_user_args`, but *host*, *port*, *interface* and *protocol* may be lists or
    tuples, whose elements belong together by position; what is no list holds for each address.

    Raises
    ------
    ValueError
        If options cannot be understood or contradict each other, or lists differ in length.

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
            "options that are lists must be of one length, to be paired: "
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
    """The host at which a listener that listens at *host* can be contacted.

    Parameters
    ----------
    host
        A host name or an IP address. Empty, ``"0.0.0.0"`` and ``"::"`` stand for every interface.
    default_host
        What to give for those; by default the address of this host by which it reaches others, of
        the same IP version.

    Examples
    --------
    >>> ensure_concrete_host("127.0.0.1")
    '127.0.0.1'
    >>> ensure_concrete_host("0.0.0.0", default_host="node1.example.org")
    'node1.example.org'
    """
    if not is_unspecified(host):
        return host
    return default_host or (get_ipv6() if ":" in host else get_ip())


def is_unspecified(host: str) -> bool:
    """Whether *host*, a name or an IP address, stands for every interface.

    Examples
    --------
    >>> [is_unspecified(host) for host in ("", "0.0.0.0", "::", "::1", "localhost")]
    [True, True, True, False, False]
    """
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
