"""Waiting with a timeout, and the offload thread."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref

import pytest

from distributed.base.event_loop import (
    OFFLOAD_THREAD_NAME,
    offload,
    offload_expensive,
    shutdown_offload,
    wait_for,
)
from distributed.tests.environments import run_here


@pytest.mark.parametrize("timeout", [10, None])
def test_wait_for_returns_the_result(timeout):
    async def main():
        return await wait_for(asyncio.sleep(0, "result"), timeout)

    assert asyncio.run(main()) == "result"


def test_wait_for_cancels_the_awaitable_at_the_timeout():
    async def main():
        never = asyncio.get_running_loop().create_future()
        with pytest.raises(TimeoutError):
            await wait_for(never, 0.01)
        return never.cancelled()

    assert asyncio.run(main())


def test_wait_for_does_not_lose_a_cancellation_to_a_result():
    async def main():
        result = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(wait_for(result, 10))
        await asyncio.sleep(0)
        result.set_result("in time")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_offloaded_functions_run_in_one_thread():
    async def main():
        return {await offload(threading.current_thread) for _ in range(3)}

    (thread,) = asyncio.run(main())
    assert thread.name.startswith(OFFLOAD_THREAD_NAME)


def test_expensive_functions_run_in_a_second_thread_that_delays_no_others():
    async def main():
        release = threading.Event()
        expensive = asyncio.create_task(offload_expensive(release.wait))
        first = await offload(threading.current_thread)
        release.set()
        assert await expensive
        return first, {await offload_expensive(threading.current_thread) for _ in range(3)}

    first, (second,) = asyncio.run(main())
    assert first is not second
    assert second.name.startswith(OFFLOAD_THREAD_NAME)
    shutdown_offload()
    assert not first.is_alive()
    assert not second.is_alive()


def test_offload_passes_arguments_and_returns_the_result():
    assert asyncio.run(offload(sorted, [2, 1], reverse=True)) == [2, 1]


def test_offload_raises_the_error_of_the_function():
    async def main():
        with pytest.raises(ZeroDivisionError):
            await offload(lambda: 1 / 0)

    asyncio.run(main())


def test_an_error_of_an_offloaded_function_is_freed_without_a_collection():
    class Failure(Exception):
        pass

    def fail():
        raise Failure

    async def main():
        try:
            await offload(fail)
        except Failure as exc:
            error = weakref.ref(exc)
        # The thread forgets a call when it starts the next one.
        await offload(int)
        return error()

    gc.disable()
    try:
        assert asyncio.run(main()) is None
    finally:
        gc.enable()


def test_an_offloaded_function_sees_the_context_of_the_caller():
    variable = contextvars.ContextVar("variable", default="unset")

    async def main():
        variable.set("set by the caller")
        return await offload(variable.get)

    assert asyncio.run(main()) == "set by the caller"


def test_the_event_loop_runs_while_a_function_is_offloaded():
    async def main():
        release = threading.Event()
        work = asyncio.create_task(offload(release.wait, 10))
        await asyncio.sleep(0)
        release.set()
        return await work

    assert asyncio.run(main())


def test_offload_starts_a_new_thread_after_shutdown():
    async def main():
        before = await offload(threading.current_thread)
        shutdown_offload()
        assert not before.is_alive()
        return before is not await offload(threading.current_thread)

    assert asyncio.run(main())


def test_shutdown_without_a_thread_does_nothing():
    shutdown_offload()
    shutdown_offload()


def test_a_forked_child_starts_its_own_offload_thread():
    code = """
        import asyncio, os
        from distributed.utils import offload
        asyncio.run(offload(int))
        child = os.fork()
        if not child:
            os._exit(asyncio.run(offload(lambda: 7)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_here(code).stdout == "7\n"
