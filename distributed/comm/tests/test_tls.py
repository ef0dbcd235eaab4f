"""TLS: which peers are accepted, and the errors and log lines where one is refused."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import struct
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from tornado.iostream import StreamClosedError

from distributed.base import config
from distributed.comm import connect, listen, tcp
from distributed.comm.core import Comm, CommClosedError, FatalCommClosedError
from distributed.comm.registry import backends
from distributed.comm.tests.raw_peers import RawPeer, connect_raw, raw_peer, raw_server
from distributed.comm.tests.transports import Transport, echo
from distributed.comm.tls import TLSStream, explain, is_final, open_tls_stream, speaks_tls
from distributed.security.settings import Security
from distributed.utils_test import async_poll_for, captured_logger, gen_test

LOCALHOST = "tls://127.0.0.1:0"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
CERTIFICATES = Path(__file__).parents[2] / "security" / "tests" / "data" / "tls"


def security(identity: str = "cert", authority: str = "ca", **kwargs: Any) -> Security:
    """Return the settings of a client or server with one of the certificates for tests."""
    key = "key" if identity == "cert" else identity
    return Security(
        tls_ca_file=CERTIFICATES / f"{authority}.pem",
        tls_client_cert=CERTIFICATES / f"{identity}.pem",
        tls_client_key=CERTIFICATES / f"{key}.pem",
        **kwargs,
    )


def client(*args: str, **kwargs: Any) -> dict[str, Any]:
    return security(*args, **kwargs).get_connection_args("client")


def server(*args: str, **kwargs: Any) -> dict[str, Any]:
    return security(*args, **kwargs).get_listen_args("client")


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request) -> dict[str, ssl.TLSVersion]:
    return {"tls_min_version": request.param, "tls_max_version": request.param}


def tls_pair(scheme: str = "tls", **kwargs: Any) -> AbstractAsyncContextManager[tuple[Any, Any]]:
    """Return a context manager for both ends of a new connection with these TLS settings."""
    transport = Transport(
        f"{scheme}://127.0.0.1:0",
        unused_address=str,
        listen_args=lambda: server(**kwargs),
        connect_args=lambda: client(**kwargs),
    )
    return transport.pair()


class Refusal:
    """The client's error and the server's log for a connection that was refused."""

    def __init__(self, error: BaseException, log: str) -> None:
        self.error = str(error)
        self.log = log


async def refusal(
    listen_args: dict[str, Any],
    connect_args: dict[str, Any],
    listen_at: str = LOCALHOST,
    connect_by: str = "tls",
) -> Refusal:
    """Connect where that must fail, and check that each side reports it once.

    It must fail without waiting for a deadline: all of them are longer than the test may take.
    """
    # Tornado's logger too: it must not report the same error a second time.
    with (
        config.set({"distributed.comm.timeouts.handshake": "1h"}),
        captured_logger("distributed.comm", level=logging.INFO, propagate=False) as log,
        captured_logger("tornado", level=logging.INFO, propagate=False) as tornado_log,
    ):
        async with listen(listen_at, echo, **listen_args) as listener:
            address = f"{connect_by}://{listener.contact_address.partition('://')[2]}"
            with pytest.raises(FatalCommClosedError) as caught:
                await connect(address, timeout=3600, **connect_args)
            await async_poll_for(lambda: "failed before it began" in log.getvalue(), timeout=5)
    assert log.getvalue().count("\n") == 1
    assert tornado_log.getvalue() == ""
    assert address in str(caught.value)
    assert listener.listen_address in log.getvalue()
    return Refusal(caught.value, log.getvalue())


# Accepted peers


SCHEMES = pytest.mark.parametrize("scheme", ["tls", "wss"])


@SCHEMES
@gen_test()
async def test_extra_info_has_the_certificate_of_the_peer_and_the_cipher(version, scheme):
    async with tls_pair(scheme, **version) as ends:
        for end in ends:
            assert end.extra_info["peercert"]["subject"] == (
                (("commonName", "distributed tests"),),
            )
            name, protocol, bits = end.extra_info["cipher"]
            assert name
            assert protocol == version["tls_min_version"].name.replace("_", ".")
            assert bits >= 128
        before = ends[0].extra_info
        await ends[0].close()
        assert ends[0].extra_info == before


@SCHEMES
@gen_test()
async def test_both_ends_have_the_same_channel_binding_and_each_channel_another(version, scheme):
    bindings = set()
    for _ in range(2):
        async with tls_pair(scheme, **version) as (comm, other):
            assert comm.channel_binding
            assert comm.channel_binding == other.channel_binding
            bindings.add(comm.channel_binding)
            comm.abort()
            assert comm.channel_binding is None
    assert len(bindings) == 2


@gen_test()
async def test_a_token_may_be_required_in_addition_to_the_certificate(version):
    async with await listen(
        LOCALHOST, echo, token="open sesame, please", **server(**version)
    ) as listener:
        comm = await connect(
            listener.contact_address, token="open sesame, please", **client(**version)
        )
        await comm.write("hello")
        assert await comm.read() == "hello"
        await comm.close()
        with (
            captured_logger("distributed.comm"),
            pytest.raises(FatalCommClosedError, match="token"),
        ):
            await connect(listener.contact_address, token="simsalabim, please", **client(**version))


@gen_test()
async def test_a_certificate_may_be_for_any_host_unless_the_context_checks_names():
    args = client()
    async with await listen(LOCALHOST, echo, **server()) as listener:
        comm = await connect(listener.contact_address, server_hostname="elsewhere.org", **args)
        await comm.close()
        args["ssl_context"].check_hostname = True
        for name in (None, "node1.example.org", "localhost"):
            comm = await connect(listener.contact_address, server_hostname=name, **args)
            await comm.close()


@gen_test()
async def test_a_name_is_connected_to_and_checked():
    args = client()
    args["ssl_context"].check_hostname = True
    async with await listen("tls://127.0.0.1:0", echo, **server()) as listener:
        port = listener.get_host_port()[1]
        comm = await connect(f"tls://localhost:{port}", **args)
        assert comm.peer_address == f"tls://localhost:{port}"
        await comm.close()


@gen_test()
async def test_ciphers_are_chosen():
    cipher = "ECDHE-RSA-AES128-GCM-SHA256"
    args = client(tls_ciphers=cipher, tls_max_version=ssl.TLSVersion.TLSv1_2)
    async with await listen(LOCALHOST, echo, **server()) as listener:
        comm = await connect(listener.contact_address, **args)
        assert comm.extra_info["cipher"][0] == cipher
        await comm.close()


@gen_test()
async def test_temporary_security_accepts_its_own_certificates_only():
    pytest.importorskip("cryptography", reason="makes certificates")
    ours, theirs = Security.temporary(), Security.temporary()
    async with await listen(LOCALHOST, echo, **ours.get_listen_args("scheduler")) as listener:
        for role in ("client", "worker"):
            comm = await connect(listener.contact_address, **ours.get_connection_args(role))
            await comm.close()
        with captured_logger("distributed.comm"), pytest.raises(FatalCommClosedError):
            await connect(listener.contact_address, **theirs.get_connection_args("client"))


@gen_test()
async def test_an_idle_connection_holds_no_receive_buffer():
    async with tls_pair() as (comm, other):
        await comm.write("x")
        assert await other.read() == "x"
        await other.write("x")
        assert await comm.read() == "x"
        reading = asyncio.create_task(other.read())
        await async_poll_for(lambda: other._reading)
        assert comm._decoder._scratch is other._decoder._scratch is None
        await comm.close()
        with suppress(CommClosedError):
            await reading


# Refused peers


@gen_test()
async def test_a_server_of_another_authority_is_refused(version):
    it = await refusal(server("other", "ca", **version), client(**version))
    assert "the peer's certificate is not accepted: self-signed certificate" in it.error
    assert "distributed.comm.tls.ca-file" in it.error
    assert "does not accept the certificate of this side" in it.log


@gen_test()
async def test_a_client_of_another_authority_is_refused(version):
    it = await refusal(server(**version), client("other", "ca", **version))
    assert "the peer does not accept the certificate of this side" in it.error
    assert "authority that the peer does not know" in it.error
    assert "the peer's certificate is not accepted: self-signed certificate" in it.log
    assert "distributed.comm.tls.ca-file" in it.log


@gen_test()
async def test_a_server_whose_certificate_has_expired_is_refused(version):
    it = await refusal(server("expired", **version), client(**version))
    assert "the peer's certificate is not accepted: certificate has expired" in it.error
    assert "does not accept the certificate of this side: it is expired" in it.log


@gen_test()
async def test_a_client_whose_certificate_has_expired_is_refused(version):
    it = await refusal(server(**version), client("expired", **version))
    assert "accept the certificate of this side: it is expired" in it.error
    assert "the peer's certificate is not accepted: certificate has expired" in it.log


@gen_test()
async def test_a_client_without_a_certificate_is_refused(version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATES / "ca.pem")
    context.minimum_version = version["tls_min_version"]
    context.maximum_version = version["tls_max_version"]
    it = await refusal(server(**version), {"ssl_context": context})
    assert "demands a certificate" in it.error
    assert "the peer sent no certificate" in it.log


@gen_test()
async def test_a_server_of_another_name_is_refused_if_the_context_checks_names(version):
    args = client(**version)
    args["ssl_context"].check_hostname = True
    it = await refusal(server(**version), {**args, "server_hostname": "node2.example.org"})
    assert "not valid for 'node2.example.org'; the connection argument server_hostname" in str(
        it.error
    )
    assert "such as one for another host" in it.log


@gen_test()
async def test_peers_without_a_common_version_say_so():
    old, new = {"tls_max_version": VERSIONS[0]}, {"tls_min_version": VERSIONS[1]}
    for it in (
        await refusal(server(**new), client(**old)),
        await refusal(server(**old), client(**new)),
    ):
        assert "no TLS version in common" in it.error
        assert "no TLS version in common" in it.log


@gen_test()
async def test_peers_without_a_common_cipher_say_so():
    old = {"tls_max_version": ssl.TLSVersion.TLSv1_2}
    it = await refusal(
        server(tls_ciphers="ECDHE-RSA-AES128-GCM-SHA256", **old),
        client(tls_ciphers="ECDHE-RSA-AES256-GCM-SHA384", **old),
    )
    assert "no TLS cipher in common" in it.error
    assert "no TLS cipher in common" in it.log


@gen_test()
async def test_a_plain_client_at_a_tls_port_and_the_port_both_say_so():
    it = await refusal(server(), {}, connect_by="tcp")
    assert "the peer speaks TLS, and this side does not; is it at a tls:// address" in it.error
    assert "the peer does not speak TLS" in it.log


@gen_test()
async def test_a_tls_client_at_a_plain_port_and_the_port_both_say_so(version):
    it = await refusal({}, client(**version), listen_at="tcp://127.0.0.1:0")
    assert "the peer does not speak TLS; is it at a tcp:// address" in it.error
    assert "the peer speaks TLS, and this side does not" in it.log


@gen_test()
async def test_a_refused_connection_is_not_retried():
    attempts = 0

    class Connector(tcp.TLSConnector):
        async def connect(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal attempts
            attempts += 1
            return await super().connect(*args, **kwargs)

    class Backend(tcp.TLSBackend):
        _connector_class = Connector

    before, backends["tls"] = backends["tls"], Backend()
    try:
        await refusal(server("expired"), client())
    finally:
        backends["tls"] = before
    assert attempts == 1


@gen_test()
async def test_refusing_one_peer_does_not_affect_others():
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with await listen(LOCALHOST, accepted.put, **server()) as listener:
        comm = await connect(listener.contact_address, **client())
        other = await accepted.get()
        for _ in range(3):
            with captured_logger("distributed.comm"), pytest.raises(FatalCommClosedError):
                await connect(listener.contact_address, **client("other", "ca"))
        await comm.write("still here")
        assert await other.read() == "still here"
        again = await connect(listener.contact_address, **client())
        for end in (comm, other, again, await accepted.get()):
            await end.close()


# Raw peers


@gen_test()
async def test_a_silent_peer_is_closed_at_the_deadline_and_does_not_wake_the_event_loop(
    monkeypatch,
):
    events = 0
    handle = TLSStream._handle_events

    def count(*args: Any) -> None:
        nonlocal events
        events += 1
        handle(*args)

    monkeypatch.setattr(TLSStream, "_handle_events", count)
    with (
        config.set({"distributed.comm.timeouts.handshake": "100ms"}),
        captured_logger("distributed.comm", level=logging.INFO) as log,
    ):
        async with (
            listen(LOCALHOST, echo, **server()) as listener,
            raw_peer(listener.contact_address) as peer,
        ):
            assert await peer.wait_closed() == b""
    assert "distributed.comm.timeouts.handshake" in log.getvalue()
    assert events <= 2


@pytest.mark.parametrize("part", [1, 5, 100])
@gen_test()
async def test_a_peer_that_sends_part_of_a_client_hello_is_closed_at_the_deadline(part):
    hello = ssl.MemoryBIO()
    context = client()["ssl_context"]
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    with (
        config.set({"distributed.comm.timeouts.handshake": "100ms"}),
        captured_logger("distributed.comm", level=logging.INFO) as log,
    ):
        async with (
            listen(LOCALHOST, echo, **server()) as listener,
            raw_peer(listener.contact_address) as peer,
        ):
            await peer.send(hello.read()[:part])
            assert await peer.wait_closed() == b""
    assert log.getvalue().count("failed before it began") == 1


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n" * 4, bytes(64), b"\xff" * 99],
    ids=["http", "ssh", "zeros", "ones"],
)
@gen_test()
async def test_garbage_is_answered_by_an_alert_and_logged_once(garbage):
    with (
        captured_logger("distributed.comm", level=logging.INFO) as log,
        captured_logger("tornado", level=logging.INFO) as tornado_log,
    ):
        async with (
            listen(LOCALHOST, echo, **server()) as listener,
            raw_peer(listener.contact_address) as peer,
        ):
            await peer.send(garbage)
            assert speaks_tls(await peer.wait_closed())
            comm = await connect(listener.contact_address, **client())
            await comm.close()
    assert log.getvalue().count("\n") == 1
    assert "the peer does not speak TLS" in log.getvalue()
    assert tornado_log.getvalue() == ""


@gen_test()
async def test_a_peer_that_disconnects_before_or_in_the_tls_handshake_is_not_logged_as_a_warning():
    with (
        captured_logger("distributed.comm", level=logging.WARNING) as log,
        captured_logger("tornado", level=logging.INFO) as tornado_log,
    ):
        async with await listen(LOCALHOST, echo, **server()) as listener:
            for data in (b"", b"\x16\x03\x01\x02\x00\x01"):
                for end in (RawPeer.close, RawPeer.reset):
                    peer = connect_raw(listener.contact_address)
                    await peer.send(data)
                    end(peer)
            comm = await connect(listener.contact_address, **client())
            await comm.close()
    assert log.getvalue() == ""
    assert tornado_log.getvalue() == ""


@gen_test()
async def test_stopping_a_listener_closes_connections_in_the_tls_handshake():
    with captured_logger("distributed.comm", level=logging.INFO):
        listener: Any = await listen(LOCALHOST, echo, **server())
        async with raw_peer(listener.contact_address) as peer:
            await async_poll_for(lambda: len(listener._handshaking) == 1, timeout=5)
            listener.stop()
            assert await peer.wait_closed() == b""


@gen_test()
async def test_connecting_to_a_server_that_closes_in_the_tls_handshake_is_retried():
    closed = 0

    async def close(peer: RawPeer) -> None:
        nonlocal closed
        closed += 1
        await peer.receive(1)
        peer.close()

    async with raw_server(close) as where:
        with pytest.raises(OSError, match=r"Timed out") as caught:
            await connect(f"tls://{where}", timeout=0.5, **client())
        assert re.search("TLS handshake|Connection reset", str(caught.value.__cause__))
    assert closed > 1


@gen_test()
async def test_connecting_can_be_cancelled_in_the_tls_handshake():
    hellos: asyncio.Queue[bytes] = asyncio.Queue()
    ended = asyncio.Event()

    async def serve(peer: RawPeer) -> None:
        await hellos.put(await peer.receive(100))
        await peer.wait_closed()
        ended.set()

    async with raw_server(serve) as where:
        connecting = asyncio.create_task(connect(f"tls://{where}", **client()))
        assert speaks_tls(await hellos.get())
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await ended.wait()


@gen_test()
async def test_closing_in_the_middle_of_a_message_is_the_same_error_as_over_tcp(version):
    async with tls_pair(**version) as (comm, other):
        await other.stream.write(bytes([200, 0, 0, 0]))
        other.abort()
        with pytest.raises(CommClosedError, match="in the middle of a message") as caught:
            await comm.read()
        assert not isinstance(caught.value, FatalCommClosedError)


@pytest.mark.parametrize("scheme", ["tls", "wss"])
@pytest.mark.parametrize(
    "data",
    # The first is the header of a TLS record with 64 bytes that were encrypted with no key.
    [b"\x17\x03\x03\x00\x40" + bytes(64), bytes(64), b"GET / HTTP/1.1\r\n\r\n"],
    ids=["a record", "zeros", "http"],
)
@gen_test()
async def test_bytes_that_were_not_encrypted_close_the_comm(scheme, data):
    async with tls_pair(scheme) as (comm, other):
        stream = other.stream if scheme == "tls" else other._stream
        os.write(stream.socket.fileno(), data)
        with (
            captured_logger("tornado", level=logging.INFO) as log,
            pytest.raises(FatalCommClosedError, match="TLS failed after the handshake") as caught,
        ):
            await comm.read()
        # The peer does: it has completed the handshake.
        assert "does not speak TLS" not in str(caught.value)
        assert comm.closed()
        assert log.getvalue() == ""


def test_the_end_of_the_connection_is_not_final_whatever_the_class_of_its_error():
    # Its class with OpenSSL 3.6, which no older version raises for it.
    ended = ssl.SSLError(1, "unexpected eof while reading")
    ended.reason = "WRONG_VERSION_NUMBER"
    assert is_final(ended)
    ended.reason = "UNEXPECTED_EOF_WHILE_READING"
    assert not is_final(ended)
    assert "the peer closed during the TLS handshake" in explain(ended)


def test_a_tls_comm_is_a_tcp_comm():
    assert issubclass(tcp.TLS, tcp.TCP)
    assert issubclass(tcp.TLSListener, tcp.BaseTCPListener)
    assert issubclass(tcp.TLSConnector, tcp.BaseTCPConnector)


# The stream


@gen_test()
async def test_bytes_of_a_server_that_speaks_first_are_not_lost():
    # The server sends first, as servers without TLS do, and its bytes are read later.
    async with raw_server(lambda peer: peer.send(b"hello there, this is not TLS")) as where:
        with pytest.raises(FatalCommClosedError, match="does not speak TLS"):
            await connect(f"tls://{where}", **client())


@gen_test()
async def test_waiting_for_the_handshake_of_a_closed_stream_raises():
    stream = TLSStream(socket.socket(), ssl_options=client()["ssl_context"])
    stream.close()
    with pytest.raises(OSError, match="closed"):
        await stream.do_handshake()


@gen_test()
async def test_the_handshake_with_a_peer_that_has_left_before_the_stream_was_made_fails_at_once():
    context = server()["ssl_context"]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    accepted.setblocking(False)
    wrapped = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()

    def is_disconnected() -> bool:
        try:
            wrapped.getpeername()
        except OSError:
            return True
        return False

    await async_poll_for(is_disconnected, timeout=10)
    stream = TLSStream(wrapped, ssl_options=context)
    with pytest.raises(StreamClosedError):
        await stream.do_handshake()


def test_a_peer_that_leaves_while_a_socket_is_wrapped_leaks_no_socket():
    class Leaving(socket.socket):
        """A socket whose peer leaves after it was asked for its address."""

        def getpeername(self):
            name = super().getpeername()
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            other.close()
            return name

    context = ssl.create_default_context()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = Leaving()
        ours.connect(server.getsockname())
        other, _ = server.accept()
        number = ours.fileno()
        with pytest.raises(OSError, match=r"reset|not connected"):
            open_tls_stream(ours, context, server_hostname="localhost")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
