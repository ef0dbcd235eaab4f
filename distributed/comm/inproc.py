"""The ``inproc://`` transport: messages pass by reference, between the loops of one process.

There is no stream and nothing is serialized: a connection is two queues, and the values in a
message are read as the very objects that were written; only the dicts, lists and tuples around them
are copied, so that either side may change those. The two ends may live in different threads, each
with an event loop of its own. An address, ``inproc://<ip>/<pid>/<number>``, tells which process it
belongs to; `Manager` knows the listeners of this one. Otherwise this transport behaves as those
over streams do: the same handshake, the same errors, and whoever cancels a read has closed the
comm.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from distributed.base.host_addresses import get_ip
from distributed.comm.core import (
    BaseListener,
    Comm,
    CommClosedError,
    CommHandler,
    Connector,
    call_comm_handler,
)
from distributed.comm.registry import Backend
from distributed.protocol.limits import reading
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

logger = logging.getLogger(__name__)

#: So many messages that need no waiting are read, or written, before others get their turn.
_UNINTERRUPTED: Final = 64


class QueueEmpty(Exception):
    """There is nothing in the queue now."""


class _EndOfFile:
    def __repr__(self) -> str:
        return "<end of file>"


#: The last item of a queue that is finished.
_EOF: Final = _EndOfFile()

_NO_DEFAULT: Final = object()


class Queue:
    """A queue without bounds, with one reader; writers may be in any thread.

    The reader may use one event loop now and another later.

    Examples
    --------
    >>> queue = Queue()
    >>> queue.put_nowait("a")
    >>> queue.peek(), queue.get_nowait(), queue.peek("nothing")
    ('a', 'a', 'nothing')
    """

    # State. `finished` is set when nothing more will be read or written; the queue itself does not
    # care. `_items` is what was not read yet. `_waiter` is what the last `get` returned; it
    # belongs to the reader's loop and is resolved there only. Items are taken by the reader's
    # thread alone. There is no lock, since a comm's finalizer may write from within any statement:
    # a writer adds its item before it looks for a waiter, a reader sets its waiter before it looks
    # for items, so one of them always sees the other.
    finished: bool
    _items: deque[Any]
    _waiter: asyncio.Future[Any] | None

    def __init__(self) -> None:
        self.finished = False
        self._items = deque()
        self._waiter = None

    def get(self) -> asyncio.Future[Any]:
        """A future of the running loop that gives the next item; cancelled, it takes none."""
        assert self._waiter is None or self._waiter.done(), "Only one reader allowed"
        waiter = asyncio.get_running_loop().create_future()
        self._waiter = waiter
        self._serve()
        return waiter

    def get_nowait(self) -> Any:
        """The next item.

        Raises
        ------
        QueueEmpty
            If there is none.
        """
        try:
            return self._items.popleft()
        except IndexError:
            raise QueueEmpty from None

    def put_nowait(self, value: Any) -> None:
        """Add an item. Can be called from any thread."""
        self._items.append(value)
        self._wake()

    put = put_nowait

    def peek(self, default: Any = _NO_DEFAULT) -> Any:
        """The next item, which stays.

        Raises
        ------
        QueueEmpty
            If there is none and no *default*.
        """
        try:
            return self._items[0]
        except IndexError:
            if default is _NO_DEFAULT:
                raise QueueEmpty from None
            return default

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        loop = waiter.get_loop()
        if loop is asyncio._get_running_loop():
            self._serve()
            return
        try:
            loop.call_soon_threadsafe(self._serve)
        except RuntimeError:
            if not loop.is_closed():
                raise
            # Whoever waited there does not wait any more.

    def _serve(self) -> None:
        """Hand the next item to the reader, in whose thread this is."""
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self._items:
            waiter.set_result(self._items.popleft())


class InProc(Comm):
    """A comm within this process.

    Made by `InProcConnector` and `InProcListener`; its methods are to be called in one event loop.

    Parameters
    ----------
    local_addr, peer_addr
        The addresses of both ends, as URI.
    read_q, write_q
        The queues of what the peer writes and of what it reads.
    write_loop
        The event loop of the peer.
    deserialize
        Whether values wrapped by :func:`~distributed.protocol.to_serialize` are unwrapped on
        arrival. If false they stay wrapped.
    """

    # State. `_closed` is true once this side has closed the comm or has read the end of file. Both
    # queues are finished, and end in `_EOF`, once either side has closed its end.
    # `_reading` is true while a read is under way. `_served` counts the reads and writes since
    # this comm last waited.

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
        self._closed = False
        self._reading = False
        self._served = 0
        self._finalizer = weakref.finalize(self, _close_dangling, read_q, write_q, repr(self))
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
            If either end was closed and all that the peer wrote before was read.
        RuntimeError
            If another read is under way.
        """
        if self._closed:
            raise CommClosedError(f"cannot read: {self!r}")
        if self._reading:
            raise RuntimeError(f"another coroutine is already reading from {self!r}")
        self._reading = True
        try:
            await self._let_others_run()
            try:
                msg = self._read_q.get_nowait()
            except QueueEmpty:
                self._served = 0
                msg = await self._read_q.get()
        except BaseException:
            # Cancelled, most likely. The message may be lost, as one over a stream would be.
            self.abort()
            raise
        finally:
            self._reading = False
        if msg is _EOF or self._closed:
            by = "this side" if self._closed else "the peer"
            self.abort()
            raise CommClosedError(f"in {self!r}: closed by {by}")
        with reading(self.load_policy):
            return _nested_deserialize(msg, emulate_deserialize=self.deserialize)

    async def write(
        self, msg: Any, serializers: Sequence[str] | None = None, on_error: str | None = None
    ) -> int:
        """Write one message.

        The peer reads the very objects that stand in it. They are not to be changed any more.

        Parameters
        ----------
        msg
            The message.
        serializers, on_error
            Not used: nothing is serialized.

        Returns
        -------
        int
            Always 1: a message has no size in bytes here.

        Raises
        ------
        CommClosedError
            If either end is closed.
        """
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
        return 1

    async def _let_others_run(self) -> None:
        """Suspend now and then: neither reading nor writing does if there is much to read."""
        self._served += 1
        if self._served > _UNINTERRUPTED:
            self._served = 0
            await asyncio.sleep(0)

    async def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._finalizer.detach()
        _finish(self._read_q, self._write_q)

    def closed(self) -> bool:
        """Return whether the comm is closed, by either side, and nothing is left to be read."""
        return self._closed or (self._read_q.finished and self._read_q.peek(_EOF) is _EOF)


