"""The ``unix://`` transport: sockets that have a name on this host, and no port.

The transport to recommend between processes of one host: nobody else can reach it, the kernel tells
who the peer is, and the permissions of a file decide who may connect. Addresses are

* ``unix:///run/app.sock``, the path of a socket file;
* ``unix://``, to listen at a new path in a directory that nobody else can enter;
* ``unix://@name``, an abstract name: no file, but no permissions either (Linux only).

What happens on an open stream is :mod:`distributed.comm.stream`'s business.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import fcntl
import itertools
import os
import shutil
import socket
import stat
import struct
import sys
import tempfile
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from distributed.base import config
from distributed.comm.core import (
    BaseListener,
    CommClosedError,
    CommHandler,
    Connector,
    FatalCommClosedError,
    Listener,
    call_comm_handler,
)
from distributed.comm.message_stream import MessageStream
from distributed.comm.registry import Backend
from distributed.comm.sockets import MAX_BUFFER_SIZE, ListeningSocket, SocketServer
from distributed.comm.stream import StreamComm
from distributed.comm.tcp import log_failed_connection
from distributed.comm.tls import refuse_unencrypted

__all__ = ["Unix", "UnixBackend", "UnixConnector", "UnixListener"]

_PREFIX: Final = "unix://"

_HAS_ABSTRACT_NAMES: Final = sys.platform == "linux"

#: Bytes that the kernel has room for in a name (unix(7): 108, one of them for the final zero).
_LONGEST_NAME: Final = 107 if sys.platform == "linux" else 103

#: What an end without a name is called.
_UNNAMED: Final = "(unnamed)"

#: How often, and after how many seconds, to try again where somebody else is about to listen in the
#: same directory; that takes them less than a millisecond.
_LOCK_ATTEMPTS, _LOCK_PAUSE = 100, 0.01

# State of this module.  The directory for new sockets and the process that made it, None until it
# is needed: a child process makes its own.  Only `_new_path` changes it.
_private_directory: tuple[int, str] | None = None
_numbers = itertools.count(1)


def _new_path() -> str:
    """A path for a socket that was never used, in a directory that nobody else can enter."""
    global _private_directory
    made_by, directory = _private_directory or (None, "")
    if made_by != os.getpid() or not os.path.isdir(directory):
        directory = tempfile.mkdtemp(prefix="dask-unix-")
        if len(os.fsencode(directory)) > _LONGEST_NAME - 10:
            os.rmdir(directory)
            directory = tempfile.mkdtemp(prefix="dask-unix-", dir="/tmp")
        _private_directory = os.getpid(), directory
        atexit.register(_remove_directory, *_private_directory)
    return os.path.join(directory, str(next(_numbers)))


def _remove_directory(made_by: int, directory: str) -> None:
    # A child process that was forked inherits what is done at exit.
    if os.getpid() == made_by:
        shutil.rmtree(directory, ignore_errors=True)


def _normalize(loc: str) -> str:
    """A loc with which processes in other directories find the same socket.

    Raises
    ------
    ValueError
        If it cannot be the name of a socket.
    """
    if not loc:
        raise ValueError(f"{_PREFIX} needs the path of a socket, as in {_PREFIX}/run/app.sock")
    if loc.startswith("@"):
        if not _HAS_ABSTRACT_NAMES:
            raise ValueError(f"abstract names of sockets exist on Linux only: {_PREFIX}{loc}")
        if loc == "@":
            raise ValueError(f"an abstract name is missing: {_PREFIX}@")
    else:
        loc = os.path.abspath(loc)
    if "\0" in loc:
        raise ValueError(f"the name of a socket cannot have a null character in it: {loc!r}")
    size = len(os.fsencode(loc))
    if size > _LONGEST_NAME:
        raise ValueError(
            f"the name of a socket can have at most {_LONGEST_NAME} bytes, and this one has "
            f"{size}: {_PREFIX}{loc}; choose a shorter path"
        )
    return loc


def _to_kernel(loc: str) -> str:
    """The name that the kernel knows a socket by."""
    return "\0" + loc[1:] if loc.startswith("@") else loc


def _from_kernel(name: str | bytes | None) -> str:
    """The loc of a name that the kernel has given."""
    text = os.fsdecode(name or "")
    if text.startswith("\0"):
        return "@" + text[1:]
    return text or _UNNAMED


def _credentials(sock: socket.socket) -> dict[str, int]:
    """Who is at the other end, as far as this platform tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return {}
    layout = struct.Struct("=iII")
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    return dict(zip(("pid", "uid", "gid"), layout.unpack(data), strict=True))


