"""The ``unix://`` transport: Unix domain sockets, which have a name on this host instead of a port.

Recommended between processes of one host: other hosts cannot connect, the kernel tells which
process and user the peer is, and file permissions decide which users may connect.  Addresses are

* ``unix:///run/app.sock``, the path of a socket file;
* ``unix://``, to listen at a new path in a directory that only this user can enter;
* ``unix://@name``, an abstract name: without a file, but also without permissions (Linux only);
* ``unix://host:/run/app.sock``, a path and a host.  Only `get_address_host` uses the host, which
  links to dashboards contain, for example;
* ``unix://host``, ``unix://host:port`` or ``unix://:port``, to listen at a new path, as servers
  that are written for TCP request it.  The address of the listener is then a path and a host.

A relative path needs a slash, as in ``unix://./app.sock``, to be told from the name of a host.

:mod:`distributed.comm.stream` moves messages over an open stream, and
:mod:`distributed.comm.stream_listener` accepts connections.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
import socket
import stat
import struct
import sys
import tempfile
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from distributed.base.host_addresses import name_of_host
from distributed.base.lock_files import lock_file, opened_directory
from distributed.base.text import shown, shown_repr
from distributed.comm.addressing import ensure_concrete_host
from distributed.comm.arguments import CONNECT, LISTEN, check_keywords
from distributed.comm.core import (
    CommClosedError,
    CommHandler,
    Connector,
    FatalCommClosedError,
    Listener,
)
from distributed.comm.message_stream import MessageStream
from distributed.comm.registry import Backend
from distributed.comm.settings import settings
from distributed.comm.sockets import MAX_BUFFER_SIZE, SocketServer
from distributed.comm.stream import StreamComm
from distributed.comm.stream_listener import StreamListener
from distributed.comm.tls import refuse_unencrypted
from distributed.comm.unix_directory import PrivateDirectory

__all__ = ["Unix", "UnixBackend", "UnixConnector", "UnixListener"]

_PREFIX: Final = "unix://"

_HAS_ABSTRACT_NAMES: Final = sys.platform == "linux"

#: Maximum length of a socket name in bytes (unix(7): 108 with the final zero).
_LONGEST_NAME: Final = 107 if sys.platform == "linux" else 103

#: A loc that begins with a host: ``host``, ``host:port``, ``host:/path`` or ``host:@name``.
_HOST: Final = re.compile(r"(?P<host>\[[^]/@]*\]|[^:/@]*)(:[0-9]*|:(?P<name>[/@].*))?", re.DOTALL)

#: The name in the address of an end that has none.
_UNNAMED: Final = "(unnamed)"

#: Maximum number of attempts to lock a directory, and seconds between two of them.  Another
#: listener holds the lock for less than a millisecond.
_LOCK_ATTEMPTS, _LOCK_PAUSE = 100, 0.01

#: Size of the kernel's send buffer in bytes, as far as the kernel allows it.  With the small
#: default, large messages would be sent in many pieces, each of which wakes both sides.
_SEND_BUFFER = 2**20

#: The directory for new sockets; None until the first use.  Only `_new_path` changes it.
_private_directory: PrivateDirectory | None = None
_numbers = itertools.count(1)


def _new_path() -> str:
    """Return an unused path for a socket, in a directory that only this user can enter."""
    global _private_directory
    if _private_directory is None or not _private_directory.is_usable():
        parent = tempfile.gettempdir()
        # The name of the directory has 19 bytes, and the number of the socket up to 10.
        if len(os.fsencode(parent)) > _LONGEST_NAME - 30:
            parent = "/tmp"
        _private_directory = PrivateDirectory(parent)
    return os.path.join(_private_directory.path, str(next(_numbers)))


def _split(loc: str) -> tuple[str, str]:
    """Split *loc* into its host and the name of its socket; either may be empty.

    Examples
    --------
    >>> _split("127.0.0.1:/run/app.sock"), _split("[::1]:0"), _split("./app.sock")
    (('127.0.0.1', '/run/app.sock'), ('[::1]', ''), ('', './app.sock'))
    """
    match = _HOST.fullmatch(loc)
    return (match["host"], match["name"] or "") if match else ("", loc)


def _join(host: str, name: str) -> str:
    """Return the loc of a host, which may be empty, and the name of a socket."""
    return f"{host}:{name}" if host else name


def _normalize(loc: str) -> str:
    """Return the name of the socket at *loc*: an absolute path, or an abstract name.

    Raises
    ------
    ValueError
        If *loc* cannot be the name of a socket.
    """
    where, (_, loc) = loc, _split(loc)
    if not loc:
        raise ValueError(
            f"{_PREFIX}{shown(where)} needs the path of a socket, as in {_PREFIX}/run/app.sock or "
            f"{_PREFIX}./app.sock"
        )
    if loc.startswith("@"):
        if not _HAS_ABSTRACT_NAMES:
            raise ValueError(f"abstract names of sockets exist on Linux only: {_PREFIX}{loc}")
        if loc == "@":
            raise ValueError(f"an abstract name is missing: {_PREFIX}@")
    elif "/" not in loc:
        raise ValueError(
            f"{_PREFIX}{shown(where)} is neither a host nor the path of a socket: a path needs a "
            f"slash, as in {_PREFIX}./app.sock, and an IPv6 host needs brackets, as in "
            f"{_PREFIX}[::1]:0"
        )
    else:
        loc = os.path.abspath(loc)
    if "\0" in loc:
        raise ValueError(f"the name of a socket cannot contain a null character: {shown_repr(loc)}")
    size = len(os.fsencode(loc))
    if size > _LONGEST_NAME:
        raise ValueError(
            f"the name of a socket can have at most {_LONGEST_NAME} bytes, and this one has "
            f"{size}: {_PREFIX}{shown(loc)}; choose a shorter path"
        )
    return loc


def _to_kernel(loc: str) -> str:
    """Return the kernel's name of the socket at *loc*."""
    return "\0" + loc[1:] if loc.startswith("@") else loc


