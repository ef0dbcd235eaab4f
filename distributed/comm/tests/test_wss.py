"""Websockets over TLS, and sides that speak different protocols."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from distributed.comm import (
    connect,
    listen,
)
from distributed.comm.core import FatalCommClosedError
from distributed.comm.tests.test_tls import client as tls_client
from distributed.comm.tests.test_tls import refusal
from distributed.comm.tests.test_tls import server as tls_server
from distributed.comm.tests.test_ws import (
    LOCALHOST,
)
from distributed.comm.tests.transports import echo, unused_port
from distributed.utils_test import (
    gen_test,
)

# Both sides speak something else


def listen_args(scheme: str) -> dict[str, Any]:
    return tls_server() if scheme in ("tls", "wss") else {}


def connect_args(scheme: str) -> dict[str, Any]:
    return tls_client() if scheme in ("tls", "wss") else {}


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("ws", "tcp"),
        ("ws", "tls"),
        ("ws", "wss"),
        ("wss", "tcp"),
        ("wss", "tls"),
        ("wss", "ws"),
        ("tcp", "ws"),
        ("tcp", "wss"),
        ("tls", "ws"),
        ("tls", "wss"),
    ],
)
@gen_test()
async def test_sides_that_speak_different_protocols_say_so_at_once(here, there):
    await refusal(listen_args(there), connect_args(here), f"{there}://127.0.0.1:0", here)


# TLS


@gen_test()
async def test_extra_info_has_the_certificate_of_the_peer_and_the_cipher():
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    async with await listen("wss://127.0.0.1:0", accepted.put, **tls_server()) as listener:
        comm = await connect(listener.contact_address, **tls_client())
        other = await accepted.get()
        for end in (comm, other):
            assert end.extra_info["peercert"]["subject"]
            assert len(end.extra_info["cipher"]) == 3
        assert comm.channel_binding == other.channel_binding
        assert comm.channel_binding
        other.abort()
        await comm.close()


UNTRUSTED: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "server": (lambda: tls_server("other"), tls_client, "ca-file"),
    "client": (tls_server, lambda: tls_client("other"), "does not accept the certificate"),
    "expired": (lambda: tls_server("expired"), tls_client, "expired"),
}


@pytest.mark.parametrize(("there", "here", "why"), UNTRUSTED.values(), ids=UNTRUSTED.keys())
@gen_test()
async def test_who_is_not_trusted_is_told_so_at_once(there, here, why):
    refused = await refusal(there(), here(), "wss://127.0.0.1:0", "wss")
    assert why in str(refused.error)


@gen_test()
async def test_without_a_context_there_is_no_wss():
    with pytest.raises(TypeError, match="ssl_context"):
        await connect("wss://127.0.0.1:1")
    with pytest.raises(TypeError, match="ssl_context"):
        await listen("wss://127.0.0.1:0", echo)


@gen_test()
async def test_where_encryption_is_required_there_is_no_ws():
    with pytest.raises(RuntimeError, match="encryption required"):
        await connect(f"ws://127.0.0.1:{unused_port()}", require_encryption=True)
    with pytest.raises(RuntimeError, match="encryption required"):
        await listen(LOCALHOST, echo, require_encryption=True)


@gen_test()
async def test_the_name_in_the_certificate_is_compared_where_the_context_says_so():
    args = tls_client()
    context: ssl.SSLContext = args["ssl_context"]
    context.check_hostname = True
    async with await listen("wss://127.0.0.1:0", echo, **tls_server()) as listener:
        with pytest.raises(FatalCommClosedError, match="server_hostname"):
            await connect(listener.contact_address, server_hostname="else.example", **args)
