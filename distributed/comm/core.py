"""What a comm, a connector and a listener are, and how a connection begins.

A *comm* moves one message at a time between two endpoints.  This module holds
what every transport shares: the abstract classes, the two errors, the handshake
that both sides of a new connection go through, and :func:`connect` with its
retries.  It knows neither sockets nor operations: transports live beside it,
requests and replies one floor up.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias
from weakref import WeakSet

from distributed.base.quantities import parse_timedelta
from distributed.comm.addressing import parse_address
from distributed.comm.auth import (
    Authentication,
    AuthenticationError,
    Penalties,
    choose_token,
)
from distributed.comm.exceptions import CommClosedError, FatalCommClosedError
from distributed.comm.handshake import do_handshake, handshake_configuration, handshake_info
from distributed.comm.registry import get_backend
from distributed.comm.settings import settings
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

logger = logging.getLogger(__name__)

#: What a listener calls with each new comm.
CommHandler: TypeAlias = Callable[["Comm"], Any]


#: Ceiling of the first pause between two attempts to connect, in seconds, and of any.
_BACKOFF_BASE, _BACKOFF_MAX = 0.01, 5.0
#: Share of the time for connecting which the first attempt may take; later ones may take more.
_FIRST_ATTEMPT_SHARE, _ATTEMPT_GROWTH = 0.2, 1.5


class Comm(ABC):
    """A connection that carries messages, each of them any Python object.

    One message at a time can be read, and one written, at the same time.  A
    read or write that is cancelled while under way closes the comm, so that a
    message is never taken for another.

    Parameters
    ----------
    deserialize
        Whether values wrapped by :func:`~distributed.protocol.to_serialize`
        are unwrapped on arrival.  If false they arrive as
        :class:`~distributed.protocol.Serialized`, ready to be passed on.
    load_policy
        See below; by default that of the configuration.

    Attributes
    ----------
    name
        What the connection is used for, for people who debug.
    allow_offload
        Whether expensive (de)serialization may run in a thread.
    load_policy
        What may be done for a message that arrives: how deep and large it may
        become, and whether anything in it is unpickled.
    local_info, remote_info
        What each side said of itself in the handshake, and its address.
    handshake_options
        What both sides agreed upon.
    """

    _instances: ClassVar[WeakSet[Comm]] = WeakSet()

    name: str | None
    deserialize: bool
    allow_offload: bool
    load_policy: LoadPolicy
    local_info: dict[str, Any]
    remote_info: dict[str, Any]
    handshake_options: dict[str, Any]

    def __init__(self, deserialize: bool = True, load_policy: LoadPolicy | None = None):
        self._instances.add(self)
        self.name = None
        self.deserialize = deserialize
        self.allow_offload = True
        self.load_policy = settings().load_policy if load_policy is None else load_policy
        self.local_info = {}
        self.remote_info = {}
        self.handshake_options = {}

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
            If the connection ends before a whole message has arrived, or what
            arrives is not a message.
        """

    @abstractmethod
    async def write(
        self, msg: Any, serializers: Sequence[str] | None = None, on_error: str | None = None
    ) -> int:
        """Write one message and return its size in bytes.

        The message is out of this process when the call returns: arrays in it
        may be changed.

        Parameters
        ----------
        msg
            The message.
        serializers
            Names of the serialization families to use, in order of preference.
        on_error
            ``"message"`` sends a value that cannot be serialized as an error
            that is raised where it is deserialized, ``"raise"`` raises here.

        Raises
        ------
        CommClosedError
            If the connection is closed.
        TypeError
            If the message cannot be serialized; nothing was sent then.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the comm once what was written has left.  Idempotent."""

    @abstractmethod
    def abort(self) -> None:
        """Close the comm at once, whatever is under way.  Idempotent."""

    @abstractmethod
    def closed(self) -> bool:
        """Return whether the comm is closed, by either side."""

    @property
    @abstractmethod
    def local_address(self) -> str:
        """The address of this end, for people who debug."""

    @property
    @abstractmethod
    def peer_address(self) -> str:
        """The address of the other end, for people who debug."""

    async def write_handshake(self, msg: dict[str, Any]) -> None:
        """Write a message of the handshake."""
        await self.write(msg)

    async def read_handshake(self) -> Any:
        """Read a message of the handshake.

        A transport over which others than this process can send refuses what is
        large here, and makes nothing of it but plain values.
        """
        return await self.read()

    @property
    def allow_pickle(self) -> bool:
        """Whether anything that arrives is unpickled; may be set before the handshake."""
        return self.load_policy.allow_pickle

    @allow_pickle.setter
    def allow_pickle(self, allowed: bool) -> None:
        if self.load_policy.allow_pickle != allowed:
            self.load_policy = self.load_policy._replace(allow_pickle=allowed)

    @property
    def channel_binding(self) -> bytes | None:
        """What both ends of an encrypted channel have in common with nobody else."""
        return None

    @property
    def extra_info(self) -> dict[str, Any]:
        """What the transport knows of the connection besides the addresses."""
        return {}

    @property
    def same_host(self) -> bool:
        """Whether both ends are on one host."""
        return _host_of(self.local_address) == _host_of(self.peer_address)

    def handshake_info(self) -> dict[str, Any]:
        """Return the map by which this side describes itself in the handshake."""
        return handshake_info(same_host=self.same_host, allow_pickle=self.allow_pickle)

    handshake_configuration = staticmethod(handshake_configuration)

    def complete_handshake(self, local: dict[str, Any], remote: dict[str, Any]) -> None:
        """Store what both sides said in the handshake, and the options that follow from it."""
        self.handshake_options = self.handshake_configuration(local, remote)
        self.local_info = {**local, "address": self.local_address}
        self.remote_info = {**remote, "address": self.peer_address}

    def __repr__(self) -> str:
        closed = " (closed)" if self.closed() else ""
        return (
            f"<{type(self).__name__}{closed} {self.name or ''} "
            f"local={self.local_address} remote={self.peer_address}>"
        )


