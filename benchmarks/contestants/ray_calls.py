"""Ray: a method of an actor, which runs in a separate process."""

from __future__ import annotations

import os
from pathlib import Path

import ray

from benchmarks.contestants.channel import Channel, Result
from benchmarks.contestants.timing import repeat


class Calculator:
    def add(self, x: int, y: int) -> int:
        return x + y


def call() -> None:
    channel = Channel()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    here = str(Path("ray").resolve())
    ray.init(num_cpus=1, include_dashboard=False, configure_logging=False, _temp_dir=here)
    actor = ray.remote(Calculator).remote()
    assert ray.get(actor.add.remote(1, 2)) == 3

    def sequential(address: str, seconds: float) -> Result:
        return repeat(lambda: ray.get(actor.add.remote(1, 2)), seconds)

    channel.write({})
    channel.answer({"sequential": sequential, "close_all": dict})
    ray.shutdown()


if __name__ == "__main__":
    call()
