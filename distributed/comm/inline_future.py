"""A future that resumes its waiter without a turn of the event loop."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any

__all__ = ["InlineFuture"]


class InlineFuture:
    """Awaits like a future, but who awaits goes on within :meth:`resolve`.

    A future wakes who awaits it by way of the event loop's queue, which costs every message one
    more turn of the loop and a call of the selector.  `resolve` is for callbacks of the event loop
    alone, since no other task may be running; from anywhere else, and for what is no hurry, there
    is `resolve_soon`.

    One task at a time may await it; when that has the result, it can be awaited again.
    """

    # What asyncio's tasks ask of a future: `_asyncio_future_blocking` (by which they know one, see
    # `asyncio.isfuture`), `get_loop`, `add_done_callback`, `cancel` and `result`.

    # State.  `wake`, in `_context`, lets the task that waits go on, and is None while none does.
    # Result and error are set from when that is called, or about to be, until the task has them.
    __slots__ = ("_asyncio_future_blocking", "_context", "_error", "_loop", "_result", "wake")

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._asyncio_future_blocking = False
        self._loop = loop
        self.wake: Callable[[Any], object] | None = None
        self._context: contextvars.Context | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def resolve(self, result: Any = None, error: BaseException | None = None) -> None:
        """Let the task that waits go on, now, with *result* or *error*."""
        wake, self.wake = self.wake, None
        context, self._context = self._context, None
        assert wake is not None
        self._result = result
        self._error = error
        # The error will come to refer to this frame.
        del error
        if context is None:
            wake(self)
        else:
            context.run(wake, self)

    def resolve_soon(self, error: BaseException) -> None:
        """Let the task that waits go on with *error* at the loop's next turn."""
        wake, self.wake = self.wake, None
        context, self._context = self._context, None
        assert wake is not None
        self._error = error
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
        """Raise the error with which the task goes on, if it does with one."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback has this frame.
                del error

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the wait; return false if it is over."""
        if self.wake is None:
            return False
        self.resolve_soon(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True
