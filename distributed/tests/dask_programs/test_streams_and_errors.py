"""What the streams, errors and log lines of the core mean for roles and for their users."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import traceback

import pytest

import distributed
from distributed import Client, Nanny, Scheduler, Worker, wait
from distributed.core import AsyncTaskGroup

PACKAGE = os.path.dirname(distributed.__file__)
ON_THIS_CORE = hasattr(distributed.core, "__core_version__")


def divide(x, y):
    return x / y


async def fail_in_a_coroutine():
    await asyncio.sleep(0)
    divide(1, 0)


def test_a_client_subscribes_to_a_topic(client):
    # The message has the key "client", and so has `extra` of the client's stream.
    events = queue.Queue()
    client.subscribe_topic("news", lambda event: events.put(event[1]))
    # The subscription travels on the client's stream, the event in a call: it may be first.
    while events.empty():
        client.log_event("news", {"x": 1})
    assert events.get(timeout=30) == {"x": 1}
    client.unsubscribe_topic("news")


def test_futures_that_are_released_leave_the_scheduler(client):
    future = client.submit(divide, 6, 2, pure=False)
    assert future.result(timeout=30) == 3
    key = future.key
    del future

    def is_there(key, dask_scheduler):
        return key in dask_scheduler.tasks

    async def released():
        while await client.run_on_scheduler(is_there, key):
            await asyncio.sleep(0.01)

    client.sync(asyncio.wait_for, released(), 30)


def test_a_failing_stream_handler_removes_the_worker_and_its_tasks_run_elsewhere():
    def fail(**kwargs):
        raise ZeroDivisionError("no luck")

    async def main():
        async with (
            Scheduler(dashboard_address=":0", port=0) as scheduler,
            Worker(scheduler.address, name="a") as a,
            Worker(scheduler.address, name="b") as b,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            futures = client.map(divide, range(20), [1] * 20, pure=False)
            await wait(futures, timeout=30)
            assert a.data
            scheduler.stream_handlers["long-running"] = fail
            a.batched_stream.send({"op": "long-running", "key": "x"})
            await asyncio.wait_for(a.finished(), 30)
            assert list(scheduler.workers) == [b.address]
            assert await client.gather(futures) == list(range(20))

    asyncio.run(main())


def test_a_file_that_cannot_be_imported_is_an_error(client, tmp_path):
    path = tmp_path / "broken_module.py"
    path.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        client.upload_file(str(path))


def test_a_result_of_run_that_cannot_be_serialized_is_a_type_error(client):
    with pytest.raises(TypeError, match="Could not serialize object of type lock"):
        client.run(threading.Lock)
    assert set(client.run(divide, 4, 2).values()) == {2}


def test_an_error_of_run_and_of_run_on_scheduler_is_raised_here(client):
    with pytest.raises(ZeroDivisionError):
        client.run(divide, 1, 0)
    with pytest.raises(ZeroDivisionError):
        client.run_on_scheduler(divide, 1, 0)


@pytest.mark.skipif(not ON_THIS_CORE, reason="as released, it has frames of the core")
@pytest.mark.parametrize("f", [divide, fail_in_a_coroutine])
def test_a_remote_traceback_has_no_frame_of_the_core_and_of_roles(client, f):
    arguments = (1, 0) if f is divide else ()
    exc = client.submit(f, *arguments, pure=False).exception(timeout=30)
    tb = client.submit(f, *arguments, pure=False).traceback(timeout=30)
    assert isinstance(exc, ZeroDivisionError)
    names = [frame.filename for frame in traceback.extract_tb(tb)]
    assert names[-1] == __file__
    assert [name for name in names if name.startswith(PACKAGE) or "tornado" in name] == []


def test_a_worker_that_the_scheduler_refuses_has_failed():
    class Refused(Worker):
        async def start_unsafe(self):
            await self.close()
            raise ValueError("no luck")

    async def main():
        async with Scheduler(dashboard_address=":0", port=0) as scheduler:
            worker = Refused(scheduler.address)
            with pytest.raises(RuntimeError, match="Refused failed to start"):
                await worker
            assert worker.status.name == "failed"

    asyncio.run(main())


def test_streams_are_logged_by_distributed_core_at_level_info(caplog):
    async def main():
        async with (
            Scheduler(dashboard_address=":0", port=0) as scheduler,
            Worker(scheduler.address),
        ):
            pass

    with caplog.at_level(logging.INFO, "distributed.core"):
        asyncio.run(main())
    texts = [text for name, level, text in caplog.record_tuples if name == "distributed.core"]
    assert any(text.startswith("Starting established connection to tcp://") for text in texts)
    assert any(text.startswith("Received 'close-stream' from tcp://") for text in texts)


def test_a_nanny_catches_the_error_of_a_closed_group_of_tasks():
    async def main():
        async with Scheduler(dashboard_address=":0", port=0) as scheduler:
            nanny = Nanny(scheduler.address)
            module = __import__("distributed.nanny", fromlist=["nanny"])
            group = nanny._ongoing_background_tasks
            assert isinstance(group, AsyncTaskGroup)
            group.close()
            with pytest.raises(module.AsyncTaskGroupClosedError):
                group.call_soon(asyncio.sleep, 0)
            await nanny.close()

    asyncio.run(main())
