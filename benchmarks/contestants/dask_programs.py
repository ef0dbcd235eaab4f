"""Dask programs on a local cluster: dask.distributed as released, and the same on this core.

The ``address`` in a command is the protocol of the cluster, unless an option names another.  With
``inproc`` the cluster is one worker with two threads in this process, otherwise two worker
processes with one thread each.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
from typing import Any

import dask
import numpy as np

from benchmarks.contestants import workloads
from benchmarks.contestants.channel import Channel, Result
from benchmarks.contestants.workloads import HOLDERS, increment, seconds_of, sum_of_pages
from distributed import Client, LocalCluster, wait

#: Number of arrays in which data is sent from one worker to the other.
ARRAYS = 10

#: Size from which ordinary buffers are copied into shared memory, if an option asks for it.
SHARED_THRESHOLD = "1 MB"


def total_length(*arrays: np.ndarray) -> int:
    return sum(map(len, arrays))


class Programs:
    """Programs that return how many seconds they took, without preparing their data."""

    def __init__(self, client: Client):
        self.client = client

    def _keep(self, collection: Any) -> Any:
        collection = self.client.persist(collection)
        wait(collection)
        return collection

    def tiny_tasks(self, size: int) -> float:
        """Run *size* tasks that add two numbers each."""
        client = self.client
        return seconds_of(lambda: client.gather(client.map(increment, range(size), pure=False)))

    def transfer(self, size: int) -> float:
        """Send *size* bytes from one worker to the other."""
        client = self.client
        # Not `scheduler_info`: a periodic update of the client may replace its workers by none.
        source, target = client.nthreads()
        each = size // ARRAYS // 8
        data = [client.submit(np.ones, each, workers=source, pure=False) for _ in range(ARRAYS)]
        wait(data)
        return seconds_of(lambda: client.submit(total_length, *data, workers=target).result())

    def transpose(self, size: int) -> float:
        return workloads.transpose(size, self._keep)

    def shuffle(self, size: int) -> float:
        return workloads.shuffle(size, self._keep)


def run(program: str, size: int, seconds: float, address: str) -> Result:
    """Run a program on a new cluster until *seconds* have been measured, at least once."""
    protocol = options.protocol or address
    workers: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "protocol": protocol}
    if protocol == "inproc":
        workers = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
    cluster = LocalCluster(**workers, dashboard_address=None, memory_limit=0)
    with cluster, Client(cluster) as client:
        return workloads.repeat(getattr(Programs(client), program), size, seconds)


def hold(size: int, seconds: float, address: str) -> Result:
    """Scatter an array of *size* bytes to all workers, and return the memory that this takes."""
    cluster = LocalCluster(
        n_workers=HOLDERS,
        threads_per_worker=1,
        protocol=options.protocol or address,
        dashboard_address=None,
        memory_limit=0,
    )
    with cluster, Client(cluster) as client:
        client.wait_for_workers(HOLDERS)
        workers = list(client.nthreads())

        def scatter(number: int) -> Any:
            array = np.ones(number)
            if options.shared:
                array = importlib.import_module("distributed.shared").copy(array)
            future = client.scatter(array, broadcast=True)
            for worker in workers:
                client.submit(sum_of_pages, future, workers=[worker], pure=False).result()
            return array, future

        # What the workers import at first use does not count.
        scatter(1000)
        return workloads.memory_added_by(lambda: scatter(size // 8))


def share_memory() -> None:
    """Let this process and its workers send large buffers in shared memory.

    Raises
    ------
    ModuleNotFoundError
        If this version of distributed does not have shared memory.
    """
    importlib.import_module("distributed.shared")
    name = "distributed.comm.shared.threshold"
    dask.config.set({name: SHARED_THRESHOLD})  # type: ignore[attr-defined]
    # The worker processes read it from here, in every version of dask.
    os.environ["DASK_" + name.upper().replace(".", "__")] = SHARED_THRESHOLD


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["call"])
    parser.add_argument("--protocol", help="protocol of the cluster instead of the command's")
    parser.add_argument("--shared", action="store_true", help="send arrays in shared memory")
    options = parser.parse_args()
    logging.getLogger("distributed").setLevel(logging.ERROR)
    channel = Channel()
    if options.shared:
        share_memory()
    channel.write({})
    channel.answer({"run": run, "hold": hold})
