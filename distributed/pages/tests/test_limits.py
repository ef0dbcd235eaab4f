"""The limits of the pages on their clients: with small values, and at the defaults."""

from __future__ import annotations

import asyncio
import json

import pytest

from distributed.base.config import DEFAULTS
from distributed.core import Server
from distributed.pages import Pages
from distributed.pages.tests.test_pages import events, get
from distributed.utils_test import gen_test

SHORT = {"distributed.pages.timeout": "100ms"}


class Client:
    """A client that sends what it likes."""

    @classmethod
    async def connect(cls, pages, limit=2**16):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", pages.port, limit=limit
        )
        return self

    def send(self, data):
        self.writer.write(data)

    async def rest(self):
        """Return everything until the server closes the connection."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    async def close(self):
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\ntok",
    ],
)
@gen_test(config=SHORT)
async def test_a_client_that_does_not_finish_its_request_is_disconnected(data):
    async with Server({}) as server, Pages(0, token="0123456789abcdef")(server) as pages:
        client = await Client.connect(pages)
        client.send(data)
        assert await client.rest() == b""
        await client.close()


@gen_test()
async def test_each_connection_carries_one_request():
    async with Server({}) as server, Pages(0)(server) as pages:
        client = await Client.connect(pages)
        client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.rest()
        assert answer.endswith(b'{"status":"alive"}\n')
        assert b"Connection: close" in answer
        await client.close()


@gen_test(config={"distributed.comm.timeouts.handshake": "1h"})
async def test_each_connection_to_a_shared_port_carries_one_request_too():
    async with Server({}) as server:
        await server.listen("ws://127.0.0.1:0")
        async with Pages()(server) as pages:
            client = await Client.connect(pages)
            client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await client.rest()).endswith(b'{"status":"alive"}\n')
            await client.close()


class Talkative(Server):
    """A server with answers that no socket buffers as a whole."""

    def health(self):
        return {"status": "serving", "text": "x" * 30_000_000}


@pytest.mark.parametrize("path", ["ready", "events"])
@gen_test(config={**SHORT, "distributed.pages.interval": "50ms"})
async def test_a_client_that_does_not_read_is_disconnected(path):
    def wordy():
        pass

    wordy.__doc__ = "x" * 30_000_000
    async with Talkative({"wordy": wordy}) as server, Pages(0)(server) as pages:
        client = await Client.connect(pages, limit=100)
        client.send(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await client.reader.readexactly(1)
        while pages.connections:
            await asyncio.sleep(0.01)
        assert pages.updates.watchers == 0
        await client.close()


@gen_test(config={"distributed.pages.max-connections": 3})
async def test_a_new_connection_closes_the_oldest_one_without_a_request():
    async with Server({}) as server, Pages(0)(server) as pages:
        silent = []
        for number in range(3):
            silent.append(await Client.connect(pages))
            while pages.connections <= number:
                await asyncio.sleep(0)
        assert (await get(pages.url + "health")).code == 200
        assert await silent[0].rest() == b""
        for client in silent[1:]:
            client.send(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert b"alive" in await client.rest()
        for client in silent:
            await client.close()


@gen_test(config={"distributed.pages.max-connections": 2, "distributed.pages.interval": "50ms"})
async def test_connections_above_the_maximum_do_not_close_those_in_use():
    async with Server({}) as server, Pages(0)(server) as pages:
        watching = [asyncio.create_task(events(pages.url, 10**6)) for _ in range(2)]
        while pages.updates.watchers < 2:
            await asyncio.sleep(0)
        client = await Client.connect(pages)
        assert await client.rest() == b""
        await client.close()
        assert pages.updates.watchers == 2
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)


@gen_test(config={"distributed.pages.max-watchers": 1})
async def test_browsers_above_the_maximum_are_refused_until_one_leaves():
    async with Server({}) as server, Pages(0)(server) as pages:
        watching = asyncio.create_task(events(pages.url, 10**6))
        while not pages.updates.watchers:
            await asyncio.sleep(0)
        answer = await get(pages.url + "events")
        assert answer.code == 503
        assert answer.headers["Retry-After"]
        assert b"max-watchers" in answer.body
        watching.cancel()
        await asyncio.wait([watching])
        while pages.updates.watchers:
            await asyncio.sleep(0)
        assert len(await events(pages.url, 1)) == 1


@gen_test()
async def test_headers_and_bodies_above_the_maximum_are_refused():
    async with Server({}) as server, Pages(0, token="0123456789abcdef")(server) as pages:
        for data in (
            b"GET /json HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 17_000 + b"\r\n\r\n",
            b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"
            + b"x" * 5000,
        ):
            client = await Client.connect(pages)
            client.send(data)
            answer = await client.rest()
            assert b" 200 " not in answer
            assert b"wrong" not in answer
            await client.close()


@gen_test()
async def test_headers_of_an_honest_client_are_not_above_the_maximum():
    # Browsers send up to 8 kB, most of it cookies of other servers of the host.
    async with Server({}) as server, Pages(0)(server) as pages:
        answer = await get(pages.url + "json", headers={"Cookie": "a=" + "x" * 12_000})
        assert answer.code == 200


@gen_test()
async def test_as_many_browsers_as_by_default_can_watch():
    number = DEFAULTS["distributed"]["pages"]["max-watchers"]
    async with Server({}) as server, Pages(0)(server) as pages:
        watching = [asyncio.create_task(events(pages.url, 10**6)) for _ in range(number)]
        while pages.updates.watchers < number:
            await asyncio.sleep(0.01)
        assert (await get(pages.url + "events")).code == 503
        assert json.loads((await get(pages.url + "health")).body) == {"status": "alive"}
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)


@gen_test(timeout=60)
async def test_silent_connections_up_to_the_default_maximum_do_not_lock_a_client_out():
    number = DEFAULTS["distributed"]["pages"]["max-connections"]
    async with Server({}) as server, Pages(0)(server) as pages:
        silent = [await Client.connect(pages) for _ in range(number + 20)]
        assert (await get(pages.url + "health")).code == 200
        assert pages.connections <= number
        for client in silent:
            await client.close()
