"""Dask programs on a local cluster: dask.distributed as released, and the same on this core.

The ``address`` in a command is the protocol of the cluster.  With ``inproc`` the cluster is one
worker with two threads in this process, otherwise two worker processes with one thread each.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import dask.array
import numpy as np
from dask.datasets import timeseries

from benchmarks.contestants.channel import Channel, Result
from distributed import Client, LocalCluster, wait

#: Number of arrays in which data is sent from one worker to the other.
ARRAYS = 10

#: Number of rows and of columns in a chunk of an array.
CHUNK = 1_000

#: Number of rows in a partition of a dataframe: a day, with a row each second.
PARTITION = 24 * 60 * 60

#: Share of a program's size for its warm-up, which is not measured.
WARM_UP = 0.1


def increment(x: int) -> int:
    return x + 1


def total_length(*arrays: np.ndarray) -> int:
    return sum(map(len, arrays))


def seconds_of(call: Callable[[], Any]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


class Programs:
    """Programs that return how many seconds they took, without preparing their data."""

    def __init__(self, client: Client):
        self.client = client

    def tiny_tasks(self, size: int) -> float:
        """Run *size* tasks that add two numbers each."""
        client = self.client
        return seconds_of(lambda: client.gather(client.map(increment, range(size), pure=False)))

    def transfer(self, size: int) -> float:
        """Send *size* bytes from one worker to the other."""
        client = self.client
        source, target = client.scheduler_info()["workers"]
        each = size // ARRAYS // 8
        data = [client.submit(np.ones, each, workers=source, pure=False) for _ in range(ARRAYS)]
        wait(data)
        return seconds_of(lambda: client.submit(total_length, *data, workers=target).result())

    def transpose(self, size: int) -> float:
        """Add an array of *size* bytes to its transpose, half of which is on the other worker."""
        width = max(2, round((size / 8) ** 0.5 / CHUNK)) * CHUNK
        array = dask.array.random.random((width, width), chunks=(CHUNK, CHUNK)).persist()
        wait(array)
        return seconds_of(lambda: (array + array.T).sum().compute())

    def shuffle(self, size: int) -> float:
        """Sort *size* rows of a dataframe into partitions by a column."""
        days = max(2, size // PARTITION)
        first, last = np.datetime64("2000-01-01"), np.datetime64("2000-01-01") + days
        frame = timeseries(str(first), str(last), freq="1s", partition_freq="1D", seed=1).persist()
        wait(frame)
        return seconds_of(lambda: frame.shuffle("id").map_partitions(len).compute())


def run(program: str, size: int, seconds: float, address: str) -> Result:
    """Run a program on a new cluster until *seconds* have been measured, at least once."""
    workers: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "protocol": address}
    if address == "inproc":
        workers = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
    cluster = LocalCluster(**workers, dashboard_address=None, memory_limit=0)
    with cluster, Client(cluster) as client:
        execute = getattr(Programs(client), program)
        execute(round(size * WARM_UP))
        times = [execute(size)]
        while sum(times) < seconds:
            times.append(execute(size))
    median = statistics.median(times)
    return {"count": len(times), "rate": 1 / median, "seconds": median}


if __name__ == "__main__":
    logging.getLogger("distributed").setLevel(logging.ERROR)
    channel = Channel()
    channel.write({})
    channel.answer({"run": run})
