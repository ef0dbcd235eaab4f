"""Repeating something for a while, and what is to be said of how long it took."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

Result = dict[str, Any]


def summary(times: list[float], seconds: float) -> Result:
    """Say how often something was done in so many *seconds*, and how long each took."""
    ordered = sorted(times)
    return {
        "count": len(ordered),
        "rate": len(ordered) / seconds,
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
    }


def repeat(call: Callable[[], Any], seconds: float) -> Result:
    """Call one time after the other, at least once, until so many *seconds* are over."""
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
    """`repeat` for coroutine functions."""
    return await repeat_together([call], seconds)


async def repeat_together(calls: list[Callable[[], Awaitable[Any]]], seconds: float) -> Result:
    """Have as many callers as there are *calls*, each of whom repeats his own."""
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
