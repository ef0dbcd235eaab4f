"""Round trips for the tests of serializers: ways to send an object and get it back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from distributed.core import Server, rpc
from distributed.protocol import Serialize, dumps, loads, serialize


def received(frames: list[Any]) -> list[Any]:
    """Return the frames as a receiver has them: the same bytes in memory of its own."""
    return [bytes(frames[0]), *(memoryview(bytearray(frame)) for frame in frames[1:])]


def sent(x: Any, **kwargs: Any) -> Any:
    return loads(received(dumps(Serialize(x), on_error="raise", **kwargs)))


def passed_on(x: Any) -> Any:
    """Read without deserializing and write again, as a scheduler does."""
    message = loads(received(dumps(Serialize(x), on_error="raise")), deserialize=False)
    return loads(received(dumps(message)))


def split(x: Any) -> Any:
    return sent(x, frame_split_size=10)


def compressed(x: Any) -> Any:
    return sent(x, context={"compression": "zlib"})


def over_a_connection(x: Any) -> Any:
    """Send to a server, which sends back what it has deserialized."""

    async def call() -> Any:
        async with Server({"give_back": lambda data: [Serialize(data)]}) as server:
            await server.listen("tcp://127.0.0.1:0")
            async with rpc(server.address) as remote:
                return (await remote.give_back(data=Serialize(x)))[0]

    return asyncio.run(call())


WAYS: dict[str, Callable[[Any], Any]] = {
    "sent": sent,
    "passed on": passed_on,
    "split": split,
    "compressed": compressed,
    "over a connection": over_a_connection,
}

#: For tests that take the way as a parameter.
in_each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def family(x: Any) -> str:
    """Return the name of the serializer family that takes an object."""
    return str(serialize(x, on_error="raise")[0]["serializer"])


def any_shares_memory(frames: list[Any], array: Any) -> bool:
    """Return whether one of the frames and a NumPy array have memory in common."""
    import numpy as np

    return any(np.shares_memory(np.frombuffer(frame, "u1"), array) for frame in frames)
