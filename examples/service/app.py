"""A server to run as a service: ``python app.py tcp://:8786``."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator

from distributed.core import Server, run


class App(Server):
    def __init__(self) -> None:
        super().__init__({"add": self.add, "count": self.count})

    def add(self, x: float, y: float) -> float:
        return x + y

    async def count(self, to: int, pause: float = 1) -> AsyncIterator[int]:
        """Stream numbers; a request that takes long, to see how the server closes."""
        for number in range(to):
            yield number
            await asyncio.sleep(pause)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    sys.exit(run(App, sys.argv[1:]))
