"""Loads for this project and the original: large compressed values, and many streams at once."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from benchmarks.contestants.channel import Result
from benchmarks.contestants.timing import repeat_async, repeat_at_rate
from distributed.batched import BatchedSend

try:
    config = importlib.import_module("dask.config")
except ModuleNotFoundError:
    # Only the original requires dask.
    config = importlib.import_module("distributed.config")

#: Number of small calls per second beside large values.
CALLS_PER_SECOND = 1_000

#: Number of messages that all streams together send before waiting for them to be handled, and
#: that one stream sends in one iteration of the event loop.
STREAMED, BURST = 20_000, 5


def use_compression(name: str) -> None:
    """Let the connections of this process that are opened from now on offer a codec."""
    config.set({"distributed.comm.compression": name})


def compressible(size: int) -> np.ndarray[Any, Any]:
    """Return an array of *size* bytes that lz4 compresses to 40 %."""
    return np.random.default_rng(0).integers(0, 1000, size // 8)


async def calls_beside_large_values(
    small: Callable[[], Awaitable[Any]], large: Callable[[], Awaitable[Any]], seconds: float
) -> Result:
    """Make small calls at a constant rate while large ones follow each other."""
    count = 0

    async def repeat_large() -> None:
        nonlocal count
        while True:
            await large()
            count += 1

    task = asyncio.ensure_future(repeat_large())
    try:
        result = await repeat_at_rate(small, CALLS_PER_SECOND, seconds)
        # Without this, a contestant would be fast that does not finish the large call.
        while not count and not task.done():
            await asyncio.sleep(0.01)
    finally:
        if task.done():
            task.result()
        task.cancel()
        await asyncio.wait([task])
    return result | {"large": count * result["rate"] / result["count"]}


async def send_over(streams: list[BatchedSend], remote: Any, seconds: float) -> Result:
    """Send small messages over many streams at once, and wait until all are handled."""
    message = {"op": "message", "key": "task-1", "nbytes": 28, "type": "int"}
    bursts = max(1, STREAMED // BURST // len(streams))
    sent = bursts * BURST * len(streams)

    async def send() -> None:
        for _ in range(bursts):
            for stream in streams:
                stream.send(*[message] * BURST)
            await asyncio.sleep(0)
        handled = await remote.wait_for_messages(count=sent)
        assert handled == sent, handled

    result = await repeat_async(send, seconds)
    return result | {"rate": result["rate"] * sent, "count": result["count"] * sent}
