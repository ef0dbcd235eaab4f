"""A conversation with the handler of one request, over a comm of its own."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from distributed.comm import Comm
from distributed.core.call_info import CallInfo
from distributed.core.calls import error_from
from distributed.core.deadlines import timeout
from distributed.core.long_calls import LongCall

__all__ = ["Conversing", "PassedComm", "unwrapped"]


class PassedComm(Comm):
    """Another comm, of which a subclass changes some methods."""

    def __init__(self, comm: Comm) -> None:
        # Not super().__init__(), because this is not another connection.
        self._comm = comm

    async def read(self, deserializers: Sequence[str] | None = None) -> Any:
        return await self._comm.read(deserializers)

    async def write(
        self, msg: Any, serializers: Sequence[str] | None = None, on_error: str | None = None
    ) -> int:
        return await self._comm.write(msg, serializers, on_error)

    async def close(self) -> None:
        await self._comm.close()

    def abort(self) -> None:
        self._comm.abort()

    def closed(self) -> bool:
        return self._comm.closed()

    @property
    def local_address(self) -> str:
        return self._comm.local_address

    @property
    def peer_address(self) -> str:
        return self._comm.peer_address

    @property
    def extra_info(self) -> dict[str, Any]:
        return self._comm.extra_info

    @property
    def same_host(self) -> bool:
        return self._comm.same_host

    @property
    def is_reading(self) -> bool:
        return self._comm.is_reading

    @property
    def has_unread(self) -> bool:
        return self._comm.has_unread

    @property
    def is_idle(self) -> bool:
        return self._comm.is_idle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def __repr__(self) -> str:
        return repr(self._comm)


def unwrapped(comm: Comm) -> Comm:
    """Return the comm that *comm* passes messages to, or *comm* itself."""
    while isinstance(comm, PassedComm):
        comm = comm._comm
    return comm


class Conversation(PassedComm):
    """The caller's end of a conversation."""

    async def read(self, deserializers: Sequence[str] | None = None) -> Any:
        """Read one message of the handler.

        Raises
        ------
        Exception
            The exception of the handler, if it has failed.
        CommClosedError
            If the handler has returned, or the connection is lost.
        """
        if self._comm.peer_unwatched:
            self._comm.watch_answer()
        message = await self._comm.read(deserializers)
        if type(message) is dict and message.get("status") == "uncaught-error":
            raise error_from(self._comm, message)
        return message


class Conversing(LongCall):
    """A context manager: the request, the comm for the conversation, and its end."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._timeout = timeout(None)

    async def __aenter__(self) -> Comm:
        self.begin_time()
        self._timeout = timeout(self._time_left())
        await self._timeout.__aenter__()
        try:
            comm = await self._send_request({"reply": False, "close": True}, CallInfo(open=True))
        except BaseException as exc:
            await self._end_timeout(exc)
            raise
        return Conversation(comm)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failure = exc
        try:
            if exc is None and self._comm is not None:
                await self._comm.close()
        except BaseException as new:
            failure = new
            raise
        finally:
            self._leave()
            await self._end_timeout(failure)

    async def _end_timeout(self, failure: BaseException | None) -> None:
        """Leave the time limit; if it has cancelled the task, raise a TimeoutError instead."""
        kind = None if failure is None else type(failure)
        traceback = None if failure is None else failure.__traceback__
        try:
            await self._timeout.__aexit__(kind, failure, traceback)
        except TimeoutError as exc:
            raise self._timed_out() from exc
