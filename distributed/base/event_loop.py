"""What runs beside an event loop: work moved to a thread, and waiting for a bounded time."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar, cast

from tornado.ioloop import IOLoop

__all__ = [
    "OFFLOAD_THREAD_NAME",
    "asyncio_loop_of",
    "offload",
    "shutdown_offload",
    "wait_for",
]

P = ParamSpec("P")
T = TypeVar("T")


def asyncio_loop_of(io_loop: IOLoop) -> asyncio.AbstractEventLoop:
    """Return the asyncio event loop that a Tornado loop runs on.

    Tornado's annotations declare ``asyncio_loop`` only on a subclass of `IOLoop`.
    """
    loop: asyncio.AbstractEventLoop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    return loop


async def wait_for(awaitable: Awaitable[T], timeout: float | None) -> T:
    """Result of *awaitable*, which is cancelled after *timeout* seconds (None: never).

    Unlike :func:`asyncio.wait_for` before Python 3.12, a cancellation of the caller is never lost
    to a result that arrives at the same time, and no extra task is made.

    Raises
    ------
    TimeoutError
        If the time is over.
    """
    async with asyncio.timeout(timeout):
        return await awaitable


OFFLOAD_THREAD_NAME = "Dask-Offload"

# The state of this module: the executor of the process, made by the first `offload` and replaced
# by None on shutdown and in a forked child (where its thread does not run).  Guarded by the lock.
_offload_executor: ThreadPoolExecutor | None = None
_offload_lock = threading.Lock()


def _get_offload_executor() -> ThreadPoolExecutor:
    global _offload_executor
    with _offload_lock:
        if _offload_executor is None:
            _offload_executor = ThreadPoolExecutor(
                max_workers=1, thread_name_prefix=OFFLOAD_THREAD_NAME
            )
        return _offload_executor


async def offload(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Result of ``func(*args, **kwargs)``, run in this process' one offload thread.

    It sees the caller's context variables.  There is one thread so that offloaded work neither
    reorders nor competes for the GIL with itself.  A caller that is cancelled stops waiting; a
    function that already runs is not interrupted.
    """
    call = functools.partial(contextvars.copy_context().run, func, *args, **kwargs)
    return cast(T, await asyncio.get_running_loop().run_in_executor(_get_offload_executor(), call))


def shutdown_offload() -> None:
    """End the offload thread after the work that it has; the next `offload` starts a new one."""
    global _offload_executor
    with _offload_lock:
        executor, _offload_executor = _offload_executor, None
    if executor is not None:
        executor.shutdown(wait=True)


def _forget_offload_after_fork() -> None:
    global _offload_executor, _offload_lock
    _offload_lock = threading.Lock()
    _offload_executor = None


os.register_at_fork(after_in_child=_forget_offload_after_fork)