def _finish(*queues: Queue) -> None:
    """Tell both ends of a connection that one of them has closed it."""
    for queue in queues:
        queue.finished = True
        queue.put_nowait(_EOF)


def _close_dangling(read_q: Queue, write_q: Queue, comm: str) -> None:
    """Close a comm that was forgotten."""
    if not read_q.finished:
        logger.warning("Closing dangling queue in %s", comm)
    _finish(read_q, write_q)


class ConnectionRequest(NamedTuple):
    """What a connector hands to a listener: the queues between them, and who asks."""

    c2s_q: Queue
    s2c_q: Queue
    c_loop: asyncio.AbstractEventLoop
    c_addr: str


class Manager:
    """The listeners of a process, by address.

    Listeners are kept weakly: one that is forgotten is as good as stopped. Can be used from any
    thread.
    """

    # State. `listeners` maps the locs of started listeners to them. `_numbers` gives the next
    # address' number. `_ip` is found when it is first needed.
    listeners: weakref.WeakValueDictionary[str, InProcListener]

    def __init__(self) -> None:
        self.listeners = weakref.WeakValueDictionary()
        self._numbers = itertools.count(1)
        self._ip: str | None = None
        self._lock = threading.Lock()

    @property
    def ip(self) -> str:
        """The IP address that stands in addresses; it tells one host's from another's."""
        if self._ip is None:
            self._ip = get_ip()
        return self._ip

    def new_address(self) -> str:
        """A loc that was not given before: ``<ip>/<pid>/<number>``."""
        return f"{self.ip}/{os.getpid()}/{next(self._numbers)}"

    def validate_address(self, addr: str) -> None:
        """Check that a loc belongs to this process.

        Raises
        ------
        ValueError
            If it does not, or is none.
        """
        ip, *rest = addr.split("/")
        if len(rest) != 2 or not rest[0].isdigit():
            raise ValueError(
                f"invalid inproc address {addr!r}: expected <ip>/<pid>/<number>, or nothing to "
                "listen at a new one"
            )
        if ip != self.ip or int(rest[0]) != os.getpid():
            raise ValueError(
                f"inproc address {addr!r} does not match host ({self.ip!r}) or pid "
                f"({os.getpid()}): only this process' own inproc addresses can be reached from it"
            )

    def add_listener(self, addr: str, listener: InProcListener) -> None:
        """Make a listener known.

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
        """Forget the listener at *addr*, if there is one."""
        with self._lock:
            self.listeners.pop(addr, None)

    def get_listener_for(self, addr: str) -> InProcListener | None:
        """The listener at *addr*, None if there is none.

        Raises
        ------
        ValueError
            If *addr* is no address of this process.
        """
        self.validate_address(addr)
        return self.listeners.get(addr)


#: The listeners of this process.
global_manager = Manager()


def new_address() -> str:
    """An address of this process that was not given before.

    Examples
    --------
    >>> new_address().startswith("inproc://")
    True
    """
    return InProcListener.prefix + global_manager.new_address()


class InProcListener(BaseListener):
    """Accepts connections from within this process.

    Parameters
    ----------
    address
        Where to listen, without the scheme; empty for a new address.
    comm_handler
        Called with each new comm after its handshake, in the loop in which the listener was
        started.
    deserialize
        See `InProc`.

    Raises
    ------
    ValueError
        If *address* belongs to another process, or is none.
    """

    prefix: Final = "inproc://"

    # State. `loop` is where the listener was started, None before and after. `_tasks` are the
    # handshakes and handlers under way, kept from being collected.
    loop: asyncio.AbstractEventLoop | None

    def __init__(self, address: str, comm_handler: CommHandler, deserialize: bool = True):
        super().__init__()
        self.manager = global_manager
        if address:
            self.manager.validate_address(address)
        self.address = address or self.manager.new_address()
        self.comm_handler = comm_handler
        self.deserialize = deserialize
        self.loop = None
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
        """Stop accepting connections; those in their handshake are aborted. Idempotent."""
        if self.loop is None:
            return
        self.loop = None
        self.manager.remove_listener(self.address)
        self.abort_handshaking_comms()

    def connect_threadsafe(self, request: ConnectionRequest) -> asyncio.AbstractEventLoop:
        """Ask for a connection, from any thread; return the loop in which its other end will live.

        Should the listener be stopped before it comes to it, the connection is closed at once.

        Raises
        ------
        OSError
            If the listener is stopped or its loop closed.
        """
        loop = self.loop
        try:
            if loop is None:
                raise ConnectionRefusedError(f"{self.listen_address} does not listen any more")
            loop.call_soon_threadsafe(self._accept, request, loop)
        except RuntimeError as exc:
            raise ConnectionRefusedError(f"no one runs {self.listen_address}: {exc}") from exc
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
        except CommClosedError as exc:
            logger.info("Connection to %s failed before it began: %s", self.listen_address, exc)
            return
        try:
            await call_comm_handler(self.comm_handler, comm)
        except asyncio.CancelledError:
            # The loop is being shut down, and this was what was to close the comm.
            comm.abort()
            raise

    @property
    def listen_address(self) -> str:
        return self.prefix + self.address

    @property
    def contact_address(self) -> str:
        return self.prefix + self.address


class InProcConnector(Connector):
    """Opens connections within this process.

    Parameters
    ----------
    manager
        Knows the listeners.
    """

    def __init__(self, manager: Manager):
        self.manager = manager

    async def connect(
        self, address: str, deserialize: bool = True, **connection_args: Any
    ) -> InProc:
        """Open a connection to *address*, ``<ip>/<pid>/<number>``.

        Raises
        ------
        OSError
            If nobody listens there.
        ValueError
            If the address belongs to another process, or is none.
        """
        listener = self.manager.get_listener_for(address)
        if listener is None:
            raise OSError(f"no endpoint for inproc address {address!r}")
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
        return InProcListener(loc, handle_comm, deserialize)

    def get_address_host(self, loc: str) -> str:
        self.manager.validate_address(loc)
        return self.manager.ip

    def resolve_address(self, loc: str) -> str:
        return loc

    def get_local_address_for(self, loc: str) -> str:
        self.manager.validate_address(loc)
        return self.manager.new_address()
