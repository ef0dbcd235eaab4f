"""Acknowledged streams: each message is handled once and in order, whatever the network does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from distributed import core
from distributed.base import config
from distributed.batched import BatchedSend
from distributed.comm.core import Comm, CommClosedError
from distributed.core import Status, receipts
from distributed.protocol import to_serialize
from distributed.tests.relays import Relay, random_cuts
from distributed.tests.servers import (
    ADDRESSES,
    TCP,
    TRANSPORTS,
    Gate,
    assert_usable,
    serving,
)
from distributed.utils_test import async_poll_for, captured_logger, gen_test

SOCKETS = [address for address in ADDRESSES if not address.startswith("inproc")]
over_sockets = pytest.mark.parametrize("transport", SOCKETS)


async def open_stream(address: str, stream: BatchedSend) -> None:
    comm = await core.connect(address)
    await comm.write({"op": "connection_stream", "reply": False})
    stream.start(comm)


async def send_all(address: str, messages: list[Any], burst: int = 50) -> int:
    """Send messages, over new connections if one breaks; return the number of connections."""
    stream = BatchedSend("1ms")
    sent = connections = 0
    while True:
        try:
            await open_stream(address, stream)
            connections += 1
            while sent < len(messages):
                stream.send(*messages[sent : sent + burst])
                sent += len(messages[sent : sent + burst])
                await asyncio.sleep(0)
            await stream.close()
        except CommClosedError:
            continue
        if not stream.buffer:
            assert stream.unacknowledged == 0
            return connections


@over_sockets
@gen_test(timeout=60)
async def test_messages_survive_cuts_at_random_bytes(transport):
    got: list[int] = []
    notes = {"note": lambda i, data: got.append(i)}
    # Connecting with TLS, or by HTTP, takes much longer.
    number = 10_000 if transport in (TCP, "unix://") else 4_000
    messages = [{"op": "note", "i": i, "data": b"x" * (i % 100)} for i in range(number)]
    async with serving(transport, stream_handlers=notes) as server:
        with captured_logger("distributed", level=logging.ERROR) as log:
            async with Relay(server.address, random_cuts(1, 200_000, 20_000)).running() as relay:
                connections = await send_all(relay.address, messages)
    assert got == list(range(number))
    assert relay.cuts > 1
    assert connections > 1
    assert log.getvalue() == ""


@gen_test()
async def test_a_message_that_cannot_be_serialized_does_not_lose_those_before_it():
    got: list[int] = []
    async with (
        serving(TCP, stream_handlers={"note": lambda i: got.append(i)}) as server,
        # It breaks behind the first messages, which the system has accepted.
        Relay(server.address, lambda: (600, 10**9)).running() as relay,
    ):
        stream = BatchedSend("1ms")
        await open_stream(relay.address, stream)
        notes = [{"op": "note", "i": i} for i in range(100)]
        bad = {"op": "note", "i": to_serialize(threading.Lock())}
        with captured_logger("distributed.batched"):
            stream.send(*notes[:50], bad, *notes[50:])
            await async_poll_for(lambda: stream._writer is not None and stream._writer.done())
        assert stream.closed()
        assert stream.buffer == notes
        await open_stream(server.address, stream)
        await stream.close()
    assert relay.cuts == 1
    assert got == list(range(100))


@pytest.mark.parametrize("budget", [400, 800, 1200])
@gen_test()
async def test_a_stream_that_is_closed_at_once_keeps_what_a_broken_connection_has_lost(budget):
    got: list[int] = []
    async with (
        serving(TCP, stream_handlers={"note": lambda i: got.append(i)}) as server,
        Relay(server.address, lambda: (budget, 10**9)).running() as relay,
    ):
        stream = BatchedSend("1ms")
        await open_stream(relay.address, stream)
        stream.send(*({"op": "note", "i": i} for i in range(100)))
        # The peer has not told yet that it acknowledges.
        await stream.close()
    assert relay.cuts == 1
    assert len(stream.buffer) == 100
    assert got == []


@gen_test(timeout=60)
async def test_messages_survive_cuts_in_the_direction_of_the_acknowledgements(monkeypatch):
    monkeypatch.setattr(receipts, "ACKNOWLEDGED_TOGETHER", 10)
    got: list[int] = []
    async with serving(TCP, stream_handlers={"note": lambda i: got.append(i)}) as server:
        budget = random_cuts(2, 1, 2_000)
        async with Relay(server.address, lambda: (10**9, budget()[1])).running() as relay:
            await send_all(relay.address, [{"op": "note", "i": i} for i in range(20_000)])
    assert got == list(range(20_000))
    assert relay.cuts > 3


@gen_test(timeout=60)
async def test_streams_in_both_directions_survive_cuts():
    number = 3_000
    at_server: list[int] = []
    at_client: list[int] = []
    everything = asyncio.Event()
    answers = BatchedSend("1ms")

    async def register(comm):
        if answers.comm is not None:
            answers.comm.abort()
        answers.start(comm)
        await server.handle_stream(comm)

    def to_server(i):
        at_server.append(i)
        answers.buffer.append({"op": "answer", "i": i}) if answers.closed() else answers.send(
            {"op": "answer", "i": i}
        )

    async def to_client(i):
        at_client.append(i)
        if len(at_client) == number:
            everything.set()

    questions = BatchedSend("1ms")
    questions.send(*({"op": "question", "i": i} for i in range(number)))
    async with (
        serving(TCP, {"register": register}, stream_handlers={"question": to_server}) as server,
        serving(stream_handlers={"answer": to_client}) as client,
        Relay(server.address, random_cuts(3, 30_000, 30_000)).running() as relay,
    ):
        while not everything.is_set():
            try:
                comm = await core.connect(relay.address)
                await comm.write({"op": "register", "reply": False})
                questions.start(comm)
                streaming = asyncio.ensure_future(client.handle_stream(comm))
                ended = asyncio.ensure_future(everything.wait())
                await asyncio.wait({streaming, ended}, return_when=asyncio.FIRST_COMPLETED)
                ended.cancel()
                comm.abort()
                await streaming
            except CommClosedError:
                continue
        answers.abort()
    assert at_server == at_client == list(range(number))
    assert relay.cuts > 3


# What the peers agree upon


@contextlib.asynccontextmanager
async def reading(transport: str) -> AsyncIterator[tuple[BatchedSend, Comm]]:
    """Yield a stream and the comm at its other end, which the test reads."""
    taken: asyncio.Queue[Comm] = asyncio.Queue()
    done = asyncio.Event()

    async def take(comm):
        taken.put_nowait(comm)
        await done.wait()
        return Status.dont_reply

    async with serving(transport, {"take": take}) as server:
        comm = await core.connect(server.address)
        await comm.write({"op": "take"})
        stream = BatchedSend("1ms")
        stream.start(comm)
        try:
            yield stream, await taken.get()
        finally:
            stream.abort()
            done.set()


@TRANSPORTS
@gen_test()
async def test_a_plain_reader_gets_lists_of_messages_and_the_sender_keeps_none(transport):
    async with reading(transport) as (stream, comm):
        stream.send("a", {"b": 1})
        assert list(await comm.read()) == ["a", {"b": 1}]
        stream.send("c")
        assert list(await comm.read()) == ["c"]
        # The peer says that it does not acknowledge.
        await async_poll_for(lambda: stream.unacknowledged == 0)
        await comm.write("an answer")
        assert await stream.comm.read() == "an answer"
        comm.abort()
        await async_poll_for(stream.closed)
        assert stream.buffer == []


@TRANSPORTS
@pytest.mark.parametrize("is_configured", [False, True])
@gen_test()
async def test_a_stream_to_a_peer_that_does_not_acknowledge_is_one_of_the_original(
    transport, is_configured
):
    got: list[int] = []
    off = {"distributed.comm.batched.acknowledge": False}
    overrides = None if is_configured else {"features": None}
    with config.set(off if is_configured else {}):
        async with serving(transport, stream_handlers={"note": lambda i: got.append(i)}) as server:
            comm = await core.connect(server.address, handshake_overrides=overrides)
            assert "acks" not in comm.features
            await comm.write({"op": "connection_stream", "reply": False})
            stream = BatchedSend("1ms")
            stream.start(comm)
            stream.send(*({"op": "note", "i": i} for i in range(10)))
            await stream.close()
            await async_poll_for(lambda: len(got) == 10)
            assert stream.unacknowledged == 0


@over_sockets
@gen_test()
async def test_acknowledgements_need_no_reader_and_leave_messages_to_a_later_one(transport):
    got: list[int] = []

    async def register(comm):
        await comm.write("registered")
        await server.handle_stream(comm)

    async with serving(
        transport, {"register": register}, stream_handlers={"note": lambda i: got.append(i)}
    ) as server:
        comm = await core.connect(server.address)
        await comm.write({"op": "register", "reply": False})
        stream = BatchedSend("1ms")
        stream.start(comm)
        stream.send({"op": "note", "i": 1})
        await async_poll_for(lambda: got == [1])
        assert await comm.read() == "registered"
        # From here on, no task reads.
        stream.send({"op": "note", "i": 2})
        comm.post_control("ask", ordered=True)
        await async_poll_for(lambda: got == [1, 2])
        comm.post_control("ask", ordered=True)
        await async_poll_for(lambda: stream.unacknowledged == 0)
        await stream.close()


# Sessions


@gen_test()
async def test_a_new_server_gets_what_the_old_one_has_not_acknowledged():
    old: list[int] = []
    new: list[int] = []
    stream = BatchedSend("1ms")
    async with serving(TCP, stream_handlers={"note": lambda i: old.append(i)}) as server:
        await open_stream(server.address, stream)
        stream.send(*({"op": "note", "i": i} for i in range(5)))
        await async_poll_for(lambda: len(old) == 5)
        stream.comm.post_control("ask", ordered=True)
        await async_poll_for(lambda: stream.unacknowledged == 0)
        stream.send(*({"op": "note", "i": i} for i in range(5, 10)))
        await async_poll_for(lambda: len(old) == 10)
        stream.comm.abort()
    assert [msg["i"] for msg in stream.buffer] == [5, 6, 7, 8, 9]
    async with serving(TCP, stream_handlers={"note": lambda i: new.append(i)}) as server:
        with captured_logger("distributed.comm.delivery") as log:
            await open_stream(server.address, stream)
            stream.send({"op": "note", "i": 10})
            await stream.close()
    assert new == [5, 6, 7, 8, 9, 10]
    assert "5 messages are sent again, although they may have been handled" in log.getvalue()


@pytest.mark.parametrize("is_coroutine", [False, True])
@gen_test()
async def test_a_message_whose_handler_failed_is_not_handled_again_and_those_behind_it_are(
    is_coroutine,
):
    got: list[int] = []

    def note(i):
        got.append(i)
        if i == 3:
            raise ZeroDivisionError

    async def note_later(i):
        note(i)

    handler = note_later if is_coroutine else note
    stream = BatchedSend("1ms")
    async with serving(TCP, stream_handlers={"note": handler}) as server:
        await open_stream(server.address, stream)
        stream.send(*({"op": "note", "i": i} for i in range(6)))
        with captured_logger("distributed.core"):
            await async_poll_for(stream.closed)
        await open_stream(server.address, stream)
        await stream.close()
    assert got == list(range(6))


@gen_test()
async def test_a_connection_that_replaces_another_one_handles_nothing_twice():
    gate = Gate()
    started: list[int] = []

    async def note(i):
        started.append(i)
        await gate.handle(i if i == 2 else None)

    gate.open()
    stream = BatchedSend("1ms")
    with config.set({"distributed.comm.max-stream-handlers": 1}):
        async with serving(TCP, stream_handlers={"note": note}) as server:
            await open_stream(server.address, stream)
            stream.send(*({"op": "note", "i": i} for i in range(5)))
            # The server waits in the middle of the batch, and does not notice the abort.
            await gate.entered[2].wait()
            stream.comm.abort()
            await open_stream(server.address, stream)
            await async_poll_for(lambda: len(started) == 5)
            gate.open(2)
            await stream.close()
    assert started == [0, 1, 2, 3, 4]


def test_a_server_remembers_ten_thousand_sessions_without_a_connection_by_default():
    sessions = receipts.Sessions()
    for i in range(20_000):
        session, known = sessions.open(i.to_bytes(16), 1)
        assert not known
        session.handled = 7
        sessions.end(session)
    assert len(sessions) == 10_001
    assert sessions.open((19_999).to_bytes(16), 1)[0].handled == 7
    assert not sessions.open((0).to_bytes(16), 1)[1]


def test_a_server_forgets_old_sessions_but_none_with_a_connection(monkeypatch):
    now = 100.0
    monkeypatch.setattr(receipts, "monotonic", lambda: now)
    sessions = receipts.Sessions()
    ended, connected = (sessions.open(name * 16, 1)[0] for name in (b"a", b"b"))
    sessions.end(ended)
    now += 3599
    assert sessions.open(b"c" * 16, 1)
    assert len(sessions) == 3
    now += 2
    sessions.open(b"d" * 16, 1)
    assert len(sessions) == 3
    assert sessions.open(b"b" * 16, 1) == (connected, True)
    assert sessions.open(b"a" * 16, 1)[1] is False


@gen_test()
async def test_a_connection_leaves_one_session_behind():
    async with serving(TCP) as server:
        comm = await core.connect(server.address)
        await comm.write({"op": "connection_stream", "reply": False})
        for i in range(1, 20):
            comm.post_control("open", bytes([i]) * 16, 1, ordered=True)
            await comm.write([])
        await async_poll_for(lambda: b"\x13" * 16 in server._server_streams._sessions._sessions)
        assert len(server._server_streams._sessions) == 1
        await comm.close()


# Memory


@gen_test()
async def test_large_messages_are_acknowledged_at_once():
    async with serving(TCP, stream_handlers={"note": lambda data: None}) as server:
        stream = BatchedSend("1ms")
        await open_stream(server.address, stream)
        for _ in range(10):
            stream.send({"op": "note", "data": bytes(1_000_000)})
            await asyncio.sleep(0)
            await async_poll_for(lambda: stream.buffer == [])
        await async_poll_for(lambda: stream.unacknowledged < 8)
        await stream.close()


async def fill(stream: BatchedSend) -> None:
    for _ in range(100):
        stream.send(b"x" * 1000)
        await asyncio.sleep(0)


@over_sockets
@gen_test()
async def test_what_a_peer_does_not_acknowledge_is_limited(transport):
    """A peer that acknowledges once, and then reads without acknowledging."""
    async with reading(transport) as (stream, comm):
        stream.max_buffer_size = 10_000
        comm.controls.handlers["open"] = lambda args: comm.post_control("opened", args[0], 0, False)
        comm.controls.handlers["ask"] = lambda args: None
        stream.send(b"x" * 1000)
        await comm.read()
        await async_poll_for(lambda: stream._delivery.awaits())
        with pytest.raises(BufferError, match="max-buffer-size"):
            await fill(stream)
        while stream.unacknowledged < 10:
            await comm.read()
        assert stream.unacknowledged == 10
        with pytest.raises(TimeoutError, match="could not deliver 20 messages"):
            await stream.close(timeout=0.05)
        assert len(stream.buffer) == 20


# Hostile peers

SESSION = bytes(16)
HOSTILE_ACKNOWLEDGEMENTS = {
    "more than was written": lambda name: ("ack", name, 10**6),
    "no number": lambda name: ("ack", name, "1"),
    "a negative number": lambda name: ("ack", name, -1),
    "true": lambda name: ("ack", name, True),
    "a huge number": lambda name: ("ack", name, 2**63),
    "no session": lambda name: ("ack", 5, 1),
    "no arguments": lambda name: ("ack",),
    "many arguments": lambda name: ("ack", name, 1, 1, 1),
    "opened without arguments": lambda name: ("opened",),
    "opened with more than was written": lambda name: ("opened", name, 10**6, True),
    "too long": lambda name: ("ack", name, b"x" * 10_000),
}


@pytest.mark.parametrize("hostile", HOSTILE_ACKNOWLEDGEMENTS.values(), ids=HOSTILE_ACKNOWLEDGEMENTS)
@pytest.mark.parametrize("transport", [TCP, "ws://127.0.0.1:0"])
@gen_test()
async def test_an_invalid_acknowledgement_closes_the_comm_and_loses_nothing(transport, hostile):
    async with reading(transport) as (stream, comm):
        stream.send("a", "b")
        opened: list[Any] = []
        comm.controls.handlers["open"] = opened.append
        assert list(await comm.read()) == ["a", "b"]
        with captured_logger("distributed.comm.control") as log:
            comm.post_control(*hostile(opened[0][0]))
            await async_poll_for(stream.closed)
        assert stream.buffer == ["a", "b"]
        assert "invalid control message" in log.getvalue()
        assert len(log.getvalue()) < 1_000


@gen_test()
async def test_an_acknowledgement_of_another_session_or_of_less_is_ignored():
    async with reading(TCP) as (stream, comm):
        stream.send("a", "b", "c")
        opened: list[Any] = []
        comm.controls.handlers["open"] = opened.append
        await comm.read()
        ((name, _),) = opened
        for args in ((SESSION, 10**6), (name, 2), (name, 1), (name, 0)):
            comm.post_control("ack", *args)
        await comm.write("end")
        assert await stream.comm.read() == "end"
        assert stream.unacknowledged == 1


HOSTILE_CONTROLS = {
    "no list": b"\x05",
    "no msgpack": b"\xc1",
    "no kind": b"\x92\x05\xc3",
    "empty": b"",
    "too long": b"\xc6\x00\x00\x08\x00" + bytes(2048),
    "deep": b"\x91" * 1000,
}


@pytest.mark.parametrize("content", HOSTILE_CONTROLS.values(), ids=HOSTILE_CONTROLS)
@gen_test()
async def test_invalid_control_messages_close_their_comm_only(content):
    async with serving(TCP) as server:
        honest = await core.connect(server.address)
        comm = await core.connect(server.address)
        with captured_logger("distributed.comm.control") as log:
            await comm._write_frames([b"", content])
            with pytest.raises(CommClosedError):
                await comm.read()
        assert "invalid control message" in log.getvalue()
        await assert_usable(honest)
        await honest.close()


@pytest.mark.parametrize(
    "args", [(), (b"short", 1), (SESSION, 0), (SESSION, "1"), (SESSION, 2**63), (SESSION, 1, 1)]
)
@gen_test()
async def test_an_invalid_session_closes_its_comm(args):
    async with serving(TCP) as server:
        comm = await core.connect(server.address)
        await comm.write({"op": "connection_stream", "reply": False})
        with captured_logger("distributed.comm.control") as log:
            comm.post_control("open", *args, ordered=True)
            with pytest.raises(CommClosedError):
                await comm.read()
        assert "invalid control message" in log.getvalue()
        assert len(server._server_streams._sessions) == 0


@over_sockets
@gen_test()
async def test_a_peer_that_does_not_read_cannot_fill_memory_with_answers(transport):
    async with reading(transport) as (stream, comm):
        # The peer receives one message before a task reads it.
        await stream.comm.write("unread")
        writing = asyncio.ensure_future(stream.comm.write(to_serialize(bytes(30_000_000))))
        await async_poll_for(lambda: not stream.comm.post_control("ack"))
        assert not writing.done()
        # A receiver answers when it is asked again, or after some time.
        assert await comm.read() == "unread"
        assert len(await comm.read()) == 30_000_000
        await writing
        assert stream.comm.post_control("ack")


@over_sockets
@gen_test()
async def test_a_flood_of_control_messages_leaves_turns_to_other_tasks(transport):
    number = 5_000
    turn = 0
    turns: list[int] = []

    async def others():
        nonlocal turn
        while len(turns) < number:
            turn += 1
            await asyncio.sleep(0)

    async with reading(transport) as (stream, comm):
        # The stream watches for control messages.
        stream.send("a")
        await comm.read()
        stream.comm.controls.handlers["flood"] = lambda args: turns.append(turn)
        counting = asyncio.create_task(others())
        for _ in range(number):
            while not comm.post_control("flood"):
                # Earlier ones wait to be sent.
                await asyncio.sleep(0)
        await counting
    assert len(turns) == number
    assert max(Counter(turns).values()) < 500


@over_sockets
@gen_test()
async def test_a_control_message_that_cannot_be_sent_ends_the_read_that_waits(transport):
    async with reading(transport) as (stream, comm):
        reader = asyncio.ensure_future(stream.comm.read())
        await async_poll_for(lambda: stream.comm._reading)
        comm.abort()
        # The event loop has not reported the end of the connection yet.
        stream.comm.post_control("ack")
        with pytest.raises(CommClosedError):
            await reader
