"""A future that resumes its waiter without a turn of the event loop."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any

__all__ = ["InlineFuture"]


class InlineFuture:
    """A future whose waiter resumes inside :meth:`resolve`, without a turn of the event loop.

    An ordinary future wakes its waiter through the queue of the event loop.  For each message, that
    would cost one more turn of the loop, and a call of the selector.

    Only callbacks of the event loop may call `resolve`, since no other task may be running.  All
    other code, a task for example, calls `resolve_soon`.

    One task at a time may wait.  Once it has resumed, the future can be awaited again.

    Attributes
    ----------
    wake
        Callback that resumes the waiter; None if no task waits.
    error
        The exception that the waiter is resumed with, or None.  Set it before `resolve`.
    """

    # The part of a future's interface that asyncio's tasks use is `_asyncio_future_blocking` (see
    # `asyncio.isfuture`), `get_loop`, `add_done_callback`, `cancel` and `result`.
    #
    # Invariant: `_result` and `error` are set when the waiter is about to resume, and reset when it
    # has received them.
    __slots__ = ("_asyncio_future_blocking", "_context", "_loop", "_result", "error", "wake")

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._asyncio_future_blocking = False
        self._loop = loop
        self.wake: Callable[[Any], object] | None = None
        # The context variables of the waiter.
        self._context: contextvars.Context | None = None
        self._result: Any = None
        self.error: BaseException | None = None

    def resolve(self, result: Any = None) -> None:
        """Resume the waiter now, with *result*, or with `error` if that is set."""
        wake, self.wake = self.wake, None
        context, self._context = self._context, None
        assert wake is not None
        self._result = result
        if context is None:
            wake(self)
        else:
            context.run(wake, self)
        # A cycle otherwise, as in `_take_error`, if the waiter's task has ended with an error.
        del wake

    def resolve_soon(self, error: BaseException) -> None:
        """Resume the waiter with *error* at the next turn of the event loop."""
        wake, self.wake = self.wake, None
        context, self._context = self._context, None
        assert wake is not None
        self.error = error
        self._loop.call_soon(wake, self, context=context)

    def __await__(self) -> Generator[Any, None, Any]:
        self._asyncio_future_blocking = True
        yield self
        result, self._result = self._result, None
        return result

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(
        self, fn: Callable[[Any], object], *, context: contextvars.Context | None = None
    ) -> None:
        assert self.wake is None
        self.wake = fn
        self._context = context

    def result(self) -> None:
        """Raise the error that the waiter is resumed with, if there is one."""
        if self.error is not None:
            raise self._take_error()

    def _take_error(self) -> BaseException:
        """Return `error` and forget it.

        The traceback of an error refers to the frame that raises it and to the callers of that
        frame.  If one of these had a variable for the error, the two would refer to each other.
        Then all that the frames hold, such as messages and comms, would stay in memory until the
        garbage collector runs.
        """
        error, self.error = self.error, None
        assert error is not None
        return error

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the wait; return false if no task waits."""
        if self.wake is None:
            return False
        self.resolve_soon(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True
