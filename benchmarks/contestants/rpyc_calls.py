"""RPyC: an exposed method of a service, on a server with a thread for each connection."""

from __future__ import annotations

import sys
import threading
from typing import Any

import rpyc
from rpyc.utils.server import ThreadedServer

from benchmarks.contestants.channel import Channel, Result
from benchmarks.contestants.timing import repeat


class Calculator(rpyc.Service):  # type: ignore[misc, unused-ignore]
    def exposed_add(self, x: int, y: int) -> int:
        return x + y


def serve() -> None:
    channel = Channel()
    server = ThreadedServer(Calculator, hostname="127.0.0.1", port=0)
    threading.Thread(target=server.start, daemon=True).start()
    channel.write({"addresses": {"tcp": f"127.0.0.1:{server.port}"}})
    channel.answer({})


def call() -> None:
    channel = Channel()
    opened: dict[str, Any] = {}

    def sequential(address: str, seconds: float) -> Result:
        if address not in opened:
            host, _, port = address.partition(":")
            opened[address] = rpyc.connect(host, int(port))
        add = opened[address].root.add
        assert add(1, 2) == 3
        return repeat(lambda: add(1, 2), seconds)

    def rest() -> Result:
        for connection in opened.values():
            connection.close()
        opened.clear()
        return {}

    channel.write({})
    channel.answer({"sequential": sequential, "rest": rest})


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else call()
