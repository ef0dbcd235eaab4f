"""RPyC: an exposed method of a service, on a server with a thread for each connection."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import rpyc
from rpyc.utils.server import ThreadedServer

from benchmarks.contestants.channel import Channel, call_blocking


class Calculator(rpyc.Service):  # type: ignore[misc, unused-ignore]
    def exposed_add(self, x: int, y: int) -> int:
        return x + y


def serve() -> None:
    channel = Channel()
    server = ThreadedServer(Calculator, hostname="127.0.0.1", port=0)
    threading.Thread(target=server.start, daemon=True).start()
    channel.write({"addresses": {"tcp": f"127.0.0.1:{server.port}"}})
    channel.answer({})


def connect(address: str) -> Any:
    host, _, port = address.partition(":")
    return rpyc.connect(host, int(port))


def make_call(connection: Any) -> Callable[[], Any]:
    add = connection.root.add
    return lambda: add(1, 2)


def call() -> None:
    call_blocking(connect, make_call, lambda connection: connection.close())


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else call()
