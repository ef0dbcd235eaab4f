"""A token that both sides know: mutual, over every transport, and inside the handshake."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket

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
from distributed.comm.tests.transports import TRANSPORTS
from distributed.core import Server, rpc
from distributed.protocol.framing import MessageDecoder, pack_message
from distributed.security.settings import Security
from distributed.utils_test import captured_logger, gen_test

TOKEN = "correct horse battery staple"


@pytest.fixture(params=list(TRANSPORTS.values()), ids=list(TRANSPORTS))
def transport(request):
    return request.param


# Challenge and response, as data


def sides(token="abc", other=None, channel=None, other_channel=None):
    client = Authentication(token, "client", channel)
    server = Authentication(other or token, "server", other_channel)
    client.receive_challenge(server.challenge())
    server.receive_challenge(client.challenge())
    return client, server


@given(token=st.text(min_size=1), channel=st.none() | st.binary())
def test_who_knows_the_token_is_believed(token, channel):
    client, server = sides(token, token, channel, channel)
    server.check(client.proof())
    client.check(server.proof())


@given(token=st.text(min_size=1), other=st.text(min_size=1))
def test_who_knows_another_token_is_not_believed(token, other):
    client, server = sides(token, other + "x" if other == token else other)
    with pytest.raises(AuthenticationError, match="wrong"):
        server.check(client.proof())
    with pytest.raises(AuthenticationError, match="wrong"):
        client.check(server.proof())


def test_a_proof_passed_on_over_another_channel_is_not_believed():
    client, server = sides(channel=b"one", other_channel=b"two")
    with pytest.raises(AuthenticationError):
        server.check(client.proof())


def test_a_side_does_not_believe_its_own_proof():
    client, server = sides()
    with pytest.raises(AuthenticationError):
        client.check(client.proof())
    with pytest.raises(AuthenticationError):
        server.check(server.proof())


def test_a_proof_is_right_once():
    client, _ = sides()
    _, other_server = sides()
    with pytest.raises(AuthenticationError):
        other_server.check(client.proof())


@pytest.mark.parametrize("proof", [None, "", 7, b"", b"x" * 32, ["a"]])
def test_what_is_no_proof_is_not_believed(proof):
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
def test_what_is_no_challenge_is_refused(challenge):
    with pytest.raises(AuthenticationError):
        Authentication("abc", "client").receive_challenge(challenge)


def test_a_token_is_not_shown():
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


def test_a_bounded_number_of_hosts_is_remembered():
    penalties = Penalties(max_hosts=2)
    for host in "abc":
        penalties.failed(host)
    assert [penalties.delay(host) > 0 for host in "abc"] == [False, True, True]


# Where the token comes from


def test_without_configuration_there_is_no_token():
    assert configured_token() is None


def test_the_token_may_stand_in_a_file(tmp_path):
    (tmp_path / "token").write_text(f"  {TOKEN}\n")
    with config.set({"distributed.comm.auth.token-file": str(tmp_path / "token")}):
        assert configured_token() == TOKEN


@pytest.mark.parametrize("token", ["", 7, b"bytes"])
def test_a_token_that_is_no_text_is_an_error(token):
    with (
        config.set({"distributed.comm.auth.token": token}),
        pytest.raises(ValueError, match=r"distributed\.comm\.auth\.token"),
    ):
        configured_token()


def test_a_token_file_that_is_not_there_is_an_error(tmp_path):
    with (
        config.set({"distributed.comm.auth.token-file": str(tmp_path / "nowhere")}),
        pytest.raises(OSError, match="nowhere"),
    ):
        configured_token()


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
        (TOKEN, "wrong", "refused this side: the token is wrong"),
        (TOKEN, None, "requires a token, and none is given here"),
        (None, TOKEN, "knows no token, and one is required here"),
    ],
    ids=["wrong", "none here", "none there"],
)
@gen_test()
async def test_a_side_without_the_token_gets_in_nowhere(transport, theirs, ours, reason):
    handled = []
    with captured_logger("distributed.comm") as log:
        async with transport.listening(handled.append, token=theirs) as listener:
            with pytest.raises(FatalCommClosedError, match=reason):
                await transport.connect(listener.contact_address, token=ours, timeout=5)
    assert handled == []
    assert TOKEN not in log.getvalue()


@gen_test()
async def test_the_server_tells_in_its_log_who_was_refused():
    with captured_logger("distributed.comm") as log:
        async with await listen("tcp://127.0.0.1:0", lambda comm: None, token=TOKEN) as listener:
            with pytest.raises(FatalCommClosedError):
                await connect(listener.contact_address, token="wrong")
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
async def test_a_security_brings_its_token_to_both_sides():
    security = Security(token=TOKEN)
    async with Server({"add": lambda x, y: x + y}) as server:
        await server.listen("tcp://127.0.0.1:0", **security.get_listen_args("worker"))
        async with rpc(
            server.address, connection_args=security.get_connection_args("client")
        ) as remote:
            assert await remote.add(x=1, y=2) == 3
        with pytest.raises(FatalCommClosedError, match="requires a token"):
            await connect(server.address)


@pytest.mark.parametrize(("token", "error"), [("", ValueError), (b"", ValueError), (7, TypeError)])
@gen_test()
async def test_what_is_no_token_is_an_error(token, error):
    with pytest.raises(error, match="token"):
        listen("tcp://127.0.0.1:0", lambda comm: None, token=token)
    with pytest.raises(error, match="token"):
        await connect("tcp://127.0.0.1:1", token=token)


@gen_test()
async def test_a_token_may_be_bytes(transport):
    async with transport.pair({"token": b"\xff\x00"}, token=b"\xff\x00") as (client, server):
        await client.write(1)
        assert await server.read() == 1


@gen_test()
async def test_a_host_that_failed_waits_longer_each_time():
    async with await listen("tcp://127.0.0.1:0", lambda comm: None, token=TOKEN) as listener:
        delays = []
        for _ in range(3):
            delays.append(listener._penalties.delay("127.0.0.1"))
            with pytest.raises(FatalCommClosedError):
                await connect(listener.contact_address, token="wrong")
        assert delays == [0, 0.1, 0.2]


@gen_test()
async def test_a_transport_that_asks_for_no_token_is_refused(monkeypatch):
    from distributed.comm.registry import Backend, backends

    class Trusting(Backend):
        def get_connector(self):
            raise NotImplementedError

        def get_listener(self, loc, handle_comm, deserialize, **connection_args):
            class Open(Listener):
                listen_address = contact_address = "trusting://x"

                async def start(self):
                    raise AssertionError("it would let anybody in")

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


class Raw:
    """A peer that is only a socket."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.decoder = MessageDecoder()

    @classmethod
    async def connect(cls, address):
        host, port = address.removeprefix("tcp://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    def send(self, *frames):
        self.writer.writelines(pack_message(frames)[0])

    async def read(self):
        frames = self.decoder.next_message()
        while frames is None:
            memory = self.decoder.get_buffer()
            data = await self.reader.read(len(memory))
            if not data:
                raise EOFError
            memory[: len(data)] = data
            frames = self.decoder.buffer_updated(len(data))
        return msgpack.unpackb(frames[0])

    async def close(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@gen_test()
async def test_without_a_token_the_wire_is_the_original_s():
    async with await listen("tcp://127.0.0.1:0", lambda comm: None) as listener:
        peer = await Raw.connect(listener.contact_address)
        assert set(await peer.read()) == {"compression", "python", "pickle-protocol"}
        await peer.close()


@gen_test()
async def test_a_peer_that_ignores_the_challenge_is_told_and_left():
    hello = {"compression": None, "python": (3, 11, 7), "pickle-protocol": 5}
    async with await listen("tcp://127.0.0.1:0", lambda comm: None, token=TOKEN) as listener:
        peer = await Raw.connect(listener.contact_address)
        assert "auth" in await peer.read()
        peer.send(msgpack.packb(hello))
        assert "knows no token" in (await peer.read())["refused"]
        with pytest.raises(EOFError):
            await peer.read()
        await peer.close()


@gen_test()
async def test_a_server_proves_nothing_to_a_peer_that_has_not():
    hello = {"compression": None, "python": (3, 11, 7), "pickle-protocol": 5}
    auth = {"scheme": "hmac-sha256", "nonce": b"n" * NONCE_SIZE}
    async with await listen("tcp://127.0.0.1:0", lambda comm: None, token=TOKEN) as listener:
        peer = await Raw.connect(listener.contact_address)
        await peer.read()
        peer.send(msgpack.packb({**hello, "auth": auth}))
        peer.send(msgpack.packb({"proof": bytes(32)}))
        assert await peer.read() == {"refused": "the token is wrong"}
        await peer.close()


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
async def test_a_handshake_is_one_small_frame_of_plain_values(frames, monkeypatch):
    unpickled = []
    monkeypatch.setattr(socket, "create_connection", lambda *args: unpickled.append(args))
    handled = []
    with captured_logger("distributed.comm") as log:
        async with await listen("tcp://127.0.0.1:0", handled.append) as listener:
            peer = await Raw.connect(listener.contact_address)
            await peer.read()
            peer.send(*frames)
            with pytest.raises((EOFError, ConnectionError)):
                await peer.read()
            await peer.close()
    assert handled == unpickled == []
    assert log.getvalue().count("failed before it began") == 1


@gen_test()
async def test_a_handshake_that_is_too_large_is_told_with_its_key():
    with captured_logger("distributed.comm") as log:
        async with await listen("tcp://127.0.0.1:0", lambda comm: None) as listener:
            peer = await Raw.connect(listener.contact_address)
            peer.send(msgpack.packb({"x": "y" * 70_000}))
            await peer.read()
            with pytest.raises((EOFError, ConnectionError)):
                await peer.read()
            await peer.close()
    assert "distributed.comm.max-handshake-size" in log.getvalue()
