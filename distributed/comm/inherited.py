"""The ``fd://`` addresses: listen at a socket that another process has opened.

The socket decides about the transport: ``tcp://``, or ``tls://`` if the listener has a TLS context,
for TCP sockets; ``unix://`` for Unix domain sockets.  Peers connect to that address.  They cannot
connect to ``fd://``.

The process that opened the socket keeps it open, and passes it to the next server.  So a listener
leaves the descriptor open and the socket file in place when it stops: connections wait for the next
server.  :mod:`distributed.comm.socket_activation` finds the descriptors.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Never

from distributed.base.host_addresses import host_of, name_of_host
from distributed.comm.addressing import is_unspecified, unparse_host_port
from distributed.comm.core import CommHandler, Connector, Listener
from distributed.comm.registry import Backend
from distributed.comm.socket_activation import PREFIX, descriptors
from distributed.comm.sockets import SocketServer
from distributed.comm.tcp import BaseTCPListener, TCPListener, TLSListener
from distributed.comm.unix import UnixListener, from_kernel

__all__ = [
    "FdBackend",
    "InheritedTCPListener",
    "InheritedTLSListener",
    "InheritedUnixListener",
]


def _duplicate(number: int) -> socket.socket:
    """Return a listening socket for the file descriptor *number*, which stays open.

    Raises
    ------
    ValueError
        If it is not open, or not a listening stream socket.
    """
    where = f"cannot listen at {PREFIX}{number}: file descriptor {number}"
    try:
        sock = socket.socket(fileno=os.dup(number))
    except (OSError, OverflowError) as exc:
        what = "is not a socket" if os.path.exists(f"/dev/fd/{number}") else "is not open"
        raise ValueError(f"{where} {what}") from exc
    try:
        # Child processes of this server do not need it.
        os.set_inheritable(number, False)
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"{where} is not a stream socket; the socket unit needs ListenStream=")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(
                f"{where} is a connection and not a listening socket; the socket unit needs "
                "Accept=no"
            )
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_for_both_versions(sock: socket.socket) -> bool:
    """Return whether a socket accepts connections over IPv4 and IPv6 at all interfaces."""
    return sock.family == socket.AF_INET6 and not sock.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    )


class _InheritedTCP(BaseTCPListener):
    """A listener at an inherited TCP socket.

    Parameters
    ----------
    number
        The file descriptor.
    args, kwargs
        As for :class:`~distributed.comm.tcp.BaseTCPListener`, after the address.
    """

    is_inherited = True

    def __init__(self, number: int, *args: Any, **kwargs: Any) -> None:
        with _duplicate(number) as sock:
            name = sock.getsockname()
            host, port = host_of(name), name[1]
            any_version = is_unspecified(host) and _is_for_both_versions(sock)
        super().__init__(unparse_host_port(host, port), *args, **kwargs)
        if any_version:
            self.ip = ""
        self._number = number

    def _bind(self) -> list[socket.socket]:
        return [_duplicate(self._number)]


class InheritedTCPListener(_InheritedTCP, TCPListener):
    """A listener that accepts TCP connections at an inherited socket."""


class InheritedTLSListener(_InheritedTCP, TLSListener):
    """A listener that accepts TLS connections at an inherited socket."""


class InheritedUnixListener(UnixListener):
    """A listener at an inherited Unix domain socket.

    Parameters
    ----------
    number
        The file descriptor.
    args, kwargs
        As for :class:`~distributed.comm.unix.UnixListener`, after the address.
    """

    is_inherited = True

    def __init__(self, number: int, *args: Any, **kwargs: Any) -> None:
        with _duplicate(number) as sock:
            name = from_kernel(sock.getsockname())
        super().__init__(name if name[0] in "/@" else f"./{name}", *args, **kwargs)
        self._number = number

    async def start(self) -> None:
        """Start to accept connections.

        Raises
        ------
        ValueError
            If the file descriptor was closed, or is another one now.
        """
        if self.tcp_server is not None:
            return
        sock = _duplicate(self._number)
        self._bound = self.name
        self._accept_on(SocketServer(self._handle_socket), [sock])


class FdBackend(Backend):
    """The backend of ``fd://``."""

    def get_connector(self) -> Connector:
        raise ValueError(
            f"{PREFIX} addresses are for listening only: connect to the address of the server"
        )

    def get_listener(
        self, loc: str, handle_comm: CommHandler, deserialize: bool, **connection_args: Any
    ) -> Listener:
        numbers = descriptors(loc)
        if len(numbers) > 1:
            each = ", ".join(f"{PREFIX}{number}" for number in numbers)
            raise ValueError(f"{PREFIX}{loc} is {len(numbers)} sockets: listen at each of {each}")
        number = numbers[0]
        with _duplicate(number) as sock:
            family = sock.family
        kind: Any
        if family == getattr(socket, "AF_UNIX", None):
            kind = InheritedUnixListener
        elif family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"cannot listen at {PREFIX}{loc}: {family!r} is not supported")
        elif connection_args.get("ssl_context") is not None:
            kind = InheritedTLSListener
        else:
            kind = InheritedTCPListener
        listener: Listener = kind(number, handle_comm, deserialize, **connection_args)
        return listener

    def get_address_host(self, loc: str) -> str:
        """Return an IP address of this host."""
        return name_of_host()

    def resolve_address(self, loc: str) -> str:
        return loc

    def get_local_address_for(self, loc: str) -> Never:
        raise ValueError(f"no address can be derived from {PREFIX}{loc}")
