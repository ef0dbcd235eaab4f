"""The rules of RFC 6455 at both ends of ``ws://``: invalid frames, close codes, refusals."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.websocket import WebSocketProtocol13

from distributed.comm import connect, listen
from distributed.comm.core import Comm, CommClosedError, FatalCommClosedError
from distributed.comm.tests.raw_peers import HANDSHAKE, RawPeer, raw_peer, raw_server
from distributed.comm.websocket_rules import check_text, close_reason
from distributed.protocol import dumps
from distributed.utils_test import captured_logger, gen_test

FIN = 0x80
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = b"AAAAAAAAAAAAAAAAAAAAAA=="
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ANSWER = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"


def frame(first: int, payload: bytes = b"", length: int | None = None) -> tuple[int, bytes, int]:
    """Return a frame, whose header may have another length than its payload."""
    return first, payload, len(payload) if length is None else length


def packed(first: int, payload: bytes, length: int, *, masked: bool) -> bytes:
    """Return a frame as it is on the wire."""
    mask_bit = 0x80 if masked else 0
    if length < 126:
        head = bytes([first, mask_bit | length])
    elif length < 2**16:
        head = bytes([first, mask_bit | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([first, mask_bit | 127]) + length.to_bytes(8, "big")
    if not masked:
        return head + payload
    mask = b"\x01\x02\x03\x04"
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def message(msg: Any) -> list[tuple[int, bytes, int]]:
    """Return the frames of a comm's message."""
    frames = [bytes(part) for part in dumps(msg)]
    return [frame(FIN | BINARY, part) for part in [len(frames).to_bytes(8, "little"), *frames]]


class FramePeer:
    """The other end of a websocket, whose frames need not be valid."""

    def __init__(self, peer: RawPeer, masks: bool) -> None:
        self.peer = peer
        #: Whether it is a client, which masks its frames.
        self.masks = masks

    async def send(self, *frames: tuple[int, bytes, int], masked: bool | None = None) -> None:
        masks = self.masks if masked is None else masked
        await self.peer.send(b"".join(packed(*one, masked=masks) for one in frames))

    async def read(self) -> tuple[int, bytes]:
        """Return the first byte of a frame, and its payload."""
        first, second = await self.peer.read_exactly(2)
        assert bool(second & 0x80) != self.masks, "only a client masks its frames"
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(await self.peer.read_exactly(2 if length == 126 else 8), "big")
        mask = bytes(4) if self.masks else await self.peer.read_exactly(4)
        payload = await self.peer.read_exactly(length)
        return first, bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))

    async def read_close(self) -> tuple[int | None, str]:
        """Skip frames up to a close frame; return its code and reason."""
        while True:
            first, payload = await self.read()
            if first == FIN | CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else None
                return code, payload[2:].decode()

    async def handshake(self) -> None:
        await self.send(*message(HANDSHAKE))
        for _ in range(2):
            await self.read()


