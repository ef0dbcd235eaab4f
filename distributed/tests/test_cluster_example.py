"""The cluster of ``examples/cluster`` works as ``docs/explanation/cluster.rst`` says."""

from __future__ import annotations

import asyncio
import operator
import os
import pkgutil
import re
import signal
import subprocess
import sys
import traceback

import pytest

from distributed.base import config
from distributed.core import Status, rpc
from distributed.tests.clusters import (
    ENVIRONMENT,
    EXAMPLES,
    cluster,
    divide_one_by,
    program,
    workers_come,
)
from distributed.tests.environments import _or_skip, run_in
from distributed.utils_test import async_poll_for, gen_test, tls_security

from cluster import Client, KilledWorker, LostData, Nanny, Scheduler, Worker  # isort: skip
from cluster.state import ClusterState  # isort: skip

PEM = tls_security().tls_ca_file


class WhereUnpickled:
    """An object that is unpickled as the id of the process that unpickles it."""

    def __reduce__(self):
        return os.getpid, ()


def test_the_example_has_less_than_700_lines():
    files = [path for path in (EXAMPLES / "cluster").rglob("*") if path.suffix != ".pyc"]
    assert sum(len(path.read_text().splitlines()) for path in files if path.is_file()) < 700


async def all_tasks_are_forgotten(scheduler):
    await async_poll_for(lambda: not scheduler.state.tasks, timeout=10)


