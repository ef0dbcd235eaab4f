"""Calls with more than one answer: what streaming calls and conversations have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from distributed.comm import Comm
from distributed.comm.attempts import failures_before
from distributed.core.call_info import FEATURE, KEY, CallInfo
from distributed.core.deadlines import current_deadline, time_left
from distributed.core.retries import Retries

__all__ = ["DEFAULT", "Configuration", "LongCall"]

T = TypeVar("T")


class Configuration(NamedTuple):
    """The limits of a call."""

    #: Maximum number of seconds; None for no limit.
    limit: float | None = None
    #: When the request may be repeated; None if never.
    retries: Retries | None = None

    def within(self, other: Self) -> Self:
        """Return this configuration, with the limits of *other* where they are tighter."""
        limits = [limit for limit in (self.limit, other.limit) if limit is not None]
        return self._replace(limit=min(limits, default=None), retries=self.retries or other.retries)


DEFAULT = Configuration()


class CommSource(Protocol):
    """The part of :class:`~distributed.core.operations.RemoteCalls` that gives calls a comm."""

    async def _take_comm(self, name: str) -> Comm: ...

    def _release(self, comm: Comm) -> None: ...


class LongCall:
    """A call that uses its comm until it ends.

    Parameters
    ----------
    remote
        The server's operations.
    op, kwargs
        The operation and the arguments of its handler.
    configuration
        The limits of the call.
    metadata
        What the request carries for interceptors.

    Raises
    ------
    TypeError
        If an argument has the name of a key of requests.
    """

    def __init__(
        self,
        remote: CommSource,
        op: str,
        kwargs: dict[str, Any],
        configuration: Configuration = DEFAULT,
        metadata: dict[str, str] | None = None,
    ) -> None:
        for name in ("op", "reply", "close"):
            if name in kwargs:
                raise TypeError(
                    f"{name!r} cannot be an argument of {op!r}, since it is a key of the request"
                )
        self._remote = remote
        self._op = op
        self._kwargs = kwargs
        self._configuration = configuration
        self._metadata = metadata or {}
        # The end of the caller's time, as a value of `monotonic`, once the call has begun.
        self._deadline: float | None = None
        # The comm from the request until the end.
        self._comm: Comm | None = None
        # Whether the peer has agreed to the feature of such calls.
        self._negotiated = False
        # The serialization families that this side accepts.
        self._deserializers: Sequence[str] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._op!r} of {self._remote!r}>"

    def begin_time(self) -> None:
        """Begin to count the time of the call, unless it is counted already."""
        if self._deadline is not None:
            return
        deadline, limit = current_deadline(), self._configuration.limit
        if limit is not None:
            own = monotonic() + limit
            deadline = own if deadline is None else min(deadline, own)
        self._deadline = deadline

    def _time_left(self) -> float | None:
        """Return the seconds until the deadline, not less than 0; None if there is none."""
        return None if self._deadline is None else max(0, self._deadline - monotonic())

    def _timed_out(self, reason: str = "") -> TimeoutError:
        """Return the error for the end of the caller's time."""
        limit = self._configuration.limit
        text = (
            f"no time is left for {self._op!r}"
            if limit is None
            else f"{self._op!r} took longer than {limit:g} s"
        )
        return TimeoutError(text + reason)

    async def _in_time(self, step: Coroutine[Any, Any, T]) -> T:
        """Return the result of a step of the call, which is cancelled at the deadline."""
        left = self._time_left()
        if left is None:
            return await step
        limit = asyncio.timeout(left)
        try:
            async with limit:
                return await step
        except TimeoutError as exc:
            if limit.expired() and not exc.args:
                raise self._timed_out(failures_before(exc)) from exc
            raise

    async def _send_request(self, keys: dict[str, Any], info: CallInfo) -> Comm:
        """Take a comm into use and write the request to it.

        Parameters
        ----------
        keys
            Further keys of the request.
        info
            What the request carries if the peer has agreed to it, except the time that is left.
        """
        take = self._remote._take_comm
        retries = self._configuration.retries
        if retries is None:
            comm = await take(self._op)
        else:
            comm = await retries.run(lambda: take(self._op))
        self._comm = comm
        self._negotiated = FEATURE in comm.features
        message = {"op": self._op, **self._kwargs, **keys}
        serializers = message.pop("serializers", None)
        self._deserializers = message.pop("deserializers", None) or serializers
        if self._deserializers is not None:
            message["serializers"] = self._deserializers
        try:
            if self._negotiated:
                left = None
                if self._deadline is not None:
                    left = time_left(self._op, self._deadline)
                message[KEY] = info._replace(timeout=left, metadata=self._metadata).pack()
            await comm.write(message, serializers=serializers, on_error="raise")
        except BaseException:
            self._leave()
            raise
        return comm

    def _end(self) -> None:
        """Return the comm, on which nothing is in progress."""
        comm, self._comm = self._comm, None
        if comm is not None:
            self._remote._release(comm)

    def _leave(self) -> None:
        """Close the comm, so that the server cancels the handler."""
        comm = self._comm
        if comm is not None:
            comm.abort()
        self._end()
