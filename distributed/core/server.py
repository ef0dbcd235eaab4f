"""A server: it listens, answers requests, receives streams, and can call other servers.

:class:`Server` is composed of parts, each in its own module: its life cycle
(:mod:`~distributed.core.lifecycle`), its listeners (:mod:`~distributed.core.listening`), requests
(:mod:`~distributed.core.requests`), streams (:mod:`~distributed.core.streams`), the connections
to other servers (:mod:`~distributed.core.pool`), statistics
(:mod:`~distributed.telemetry.statistics`) and files (:mod:`~distributed.scratch.directory`).
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, Never, Self

from distributed.base import config
from distributed.base.arguments import check_flag, check_limit, did_you_mean, unexpected_keyword_of
from distributed.base.logs import get_logger
from distributed.comm import Comm, get_address_host, get_address_host_port
from distributed.comm.arguments import (
    OBJECT_HINT,
    SecuritySettings,
    check_connection_args,
    check_names,
    with_security,
)
from distributed.comm.core import Listener
from distributed.comm.settings import check_configuration
from distributed.core import slow_calls
from distributed.core.description import describe
from distributed.core.handlers import blocked_names, check_handlers, check_reserved
from distributed.core.host import (
    SystemMonitor,
    is_role,
    own_monitor,
    replaceable,
    start_profile,
    stop_profile,
)
from distributed.core.interceptors import Interceptor, check_interceptors
from distributed.core.lifecycle import LifeCycle
from distributed.core.listening import Listeners, Listening, address_to_listen_at
from distributed.core.pool import ConnectionPool
from distributed.core.requests import Requests
from distributed.core.streams import Streams
from distributed.core.tasks import AsyncTaskGroup, NoOpAwaitable
from distributed.scratch.directory import ScratchDirectory
from distributed.telemetry.statistics import Statistics

logger = get_logger("distributed.core")

#: Seconds before running handlers are cancelled when their server is closed.
CLOSE_GRACE = 1.0

#: Name of a class, in lower case → the role whose certificate its servers use.
_ROLES: Final = {"scheduler": "scheduler", "worker": "worker", "nanny": "worker"}


class Server(LifeCycle):
    """A server, which answers operations and can call other servers.

    Subclasses such as a scheduler or a worker pass their operations as *handlers*, and override
    :meth:`start_unsafe` and :meth:`close`.

    Parameters
    ----------
    handlers
        Operations: name → function or coroutine function.  It is called with the keys of the
        request as keyword arguments; if its first parameter is named ``comm``, with the comm as
        that parameter.  Its result is the answer.
    blocked_handlers
        Names of operations that are refused; by default those that the configuration lists in
        ``distributed.<class name>.blocked-handlers``.
    stream_handlers
        Operations of one-way streams; see :meth:`handle_stream`.
    connection_limit
        Maximum number of open connections to other servers.
    deserialize, connection_args, serializers, deserializers, timeout
        For connections to other servers; see :class:`rpc`.
    local_directory
        The directory in which the scratch directory is made.
    needs_workdir
        Whether the scratch directory belongs to this server alone and is locked.
    interceptors
        Functions around the handler of each request; see :mod:`distributed.core.interceptors`.
    security
        A `Security` object, for connections to other servers and, by default, for :meth:`listen`.

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown or invalid.

    Examples
    --------
    >>> import asyncio
    >>> from distributed.core import rpc
    >>> async def main():
    ...     async with Server({"add": lambda x, y: x + y}) as server:
    ...         await server.listen("tcp://127.0.0.1:0")
    ...         async with rpc(server.address) as remote:
    ...             return await remote.add(x=1, y=2)
    >>> asyncio.run(main())
    3
    """

    #: The host to listen at where only a port is given; "" for all interfaces.
    default_ip = ""
    #: The port to listen at where none is given; 0 for any free port.
    default_port = 0
    #: Whether to unpickle the pickled parts of the requests and answers that this server receives;
    #: None for the value of ``distributed.comm.allow-pickle``.
    allow_pickle: bool | None = None

    #: Whether the interpreter is shutting down.
    _is_finalizing = staticmethod(sys.is_finalizing)

    # Subclasses may change or replace the public attributes: the parts look them up at each use.
    # The exceptions are `listeners`, `counters` and `digests*`, which belong to a part; they may
    # be changed in place, and `digests_total_since_heartbeat` may be replaced.
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
        *,
        security: SecuritySettings | None = None,
        interceptors: Sequence[Interceptor] = (),
        **unknown: Never,
    ) -> None:
        if unknown:
            raise unexpected_keyword_of(Server.__init__, unknown, OBJECT_HINT)
        check_configuration()
        super().__init__()
        name = type(self).__name__
        check_handlers("handlers", handlers)
        if stream_handlers is not None:
            check_handlers("stream_handlers", stream_handlers)
        check_reserved(handlers, is_role(self))
        check_limit("connection_limit", connection_limit)
        check_flag("deserialize", deserialize)
        check_flag("allow_pickle", self.allow_pickle)
        #: Operations: name → handler.
        self.handlers: dict[str, Callable[..., Any]] = {
            "identity": self.identity,
            "echo": self.echo,
            "connection_stream": self.handle_stream,
            "dump_state": self._to_dict,
            "describe": self.describe,
            "health": self.health,
            **handlers,
        }
        #: Names of operations that are refused.
        self.blocked_handlers, self._server_blocked_by = blocked_names(name, blocked_handlers)
        #: Operations of one-way streams: name → handler.
        self.stream_handlers: dict[str, Callable[..., Any]] = dict(stream_handlers or {})
        # A subclass may add handlers in its own __init__.
        if blocked_handlers is not None and type(self).__init__ is Server.__init__:
            self._check_blocked_handlers()
        #: Functions around the handler of each request.
        self.interceptors = (*slow_calls.configured(), *check_interceptors(interceptors))
        self.deserialize = deserialize
        # The comms that other servers and clients opened → the operation in progress, or None.
        self._comms: dict[Comm, str | None] = {}
        # The parts that serve these comms, and the tasks of subclasses.
        self._server_requests = Requests(self)
        self._server_streams = Streams(self)
        self._ongoing_background_tasks = AsyncTaskGroup()

        self._server_listeners = Listeners(self)
        #: In the order in which they were bound.
        self.listeners: list[Listener] = self._server_listeners.bound
        # None until they are first read or set.
        self._address: str | None = None
        self._listen_address: str | None = None

        tick_limit = config.get_timedelta("distributed.admin.tick.limit")
        statistics = self._server_statistics = Statistics(
            name,
            tick_limit=lambda: replaceable("tick_maximum_delay", tick_limit),
            make_monitor=own_monitor,
        )
        #: Counters by name; ``counters["op"]`` counts operations.
        self.counters = statistics.counters
        #: The distributions of metrics; None without a digest library.
        self.digests = statistics.digests
        #: The sum of each metric.
        self.digests_total = statistics.digests_total
        #: The maximum of each metric.
        self.digests_max = statistics.digests_max
        #: Callbacks by name; :meth:`start_periodic_callbacks` starts them, :meth:`stop` stops them.
        self.periodic_callbacks = statistics.make_periodic_callbacks()

        # Set by subclasses that have another directory.
        self._local_directory: str | None = None
        self._scratch_directory = ScratchDirectory(
            name,
            local_directory=None if local_directory is None else os.fspath(local_directory),
            needs_workdir=needs_workdir,
        )
        self._original_local_dir = self._scratch_directory.original

        self._server_security = security
        role = _ROLES.get(name.lower())
        self.connection_args = check_connection_args(connection_args, security, role)
        if self.allow_pickle is not None:
            self.connection_args.setdefault("allow_pickle", self.allow_pickle)
        #: For calls to other servers: ``await self.rpc(address).op(...)``.
        self.rpc = ConnectionPool(
            limit=connection_limit,
            deserialize=deserialize,
            serializers=serializers,
            deserializers=deserializers,
            connection_args=self.connection_args,
            timeout=timeout,
            server=self,
        )

    # Life cycle

    async def start_unsafe(self) -> Self:
        """Start the pool.  Subclasses extend this method.

        This does not start the periodic callbacks, so that an idle server uses no CPU: see
        :meth:`start_periodic_callbacks`.
        """
        self._check_blocked_handlers()
        await super().start_unsafe()
        if is_role(self):
            # A role expects its directory on `sys.path`; other servers create it at first use.
            _ = self.local_directory
        await self.rpc.start()
        return self

    def start_periodic_callbacks(self) -> None:
        """Start those periodic callbacks that are not running, and the profile of the event loop.

        Subclasses that need their callbacks, ticks or samples of the system monitor call this
        method when they start.
        """
        if not self._is_open:
            # Closed while it started.
            return
        start_profile(self)
        self._server_statistics.prepare()
        self._server_statistics.reset_ticks()
        for callback in self.periodic_callbacks.values():
            if not callback.is_running():
                callback.start()

    def stop(self) -> None:
        """Stop listening, and stop the periodic callbacks, at once.

        Open comms and running handlers continue; :meth:`close` ends them.
        """
        for callback in self.periodic_callbacks.values():
            callback.stop()
        self._stop_listeners()

    def _stop_listeners(self) -> None:
        self._server_listeners.stop()

    async def _drain_unsafe(self, deadline: float) -> bool:
        self._server_listeners.leave_inherited()
        return await self._server_requests.draining.wait(deadline, self._server_streams.comms)

    @property
    def _cut_short(self) -> bool:
        """Whether a handler was cancelled because it did not end in the time of :meth:`drain`."""
        return self._server_requests.draining.cut_short or self._server_streams.cut_short

    def _close_waits_for_current_task(self) -> bool:
        return self._server_requests.runs_here() or self._server_streams.runs_here()

    async def _close_unsafe(self, timeout: float | None) -> None:
        try:
            try:
                self.stop()
                if self._drain_deadline is not None:
                    await self._server_streams.drain(self._drain_deadline)
                    await self._server_requests.draining.wait(self._drain_deadline)
                self._server_streams.abort_idle()
                deadline = monotonic() + (CLOSE_GRACE if timeout is None else timeout)
                for part in (self._server_streams, self._server_requests):
                    await part.finish(max(deadline - monotonic(), 0))
            finally:
                await self._ongoing_background_tasks.stop()
                self._server_requests.abort_comms()
                self._server_statistics.close()
                self._scratch_directory.close()
        finally:
            stop_profile(self)
            await self.rpc.close()

    def _check_blocked_handlers(self) -> None:
        """Raise ValueError if an operation is blocked that does not exist.

        It may be the misspelled name of an operation that then stays open to every peer.
        """
        for op in self.blocked_handlers:
            if op in self.handlers:
                continue
            where = self._server_blocked_by
            if where.startswith("distributed."):
                where += f" (from {config.source(where, self.blocked_handlers)})"
            text = f"{where} contains {op!r}, but {type(self).__name__} has no such "
            if op in self.stream_handlers:
                raise ValueError(
                    f"{text}operation. It is a stream handler, and these cannot be blocked one by "
                    "one: block 'connection_stream' or leave the stream handler out"
                )
            raise ValueError(f"{text}handler; {did_you_mean(op, self.handlers)}")

    # Built-in operations

    def identity(self) -> dict[str, str]:
        """Return the type and the id of this server."""
        return {"type": type(self).__name__, "id": self.id}

    def echo(self, data: Any = None) -> Any:
        """Return *data*."""
        return data

    def describe(self) -> dict[str, Any]:
        """Describe the operations; see :func:`distributed.core.description.describe`."""
        return describe(self.handlers, self.stream_handlers, self.blocked_handlers)

    def health(self) -> dict[str, Any]:
        """Return whether this server accepts requests.  Subclasses may add keys.

        Returns
        -------
        dict
            ``"status"``: ``"serving"``, or ``"closing"`` if new requests are refused.
        """
        return {"status": "closing" if self._refuses_requests else "serving"}

    def _to_dict(self, *, exclude: Any = ()) -> dict[str, Any]:
        """Return the state of this server for a dump, without the keys in *exclude*."""
        state = {
            "address": self.address_safe,
            **self.identity(),
            "status": self.status.name,
            "thread_id": self.thread_id,
        }
        return {key: value for key, value in state.items() if key not in exclude}

    # Requests and streams

    def handle_comm(self, comm: Comm) -> NoOpAwaitable:
        """Answer the requests on *comm*, in a task of its own, until *comm* is closed.

        A server that was not started starts itself.  One that is closed aborts *comm*.
        """
        self._server_requests.serve(comm)
        return NoOpAwaitable()

    async def _answer_stranger(self, msg: Any) -> dict[str, Any]:
        """Answer a peer that has no token, although one is required here."""
        return await self._server_requests.answer_stranger(msg)

    def handle_stream(
        self, comm: Comm, extra: Mapping[str, Any] | None = None
    ) -> Coroutine[Any, Any, None]:
        """Call the stream handlers with the messages from *comm*, until the stream ends.

        Handlers start in the order of the messages.  Coroutine handlers then run concurrently, up
        to ``distributed.comm.max-stream-handlers`` of one stream; above that, the next message is
        handled when one of them has ended.

        The stream ends with ``{"op": "close-stream"}``, when the peer closes *comm*, or when a
        handler fails.  *comm* is closed then, and this method returns when the coroutine handlers
        of the stream have ended; if one failed, the others are cancelled.  Messages without a
        handler are logged and skipped.

        Parameters
        ----------
        comm
            The comm to read from.
        extra
            Further keyword arguments for every handler.  If the message has an argument of the
            same name, that of the message is used.

        Raises
        ------
        Exception
            The exception of the first handler that failed.  The server logs it if a request, such
            as ``connection_stream``, opened the stream.
        """
        # Not a coroutine function: another coroutine between the comm and the handlers would be
        # resumed for each message.
        return self._server_streams.handle(comm, extra)

    @property
    def _name_in_messages(self) -> str:
        """The name of this server in errors and log lines that mention peers."""
        return f"{type(self).__name__} {self.address_safe}"

    @property
    def incoming_comms_open(self) -> int:
        """The number of open comms that peers opened."""
        return len(self._comms)

    @property
    def incoming_comms_active(self) -> int:
        """The number of comms on which a request is in progress."""
        return sum(op is not None for op in self._comms.values())

    @property
    def outgoing_comms_open(self) -> int:
        """The number of connections to other servers."""
        return self.rpc.open

    @property
    def outgoing_comms_active(self) -> int:
        """The number of connections to other servers on which a call is in progress."""
        return self.rpc.active

    def get_connection_counters(self) -> dict[str, int]:
        """Return the numbers of comms, by kind."""
        return {
            "incoming_comms_open": self.incoming_comms_open,
            "incoming_comms_active": self.incoming_comms_active,
            "outgoing_comms_open": self.outgoing_comms_open,
            "outgoing_comms_active": self.outgoing_comms_active,
        }

    # Addresses

    def listen(
        self,
        port_or_addr: int | str | tuple[str, int] | None = None,
        allow_offload: bool = True,
        **kwargs: Any,
    ) -> Listening:
        """Listen at an address.  Several calls listen at several addresses.

        Parameters
        ----------
        port_or_addr
            A port, ``(host, port)``, an address such as ``"tcp://:8786"``, or None for
            :attr:`default_port`.
        allow_offload
            Whether expensive (de)serialization may run in a thread.
        kwargs
            As for :func:`distributed.comm.listen`, such as ``security``, whose default is that of
            the server.

        Returns
        -------
        awaitable
            It ends when the address is bound, or raises the error.  The address is bound once the
            event loop runs, also without ``await``; an error is logged then.

        Raises
        ------
        TypeError, ValueError
            If an argument is unknown or invalid.
        """
        self._check_blocked_handlers()
        addr = address_to_listen_at(
            self.default_port if port_or_addr is None else port_or_addr, self.default_ip
        )
        if self.allow_pickle is not None:
            kwargs.setdefault("allow_pickle", self.allow_pickle)
        check_names("Server.listen()", kwargs, "listen")
        if kwargs.get("security") is None and self._server_security is not None:
            kwargs["security"] = self._server_security
        if kwargs.get("security") is not None:
            kwargs = with_security(kwargs, "listen", _ROLES.get(type(self).__name__.lower()))
        return self._server_listeners.listen(addr, allow_offload=allow_offload, **kwargs)

    @property
    def listener(self) -> Listener | None:
        """The first listener, or None."""
        return self.listeners[0] if self.listeners else None

    @property
    def address(self) -> str:
        """The address at which peers can contact this server; ValueError if it does not listen."""
        if self._address is None:
            if not self.listeners:
                raise ValueError(f"cannot get address of non-running Server ({self.id})")
            self._address = self.listeners[0].contact_address
        return self._address

    @property
    def address_safe(self) -> str:
        """The address, or ``"not-running"`` if the server does not listen."""
        try:
            return self.address
        except ValueError:
            return "not-running"

    @property
    def listen_address(self) -> str:
        """The address that this server is bound to, which may contain a wildcard.

        As for :attr:`address`, ValueError if the server does not listen.
        """
        if self._listen_address is None:
            if not self.listeners:
                raise ValueError(f"cannot get listen address of non-running Server ({self.id})")
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

    # Statistics

    @property
    def digests_total_since_heartbeat(self) -> defaultdict[Hashable, float]:
        """The sum of each metric since a subclass last cleared or replaced this dict."""
        return self._server_statistics.digests_total_since_heartbeat

    @digests_total_since_heartbeat.setter
    def digests_total_since_heartbeat(self, value: defaultdict[Hashable, float]) -> None:
        self._server_statistics.digests_total_since_heartbeat = value

    @property
    def monitor(self) -> SystemMonitor:
        """The monitor of this process and its host; made on first use.

        The servers of a process share it.  Assign another ``SystemMonitor`` to change one for this
        server alone.
        """
        return self._server_statistics.monitor

    @monitor.setter
    def monitor(self, value: SystemMonitor) -> None:
        self._server_statistics.monitor = value

    @property
    def _last_tick(self) -> float:
        """The time of the last tick of the event loop, in seconds since the epoch."""
        return self._server_statistics._last_tick

    @property
    def _tick_counter(self) -> int:
        """The number of ticks."""
        return self._server_statistics._tick_counter

    @property
    def _tick_interval_observed(self) -> float:
        """The average number of seconds between two ticks."""
        return self._server_statistics._tick_interval_observed

    def digest_metric(self, name: Hashable, value: float) -> None:
        """Add *value* to the statistics of the metric *name*."""
        self._server_statistics.digest_metric(name, value)

    # Files

    @property
    def local_directory(self) -> str:
        """The scratch directory: made on first use, removed when the server closes."""
        if self._local_directory is None:
            return self._scratch_directory.path
        return self._local_directory

    @local_directory.setter
    def local_directory(self, path: str) -> None:
        self._local_directory = path

    async def upload_file(
        self, filename: str, data: str | bytes, load: bool = True
    ) -> dict[str, Any]:
        """Write a file into the scratch directory, and import it if *load*; an operation.

        As :meth:`ScratchDirectory.upload_file`, in a thread.
        """
        return await self._scratch_directory.upload_file_async(filename, data, load=load)
