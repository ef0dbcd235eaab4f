"""Pyro5: an exposed method of an object, with messages in msgpack."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import Pyro5.api

from benchmarks.contestants.channel import Channel, call_blocking

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


def make_call(proxy: Any) -> Callable[[], Any]:
    add = proxy.add
    return lambda: add(1, 2)


def call() -> None:
    call_blocking(Pyro5.api.Proxy, make_call, lambda proxy: proxy._pyroRelease())


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else call()
