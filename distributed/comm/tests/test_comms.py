"""Comms, connectors and listeners, over each transport."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from distributed.base import config
from distributed.comm import offloading as comm_utils
from distributed.comm.core import BaseListener, Comm, CommClosedError, connect, listen
from distributed.comm.tests.transports import TRANSPORTS, Transport, echo, stop
from distributed.protocol import Serialized, to_serialize
from distributed.utils_test import async_poll_for, captured_logger, gen_test


async def turns(n=10):
    """Let the event loop run *n* times, so that the tasks that were started wait for I/O."""
    for _ in range(n):
        await asyncio.sleep(0)


@pytest.fixture(params=TRANSPORTS.values(), ids=list(TRANSPORTS))
def transport(request) -> Transport:
    return request.param


@pytest.fixture(
    params=[t for t in TRANSPORTS.values() if t.serializes],
    ids=[name for name, t in TRANSPORTS.items() if t.serializes],
)
def serializing_transport(request) -> Transport:
    return request.param


def plain(value: Any) -> Any:
    """Return a value with its tuples as lists, since comms do not keep the difference."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


class CannotBeUnpickled:
    def __reduce__(self):
        return _fail_to_load, ()


def _fail_to_load():
    raise ZeroDivisionError("no unpickling, please")


class SlowToUnpickle:
    """An object that blocks the thread that unpickles it until the test allows it to end."""

    started = threading.Event()
    may_end = threading.Event()

    def __init__(self) -> None:
        self.ballast = bytes(1000)

    def __reduce__(self):
        return _load_slowly, (self.ballast,)


def _load_slowly(ballast):
    SlowToUnpickle.started.set()
    assert SlowToUnpickle.may_end.wait(10)
    return "slow"


# Messages

