"""Websockets over TLS, and two sides that speak different protocols."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest

from distributed.comm import connect, listen
from distributed.comm.core import FatalCommClosedError
from distributed.comm.tests.test_tls import client as tls_client
from distributed.comm.tests.test_tls import refusal
from distributed.comm.tests.test_tls import server as tls_server
from distributed.comm.tests.transports import echo
from distributed.utils_test import gen_test, tls_security


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
async def test_different_protocols_are_an_error_at_both_sides_without_a_retry(here, there):
    await refusal(listen_args(there), connect_args(here), f"{there}://127.0.0.1:0", here)


UNTRUSTED: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "server": (lambda: tls_server("other"), tls_client, "ca-file"),
    "client": (tls_server, lambda: tls_client("other"), "does not accept the certificate"),
    "expired": (lambda: tls_server("expired"), tls_client, "expired"),
}


@pytest.mark.parametrize(("there", "here", "why"), UNTRUSTED.values(), ids=UNTRUSTED.keys())
@gen_test()
async def test_an_untrusted_peer_is_an_error_without_a_retry(there, here, why):
    refused = await refusal(there(), here(), "wss://127.0.0.1:0", "wss")
    assert why in refused.error


@gen_test()
async def test_without_a_context_the_authorities_of_the_system_are_trusted(monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = tls_security().tls_ca_file
    context.load_cert_chain(certificate)
    async with listen("wss://127.0.0.1:0", echo, ssl_context=context) as listener:
        with pytest.raises(FatalCommClosedError, match="the peer's certificate is not accepted"):
            await connect(listener.contact_address)
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        for args in ({}, {"require_encryption": True}):
            comm = await connect(listener.contact_address, server_hostname="localhost", **args)
            await comm.write("hello")
            assert await comm.read() == "hello"
            await comm.close()
        with pytest.raises(FatalCommClosedError, match="server_hostname"):
            await connect(listener.contact_address, server_hostname="else.example")


@gen_test()
async def test_a_listener_needs_a_context():
    with pytest.raises(TypeError, match="TLS expects a `ssl_context` argument"):
        await listen("wss://127.0.0.1:0", echo)


@gen_test()
async def test_the_name_in_the_certificate_is_checked_if_the_context_says_so():
    args = tls_client()
    args["ssl_context"].check_hostname = True
    args["server_hostname"] = "else.example"
    refused = await refusal(tls_server(), args, "wss://127.0.0.1:0", "wss")
    assert "server_hostname" in refused.error
