"""RFC 6455, by the cases of the Autobahn test suite, against both ends of our websockets.

``kosoku`` runs Autobahn's own case files on Python 3; the original suite needs Python 2.  Left out
are the cases of performance (9), those of compression (12, 13), which comms do not offer, and those
that only ask how early invalid text is noticed (6.4).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.httpclient import HTTPRequest
from tornado.iostream import StreamClosedError
from tornado.tcpclient import TCPClient

from distributed.comm import get_address_host_port
from distributed.comm.websocket import ClientConnection, Protocol
from distributed.comm.ws import WSListener
from distributed.utils_test import gen_test

kosoku = pytest.importorskip("kosoku", reason="kosoku has no wheel for this platform")

CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
SLOW = ["6.4.*"]


async def echo_websocket(protocol: Protocol) -> None:
    """Send each received websocket message back, until the connection ends."""
    protocol.limit = None
    inbox = protocol.inbox
    inbox.open()
    try:
        while True:
            message, _ = await inbox.get()
            if not protocol.is_closing():
                await protocol.write_message(message, binary=isinstance(message, bytes))
    except OSError:
        await inbox.gone.wait()


class EchoListener(WSListener):
    """A listener for websockets that are not comms."""

    def _accept(self, protocol: Protocol) -> None:
        self._forget(protocol.stream)
        task = asyncio.create_task(echo_websocket(protocol))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def run_client(port: int, path: str) -> list[str | bytes]:
    """Open a websocket, echo until it is closed, and return nothing; or return its messages."""
    stream = await TCPClient().connect("127.0.0.1", port)
    request = HTTPRequest(f"ws://127.0.0.1:{port}{path}", connect_timeout=0, request_timeout=0)
    try:
        protocol = await ClientConnection(stream, request).upgraded()
    except OSError:
        # The first frames violated the protocol, and the websocket is already closed.
        return []
    if path.startswith("/runCase"):
        await echo_websocket(protocol)
        return []
    messages = []
    try:
        protocol.inbox.open()
        while True:
            messages.append((await protocol.inbox.get())[0])
    except StreamClosedError:
        return messages


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[None]:
    """Start the threads of kosoku, which last as long as the process; remove its stand-ins later.

    It puts modules of its own in the place of ``pkg_resources`` and ``autobahn``.
    """
    paths = sys.path[:]

    async def start() -> None:
        async with kosoku.run_fuzzingserver(["1.1.1"], port=0):
            pass

    asyncio.run(start())
    yield
    sys.path[:] = paths
    for name, module in list(sys.modules.items()):
        if "kosoku/shim" in (getattr(module, "__file__", None) or ""):
            del sys.modules[name]


def failures(results: list[Any]) -> list[str]:
    return [
        f"{r.case_id}: {r.behavior.value}, {r.behavior_close.value}; {r.result} {r.result_close}"
        for r in results
        if not r.passed
    ]


@gen_test(timeout=100)
async def test_the_listener_passes_the_cases_of_autobahn():
    async with EchoListener("127.0.0.1:0", lambda comm: None) as listener:
        _, port = get_address_host_port(listener.contact_address)
        try:
            results = await kosoku.run_fuzzingclient(
                f"127.0.0.1:{port}", CASES, SLOW, concurrency=8
            )
        except kosoku.FailureError as exc:
            results = exc.results
    assert failures(results) == []
    assert len(results) > 200


@gen_test(timeout=100)
async def test_the_connector_passes_the_cases_of_autobahn():
    async with kosoku.run_fuzzingserver(CASES, SLOW, port=0) as server:
        (count,) = await run_client(server.port, "/getCaseCount")
        cases = iter(range(1, int(count) + 1))

        async def run_cases() -> None:
            for case in cases:
                await run_client(server.port, f"/runCase?case={case}&agent=distributed")

        await asyncio.gather(*[run_cases() for _ in range(8)])
        await run_client(server.port, "/updateReports?agent=distributed")
        try:
            results = await server.get_result()
        except kosoku.FailureError as exc:
            results = exc.results
    assert failures(results) == []
    assert len(results) > 200
