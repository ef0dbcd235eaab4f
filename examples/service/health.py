"""Exit with 0 if the server at an address accepts requests: ``python health.py tcp://:8786``."""

from __future__ import annotations

import asyncio
import sys

from distributed.core import rpc


async def is_serving(address: str) -> bool:
    async with rpc(address, timeout="3s") as remote:
        return bool(await remote.health() == {"status": "serving"})


if __name__ == "__main__":
    try:
        sys.exit(not asyncio.run(is_serving(sys.argv[1])))
    except OSError as exc:
        sys.exit(f"{sys.argv[1]} does not answer: {exc}")
