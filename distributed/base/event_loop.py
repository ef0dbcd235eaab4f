"""Functions for code on an event loop: run work in the offload thread, wait with a timeout."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import ParamSpec, TypeVar

from tornado.ioloop import IOLoop

from distributed.base import metering

__all__ = [
    "OFFLOAD_THREAD_NAME",
    "AsyncTaskGroupClosedError",
    "asyncio_loop_of",
    "offload",
    "shutdown_offload",
    "wait_for",
]

P = ParamSpec("P")
T = TypeVar("T")


class AsyncTaskGroupClosedError(RuntimeError):
    """A task was added to a group that is closed."""


def asyncio_loop_of(io_loop: IOLoop) -> asyncio.AbstractEventLoop:
    """Return the asyncio event loop below a Tornado loop.

    Tornado's annotations declare ``asyncio_loop`` only on a subclass of `IOLoop`.
    """
    loop: asyncio.AbstractEventLoop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    return loop


async def wait_for(awaitable: Awaitable[T], timeout: float | None) -> T:
    """Wait for *awaitable* and return its result; cancel it after *timeout* seconds (None: never).

    Unlike :func:`asyncio.wait_for` before Python 3.12, this never loses a cancellation of the
    caller that arrives together with the result, and does not create a task.

    Raises
    ------
    TimeoutError
        If *timeout* has passed.
    """
    async with asyncio.timeout(timeout):
        return await awaitable


OFFLOAD_THREAD_NAME = "Dask-Offload"

# The executor of this process, created by the first `offload`.  None before that, after
# `shutdown_offload`, and in a forked child, where the parent's thread does not run.
_offload_executor: ThreadPoolExecutor | None = None
# Guards `_offload_executor`.
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
    """Call ``func(*args, **kwargs)`` in the offload thread of this process and return the result.

    The function sees the caller's context variables.  There is only one thread, so that offloaded
    calls stay in order and do not compete with each other for the GIL.  Cancelling the caller ends
    its wait but does not interrupt a function that is running.

    The time is measured as "offload", without that of the function's own measurements.
    """
    with metering.measure("offload") if metering.is_metered() else nullcontext():
        # Copied inside of the measurement, which has to see those of the function.
        call = functools.partial(contextvars.copy_context().run, func, *args, **kwargs)
        # No variable refers to the future: it would form a cycle with an error and its traceback,
        # which has this frame, so memory of a refused message would stay until a collection.
        return await asyncio.get_running_loop().run_in_executor(_get_offload_executor(), call)


def shutdown_offload() -> None:
    """End the offload thread after its pending calls; the next `offload` starts a new one."""
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