@pytest.fixture
def pipe(tmp_path):
    """A named pipe: a task that reads it blocks until a test writes to it."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


async def write_to(pipe, text):
    await asyncio.to_thread(pipe.write_text, text)


@gen_test()
async def test_awaiting_a_submitted_task_returns_its_result():
    async with cluster(1) as (_, client):
        assert await client.submit(operator.add, 1, 2) == 3
        assert await client.submit(int, "11", base=2) == 3


@gen_test()
async def test_the_results_of_map_are_gathered_in_nested_containers():
    async with cluster(1) as (_, client):
        one, two = client.map(operator.add, [0, 1], [1, 1])
        assert await client.gather({"a": [one, (two,)], "b": 3}) == {"a": [1, (2,)], "b": 3}


@gen_test()
async def test_scattered_data_is_spread_over_the_workers_and_can_be_input_of_tasks():
    async with cluster(2) as (scheduler, client):
        futures = await client.scatter([[1, 2], [3]])
        assert await client.submit(operator.add, *futures) == [1, 2, 3]
        assert await client.gather(futures) == [[1, 2], [3]]
        holders = scheduler.state.holders([future.key for future in futures])
        assert set(holders.values()) == scheduler.state.workers.keys()


@gen_test()
async def test_scatter_without_workers_is_an_error():
    async with cluster(0) as (_, client):
        with pytest.raises(RuntimeError, match="has no workers"):
            await client.scatter([1])


@gen_test()
async def test_inputs_are_sent_from_worker_to_worker_and_not_through_the_scheduler():
    def make():
        return os.getpid(), b"x" * 10_000_000

    def use(*inputs):
        return {pid for pid, _ in inputs}, sum(len(data) for _, data in inputs)

    async with cluster(2) as (scheduler, client):
        a, b = client.submit(make), client.submit(make)
        pids, total = await client.submit(use, a, b)
        assert len(pids) == 2
        assert total == 20_000_000
        assert sum(stream.byte_count for stream in scheduler.streams.values()) < 100_000


@gen_test()
async def test_the_scheduler_unpickles_nothing():
    async with cluster(1) as (scheduler, client):
        worker = scheduler.nannies[0].child.pid
        marker = WhereUnpickled()
        assert await client.submit(lambda pid: pid, marker) == worker
        assert await client.gather(await client.scatter([marker])) == [worker]
        assert worker != os.getpid()


@gen_test()
async def test_an_error_is_raised_at_the_client_with_type_message_and_remote_traceback():
    async with cluster(1) as (_, client):
        with pytest.raises(ZeroDivisionError, match="division by zero") as info:
            await client.submit(divide_one_by, 0)
        assert str(info.value) == "division by zero"
        # The remote traceback: frames with tblib, and a note without it.
        assert "return 1 / x" in "".join(traceback.format_exception(info.value))


@pytest.mark.parametrize("kind", [SystemExit, StopIteration, KeyboardInterrupt])
@gen_test()
async def test_an_exception_that_would_end_a_thread_or_process_ends_only_its_task(kind):
    def fail():
        raise kind("reason")

    async with cluster(1) as (scheduler, client):
        with pytest.raises(RuntimeError, match=kind.__name__):
            await client.submit(fail)
        assert await client.submit(abs, -1) == 1
        assert scheduler.nannies[0].child.restarts == 0


@gen_test()
async def test_an_error_is_raised_for_all_dependents_of_the_task():
    async with cluster(1) as (_, client):
        failing = client.submit(operator.truediv, 1, 0)
        with pytest.raises(ZeroDivisionError):
            await client.submit(operator.add, client.submit(operator.add, failing, 1), 1)


@gen_test()
async def test_submit_raises_an_error_for_arguments_that_cannot_be_pickled():
    async with cluster(1) as (_, client):
        with pytest.raises(TypeError):
            client.submit(len, (item for item in ()))
        assert await client.submit(abs, -1) == 1


@gen_test()
async def test_arguments_that_cannot_be_unpickled_fail_only_their_task():
    class Unreadable:
        def __reduce__(self):
            return operator.truediv, (1, 0)

    async with cluster(1) as (_, client):
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            await client.submit(len, Unreadable())
        assert await client.submit(abs, -1) == 1


@gen_test()
async def test_a_result_is_forgotten_with_its_future():
    async with cluster(1) as (scheduler, client):
        future = client.submit(abs, -1)
        await future
        del future
        await all_tasks_are_forgotten(scheduler)
        assert not any(worker.running for worker in scheduler.state.workers.values())


@gen_test()
async def test_a_cancelled_task_and_its_dependents_are_given_up(pipe):
    async with cluster(1) as (scheduler, client):
        blocked = client.submit(lambda path: path.read_text(), pipe)
        dependent = client.submit(len, blocked)
        await async_poll_for(lambda: scheduler.state.tasks, timeout=10)
        blocked.cancel()
        for future in (blocked, dependent):
            with pytest.raises(asyncio.CancelledError):
                await future
        await all_tasks_are_forgotten(scheduler)
        await write_to(pipe, "")
        assert await client.submit(abs, -1) == 1


@gen_test()
async def test_a_task_that_one_client_cancels_is_computed_for_another():
    async with cluster(1) as (scheduler, client), Client(scheduler.address) as other:
        mine, theirs = (c.submit(abs, -1, key="same") for c in (client, other))
        await mine
        mine.cancel()
        assert await theirs == 1


@gen_test()
async def test_a_killed_worker_is_restarted_and_its_results_are_computed_again():
    async with cluster(1) as (scheduler, client):
        future = client.submit(os.getpid)
        first = await future
        os.kill(first, signal.SIGKILL)
        await async_poll_for(lambda: scheduler.nannies[0].child.restarts == 1, timeout=10)
        await workers_come(scheduler, 1)
        second = await client.submit(os.getpid)
        assert second != first
        assert await future == second


@gen_test()
async def test_released_inputs_are_computed_again_if_a_result_is_lost():
    async with cluster(1) as (_, client):
        future = client.submit(operator.add, client.submit(abs, -1), client.submit(abs, -2))
        assert await future == 3
        os.kill(await client.submit(os.getpid), signal.SIGKILL)
        assert await client.submit(operator.add, future, 1) == 4


@gen_test()
async def test_the_loss_of_scattered_data_is_an_error():
    async with cluster(1) as (_, client):
        (data,) = await client.scatter([1])
        os.kill(await client.submit(os.getpid), signal.SIGKILL)
        await async_poll_for(lambda: data.status == "erred", timeout=10)
        with pytest.raises(LostData, match="it was scattered"):
            await data


@gen_test()
async def test_a_task_that_kills_its_workers_is_given_up():
    async with cluster(1) as (_, client):
        future = client.submit(lambda: os.kill(os.getpid(), signal.SIGKILL), key="deadly")
        with pytest.raises(KilledWorker, match="4 workers died while they had 'deadly'"):
            await future
        assert await client.submit(abs, -1) == 1


@gen_test()
async def test_a_worker_without_heartbeats_counts_as_lost():
    async with (
        cluster(1, worker_ttl="2s") as (scheduler, client),
        program("worker", scheduler.address, "--nthreads=1") as frozen,
    ):
        await workers_come(scheduler, 2)
        frozen.send_signal(signal.SIGSTOP)
        assert await client.gather(client.map(abs, range(10))) == list(range(10))
        await workers_come(scheduler, 1)
        frozen.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(frozen.wait, 10) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the script reads /proc")
def test_the_script_measures_tiny_tasks():
    command = [sys.executable, str(EXAMPLES / "tiny_tasks.py"), "20"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"20 tasks: \S+ s, \d+ µs of CPU time each", line) for line in lines)


def workers_of(state, *keys):
    for key in keys:
        state.submit("client", key, b"", [], False)
    return {message["key"]: to for to, message in state.settle() if message["op"] == "compute"}


@pytest.fixture
def state():
    state = ClusterState()
    state.add_worker("a", 1)
    state.add_worker("b", 1)
    return state


def test_the_outcome_of_an_earlier_attempt_is_ignored(state):
    (holder,) = workers_of(state, "f-1").values()
    stale = state.tasks["f-1"].attempt
    state.remove_worker(holder)
    state.add_worker(holder, 1)
    state.settle()
    state.ended(holder, "f-1", stale, nbytes=1, duration=0.1)
    state.settle()
    assert state.tasks["f-1"].status() == "pending"
    assert state.tasks["f-1"].attempt > stale


def test_tasks_are_not_blamed_for_a_worker_that_closes(state):
    for _ in range(10):
        (holder,) = {*workers_of(state, "f-1").values()} or {state.tasks["f-1"].worker.address}
        state.remove_worker(holder, blame=False)
        state.add_worker(holder, 1)
        state.settle()
    assert state.tasks["f-1"].status() == "pending"


def test_tasks_are_spread_over_equally_busy_workers(state):
    given = workers_of(state, "f-1", "f-2", "f-3", "f-4")
    assert sorted(given.values()) == ["a", "a", "b", "b"]


def test_a_task_goes_to_the_worker_that_has_less_to_do(state):
    state.durations |= {"slow": 10.0, "quick": 0.1}
    given = workers_of(state, "slow-1", "quick-1", "quick-2")
    assert given["quick-1"] == given["quick-2"] != given["slow-1"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_task_goes_where_its_inputs_are(state, index):
    given = workers_of(state, "f-1", "f-2")
    key, holder = list(given.items())[index]
    for name, worker in given.items():
        attempt, nbytes = state.tasks[name].attempt, 10**9 if name == key else 1
        state.ended(worker, name, attempt, nbytes=nbytes, duration=0.1)
    state.settle()
    state.submit("client", "g-1", b"", [key], False)
    ((to, message),) = [(to, m) for to, m in state.settle() if m["op"] == "compute"]
    assert to == holder
    assert message["holders"] == {key: holder}


def test_tasks_wait_at_the_scheduler_while_all_workers_are_saturated(state):
    assert len(workers_of(state, *(f"f-{i}" for i in range(10)))) == 4
    assert sum(task.worker is None for task in state.tasks.values()) == 6


@gen_test()
async def test_a_worker_that_joins_later_gets_waiting_tasks(pipe):
    async with cluster(1) as (scheduler, client):
        blocked = client.map(lambda path: path.read_text(), [pipe] * 2)
        others = client.map(abs, range(10))
        async with program("worker", scheduler.address, "--nthreads=1"):
            assert await client.gather(others) == list(range(10))
        for future in blocked:
            future.cancel()
        await write_to(pipe, "")


@gen_test()
async def test_the_tasks_of_a_terminated_worker_run_on_others_and_are_not_blamed(pipe):
    async with cluster(0) as (scheduler, client):
        async with program("worker", scheduler.address, "--nthreads=1") as leaving:
            finished = client.map(abs, range(5))
            assert await client.gather(finished) == list(range(5))
            running = client.submit(lambda path: path.read_text(), pipe)
            await async_poll_for(lambda: any(t.attempt for t in scheduler.state.tasks.values()))
            leaving.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(leaving.wait, 10) == 0
        await workers_come(scheduler, 0)
        assert not any(task.deaths for task in scheduler.state.tasks.values())
        async with program("worker", scheduler.address, "--nthreads=1"):
            await write_to(pipe, "done")
            assert await running == "done"
            assert await client.gather(finished) == list(range(5))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "unix://"])
@gen_test()
async def test_the_programs_run_as_documented_and_end_when_interrupted(address):
    async with program("scheduler", address) as scheduler:
        assert scheduler.address.startswith(address[:6])
        async with (
            program("nanny", scheduler.address) as nanny,
            program("worker", scheduler.address),
        ):
            async with Client(scheduler.address) as client:
                assert await client.submit(operator.add, 1, 2) == 3
            nanny.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(nanny.wait, 10) == 0
        scheduler.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(scheduler.wait, 10) == 0


@gen_test()
async def test_a_scheduler_that_closes_ends_its_workers_nannies_and_clients():
    async with Scheduler("tcp://127.0.0.1:0") as scheduler, Nanny(scheduler.address) as nanny:
        await workers_come(scheduler, 1)
        async with Client(scheduler.address) as client:
            future = client.submit(input)
            await scheduler.close()
            await nanny.finished()
            await client.finished()
            assert nanny.child.restarts == 0
            with pytest.raises(OSError, match="is gone"):
                await future


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@gen_test()
async def test_a_worker_ends_with_its_nanny_even_if_that_is_killed(how):
    async with cluster(0) as (scheduler, _), program("nanny", scheduler.address) as nanny:
        await workers_come(scheduler, 1)
        async with rpc(nanny.address) as remote:
            pid = (await remote.worker())["pid"]
        nanny.send_signal(how)
        await workers_come(scheduler, 0)
        await async_poll_for(lambda: not os.path.exists(f"/proc/{pid}/fd/0"))


@gen_test()
async def test_the_processes_that_tasks_have_started_end_with_their_worker():
    def start_process():
        return subprocess.Popen(["sleep", "3600"]).pid

    async with cluster(1) as (_, client):
        pid = await client.submit(start_process)
        os.kill(await client.submit(os.getpid), signal.SIGKILL)
        await async_poll_for(lambda: not os.path.exists(f"/proc/{pid}/fd/0"))
        last = await client.submit(start_process)
    await async_poll_for(lambda: not os.path.exists(f"/proc/{last}/fd/0"))


@gen_test()
async def test_a_function_may_have_any_parameters():
    async with cluster(1) as (_, client):
        assert await client.submit(dict, function=3, self=4) == {"function": 3, "self": 4}


@pytest.mark.parametrize("key", [5, 0, b"x", ("x", 1)])
@gen_test()
async def test_submit_raises_an_error_for_a_key_that_is_not_a_string(key):
    async with cluster(1) as (_, client):
        with pytest.raises(TypeError, match="a key must be a string"):
            client.submit(abs, -1, key=key)
        assert await client.submit(abs, -1) == 1


@pytest.mark.parametrize("key", [5, None, b"x", ("x", 1), ["x"]])
def test_the_state_refuses_a_key_that_is_not_a_string(state, key):
    with pytest.raises(TypeError):
        state.submit("client", key, b"", [], False)
    assert len(workers_of(state, "f-1")) == 1


@gen_test()
async def test_a_result_that_cannot_be_pickled_fails_tasks_that_need_it_on_another_worker():
    async with cluster(2) as (_, client):
        iterators = [client.submit(lambda: (item for item in ())) for _ in range(2)]
        with pytest.raises(TypeError, match="pickle"):
            await client.submit(lambda *inputs: len(inputs), *iterators)
        assert await client.submit(abs, -1) == 1


@gen_test()
async def test_a_result_whose_size_cannot_be_determined_is_returned():
    class Strange:
        @property
        def nbytes(self):
            raise ValueError("no size")

    async with cluster(1) as (_, client):
        result = await client.submit(Strange)
        with pytest.raises(ValueError, match="no size"):
            result.nbytes  # noqa: B018


class Unreachable(Worker):
    """A worker that breaks the connection of the first requests for its results."""

    def __init__(self, scheduler, failures):
        super().__init__(scheduler, nthreads=1)
        self.failures = failures
        self.computed = 0

    def get_data(self, comm, keys):
        self.failures -= 1
        if self.failures >= 0:
            comm.abort()
            return Status.dont_reply
        return super().get_data(keys)

    def compute(self, **message):
        self.computed += 1
        super().compute(**message)


@gen_test()
async def test_scattered_data_survives_failed_fetches(caplog):
    async with cluster(0) as (scheduler, client), Unreachable(scheduler.address, 3) as worker:
        (data,) = await client.scatter([1])
        assert await asyncio.gather(*[client.gather(data) for _ in range(3)]) == [1] * 3
        assert worker.computed == 1
    assert "Cannot get results" in caplog.text


@gen_test()
async def test_a_result_that_can_never_be_fetched_is_an_error():
    async with cluster(0) as (scheduler, client), Unreachable(scheduler.address, 10**6) as worker:
        with pytest.raises(LostData, match="'big' cannot be fetched: 4 failures"):
            await client.submit(abs, -1, key="big")
        assert worker.computed == 4
        (data,) = await client.scatter([1])
        with pytest.raises(LostData, match="cannot be fetched: 4 failures"):
            await data
        assert worker.computed == 5


@gen_test()
async def test_an_input_that_can_never_be_fetched_fails_the_task_that_needs_it():
    async with (
        cluster(0) as (scheduler, client),
        Unreachable(scheduler.address, 10**6),
        Unreachable(scheduler.address, 10**6),
    ):
        inputs = await client.scatter([1, 2])
        with pytest.raises(LostData, match="cannot be fetched"):
            await client.submit(operator.add, *inputs)


def scattered_on_a_with_consumers_on_b(state, number):
    """Return the worker that has scattered data, and attempts of tasks that will fetch it."""
    given = workers_of(state, "data-1")
    (holder,) = given.values()
    attempt = state.tasks["data-1"].attempt
    state.tasks["data-1"].scattered = True
    state.ended(holder, "data-1", attempt, nbytes=1, duration=0.1)
    for i in range(number):
        state.submit("client", f"use-{i}", b"", ["data-1"], False)
    state.settle()
    attempts = [(f"use-{i}", state.tasks[f"use-{i}"].attempt) for i in range(number)]
    return holder, attempts


def test_concurrent_failures_to_fetch_a_result_count_as_one(state):
    holder, attempts = scattered_on_a_with_consumers_on_b(state, 4)
    for key, attempt in attempts:
        address = state.tasks[key].worker.address
        state.ended(address, key, attempt, missing={"data-1": holder})
    state.settle()
    assert state.tasks["data-1"].status() == "finished"
    assert state.tasks["data-1"].failures == 1
    assert all(state.tasks[key].attempt > attempt for key, attempt in attempts)


def test_a_successful_fetch_resets_the_count_of_failures(state):
    holder, [(key, attempt)] = scattered_on_a_with_consumers_on_b(state, 1)
    state.ended(state.tasks[key].worker.address, key, attempt, missing={"data-1": holder})
    state.settle()
    task = state.tasks[key]
    task.worker = next(worker for worker in state.workers.values() if worker.address != holder)
    task.worker.running[task] = 0
    state.ended(task.worker.address, key, task.attempt, nbytes=1, duration=0.1)
    assert state.tasks["data-1"].failures == 0


@gen_test()
async def test_a_key_can_be_used_for_another_call_once_its_future_is_gone():
    async with cluster(1) as (_, client):
        future = client.submit(operator.truediv, 1, 0, key="y")
        with pytest.raises(ZeroDivisionError):
            await future
        del future
        future = client.submit(abs, -2, key="y")
        assert await future == 2
        for number in range(20):
            future = client.submit(operator.truediv, 1, number % 2, key="z")
            del future
            future = client.submit(abs, -number, key="z")
            assert await future == number
            del future


@gen_test()
async def test_a_key_can_be_used_for_another_call_after_an_error():
    async with cluster(1) as (_, client):
        failed = client.submit(operator.truediv, 1, 0, key="y")
        with pytest.raises(ZeroDivisionError):
            await failed
        assert await client.submit(abs, -2, key="y") == 2
        with pytest.raises(ZeroDivisionError):
            await failed


@gen_test()
async def test_a_key_can_be_used_for_another_call_after_cancellation():
    async with cluster(1) as (scheduler, client):
        cancelled = client.submit(abs, -1, key="y")
        dependent = client.submit(abs, cancelled, key="z")
        cancelled.cancel()
        future = client.submit(abs, -2, key="y")
        assert await future == 2
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(asyncio.CancelledError):
            await dependent
        del cancelled
        dependent = client.submit(abs, -3, key="z")
        assert await client.gather([future, dependent]) == [2, 3]
        del future, dependent
        await all_tasks_are_forgotten(scheduler)


@gen_test()
async def test_a_cancelled_task_that_has_not_started_does_not_run(pipe, tmp_path):
    async with cluster(0) as (scheduler, client), Worker(scheduler.address, nthreads=1) as worker:
        blocked = client.submit(lambda path: path.read_text(), pipe)
        waiting = client.submit(lambda path: path.touch(), tmp_path / "touched")
        await async_poll_for(lambda: len(worker.attempts) == 2, timeout=10)
        waiting.cancel()
        await async_poll_for(lambda: waiting.key not in worker.attempts, timeout=10)
        await write_to(pipe, "done")
        assert await client.gather([blocked, client.submit(abs, -1)]) == ["done", 1]
        assert not (tmp_path / "touched").exists()


class Imported:
    """An object that is unpickled as the object of that name, after its module is imported."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return pkgutil.resolve_name, (self.name,)


