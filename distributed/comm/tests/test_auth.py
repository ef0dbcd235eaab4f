"""Authentication by a token: mutual, over every transport, and within the handshake."""

from __future__ import annotations

import pickle
import socket
from contextlib import asynccontextmanager

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.base import config
from distributed.comm import connect, listen
from distributed.comm.auth import (
    NONCE_SIZE,
    Authentication,
    AuthenticationError,
    Penalties,
    configured_token,
)
from distributed.comm.core import FatalCommClosedError, Listener
from distributed.comm.tests.raw_peers import HANDSHAKE, message, packed, raw_peer
from distributed.comm.tests.transports import TRANSPORTS
from distributed.core import Server, rpc
from distributed.security.settings import Security
from distributed.utils_test import captured_logger, gen_test, tls_security

TOKEN = "correct horse battery staple"


@pytest.fixture(params=list(TRANSPORTS.values()), ids=list(TRANSPORTS))
def transport(request):
    return request.param


# Challenge and response


def sides(token="abc", other=None, channel=None, other_channel=None):
    client = Authentication(token, "client", channel)
    server = Authentication(other or token, "server", other_channel)
    client.receive_challenge(server.challenge())
    server.receive_challenge(client.challenge())
    return client, server


@given(token=st.text(min_size=1), channel=st.none() | st.binary())
def test_sides_with_the_same_token_accept_each_other(token, channel):
    client, server = sides(token, token, channel, channel)
    server.check(client.proof())
    client.check(server.proof())


@given(token=st.text(min_size=1), other=st.text(min_size=1))
def test_sides_with_different_tokens_refuse_each_other(token, other):
    client, server = sides(token, other + "x" if other == token else other)
    with pytest.raises(AuthenticationError, match="wrong"):
        server.check(client.proof())
    with pytest.raises(AuthenticationError, match="wrong"):
        client.check(server.proof())


def test_a_proof_forwarded_over_another_channel_is_refused():
    client, server = sides(channel=b"one", other_channel=b"two")
    with pytest.raises(AuthenticationError):
        server.check(client.proof())


def test_a_side_refuses_its_own_proof():
    client, server = sides()
    with pytest.raises(AuthenticationError):
        client.check(client.proof())
    with pytest.raises(AuthenticationError):
        server.check(server.proof())


def test_a_proof_is_valid_for_one_connection():
    client, _ = sides()
    _, other_server = sides()
    with pytest.raises(AuthenticationError):
        other_server.check(client.proof())


@pytest.mark.parametrize("proof", [None, "", 7, b"", b"x" * 32, ["a"]])
def test_an_invalid_proof_is_refused(proof):
    client, _ = sides()
    with pytest.raises(AuthenticationError):
        client.check(proof)


@pytest.mark.parametrize(
    "challenge",
    [
        None,
        {},
        "x",
        {"scheme": "hmac-sha256", "nonce": b"short"},
        {"scheme": "hmac-sha256", "nonce": "x" * NONCE_SIZE},
        {"scheme": "md5", "nonce": b"x" * NONCE_SIZE},
    ],
)
def test_an_invalid_challenge_is_refused(challenge):
    with pytest.raises(AuthenticationError):
        Authentication("abc", "client").receive_challenge(challenge)


def test_the_repr_does_not_show_the_token():
    assert "secret" not in repr(Authentication("secret", "client"))


def test_each_failure_doubles_the_delay_of_that_host_until_it_is_forgotten():
    now = 0.0
    penalties = Penalties(first=1, longest=6, forgotten_after=60, clock=lambda: now)
    delays = []
    for _ in range(5):
        delays.append(penalties.delay("a"))
        penalties.failed("a")
    assert delays == [0, 1, 2, 4, 6]
    assert penalties.delay("b") == 0
    now = 61.0
    assert penalties.delay("a") == 0
    penalties.failed("a")
    assert penalties.delay("a") == 1


def test_the_number_of_remembered_hosts_is_limited():
    penalties = Penalties(max_hosts=2)
    for host in "abc":
        penalties.failed(host)
    assert [penalties.delay(host) > 0 for host in "abc"] == [False, True, True]


# Configuration


def test_without_configuration_there_is_no_token():
    assert configured_token() is None


def test_the_token_may_be_in_a_file(tmp_path):
    (tmp_path / "token").write_text(f"  {TOKEN}\n")
    with config.set({"distributed.comm.auth.token-file": str(tmp_path / "token")}):
        assert configured_token() == TOKEN


@pytest.mark.parametrize("token", ["", 7, b"bytes"])
def test_a_configured_token_that_is_not_text_is_an_error(token):
    with (
        config.set({"distributed.comm.auth.token": token}),
        pytest.raises(ValueError, match=r"distributed\.comm\.auth\.token"),
    ):
        configured_token()


