"""Repeating a call for some time, and a summary of its durations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

Result = dict[str, Any]


def summary(times: list[float], seconds: float) -> Result:
    """Return the count, the rate per second and quantiles of the *times* of calls."""
    ordered = sorted(times)
    return {
        "count": len(ordered),
        "rate": len(ordered) / seconds,
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
    }


def repeat(call: Callable[[], Any], seconds: float) -> Result:
    """Repeat a call until *seconds* have passed, at least once."""
    times = []
    begin = now = perf_counter()
    end = begin + seconds
    while True:
        before = now
        call()
        now = perf_counter()
        times.append(now - before)
        if now >= end:
            return summary(times, now - begin)


async def repeat_async(call: Callable[[], Awaitable[Any]], seconds: float) -> Result:
    """Repeat a call of a coroutine function, as `repeat` does for a function."""
    return await repeat_together([call], seconds)


async def repeat_at_rate(
    call: Callable[[], Awaitable[Any]], per_second: float, seconds: float
) -> Result:
    """Start a call at regular times, whether or not earlier ones have returned.

    The time of a call begins when it is due, so it includes the time in which the event loop was
    too busy to start it.
    """
    times: list[float] = []
    running: set[asyncio.Task[None]] = set()
    begin = perf_counter()

    async def one(due: float) -> None:
        await call()
        times.append(perf_counter() - due)

    for i in range(max(1, round(per_second * seconds))):
        due = begin + i / per_second
        if (delay := due - perf_counter()) > 0:
            await asyncio.sleep(delay)
        task = asyncio.ensure_future(one(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return summary(times, perf_counter() - begin)


async def repeat_together(calls: list[Callable[[], Awaitable[Any]]], seconds: float) -> Result:
    """Repeat all *calls* concurrently until *seconds* have passed."""
    times: list[float] = []
    begin = perf_counter()
    end = begin + seconds

    async def repeat_one(call: Callable[[], Awaitable[Any]]) -> None:
        now = perf_counter()
        while True:
            before = now
            await call()
            now = perf_counter()
            times.append(now - before)
            if now >= end:
                return

    if len(calls) == 1:
        await repeat_one(calls[0])
    else:
        await asyncio.gather(*map(repeat_one, calls))
    return summary(times, perf_counter() - begin)
