"""Tasks that a server starts and nobody awaits.

`AsyncTaskGroup` keeps them alive, reports their failures once, and ends them all when their owner
closes.  It knows nothing of messages: floor 4 runs handlers, delayed work and streams in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any, ParamSpec

__all__ = ["AsyncTaskGroup", "AsyncTaskGroupClosedError", "NoOpAwaitable"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class NoOpAwaitable:
    """May be awaited, and need not be."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class AsyncTaskGroupClosedError(RuntimeError):
    """A task was given to a group that is closed."""


class AsyncTaskGroup:
    """The background tasks of one owner, on one event loop.

    Examples
    --------
    >>> async def main():
    ...     group = AsyncTaskGroup()
    ...     group.call_soon(asyncio.sleep, 0)
    ...     group.call_later(60, asyncio.sleep, 0)
    ...     print(len(group))
    ...     await group.stop()
    ...     print(len(group), group.closed)
    >>> asyncio.run(main())
    2
    0 True
    """

    def __init__(self) -> None:
        # closed   Once True it stays so, and no task is added any more.
        # _tasks   Exactly the tasks that are not done yet (a task leaves when it is done); the
        #          event loop itself holds tasks only weakly.
        self.closed = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def call_soon(
        self,
        afunc: Callable[P, Coroutine[Any, Any, Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Run ``afunc(*args, **kwargs)`` as a task of the group.

        Its result is dropped; its exception, if any, is logged.

        Raises
        ------
        AsyncTaskGroupClosedError
            If the group is closed; *afunc* is not called then.
        TypeError
            If *afunc* is no coroutine function.
        """
        self._check_open(afunc)
        self._start(_make_coroutine(afunc, *args, **kwargs), _name(afunc))

    def call_later(
        self,
        delay: float,
        afunc: Callable[P, Coroutine[Any, Any, Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """As `call_soon`, after *delay* seconds; it counts as a task of the group from now on.

        Raises
        ------
        AsyncTaskGroupClosedError
            If the group is closed.
        """
        self._check_open(afunc)

        async def delayed() -> None:
            await asyncio.sleep(delay)
            await _make_coroutine(afunc, *args, **kwargs)

        self._start(delayed(), _name(afunc))

    def close(self) -> None:
        """Take no more tasks; those there are run on."""
        self.closed = True

    async def stop(self) -> None:
        """Close the group, cancel its tasks and return when all have ended.

        Called by one of the tasks, that one is neither cancelled nor awaited.  A cancelled task may
        clean up for as long as it takes.  Being cancelled itself, it stops waiting and the tasks
        end by themselves.
        """
        self.close()
        others = self._tasks - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)

    def _check_open(self, afunc: Callable[..., Any]) -> None:
        if self.closed:
            raise AsyncTaskGroupClosedError(
                f"Cannot schedule {_name(afunc)}: the group of background tasks is already closed."
            )

    def _start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        try:
            task = asyncio.get_running_loop().create_task(coroutine, name=f"background {name}")
        except RuntimeError:
            coroutine.close()
            raise
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("Unhandled exception in %s", task.get_name(), exc_info=exc)


def _name(afunc: Callable[..., Any]) -> str:
    return getattr(afunc, "__qualname__", None) or repr(afunc)


def _make_coroutine(
    afunc: Callable[P, Coroutine[Any, Any, Any]], *args: P.args, **kwargs: P.kwargs
) -> Coroutine[Any, Any, Any]:
    coroutine = afunc(*args, **kwargs)
    if not asyncio.iscoroutine(coroutine):
        raise TypeError(
            f"Background tasks need a coroutine function, but {_name(afunc)} returned {coroutine!r}"
        )
    return coroutine
