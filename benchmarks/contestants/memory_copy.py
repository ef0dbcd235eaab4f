"""A limit: copying memory, the minimum cost of moving a payload on this machine."""

from __future__ import annotations

from benchmarks.contestants.channel import Channel, Result
from benchmarks.contestants.timing import repeat


def payload(address: str, seconds: float, size: int, kind: str) -> Result:
    """Copy twice: once for each direction."""
    source, target = memoryview(bytearray(size)), memoryview(bytearray(size))

    def exchange() -> None:
        target[:] = source
        source[:] = target

    return repeat(exchange, seconds)


if __name__ == "__main__":
    channel = Channel()
    channel.write({})
    channel.answer({"payload": payload, "close_all": dict})
