"""What is TLS's own: who is let in, and who is told what where somebody is not."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from distributed import Server, rpc
from distributed.base import config
from distributed.comm import connect, listen, tcp
from distributed.comm.core import Comm, CommClosedError, FatalCommClosedError
from distributed.comm.registry import backends
from distributed.comm.tests.transports import echo
from distributed.comm.tls import TLSStream, speaks_tls
from distributed.protocol import to_serialize
from distributed.security.settings import Security
from distributed.utils_test import async_poll_for, captured_logger, gen_test, tls_security

LOCALHOST = "tls://127.0.0.1:0"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
CERTIFICATES = Path(__file__).parents[2] / "security" / "tests" / "data" / "tls"


def security(identity: str = "cert", authority: str = "ca", **kwargs: Any) -> Security:
    """A client or server with one of the certificates for tests."""
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


class Refusal:
    """What both sides say of a connection that does not come about."""

    def __init__(self, error: BaseException, log: str, seconds: float) -> None:
        self.error = error
        self.log = log
        self.seconds = seconds


async def refusal(
    listen_args: dict[str, Any],
    connect_args: dict[str, Any],
    listen_at: str = LOCALHOST,
    connect_by: str = "tls",
) -> Refusal:
    """Connect where that must fail, finally and at once, and both sides must say it once."""
    # Tornado's logger too: what it says is said twice.
    with (
        captured_logger("distributed.comm", level=logging.INFO, propagate=False) as log,
        captured_logger("tornado", level=logging.INFO, propagate=False) as tornado_log,
    ):
        listener = await listen(listen_at, echo, **listen_args)
        address = f"{connect_by}://{listener.contact_address.partition('://')[2]}"
        start = time.perf_counter()
        with pytest.raises(FatalCommClosedError) as caught:
            await connect(address, timeout=10, **connect_args)
        seconds = time.perf_counter() - start
        await async_poll_for(lambda: "failed before it began" in log.getvalue(), timeout=5)
        listener.stop()
    assert log.getvalue().count("\n") == 1
    assert tornado_log.getvalue() == ""
    assert address in str(caught.value)
    assert listener.listen_address in log.getvalue()
    assert seconds < 2
    return Refusal(caught.value, log.getvalue(), seconds)


# Who belongs here


@gen_test()
async def test_extra_info_has_the_certificate_of_the_peer_and_the_cipher(version):
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with await listen(LOCALHOST, accepted.put, **server(**version)) as listener:
        comm = await connect(listener.contact_address, **client(**version))
        other = await accepted.get()
        for end in (comm, other):
            assert end.extra_info["peercert"]["subject"] == (
                (("commonName", "distributed tests"),),
            )
            name, protocol, bits = end.extra_info["cipher"]
            assert name
            assert protocol == version["tls_min_version"].name.replace("_", ".")
            assert bits >= 128
        before = comm.extra_info
        await comm.close()
        assert comm.extra_info == before
        other.abort()


@gen_test()
async def test_both_ends_have_a_binding_to_the_channel_and_each_channel_another(version):
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    bindings = set()
    async with await listen(LOCALHOST, accepted.put, **server(**version)) as listener:
        for _ in range(2):
            comm: Any = await connect(listener.contact_address, **client(**version))
            other = await accepted.get()
            assert comm.channel_binding
            assert comm.channel_binding == other.channel_binding
            bindings.add(comm.channel_binding)
            comm.abort()
            assert comm.channel_binding is None
            other.abort()
    assert len(bindings) == 2


@gen_test()
async def test_a_token_may_be_required_besides_the_certificate(version):
    async with await listen(LOCALHOST, echo, token="sesame", **server(**version)) as listener:
        comm = await connect(listener.contact_address, token="sesame", **client(**version))
        await comm.write("hello")
        assert await comm.read() == "hello"
        await comm.close()
        with (
            captured_logger("distributed.comm"),
            pytest.raises(FatalCommClosedError, match="token"),
        ):
            await connect(listener.contact_address, token="simsalabim", **client(**version))


@gen_test()
async def test_the_certificate_of_a_peer_may_be_for_any_host_unless_the_context_says_otherwise():
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
async def test_temporary_security_lets_its_own_in():
    pytest.importorskip("cryptography", reason="makes certificates")
    ours, theirs = Security.temporary(), Security.temporary()
    async with await listen(LOCALHOST, echo, **ours.get_listen_args("scheduler")) as listener:
        for role in ("client", "worker"):
            comm = await connect(listener.contact_address, **ours.get_connection_args(role))
            await comm.close()
        with captured_logger("distributed.comm"), pytest.raises(FatalCommClosedError):
            await connect(listener.contact_address, **theirs.get_connection_args("client"))


@gen_test()
async def test_an_idle_connection_keeps_no_memory_for_what_may_arrive():
    comms: list[Any] = []

    async def serve(comm: Comm) -> None:
        comms.append(comm)
        await comm.write(await comm.read())
        with suppress(CommClosedError):
            await comm.read()

    async with listen(LOCALHOST, serve, **server()) as listener:
        comm: Any = await connect(listener.contact_address, **client())
        await comm.write("x")
        assert await comm.read() == "x"
        await async_poll_for(lambda: comms[0]._reading)
        assert comm._decoder._scratch is comms[0]._decoder._scratch is None
        await comm.close()


@gen_test()
async def test_a_server_is_called_over_tls():
    args = tls_security().get_connection_args("client")
    async with Server({"ping": lambda: "pong"}, connection_args=args) as called:
        await called.listen(LOCALHOST, **tls_security().get_listen_args("worker"))
        assert called.address.startswith("tls://")
        async with rpc(called.address, connection_args=args) as remote:
            assert await remote.ping() == "pong"
        assert await called.rpc(called.address).ping() == "pong"


# Who does not


@gen_test()
async def test_a_server_of_another_authority_is_refused(version):
    it = await refusal(server("other", "ca", **version), client(**version))
    assert "the peer's certificate is not accepted: self-signed certificate" in str(it.error)
    assert "distributed.comm.tls.ca-file" in str(it.error)
    assert "does not accept the certificate of this side" in it.log


@gen_test()
async def test_a_client_of_another_authority_is_refused(version):
    it = await refusal(server(**version), client("other", "ca", **version))
    assert "the peer does not accept the certificate of this side" in str(it.error)
    assert "authority that the peer does not know" in str(it.error)
    assert "the peer's certificate is not accepted: self-signed certificate" in it.log
    assert "distributed.comm.tls.ca-file" in it.log


@gen_test()
async def test_a_server_whose_certificate_has_expired_is_refused(version):
    it = await refusal(server("expired", **version), client(**version))
    assert "the peer's certificate is not accepted: certificate has expired" in str(it.error)
    assert "does not accept the certificate of this side: it is expired" in it.log


@gen_test()
async def test_a_client_whose_certificate_has_expired_is_refused(version):
    it = await refusal(server(**version), client("expired", **version))
    assert "accept the certificate of this side: it is expired" in str(it.error)
    assert "the peer's certificate is not accepted: certificate has expired" in it.log


@gen_test()
async def test_a_client_without_a_certificate_is_refused(version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(CERTIFICATES / "ca.pem")
    context.minimum_version = version["tls_min_version"]
    context.maximum_version = version["tls_max_version"]
    it = await refusal(server(**version), {"ssl_context": context})
    assert "it demands a certificate" in str(it.error) or "the peer demands a certificate" in str(
        it.error
    )
    assert "the peer sent no certificate" in it.log


@gen_test()
async def test_a_server_of_another_name_is_refused_where_the_context_says_so(version):
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
        assert "no TLS version in common" in str(it.error)
        assert "no TLS version in common" in it.log


@gen_test()
async def test_peers_without_a_common_cipher_say_so():
    old = {"tls_max_version": ssl.TLSVersion.TLSv1_2}
    it = await refusal(
        server(tls_ciphers="ECDHE-RSA-AES128-GCM-SHA256", **old),
        client(tls_ciphers="ECDHE-RSA-AES256-GCM-SHA384", **old),
    )
    assert "no TLS cipher in common" in str(it.error)
    assert "no TLS cipher in common" in it.log


@gen_test()
async def test_a_plain_client_at_a_tls_port_and_the_port_both_say_so():
    it = await refusal(server(), {}, connect_by="tcp")
    assert "the peer speaks TLS, and this side does not; is it at a tls:// address" in str(it.error)
    assert "the peer does not speak TLS" in it.log


@gen_test()
async def test_a_tls_client_at_a_plain_port_and_the_port_both_say_so(version):
    it = await refusal({}, client(**version), listen_at="tcp://127.0.0.1:0")
    assert "the peer does not speak TLS; is it at a tcp:// address" in str(it.error)
    assert "the peer speaks TLS, and this side does not" in it.log


@gen_test()
async def test_who_was_refused_is_not_asked_again():
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
async def test_refusing_one_peer_leaves_others_alone():
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


@pytest.fixture
def raw() -> Iterator[Callable[[Any], socket.socket]]:
    sockets: list[socket.socket] = []

    def open_connection(listener: Any) -> socket.socket:
        sockets.append(socket.create_connection(listener.get_host_port()))
        sockets[-1].setblocking(False)
        return sockets[-1]

    yield open_connection
    for sock in sockets:
        sock.close()


async def read_all(sock: socket.socket) -> bytes:
    """Read until the other side closes."""
    received = b""
    loop = asyncio.get_running_loop()
    try:
        while chunk := await loop.sock_recv(sock, 2**16):
            received += chunk
    except ConnectionResetError:
        pass
    return received


@gen_test()
async def test_silence_instead_of_a_tls_handshake_ends_at_the_deadline_and_costs_no_time(raw):
    with (
        config.set({"distributed.comm.timeouts.handshake": "300ms"}),
        captured_logger("distributed.comm", level=logging.INFO) as log,
    ):
        async with await listen(LOCALHOST, echo, **server()) as listener:
            used = time.process_time()
            assert await read_all(raw(listener)) == b""
            used = time.process_time() - used
    assert "distributed.comm.timeouts.handshake" in log.getvalue()
    assert used < 0.15


@pytest.mark.parametrize("part", [1, 5, 100])
@gen_test()
async def test_a_part_of_a_client_hello_ends_at_the_deadline(raw, part):
    hello = ssl.MemoryBIO()
    context = client()["ssl_context"]
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    with (
        config.set({"distributed.comm.timeouts.handshake": "100ms"}),
        captured_logger("distributed.comm", level=logging.INFO) as log,
    ):
        async with await listen(LOCALHOST, echo, **server()) as listener:
            sock = raw(listener)
            sock.send(hello.read()[:part])
            assert await read_all(sock) == b""
    assert log.getvalue().count("failed before it began") == 1


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n" * 4, bytes(64), b"\xff" * 99],
    ids=["http", "ssh", "zeros", "ones"],
)
@gen_test()
async def test_garbage_is_answered_by_an_alert_and_logged_once(raw, garbage):
    with (
        captured_logger("distributed.comm", level=logging.INFO) as log,
        captured_logger("tornado", level=logging.INFO) as tornado_log,
    ):
        async with await listen(LOCALHOST, echo, **server()) as listener:
            sock = raw(listener)
            sock.send(garbage)
            assert speaks_tls(await read_all(sock))
            comm = await connect(listener.contact_address, **client())
            await comm.close()
    assert log.getvalue().count("\n") == 1
    assert "the peer does not speak TLS" in log.getvalue()
    assert tornado_log.getvalue() == ""


@gen_test()
async def test_a_peer_that_goes_away_before_or_in_the_tls_handshake_is_no_warning(raw):
    with (
        captured_logger("distributed.comm", level=logging.WARNING) as log,
        captured_logger("tornado", level=logging.INFO) as tornado_log,
    ):
        async with await listen(LOCALHOST, echo, **server()) as listener:
            for data in (b"", b"\x16\x03\x01\x02\x00\x01"):
                for linger in (b"", b"\1\0\0\0\0\0\0\0"):
                    sock = raw(listener)
                    if data:
                        sock.send(data)
                    if linger:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    sock.close()
            comm = await connect(listener.contact_address, **client())
            await comm.close()
    assert log.getvalue() == ""
    assert tornado_log.getvalue() == ""


@gen_test()
async def test_stopping_a_listener_closes_connections_in_the_tls_handshake(raw):
    with captured_logger("distributed.comm", level=logging.INFO):
        listener: Any = await listen(LOCALHOST, echo, **server())
        sock = raw(listener)
        await async_poll_for(lambda: len(listener._handshaking) == 1, timeout=5)
        listener.stop()
        assert await read_all(sock) == b""


@gen_test()
async def test_a_server_that_closes_in_the_tls_handshake_is_tried_again():
    closed = 0

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal closed
        closed += 1
        await reader.read(1)
        writer.close()

    listener = await asyncio.start_server(close, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    with pytest.raises(OSError, match=r"Timed out .*(TLS handshake|Connection reset)"):
        await connect(f"tls://127.0.0.1:{port}", timeout=0.5, **client())
    assert closed > 1
    listener.close()
    await listener.wait_closed()


@gen_test()
async def test_connecting_is_cancelled_in_the_tls_handshake():
    silent = socket.create_server(("127.0.0.1", 0))
    silent.setblocking(False)
    with closing(silent):
        connecting = asyncio.create_task(
            connect(f"tls://127.0.0.1:{silent.getsockname()[1]}", **client())
        )
        peer, _ = await asyncio.get_running_loop().sock_accept(silent)
        with closing(peer):
            assert speaks_tls(await asyncio.get_running_loop().sock_recv(peer, 100))
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await read_all(peer)


@gen_test()
async def test_the_end_of_a_connection_is_told_as_over_tcp(version):
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    async with await listen(LOCALHOST, accepted.put, **server(**version)) as listener:
        comm = await connect(listener.contact_address, **client(**version))
        other = await accepted.get()
        await other.stream.write(bytes([200, 0, 0, 0]))
        other.abort()
        with pytest.raises(CommClosedError, match="in the middle of a message") as caught:
            await comm.read()
        assert not isinstance(caught.value, FatalCommClosedError)


@gen_test()
async def test_what_was_tampered_with_closes_the_comm():
    accepted: asyncio.Queue[Any] = asyncio.Queue()
    async with await listen(LOCALHOST, accepted.put, **server()) as listener:
        comm = await connect(listener.contact_address, **client())
        other = await accepted.get()
        # Bytes of the length of a record, which no key has encrypted.
        os.write(other.stream.socket.fileno(), b"\x17\x03\x03\x00\x40" + bytes(64))
        with (
            captured_logger("tornado", level=logging.INFO) as log,
            pytest.raises(FatalCommClosedError, match="TLS failed"),
        ):
            await comm.read()
        assert comm.closed()
        assert log.getvalue() == ""
        other.abort()


# What is needed, and what is refused


@pytest.mark.parametrize("context", [None, "context", {}])
@gen_test()
async def test_without_a_context_there_is_no_tls(context):
    with pytest.raises(TypeError, match=re.escape(f"Instead got {context!r}")):
        await connect("tls://127.0.0.1:1", ssl_context=context)
    with pytest.raises(TypeError, match="TLS expects a `ssl_context` argument"):
        await listen(LOCALHOST, echo, ssl_context=context)


@gen_test()
async def test_plain_connections_are_refused_where_encryption_is_required():
    async with await listen("tcp://127.0.0.1:0", echo) as listener:
        address = listener.contact_address
        expected = (
            f"encryption required by Dask configuration, refusing communication from/to '{address}'"
        )
        with pytest.raises(RuntimeError, match=re.escape(expected)):
            await connect(address, require_encryption=True)
    with pytest.raises(RuntimeError, match=r"from/to 'tcp://127\.0\.0\.1:0'"):
        await listen("tcp://127.0.0.1:0", echo, require_encryption=True)


@gen_test()
async def test_what_is_encrypted_or_stays_in_the_process_is_not_refused():
    async with await listen(LOCALHOST, echo, **server(require_encryption=True)) as listener:
        args = client(require_encryption=True)
        assert args["require_encryption"] is True
        await (await connect(listener.contact_address, **args)).close()
    async with await listen("inproc://", echo, require_encryption=True) as listener:
        await (await connect(listener.contact_address, require_encryption=True)).close()


def test_the_backend_is_registered():
    assert isinstance(backends["tls"], tcp.TLSBackend)


def test_a_tls_comm_is_a_tcp_comm():
    assert issubclass(tcp.TLS, tcp.TCP)
    assert issubclass(tcp.TLSListener, tcp.BaseTCPListener)
    assert issubclass(tcp.TLSConnector, tcp.BaseTCPConnector)


# The stream


@gen_test()
async def test_nothing_that_arrives_early_is_lost():
    # A server that speaks first, as plain ones do, and is heard only later.
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello there, this is no TLS")
        await writer.drain()
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0)
    address = f"tls://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    with pytest.raises(FatalCommClosedError, match="does not speak TLS"):
        await connect(address, **client())
    listener.close()
    await listener.wait_closed()


@gen_test()
async def test_waiting_for_the_handshake_of_a_closed_stream_raises():
    stream = TLSStream(socket.socket(), ssl_options=client()["ssl_context"])
    stream.close()
    with pytest.raises(OSError, match="closed"):
        await stream.do_handshake()


@pytest.mark.timeout(300)
@gen_test(timeout=240)
async def test_a_message_may_be_larger_than_2_gib():
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    size = 2**31 + 200_000_000
    async with await listen(LOCALHOST, accepted.put, **server()) as listener:
        comm = await connect(listener.contact_address, **client())
        other = await accepted.get()
        sent = bytearray(size)
        sent[-5:] = b"tail!"
        writing = asyncio.create_task(comm.write({"x": to_serialize(sent)}))
        arrived = memoryview((await other.read())["x"])
        assert await writing > size
        assert arrived.nbytes == size
        assert bytes(arrived[-5:]) == b"tail!"
        await other.write("still usable")
        assert await comm.read() == "still usable"
        await comm.close()
        await other.close()
