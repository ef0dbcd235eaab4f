"""The ``inproc://`` transport: messages pass by reference between the event loops of one process.

A connection is two queues, and nothing is serialized.  The reader gets the objects that the writer
put into a message; only the dicts, lists and tuples around them are copied, so either side may
change those.  The two ends may be in different threads, each with its own event loop.  An address,
``inproc://<ip>/<pid>/<number>``, names the process; `Manager` holds the listeners of this one.

In all else this transport behaves like those over streams: the handshake and the errors are the
same, and cancelling a read closes the comm.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

from distributed.base.host_addresses import name_of_host
from distributed.base.logs import get_logger
from distributed.base.text import shown_repr
from distributed.comm.arguments import CONNECT, LISTEN, check_keywords
from distributed.comm.core import (
    BaseListener,
    Comm,
    CommClosedError,
    CommHandler,
    Connector,
    call_comm_handler,
)
from distributed.comm.inproc_queue import EOF, Queue, QueueEmpty
from distributed.comm.registry import Backend
from distributed.protocol.limits import reading
from distributed.protocol.pieces import PLAIN_TYPES
from distributed.protocol.serialize import _nested_deserialize

__all__ = [
    "InProc",
    "InProcBackend",
    "InProcConnector",
    "InProcListener",
    "Manager",
    "Queue",
    "QueueEmpty",
    "global_manager",
    "new_address",
]

logger = get_logger(__name__)

#: Maximum number of messages read or written without waiting, before other tasks get a turn.
_UNINTERRUPTED: Final = 64


class InProc(Comm):
    """A comm within this process.

    `InProcConnector` and `InProcListener` create it.  Call its methods in one event loop only.

    Parameters
    ----------
    local_addr, peer_addr
        The addresses of both ends, as URIs.
    read_q, write_q
        The queues that the peer writes to and reads from.
    write_loop
        The event loop of the peer.
    deserialize
        Whether values wrapped by :func:`~distributed.protocol.to_serialize` are unwrapped when
        they are read.
    """

    # Both queues are finished, and end in `EOF`, once either side has closed its end.
    def __init__(
        self,
        local_addr: str,
        peer_addr: str,
        read_q: Queue,
        write_q: Queue,
        write_loop: asyncio.AbstractEventLoop,
        deserialize: bool = True,
    ):
        super().__init__(deserialize)
        self._local_addr = local_addr
        self._peer_addr = peer_addr
        self._read_q = read_q
        self._write_q = write_q
        self._write_loop = write_loop
        # Whether this side has closed the comm or has read `EOF`.
        self._closed = False
        # Whether a read is in progress.
        self._reading = False
        # Number of reads and writes since this comm last waited.
        self._served = 0
        # Closes the comm, with a warning, if it is garbage-collected while open.
        self._finalizer = weakref.finalize(
            self, _close_dangling, read_q, write_q, local_addr, peer_addr
        )
        self._finalizer.atexit = False

    @property
    def local_address(self) -> str:
        return self._local_addr

    @property
    def peer_address(self) -> str:
        return self._peer_addr

    @property
    def same_host(self) -> bool:
        return True

    async def read(self, deserializers: Sequence[str] | None = None) -> Any:
        """Read one message.

        Parameters
        ----------
        deserializers
            Not used: nothing was serialized.

        Raises
        ------
        CommClosedError
            If this end is closed, or the peer's end is and all its messages were read.
        RuntimeError
            If another read is in progress.
        """
        if self._closed:
            raise CommClosedError(f"cannot read: {self!r}")
        if self._reading:
            raise RuntimeError(f"another coroutine is already reading from {self!r}")
        self._reading = True
        try:
            self._served += 1
            if self._served > _UNINTERRUPTED:
                await self._let_others_run()
            try:
                msg = self._read_q.get_nowait()
            except QueueEmpty:
                self._served = 0
                msg = await self._read_q.get()
        except BaseException:
            # If the read was cancelled, the message may be lost, as over a stream.
            self.abort()
            raise
        finally:
            self._reading = False
        if msg is EOF or self._closed:
            by = "this side" if self._closed else "the peer"
            self.abort()
            raise CommClosedError(f"in {self!r}: closed by {by}")
        self.traffic.messages_received += 1
        # The usual cases, which need no limits.
        kind = type(msg)
        if kind in PLAIN_TYPES:
            return msg
        if kind is dict and PLAIN_TYPES.issuperset(map(type, msg.values())):
            return msg.copy()
        with reading(self.load_policy):
            return _nested_deserialize(msg, emulate_deserialize=self.deserialize)

    async def write(
        self, msg: Any, serializers: Sequence[str] | None = None, on_error: str | None = None
    ) -> int:
        """Write one message.

        The peer gets the objects in it, so they must not be changed afterwards.

        Parameters
        ----------
        msg
            The message.
        serializers, on_error
            Not used: nothing is serialized.

        Returns
        -------
        int
            Always 1, because a message that is not serialized has no size in bytes.

        Raises
        ------
        CommClosedError
            If either end is closed.
        """
        self._served += 1
        if self._served > _UNINTERRUPTED:
            try:
                await self._let_others_run()
            except BaseException:
                self.abort()
                raise
        if self.closed():
            raise CommClosedError(f"cannot write: {self!r}")
        if self._write_q.finished:
            raise CommClosedError(f"cannot write: the peer has closed {self!r}")
        if self._write_loop.is_closed():
            self.abort()
            raise CommClosedError(f"cannot write: the event loop of the peer is closed: {self!r}")
        self._write_q.put_nowait(msg)
        self.traffic.messages_sent += 1
        return 1

    @property
    def is_reading(self) -> bool:
        return self._reading

    @property
    def has_unread(self) -> bool:
        return self._read_q.peek(EOF) is not EOF

    def notify_end(self, callback: Callable[[], object] | None) -> None:
        self._read_q.on_finish = callback and (asyncio.get_running_loop(), callback)

    async def _let_others_run(self) -> None:
        """Let other tasks run, which reads and writes that never wait would prevent."""
        self._served = 0
        await asyncio.sleep(0)

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._read_q.on_finish = None
        self._finalizer.detach()
        _finish(self._read_q, self._write_q)

    def closed(self) -> bool:
        """Return whether the comm is closed, by either side, and nothing is left to be read."""
        return self._closed or (self._read_q.finished and self._read_q.peek(EOF) is EOF)


def _finish(*queues: Queue) -> None:
    """Mark the queues of a connection as finished, and wake their readers."""
    for queue in queues:
        queue.finish()


def _close_dangling(read_q: Queue, write_q: Queue, local: str, peer: str) -> None:
    """Close the connection of a comm that was garbage-collected while open."""
    if not read_q.finished:
        logger.warning("Closing dangling queue of the connection from %s to %s", local, peer)
    _finish(read_q, write_q)


class ConnectionRequest(NamedTuple):
    """A connector's request to a listener: the two queues, and the client's loop and address."""

    c2s_q: Queue
    s2c_q: Queue
    c_loop: asyncio.AbstractEventLoop
    c_addr: str


class Manager:
    """The listeners of a process by address; may be used from any thread.

    It holds weak references, so a listener that is garbage-collected is stopped.
    """

    def __init__(self) -> None:
        #: The loc of each started listener → the listener.
        self.listeners: weakref.WeakValueDictionary[str, InProcListener] = (
            weakref.WeakValueDictionary()
        )
        # The numbers of new addresses.
        self._numbers = itertools.count(1)
        # Held while `listeners` changes.
        self._lock = threading.Lock()

    @cached_property
    def ip(self) -> str:
        """The IP address in the addresses of this process, which names the host."""
        return name_of_host()

    def new_address(self) -> str:
        """Return a new loc, ``<ip>/<pid>/<number>``."""
        return f"{self.ip}/{os.getpid()}/{next(self._numbers)}"

    def validate_address(self, addr: str) -> None:
        """Check that a loc belongs to this process.

        Raises
        ------
        ValueError
            If it does not, or is malformed.
        """
        ip, *rest = addr.split("/")
        if len(rest) != 2 or not rest[0].isdigit():
            raise ValueError(
                f"invalid inproc address {shown_repr(addr)}: expected <ip>/<pid>/<number>, or "
                "nothing to listen at a new one"
            )
        if ip != self.ip or int(rest[0]) != os.getpid():
            raise ValueError(
                f"inproc address {shown_repr(addr)} does not match host ({self.ip!r}) or pid "
                f"({os.getpid()}): only this process' own inproc addresses can be reached from it"
            )

    def add_listener(self, addr: str, listener: InProcListener) -> None:
        """Add a listener.

        Raises
        ------
        OSError
            If another one listens at *addr*.
        """
        with self._lock:
            if self.listeners.get(addr, listener) is not listener:
                raise OSError(errno.EADDRINUSE, f"already listening on inproc://{addr}")
            self.listeners[addr] = listener

    def remove_listener(self, addr: str) -> None:
        """Remove the listener at *addr*, if there is one."""
        with self._lock:
            self.listeners.pop(addr, None)

    def get_listener_for(self, addr: str) -> InProcListener | None:
        """Return the listener at *addr*, or None.

        Raises
        ------
        ValueError
            If *addr* does not belong to this process.
        """
        self.validate_address(addr)
        return self.listeners.get(addr)


#: The listeners of this process.
global_manager = Manager()


def new_address() -> str:
    """Return a new address of this process.

    Examples
    --------
    >>> new_address().startswith("inproc://")
    True
    """
    return InProcListener.prefix + global_manager.new_address()


class InProcListener(BaseListener):
    """A listener that accepts connections from within this process.

    Parameters
    ----------
    address
        Where to listen, without the scheme; empty for a new address.
    comm_handler
        Called with each new comm after its handshake, in the loop that started the listener.
    deserialize
        See `InProc`.

    Raises
    ------
    ValueError
        If *address* belongs to another process, or is malformed.
    """

    prefix: Final = "inproc://"

    def __init__(self, address: str, comm_handler: CommHandler, deserialize: bool = True):
        super().__init__()
        self.manager = global_manager
        if address:
            self.manager.validate_address(address)
        self.address = address or self.manager.new_address()
        self.comm_handler = comm_handler
        self.deserialize = deserialize
        #: The loop that started the listener; None before start() and after stop().
        self.loop: asyncio.AbstractEventLoop | None = None
        # The handshakes and handlers in progress.
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start to accept connections.

        Raises
        ------
        OSError
            If another listener has the address.
        """
        self.manager.add_listener(self.address, self)
        self.loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Stop accepting connections, and abort those in their handshake.  Idempotent."""
        if self.loop is None:
            return
        self.loop = None
        self.manager.remove_listener(self.address)
        self.abort_handshaking_comms()

    def connect_threadsafe(self, request: ConnectionRequest) -> asyncio.AbstractEventLoop:
        """Request a connection from any thread, and return the loop of its other end.

        If the listener stops before it has accepted the request, the connection is closed at once.

        Raises
        ------
        OSError
            If the listener has stopped, or its loop is closed.
        """
        loop = self.loop
        if loop is None:
            raise ConnectionRefusedError(f"{self.listen_address} does not listen any more")
        try:
            loop.call_soon_threadsafe(self._accept, request, loop)
        except RuntimeError as exc:
            raise ConnectionRefusedError(f"{self.listen_address} does not run: {exc}") from exc
        return loop

    def _accept(self, request: ConnectionRequest, loop: asyncio.AbstractEventLoop) -> None:
        if self.loop is not loop:
            _finish(request.c2s_q, request.s2c_q)
            return
        comm = InProc(
            self.listen_address,
            self.prefix + request.c_addr,
            read_q=request.c2s_q,
            write_q=request.s2c_q,
            write_loop=request.c_loop,
            deserialize=self.deserialize,
        )
        task = loop.create_task(self._handle_comm(comm))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle_comm(self, comm: InProc) -> None:
        try:
            await self.on_connection(comm)
        except OSError as exc:
            logger.info("Connection to %s failed before it began: %s", self.listen_address, exc)
            return
        try:
            await call_comm_handler(self.comm_handler, comm)
        except asyncio.CancelledError:
            # The loop shuts down, and the handler cannot close the comm any more.
            comm.abort()
            raise

    @property
    def listen_address(self) -> str:
        return self.prefix + self.address

    @property
    def contact_address(self) -> str:
        return self.listen_address


class InProcConnector(Connector):
    """A connector to the listeners of *manager*."""

    def __init__(self, manager: Manager):
        self.manager = manager

    async def connect(
        self, address: str, deserialize: bool = True, **connection_args: Any
    ) -> InProc:
        """Open a connection to *address*, ``<ip>/<pid>/<number>``.

        Raises
        ------
        OSError
            If there is no listener.
        ValueError
            If the address belongs to another process, or is malformed.
        """
        check_keywords(InProcListener.prefix + address, connection_args, CONNECT)
        if (listener := self.manager.get_listener_for(address)) is None:
            raise OSError(f"no endpoint for inproc address {shown_repr(address)}")
        request = ConnectionRequest(
            c2s_q=Queue(),
            s2c_q=Queue(),
            c_loop=asyncio.get_running_loop(),
            c_addr=self.manager.new_address(),
        )
        loop = listener.connect_threadsafe(request)
        return InProc(
            InProcListener.prefix + request.c_addr,
            listener.contact_address,
            read_q=request.s2c_q,
            write_q=request.c2s_q,
            write_loop=loop,
            deserialize=deserialize,
        )


class InProcBackend(Backend):
    """The backend of ``inproc://``."""

    manager = global_manager

    def get_connector(self) -> InProcConnector:
        return InProcConnector(self.manager)

    def get_listener(
        self, loc: str, handle_comm: CommHandler, deserialize: bool, **connection_args: Any
    ) -> InProcListener:
        check_keywords(InProcListener.prefix + loc, connection_args, LISTEN)
        return InProcListener(loc, handle_comm, deserialize)

    def get_address_host(self, loc: str) -> str:
        self.manager.validate_address(loc)
        return self.manager.ip

    def resolve_address(self, loc: str) -> str:
        return loc

    def get_local_address_for(self, loc: str) -> str:
        self.manager.validate_address(loc)
        return self.manager.new_address()