def test_a_missing_token_file_is_an_error_that_names_its_source(tmp_path, monkeypatch):
    path = str(tmp_path / "nowhere")
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__AUTH__TOKEN_FILE", path)
    with (
        config.set({"distributed.comm.auth.token-file": path}),
        pytest.raises(FileNotFoundError) as caught,
    ):
        configured_token()
    assert caught.value.filename == path
    assert "'distributed.comm.auth.token-file' (from environment variable DASK_" in str(
        caught.value
    )


# Over comms


@gen_test()
async def test_sides_that_know_the_token_connect(transport):
    async with transport.pair({"token": TOKEN}, token=TOKEN) as (client, server):
        await client.write({"x": 1})
        assert await server.read() == {"x": 1}
        assert "auth" not in client.remote_info
        assert "auth" not in server.remote_info


@gen_test(config={"distributed.comm.auth.token": TOKEN})
async def test_the_token_of_the_configuration_is_used_by_both_sides(transport):
    async with transport.pair() as (client, server):
        await server.write("ok")
        assert await client.read() == "ok"


@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [
        (TOKEN, "wrong, but long enough", "refused this side: the token is wrong"),
        (TOKEN, None, "requires a token, and none is given here"),
        (None, TOKEN, "has no token, and one is required here"),
    ],
    ids=["wrong", "none here", "none there"],
)
@gen_test()
async def test_a_side_without_the_token_is_refused(transport, theirs, ours, reason):
    handled = []
    with captured_logger("distributed.comm") as log:
        async with transport.listening(handled.append, token=theirs) as listener:
            with pytest.raises(FatalCommClosedError, match=reason):
                await transport.connect(listener.contact_address, token=ours, timeout=5)
    assert handled == []
    assert TOKEN not in log.getvalue()


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
@gen_test()
async def test_an_error_names_proxies_if_the_token_is_bound_to_tls(scheme):
    security = tls_security() if scheme == "tls" else Security()
    address = f"{scheme}://127.0.0.1:0"
    arguments = security.get_listen_args("scheduler") | {"token": TOKEN}
    async with listen(address, lambda comm: None, **arguments) as listener:
        arguments = security.get_connection_args("client") | {"token": "a wrong token, but long"}
        with pytest.raises(FatalCommClosedError, match="the token is wrong") as caught:
            await connect(listener.contact_address, **arguments)
    assert ("a proxy ends TLS" in str(caught.value)) is (scheme == "tls")


@gen_test()
async def test_the_server_logs_the_reason_of_a_refusal():
    with captured_logger("distributed.comm") as log:
        async with listen("tcp://127.0.0.1:0", lambda comm: None, token=TOKEN) as listener:
            with pytest.raises(FatalCommClosedError):
                await connect(listener.contact_address, token="a wrong token, but long")
    assert "is not trusted by" in log.getvalue()
    assert "the token is wrong" in log.getvalue()


@gen_test()
async def test_a_server_and_its_callers_may_be_given_the_token():
    async with Server({"add": lambda x, y: x + y}) as server:
        await server.listen("tcp://127.0.0.1:0", token=TOKEN)
        async with rpc(server.address, connection_args={"token": TOKEN}) as remote:
            assert await remote.add(x=1, y=2) == 3
        async with rpc(server.address) as stranger:
            with pytest.raises(OSError, match="requires a token"):
                await stranger.add(x=1, y=2)


@gen_test()
async def test_a_security_object_gives_its_token_to_both_sides():
    security = Security(token=TOKEN)
    async with Server({"add": lambda x, y: x + y}) as server:
        await server.listen("tcp://127.0.0.1:0", **security.get_listen_args("worker"))
        async with rpc(
            server.address, connection_args=security.get_connection_args("client")
        ) as remote:
            assert await remote.add(x=1, y=2) == 3
        with pytest.raises(FatalCommClosedError, match="requires a token"):
            await connect(server.address)


@pytest.mark.parametrize(
    ("token", "error"), [("", ValueError), (b" \n", ValueError), (7, TypeError)]
)
@gen_test()
async def test_an_invalid_token_is_an_error(token, error):
    with pytest.raises(error, match="token"):
        listen("tcp://127.0.0.1:0", lambda comm: None, token=token)
    with pytest.raises(error, match="token"):
        await connect("tcp://127.0.0.1:1", token=token)


@gen_test()
async def test_a_token_may_be_bytes(transport):
    async with transport.pair({"token": b"\xff\x00" * 8}, token=b"\xff\x00" * 8) as (
        client,
        server,
    ):
        await client.write(1)
        assert await server.read() == 1


