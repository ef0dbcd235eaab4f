"""Functions for code on an event loop: run work in an offload thread, wait with a timeout."""

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
    "EXPENSIVE_THREAD_NAME",
    "OFFLOAD_THREAD_NAME",
    "AsyncTaskGroupClosedError",
    "asyncio_loop_of",
    "offload",
    "offload_expensive",
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


#: How the names of both threads begin.
OFFLOAD_THREAD_NAME = "Dask-Offload"
#: How the name of the thread of `offload_expensive` begins.
EXPENSIVE_THREAD_NAME = "Dask-Offload-Expensive"

# The executors of this process, by the names of their threads; each is created by the first call
# that needs it.  Empty before that, after `shutdown_offload`, and in a forked child, where the
# parent's threads do not run.
_executors: dict[str, ThreadPoolExecutor] = {}
# Guards `_executors`.
_offload_lock = threading.Lock()


def _get_executor(name: str) -> ThreadPoolExecutor:
    with _offload_lock:
        executor = _executors.get(name)
        if executor is None:
            executor = _executors[name] = ThreadPoolExecutor(1, thread_name_prefix=name)
        return executor


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
        executor = _get_executor(OFFLOAD_THREAD_NAME)
        return await asyncio.get_running_loop().run_in_executor(executor, call)


async def offload_expensive(func: Callable[[], T], /) -> T:
    """Call *func* in a second thread, where calls of `offload` do not wait for it.

    For work that takes much longer than an honest peer would cause.  It is measured like that of
    `offload`.
    """
    with metering.measure("offload") if metering.is_metered() else nullcontext():
        call = functools.partial(contextvars.copy_context().run, func)
        executor = _get_executor(EXPENSIVE_THREAD_NAME)
        return await asyncio.get_running_loop().run_in_executor(executor, call)


def shutdown_offload() -> None:
    """End the offload threads after their pending calls; the next call starts a new one."""
    with _offload_lock:
        executors = list(_executors.values())
        _executors.clear()
    for executor in executors:
        executor.shutdown(wait=True)


def _forget_offload_after_fork() -> None:
    global _offload_lock
    _offload_lock = threading.Lock()
    _executors.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_offload_after_fork)
