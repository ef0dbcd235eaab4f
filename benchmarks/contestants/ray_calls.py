"""Ray: a method of an actor in a separate process, and the workloads as Ray's tasks.

The workloads are written by hand as tasks, not with ``ray.data`` or with dask's collections on Ray.
The tasks share memory by means of its object store.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray

from benchmarks.contestants import workloads
from benchmarks.contestants.channel import Channel, Result
from benchmarks.contestants.timing import repeat
from benchmarks.contestants.workloads import KEY, PARTITIONS, seconds_of

#: Number of worker processes for the workloads: as many as the clusters of dask have.
WORKERS = 2

#: Bytes of the object store: room for the largest workload and its temporary chunks.
STORE = 3_000_000_000


class Calculator:
    def add(self, x: int, y: int) -> int:
        return x + y


def add_transposed(one: Any, other: Any) -> float:
    return float((one + other.T).sum())


def split(frame: Any) -> list[Any]:
    """Return the rows of a partition for each new partition."""
    groups = frame[KEY].to_numpy() % PARTITIONS
    return [frame[groups == number] for number in range(PARTITIONS)]


def length_of_joined(*frames: Any) -> int:
    import pandas as pd

    return len(pd.concat(frames))


class Programs:
    """Programs that return how many seconds they took, without preparing their data."""

    def tiny_tasks(self, size: int) -> float:
        """Run *size* tasks that add two numbers each."""
        task = ray.remote(workloads.increment)
        return seconds_of(lambda: ray.get([task.remote(number) for number in range(size)]))

    def transpose(self, size: int) -> float:
        """Add an array of *size* bytes to its transpose."""
        side, task = workloads.chunks_per_side(size), ray.remote(workloads.chunk)
        array = [[task.remote(side * i + j) for j in range(side)] for i in range(side)]
        chunks = [each for row in array for each in row]
        ray.wait(chunks, num_returns=len(chunks), fetch_local=False)
        add = ray.remote(add_transposed)
        indices = range(side)
        return seconds_of(
            lambda: sum(
                ray.get([add.remote(array[i][j], array[j][i]) for i in indices for j in indices])
            )
        )

    def shuffle(self, size: int) -> float:
        """Move the rows of a dataframe of *size* bytes into partitions by their keys."""
        rows, task = workloads.rows_per_partition(size), ray.remote(workloads.partition)
        frame = [task.remote(number, rows) for number in range(PARTITIONS)]
        ray.wait(frame, num_returns=len(frame), fetch_local=False)
        split_one = ray.remote(num_returns=PARTITIONS)(split)
        join = ray.remote(length_of_joined)
        lengths: list[int] = []

        def run() -> None:
            pieces = [split_one.remote(each) for each in frame]
            lengths.extend(ray.get([join.remote(*each) for each in zip(*pieces, strict=True)]))

        taken = seconds_of(run)
        assert sum(lengths) == rows * PARTITIONS, lengths
        return taken


def start(workers: int, **options: Any) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    here = str(Path("ray").resolve())
    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        configure_logging=False,
        _temp_dir=here,
        **options,
    )


def run(program: str, size: int, seconds: float, address: str) -> Result:
    """Run a program on new worker processes until *seconds* have been measured, at least once."""
    start(WORKERS, object_store_memory=STORE)
    return workloads.repeat(getattr(Programs(), program), size, seconds)


class Holder:
    def read(self, array: Any) -> float:
        self.array = array
        return workloads.sum_of_pages(array)


def hold(size: int, seconds: float, address: str) -> Result:
    """Put an array of *size* bytes into the object store, and let all workers read it."""
    import numpy as np

    start(workloads.HOLDERS, object_store_memory=STORE)
    holders = [ray.remote(Holder).remote() for _ in range(workloads.HOLDERS)]

    def put(number: int) -> Any:
        # The object store has the only copy, like the shared memory of dask's client.
        reference = ray.put(np.ones(number))
        ray.get([holder.read.remote(reference) for holder in holders])
        return reference

    # What the workers import at first use does not count.
    put(1000)
    return workloads.memory_added_by(lambda: put(size // 8))


def call() -> None:
    channel = Channel()
    actors: list[Any] = []

    def sequential(address: str, seconds: float) -> Result:
        if not actors:
            start(1)
            actors.append(ray.remote(Calculator).remote())
        add = actors[0].add
        assert ray.get(add.remote(1, 2)) == 3
        return repeat(lambda: ray.get(add.remote(1, 2)), seconds)

    channel.write({})
    channel.answer({"sequential": sequential, "run": run, "hold": hold, "close_all": dict})
    if ray.is_initialized():
        ray.shutdown()


if __name__ == "__main__":
    call()