MESSAGES = {
    "none": None,
    "true": True,
    "small int": 1,
    "negative int": -(2**40),
    "large int": 2**100,
    "float": 1.5,
    "complex": 1j,
    "text": "Grüße, 世界 🌍",
    "empty text": "",
    "bytes": b"\x00\xff",
    "empty bytes": b"",
    "list": [1, "a", None],
    "empty list": [],
    "nested": {"op": "x", "data": [{"a": [1, [2, [3]]]}], "empty": {}},
    "set": {1, 2, 3},
    "ten thousand keys": {f"key-{i}": i for i in range(10_000)},
    "class": ValueError,
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
@gen_test()
async def test_an_echoed_message_equals_the_original(transport, message):
    async with transport.listening(echo) as listener:
        comm = await transport.connect(listener.contact_address)
        await comm.write(message)
        assert plain(await comm.read()) == plain(message)
        await comm.close()


@gen_test()
async def test_many_messages_arrive_in_order(transport):
    async with transport.pair() as (client, server):

        async def send() -> None:
            for i in range(2000):
                await client.write({"i": i})

        sending = asyncio.create_task(send())
        assert [(await server.read())["i"] for _ in range(2000)] == list(range(2000))
        await sending


@gen_test()
async def test_both_directions_are_independent(transport):
    async with transport.pair() as (client, server):

        async def write(comm: Comm, start: int) -> None:
            for i in range(start, start + 300):
                await comm.write([i, b"x" * (i * 37 % 5000)])

        async def read(comm: Comm) -> list[int]:
            return [(await comm.read())[0] for _ in range(300)]

        _, _, at_server, at_client = await asyncio.gather(
            write(client, 0), write(server, 1000), read(server), read(client)
        )
        assert at_server == list(range(300))
        assert at_client == list(range(1000, 1300))


@gen_test()
async def test_messages_wait_for_a_late_reader(transport):
    async with transport.pair() as (client, server):
        for i in range(100):
            await client.write(i)
        assert [await server.read() for _ in range(100)] == list(range(100))


@pytest.mark.parametrize("size", [1, 4096, 65_536, 1_000_000, 64 * 2**20])
@gen_test()
async def test_a_message_may_be_large(transport, size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with transport.listening(echo) as listener:
        comm = await transport.connect(listener.contact_address)
        for message in ({"plain": data}, {"wrapped": to_serialize(data)}):
            writing = asyncio.create_task(comm.write(message))
            (arrived,) = (await comm.read()).values()
            await writing
            assert bytes(arrived) == data
        await comm.close()


@gen_test()
async def test_many_frames_in_one_message_arrive_in_order(transport):
    async with transport.pair() as (client, server):
        writing = asyncio.create_task(
            client.write([to_serialize(bytes([i % 256]) * i) for i in range(500)])
        )
        arrived = await server.read()
        await writing
        assert [bytes(item) for item in arrived] == [bytes([i % 256]) * i for i in range(500)]


@gen_test()
async def test_a_wrapped_value_arrives_unwrapped(transport):
    async with transport.pair() as (client, server):
        await client.write({"x": to_serialize({"a": 1})})
        assert (await server.read()) == {"x": {"a": 1}}


@gen_test()
async def test_without_deserialize_a_wrapped_value_arrives_serialized(serializing_transport):
    async with serializing_transport.pair({"deserialize": False}) as (client, server):
        await client.write({"x": to_serialize({"a": 1})})
        message = await server.read()
        assert isinstance(message["x"], Serialized)
        await server.write(message)
        assert (await client.read()) == {"x": {"a": 1}}


@gen_test()
async def test_deserialize_is_chosen_by_each_side(serializing_transport):
    async with serializing_transport.pair(deserialize=False) as (client, server):
        assert (client.deserialize, server.deserialize) == (False, True)
        await server.write({"x": to_serialize(1)})
        assert isinstance((await client.read())["x"], Serialized)
        await client.write({"x": to_serialize(1)})
        assert await server.read() == {"x": 1}


@gen_test()
async def test_write_returns_a_number_of_bytes(transport):
    async with transport.pair() as (client, server):
        small = await client.write(b"x")
        large = await client.write(b"x" * 1000)
        assert small >= 1
        assert not transport.serializes or large >= 1000 > small
        assert await server.read() == b"x"


@gen_test()
async def test_a_written_array_may_be_changed(serializing_transport):
    async with serializing_transport.pair() as (client, server):
        data = bytearray(20_000_000)
        reading = asyncio.create_task(server.read())
        await client.write({"x": to_serialize(memoryview(data))})
        data[:] = b"\xff" * len(data)
        assert bytes((await reading)["x"]) == bytes(len(data))


@gen_test()
async def test_a_serialization_error_leaves_the_comm_usable(serializing_transport):
    async with serializing_transport.pair() as (client, server):
        with pytest.raises(TypeError, match="lock"):
            await client.write({"x": to_serialize(threading.Lock())}, on_error="raise")
        with pytest.raises(TypeError, match="lock"):
            await client.write({"x": threading.Lock()}, on_error="raise")
        await client.write("next")
        assert await server.read() == "next"


@gen_test()
async def test_a_serialization_error_is_raised_at_the_reader_by_default(serializing_transport):
    async with serializing_transport.pair() as (client, server):
        await client.write({"x": to_serialize(threading.Lock())})
        await client.write("next")
        with pytest.raises(TypeError, match="lock"):
            await server.read()
        assert await server.read() == "next"


@gen_test()
async def test_a_deserialization_error_leaves_the_comm_usable(serializing_transport):
    async with serializing_transport.pair() as (client, server):
        await client.write({"x": to_serialize(CannotBeUnpickled())})
        await client.write("next")
        with pytest.raises(Exception, match="no unpickling"):
            await server.read()
        assert await server.read() == "next"


@gen_test()
async def test_each_side_chooses_its_serializers(serializing_transport):
    async with serializing_transport.pair() as (client, server):
        with pytest.raises(TypeError):
            await client.write({"x": to_serialize(object())}, ["msgpack"], "raise")
        await client.write({"x": to_serialize(1)}, ["msgpack"], "raise")
        assert await server.read() == {"x": 1}
        await client.write({"x": to_serialize(CannotBeUnpickled())})
        with pytest.raises(TypeError, match="pickle"):
            await server.read(deserializers=["msgpack"])


# Closing


@pytest.mark.parametrize("ending", ["close", "abort"])
@pytest.mark.parametrize("closing", ["peer", "reader"])
@gen_test()
async def test_a_pending_read_ends_when_either_side_closes(transport, closing, ending):
    async with transport.pair() as (client, server):
        reading = asyncio.create_task(server.read())
        await asyncio.sleep(0)
        await _end(client if closing == "peer" else server, ending)
        with pytest.raises(CommClosedError):
            await reading
        assert server.closed()


@pytest.mark.parametrize("ending", ["close", "abort"])
@gen_test()
async def test_a_closed_comm_neither_reads_nor_writes(transport, ending):
    async with transport.pair() as (client, _):
        await _end(client, ending)
        assert client.closed()
        with pytest.raises(CommClosedError, match=r"\S"):
            await client.read()
        with pytest.raises(CommClosedError, match=r"\S"):
            await client.write(1)


@gen_test()
async def test_a_comm_can_be_closed_and_aborted_repeatedly(transport):
    async with transport.pair() as (client, server):
        await asyncio.gather(client.close(), client.close())
        await client.close()
        client.abort()
        client.abort()
        server.abort()
        await server.close()
        assert client.closed()
        assert server.closed()


@gen_test()
async def test_a_comm_is_closed_with_its_peer_even_without_a_read(transport):
    async with transport.pair() as (client, server):
        await client.close()
        await async_poll_for(server.closed, timeout=5)


@gen_test()
async def test_messages_written_before_the_close_are_read(transport):
    async with transport.pair() as (client, server):
        for i in range(10):
            await client.write(i)
        await client.close()
        for i in range(10):
            assert await server.read() == i
        with pytest.raises(CommClosedError):
            await server.read()


@gen_test()
async def test_writing_to_a_disconnected_peer_raises(transport):
    async with transport.pair() as (client, server):
        await client.close()

        async def write_on() -> None:
            while True:
                await server.write(b"x" * 10_000)
                await asyncio.sleep(0)

        with pytest.raises(CommClosedError):
            await write_on()
        assert server.closed()


@gen_test()
async def test_a_cancelled_read_closes_the_comm(transport):
    async with transport.pair() as (client, server):
        reading = asyncio.create_task(server.read())
        await turns()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert server.closed()
        with pytest.raises(CommClosedError):
            await client.read()


@gen_test()
async def test_a_read_cancelled_in_the_middle_of_a_message_closes_the_comm(serializing_transport):
    async with serializing_transport.pair() as (client, server):
        writing = asyncio.create_task(client.write(b"x" * 100_000_000))
        reading = asyncio.create_task(server.read())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert server.closed()
        with pytest.raises(CommClosedError):
            await writing


@gen_test()
async def test_a_read_cancelled_while_it_deserializes_closes_the_comm(
    serializing_transport, monkeypatch
):
    # A caller that kept reading would mistake the next message for the answer to its request.
    monkeypatch.setattr(comm_utils, "OFFLOAD_THRESHOLD", 100)
    SlowToUnpickle.started.clear()
    SlowToUnpickle.may_end.clear()
    async with serializing_transport.pair() as (client, server):
        await client.write({"x": to_serialize(SlowToUnpickle())})
        reading = asyncio.create_task(server.read())
        try:
            await async_poll_for(SlowToUnpickle.started.is_set, timeout=5)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        finally:
            SlowToUnpickle.may_end.set()
        assert server.closed()


@gen_test()
async def test_a_cancelled_write_closes_the_comm(serializing_transport):
    async with serializing_transport.pair() as (client, server):
        writing = asyncio.create_task(client.write(to_serialize(b"x" * 100_000_000)))
        await turns()
        assert not writing.done()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert client.closed()
        with pytest.raises(CommClosedError):
            await server.read()


@gen_test()
async def test_a_write_waits_for_its_reader(serializing_transport):
    async with serializing_transport.pair() as (client, server):
        writing = asyncio.create_task(client.write(b"x" * 100_000_000))
        await turns()
        assert not writing.done()
        assert len(await server.read()) == 100_000_000
        assert await writing > 100_000_000


@gen_test()
async def test_a_deleted_open_comm_is_closed_and_logged(serializing_transport):
    async with serializing_transport.pair() as (_, server):
        with captured_logger("distributed.comm") as log, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            accepted: asyncio.Queue[Comm] = asyncio.Queue()
            async with serializing_transport.listening(accepted.put) as listener:
                forgotten = await serializing_transport.connect(listener.contact_address)
                address = forgotten.peer_address
                other = await accepted.get()
                del forgotten
                gc.collect()
                with pytest.raises(CommClosedError):
                    await other.read()
        assert "dangling" in log.getvalue()
        assert address in log.getvalue()
        assert not server.closed()


@gen_test()
async def test_a_deleted_closed_comm_is_not_logged(transport):
    with captured_logger("distributed.comm") as log:
        async with transport.pair() as (client, server):
            await client.close()
            await server.close()
        del client, server
        gc.collect()
    assert log.getvalue() == ""


async def _end(comm: Comm, ending: str) -> None:
    if ending == "close":
        await comm.close()
    else:
        comm.abort()


# Attributes


@gen_test()
async def test_addresses_of_both_ends_match(transport):
    accepted: asyncio.Queue[Comm] = asyncio.Queue()
    async with transport.listening(accepted.put) as listener:
        client = await transport.connect(listener.contact_address)
        server = await accepted.get()
        assert client.peer_address == listener.contact_address
        assert client.local_address == server.peer_address
        scheme = transport.listen_at.partition("://")[0] + "://"
        for comm in (client, server):
            assert comm.local_address.startswith(scheme)
            assert comm.peer_address.startswith(scheme)
        await client.close()
        await server.close()


@gen_test()
async def test_repr_has_type_addresses_name_and_state(transport):
    async with transport.pair() as (client, _):
        client.name = "errands"
        text = repr(client)
        assert type(client).__name__ in text
        assert "errands" in text
        assert client.local_address in text
        assert client.peer_address in text
        assert "closed" not in text
        client.abort()
        assert "(closed)" in repr(client)


@gen_test()
async def test_both_ends_are_on_one_host_and_among_the_instances(transport):
    async with transport.pair() as (client, server):
        for comm in (client, server):
            assert comm.same_host
            assert isinstance(comm.extra_info, dict)
            assert comm in Comm._instances


@gen_test()
async def test_listen_passes_allow_offload_on(serializing_transport):
    async with serializing_transport.pair({"allow_offload": False}) as (client, server):
        assert client.allow_offload
        assert not server.allow_offload


# The handshake


@gen_test()
async def test_each_side_stores_both_maps(transport):
    async with transport.pair() as (client, server):
        for here, there in ((client, server), (server, client)):
            assert tuple(here.local_info["python"]) == sys.version_info[:3]
            assert here.local_info["address"] == here.local_address
            assert here.remote_info["address"] == here.peer_address
            assert set(here.remote_info) >= {"compression", "python", "pickle-protocol"}
            assert here.local_info["pickle-protocol"] == there.remote_info["pickle-protocol"]
        assert client.handshake_options == server.handshake_options


@gen_test()
async def test_peers_on_one_host_do_not_compress(transport):
    with config.set({"distributed.comm.compression": "zlib"}):
        async with transport.pair() as (client, server):
            assert client.handshake_options["compression"] is None
            assert server.handshake_options["compression"] is None


@gen_test()
async def test_both_sides_use_the_lower_pickle_protocol(transport):
    async with transport.pair(handshake_overrides={"pickle-protocol": 4}) as (client, server):
        assert client.handshake_options["pickle-protocol"] == 4
        assert server.handshake_options["pickle-protocol"] == 4


@gen_test()
async def test_unknown_keys_of_a_handshake_are_kept_and_ignored(transport):
    async with transport.pair(handshake_overrides={"colour": "blue"}) as (_, server):
        assert server.remote_info["colour"] == "blue"
        assert "colour" not in server.handshake_options


@gen_test()
async def test_a_handler_gets_no_comm_whose_handshake_failed(serializing_transport):
    got: list[Comm] = []
    async with serializing_transport.listening(got.append) as listener:
        with (
            captured_logger("distributed.comm", level=logging.INFO),
            pytest.raises(OSError, match=r"pickle-protocol|Timed out"),
        ):
            await serializing_transport.connect(
                listener.contact_address,
                handshake_overrides={"pickle-protocol": "four"},
                timeout=0.5,
            )
        comm = await serializing_transport.connect(listener.contact_address)
        await async_poll_for(lambda: len(got) == 1, timeout=5)
        await comm.close()
        await got[0].close()


# Connecting


@pytest.mark.parametrize(
    ("timeout", "configured", "seconds"),
    [(0.2, "30s", "0.2"), ("50ms", "30s", "0.05"), (None, "60ms", "0.06")],
)
@gen_test()
async def test_connect_gives_up_after_the_timeout(transport, timeout, configured, seconds):
    address = transport.unused_address()
    with (
        config.set({"distributed.comm.timeouts.connect": configured}),
        pytest.raises(OSError, match=f"Timed out trying to connect to {address} after {seconds} s"),
    ):
        await transport.connect(address, timeout=timeout)


@gen_test()
async def test_connect_retries_until_a_listener_has_started(transport):
    address = transport.unused_address()
    with captured_logger("distributed.comm", level=logging.DEBUG) as log:
        connecting = asyncio.create_task(transport.connect(address, timeout=20))
        await async_poll_for(lambda: "trying again" in log.getvalue(), timeout=10)
    assert not connecting.done()
    listener = await transport.listen(echo, address)
    comm = await connecting
    await comm.write("hello")
    assert await comm.read() == "hello"
    await comm.close()
    await stop(listener)


@gen_test()
async def test_a_cancelled_connect_ends_at_once(transport):
    connecting = asyncio.create_task(transport.connect(transport.unused_address()))
    await turns()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


@gen_test()
async def test_cancelling_connects_at_any_moment_leaves_no_comm_open(transport):
    got: list[Comm] = []

    async def keep(comm: Comm) -> None:
        got.append(comm)
        await echo(comm)

    async with transport.listening(keep) as listener:
        for turns in range(40):
            connecting = asyncio.create_task(transport.connect(listener.contact_address))
            for _ in range(turns):
                await asyncio.sleep(0)
            connecting.cancel()
            (outcome,) = await asyncio.gather(connecting, return_exceptions=True)
            if isinstance(outcome, Comm):
                await outcome.close()
            else:
                assert isinstance(outcome, asyncio.CancelledError)
        await async_poll_for(lambda: all(comm.closed() for comm in got), timeout=5)
        comm = await transport.connect(listener.contact_address)
        await comm.write(1)
        assert await comm.read() == 1
        await comm.close()


@gen_test()
async def test_an_unknown_scheme_is_a_value_error():
    with pytest.raises(ValueError, match="unknown address scheme 'teleport'"):
        await connect("teleport://mars")
    with pytest.raises(ValueError, match="unknown address scheme 'teleport'"):
        await listen("teleport://mars", echo)


@gen_test()
async def test_many_comms_at_once(transport):
    async with transport.listening(echo) as listener:

        async def talk(number: int) -> None:
            comm = await transport.connect(listener.contact_address)
            for i in range(10):
                await comm.write([number, i])
                assert list(await comm.read()) == [number, i]
            await comm.close()

        await asyncio.gather(*(talk(number) for number in range(100)))


@gen_test()
async def test_an_idle_comm_does_not_delay_another(transport):
    async with transport.listening(echo) as listener:
        idle = await transport.connect(listener.contact_address)
        busy = await transport.connect(listener.contact_address)
        await busy.write("hello")
        assert await busy.read() == "hello"
        await idle.close()
        await busy.close()


# Listening


@gen_test()
async def test_a_listener_is_contacted_at_its_contact_address(transport):
    async with transport.listening(echo) as listener:
        scheme = transport.listen_at.partition("://")[0] + "://"
        assert listener.listen_address.startswith(scheme)
        assert listener.contact_address.startswith(scheme)
        comm = await transport.connect(listener.contact_address)
        await comm.close()


@gen_test()
async def test_several_listeners_are_independent(transport):
    first: asyncio.Queue[Comm] = asyncio.Queue()
    second: asyncio.Queue[Comm] = asyncio.Queue()
    async with (
        transport.listening(first.put) as one,
        transport.listening(second.put) as two,
    ):
        assert one.contact_address != two.contact_address
        comm = await transport.connect(two.contact_address)
        other_end = await second.get()
        assert first.empty()
        await comm.close()
        await other_end.close()


@gen_test()
async def test_a_handler_may_be_a_plain_function(transport):
    got: list[Comm] = []
    async with transport.listening(got.append) as listener:
        comm = await transport.connect(listener.contact_address)
        await async_poll_for(lambda: bool(got), timeout=5)
        await got[0].write("from a plain handler")
        assert await comm.read() == "from a plain handler"
        await comm.close()
        await got[0].close()


@pytest.mark.parametrize("is_async", [False, True])
@gen_test()
async def test_a_handler_that_raises_ends_only_its_comm(transport, is_async):
    async def fail_async(comm: Comm) -> None:
        raise ZeroDivisionError("handler")

    def fail(comm: Comm) -> None:
        raise ZeroDivisionError("handler")

    with captured_logger("distributed.comm") as log:
        async with transport.listening(fail_async if is_async else fail) as listener:
            for _ in range(2):
                comm = await transport.connect(listener.contact_address)
                with pytest.raises(CommClosedError):
                    await comm.read()
    assert log.getvalue().count("ZeroDivisionError: handler") == 2


@gen_test()
async def test_comms_outlive_their_listener(transport):
    listener = await transport.listen(echo)
    comm = await transport.connect(listener.contact_address)
    await comm.write(1)
    assert await comm.read() == 1
    await stop(listener)
    await comm.write(2)
    assert await comm.read() == 2
    await comm.close()


@gen_test()
async def test_a_listener_is_a_context_manager(transport):
    async with await transport.listen(echo) as listener:
        address = listener.contact_address
        comm = await transport.connect(address)
        await comm.close()
    with pytest.raises(OSError, match="Timed out"):
        await transport.connect(address, timeout=0.1)


@gen_test()
async def test_a_stopped_listener_accepts_no_connections_and_frees_its_address(transport):
    listener = await transport.listen(echo)
    address = listener.contact_address
    await stop(listener)
    await stop(listener)
    with pytest.raises(OSError, match="Timed out"):
        await transport.connect(address, timeout=0.1)
    async with transport.listening(echo, address=address) as again:
        assert again.contact_address == address
        comm = await transport.connect(address)
        await comm.close()


@gen_test()
async def test_writing_an_invalid_message_to_a_closed_comm_is_a_comm_error(serializing_transport):
    async with serializing_transport.listening(echo) as listener:
        comm = await serializing_transport.connect(listener.contact_address)
        await comm.close()
        with pytest.raises(CommClosedError, match="cannot write"):
            await comm.write({"x": asyncio.get_running_loop()}, on_error="raise")


@gen_test()
async def test_a_handshake_is_plain_msgpack(serializing_transport):
    async with serializing_transport.listening(echo) as listener:
        with pytest.raises(TypeError, match="can not serialize 'set' object"):
            await serializing_transport.connect(
                listener.contact_address, handshake_overrides={"x": {1}}
            )


@gen_test()
async def test_a_listener_that_stops_while_peers_connect_leaves_nothing_open(transport):
    listener = await transport.listen(echo)
    connecting = [
        asyncio.create_task(transport.connect(listener.contact_address, timeout=0.5))
        for _ in range(20)
    ]
    await asyncio.sleep(0)
    await stop(listener)
    for outcome in await asyncio.gather(*connecting, return_exceptions=True):
        if isinstance(outcome, Comm):
            await outcome.close()
        else:
            assert isinstance(outcome, OSError)


@gen_test()
async def test_aborting_handshakes_leaves_other_comms_open(
    serializing_transport,
):
    async with serializing_transport.listening(echo) as listener:
        assert isinstance(listener, BaseListener)
        comm = await serializing_transport.connect(listener.contact_address)
        await comm.write("hello")
        assert await comm.read() == "hello"
        listener.abort_handshaking_comms()
        await comm.write("still here")
        assert await comm.read() == "still here"
        await comm.close()


# Several event loops


@gen_test()
async def test_an_array_that_is_kept_does_not_keep_its_message(serializing_transport):
    size, count = 10_000, 25
    async with serializing_transport.pair() as (one, two):
        for _ in range(2):  # The first message also fills caches.
            await one.write([to_serialize(memoryview(bytes(size))) for _ in range(count)])
            tracemalloc.start()
            try:
                kept = (await two.read())[count // 2]
                # The reader resumes inside the callback that received the message.
                await asyncio.sleep(0)
                gc.collect()
                nbytes, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert len(kept) == size
    # Besides the array: a receive buffer, which all comms share.
    assert nbytes < size + 60_000


class Truncated:
    """An object whose bytes end early."""

    def __reduce__(self):
        return _raise_end_of_file, ()


def _raise_end_of_file():
    raise EOFError("Ran out of input")


@pytest.mark.parametrize("filler", [b"", b"x" * 20_000_000], ids=["in the loop", "offloaded"])
@gen_test()
async def test_truncated_data_closes_the_comm(serializing_transport, filler):
    async with serializing_transport.pair() as (one, two):
        write = asyncio.create_task(one.write({"x": to_serialize([Truncated(), filler])}))
        with pytest.raises(CommClosedError, match="aborted stream on truncated data"):
            await two.read()
        assert two.closed()
        with contextlib.suppress(CommClosedError):
            await write


@pytest.fixture
def server_in_a_thread(transport) -> Iterator[tuple[Transport, str]]:
    """A listener that echoes, in the event loop of another thread."""
    address = ""
    started, loop, over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        nonlocal address
        async with transport.listening(echo) as listener:
            address = listener.contact_address
            started.set()
            await over.wait()
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(serve())
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    yield transport, address
    loop.call_soon_threadsafe(over.set)
    thread.join(10)
    assert not thread.is_alive()


def test_a_comm_may_connect_event_loops_of_two_threads(server_in_a_thread):
    transport, address = server_in_a_thread

    @gen_test()
    async def talk():
        comm = await transport.connect(address)
        for i in range(100):
            await comm.write(i)
            assert await comm.read() == i
        await comm.close()
        with pytest.raises(CommClosedError):
            await comm.read()

    talk()
