"""The progress of a long job: the job yields it, and its caller shows a bar.

The server and its caller share one process here.  The bar is that of tqdm, if it is installed; else
each report is a line.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from distributed.core import Server, rpc


async def squares(n: int) -> AsyncIterator[dict[str, int]]:
    """Compute the sum of squares up to *n*, and yield a report after each of 100 parts."""
    total = done = 0
    for part in range(100):
        end = n * (part + 1) // 100
        for number in range(done, end):
            total += number**2
        done = end
        # Lets the event loop send the report, and cancel this job if its caller has left.
        await asyncio.sleep(0)
        yield {"done": done, "total": total}


async def compute(address: str, n: int) -> int:
    """Run the job on the server at *address*, show its progress, and return its result."""
    report = {"done": 0, "total": 0}
    async with rpc(address) as remote, remote.squares.stream(n=n) as reports:
        with progress_bar(n) as bar:
            async for report in reports:
                bar.update(report["done"] - bar.n)
    return report["total"]


class Lines:
    """The part of tqdm's interface that is used here, without tqdm."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.n = 0

    def update(self, n: int) -> None:
        self.n += n
        print(f"{self.n} of {self.total}", file=sys.stderr)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


try:
    from tqdm import tqdm
except ModuleNotFoundError:
    tqdm = None


def progress_bar(total: int) -> Lines:
    """Return a bar on standard error."""
    return Lines(total) if tqdm is None else tqdm(total=total)


async def main() -> None:
    async with Server({"squares": squares}) as server:
        await server.listen("tcp://127.0.0.1:0")
        print(await compute(server.address, n=1_000_000))


if __name__ == "__main__":
    asyncio.run(main())
