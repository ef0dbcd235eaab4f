"""The interfaces of comms, connectors and listeners, and how connections are opened.

A *comm* moves one message at a time between two endpoints.  This module has the abstract classes
that every transport implements; :func:`connect`, which retries; and :func:`listen`.  The messages
that a connection begins with are in :mod:`distributed.comm.handshake`, the transports in modules
beside this one; requests and replies are one floor up.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias
from weakref import WeakSet

from distributed.base.arguments import check_duration, check_flag
from distributed.base.logs import get_logger
from distributed.comm.addressing import parse_address
from distributed.comm.arguments import with_security
from distributed.comm.attempts import Attempt, Attempts, keep_trying
from distributed.comm.auth import Authentication, AuthenticationError, Penalties, choose_token
from distributed.comm.control import Controls
from distributed.comm.counts import UNCOUNTED, CountedComm, CountingListener, HandshakeCounts
from distributed.comm.exceptions import CommClosedError, FatalCommClosedError
from distributed.comm.handshake import (
    NO_FEATURES,
    AnswerStranger,
    agreed_features,
    do_handshake,
    handshake_configuration,
    handshake_info,
)
from distributed.comm.keepalive import FEATURE as KEEPALIVE
from distributed.comm.keepalive import WatchfulComm
from distributed.comm.registry import get_backend
from distributed.comm.settings import CommSettings, check_configuration, settings
from distributed.protocol.limits import LoadPolicy

__all__ = [
    "BaseListener",
    "Comm",
    "CommClosedError",
    "CommHandler",
    "Connector",
    "FatalCommClosedError",
    "Listener",
    "call_comm_handler",
    "connect",
    "listen",
]

logger = get_logger(__name__)

#: The callable that a listener calls with each new comm.
CommHandler: TypeAlias = Callable[["Comm"], Any]


class Comm(WatchfulComm, CountedComm, ABC):
    """A connection that carries messages, each of them any Python object.

    One task may read while another one writes.  A read or write that is cancelled in the middle of
    a message closes the comm, since the next one would continue in the middle of that message.

    Parameters
    ----------
    deserialize
        Whether values wrapped by :func:`~distributed.protocol.to_serialize` are
        deserialized on arrival.  If false they arrive as
        :class:`~distributed.protocol.Serialized`, ready to be passed on.

    Attributes
    ----------
    configured
        The settings of the configuration when the connection was made; see `CommSettings`.
    name
        The purpose of the connection, for debugging.
    allow_offload
        Whether expensive conversions of messages may run in a thread.
    load_policy
        The limits for received messages: their depth, their size once inflated, and whether
        anything in them is unpickled.
    local_info, remote_info
        The maps that this side and the peer sent in the handshake, each with the address.
    handshake_options
        The options that follow from both maps.
    features
        The features beyond the original's protocol that both sides agreed upon in the handshake:
        name → parameter.  Empty if the peer runs the original.
    """

    _instances: ClassVar[WeakSet[Comm]] = WeakSet()

    configured: CommSettings
    name: str | None
    deserialize: bool
    allow_offload: bool
    load_policy: LoadPolicy
    local_info: dict[str, Any]
    remote_info: dict[str, Any]
    handshake_options: dict[str, Any]
    features: Mapping[str, Any] = NO_FEATURES

    def __init__(self, deserialize: bool = True) -> None:
        self._instances.add(self)
        self.configured = settings()
        self.name = None
        self.deserialize = deserialize
        self.allow_offload = True
        self.load_policy = self.configured.load_policy
        self.local_info = {}
        self.remote_info = {}
        self.handshake_options = {}
        self.traffic = UNCOUNTED

    @abstractmethod
    async def read(self, deserializers: Sequence[str] | None = None) -> Any:
        """Read one message.

        Parameters
        ----------
        deserializers
            Names of the serialization families that are accepted; by default
            all that are registered.

        Raises
        ------
        CommClosedError
            If the connection ends before a whole message was received, or if
            the peer sent an invalid message.
        """

    @abstractmethod
    async def write(
        self, msg: Any, serializers: Sequence[str] | None = None, on_error: str | None = None
    ) -> int:
        """Write one message and return its size in bytes.

        When the call returns, the message has left this process, and the caller may
        change arrays in it, except for those in shared memory.

        Parameters
        ----------
        msg
            The message.
        serializers
            Names of the serialization families to use, in order of preference.
        on_error
            ``"message"`` replaces a value that cannot be serialized by an error that
            is raised at the receiver; ``"raise"`` raises the error here.

        Raises
        ------
        CommClosedError
            If the connection is closed.
        TypeError
            If the message cannot be serialized; then nothing was sent.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the comm after all written data was sent.  Idempotent."""

    @abstractmethod
    def abort(self) -> None:
        """Close the comm at once, and end reads and writes that are in progress.  Idempotent."""

    @abstractmethod
    def closed(self) -> bool:
        """Return whether the comm is closed, by either side."""

    @property
    @abstractmethod
    def local_address(self) -> str:
        """The address of this end, for debugging."""

    @property
    @abstractmethod
    def peer_address(self) -> str:
        """The address of the other end, for debugging."""

    @property
    def is_reading(self) -> bool:
        """Whether a task is reading."""
        return False

    @property
    def has_unread(self) -> bool:
        """Whether data of the peer was received that no :meth:`read` has returned."""
        return False

    @property
    def is_idle(self) -> bool:
        """Whether the connection is open and has no unread data."""
        return not self.closed() and not self.has_unread

    def notify_end(self, callback: Callable[[], object] | None) -> None:
        """Call *callback* when the connection ends, even if no task reads from the comm.

        Parameters
        ----------
        callback
            Called once, in the event loop of the comm, when the peer has closed the connection or
            the connection is lost; not when this side closes the comm.  None for no callback.
            A comm that does not notice the end unless a task reads from it never calls it.
        """

    async def write_handshake(self, msg: dict[str, Any]) -> None:
        """Write a message of the handshake."""
        await self.write(msg)

    async def read_handshake(self) -> Any:
        """Read a message of the handshake.

        If other processes can send over a transport, it refuses a large message here, and
        parses the message into nothing but plain values.
        """
        return await self.read()

    @property
    def allow_pickle(self) -> bool:
        """Whether anything received is unpickled; may be set before the handshake."""
        return self.load_policy.allow_pickle

    @allow_pickle.setter
    def allow_pickle(self, allowed: bool) -> None:
        if self.load_policy.allow_pickle != allowed:
            self.load_policy = self.load_policy._replace(allow_pickle=allowed)

    @property
    def channel_binding(self) -> bytes | None:
        """A secret that only the two ends of an encrypted channel have in common, or None."""
        return None

    @property
    def extra_info(self) -> dict[str, Any]:
        """Further information about the connection from the transport."""
        return {}

    @property
    def same_host(self) -> bool:
        """Whether both ends are on one host."""
        return _host_of(self.local_address) == _host_of(self.peer_address)

    def handshake_info(self) -> dict[str, Any]:
        """Return the map by which this side describes itself in the handshake."""
        # Compression between processes of one host does not pay.
        compression = None if self.same_host else self.configured.compression
        return handshake_info(compression, self.allow_pickle)

    handshake_configuration = staticmethod(handshake_configuration)

    def complete_handshake(self, local: dict[str, Any], remote: dict[str, Any]) -> None:
        """Store what both sides said in the handshake, and the options that follow from it."""
        self.handshake_options = self.handshake_configuration(local, remote)
        self.features = agreed_features(local, remote)
        if self.features and self.carries_controls:
            self.peer_unwatched = KEEPALIVE in self.features
            self.controls = Controls(self, always=self.peer_unwatched)
        self.local_info = {**local, "address": self.local_address}
        self.remote_info = {**remote, "address": self.peer_address}

    def __repr__(self) -> str:
        closed = " (closed)" if self.closed() else ""
        return (
            f"<{type(self).__name__}{closed} {self.name or ''} "
            f"local={self.local_address} remote={self.peer_address}>"
        )


class Connector(ABC):
    """An object that opens the connections of one transport."""

    @abstractmethod
    async def connect(self, address: str, deserialize: bool = True, **connection_args: Any) -> Comm:
        """Open one connection, without a handshake, and return its comm.

        Parameters
        ----------
        address
            The address without its scheme.
        deserialize
            See :class:`Comm`.
        connection_args
            Further arguments of the transport.

        Raises
        ------
        OSError
            If the connection cannot be made now; :func:`connect` retries.
        FatalCommClosedError
            If it can never be made; :func:`connect` gives up.
        """


class Listener(ABC):
    """An object that accepts the connections of one transport and passes their comms on."""

    def __await__(self) -> Generator[Any, None, Self]:
        async def start() -> Self:
            await self.start()
            return self

        return start().__await__()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stopped = self.stop()
        if inspect.isawaitable(stopped):
            await stopped

    @abstractmethod
    async def start(self) -> None:
        """Start to accept connections."""

    @abstractmethod
    def stop(self) -> Any:
        """Stop accepting connections.  Accepted ones stay open."""

    @property
    @abstractmethod
    def listen_address(self) -> str:
        """The URI of the address that this listener is bound to."""

    @property
    @abstractmethod
    def contact_address(self) -> str:
        """The URI of an address at which other hosts can reach this listener."""

    @abstractmethod
    async def on_connection(
        self, comm: Comm, handshake_overrides: dict[str, Any] | None = None
    ) -> None:
        """Do the handshake on an accepted connection."""


class BaseListener(CountingListener, Listener):
    """A listener that does the handshake.

    Attributes
    ----------
    token
        The secret that peers have to know, or None.
    allow_pickle
        Whether anything received from peers is unpickled; None for the configured value.
    answer_stranger
        Answers the messages of peers without the token; None to refuse such peers.  Their comms do
        not leave the handshake, and no handler gets one.
    is_inherited
        Whether another process holds the listening socket open.  Connections then wait for the next
        server after this listener has stopped.
    """

    is_inherited: ClassVar[bool] = False
    token: str | bytes | None = None
    allow_pickle: bool | None = None
    answer_stranger: AnswerStranger | None = None

    def __init__(self) -> None:
        # The comms whose handshake is in progress, oldest first; a dict serves as ordered set.
        self._handshaking: dict[Comm, None] = {}
        self.handshakes = HandshakeCounts()
        # The hosts whose peers failed to authenticate.
        self._penalties = Penalties()

    def abort_handshaking_comms(self) -> None:
        """Abort the comms whose handshake is in progress."""
        for comm in list(self._handshaking):
            comm.abort()

    async def on_connection(
        self, comm: Comm, handshake_overrides: dict[str, Any] | None = None
    ) -> None:
        """Do the handshake on an accepted connection.

        Parameters
        ----------
        comm
            The new comm.
        handshake_overrides
            Replace values of the map that this side sends.

        Raises
        ------
        CommClosedError
            If the handshake fails or does not end in time; the comm is closed.
        """
        timeout = comm.configured.handshake_timeout
        if self.allow_pickle is not None:
            comm.allow_pickle = self.allow_pickle
        self._handshaking[comm] = None
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            comm.abort()

        # Aborting the comm wakes the waiting task.  `asyncio.timeout` costs several times more.
        timer = asyncio.get_running_loop().call_later(timeout, give_up)
        try:
            await self.do_handshake(comm, handshake_overrides)
            self.handshakes.accepted += 1
        except BaseException as exc:
            comm.abort()
            self.handshakes.count_failure(exc, late)
            if late and isinstance(exc, OSError):
                raise CommClosedError(
                    f"{comm.peer_address} connected to {comm.local_address}, but did not complete "
                    f"the handshake within {timeout} s ('distributed.comm.timeouts.handshake')"
                ) from None
            raise
        finally:
            timer.cancel()
            self._handshaking.pop(comm, None)

    async def do_handshake(self, comm: Comm, overrides: dict[str, Any] | None) -> None:
        """Do the handshake, and wait for nothing but *comm*.

        Closing the comm must end the wait; see :func:`distributed.comm.handshake.do_handshake` for
        the arguments and the errors.
        """
        if self.token is None:
            await do_handshake(comm, overrides)
            return
        host = _host_of(comm.peer_address)
        authentication = Authentication(self.token, "server", comm.channel_binding)
        try:
            await do_handshake(
                comm, overrides, authentication, self._penalties.delay(host), self.answer_stranger
            )
        except FatalCommClosedError as exc:
            if isinstance(exc.__cause__, AuthenticationError):
                self._penalties.failed(host)
            raise


async def connect(
    addr: str,
    timeout: float | str | None = None,
    deserialize: bool = True,
    handshake_overrides: dict[str, Any] | None = None,
    **connection_args: Any,
) -> Comm:
    """Connect to *addr* and do the handshake.

    Failed attempts are repeated, after random pauses of growing length, until *timeout* expires.
    A slow attempt continues while the next ones begin, and the first success counts.

    Parameters
    ----------
    addr
        The address to connect to, such as ``"tcp://127.0.0.1:8786"``.
    timeout
        Time for all attempts together, in seconds or like ``"500ms"``; by default
        ``distributed.comm.timeouts.connect``.
    deserialize
        See :class:`Comm`.
    handshake_overrides
        Replace values of the map that this side sends.
    connection_args
        ``security``, a `Security` object; or ``token``, the secret that both sides have to know,
        ``ssl_context`` and ``require_encryption`` in its place; ``allow_pickle``, whether anything
        received is unpickled; and further arguments of the transport.  By default ``token`` and
        ``allow_pickle`` are as configured.

    Returns
    -------
    Comm
        The open comm.

    Raises
    ------
    OSError
        If no attempt succeeded in time.  It counts the attempts and gives the last reason of each
        kind, and its cause is the error of the last attempt that failed.
    FatalCommClosedError
        If an attempt met an error that another attempt cannot change.
    ValueError
        If the address, an argument or a value of the configuration is invalid.
    TypeError
        If an argument is unknown or has a wrong type.
    """
    configured = check_configuration()
    given = None if timeout is None else check_duration("timeout", timeout)
    seconds = configured.connect_timeout if given is None else given
    connection_args = with_security(connection_args, "connect")
    token = choose_token(connection_args.pop("token", None))
    allow_pickle = check_flag("allow_pickle", connection_args.pop("allow_pickle", None))
    scheme, loc = parse_address(addr)
    connector = get_backend(scheme).get_connector()

    attempts = Attempts(addr, seconds)

    async def attempt() -> Comm:
        with Attempt(attempts) as current:
            comm = await connector.connect(loc, deserialize=deserialize, **connection_args)
            if allow_pickle is not None:
                comm.allow_pickle = allow_pickle
            current.stage = "in the handshake"
            try:
                authentication = None
                if token is not None:
                    authentication = Authentication(token, "client", comm.channel_binding)
                await do_handshake(comm, handshake_overrides, authentication)
            except BaseException:
                comm.abort()
                raise
            return comm

    return await keep_trying(attempt, attempts, Comm.abort)


def listen(
    addr: str,
    handle_comm: CommHandler,
    deserialize: bool = True,
    **kwargs: Any,
) -> Listener:
    """Return a listener at *addr*, which starts to listen when it is awaited.

    Use it as ``listener = await listen(...)`` or ``async with listen(...)``.

    Parameters
    ----------
    addr
        The address to listen at, such as ``"tcp://127.0.0.1:0"``.
    handle_comm
        Called with each new comm after its handshake; a returned awaitable is
        awaited.
    deserialize
        See :class:`Comm`.
    kwargs
        ``security``, a `Security` object; or ``token``, the secret that peers have to know,
        ``ssl_context`` and ``require_encryption`` in its place; ``allow_pickle``, whether anything
        received from peers is unpickled; and further arguments of the transport.  By default
        ``token`` and ``allow_pickle`` are as configured.  ``answer_stranger``: see
        :class:`BaseListener`.

    Raises
    ------
    ValueError
        If the address or a value of the configuration is invalid.  An address that cannot be bound
        is an ``OSError`` when the listener is awaited.
    TypeError
        If an argument is unknown or has a wrong type.
    """
    if not callable(handle_comm):
        raise TypeError(f"handle_comm must be a function that takes a comm, not {handle_comm!r}")
    check_configuration()
    kwargs = with_security(kwargs, "listen")
    token = choose_token(kwargs.pop("token", None))
    allow_pickle = check_flag("allow_pickle", kwargs.pop("allow_pickle", None))
    answer_stranger = kwargs.pop("answer_stranger", None)
    scheme, loc = parse_address(addr)
    listener: Listener
    listener = get_backend(scheme).get_listener(loc, handle_comm, deserialize, **kwargs)
    if token is not None:
        if not isinstance(listener, BaseListener):
            raise RuntimeError(
                f"a token is required, but {scheme}:// does not ask its peers for one: "
                f"{type(listener).__name__} is not a BaseListener"
            )
        listener.token = token
        listener.answer_stranger = answer_stranger
    if isinstance(listener, BaseListener):
        listener.allow_pickle = LoadPolicy.from_config(allow_pickle).allow_pickle
    elif allow_pickle is not None:
        raise RuntimeError(
            f"allow_pickle={allow_pickle} is required, but {scheme}:// does not support it: "
            f"{type(listener).__name__} is not a BaseListener"
        )
    return listener


async def call_comm_handler(handler: CommHandler, comm: Comm) -> None:
    """Call the *handler* of a listener with a new *comm*; log its errors."""
    try:
        result = handler(comm)
        if isinstance(result, Awaitable):
            await result
    except Exception:
        logger.exception("Failed to handle %r", comm)
        comm.abort()


def _host_of(address: str) -> str:
    scheme, loc = parse_address(address)
    return get_backend(scheme).get_address_host(loc)