async def accept(peer: RawPeer) -> FramePeer:
    """Answer the request of a client of ours."""
    (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", await peer.read_until(b"\r\n\r\n"))
    value = WebSocketProtocol13.compute_accept_value(key)
    await peer.send(f"{ANSWER}Sec-Websocket-Accept: {value}\r\n\r\n".encode())
    return FramePeer(peer, masks=False)


@asynccontextmanager
async def open_raw(address: str) -> AsyncIterator[FramePeer]:
    """Open a websocket at a listener of ours."""
    async with raw_peer(address) as raw:
        await raw.send(REQUEST)
        await raw.read_until(b"\r\n\r\n")
        yield FramePeer(raw, masks=True)


@asynccontextmanager
async def ends(role: str) -> AsyncIterator[tuple[FramePeer, Comm]]:
    """Yield a peer of frames after the handshake, and our comm, which is the *role*."""
    if role == "server":
        accepted: asyncio.Queue[Comm] = asyncio.Queue()
        async with (
            listen("ws://127.0.0.1:0", accepted.put) as listener,
            open_raw(listener.contact_address) as peer,
        ):
            await peer.handshake()
            comm = await accepted.get()
            try:
                yield peer, comm
            finally:
                comm.abort()
    else:
        peers: asyncio.Queue[FramePeer] = asyncio.Queue()

        async def serve(raw: RawPeer) -> None:
            peer = await accept(raw)
            await peer.handshake()
            peers.put_nowait(peer)

        async with raw_server(serve) as where:
            comm = await connect(f"ws://{where}")
            try:
                yield await peers.get(), comm
            finally:
                comm.abort()


roles = pytest.mark.parametrize("role", ["server", "client"])

# Invalid frames, the close code for them, and a part of the error
VIOLATIONS = {
    "reserved bit 1": ([frame(FIN | 0x40 | BINARY)], 1002, "reserved bit"),
    "reserved bit 2": ([frame(FIN | 0x20 | BINARY)], 1002, "reserved bit"),
    "reserved bit 3": ([frame(FIN | 0x10 | BINARY)], 1002, "reserved bit"),
    "reserved bit of a ping": ([frame(FIN | 0x40 | PING)], 1002, "reserved bit"),
    **{
        f"opcode {opcode}": ([frame(FIN | opcode)], 1002, f"opcode {opcode} is reserved")
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "long ping": ([frame(FIN | PING, bytes(126))], 1002, "more than 125"),
    "long pong": ([frame(FIN | PONG, bytes(126))], 1002, "more than 125"),
    "long close": ([frame(FIN | CLOSE, b"\x03\xe8" + bytes(124))], 1002, "more than 125"),
    "huge ping without data": ([frame(FIN | PING, b"", 2**40)], 1002, "more than 125"),
    "fragmented ping": ([frame(PING)], 1002, "control frame is fragmented"),
    "fragmented close": ([frame(CLOSE, b"\x03\xe8")], 1002, "control frame is fragmented"),
    "continuation first": ([frame(FIN | CONTINUATION, b"x")], 1002, "continues no message"),
    "continuation after the end": (
        [frame(BINARY, b"\x01\0\0\0"), frame(FIN, bytes(4)), frame(FIN, b"x")],
        1002,
        "continues no message",
    ),
    "message in a message": (
        [frame(BINARY, b"1234"), frame(FIN | BINARY, b"5678")],
        1002,
        "in the middle of a fragmented message",
    ),
    "text in a message": (
        [frame(BINARY, b"1234"), frame(TEXT, b"5678")],
        1002,
        "in the middle of a fragmented message",
    ),
    "close of one byte": ([frame(FIN | CLOSE, b"\x03")], 1002, "has one byte"),
    **{
        f"close code {code}": (
            [frame(FIN | CLOSE, code.to_bytes(2, "big"))],
            1002,
            f"invalid close code {code}",
        )
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
    "close with invalid text": (
        [frame(FIN | CLOSE, b"\x03\xe8\xff")],
        1007,
        "the reason in a close frame is not valid UTF-8",
    ),
    "invalid text": ([frame(FIN | TEXT, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80")], 1007, "UTF-8"),
    "invalid text in parts": ([frame(TEXT, b"\xf4"), frame(FIN, b"\x90\x80\x80")], 1007, "UTF-8"),
    "text": ([frame(FIN | TEXT, b"12345678")], 1003, "8 characters"),
    "a short message": ([frame(FIN | BINARY, b"1234567")], 1007, "7 bytes"),
}


@roles
@pytest.mark.parametrize(("frames", "code", "why"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
@gen_test()
async def test_an_invalid_frame_closes_the_connection_with_its_code(role, frames, code, why):
    async with ends(role) as (peer, comm):
        # The peer still sends while it is refused: a reset would lose the close frame.
        await peer.send(*frames, *message("more")[:1] * 100)
        with pytest.raises(CommClosedError, match=why):
            await comm.read()
        assert comm.closed()
        got, reason = await peer.read_close()
        assert got == code
        assert re.search(why, reason)


@roles
@gen_test()
async def test_a_frame_with_the_wrong_masking_closes_the_connection(role):
    async with ends(role) as (peer, comm):
        await peer.send(*message("x"), masked=not peer.masks)
        with pytest.raises(
            CommClosedError, match=f"frame of a {'client' if peer.masks else 'server'}"
        ):
            await comm.read()
        assert (await peer.read_close())[0] == 1002


@gen_test()
async def test_a_frame_without_a_mask_before_the_handshake_is_refused_and_logged():
    handled: list[Comm] = []
    with captured_logger("distributed.comm") as log:
        async with (
            listen("ws://127.0.0.1:0", handled.append) as listener,
            open_raw(listener.contact_address) as peer,
        ):
            await peer.send(*message(HANDSHAKE), masked=False)
            assert await peer.read_close() == (1002, "a frame of a client is not masked")
            await peer.peer.wait_closed()
    assert handled == []
    assert log.getvalue().count("failed before it began") == 1
    assert "not masked" in log.getvalue()


@roles
@pytest.mark.parametrize("fragmented", [False, True])
@gen_test(config={"distributed.comm.max-message-size": "1kiB"})
async def test_a_websocket_message_above_the_limit_is_refused_with_its_code(role, fragmented):
    async with ends(role) as (peer, comm):
        if fragmented:
            await peer.send(frame(BINARY, bytes(600)), frame(CONTINUATION, bytes(600)))
        else:
            await peer.send(frame(FIN | BINARY, bytes(1025)))
        with pytest.raises(CommClosedError, match=r"distributed\.comm\.max-message-size"):
            await comm.read()
        assert (await peer.read_close())[0] == 1009


@roles
@pytest.mark.parametrize("code", [None, 1000, 1003, 1007, 1011, 1012, 1014, 3000, 4999])
@gen_test()
async def test_a_close_frame_is_answered_with_its_code(role, code):
    async with ends(role) as (peer, comm):
        await peer.send(frame(FIN | CLOSE, b"" if code is None else code.to_bytes(2, "big")))
        assert (await peer.read_close())[0] == code
        with pytest.raises(CommClosedError):
            await comm.read()


@roles
@gen_test()
async def test_fragments_and_control_frames_between_them_make_one_message(role):
    (head, body) = message("some message")
    async with ends(role) as (peer, comm):
        await peer.send(
            frame(BINARY, head[1][:3]),
            frame(FIN | PING, b"one"),
            frame(CONTINUATION),
            frame(FIN | PONG, b"unasked"),
            frame(FIN | CONTINUATION, head[1][3:]),
            frame(BINARY, body[1]),
            frame(FIN | PING, b"x" * 125),
            frame(FIN | CONTINUATION),
        )
        assert await comm.read() == "some message"
        assert await peer.read() == (FIN | PONG, b"one")
        assert await peer.read() == (FIN | PONG, b"x" * 125)
        await comm.write("still open")
        assert (await peer.read())[0] == FIN | BINARY


@roles
@gen_test()
async def test_a_refused_peer_that_keeps_sending_is_disconnected(role, monkeypatch):
    monkeypatch.setattr("distributed.comm.websocket._LINGER", 0.1)
    async with ends(role) as (peer, comm):
        await peer.send(frame(FIN | 3))
        with pytest.raises(CommClosedError):
            await comm.read()

        async def send_forever() -> None:
            while True:
                await peer.send(frame(FIN | BINARY, bytes(60_000)))

        with pytest.raises(ConnectionError):
            await send_forever()


# Refused handshakes


async def refused(serve: Any) -> OSError:
    """Connect to a server that refuses, and return the error."""
    async with raw_server(serve) as where:
        with pytest.raises(OSError, match=f"ws://{where}") as info:
            await connect(f"ws://{where}", timeout=20)
    return info.value


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 1010, 3000, 3003])
@pytest.mark.parametrize("when", ["at once", "after a message"])
@gen_test()
async def test_a_handshake_that_is_refused_with_a_final_code_is_not_retried(code, when):
    async def serve(raw: RawPeer) -> None:
        peer = await accept(raw)
        if when == "after a message":
            await peer.read()
            await peer.read()
        await peer.send(frame(FIN | CLOSE, code.to_bytes(2, "big") + b"not you"))
        await raw.wait_closed()

    error = await refused(serve)
    assert isinstance(error, FatalCommClosedError)
    assert re.search(rf"closed with code {code} .*not you", str(error))


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 1014, 4000])
@gen_test()
async def test_a_handshake_that_ends_with_a_temporary_code_is_retried(code):
    attempts = 0

    async def serve(raw: RawPeer) -> None:
        nonlocal attempts
        attempts += 1
        peer = await accept(raw)
        if attempts < 3:
            await peer.send(frame(FIN | CLOSE, code.to_bytes(2, "big")))
            await raw.wait_closed()
        else:
            await peer.handshake()

    async with raw_server(serve) as where:
        comm = await connect(f"ws://{where}", timeout=20)
        comm.abort()
    assert attempts == 3


@gen_test()
async def test_a_server_that_violates_the_protocol_at_once_is_not_retried():
    async def serve(raw: RawPeer) -> None:
        peer = await accept(raw)
        await peer.send(*message(HANDSHAKE), masked=True)
        await raw.wait_closed()

    error = await refused(serve)
    assert isinstance(error, FatalCommClosedError)
    assert "frame of a server is masked" in str(error)


@pytest.mark.parametrize(
    ("status", "final"),
    [(400, True), (401, True), (402, True), (403, True), (404, True), (406, True), (407, True)]
    + [(409, True), (418, True), (426, True), (451, True), (301, True), (501, True)]
    + [(408, False), (425, False), (429, False), (500, False), (502, False), (503, False)],
)
@gen_test()
async def test_an_answer_of_http_is_retried_only_if_it_can_change(status, final, monkeypatch):
    monkeypatch.setattr("distributed.comm.ws._NOT_FOUND_RETRIES", 0.0)
    attempts = 0

    async def serve(raw: RawPeer) -> None:
        nonlocal attempts
        attempts += 1
        await raw.read_until(b"\r\n\r\n")
        if attempts < 2 or final:
            await raw.send(f"HTTP/1.1 {status} Sorry\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            await raw.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    error = await refused(serve)
    assert isinstance(error, FatalCommClosedError)
    assert f"answers {status if final else 403}" in str(error)
    assert attempts == (1 if final else 2)


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ("Connection: keep-alive\r\n", "does not upgrade"),
        ("Connection: Upgrade\r\nSec-WebSocket-Protocol: chat\r\n", "subprotocol"),
        ("Connection: Upgrade\r\nSec-WebSocket-Extensions: x\r\n", "extension"),
    ],
)
@gen_test()
async def test_a_server_whose_answer_was_not_asked_for_is_refused(headers, why):
    async def serve(raw: RawPeer) -> None:
        (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", await raw.read_until(b"\r\n\r\n"))
        value = WebSocketProtocol13.compute_accept_value(key)
        await raw.send(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n{headers}"
            f"Sec-Websocket-Accept: {value}\r\n\r\n".encode()
        )

    error = await refused(serve)
    assert isinstance(error, FatalCommClosedError)
    assert why in str(error)


@gen_test()
async def test_a_handshake_that_this_side_refuses_closes_the_websocket_with_1008():
    handled: list[Comm] = []
    async with (
        listen("ws://127.0.0.1:0", handled.append) as listener,
        open_raw(listener.contact_address) as peer,
    ):
        await peer.send(*message([1, 2]))
        code, reason = await peer.read_close()
    assert code == 1008
    assert "not a map" in reason
    assert handled == []


def test_a_close_reason_fits_into_a_control_frame():
    assert close_reason("short") == "short"
    for text in ("x" * 200, "ü" * 200, "\U0001f40d" * 50, "\udcff" * 200):
        data = close_reason(text).encode()
        assert 119 < len(data) <= 123
        check_text(data)
