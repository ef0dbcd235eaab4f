"""Handlers in progress when a server is drained: wait for them, and end those that take too long.

A handler that does not end in time is cancelled.  Its caller gets an error, because the connection
works.  Only the read of a comm cannot be cancelled without breaking the connection.  So a handler
that waits for a message of its caller, in a conversation, gets the end of the conversation instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Set
from time import monotonic
from typing import Any, Final, Protocol

from distributed.base.logs import get_logger
from distributed.base.text import shown_repr
from distributed.comm import Comm
from distributed.core.errors.messages import error_message

__all__ = ["TOO_LATE", "Draining"]

logger = get_logger("distributed.core")

#: The reason why a server ends a handler itself.
TOO_LATE: Final = "the server closes, and the handler did not end in time"

#: Seconds for the answer of a handler that was cancelled because its server closes.
_LAST_ANSWER = 1.0


class Writer(Protocol):
    """The function that writes the answer to a request."""

    async def __call__(self, comm: Comm, op: Any, result: Any) -> object: ...


class Draining:
    """The handlers in progress of one server.

    Parameters
    ----------
    comms
        Each comm of the server → the operation in progress, or None.
    tasks
        Each task that serves a comm → that comm.
    write
        Writes the answer to a request.
    """

    # A comm is in the sets only while its task is in `tasks`.
    def __init__(
        self,
        comms: Mapping[Comm, str | None],
        tasks: Mapping[asyncio.Task[Any], Comm],
        write: Writer,
    ) -> None:
        self._comms = comms
        self._tasks = tasks
        self._write = write
        #: The comms whose answer is a stream: the server reads from them, and no handler does.
        self.streaming: set[Comm] = set()
        #: The comms whose handler was cancelled.
        self.given_up: set[Comm] = set()
        #: Whether a handler was ended.
        self.cut_short = False

    def forget(self, comm: Comm) -> None:
        """Remove a comm that is not served any more."""
        self.given_up.discard(comm)
        self.streaming.discard(comm)

    def ends(self, comm: Comm, exc: BaseException) -> bool:
        """Return whether *exc* is the cancellation of the handler for *comm* by :meth:`wait`.

        The current task continues then, to tell the caller.
        """
        task = asyncio.current_task()
        if comm not in self.given_up or not isinstance(exc, asyncio.CancelledError) or not task:
            return False
        return task.uncancel() == 0

    async def wait(self, deadline: float, unlimited: Callable[[], Set[Comm]] = frozenset) -> bool:
        """Wait until handlers have ended, and return whether that was so in time.

        Parameters
        ----------
        deadline
            The time (of ``time.monotonic``) at which the handlers that still run are cancelled.
        unlimited
            Returns the comms whose handlers are not waited for.
        """
        me = asyncio.current_task()

        def running() -> list[asyncio.Task[Any]]:
            but = unlimited() | self.given_up
            return [
                task
                for task, comm in self._tasks.items()
                if task is not me and self._comms.get(comm) is not None and comm not in but
            ]

        while (tasks := running()) and (left := deadline - monotonic()) > 0:
            await asyncio.wait(tasks, timeout=left)
        if not tasks:
            return True
        self.cut_short = True
        given_up = [self._give_up(task, self._tasks[task]) for task in tasks]
        ending = [asyncio.create_task(it) for it in given_up if it is not None]
        await asyncio.wait([*tasks, *ending], timeout=_LAST_ANSWER)
        for end in ending:
            end.cancel()
        return False

    def _give_up(self, task: asyncio.Task[Any], comm: Comm) -> Coroutine[Any, Any, None] | None:
        """Cancel a handler, or return the coroutine that ends its conversation."""
        op = self._comms[comm]
        logger.warning("Ending op %s of %s: %s", op, comm.peer_address, TOO_LATE)
        self.given_up.add(comm)
        if not comm.is_reading or comm in self.streaming:
            task.cancel()
            return None
        return self._end_conversation(comm, op)

    async def _end_conversation(self, comm: Comm, op: Any) -> None:
        """Write an error for the caller, and close *comm* as if the caller had left."""
        error = RuntimeError(f"the conversation with {shown_repr(op)} was ended: {TOO_LATE}")
        await self._write(comm, op, error_message(error, "uncaught-error"))
        await comm.close()
