"""A streaming answer, at the caller."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Self

from distributed.comm import Comm, CommClosedError
from distributed.core.call_info import CallInfo, kind_of
from distributed.core.calls import error_from
from distributed.core.long_calls import CommSource, LongCall

__all__ = ["RemoteStream"]

#: Number of messages with items that the server may send before the caller has consumed them: one
#: is consumed while the next one is on its way.
_WINDOW = 2


class RemoteStream(LongCall):
    """The items that a handler of a remote server yields; an asynchronous iterator.

    The request is sent when the first item is awaited.  If the iterator is closed or dropped
    before its end, the handler is cancelled.

    Examples
    --------
    >>> async def use(remote):
    ...     async for number in remote.count.stream(n=10):
    ...         print(number)
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # The items that were received and not returned.
        self._items: deque[Any] = deque()
        # Whether the server waits to hear that they were consumed.
        self._owes_credit = False
        # Whether the request was sent, or the iterator was closed before.
        self._begun = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._items:
            return self._items.popleft()
        if not self._begun:
            self._begun = True
            self._loop = asyncio.get_running_loop()
            self.begin_time()
            # A peer of the original ignores the rest of the request.
            await self._in_time(self._send_request({}, CallInfo(stream=_WINDOW)))
            if self._closed:
                # Meanwhile, by another task.
                self._leave()
        while self._comm is not None:
            await self._in_time(self._receive(self._comm))
            if self._items:
                return self._items.popleft()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the stream; if it has not ended, the handler is cancelled."""
        self._begun = self._closed = True
        self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _receive(self, comm: Comm) -> None:
        """Receive a message with items, or the end of the stream."""
        try:
            if self._owes_credit:
                self._owes_credit = False
                await comm.write(1)
            if comm.peer_unwatched:
                comm.watch_answer()
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
                "that does not belong to a stream"
            )

    def _leave(self) -> None:
        self._items.clear()
        super()._leave()

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


def _drop(remote: CommSource, comm: Comm) -> None:
    comm.abort()
    remote._release(comm)
