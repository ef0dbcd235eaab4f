"""This package in a cluster of the original, as a client, as a worker, and as a scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path

import cloudpickle
import pytest

from distributed import Server, Status, rpc
from distributed.comm import CommClosedError, connect, listen
from distributed.core import ConnectionPool
from distributed.protocol import to_serialize
from distributed.tests import interop_worker
from distributed.tests.environments import clean_environ, read_address, run_in
from distributed.tests.interop_worker import Guest
from distributed.utils_test import async_poll_for, gen_test, popen

#: A scheduler and its workers, of the original, in one process.
CLUSTER = """
import asyncio, logging, sys
from distributed import LocalCluster

async def main():
    logging.disable(logging.CRITICAL)  # the test reads one line: log lines would fill the pipe
    async with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1",
        dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0", asynchronous=True,
    ) as cluster:
        print(cluster.scheduler.address, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""

#: A worker of the original; its argument is the scheduler's address.
WORKER = """
import asyncio, sys
from distributed import Worker

async def main():
    async with Worker(sys.argv[1], nthreads=1, dashboard=False, host="127.0.0.1") as worker:
        await worker.finished()

asyncio.run(main())
"""

#: The beginning of a program that runs a client of the original.
CLIENT = """
import sys, warnings
from distributed import Client
warnings.simplefilter("ignore")
with Client(sys.argv[1]) as client:
"""


@contextlib.contextmanager
def running(python, argv):
    """Run a process during the block and yield its first line of output."""
    with popen(
        [str(python), *argv],
        capture_output=True,
        stdin=subprocess.PIPE,
        env=clean_environ(),
        cwd="/",
    ) as process:
        yield read_address(process.stdout)
        process.stdin.close()
        process.wait(timeout=30)


def run_client(python, address, code):
    body = "".join(f"    {line}\n" for line in code.strip().splitlines())
    return run_in(python, ["-c", CLIENT + body, address]).stdout


async def fetch(pool, address, keys):
    """Get data from a worker of the original, and confirm that it was received."""
    comm = await pool.connect(address)
    await comm.write({"op": "get_data", "keys": keys})
    answer = await comm.read()
    await comm.write("OK")
    pool.reuse(address, comm)
    return answer["data"]


@pytest.fixture(scope="module")
def scheduler(original_python):
    """The address of a scheduler of the original that has two workers."""
    with running(original_python, ["-c", CLUSTER]) as address:
        yield address


# The original's Scheduler and Workers are called


@gen_test()
async def test_identity_describes_the_scheduler_and_its_workers(scheduler):
    async with rpc(scheduler) as remote:
        identity = await remote.identity()
    assert identity["type"] == "Scheduler"
    assert identity["address"] == scheduler
    assert {worker["type"] for worker in identity["workers"].values()} == {"Worker"}


@gen_test()
async def test_data_is_scattered_found_and_gathered(scheduler):
    value = {"list": [1, {2}], "bytes": b"x" * 100_000}
    async with rpc(scheduler) as remote:
        keys = await remote.scatter(
            data={"k1": to_serialize(value)}, workers=None, client="a client", broadcast=False
        )
        assert keys == ("k1",)
        [worker] = (await remote.who_has(keys=["k1"]))["k1"]
        assert (await remote.has_what(workers=[worker]))[worker] == ("k1",)
        assert await remote.gather(keys=["k1"]) == {"status": "OK", "data": {"k1": value}}


@gen_test()
async def test_data_is_sent_to_a_worker_and_fetched_from_it(scheduler):
    async with ConnectionPool() as pool:
        worker = next(iter((await pool(scheduler).identity())["workers"]))
        answer = await pool(worker).update_data(data={"direct": to_serialize([1, 2])})
        assert answer["status"] == "OK"
        assert await fetch(pool, worker, ["direct"]) == {"direct": [1, 2]}


@gen_test()
async def test_functions_run_in_the_scheduler_and_in_workers(scheduler):
    def add(x, y):
        return x + y

    function, args = cloudpickle.dumps(add), cloudpickle.dumps((1, 2))
    async with ConnectionPool() as pool:
        remote = pool(scheduler)
        answer = await remote.run_function(function=function, args=args)
        assert answer == {"status": "OK", "result": 3}
        answers = await remote.broadcast(msg={"op": "run", "function": function, "args": args})
        assert list(answers.values()) == [{"status": "OK", "result": 3}] * len(answers)
        worker = next(iter(answers))
        answer = await pool(worker).run(function=function, args=args)
        assert answer == {"status": "OK", "result": 3}


@gen_test()
async def test_an_error_of_the_scheduler_is_raised_here(scheduler):
    async with rpc(scheduler) as remote:
        with pytest.raises(TypeError, match="stimulus_id"):
            await remote.unregister(address="tcp://127.0.0.1:1")


@gen_test()
async def test_a_client_registers_and_is_notified_of_its_keys(scheduler):
    comm = await connect(scheduler)
    await comm.write({"op": "register-client", "client": "me", "reply": False, "versions": {}})
    [start] = await comm.read()
    assert start["op"] == "stream-start"
    async with rpc(scheduler) as remote:
        await remote.scatter(
            data={"k2": to_serialize(2)}, workers=None, client="me", broadcast=False
        )
    [message] = await comm.read()
    assert (message["op"], message["key"]) == ("key-in-memory", "k2")
    await comm.write([{"op": "close-client"}, {"op": "close-stream"}])
    await comm.close()


# A subclass of this package's Server acts as a worker


@gen_test()
async def test_a_subclass_registers_as_a_worker_and_sends_heartbeats(scheduler):
    async with Guest(scheduler) as guest, rpc(scheduler) as remote:
        assert guest.reply["heartbeat-interval"] > 0
        known = (await remote.identity())["workers"][guest.address]
        assert (known["name"], known["status"], known["type"]) == ("guest", "running", "Worker")
        assert (await guest.heartbeat())["status"] == "OK"


@gen_test()
async def test_a_worker_that_leaves_is_forgotten(scheduler):
    async with rpc(scheduler) as remote:
        async with Guest(scheduler) as guest:
            address = guest.address
        while address in (await remote.identity())["workers"]:
            await asyncio.sleep(0.01)


@gen_test()
async def test_the_scheduler_stores_data_in_a_subclass_and_gets_it_back(scheduler):
    async with Guest(scheduler) as guest, rpc(scheduler) as remote:
        await remote.scatter(
            data={"k3": to_serialize([3])}, workers=[guest.address], client="", broadcast=False
        )
        assert guest.data == {"k3": [3]}
        assert await remote.who_has(keys=["k3"]) == {"k3": (guest.address,)}
        assert await remote.gather(keys=["k3"]) == {"status": "OK", "data": {"k3": [3]}}


@gen_test()
async def test_the_scheduler_frees_keys_of_a_subclass_over_the_stream(scheduler, original_python):
    code = "[future] = client.scatter([5], workers=['guest'], hash=False)\nprint(future.result())"
    async with Guest(scheduler) as guest:
        assert await asyncio.to_thread(run_client, original_python, scheduler, code) == "5\n"
        await async_poll_for(lambda: "free-keys" in guest.asked, timeout=10)
        assert guest.data == {}


@gen_test()
async def test_the_client_of_the_original_runs_functions_in_a_subclass(scheduler, original_python):
    async with Guest(scheduler) as guest:
        code = f"print(client.run(len, 'four', workers=[{guest.address!r}]))"
        output = await asyncio.to_thread(run_client, original_python, scheduler, code)
        assert output == f"{{{guest.address!r}: 4}}\n"


def test_a_subclass_computes_the_tasks_of_the_original(scheduler, original_python, dask_python):
    program = str(Path(interop_worker.__file__).resolve())
    code = """
futures = client.map(lambda x: x * x, range(20), workers=["guest"])
print(client.gather(futures))
print(set(map(tuple, client.who_has(futures).values())))
"""
    with running(dask_python, ["-P", program, scheduler]) as guest:
        output = run_client(original_python, scheduler, code)
    assert output == f"{[x * x for x in range(20)]}\n{{({guest!r},)}}\n"


# A subclass of this package's Server acts as the scheduler of the original's Worker


class Host(Server):
    """The part of a scheduler that a worker of the original needs to start and to terminate."""

    def __init__(self):
        self.workers: dict[str, dict] = {}
        self.heartbeats = asyncio.Event()
        self.statuses: list[str] = []
        super().__init__(
            {"register-worker": self.register, "heartbeat_worker": self.heartbeat},
            stream_handlers={"worker-status-change": self.status_change, "log-event": self.log},
        )

    async def register(self, comm, address, **kwargs):
        self.workers[address] = kwargs
        await comm.write(
            {"status": "OK", "time": 0, "heartbeat-interval": 0.1, "worker-plugins": {}}
        )
        await self.handle_stream(comm, extra={"worker": address})
        del self.workers[address]
        return Status.dont_reply

    def heartbeat(self, **kwargs):
        self.heartbeats.set()
        return {"status": "OK", "time": 0, "heartbeat-interval": 0.1}

    def status_change(self, worker, status, stimulus_id):
        self.statuses.append(status)

    def log(self, **kwargs):
        pass


@gen_test()
async def test_a_worker_of_the_original_registers_with_a_subclass_and_serves_it(original_python):
    async with Host() as host:
        await host.listen("tcp://127.0.0.1:0")
        with popen(
            [str(original_python), "-c", WORKER, host.address],
            stdin=subprocess.DEVNULL,
            env=clean_environ(),
            cwd="/",
        ) as process:
            await host.heartbeats.wait()
            [address] = host.workers
            worker = host.rpc(address)
            assert (await worker.identity())["scheduler"] == host.address
            await worker.update_data(data={"x": to_serialize([1])})
            assert await fetch(host.rpc, address, ["x"]) == {"x": [1]}
            await worker.terminate(reason="enough", reply=False)
            assert await asyncio.to_thread(process.wait, 20) == 0
            await async_poll_for(lambda: not host.workers, timeout=10)
    assert host.statuses[0] == "running"


# This package relays between a Client and a Scheduler of the original


@gen_test()
async def test_a_client_and_its_scheduler_communicate_through_a_relay_that_does_not_deserialize(
    scheduler, original_python
):
    async def pump(source, target):
        try:
            while True:
                await target.write(await source.read())
        except CommClosedError:
            target.abort()
            source.abort()

    async def relay(comm):
        onward = await connect(scheduler, deserialize=False)
        await asyncio.gather(pump(comm, onward), pump(onward, comm))

    code = """
print(client.submit(sum, [1, 2]).result())
[future] = client.scatter([b"x" * 100_000])
print(len(future.result()))
try:
    client.submit(lambda: 1 / 0).result()
except ZeroDivisionError as exc:
    print(exc)
"""
    async with listen("tcp://127.0.0.1:0", relay, deserialize=False) as listener:
        address = listener.contact_address
        output = await asyncio.to_thread(run_client, original_python, address, code)
    assert output == "3\n100000\ndivision by zero\n"
