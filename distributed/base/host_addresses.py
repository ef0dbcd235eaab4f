"""The IP addresses of this host.

They turn ``tcp://:0`` into an address that other hosts can reach, and ``--interface eth0`` into an
address to bind.  This module only asks the operating system: it does not send data, and does not
depend on comms.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

__all__ = [
    "ensure_ip",
    "get_ip",
    "get_ip_interface",
    "get_ip_of_either_version",
    "get_ipv6",
    "host_of",
    "name_of_host",
]

#: Arguments of `_outgoing_ip`: hosts outside of any local network.
_IPV4_ROUTE = "8.8.8.8", 80, socket.AF_INET
_IPV6_ROUTE = "2001:4860:4860::8888", 80, socket.AF_INET6


@lru_cache
def _outgoing_ip(host: str, port: int, family: socket.AddressFamily) -> tuple[str, str]:
    """Return the local address on the route to *host*, and why it may be wrong.

    Connecting a datagram socket selects a route without sending a packet.  Without a route, the
    address is that of this host's name, or a loopback address, and the reason is not empty.
    """
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            # Given only host and port, `connect` would ignore the scope of a link-local address.
            sock.connect(socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)[0][4])
            return host_of(sock.getsockname()), ""
        except OSError as exc:
            reason = str(exc)
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    if not _has_network():
        # The only address of this host, whatever its name resolves to.
        return loopback, ""
    try:
        infos = socket.getaddrinfo(
            socket.gethostname(), port, family, socket.SOCK_DGRAM, socket.IPPROTO_UDP
        )
    except OSError:
        infos = []
    return host_of(infos[0][4]) if infos else loopback, reason


@lru_cache
def _warn(host: str, address: str, reason: str) -> None:
    """Warn once that *address* may be wrong."""
    warnings.warn(
        f"Could not detect a suitable IP address for reaching {host!r} ({reason}), "
        f"using {address!r}; if that is wrong, give the host or interface to listen on",
        RuntimeWarning,
        stacklevel=3,
    )


def get_ip(host: str = "8.8.8.8", port: int = 80) -> str:
    """Return the local IPv4 address on the route to *host*.

    Without a route, warn and return the address of this host's name, or else ``"127.0.0.1"``.  On
    a host without a network, return ``"127.0.0.1"``.

    Parameters
    ----------
    host, port : str, int
        Any remote address; no packet is sent to it.
    """
    address, reason = _outgoing_ip(host, port, socket.AF_INET)
    if reason:
        _warn(host, address, reason)
    return address


def get_ipv6(host: str = "2001:4860:4860::8888", port: int = 80) -> str:
    """Return the local IPv6 address on the route to *host*; otherwise like :func:`get_ip`.

    A link-local address has its scope, as in ``"fe80::1%eth0"``.
    """
    address, reason = _outgoing_ip(host, port, socket.AF_INET6)
    if reason:
        _warn(host, address, reason)
    return address


def get_ip_of_either_version() -> str:
    """Return the local address on the route to other hosts; IPv4 if this host has it, else IPv6.

    On a host without a route of either version, return an IPv6 address if it has no other one, and
    the result of :func:`get_ip` otherwise.
    """
    address, reason = _outgoing_ip(*_IPV4_ROUTE)
    if not reason and not ipaddress.ip_address(address).is_loopback:
        return address
    address, reason = _outgoing_ip(*_IPV6_ROUTE)
    if not reason and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return address
    return _only_ipv6() or get_ip()


def name_of_host() -> str:
    """Return the IPv4 address that names this host in addresses, such as those of ``inproc``.

    It is that of :func:`get_ip`, without a warning: no peer connects to it.
    """
    return _outgoing_ip(*_IPV4_ROUTE)[0]


def host_of(address: tuple[Any, ...]) -> str:
    """Return the host in the address of an Internet socket, with the scope if it is link-local.

    Python leaves the scope out of the text, but a link-local address cannot be used without it
    (RFC 4007, section 11).

    Examples
    --------
    >>> host_of(("127.0.0.1", 80)), host_of(("fe80::1", 80, 0, 1))
    ('127.0.0.1', 'fe80::1%lo')
    """
    host = str(address[0])
    if len(address) < 4 or not address[3] or "%" in host:
        return host
    try:
        return f"{host}%{socket.if_indextoname(address[3])}"
    except OSError:
        # The interface has disappeared.
        return f"{host}%{address[3]}"


def _has_network() -> bool:
    """Return whether an interface other than loopback has an address, or this is not known."""
    if sys.platform != "linux":
        return True
    return any(_addresses_of_interfaces())


def _only_ipv6() -> str | None:
    """Return an IPv6 address of this host if it has one and no IPv4 address, apart from loopback.

    The result is None if this is not known.
    """
    if sys.platform != "linux":
        return None
    found = list(_addresses_of_interfaces())
    if not all(":" in address for address in found):
        return None
    return _preferred(found)


def _addresses_of_interfaces() -> Iterator[str]:
    """Yield the addresses of the interfaces of this host (Linux), apart from loopback."""
    for _, ifname in socket.if_nameindex():
        try:
            found = [_ipv4_from_kernel(ifname), _ipv6_from_kernel(ifname)]
        except OSError:
            # The interface has disappeared.
            continue
        for address in found:
            if address is not None and not ipaddress.ip_address(address).is_loopback:
                yield str(_scoped(address, ifname))


def _ipv4_from_kernel(ifname: str) -> str | None:
    """Return the IPv4 address of an interface from an ioctl (Linux), or None if it has none."""
    import fcntl

    siocgifaddr = 0x8915
    # struct ifreq: 16 bytes of name, then a sockaddr_in with the address at offset 4.
    request = struct.pack("16s24x", ifname.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock.fileno(), siocgifaddr, request)
        except OSError as exc:
            if exc.errno == errno.EADDRNOTAVAIL:
                return None
            raise
    return socket.inet_ntoa(answer[20:24])


def _ipv6_from_kernel(ifname: str) -> str | None:
    """Return the IPv6 address of an interface from a file (Linux), or None if it has none."""
    try:
        with open("/proc/net/if_inet6") as file:
            # Each line: address, number of the interface, prefix length, scope, flags, interface.
            lines = [line.split() for line in file]
    except OSError:
        # This kernel has no IPv6.
        return None
    found = [bytes.fromhex(line[0]) for line in lines if line[5] == ifname]
    return _preferred(socket.inet_ntop(socket.AF_INET6, address) for address in found)


def _preferred(addresses: Iterable[str]) -> str | None:
    """Return an address that is not link-local, else any, else None."""
    found = sorted(addresses, key=lambda address: address.startswith("fe80:"))
    return found[0] if found else None


def _interface_ip_from_kernel(ifname: str) -> str | None:
    """Return the IP address of an interface from the Linux kernel, or None if it has none."""
    address = _ipv4_from_kernel(ifname) or _ipv6_from_kernel(ifname)
    return _scoped(address, ifname)


def _interface_ip_from_psutil(ifname: str) -> str | None:
    """Return the IP address of an interface from psutil, or None if it has none."""
    try:
        import psutil
    except ImportError:
        raise RuntimeError(
            f"Finding the address of interface {ifname!r} on {sys.platform} needs psutil: "
            "install distributed-core[statistics], or give the host's address instead"
        ) from None
    addresses = psutil.net_if_addrs().get(ifname, [])
    ipv4 = [str(a.address) for a in addresses if a.family == socket.AF_INET]
    ipv6 = [str(a.address).partition("%")[0] for a in addresses if a.family == socket.AF_INET6]
    return _scoped(ipv4[0] if ipv4 else _preferred(ipv6), ifname)


def _scoped(address: str | None, ifname: str) -> str | None:
    """Return an address of an interface, with the scope if it is a link-local IPv6 address."""
    if address is None or ":" not in address or not ipaddress.ip_address(address).is_link_local:
        return address
    return f"{address}%{ifname}"


def get_ip_interface(ifname: str) -> str:
    """Return the IPv4 address of a network interface, or its IPv6 address if it has no other.

    A link-local IPv6 address, which is the last choice, has its scope: ``"fe80::1%eth0"``.

    Parameters
    ----------
    ifname : str
        Name of the interface, such as ``"eth0"``.

    Raises
    ------
    ValueError
        If the interface does not exist (the error lists those that do) or has no IP address.
    RuntimeError
        If psutil is missing on a system other than Linux.
    """
    known = [name for _, name in socket.if_nameindex()]
    if ifname not in known:
        raise ValueError(
            f"{ifname!r} is not a valid network interface. Valid network interfaces are: {known!r}"
        )
    if sys.platform == "linux":
        address = _interface_ip_from_kernel(ifname)
    else:
        address = _interface_ip_from_psutil(ifname)
    if address is None:
        raise ValueError(
            f"Network interface {ifname!r} doesn't have an IPv4 address, and no IPv6 address either"
        )
    return address


def ensure_ip(hostname: str) -> str:
    """Return the IP address of *hostname*, preferably IPv4; an IP address is returned unchanged.

    An empty name means this host.

    Raises
    ------
    OSError
        If the name does not resolve.

    Examples
    --------
    >>> ensure_ip("127.0.0.1")
    '127.0.0.1'
    >>> ensure_ip("::1")
    '::1'
    >>> ensure_ip("fe80::1%eth0")
    'fe80::1%eth0'
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            # A link-local address may have a scope.
            socket.inet_pton(family, hostname.partition("%")[0])
        except OSError:
            continue
        return hostname
    # Without SOCK_STREAM, each address would be listed once per socket type.
    try:
        infos = socket.getaddrinfo(hostname or "localhost", None, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        raise socket.gaierror(
            exc.errno, f"Could not resolve host name {hostname!r}: {exc.strerror}"
        ) from exc
    infos.sort(key=lambda info: info[0] != socket.AF_INET)
    return host_of(infos[0][4])
