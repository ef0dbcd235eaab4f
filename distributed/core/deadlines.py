"""Deadlines: the time that is left for a task, and that its calls carry to servers.

A deadline is set by :class:`timeout` at a caller, and by a server for the handler of a request
that carries one.  All tasks that are started below it inherit it, as context variables are
inherited.  Requests carry the remaining time and not a point in time, so the clocks of two hosts
need not agree.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar, Token
from time import monotonic
from types import TracebackType
from typing import Self

from distributed.base.quantities import parse_timedelta

__all__ = ["current", "current_deadline", "remaining_time", "time_left", "timeout"]


class _Deadline:
    """A point in time; of no effect once the block that set it has ended.

    A task that outlives the block has inherited the deadline, and continues without it.
    """

    __slots__ = ("active", "outer", "when")

    def __init__(self, when: float, outer: _Deadline | None) -> None:
        self.when = when
        self.outer = outer
        self.active = True


def _active(deadline: _Deadline | None) -> _Deadline | None:
    """Return *deadline*, or the innermost one outside of it whose block has not ended."""
    while deadline is not None and not deadline.active:
        deadline = deadline.outer
    return deadline


#: The deadline of the current task; it may be that of a block that has ended.
current: ContextVar[_Deadline | None] = ContextVar("distributed.core.deadline", default=None)


def current_deadline() -> float | None:
    """Return the deadline of the current task as a value of `time.monotonic`, or None."""
    deadline = _active(current.get())
    return None if deadline is None else deadline.when


def remaining_time() -> float | None:
    """Return the number of seconds until the deadline of the current task, or None if it has none.

    The result is 0 or less once the deadline has passed.  Only :class:`timeout`, ``within`` and the
    caller of a handler set deadlines; `asyncio.timeout` does not.

    Examples
    --------
    >>> async def main():
    ...     async with timeout("1 minute"):
    ...         print(remaining_time() > 59)
    ...     print(remaining_time())
    >>> asyncio.run(main())
    True
    None
    """
    deadline = current_deadline()
    return None if deadline is None else deadline - monotonic()


def time_left(op: str, deadline: float) -> float:
    """Return the seconds until *deadline*, for a call of *op*.

    Raises
    ------
    TimeoutError
        If the deadline has passed.
    """
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError(f"no time is left to call {op!r}")
    return left


class timeout:
    """Limit the time of a block, and of the handlers that it calls on servers.

    Like `asyncio.timeout`, it cancels the block and raises `TimeoutError`.  In addition, each call
    through an ``rpc`` or a pool carries the remaining time to its server.  The server cancels the
    handler when the time is used up; calls that the handler makes inherit the rest of it.

    A timeout inside another one can only be shorter.  The time of a plain `asyncio.timeout` does
    not travel, because asyncio does not tell which ones are around a task: a handler that is called
    inside one is cancelled only when its caller leaves.

    Parameters
    ----------
    delay
        Seconds, or text such as ``"500ms"``; None for no limit.

    Examples
    --------
    >>> async def main():
    ...     async with timeout("10ms"):
    ...         await asyncio.sleep(60)
    >>> asyncio.run(main())
    Traceback (most recent call last):
    TimeoutError
    """

    def __init__(self, delay: float | str | None) -> None:
        self.delay = parse_timedelta(delay)
        self._deadline: _Deadline | None = None
        self._token: Token[_Deadline | None] | None = None
        self._limit: asyncio.Timeout | None = None

    def expired(self) -> bool:
        """Return whether the time was used up before the block ended."""
        return self._limit is not None and self._limit.expired()

    async def __aenter__(self) -> Self:
        delay = self.delay
        if delay is not None:
            when = monotonic() + delay
            outer = _active(current.get())
            if outer is not None:
                when = min(when, outer.when)
                delay = min(delay, outer.when - monotonic())
            self._deadline = _Deadline(when, outer)
            self._token = current.set(self._deadline)
        self._limit = asyncio.timeout(delay)
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._limit is not None
        if self._deadline is not None:
            self._deadline.active = False
            # Tasks that start one another inside such blocks would make an ever longer chain.
            self._deadline.outer = _active(self._deadline.outer)
            assert self._token is not None
            # An abandoned generator ends in another context than it ran in.
            with contextlib.suppress(ValueError):
                current.reset(self._token)
        await self._limit.__aexit__(exc_type, exc, traceback)
