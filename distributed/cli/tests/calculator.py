"""A server for the command line: ``serve distributed.cli.tests.calculator:server``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from distributed.core import Server
from distributed.protocol import to_serialize

#: Set when a call of `sleep` has begun, for a server in a thread.
sleeping = threading.Event()


#: Has a permit for each call of `echo`.
echoes = threading.Semaphore(0)


class Unknown:
    """A class whose objects cannot be unpickled."""

    def __reduce__(self) -> Any:
        return (_refuse, ())


def _refuse() -> None:
    raise ModuleNotFoundError("No module named 'elsewhere'")


def add(x: int, y: int = 0) -> int:
    """Return the sum."""
    return x + y


async def count(n: int, interval: float = 0) -> AsyncIterator[dict[str, int]]:
    """Yield the numbers up to n."""
    for i in range(n):
        yield {"done": i + 1}
        await asyncio.sleep(interval)


async def forever() -> AsyncIterator[int]:
    """Yield zeros until the caller leaves."""
    while True:
        yield 0
        await asyncio.sleep(0.01)


async def sleep() -> None:
    """Never return."""
    sleeping.set()
    await asyncio.Event().wait()


def echo(data: Any = None) -> Any:
    """Return the data."""
    echoes.release()
    return data


def fail(text: str = "wrong") -> None:
    """Raise an error."""
    raise ValueError(text)


def mixed() -> dict[Any, Any]:
    """Return values that JSON lacks."""
    return {"bytes": b"abc", "set": {1, 2}, "infinite": float("inf"), 7: (1, None)}


def data() -> Any:
    """Return bytes."""
    return to_serialize(b"\0\xff data")


def text() -> str:
    """Return a text that would clear a terminal."""
    return "one\ntwo \x1b[2J \x9b2J"


def unknown() -> Unknown:
    """Return an object that its caller cannot unpickle."""
    return Unknown()


def server() -> Server:
    """Make the server."""
    handlers: list[Callable[..., Any]] = [
        add,
        count,
        data,
        echo,
        fail,
        forever,
        mixed,
        sleep,
        text,
        unknown,
    ]
    return Server({each.__name__: each for each in handlers})


async def server_later() -> Server:
    """Make the server on the event loop."""
    await asyncio.sleep(0)
    return server()
