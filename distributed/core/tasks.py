"""Background tasks of a server: tasks that no caller awaits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Generator
from typing import Any, ParamSpec, TypeVar

from tornado.ioloop import IOLoop

from distributed.base.event_loop import asyncio_loop_of
from distributed.base.logs import get_logger
from distributed.core.host import AsyncTaskGroupClosedError

__all__ = ["AsyncTaskGroup", "AsyncTaskGroupClosedError", "NoOpAwaitable", "wait_from_thread"]

logger = get_logger("distributed.core")

P = ParamSpec("P")
T = TypeVar("T")


def wait_from_thread(
    loop: IOLoop,
    afunc: Callable[P, Coroutine[Any, Any, T]],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run ``afunc(*args, **kwargs)`` in a loop that runs in another thread; return its result.

    Raises
    ------
    RuntimeError
        If this is called in the loop's own thread, which would wait for itself.
    """
    there = asyncio_loop_of(loop)
    if asyncio._get_running_loop() is there:
        raise RuntimeError(f"{_name(afunc)} would block the event loop: call it in another thread")
    return asyncio.run_coroutine_threadsafe(afunc(*args, **kwargs), there).result()


class NoOpAwaitable:
    """An awaitable that is done at once and may be dropped without ``await``."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class AsyncTaskGroup:
    """The background tasks of one owner, on one event loop.

    The group keeps its tasks alive, logs their exceptions, and ends them when the owner closes.

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
        # Whether the group refuses new tasks; never reset.
        self.closed = False
        # The tasks that are not done.  The event loop has only weak references to tasks.
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

        The result of the task is dropped; an exception is logged.

        Raises
        ------
        AsyncTaskGroupClosedError
            If the group is closed; *afunc* is not called then.
        TypeError
            If *afunc* is not a coroutine function.
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
        """Run ``afunc(*args, **kwargs)`` after *delay* seconds, in a task that starts now.

        Raises
        ------
        AsyncTaskGroupClosedError
            If the group is closed.
        TypeError, ValueError
            If *delay* is not a number from 0.
        """
        self._check_open(afunc)
        if not isinstance(delay, int | float) or isinstance(delay, bool):
            raise TypeError(f"delay must be a number of seconds, not {delay!r}")
        if math.isnan(delay):
            raise ValueError("delay must be a number of seconds, not nan")

        async def delayed() -> None:
            await asyncio.sleep(delay)
            await _make_coroutine(afunc, *args, **kwargs)

        self._start(delayed(), _name(afunc))

    def close(self) -> None:
        """Refuse new tasks; those of the group continue."""
        self.closed = True

    async def stop(self) -> None:
        """Close the group, cancel its tasks, and wait until all have ended.

        If one of the tasks calls this method, that task is neither cancelled nor awaited.  A
        cancelled task has unlimited time to clean up.  If this call is cancelled, the tasks still
        end.
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
                f"Cannot schedule a new coroutine function as the group is already closed: "
                f"{_name(afunc)}"
            )

    def _start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        try:
            task = asyncio.get_running_loop().create_task(coroutine, name=f"background {name}")
        except RuntimeError:
            coroutine.close()
            raise
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
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
        raise TypeError(f"a coroutine was expected, got {coroutine!r} from {_name(afunc)}")
    return coroutine
