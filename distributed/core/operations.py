"""The operations of a remote server as attributes of an object.

:class:`RemoteCalls` turns attributes into operations; its subclasses ``rpc`` and ``PooledRPCCall``
decide which comm each call uses.  An :class:`Operation` can be called, streamed from, or opened for
a conversation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import FunctionType
from typing import Any, ClassVar, Self

from distributed.base.logs import get_logger
from distributed.base.quantities import parse_timedelta
from distributed.comm import Comm, CommClosedError
from distributed.comm.attempts import failures_before
from distributed.core.call_info import FEATURE, KEY, CallInfo
from distributed.core.calls import RPCClosed, send_recv
from distributed.core.conversations import Conversing
from distributed.core.deadlines import current, current_deadline, time_left, timeout
from distributed.core.interceptors import Call, InterceptedStream, Interceptor, intercept
from distributed.core.long_calls import DEFAULT, Configuration
from distributed.core.remote_streams import RemoteStream
from distributed.core.retries import Retries, is_marked, not_executed, unmarked
from distributed.core.tasks import NoOpAwaitable

__all__ = ["Operation", "RemoteCalls", "discard"]

logger = get_logger("distributed.core")


class Operation:
    """An operation of a remote server.

    Calling it makes one request, and the result of ``await`` is the answer.

    Examples
    --------
    >>> async def use(remote):
    ...     total = await remote.add(x=1, y=2)
    ...     async for number in remote.count.stream(n=total):
    ...         print(number)
    ...     async with remote.chat.open(room="x") as comm:
    ...         await comm.write("hello")
    """

    __slots__ = ("_name", "_remote")

    # The original's name: tools that list coroutines and tasks look for it.
    __name__ = "send_recv_from_rpc"

    def __init__(self, remote: RemoteCalls, name: str) -> None:
        self._remote = remote
        self._name = name

    def __getattr__(self, name: str) -> str:
        if name == "__qualname__":
            return self._remote._call_name
        if name in self.__slots__:
            # Only while an object is copied.
            raise AttributeError(name)
        raise AttributeError(
            f"{name!r} of the operation {self._name!r}: an operation is called, or used by "
            ".stream() or .open()"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        if args:
            raise _positional(self._remote._call_name, args)
        return self._remote._call(self._name, kwargs)

    def stream(self, *args: Any, **kwargs: Any) -> RemoteStream | InterceptedStream:
        """Call a handler that yields items; iterate over the result with ``async for``.

        The items arrive as the handler yields them.  A handler that takes ``comm`` can write its
        items to it instead.  The handler is cancelled when the caller leaves the loop early.

        If the peer runs the original, the items are all messages that the handler writes, and its
        return value.  The stream ends only when the peer closes the connection.

        Raises
        ------
        Exception
            While iterating: the exception of the handler, after the items before it.
        OSError
            While iterating: if connecting fails, or if the connection breaks.
        """
        if args:
            raise _positional("stream", args)
        return self._remote._stream(self._name, kwargs)

    def open(self, *args: Any, **kwargs: Any) -> AbstractAsyncContextManager[Comm]:
        """Call a handler that takes ``comm``, for a conversation with it.

        Returns
        -------
        async context manager
            It returns a comm, whose messages the handler reads and which reads the handler's.  If
            the handler fails, the next `read` raises its exception.  The comm is closed at the end
            of the block, or when the handler returns; the return value is dropped.
        """
        if args:
            raise _positional("open", args)
        return self._remote._converse(self._name, kwargs)

    def __repr__(self) -> str:
        return f"<operation {self._name!r} of {self._remote!r}>"


def discard(comm: Comm) -> None:
    """Abort *comm*, which no call uses, because it is closed or has unread data.

    Data that arrived after the last answer would be mistaken for the answer to the next request.
    """
    if not comm.closed():
        logger.warning(
            "Closing %r: it received data after the answer to the last request; does a handler of "
            "%s write several messages to its comm?",
            comm,
            comm.peer_address,
        )
    comm.abort()


class RemoteCalls(ABC):
    """Base of the objects whose attributes are the operations of a remote server."""

    #: The server's address.
    address: str
    #: The interceptors of calls; see :mod:`distributed.core.interceptors`.
    interceptors: tuple[Interceptor, ...]
    #: Names of the serialization families to use for requests; None for the defaults.
    serializers: Sequence[str] | None
    #: Names of the serialization families to accept in answers; None for the defaults.
    deserializers: Sequence[str] | None
    #: First part of a comm's name during a call, before a dot and the operation.
    _comm_name: ClassVar[str]
    #: Qualified name of the coroutines of calls.
    _call_name: ClassVar[str]

    @abstractmethod
    def _take(self) -> Comm | None:
        """Take an idle open comm into use and return it; return None if there is none."""

    @abstractmethod
    async def _acquire(self) -> Comm:
        """Take an open comm into use, connecting or waiting if necessary, and return it."""

    @abstractmethod
    def _release(self, comm: Comm) -> None:
        """Accept a comm, open or closed, after its call."""

    @abstractmethod
    def close_rpc(self) -> NoOpAwaitable:
        """Close this object; the result may be awaited."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close_rpc()

    def __getattr__(self, name: str) -> Operation:
        if name.startswith("__"):
            # Python and its tools look these up; they are not operations.
            raise AttributeError(name)
        return Operation(self, name)

    def call(self, op: str, /, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call an operation by name: also one that is named like an attribute of this object."""
        return self._call(op, kwargs)

    async def describe(self) -> dict[str, Any]:
        """Ask the server for its operations; `dir` then lists them as attributes of this object.

        Returns
        -------
        dict
            See :func:`distributed.core.description.describe`.

        Raises
        ------
        NotImplementedError
            If the peer runs the original.
        """
        comm = await self._take_comm("describe")
        negotiated = FEATURE in comm.features
        self._release(comm)
        if not negotiated:
            raise NotImplementedError(
                f"{self.address} runs dask.distributed, which does not describe its operations"
            )
        description: dict[str, Any] = await self._call("describe", {})
        self.__dict__["_described"] = [
            op for op in description["operations"] if op not in description["blocked"]
        ]
        return description

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.__dict__.get("_described", ())]

    def within(self, limit: float | str) -> ConfiguredCalls:
        """Return an object whose calls are cancelled, here and at the server, after *limit*.

        Parameters
        ----------
        limit
            Seconds, or text such as ``"2s"``.

        Examples
        --------
        >>> async def use(remote):
        ...     await remote.within("2s").slow(x=1)    # raises TimeoutError after 2 seconds
        """
        return self._configured(Configuration(limit=parse_timedelta(limit)))

    def retrying(
        self,
        attempts: int = 3,
        on: type[BaseException] | tuple[type[BaseException], ...] = OSError,
        idempotent: bool = False,
    ) -> ConfiguredCalls:
        """Return an object that repeats failed calls, if that is safe.

        A call is repeated only if its handler was not started: no connection was made, or the
        server refused the request because it is closing.

        Parameters
        ----------
        attempts
            Maximum number of attempts in total.
        on
            The exceptions after which a call may be repeated.
        idempotent
            Whether handlers may run twice.  If true, a call is also repeated if its handler may
            have run, for example after the connection was lost.

        Notes
        -----
        The wait before attempt *n* is random, between 0 and the smaller of
        ``distributed.comm.retry.delay.max`` and 2\\ :sup:`n-2` times
        ``distributed.comm.retry.delay.min``.
        """
        return self._configured(Configuration(retries=Retries(attempts, on, idempotent)))

    def _configured(self, configuration: Configuration) -> ConfiguredCalls:
        return ConfiguredCalls(self, configuration)

    async def _take_comm(self, name: str) -> Comm:
        """Return an open comm for a call of *name*; the caller passes it to `_release` later."""
        try:
            comm = self._take()
            if comm is None:
                comm = await self._acquire()
        except RPCClosed as exc:
            raise type(exc)(f"{_failed(name)} before comm was established.") from exc
        except CommClosedError as exc:
            error = type(exc)(f"{_failed(name)} before comm was established: {exc}")
            raise not_executed(error) from exc
        except OSError as exc:
            not_executed(exc)
            raise
        comm.name = f"{self._comm_name}.{name}"
        return comm

    def _with_families(self, kwargs: dict[str, Any]) -> None:
        """Add the serialization families of this object to the arguments of a call."""
        if self.serializers is not None and kwargs.get("serializers") is None:
            kwargs["serializers"] = self.serializers
        if self.deserializers is not None and kwargs.get("deserializers") is None:
            kwargs["deserializers"] = self.deserializers

    async def _call(
        self, name: str, kwargs: dict[str, Any], metadata: dict[str, str] | None = None
    ) -> Any:
        """Make a request and return the answer."""
        if metadata is None and self.interceptors:
            return await self._intercepted(name, kwargs)
        if self.serializers is not None or self.deserializers is not None:
            self._with_families(kwargs)
        comm = self._take()
        if comm is None:
            comm = await self._take_comm(name)
        else:
            comm.name = f"{self._comm_name}.{name}"
        try:
            if FEATURE in comm.features and kwargs.get("reply", True):
                kwargs[KEY] = True
                if metadata or current.get() is not None:
                    deadline = current_deadline()
                    left = None if deadline is None else time_left(name, deadline)
                    kwargs[KEY] = CallInfo(left, metadata=metadata or {}).pack()
            return await send_recv(comm, op=name, **kwargs)
        except (RPCClosed, CommClosedError) as exc:
            if not comm.closed():
                # The handler raised it, about one of its own connections.
                raise
            text = f"{_failed(name)} using comm {comm!r}."
            if comm.silence is not None:
                text = f"{text[:-1]}: {comm.silence}"
            raise type(exc)(text) from exc
        finally:
            self._release(comm)

    async def _intercepted(self, name: str, kwargs: dict[str, Any]) -> Any:
        """Make a call through the interceptors."""

        may_have_run = False

        async def make(call: Call) -> Any:
            nonlocal may_have_run
            try:
                # Not None, which would call the interceptors again.
                result = await self._call(call.op, dict(call.arguments), call.metadata or {})
            except BaseException as exc:
                may_have_run |= not is_marked(exc)
                raise
            may_have_run = True
            return result

        call = Call(name, kwargs, self.address, "client")
        try:
            return await intercept(self.interceptors, call, make)
        except BaseException as exc:
            if may_have_run:
                # An interceptor may have made another call, which could not connect.
                unmarked(exc)
            raise

    def _stream(
        self, name: str, kwargs: dict[str, Any], configuration: Configuration = DEFAULT
    ) -> RemoteStream | InterceptedStream:
        """Return the items of a streaming call."""
        if not self.interceptors:
            self._with_families(kwargs)
            return RemoteStream(self, name, kwargs, configuration)

        async def make(call: Call) -> RemoteStream:
            arguments = dict(call.arguments)
            self._with_families(arguments)
            stream = RemoteStream(self, call.op, arguments, configuration, call.metadata)
            stream.begin_time()
            return stream

        async def begin() -> AsyncIterator[Any]:
            # The time of the interceptors counts, too.
            async with timeout(configuration.limit):
                items: AsyncIterator[Any] = await intercept(self.interceptors, call, make)
                return items

        call = Call(name, kwargs, self.address, "client", "stream")
        return InterceptedStream(begin)

    def _converse(
        self, name: str, kwargs: dict[str, Any], configuration: Configuration = DEFAULT
    ) -> AbstractAsyncContextManager[Comm]:
        """Return the context manager of a conversation."""
        if not self.interceptors:
            self._with_families(kwargs)
            return Conversing(self, name, kwargs, configuration)
        return self._converse_intercepted(name, kwargs, configuration)

    @asynccontextmanager
    async def _converse_intercepted(
        self, name: str, kwargs: dict[str, Any], configuration: Configuration
    ) -> AsyncIterator[Comm]:
        call = Call(name, kwargs, self.address, "client", "conversation")
        failure: BaseException | None = None
        try:
            # The time of the interceptors counts, too.
            async with timeout(configuration.limit), AsyncExitStack() as stack:

                async def make(call: Call) -> Comm:
                    arguments = dict(call.arguments)
                    self._with_families(arguments)
                    return await stack.enter_async_context(
                        Conversing(self, call.op, arguments, configuration, call.metadata)
                    )

                yield await intercept(self.interceptors, call, make)
        except BaseException as exc:
            failure = exc
            raise
        finally:
            for ended in reversed(call.at_end):
                ended(failure)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_call" not in vars(cls):
            call = RemoteCalls._call
            # Coroutines have the qualified name of their function.
            own = FunctionType(call.__code__, call.__globals__, call.__name__, call.__defaults__)
            own.__qualname__ = cls._call_name
            cls._call = own  # type: ignore[method-assign]


class ConfiguredCalls(RemoteCalls):
    """The operations of another object, with a time limit or with retries."""

    _comm_name = "ConfiguredCalls"
    _call_name = "ConfiguredCalls.__getattr__.<locals>.send_recv_from_rpc"

    def __init__(self, remote: RemoteCalls, configuration: Configuration) -> None:
        self._remote = remote
        self._configuration = configuration
        self.serializers = remote.serializers
        self.deserializers = remote.deserializers

    def _take(self) -> Comm | None:
        return self._remote._take()

    async def _acquire(self) -> Comm:
        return await self._remote._acquire()

    def _release(self, comm: Comm) -> None:
        self._remote._release(comm)

    def _configured(self, configuration: Configuration) -> ConfiguredCalls:
        # One object for all: a time limit includes the retries, whichever was given first.
        return ConfiguredCalls(self._remote, configuration.within(self._configuration))

    def close_rpc(self) -> NoOpAwaitable:
        """Do nothing, because the connections belong to the other object."""
        return NoOpAwaitable()

    @property
    def address(self) -> str:  # type: ignore[override]
        """The server's address."""
        return self._remote.address

    @property
    def interceptors(self) -> tuple[Interceptor, ...]:  # type: ignore[override]
        """The interceptors of the other object."""
        return self._remote.interceptors

    async def describe(self) -> dict[str, Any]:
        description: dict[str, Any] = await self._run("describe", self._remote.describe)
        return description

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._remote.__dict__.get("_described", ())]

    async def _call(
        self, name: str, kwargs: dict[str, Any], metadata: dict[str, str] | None = None
    ) -> Any:
        return await self._run(name, lambda: self._remote._call(name, dict(kwargs), metadata))

    async def _run(self, name: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return the result of *call*, made within the time limit and with the retries."""
        seconds, retries = self._configuration
        limit = timeout(seconds)
        try:
            async with limit:
                return await (call() if retries is None else retries.run(call))
        except TimeoutError as exc:
            if limit.expired() and not exc.args:
                raise TimeoutError(
                    f"{name!r} took longer than {seconds:g} s{failures_before(exc)}"
                ) from exc
            raise

    def _stream(
        self, name: str, kwargs: dict[str, Any], configuration: Configuration = DEFAULT
    ) -> RemoteStream | InterceptedStream:
        return self._remote._stream(name, kwargs, self._configuration.within(configuration))

    def _converse(
        self, name: str, kwargs: dict[str, Any], configuration: Configuration = DEFAULT
    ) -> AbstractAsyncContextManager[Comm]:
        return self._remote._converse(name, kwargs, self._configuration.within(configuration))

    def __repr__(self) -> str:
        limit, retries = self._configuration
        within = "" if limit is None else f" within {limit:g} s"
        attempts = "" if retries is None else f", {retries.attempts} attempts"
        return f"<calls of {self._remote!r}{within}{attempts}>"


def _positional(function: str, args: Sequence[Any]) -> TypeError:
    """Return the error for arguments without a name."""
    return TypeError(
        f"{function}() takes 0 positional arguments but {len(args)} "
        f"{'was' if len(args) == 1 else 'were'} given: pass the handler's arguments by name"
    )


def _failed(name: str) -> str:
    return f"Exception while trying to call remote method {name!r}"