class Connector(ABC):
    """Opens connections of one transport."""

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
            What the transport needs besides.

        Raises
        ------
        OSError
            If the connection cannot be made now; :func:`connect` tries again.
        FatalCommClosedError
            If it can never be made; :func:`connect` gives up.
        """


class Listener(ABC):
    """Waits for connections of one transport and hands their comms on."""

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
        """Stop accepting connections.  Those already accepted go on."""

    @property
    @abstractmethod
    def listen_address(self) -> str:
        """The address that this listener is bound to, as URI."""

    @property
    @abstractmethod
    def contact_address(self) -> str:
        """An address at which other hosts can reach this listener, as URI."""

    @abstractmethod
    async def on_connection(
        self, comm: Comm, handshake_overrides: dict[str, Any] | None = None
    ) -> None:
        """Go through the handshake on a connection that came in."""


class BaseListener(Listener):
    """A listener that does the handshake.

    Attributes
    ----------
    token
        What peers have to know, or None.
    allow_pickle
        Whether what peers have pickled is unpickled; None for what the
        configuration says.
    """

    # State.  `_handshaking` are the comms whose handshake is under way, oldest first.
    # `_penalties` remembers the hosts from which peers came without the token.
    token: str | bytes | None = None
    allow_pickle: bool | None = None

    def __init__(self) -> None:
        self._handshaking: dict[Comm, None] = {}
        self._penalties = Penalties()

    def abort_handshaking_comms(self) -> None:
        """Abort the comms whose handshake is not done."""
        for comm in list(self._handshaking):
            comm.abort()

    def abort_oldest_handshake(self) -> bool:
        """Abort the comm that has not done its handshake for longest; return whether there is one.

        Who means well has done his soon.
        """
        for comm in self._handshaking:
            if not comm.closed():
                comm.abort()
                return True
        return False

    async def on_connection(
        self, comm: Comm, handshake_overrides: dict[str, Any] | None = None
    ) -> None:
        """Go through the handshake on a connection that came in.

        Parameters
        ----------
        comm
            The new comm.
        handshake_overrides
            Replaces parts of what this side says of itself.

        Raises
        ------
        CommClosedError
            If the peer did not answer in time or is no peer; the comm is closed.
        """
        timeout = settings().handshake_timeout
        if self.allow_pickle is not None:
            comm.allow_pickle = self.allow_pickle
        self._handshaking[comm] = None
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            comm.abort()

        # Ends whoever waits for the comm, which takes a fraction of the time of `asyncio.timeout`.
        timer = asyncio.get_running_loop().call_later(timeout, give_up)
        try:
            await self.do_handshake(comm, handshake_overrides)
        except BaseException as exc:
            comm.abort()
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
        """Wait for the comm, and for nothing else that could last."""
        if self.token is None:
            await do_handshake(comm, overrides)
            return
        host = _host_of(comm.peer_address)
        authentication = Authentication(self.token, "server", comm.channel_binding)
        try:
            await do_handshake(comm, overrides, authentication, delay=self._penalties.delay(host))
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
    """Connect to *addr* and go through the handshake.

    Attempts that fail are repeated after random pauses of growing length, until
    *timeout* is over.

    Parameters
    ----------
    addr
        The address to connect to, such as ``"tcp://127.0.0.1:8786"``.
    timeout
        Time for everything together, in seconds or like ``"500ms"``; by default
        ``distributed.comm.timeouts.connect``.
    deserialize
        See :class:`Comm`.
    handshake_overrides
        Replaces parts of what this side says of itself.
    connection_args
        What the transport needs besides; ``token``: what both sides have to
        know; and ``allow_pickle``: whether anything that arrives is unpickled.
        By default both are those of the configuration.

    Returns
    -------
    Comm
        The open comm.

    Raises
    ------
    OSError
        If no attempt succeeded in time.  Its cause is what the last one met.
    FatalCommClosedError
        If an attempt met what will not change by trying again.
    ValueError
        If the address cannot be understood.
    """
    if timeout is None:
        seconds = settings().connect_timeout
    else:
        seconds = parse_timedelta(timeout, default="seconds")
    token = choose_token(connection_args.pop("token", None))
    allow_pickle = connection_args.pop("allow_pickle", None)
    scheme, loc = parse_address(addr)
    connector = get_backend(scheme).get_connector()

    now = asyncio.get_running_loop().time
    deadline = now() + seconds
    attempt_limit = seconds * _FIRST_ATTEMPT_SHARE
    pause_limit = _BACKOFF_BASE
    failure: OSError | None = None
    while True:
        try:
            async with asyncio.timeout_at(min(deadline, now() + attempt_limit)):
                comm = await connector.connect(loc, deserialize=deserialize, **connection_args)
                if allow_pickle is not None:
                    comm.allow_pickle = allow_pickle
                try:
                    authentication = None
                    if token is not None:
                        authentication = Authentication(token, "client", comm.channel_binding)
                    await do_handshake(comm, handshake_overrides, authentication)
                except BaseException:
                    comm.abort()
                    raise
                return comm
        except FatalCommClosedError:
            raise
        except OSError as exc:
            if failure is None or str(exc):
                # Of an attempt that took too long there is nothing to tell.
                failure = exc
            logger.debug("Could not connect to %s, trying again: %s", addr, exc)
        pause = random.uniform(0, pause_limit)
        await asyncio.sleep(min(pause, deadline - now()))
        if now() >= deadline:
            break
        pause_limit = min(2 * pause_limit, _BACKOFF_MAX)
        attempt_limit *= _ATTEMPT_GROWTH
    reason = f": {failure}" if failure is not None and str(failure) else ""
    raise OSError(f"Timed out trying to connect to {addr} after {seconds:g} s{reason}") from failure


def listen(
    addr: str,
    handle_comm: CommHandler,
    deserialize: bool = True,
    **kwargs: Any,
) -> Listener:
    """Return a listener at *addr*, which listens once it is awaited.

    Use it as ``listener = await listen(...)`` or ``async with listen(...)``.

    Parameters
    ----------
    addr
        The address to listen at, such as ``"tcp://127.0.0.1:0"``.
    handle_comm
        Called with each new comm after its handshake; if it returns an
        awaitable, that is awaited.
    deserialize
        See :class:`Comm`.
    kwargs
        What the transport needs besides; ``token``: what peers have to know; and
        ``allow_pickle``: whether what they have pickled is unpickled.  By default
        both are those of the configuration.

    Raises
    ------
    ValueError
        If the address cannot be understood.  An address that cannot be bound is
        an ``OSError`` when the listener is awaited.
    """
    token = choose_token(kwargs.pop("token", None))
    allow_pickle = kwargs.pop("allow_pickle", None)
    scheme, loc = parse_address(addr)
    listener: Listener
    listener = get_backend(scheme).get_listener(loc, handle_comm, deserialize, **kwargs)
    if token is not None:
        if not isinstance(listener, BaseListener):
            raise RuntimeError(
                f"a token is required, but {scheme}:// does not ask its peers for one: "
                f"{type(listener).__name__} is no BaseListener"
            )
        listener.token = token
    if isinstance(listener, BaseListener):
        listener.allow_pickle = LoadPolicy.from_config(allow_pickle).allow_pickle
    elif allow_pickle is not None:
        raise RuntimeError(
            f"allow_pickle={allow_pickle} is required, of which {scheme}:// knows nothing: "
            f"{type(listener).__name__} is no BaseListener"
        )
    return listener


async def call_comm_handler(handler: CommHandler, comm: Comm) -> None:
    """Hand a new *comm* to the *handler* of its listener; what that raises is logged."""
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
