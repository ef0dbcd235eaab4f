"""A race: attempts at the same thing that run side by side, until one of them succeeds.

:func:`~distributed.comm.core.connect` lets a slow attempt continue beside the next one, and
:mod:`distributed.comm.happy_eyeballs` tries the addresses of a host in this way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Race(Generic[T]):
    """Attempts that run side by side until :meth:`close`, or within an ``async with`` block.

    Parameters
    ----------
    discard
        Called with the result of each attempt that was not taken.
    """

    def __init__(self, discard: Callable[[T], object]) -> None:
        self._discard = discard
        # The attempts that `ended` has not returned.
        self._tasks: set[asyncio.Task[T]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel the attempts that have not been taken, and wait until they have ended."""
        tasks = self._tasks
        if not tasks:
            return
        for task in tasks:
            # Even if this wait is cancelled, the results are discarded.
            task.add_done_callback(self._discard_outcome)
            task.cancel()
        await asyncio.wait(tasks)

    def _discard_outcome(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._discard(task.result())

    def enter(self, attempt: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start an attempt."""
        task = asyncio.get_running_loop().create_task(attempt)
        self._tasks.add(task)
        return task

    @property
    def running(self) -> bool:
        """Whether an attempt is in progress, or has ended and was not taken."""
        return bool(self._tasks)

    async def ended(self, until: float | None = None) -> asyncio.Task[T] | None:
        """Take an attempt that has ended, first one that has succeeded.

        Parameters
        ----------
        until
            Time of the event loop at which to stop waiting; None to wait for as long as it takes.

        Returns
        -------
        asyncio.Task or None
            None if no attempt has ended.
        """
        timeout = None if until is None else max(0.0, until - asyncio.get_running_loop().time())
        if not self._tasks:
            if timeout is not None:
                await asyncio.sleep(timeout)
            return None
        done, _ = await asyncio.wait(
            self._tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            return None
        task = min(done, key=_has_failed)
        self._tasks.discard(task)
        return task


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
