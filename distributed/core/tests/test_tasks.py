"""Groups of background tasks, and coroutines that a thread waits for."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import threading

import pytest
from tornado.ioloop import IOLoop

from distributed.core.tasks import AsyncTaskGroup, AsyncTaskGroupClosedError, wait_from_thread
from distributed.utils_test import captured_logger, gen_test


@gen_test()
async def test_call_soon_runs_a_coroutine_function_with_its_arguments():
    group = AsyncTaskGroup()
    done = asyncio.get_running_loop().create_future()

    async def task(a, *, b):
        done.set_result((a, b))

    group.call_soon(task, 1, b=2)
    assert await done == (1, 2)


@gen_test()
async def test_call_later_runs_after_the_delay():
    group = AsyncTaskGroup()
    order = []
    done = asyncio.Event()

    async def task(value):
        order.append(value)
        if len(order) == 3:
            done.set()

    group.call_later(0.1, task, "last")
    group.call_later(0.001, task, "second")
    group.call_soon(task, "first")
    await done.wait()
    assert order == ["first", "second", "last"]


@gen_test()
async def test_the_length_is_the_number_of_tasks_that_are_not_done():
    group = AsyncTaskGroup()
    release = asyncio.Event()
    assert len(group) == 0
    group.call_soon(release.wait)
    group.call_later(60, release.wait)
    assert len(group) == 2
    release.set()
    while len(group) > 1:
        await asyncio.sleep(0)
    await group.stop()
    assert len(group) == 0


@gen_test()
async def test_a_group_keeps_its_tasks_alive():
    group = AsyncTaskGroup()
    started = asyncio.Event()

    async def lonely_task():
        started.set()
        # The task and this future refer only to each other.
        await asyncio.get_running_loop().create_future()

    group.call_soon(lonely_task)
    await started.wait()
    gc.collect()
    assert any("lonely_task" in task.get_name() for task in asyncio.all_tasks())
    await group.stop()


@gen_test()
async def test_a_closed_group_refuses_tasks_without_calling_the_function():
    group = AsyncTaskGroup()
    calls = []

    async def task():
        calls.append(1)

    group.close()
    assert group.closed
    with pytest.raises(AsyncTaskGroupClosedError, match=r"the group is already closed: .*task"):
        group.call_soon(task)
    with pytest.raises(AsyncTaskGroupClosedError, match=r"the group is already closed: .*task"):
        group.call_later(0, task)
    assert not len(group)
    assert not calls


@gen_test()
async def test_close_lets_tasks_continue():
    group = AsyncTaskGroup()
    done = asyncio.Event()
    release = asyncio.Event()

    async def task():
        await release.wait()
        done.set()

    group.call_soon(task)
    group.close()
    release.set()
    await done.wait()


@gen_test()
async def test_stop_cancels_and_waits_until_tasks_have_cleaned_up():
    group = AsyncTaskGroup()
    started = asyncio.Event()
    cleaned_up = []

    async def task():
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            for step in range(3):
                await asyncio.sleep(0)
                cleaned_up.append(step)

    group.call_soon(task)
    await started.wait()
    await group.stop()
    assert cleaned_up == [0, 1, 2]
    assert group.closed
    assert len(group) == 0


@gen_test()
async def test_stop_cancels_delayed_tasks_without_calling_the_function():
    group = AsyncTaskGroup()
    calls = []

    async def task():
        calls.append(1)

    group.call_later(60, task)
    await group.stop()
    assert not calls
    assert len(group) == 0


@gen_test()
async def test_stop_does_not_cancel_the_task_that_calls_it():
    group = AsyncTaskGroup()
    result = asyncio.get_running_loop().create_future()

    async def stopper():
        await group.stop()
        await asyncio.sleep(0)
        result.set_result(len(group))

    group.call_soon(asyncio.sleep, 60)
    group.call_soon(stopper)
    assert await result == 1
    while len(group):
        await asyncio.sleep(0)


@gen_test()
async def test_a_task_cannot_start_another_task_while_the_group_stops():
    group = AsyncTaskGroup()
    started = asyncio.Event()
    errors = []

    async def task():
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            with pytest.raises(AsyncTaskGroupClosedError) as caught:
                group.call_soon(asyncio.sleep, 0)
            errors.append(caught.value)

    group.call_soon(task)
    await started.wait()
    await group.stop()
    assert len(errors) == 1


@gen_test()
async def test_stop_is_idempotent():
    group = AsyncTaskGroup()
    await group.stop()
    await group.stop()
    assert group.closed


@gen_test()
async def test_an_exception_is_logged_once_with_its_traceback():
    group = AsyncTaskGroup()

    async def failing_task():
        raise ValueError("a reason")

    with captured_logger("distributed.core", level=logging.ERROR) as log:
        group.call_soon(failing_task)
        while len(group):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
    text = log.getvalue()
    assert text.count("Unhandled exception in background") == 1
    assert "failing_task" in text
    assert "ValueError: a reason" in text


@gen_test()
async def test_a_cancellation_is_not_logged():
    group = AsyncTaskGroup()
    with captured_logger("distributed.core") as log:
        group.call_soon(asyncio.sleep, 60)
        await asyncio.sleep(0)
        await group.stop()
    assert log.getvalue() == ""


def test_a_closed_group_raises_the_error_that_roles_catch_by_its_faithful_name():
    # A Nanny of the original imports it from there.
    module = importlib.import_module("distributed._async_taskgroup")
    group = AsyncTaskGroup()
    group.close()
    with pytest.raises(module.AsyncTaskGroupClosedError):
        group.call_soon(asyncio.sleep, 0)


@gen_test()
async def test_a_plain_function_is_refused():
    group = AsyncTaskGroup()
    with pytest.raises(TypeError, match=r"a coroutine was expected, got 1 from .*lambda"):
        group.call_soon(lambda: 1)
    assert len(group) == 0


def test_call_soon_without_a_running_loop_is_an_error():
    group = AsyncTaskGroup()
    with pytest.raises(RuntimeError, match="no running event loop"):
        group.call_soon(asyncio.sleep, 0)
    assert len(group) == 0


@gen_test()
async def test_a_thread_waits_for_a_coroutine_of_the_loop():
    loop, thread = IOLoop.current(), threading.current_thread()

    async def add(x, *, y):
        await asyncio.sleep(0)
        return x + y, threading.current_thread()

    assert await asyncio.to_thread(wait_from_thread, loop, add, 1, y=2) == (3, thread)


@gen_test()
async def test_a_thread_gets_the_error_of_a_coroutine():
    async def fail():
        raise KeyError("in the loop")

    with pytest.raises(KeyError, match="in the loop"):
        await asyncio.to_thread(wait_from_thread, IOLoop.current(), fail)


@gen_test()
async def test_the_thread_of_the_loop_cannot_wait_for_itself():
    called = []

    async def never():
        called.append(1)

    with pytest.raises(RuntimeError, match=r"never.* would block the event loop"):
        wait_from_thread(IOLoop.current(), never)
    assert called == []


@gen_test()
async def test_the_thread_of_another_loop_may_wait():
    loop = IOLoop.current()

    async def seven():
        return 7

    async def elsewhere():
        return wait_from_thread(loop, seven)

    assert await asyncio.to_thread(asyncio.run, elsewhere()) == 7