@gen_test()
async def test_concurrent_tasks_wait_until_the_package_of_their_function_is_imported(
    tmp_path, monkeypatch
):
    # As a package whose module "core" has functions that need what "backends" registers.
    package = tmp_path / "halfway"
    package.mkdir()
    (package / "__init__.py").write_text("from halfway import core, backends")
    (package / "backends.py").write_text(
        "from halfway import core\ncore.called.wait(0.3)\ncore.backends.append(0)"
    )
    (package / "core.py").write_text(
        "import threading\ncalled, backends = threading.Event(), []\n"
        "def call():\n    called.set()\n    return len(backends)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    async with cluster(0) as (scheduler, client), Worker(scheduler.address, nthreads=2):
        calls = [client.submit(Imported("halfway.core:call"), key=key) for key in "ab"]
        assert await client.gather(calls) == [1, 1]
    for module in ["halfway", "halfway.core", "halfway.backends"]:
        del sys.modules[module]


def test_tasks_that_have_not_started_are_not_blamed(state):
    workers_of(state, "f-1", "f-2", "f-3", "f-4")
    (first, second) = state.workers["a"].running
    state.remove_worker("a")
    assert (first.deaths, second.deaths) == (1, 0)


@gen_test()
async def test_a_task_that_exits_its_worker_with_0_is_given_up():
    async with cluster(1) as (scheduler, client):
        with pytest.raises(KilledWorker):
            await client.submit(os._exit, 0)
        assert await client.submit(abs, -1) == 1
        assert scheduler.nannies[0].child.restarts == 4


@gen_test()
async def test_a_nanny_ends_when_its_worker_is_terminated():
    async with cluster(1) as (scheduler, _):
        os.kill(scheduler.nannies[0].child.pid, signal.SIGTERM)
        await scheduler.nannies[0].finished()
        assert scheduler.nannies[0].child.restarts == 0


@gen_test(config={"distributed.comm.batched.max-buffer-size": "1MB"})
async def test_scatter_waits_while_the_send_buffer_is_full():
    async with cluster(2) as (_, client):
        futures = await client.scatter(bytes([i]) * 200_000 for i in range(50))
        assert [data[0] for data in await client.gather(futures)] == list(range(50))


@gen_test()
async def test_a_peer_that_does_not_read_is_dropped_with_a_warning(caplog):
    def send(*messages):
        raise BufferError("the buffer is full")

    async with cluster(1) as (scheduler, client):
        scheduler.streams[client.id].send = send
        future = client.submit(abs, -1)
        await client.finished()
        assert client.id not in scheduler.streams
        with pytest.raises(OSError, match="is gone"):
            await future
    dropped = [r for r in caplog.records if "the buffer is full" in r.getMessage()]
    assert {record.levelname for record in dropped} == {"WARNING"}


@gen_test()
async def test_the_output_of_tasks_is_flushed_when_the_worker_ends(monkeypatch):
    monkeypatch.delitem(ENVIRONMENT, "PYTHONUNBUFFERED", raising=False)
    monkeypatch.setitem(ENVIRONMENT, "DASK_LOGGING__DISTRIBUTED", "warning")
    async with (
        cluster(0) as (scheduler, client),
        program("worker", scheduler.address) as worker,
    ):
        await client.submit(print, "output of a task", end="")
        worker.send_signal(signal.SIGTERM)
        output = await asyncio.to_thread(worker.stdout.read)
    assert output.decode() == "output of a task"


def test_durations_are_recorded_by_the_function_name_in_the_key(state):
    for key in ("f-1", "f-2", "g", "h"):
        (holder,) = workers_of(state, key).values()
        state.ended(holder, key, state.tasks[key].attempt, nbytes=1, duration=0.5)
        state.settle()
    assert state.durations == {"f": 0.5}


@gen_test()
async def test_scattered_data_has_a_duration_of_its_own():
    async with cluster(1) as (scheduler, client):
        await client.scatter([1, 2])
        assert scheduler.state.durations.keys() == {"scatter"}


@gen_test()
async def test_get_in_the_thread_of_the_event_loop_is_an_error():
    async with cluster(0) as (_, client):
        with pytest.raises(RuntimeError, match="another thread"):
            client.get({}, [])


def test_certificates_and_token_come_from_the_configuration(monkeypatch):
    comm = {"require-encryption": True, "auth.token": "a secret of thirty-two characters"}
    comm |= {"tls.ca-file": PEM}
    comm |= {f"tls.{role}.cert": PEM for role in ("client", "scheduler", "worker")}
    for key, value in comm.items():
        name = key.replace("-", "_").replace(".", "__").upper()
        monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__{name}", str(value))

    @gen_test(config={f"distributed.comm.{key}": value for key, value in comm.items()})
    async def run():
        async with cluster(2, address="tls://127.0.0.1:0") as (scheduler, client):
            assert await client.submit(sum, client.map(abs, range(10))) == 45
            other = config.set(
                {"distributed.comm.auth.token": "another, but just as long a secret"}
            )
            with other, pytest.raises(RuntimeError, match="failed to start"):
                await Client(scheduler.address)

    run()


def test_dask_array_computes_on_it():
    python = _or_skip("dask-array", ["dask[array]"], project=True)
    code = """
        import asyncio, concurrent.futures, numpy, time
        import dask, dask.array
        from cluster import Client, Nanny, Scheduler

        async def main():
            async with Scheduler("tcp://127.0.0.1:0") as scheduler, Nanny(scheduler.address):
                async with Nanny(scheduler.address), Client(scheduler.address) as client:
                    await asyncio.to_thread(compute, client.get)

        def slowly(number):
            time.sleep(0.2)
            return number

        def compute(get):
            x = dask.array.arange(10_000, chunks=1000).reshape(100, 100).rechunk(25)
            n = numpy.arange(10_000).reshape(100, 100)
            assert (x + x.T).sum().compute(scheduler=get) == (n + n.T).sum()
            assert (x.dot(x)).compute(scheduler=get).tolist() == n.dot(n).tolist()
            lazy = dask.delayed(sum)([dask.delayed(abs)(-i) for i in range(10)])
            assert lazy.compute(scheduler=get) == 45
            a, b = dask.compute(x.mean(), x.std(), scheduler=get)
            assert a == n.mean() and abs(b - n.std()) < 1e-9
            assert get({"x": 1, "y": (abs, -2), "z": (sum, ["x", "y"])}, [["z"], "x"]) == [[3], 1]
            assert get({1: (abs, -5), "1": (abs, -6)}, [1, "1"]) == [5, 6]
            graphs = [{"x": (slowly, number)} for number in range(4)]
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                assert list(pool.map(get, graphs, ["x"] * 4)) == list(range(4))
            print("computed")

        asyncio.run(main())
    """
    env = {"PYTHONPATH": str(EXAMPLES), "DASK_LOGGING__DISTRIBUTED": "warning"}
    done = run_in(python, code, env=env)
    assert "computed" in done.stdout
    assert done.stderr == ""
