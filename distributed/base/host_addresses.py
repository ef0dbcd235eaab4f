"""The addresses of this host.

What an address such as ``tcp://:0`` means to others, and which interface ``--interface eth0`` is,
is answered here.  It asks the operating system only, sends nothing, and knows nothing of comms.
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
    """The address from which this host would reach *host*.

    Connecting a datagram socket sends nothing: it only makes the system choose a route.
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
        f"using {address!r}; name the host or interface to listen on where that is wrong",
        RuntimeWarning,
        stacklevel=3,
    )
    return address


def get_ip(host: str = "8.8.8.8", port: int = 80) -> str:
    """The local IPv4 address through which *host* is reached.

    Parameters
    ----------
    host, port : str, int
        Any place outside; nothing is sent to it.

    Returns
    -------
    str
        Without a route, the address of this host's name or else ``"127.0.0.1"``, with a warning.
    """
    return _outgoing_ip(host, port, socket.AF_INET, "127.0.0.1")


def get_ipv6(host: str = "2001:4860:4860::8888", port: int = 80) -> str:
    """The local IPv6 address through which *host* is reached; otherwise as :func:`get_ip`."""
    return _outgoing_ip(host, port, socket.AF_INET6, "::1")


def _interface_ip_from_kernel(ifname: str) -> str | None:
    """IPv4 address of the interface from an ioctl (Linux), None if it has none."""
    import fcntl

    siocgifaddr = 0x8915
    # struct ifreq: 16 bytes of name, then a sockaddr_in whose address is 4 bytes in.
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
    """IPv4 address of the interface from psutil, None if it has none."""
    try:
        import psutil
    except ImportError:
        raise RuntimeError(
            f"Finding the address of interface {ifname!r} on {sys.platform} needs psutil: "
            "install distributed-core[statistics], or name the host's address instead"
        ) from None
    addresses = psutil.net_if_addrs().get(ifname, [])
    return next((str(a.address) for a in addresses if a.family == socket.AF_INET), None)


def get_ip_interface(ifname: str) -> str:
    """The IPv4 address of a network interface.

    Parameters
    ----------
    ifname : str
        Name of the interface, such as ``"eth0"``.

    Raises
    ------
    ValueError
        If there is no such interface, naming those there are, or if it has no IPv4 address.
    RuntimeError
        On systems other than Linux where psutil is missing.
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
    """The IP address of *hostname*, IPv4 where it has both; an IP address is returned as it is.

    An empty name means this host.

    Raises
    ------
    OSError
        If the name does not resolve, naming it.

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
    # SOCK_STREAM, else each address comes once for each type of socket.
    try:
        infos = socket.getaddrinfo(hostname or "localhost", None, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        raise socket.gaierror(
            exc.errno, f"Could not resolve host name {hostname!r}: {exc.strerror}"
        ) from exc
    infos.sort(key=lambda info: info[0] != socket.AF_INET)
    return str(infos[0][4][0])