@gen_test()
async def test_a_host_that_failed_waits_longer_each_time():
    async with listen("tcp://127.0.0.1:0", lambda comm: None, token=TOKEN) as listener:
        delays = []
        for _ in range(3):
            delays.append(listener._penalties.delay("127.0.0.1"))
            with pytest.raises(FatalCommClosedError):
                await connect(listener.contact_address, token="a wrong token, but long")
        assert delays == [0, 0.1, 0.2]


@gen_test()
async def test_listening_with_a_token_over_a_transport_without_authentication_is_an_error(
    monkeypatch,
):
    from distributed.comm.registry import Backend, backends

    class Trusting(Backend):
        def get_connector(self):
            raise NotImplementedError

        def get_listener(self, loc, handle_comm, deserialize, **connection_args):
            class Open(Listener):
                listen_address = contact_address = "trusting://x"

                async def start(self):
                    raise AssertionError("it would accept every peer")

                def stop(self):
                    pass

                async def on_connection(self, comm, handshake_overrides=None):
                    pass

            return Open()

        def get_address_host(self, loc):
            return loc

        def resolve_address(self, loc):
            return loc

        def get_local_address_for(self, loc):
            return loc

    monkeypatch.setitem(backends, "trusting", Trusting())
    with pytest.raises(RuntimeError, match="trusting:// does not ask its peers"):
        await listen("trusting://x", lambda comm: None, token=TOKEN)


# On the wire


PLAIN = {"compression", "python", "pickle-protocol"}


@asynccontextmanager
async def raw(handler=lambda comm: None, **kwargs):
    """Listen, connect a raw peer, and yield it with the message that the listener sent first."""
    async with (
        listen("tcp://127.0.0.1:0", handler, **kwargs) as listener,
        raw_peer(listener.contact_address) as peer,
    ):
        yield peer, await read(peer)


async def read(peer):
    (frame,) = await peer.read_message()
    return msgpack.unpackb(frame)


@gen_test()
async def test_without_a_token_the_handshake_is_that_of_the_original():
    async with raw() as (_, hello):
        assert set(hello) - {"features"} == PLAIN


@gen_test()
async def test_a_peer_that_ignores_the_challenge_gets_the_reason_and_is_disconnected():
    async with raw(token=TOKEN) as (peer, hello):
        assert set(hello) - {"features"} == {*PLAIN, "auth"}
        await peer.send(message(HANDSHAKE))
        assert "has no token" in (await read(peer))["refused"]
        assert await peer.wait_closed() == b""


@gen_test()
async def test_a_server_sends_no_proof_to_a_peer_with_a_wrong_one():
    auth = {"scheme": "hmac-sha256", "nonce": b"n" * NONCE_SIZE}
    async with raw(token=TOKEN) as (peer, _):
        await peer.send(packed(msgpack.packb({**HANDSHAKE, "auth": auth})))
        await peer.send(packed(msgpack.packb({"proof": bytes(32)})))
        assert await read(peer) == {"refused": "the token is wrong"}


class Bomb:
    def __reduce__(self):
        return socket.create_connection, (("127.0.0.1", 9),)


@pytest.mark.parametrize(
    "frames",
    [
        [msgpack.packb({"__Pickled__": 1}), msgpack.packb({"pickled-obj": pickle.dumps(Bomb())})],
        [msgpack.packb({"__Serialized__": 1}), b"x"],
        [msgpack.packb({"x": "y" * 70_000})],
        [b"\xc1"],
        [b"\x93" * 60_000],
        [msgpack.packb({1: 2})],
        [msgpack.packb("hello")],
    ],
    ids=["pickle", "frames", "large", "garbage", "nested", "int keys", "text"],
)
@gen_test()
async def test_a_handshake_that_is_not_one_small_frame_of_plain_values_is_refused(
    frames, monkeypatch
):
    unpickled = []
    monkeypatch.setattr(socket, "create_connection", lambda *args: unpickled.append(args))
    handled = []
    with captured_logger("distributed.comm") as log:
        async with raw(handled.append) as (peer, _):
            await peer.send(packed(*frames))
            assert await peer.wait_closed() == b""
    assert handled == unpickled == []
    assert log.getvalue().count("failed before it began") == 1


@gen_test()
async def test_the_error_of_a_handshake_above_the_limit_names_the_key():
    with captured_logger("distributed.comm") as log:
        async with raw() as (peer, _):
            await peer.send(packed(msgpack.packb({"x": "y" * 70_000})))
            assert await peer.wait_closed() == b""
    assert "distributed.comm.max-handshake-size" in log.getvalue()
