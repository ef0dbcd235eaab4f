"""The answering side of the foundations: a server that listens.

:class:`BaseServer` puts together what a server is made of, each part a module of
its own: how it lives (:mod:`~distributed.core.lifecycle`), how it answers
(:mod:`~distributed.core.requests`), what it counts (:mod:`~distributed.telemetry.statistics`)
and where it puts files (:mod:`~distributed.scratch.directory`).  What it adds is where it
listens.  It cannot call anybody: :class:`distributed.core.Server` can.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar, overload

from tornado.ioloop import PeriodicCallback

from distributed.base import config
from distributed.base.event_loop import asyncio_loop_of
from distributed.comm import (
    get_address_host,
    get_address_host_port,
    listen,
    unparse_host_port,
)
from distributed.comm.core import Listener
from distributed.core.errors.messages import error_message
from distributed.core.host import replaceable
from distributed.core.pool import ConnectionPool
from distributed.core.requests import Dispatcher
from distributed.scratch.directory import ScratchDirectory
from distributed.telemetry.counter import Counter
from distributed.telemetry.monitor import SystemMonitor
from distributed.telemetry.statistics import Statistics

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Time in seconds that running handlers are given when their server is closed.
CLOSE_GRACE = 1.0


class Listening:
    """What ``Server.listen`` returns: awaited, it tells when the address is bound.

    It is bound as soon as the event loop runs, awaited or not; if nobody awaits
    it, an error is logged.
    """

    # State.  `_task` exists once the loop runs; `_awaited` once somebody asks.
    def __init__(self, bind: Callable[[], Any], loop: asyncio.AbstractEventLoop, what: str):
        self._bind = bind
        self._what = what
        self._task: asyncio.Task[None] | None = None
        self._awaited = False
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            loop.call_soon(self._begin)
        else:
            # At once, so that addresses are bound in the order of the calls.
            self._begin()

    def _begin(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = asyncio.create_task(self._bind())
            self._task.add_done_callback(self._done)
        return self._task

    def __await__(self) -> Generator[Any, None, None]:
        self._awaited = True
        return self._begin().__await__()

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None and not self._awaited:
            logger.error("%s failed", self._what, exc_info=task.exception())


class _Statistic(Generic[_T]):
    """An attribute of a server that its statistics hold; to be read and to be replaced."""

    def __init__(self, doc: str):
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name

    @overload
    def __get__(self, server: None, owner: type) -> _Statistic[_T]: ...
    @overload
    def __get__(self, server: BaseServer, owner: type) -> _T: ...
    def __get__(self, server: BaseServer | None, owner: type) -> _Statistic[_T] | _T:
        if server is None:
            return self
        value: _T = getattr(server._server_statistics, self._attribute)
        return value

    def __set__(self, server: BaseServer, value: _T) -> None:
        setattr(server._server_statistics, self._attribute, value)


class BaseServer(Dispatcher):
    """A server that listens and answers; see :class:`distributed.core.Server`."""

    default_ip = ""
    default_port = 0
    #: Whether what arrives pickled is unpickled, in requests and in answers to
    #: calls; None for what ``distributed.comm.allow-pickle`` says.
    allow_pickle: bool | None = None

    # State.  `listeners` in the order in which they were bound.  `_address` and
    # `_listen_address` are None until they are asked for or set, `_local_directory`
    # unless it is set.  `_binding_tasks` are the calls of listen() that did not come
    # to an end.
    def __init__(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        blocked_handlers: Iterable[str] | None = None,
        stream_handlers: Mapping[str, Callable[..., Any]] | None = None,
        deserialize: bool = True,
        local_directory: str | os.PathLike[str] | None = None,
        needs_workdir: bool = True,
        tick_limit: Callable[[], float | None] | None = None,
    ) -> None:
        super().__init__(handlers, blocked_handlers, stream_handlers)
        self.deserialize = deserialize
        self.listeners: list[Listener] = []
        self._address: str | None = None
        self._listen_address: str | None = None
        self._local_directory: str | None = None
        self._bind_lock = asyncio.Lock()
        self._binding_tasks: set[asyncio.Task[Any]] = set()
        self._server_statistics = Statistics(type(self).__name__, tick_limit=tick_limit)
        self.periodic_callbacks: dict[str, PeriodicCallback] = (
            self._server_statistics.make_periodic_callbacks()
        )
        self._scratch_directory = ScratchDirectory(
            type(self).__name__,
            local_directory=None if local_directory is None else os.fspath(local_directory),
            needs_workdir=needs_workdir,
        )

    # Life

    async def start_unsafe(self) -> Self:
        """Start the periodic callbacks.  Subclasses extend this to start themselves."""
        await super().start_unsafe()
        self.start_periodic_callbacks()
        return self

    def start_periodic_callbacks(self) -> None:
        """Start the periodic callbacks that do not run yet."""
        if not self._accepts_requests:
            # Closed while it started.
            return
        self._server_statistics.reset_ticks()
        for callback in self.periodic_callbacks.values():
            if not callback.is_running():
                callback.start()

    def stop(self) -> None:
        """Stop to listen and to do anything periodically, at once.

        What is in progress goes on; :meth:`close` ends it.
        """
        for callback in self.periodic_callbacks.values():
            callback.stop()
        self._stop_listeners()

    def _stop_listeners(self) -> None:
        for task in self._binding_tasks:
            task.cancel()
        self._binding_tasks.clear()
        for listener in self.listeners:
            listener.stop()

    async def _close_unsafe(self, timeout: float | None) -> None:
        try:
            self.stop()
            await self._finish_handlers(CLOSE_GRACE if timeout is None else timeout)
        finally:
            await self._ongoing_background_tasks.stop()
            me = asyncio.current_task()
            for comm, op in list(self._comms.items()):
                # The comm over which close() was called still wants its answer.
                if op is None or me not in self._serving_tasks:
                    comm.abort()
            self._server_statistics.close()
            await self._scratch_directory.close_async()

    # Addresses

    def listen(
        self,
        port_or_addr: int | str | tuple[str, int] | None = None,
        allow_offload: bool = True,
        **kwargs: Any,
    ) -> Listening:
        """Listen at an address.  Call this several times to listen at several.

        Parameters
        ----------
        port_or_addr
            A port, ``(host, port)``, an address such as ``"tcp://:8786"``, or
            None for ``default_port``.
        allow_offload
            Whether expensive (de)serialization may run in a thread.
        kwargs
            What the transport needs besides.

        Returns
        -------
        awaitable
            Await it to know that the address is bound, or why it cannot be.
            The address is bound once the event loop runs even if you don't;
            an error is logged then.
        """
        if port_or_addr is None:
            port_or_addr = self.default_port
        if isinstance(port_or_addr, int):
            addr = unparse_host_port(self.default_ip, port_or_addr)
        elif isinstance(port_or_addr, tuple):
            addr = unparse_host_port(*port_or_addr)
        elif isinstance(port_or_addr, str):
            addr = port_or_addr
        else:
            raise TypeError(
                f"expected a port, (host, port), or an address to listen at, got {port_or_addr!r}"
            )

        if self.allow_pickle is not None:
            kwargs.setdefault("allow_pickle", self.allow_pickle)

        async def bind() -> None:
            task = asyncio.current_task()
            assert task is not None
            self._binding_tasks.add(task)
            try:
                async with self._bind_lock:
                    if not self._accepts_requests:
                        raise RuntimeError(f"cannot listen at {addr}: {self.id} is closed")
                    self.listeners.append(
                        await listen(
                            addr,
                            self.handle_comm,
                            deserialize=self.deserialize,
                            allow_offload=allow_offload,
                            **kwargs,
                        )
                    )
            except asyncio.CancelledError:
                if task in self._binding_tasks:
                    raise
                raise RuntimeError(f"cannot listen at {addr}: {self.id} was stopped") from None
            finally:
                self._binding_tasks.discard(task)

        loop: asyncio.AbstractEventLoop
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = asyncio_loop_of(self.io_loop)
        return Listening(bind, loop, f"{self.id}: to listen at {addr}")

    @property
    def listener(self) -> Listener | None:
        """The first listener, or None."""
        return self.listeners[0] if self.listeners else None

    @property
    def address(self) -> str:
        """The address at which others can contact this server.

        Raises
        ------
        ValueError
            If it does not listen.
        """
        if self._address is None:
            if not self.listeners:
                raise ValueError(f"cannot get address of non-running {type(self).__name__}")
            self._address = self.listeners[0].contact_address
        return self._address

    @property
    def address_safe(self) -> str:
        """The address, or ``"not-running"`` where there is none."""
        try:
            return self.address
        except ValueError:
            return "not-running"

    @property
    def listen_address(self) -> str:
        """The address that this server is bound to, which may have a wildcard.

        Raises
        ------
        ValueError
            If it does not listen.
        """
        if self._listen_address is None:
            if not self.listeners:
                raise ValueError(f"cannot get listen address of non-running {type(self).__name__}")
            self._listen_address = self.listeners[0].listen_address
        return self._listen_address

    @property
    def host(self) -> str:
        """The host of :attr:`address`."""
        return get_address_host(self.address)

    @property
    def port(self) -> int | None:
        """The port of :attr:`address`."""
        return get_address_host_port(self.address)[1]

    def _to_dict(self, *, exclude: Any = ()) -> dict[str, Any]:
        state = {"address": self.address_safe, **super()._to_dict()}
        return {key: value for key, value in state.items() if key not in exclude}

    # Comms

    @property
    def incoming_comms_open(self) -> int:
        """The number of open comms that others made."""
        return len(self._comms)

    @property
    def incoming_comms_active(self) -> int:
        """The number of comms on which a request is in progress."""
        return sum(op is not None for op in self._comms.values())

    # What is counted

    counters: _Statistic[defaultdict[str, Counter]] = _Statistic(
        """What is counted, by name; ``counters["op"]`` counts operations."""
    )
    digests: _Statistic[defaultdict[Hashable, Any] | None] = _Statistic(
        """The distributions of metrics; None without a digest library."""
    )
    digests_total: _Statistic[defaultdict[Hashable, float]] = _Statistic(
        """The sum of each metric."""
    )
    digests_total_since_heartbeat: _Statistic[defaultdict[Hashable, float]] = _Statistic(
        """The sum of each metric since it was last cleared."""
    )
    digests_max: _Statistic[defaultdict[Hashable, float]] = _Statistic(
        """The largest value of each metric."""
    )
    monitor: _Statistic[SystemMonitor] = _Statistic(
        """What this process takes of its host; made on first use."""
    )
    _last_tick: _Statistic[float] = _Statistic(
        """When the event loop last came round, in seconds since the epoch."""
    )
    _tick_counter: _Statistic[int] = _Statistic("""How often it came round.""")
    _tick_interval_observed: _Statistic[float] = _Statistic(
        """The time between two ticks, in seconds, on average."""
    )

    def digest_metric(self, name: Any, value: float) -> None:
        """Take note of one value of a metric."""
        self._server_statistics.digest_metric(name, value)

    # Files

    @property
    def local_directory(self) -> str:
        """A scratch directory; made on first use, removed when the server closes."""
        if self._local_directory is None:
            return self._scratch_directory.path
        return self._local_directory

    @local_directory.setter
    def local_directory(self, path: str) -> None:
        self._local_directory = path

    @property
    def _original_local_dir(self) -> str | None:
        return self._scratch_directory.original

    async def upload_file(
        self, filename: str, data: str | bytes, load: bool = True
    ) -> dict[str, Any]:
        """Write a file into the scratch directory and import it.

        Parameters
        ----------
        filename
            Its name, without a directory.
        data
            What is in it.
        load
            Whether to import it, if it is Python code.

        Returns
        -------
        dict
            ``{"status": "OK", "nbytes": …}``, or an error message.
        """
        try:
            return await self._scratch_directory.upload_file_async(filename, data, load=load)
        except Exception as exc:
            logger.exception("Cannot store %r", filename)
            return dict(error_message(exc))


class Server(BaseServer):
    """A server: answers operations, and can call others.

    Subclasses such as a scheduler or a worker pass their operations as
    *handlers*, and override :meth:`start_unsafe` and :meth:`close`.

    Parameters
    ----------
    handlers
        Operations: name → function or coroutine function.  It is called with
        the keys of the request as keyword arguments; if its first parameter is
        named ``comm``, with the comm as that.  What it returns is the answer.
    blocked_handlers
        Names of operations that are refused; by default
        ``distributed.<class name>.blocked-handlers`` of the configuration.
    stream_handlers
        Operations of one-way streams; see :meth:`handle_stream`.
    connection_limit
        How many connections to other servers may be open at a time.
    deserialize, connection_args, serializers, deserializers, timeout
        For connections to other servers; see :class:`rpc`.
    local_directory
        Where to make the scratch directory.
    needs_workdir
        Whether the scratch directory is this server's own and locked.

    Attributes
    ----------
    handlers, stream_handlers : dict
        Operations by name; may be changed.
    rpc : ConnectionPool
        For calls to other servers: ``await self.rpc(address).op(...)``.
    allow_pickle : bool or None
        Of the class: whether what arrives pickled is unpickled; by default (None)
        as ``distributed.comm.allow-pickle`` says.
    status : Status
        Where in its life the server is.

    Examples
    --------
    >>> async def main():
    ...     async with Server({"add": lambda x, y: x + y}) as server:
    ...         await server.listen("tcp://127.0.0.1:0")
    ...         async with rpc(server.address) as remote:
    ...             return await remote.add(x=1, y=2)
    >>> asyncio.run(main())
    3
    """

    def __init__(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        blocked_handlers: Iterable[str] | None = None,
        stream_handlers: Mapping[str, Callable[..., Any]] | None = None,
        connection_limit: int = 512,
        deserialize: bool = True,
        serializers: Sequence[str] | None = None,
        deserializers: Sequence[str] | None = None,
        connection_args: Mapping[str, Any] | None = None,
        timeout: float | str | None = None,
        local_directory: str | os.PathLike[str] | None = None,
        needs_workdir: bool = True,
    ) -> None:
        configured = config.get_timedelta("distributed.admin.tick.limit")
        super().__init__(
            handlers,
            blocked_handlers=blocked_handlers,
            stream_handlers=stream_handlers,
            deserialize=deserialize,
            local_directory=local_directory,
            needs_workdir=needs_workdir,
            tick_limit=lambda: replaceable("tick_maximum_delay", configured),
        )
        self.connection_args = dict(connection_args or {})
        if self.allow_pickle is not None:
            self.connection_args.setdefault("allow_pickle", self.allow_pickle)
        self.rpc = ConnectionPool(
            limit=connection_limit,
            deserialize=deserialize,
            serializers=serializers,
            deserializers=deserializers,
            connection_args=self.connection_args,
            timeout=timeout,
            server=self,
        )

    async def start_unsafe(self) -> Self:
        """Make the server ready.  Subclasses extend this to start themselves."""
        await super().start_unsafe()
        await self.rpc.start()
        return self

    async def _close_unsafe(self, timeout: float | None) -> None:
        try:
            await super()._close_unsafe(timeout)
        finally:
            await self.rpc.close()

    @property
    def outgoing_comms_open(self) -> int:
        """The number of connections to other servers."""
        return self.rpc.open

    @property
    def outgoing_comms_active(self) -> int:
        """The number of connections to other servers on which a call is in progress."""
        return self.rpc.active

    def get_connection_counters(self) -> dict[str, int]:
        """Return the numbers of connections, by kind."""
        return {
            name: getattr(self, name)
            for name in (
                "incoming_comms_open",
                "incoming_comms_active",
                "outgoing_comms_open",
                "outgoing_comms_active",
            )
        }