#: Bytes that may wait in the kernel to be read, if it allows so many.  Its default is small, so
#: that large messages would go in pieces, each of which has to wake both sides.
_SEND_BUFFER = 2**20


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
        """``pid``, ``uid`` and ``gid`` of the process that connected or began to listen.

        They are the kernel's, not the peer's word (``SO_PEERCRED``), and missing where it does not
        tell them.
        """
        return self._extra_info

    @property
    def same_host(self) -> bool:
        return True


class UnixConnector(Connector):
    """Opens connections to Unix domain sockets."""

    async def connect(
        self, address: str, deserialize: bool = True, **connection_args: Any
    ) -> StreamComm:
        """Open a connection to *address*, a path or an abstract name.

        Raises
        ------
        CommClosedError
            If nobody listens there, or too many wait to be accepted.
        FatalCommClosedError
            If the permissions of the file or its directories forbid it.
        RuntimeError
            If encryption is required.
        ValueError
            If it is the name of no socket.
        """
        refuse_unencrypted(_PREFIX + address, connection_args)
        loc = _normalize(address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if _HAS_ABSTRACT_NAMES:
                # The kernel chooses a name that is free (unix(7), autobind), by which people who
                # debug can tell connections apart on both sides.
                sock.bind("")
            # Not Tornado's, which waits although the kernel has given up: it does not wait here.
            sock.connect(_to_kernel(loc))
            local = _PREFIX + _from_kernel(sock.getsockname())
            stream = MessageStream(sock, max_buffer_size=MAX_BUFFER_SIZE)
            return Unix(stream, local, _PREFIX + address, deserialize)
        except OSError as exc:
            sock.close()
            final = isinstance(exc, PermissionError)
            why = exc.strerror
            if isinstance(exc, BlockingIOError):
                why = "too many connections wait to be accepted"
            error = FatalCommClosedError if final else CommClosedError
            raise error(f"cannot connect to {_PREFIX}{address}: {why}") from exc


class UnixListener(BaseListener):
    """Accepts connections at a Unix domain socket.

    Parameters
    ----------
    address
        A path, an abstract name, or empty for a new path.
    comm_handler
        Called with each new comm after its handshake.
    deserialize, allow_offload
        See :class:`~distributed.comm.core.Comm`.
    connection_args
        Only ``require_encryption`` matters.
    """

    # State.  `server` accepts, None unless it is listened; `_bound` is the name of its socket, and
    # stays when it stops.  `_unlink` removes the file of that socket, at the latest when this
    # object or the process goes away.
    server: SocketServer | None

    def __init__(
        self,
        address: str,
        comm_handler: CommHandler,
        deserialize: bool = True,
        allow_offload: bool = True,
        **connection_args: Any,
    ):
        super().__init__()
        refuse_unencrypted(_PREFIX + address, connection_args)
        self.loc = _normalize(address) if address else ""
        self.comm_handler = comm_handler
        self.deserialize = deserialize
        self.allow_offload = allow_offload
        self.server = None
        self._bound: str | None = None
        self._unlink: weakref.finalize[Any, Any] | None = None

    async def start(self) -> None:
        """Make the socket and start to accept connections.

        A socket file at which nobody listens any more is replaced.

        Raises
        ------
        OSError
            If somebody listens there already, another file is in the way, or the directory is
            missing or forbidden.
        """
        if self.server is not None:
            return
        backlog = int(config.get("distributed.comm.socket-backlog"))
        loc = self.loc or _new_path()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if loc.startswith("@"):
                sock.bind(_to_kernel(loc))
                sock.listen(backlog)
            else:
                async with _locked(os.path.dirname(loc)):
                    _remove_stale(loc)
                    sock.bind(loc)
                    # Before it listens nobody can connect.
                    os.chmod(loc, 0o600)
                    sock.listen(backlog)
                    self._unlink = weakref.finalize(self, _unlink, os.getpid(), loc, os.lstat(loc))
        except OSError as exc:
            sock.close()
            raise OSError(exc.errno, f"cannot listen at {_PREFIX}{loc}: {exc.strerror}") from exc
        except BaseException:
            sock.close()
            raise
        self._bound = loc
        self.server = SocketServer(self._handle_socket)
        self.server.add_socket(ListeningSocket(sock, self.abort_oldest_handshake, _PREFIX))

    def stop(self) -> None:
        """Stop accepting connections and remove the file; handshakes are aborted."""
        server, self.server = self.server, None
        if self._unlink is not None:
            self._unlink()
        if server is not None:
            server.stop()
        self.abort_handshaking_comms()

    async def _handle_socket(self, sock: socket.socket, address: Any) -> None:
        if self.server is None:
            # Stopped since it was accepted.
            sock.close()
            return
        peer, local = _PREFIX + _from_kernel(address), self.listen_address
        try:
            stream = MessageStream(sock, max_buffer_size=MAX_BUFFER_SIZE)
            comm = Unix(stream, local, peer, self.deserialize)
            comm.allow_offload = self.allow_offload
            await self.on_connection(comm)
        except OSError as exc:
            log_failed_connection(peer, local, exc)
            return
        await call_comm_handler(self.comm_handler, comm)

    @property
    def listen_address(self) -> str:
        if self._bound is None:
            raise ValueError(f"invalid operation on non-started {type(self).__name__}")
        return _PREFIX + self._bound

    @property
    def contact_address(self) -> str:
        return self.listen_address


@asynccontextmanager
async def _locked(directory: str) -> AsyncIterator[None]:
    """Let no other listener look for stale sockets in *directory* meanwhile.

    It would take one that is bound, but does not listen yet, for stale.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if attempt == _LOCK_ATTEMPTS - 1:
                    raise OSError(
                        exc.errno, f"another process keeps {directory} locked (flock)"
                    ) from None
            await asyncio.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: str) -> None:
    """Remove the socket at *path* if nobody listens at it.

    Raises
    ------
    OSError
        If somebody does, or what is there is no socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            # So many wait to be accepted that there is no room for one more.
            pass
    raise OSError(errno.EADDRINUSE, "another socket listens there already")


def _unlink(made_by: int, path: str, made: os.stat_result) -> None:
    """Remove the socket file that a listener of this process made, and no other."""
    if os.getpid() != made_by:
        return
    try:
        if os.path.samestat(os.lstat(path), made):
            os.unlink(path)
    except FileNotFoundError:
        return


class UnixBackend(Backend):
    """The backend of ``unix://``."""

    def get_connector(self) -> Connector:
        return UnixConnector()

    def get_listener(
        self, loc: str, handle_comm: CommHandler, deserialize: bool, **connection_args: Any
    ) -> Listener:
        return UnixListener(loc, handle_comm, deserialize, **connection_args)

    def get_address_host(self, loc: str) -> str:
        """The name of this host, wherever *loc* is."""
        return socket.gethostname()

    def resolve_address(self, loc: str) -> str:
        return _normalize(loc)

    def get_local_address_for(self, loc: str) -> str:
        """A new path: whoever can reach a socket can reach another."""
        return ""
