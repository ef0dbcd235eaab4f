"""A limit: how fast this machine copies memory, the least that moving a payload takes."""

from __future__ import annotations

from benchmarks.contestants.channel import Channel, Result
from benchmarks.contestants.timing import repeat


def payload(address: str, seconds: float, size: int, kind: str) -> Result:
    """Copy twice: once for each way."""
    source, target = memoryview(bytearray(size)), memoryview(bytearray(size))

    def exchange() -> None:
        target[:] = source
        source[:] = target

    return repeat(exchange, seconds)


if __name__ == "__main__":
    channel = Channel()
    channel.write({})
    channel.answer({"payload": payload, "rest": dict})
