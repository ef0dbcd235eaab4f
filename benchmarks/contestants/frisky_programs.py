"""frisky: dask's interface on a scheduler and workers in Rust, with two worker processes.

It has no remote calls; its small call is a task whose result the client waits for.
"""

from __future__ import annotations

from typing import Any

import frisky
import frisky.cluster

from benchmarks.contestants import workloads
from benchmarks.contestants.channel import Channel, Result
from benchmarks.contestants.timing import repeat
from benchmarks.contestants.workloads import increment, seconds_of

#: Seconds before the start of a worker times out (frisky: 10, too few on a busy machine).
START_TIMEOUT = 60


def add(x: int, y: int) -> int:
    return x + y


class Programs:
    """Programs that return how many seconds they took, without preparing their data."""

    def __init__(self, client: Any):
        self.client = client

    def _keep(self, collection: Any) -> Any:
        collection = self.client.persist(collection)
        graph = dict(collection.__dask_graph__())
        futures = [value for value in graph.values() if isinstance(value, frisky.Future)]
        assert futures, "the collection is not on the workers"
        frisky.wait(futures)
        return collection

    def tiny_tasks(self, size: int) -> float:
        """Run *size* tasks that add two numbers each."""
        client = self.client
        return seconds_of(lambda: client.gather(client.map(increment, range(size))))

    def transpose(self, size: int) -> float:
        return workloads.transpose(size, self._keep)

    def shuffle(self, size: int) -> float:
        return workloads.shuffle(size, self._keep)


def run(program: str, size: int, seconds: float, address: str) -> Result:
    """Run a program on a new cluster until *seconds* have been measured, at least once."""
    with (
        frisky.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, silence_summary=True
        ) as cluster,
        cluster.get_client() as client,
    ):
        return workloads.repeat(getattr(Programs(client), program), size, seconds)


if __name__ == "__main__":
    frisky.cluster._WORKER_START_TIMEOUT = START_TIMEOUT
    channel = Channel()
    opened: list[Any] = []

    def sequential(address: str, seconds: float) -> Result:
        if not opened:
            opened.append(
                frisky.LocalCluster(
                    n_workers=1, threads_per_worker=1, processes=True, silence_summary=True
                )
            )
            opened.append(opened[0].get_client())
        client = opened[1]
        assert client.submit(add, 1, 2).result() == 3
        return repeat(lambda: client.submit(add, 1, 2).result(), seconds)

    def close_all() -> Result:
        while opened:
            opened.pop().close()
        return {}

    channel.write({})
    channel.answer({"sequential": sequential, "run": run, "close_all": close_all})
