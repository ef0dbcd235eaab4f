"""The IP addresses of this host.

They turn ``tcp://:0`` into an address that other hosts can reach, and ``--interface eth0`` into an
address to bind.  This module only asks the operating system: it does not send data, and does not
depend on comms.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import warnings
from functools import lru_cache

__all__ = ["ensure_ip", "get_ip", "get_ip_interface", "get_ipv6"]


@lru_cache
def _outgoing_ip(host: str, port: int, family: socket.AddressFamily, fallback: str) -> str:
    """Return the local address on the route to *host*.

    Connecting a datagram socket selects a route without sending a packet.
    """
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((host, port))
            return str(sock.getsockname()[0])
        except OSError as exc:
            reason = exc
    try:
        infos = socket.getaddrinfo(
            socket.gethostname(), port, family, socket.SOCK_DGRAM, socket.IPPROTO_UDP
        )
    except OSError:
        infos = []
    address = str(infos[0][4][0]) if infos else fallback
    warnings.warn(
        f"Could not detect a suitable IP address for reaching {host!r} ({reason}), "
        f"using {address!r}; if that is wrong, give the host or interface to listen on",
        RuntimeWarning,
        stacklevel=3,
    )
    return address


def get_ip(host: str = "8.8.8.8", port: int = 80) -> str:
    """Return the local IPv4 address on the route to *host*.

    Without a route, warn and return the address of this host's name, or else ``"127.0.0.1"``.

    Parameters
    ----------
    host, port : str, int
        Any remote address; no packet is sent to it.
    """
    return _outgoing_ip(host, port, socket.AF_INET, "127.0.0.1")


def get_ipv6(host: str = "2001:4860:4860::8888", port: int = 80) -> str:
    """Return the local IPv6 address on the route to *host*; otherwise like :func:`get_ip`."""
    return _outgoing_ip(host, port, socket.AF_INET6, "::1")


def _interface_ip_from_kernel(ifname: str) -> str | None:
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


def _interface_ip_from_psutil(ifname: str) -> str | None:
    """Return the IPv4 address of an interface from psutil, or None if it has none."""
    try:
        import psutil
    except ImportError:
        raise RuntimeError(
            f"Finding the address of interface {ifname!r} on {sys.platform} needs psutil: "
            "install distributed-core[statistics], or give the host's address instead"
        ) from None
    addresses = psutil.net_if_addrs().get(ifname, [])
    return next((str(a.address) for a in addresses if a.family == socket.AF_INET), None)


def get_ip_interface(ifname: str) -> str:
    """Return the IPv4 address of a network interface.

    Parameters
    ----------
    ifname : str
        Name of the interface, such as ``"eth0"``.

    Raises
    ------
    ValueError
        If the interface does not exist (the error lists those that do) or has no IPv4 address.
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
        raise ValueError(f"Network interface {ifname!r} doesn't have an IPv4 address")
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
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, hostname)
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
    return str(infos[0][4][0])
