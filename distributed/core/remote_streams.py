"""A streaming answer, at the caller."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from distributed.comm import Comm, CommClosedError
from distributed.core.call_info import FEATURE, KEY, CallInfo, kind_of
from distributed.core.calls import error_from
from distributed.core.deadlines import current_deadline, time_left

if TYPE_CHECKING:
    from distributed.core.operations import RemoteCalls
    from distributed.core.retries import Retries

__all__ = ["RemoteStream"]

#: Number of messages with items that the server may send before the caller has consumed them: one
#: is consumed while the next one is on its way.
_WINDOW = 2


class RemoteStream:
    """The items that a handler of a remote server yields; an asynchronous iterator.

    The request is sent when the first item is awaited.  If the iterator is closed or dropped
    before its end, the handler is cancelled.

    Examples
    --------
    >>> async def use(remote):
    ...     async for number in remote.count.stream(n=10):
    ...         print(number)
    """

    def __init__(self, remote: RemoteCalls, op: str, kwargs: dict[str, Any]) -> None:
        self._remote = remote
        self._op = op
        self._kwargs = kwargs
        self._limit: float | None = None
        self._retries: Retries | None = None
        # The end of the caller's time, as a value of `monotonic`, once the request was sent.
        self._deadline: float | None = None
        # The comm of the request until the stream has ended.
        self._comm: Comm | None = None
        # Whether the peer streams.  If it does not, each of its messages is an item.
        self._negotiated = False
        # The items that were received and not returned.
        self._items: deque[Any] = deque()
        # Whether the server waits to hear that they were consumed.
        self._owes_credit = False
        # Whether the request was sent, or the iterator was closed before.
        self._begun = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def configure(self, limit: float | None, retries: Retries | None) -> None:
        """Set the time limit of the whole stream, and the retries of its request."""
        if limit is not None:
            self._limit = limit if self._limit is None else min(limit, self._limit)
        self._retries = retries or self._retries

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._items:
            return self._items.popleft()
        if not self._begun:
            self._begun = True
            await self._begin()
        while self._comm is not None:
            async with asyncio.timeout(self._time_left()):
                await self._receive(self._comm)
            if self._items:
                return self._items.popleft()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the stream; if it has not ended, the handler is cancelled."""
        self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._leave()

    def _time_left(self) -> float | None:
        return None if self._deadline is None else max(0, self._deadline - monotonic())

    async def _begin(self) -> None:
        """Send the request."""
        self._loop = asyncio.get_running_loop()
        deadline = current_deadline()
        if self._limit is not None:
            own = monotonic() + self._limit
            deadline = own if deadline is None else min(deadline, own)
        self._deadline = deadline
        async with asyncio.timeout(self._time_left()):
            take = self._remote._take_comm
            if self._retries is None:
                comm = await take(self._op)
            else:
                comm = await self._retries.run(lambda: take(self._op))
            self._comm = comm
            message = {"op": self._op, **self._kwargs}
            self._deserializers = message.pop("deserializers", None) or message.get("serializers")
            serializers = message.pop("serializers", None)
            if self._deserializers is not None:
                message["serializers"] = self._deserializers
            self._negotiated = FEATURE in comm.features
            try:
                if self._negotiated:
                    left = None if deadline is None else time_left(self._op, deadline)
                    message |= {"reply": True, KEY: CallInfo(left, stream=_WINDOW).pack()}
                await comm.write(message, serializers=serializers, on_error="raise")
            except BaseException:
                self._leave()
                raise

    async def _receive(self, comm: Comm) -> None:
        """Receive a message with items, or the end of the stream."""
        try:
            if self._owes_credit:
                self._owes_credit = False
                await comm.write(1)
            message = await comm.read(deserializers=self._deserializers)
        except CommClosedError:
            self._leave()
            if self._negotiated:
                raise
            # The original has no message for the end of a stream.
            return
        except BaseException:
            self._leave()
            raise
        if type(message) is dict and message.get("status") == "uncaught-error":
            if self._negotiated:
                self._end()
            else:
                self._leave()
            raise error_from(comm, message)
        if not self._negotiated:
            self._items.append(message)
            return
        kind = kind_of(message)
        if kind == "items":
            self._owes_credit = True
            self._items.extend(message["value"])
        elif kind == "end":
            self._end()
        else:
            self._leave()
            raise CommClosedError(
                f"{comm.peer_address} answered the streaming call of {self._op!r} by a message "
                "that is no part of a stream"
            )

    def _end(self) -> None:
        """Return the comm after the last message of the server."""
        comm, self._comm = self._comm, None
        if comm is not None:
            self._remote._release(comm)

    def _leave(self) -> None:
        """Close the comm, so that the server cancels the handler."""
        self._begun = True
        self._items.clear()
        comm, self._comm = self._comm, None
        if comm is not None:
            comm.abort()
            self._remote._release(comm)

    def __del__(self) -> None:
        # The loop that iterated was left early.
        comm, loop = self.__dict__.get("_comm"), self.__dict__.get("_loop")
        if comm is None or loop is None or loop.is_closed():
            return
        if loop is asyncio._get_running_loop():
            self._leave()
        else:
            self._comm = None
            loop.call_soon_threadsafe(_drop, self._remote, comm)


def _drop(remote: RemoteCalls, comm: Comm) -> None:
    comm.abort()
    remote._release(comm)
