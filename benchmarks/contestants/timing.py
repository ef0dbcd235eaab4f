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
