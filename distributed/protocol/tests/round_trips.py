"""The ways on which tests send the objects of foreign libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distributed.core import Server, rpc
from distributed.protocol import Serialize, dumps, loads


def received(frames: list[Any]) -> list[Any]:
    """What arrives: the same bytes in memory of the receiver's own."""
    return [bytes(frames[0]), *(memoryview(bytearray(frame)) for frame in frames[1:])]


def sent(x: Any, **kwargs: Any) -> Any:
    return loads(received(dumps(Serialize(x), on_error="raise", **kwargs)))


def passed_on(x: Any) -> Any:
    """As a scheduler does: read without deserializing, and written again."""
    message = loads(received(dumps(Serialize(x), on_error="raise")), deserialize=False)
    return loads(received(dumps(message)))


def split(x: Any) -> Any:
    return sent(x, frame_split_size=10)


def compressed(x: Any) -> Any:
    return sent(x, context={"compression": "zlib"})


WAYS: dict[str, Callable[[Any], Any]] = {
    "sent": sent,
    "passed on": passed_on,
    "split": split,
    "compressed": compressed,
}

#: For tests that take the way as a parameter.
in_each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


async def echoed(x: Any) -> Any:
    """There and back over a connection."""
    async with Server({"give_back": lambda data: Serialize(data)}) as server:
        await server.listen("tcp://127.0.0.1:0")
        with rpc(server.address) as remote:
            return await remote.give_back(data=Serialize(x))


def family(x: Any) -> str:
    """The serializer family that an object goes to."""
    from distributed.protocol import serialize

    return str(serialize(x, on_error="raise")[0]["serializer"])