def from_kernel(name: str | bytes | None) -> str:
    """Return the loc of a socket that has this *name* in the kernel."""
    text = os.fsdecode(name or "")
    if text.startswith("\0"):
        return "@" + text[1:]
    return text or _UNNAMED


def _credentials(sock: socket.socket) -> dict[str, int]:
    """Return the credentials of the peer's process; empty if this platform does not give them."""
    if not hasattr(socket, "SO_PEERCRED"):
        return {}
    layout = struct.Struct("=iII")
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    return dict(zip(("pid", "uid", "gid"), layout.unpack(data), strict=True))


class Unix(StreamComm):
    """A comm over a Unix domain socket."""

    def __init__(
        self, stream: MessageStream, local_addr: str, peer_addr: str, deserialize: bool = True
    ):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._extra_info = _credentials(stream.socket)
        super().__init__(stream, local_addr, peer_addr, deserialize)

    @property
    def extra_info(self) -> dict[str, Any]:
        """``pid``, ``uid`` and ``gid`` of the process that connected or started to listen.

        The kernel gives them (``SO_PEERCRED``), so the peer cannot forge them.  Empty on platforms
        without that socket option.
        """
        return self._extra_info

    @property
    def same_host(self) -> bool:
        return True


class UnixConnector(Connector):
    """A connector to Unix domain sockets."""

    async def connect(
        self, address: str, deserialize: bool = True, **connection_args: Any
    ) -> StreamComm:
        """Open a connection to *address*, a path or an abstract name.

        Raises
        ------
        CommClosedError
            If no process listens there, or too many connections wait to be accepted.
        FatalCommClosedError
            If the permissions of the file or its directories forbid it.
        RuntimeError
            If encryption is required.
        ValueError
            If *address* cannot be the name of a socket.
        """
        where = _PREFIX + address
        check_keywords(where, connection_args, CONNECT)
        refuse_unencrypted(where, connection_args)
        loc = _normalize(address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if _HAS_ABSTRACT_NAMES:
                # The kernel chooses an unused name (unix(7), autobind).  It lets developers
                # match the two ends of a connection.
                sock.bind("")
            # Not IOStream.connect: it would wait for EAGAIN, after which the kernel does not
            # continue to connect a Unix domain socket.
            sock.connect(_to_kernel(loc))
            local = _PREFIX + from_kernel(sock.getsockname())
            stream = MessageStream(sock, max_buffer_size=MAX_BUFFER_SIZE)
            return Unix(stream, local, where, deserialize)
        except OSError as exc:
            sock.close()
            error = FatalCommClosedError if isinstance(exc, PermissionError) else CommClosedError
            why = exc.strerror
            if isinstance(exc, BlockingIOError):
                why = "too many connections wait to be accepted"
            raise error(f"cannot connect to {shown(where)}: {why}") from exc


class UnixListener(StreamListener):
    """A listener at a Unix domain socket.

    Parameters
    ----------
    address
        A path or an abstract name, maybe behind a host and a colon.  Nothing, a host, or a host
        and a port mean a new path.
    comm_handler
        Called with each new comm after its handshake.
    deserialize, allow_offload
        See :class:`~distributed.comm.core.Comm`.
    connection_args
        Only ``require_encryption`` matters.
    """

    prefix = _PREFIX
    comm_class = Unix

    def __init__(
        self,
        address: str,
        comm_handler: CommHandler,
        deserialize: bool = True,
        allow_offload: bool = True,
        **connection_args: Any,
    ):
        super().__init__(comm_handler, deserialize, allow_offload)
        check_keywords(_PREFIX + address, connection_args, LISTEN)
        refuse_unencrypted(_PREFIX + address, connection_args)
        host, name = _split(address)
        #: The name to listen at; empty for a new path.
        self.name = _normalize(address) if name else ""
        #: The host in the addresses of this listener; empty for none.
        self.host = host
        if address and not name:
            # As for TCP, no host before a port means every interface.
            self.host = name_of_host() if not host else ensure_concrete_host(host)
        # The name that is bound; None before start().  It stays after stop().
        self._bound: str | None = None
        # Removes the socket file: at the latest when this object or the process ends.
        self._unlink: weakref.finalize[Any, Any] | None = None

    async def start(self) -> None:
        """Create the socket and start to accept connections.

        A socket file at which no process listens any more is replaced.

        Raises
        ------
        OSError
            If another socket listens there, the file is not a socket, or the directory is missing
            or forbidden.
        """
        if self.tcp_server is not None:
            return
        backlog = settings().socket_backlog
        loc = self.name or _new_path()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if loc.startswith("@"):
                sock.bind(_to_kernel(loc))
                sock.listen(backlog)
            else:
                async with _locked(os.path.dirname(loc)) as directory:
                    _remove_stale(loc, directory)
                    if sys.platform == "linux":
                        # Gives the mode of the file, except for bits of the umask.
                        os.fchmod(sock.fileno(), 0o600)
                    sock.bind(loc)
                    # Connecting is impossible until `listen`, so no other user gets in before this.
                    _set_mode(os.path.basename(loc), directory)
                    sock.listen(backlog)
                    self._unlink = weakref.finalize(self, _unlink, os.getpid(), loc, os.lstat(loc))
        except BaseException as exc:
            sock.close()
            if isinstance(exc, OSError):
                raise OSError(
                    exc.errno, f"cannot listen at {_PREFIX}{loc}: {exc.strerror}"
                ) from exc
            raise
        self._bound = loc
        self._accept_on(SocketServer(self._handle_socket), [sock])

    def stop(self) -> None:
        """Stop accepting connections, remove the file, and abort connections in their handshake."""
        if self._unlink is not None:
            self._unlink()
        super().stop()

    def _addresses_of(self, sock: socket.socket, address: Any) -> tuple[str, str]:
        return self.listen_address, _PREFIX + _join(self.host, shown(from_kernel(address)))

    @property
    def listen_address(self) -> str:
        if self._bound is None:
            raise ValueError(f"invalid operation on non-started {type(self).__name__}")
        return _PREFIX + _join(self.host, self._bound)

    @property
    def contact_address(self) -> str:
        return self.listen_address


@asynccontextmanager
async def _locked(directory: str) -> AsyncIterator[int]:
    """Lock *directory* against other listeners that look for stale sockets; yield it, opened.

    Without the lock, they would take a socket that is bound but does not listen yet for stale.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                lock_file(descriptor, blocking=False)
                break
            except BlockingIOError as exc:
                if attempt == _LOCK_ATTEMPTS - 1:
                    raise OSError(
                        exc.errno, f"another process keeps {directory} locked (flock)"
                    ) from None
            await asyncio.sleep(_LOCK_PAUSE)
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_stale(path: str, directory: int) -> None:
    """Remove the socket at *path*, which is in the open *directory*, if no process listens at it.

    Raises
    ------
    OSError
        If a process listens at it, another user owns it, or the file is not a socket.
    """
    name = os.path.basename(path)
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "a file that is not a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            if found.st_uid != os.geteuid():
                raise PermissionError(
                    errno.EPERM, f"the socket of another user, {found.st_uid}, is there"
                ) from None
            _unlink_if_same(name, directory, found)
            return
        except BlockingIOError:
            # The backlog is full, so a process listens.
            pass
    raise OSError(errno.EADDRINUSE, "another socket listens there already")


def _set_mode(name: str, directory: int) -> None:
    """Let only this user connect to the socket *name* in the open *directory*."""
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_IMODE(found.st_mode) != 0o600:
        # This would follow a link, so it is done only where fchmod() did not suffice.
        os.chmod(name, 0o600, dir_fd=directory)


def _unlink_if_same(name: str, directory: int, known: os.stat_result) -> None:
    """Remove a file from an open directory, if it is still the *known* one."""
    try:
        if os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), known):
            os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return


def _unlink(made_by: int, path: str, made: os.stat_result) -> None:
    """Remove the socket file that a listener of this process created, if it is still that file."""
    if os.getpid() != made_by:
        return
    try:
        with opened_directory(os.path.dirname(path)) as directory:
            _unlink_if_same(os.path.basename(path), directory, made)
    except FileNotFoundError:
        return


def _require_unix_sockets() -> None:
    if not hasattr(socket, "AF_UNIX"):
        raise NotImplementedError(
            "unix:// addresses need Unix domain sockets, which Python does not have on this "
            "platform; use tcp://127.0.0.1 instead"
        )


class UnixBackend(Backend):
    """The backend of ``unix://``."""

    def get_connector(self) -> Connector:
        _require_unix_sockets()
        return UnixConnector()

    def get_listener(
        self, loc: str, handle_comm: CommHandler, deserialize: bool, **connection_args: Any
    ) -> Listener:
        _require_unix_sockets()
        return UnixListener(loc, handle_comm, deserialize, **connection_args)

    def get_address_host(self, loc: str) -> str:
        """Return the host that *loc* states, else an IP address of this host."""
        return _split(loc)[0].strip("[]") or name_of_host()

    def resolve_address(self, loc: str) -> str:
        return _join(_split(loc)[0], _normalize(loc))

    def get_local_address_for(self, loc: str) -> str:
        """Return the loc of a new path: a peer that reaches one socket file can reach another."""
        return _split(loc)[0]
