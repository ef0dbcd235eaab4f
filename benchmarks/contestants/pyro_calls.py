"""Pyro5: an exposed method of an object, with messages in msgpack."""

from __future__ import annotations

import sys
import threading
from typing import Any

import Pyro5.api

from benchmarks.contestants.channel import Channel, Result
from benchmarks.contestants.timing import repeat

Pyro5.api.config.SERIALIZER = "msgpack"


class Calculator:
    @Pyro5.api.expose  # type: ignore[untyped-decorator, unused-ignore]
    def add(self, x: int, y: int) -> int:
        return x + y


def serve() -> None:
    channel = Channel()
    daemon = Pyro5.api.Daemon(host="127.0.0.1")
    uri = daemon.register(Calculator())
    threading.Thread(target=daemon.requestLoop, daemon=True).start()
    channel.write({"addresses": {"tcp": str(uri)}})
    channel.answer({})


def call() -> None:
    channel = Channel()
    opened: dict[str, Any] = {}

    def sequential(address: str, seconds: float) -> Result:
        if address not in opened:
            opened[address] = Pyro5.api.Proxy(address)
        add = opened[address].add
        assert add(1, 2) == 3
        return repeat(lambda: add(1, 2), seconds)

    def rest() -> Result:
        for proxy in opened.values():
            proxy._pyroRelease()
        opened.clear()
        return {}

    channel.write({})
    channel.answer({"sequential": sequential, "rest": rest})


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else call()
