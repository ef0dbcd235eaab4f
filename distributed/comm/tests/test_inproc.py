"""The ``inproc://`` transport: references, threads and addresses.  See also ``test_comms``."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from distributed.base.host_addresses import get_ip
from distributed.comm import CommClosedError, connect, get_address_host, listen
from distributed.comm.core import Comm
from distributed.comm.inproc import (
    ConnectionRequest,
    InProc,
    InProcBackend,
    InProcConnector,
    InProcListener,
    Manager,
    Queue,
    QueueEmpty,
    global_manager,
    new_address,
)
from distributed.comm.tests.transports import TRANSPORTS, echo
from distributed.protocol import Serialized, ToPickle, serialize, to_serialize
from distributed.utils_test import captured_logger, gen_test

INPROC = TRANSPORTS["inproc"]


class LoopThread:
    """An event loop in another thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="other loop")
        self.thread.start()

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Comm, Comm]]:
        """Yield both ends of a new connection: one in the running loop, and one in this loop."""
        accepted: asyncio.Queue[Comm] = asyncio.Queue()
        listener = await self.run(INPROC.listen(accepted.put))
        here = await connect(listener.contact_address)
        there = await self.run(accepted.get())
        self.loop.call_soon_threadsafe(listener.stop)
        yield here, there
        here.abort()

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in this loop, and wait for it in the running one."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Stop the loop without ending its tasks."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()


async def others_end() -> None:
    """Wait for the other tasks of this loop."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


@pytest.fixture
def other() -> Iterator[LoopThread]:
    other = LoopThread()
    yield other
    other.close()


# Queue


def test_a_queue_is_first_in_first_out() -> None:
    queue = Queue()
    queue.put_nowait(1)
    queue.put(2)
    assert queue.peek() == 1
    assert queue.get_nowait() == 1
    assert queue.get_nowait() == 2


def test_taking_from_an_empty_queue_raises() -> None:
    queue = Queue()
    for take in (queue.peek, queue.get_nowait):
        with pytest.raises(QueueEmpty):
            take()
    assert queue.peek(None) is None
    assert queue.peek(default=5) == 5


def test_none_is_an_item_like_any_other() -> None:
    queue = Queue()
    queue.put_nowait(None)
    assert queue.peek(5) is None
    assert queue.get_nowait() is None


@gen_test()
async def test_get_returns_an_item_at_once_or_waits_for_one() -> None:
    queue = Queue()
    queue.put_nowait(1)
    assert queue.get().result() == 1
    waiting = queue.get()
    assert not waiting.done()
    queue.put_nowait(2)
    assert await waiting == 2


@gen_test()
async def test_a_queue_has_one_reader() -> None:
    queue = Queue()
    waiting = queue.get()
    with pytest.raises(AssertionError, match="Only one reader allowed"):
        queue.get()
    queue.put_nowait(1)
    assert await waiting == 1


@gen_test()
async def test_a_cancelled_get_takes_nothing() -> None:
    queue = Queue()
    queue.get().cancel()
    queue.put_nowait(1)
    assert await queue.get() == 1


@gen_test()
async def test_a_put_from_a_thread_wakes_the_reader() -> None:
    queue = Queue()
    for i in range(200):
        waiting = queue.get()
        thread = threading.Thread(target=queue.put_nowait, args=(i,))
        thread.start()
        assert await waiting == i
        thread.join()


@gen_test()
async def test_nothing_is_lost_between_threads() -> None:
    queue = Queue()
    n = 5000

    def write() -> None:
        for i in range(n):
            queue.put_nowait(i)

    thread = threading.Thread(target=write)
    thread.start()
    assert [await queue.get() for _ in range(n)] == list(range(n))
    thread.join()


def test_a_put_for_a_reader_with_a_closed_loop_does_not_raise() -> None:
    queue = Queue()

    async def wait() -> None:
        queue.get()

    asyncio.run(wait())
    queue.put_nowait(1)
    assert queue.get_nowait() == 1


# Messages


@gen_test()
async def test_values_are_passed_by_reference() -> None:
    async with INPROC.pair() as (client, server):
        for value in (object(), bytearray(3), lambda: None, {1, 2}):
            await client.write(value)
            assert await server.read() is value
            await client.write({"x": [value]})
            assert (await server.read())["x"][0] is value


@gen_test()
async def test_the_containers_of_a_message_are_not_shared() -> None:
    message: dict[str, Any] = {"op": "x", "keys": [1, 2]}
    async with INPROC.pair() as (client, server):
        await client.write(message)
        received = await server.read()
        received.pop("op")
        received["keys"].append(3)
    assert message == {"op": "x", "keys": [1, 2]}


@gen_test()
async def test_a_message_of_plain_values_is_not_shared() -> None:
    message: dict[str, Any] = {"op": "x", "n": 1, "b": b"x", "none": None}
    async with INPROC.pair() as (client, server):
        await client.write(message)
        received = await server.read()
        assert received == message
        received["op"] = "y"
    assert message["op"] == "x"


@gen_test()
async def test_a_write_has_no_size_in_bytes() -> None:
    async with INPROC.pair() as (client, _):
        assert await client.write({"x": bytes(1000)}) == 1


@pytest.mark.parametrize("deserialize", [True, False])
@gen_test()
async def test_values_wrapped_for_pickle_arrive_unwrapped(deserialize: bool) -> None:
    value = object()
    async with INPROC.pair({"deserialize": deserialize}) as (client, server):
        await client.write({"x": ToPickle(value), "y": [ToPickle(value)]})
        assert await server.read() == {"x": value, "y": [value]}


@gen_test()
async def test_wrapped_values_arrive_unwrapped_at_any_depth() -> None:
    value = object()
    async with INPROC.pair() as (client, server):
        for message, expected in [
            ({"x": to_serialize(value)}, {"x": value}),
            ({"x": {"y": [to_serialize(value)]}}, {"x": {"y": [value]}}),
            ([to_serialize(value)], [value]),
            # The original leaves these wrapped, unlike over tcp:
            ({"x": (1, to_serialize(value))}, {"x": (1, value)}),
            (to_serialize(value), value),
        ]:
            await client.write(message)
            assert await server.read() == expected


@gen_test()
async def test_serialized_values_arrive_deserialized() -> None:
    async with INPROC.pair() as (client, server):
        await client.write({"x": Serialized(*serialize(range(3)))})
        assert await server.read() == {"x": range(3)}


@gen_test()
async def test_without_deserialize_values_stay_wrapped() -> None:
    message: dict[str, Any] = {"x": to_serialize(object()), "y": [Serialized(*serialize(range(3)))]}
    async with INPROC.pair({"deserialize": False}, deserialize=False) as (client, server):
        await client.write(message)
        received = await server.read()
        assert received["x"] is message["x"]
        assert received["y"][0] is message["y"][0]


@gen_test()
async def test_unwrapping_does_not_change_the_message_of_the_writer() -> None:
    wrapped = to_serialize(1)
    message = {"x": wrapped, "y": [wrapped], "z": {"a": wrapped}}
    async with INPROC.pair() as (client, server):
        await client.write(message)
        assert await server.read() == {"x": 1, "y": [1], "z": {"a": 1}}
        assert message == {"x": wrapped, "y": [wrapped], "z": {"a": wrapped}}


@gen_test()
async def test_a_value_that_cannot_be_deserialized_leaves_the_comm_usable() -> None:
    header, frames = serialize(range(3))
    async with INPROC.pair() as (client, server):
        await client.write({"x": Serialized(header, [bytes(f)[:-1] for f in frames])})
        await client.write("next")
        with pytest.raises(ValueError, match="could not"):
            await server.read()
        assert await server.read() == "next"


# Closing


@gen_test()
async def test_a_comm_is_open_until_all_messages_before_the_end_were_read() -> None:
    async with INPROC.pair() as (client, server):
        await server.write(1)
        await server.write(2)
        await server.close()
        assert not client.closed()
        assert [await client.read(), await client.read()] == [1, 2]
        assert client.closed()
        with pytest.raises(CommClosedError, match="closed by the peer"):
            await client.read()


@gen_test()
async def test_a_write_to_a_closed_peer_raises_and_unread_messages_stay_readable() -> None:
    async with INPROC.pair() as (client, server):
        await server.write(1)
        await server.close()
        with pytest.raises(CommClosedError, match="the peer has closed"):
            await client.write(2)
        assert await client.read() == 1


@gen_test()
async def test_the_error_of_a_pending_read_names_the_side_that_closed() -> None:
    async with INPROC.pair() as (client, server):
        here, there = asyncio.create_task(client.read()), asyncio.create_task(server.read())
        await asyncio.sleep(0)
        client.abort()
        with pytest.raises(CommClosedError, match="closed by this side"):
            await here
        with pytest.raises(CommClosedError, match="closed by the peer"):
            await there


@gen_test()
async def test_a_comm_that_closed_while_its_peer_was_reading_refuses_writes() -> None:
    async with INPROC.pair() as (client, server):
        reading = asyncio.create_task(client.read())
        await asyncio.sleep(0)
        client.abort()
        with pytest.raises(CommClosedError):
            await server.write(1)
        assert server.closed()
        with pytest.raises(CommClosedError):
            await reading


@gen_test()
async def test_a_read_cancelled_after_its_message_arrived_closes_the_comm() -> None:
    async with INPROC.pair() as (client, server):
        reading = asyncio.create_task(client.read())
        await asyncio.sleep(0)
        await server.write("lost")
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert client.closed()
        assert server.closed()


@gen_test()
async def test_a_garbage_collected_comm_is_closed_and_logged() -> None:
    accepted: list[Comm] = []
    async with listen("inproc://", accepted.append) as listener:
        client = await connect(listener.contact_address)
        await client.write(1)
        server = accepted.pop()
        name = f"from {client.local_address} to {client.peer_address}"
        assert await server.read() == 1
        reading = asyncio.create_task(server.read())
        await asyncio.sleep(0)
        alive = weakref.ref(client)
        with captured_logger("distributed.comm.inproc") as log:
            del client
            gc.collect()
            assert alive() is None
            with pytest.raises(CommClosedError, match="closed by the peer"):
                await reading
        assert name in log.getvalue()


@gen_test()
async def test_a_closed_comm_is_garbage_collected_without_a_log_line() -> None:
    with captured_logger("distributed.comm.inproc") as log:
        async with INPROC.pair() as (client, server):
            await server.close()
            del client, server
        gc.collect()
    assert log.getvalue() == ""


# Fairness


@gen_test()
async def test_many_reads_and_writes_do_not_block_other_tasks() -> None:
    async with INPROC.pair() as (client, server):
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count_turns())
        for i in range(1000):
            await client.write(i)
        after_writing = turns
        assert after_writing > 5
        for i in range(1000):
            assert await server.read() == i
        assert turns - after_writing > 5
        counting.cancel()


@gen_test()
async def test_a_write_cancelled_while_other_tasks_run_closes_the_comm() -> None:
    async with INPROC.pair() as (client, server):

        async def write() -> None:
            while True:
                await client.write(None)

        writing = asyncio.create_task(write())
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert client.closed()
        while not server.closed():
            assert await server.read() is None


# Event loops and threads


@gen_test()
async def test_two_ends_in_two_threads(other: LoopThread) -> None:
    threads = set()

    async def tell_thread(comm: Comm) -> None:
        threads.add(threading.current_thread().name)
        await echo(comm)

    listener = await other.run(INPROC.listen(tell_thread))
    client = await connect(listener.contact_address)
    for i in range(500):
        await client.write(i)
        assert await client.read() == i
    await client.close()
    other.loop.call_soon_threadsafe(listener.stop)
    await other.run(others_end())
    assert threads == {"other loop"}


@gen_test()
async def test_closing_wakes_a_reader_in_another_thread(other: LoopThread) -> None:
    async with other.pair() as (here, there):
        reading = asyncio.create_task(here.read())
        await asyncio.sleep(0)
        await other.run(there.close())
        with pytest.raises(CommClosedError, match="closed by the peer"):
            await reading


@gen_test()
async def test_writing_to_a_loop_that_was_closed_closes_the_comm(other: LoopThread) -> None:
    async with other.pair() as (here, there):
        other.close()
        assert not here.closed()
        with pytest.raises(CommClosedError, match="the event loop of the peer is closed"):
            await here.write(1)
        assert here.closed()
        assert there.closed()


@gen_test()
async def test_a_listener_whose_loop_was_closed_refuses_connections(other: LoopThread) -> None:
    listener = await other.run(INPROC.listen(echo))
    other.close()
    with pytest.raises(OSError, match="Timed out") as caught:
        await connect(listener.contact_address, timeout=0.1)
    listener.stop()
    assert f"{listener.listen_address} does not run" in str(caught.value.__cause__)


@gen_test()
async def test_handlers_that_end_with_their_loop_close_their_comms() -> None:
    accepted: list[Comm] = []

    async def wait_forever(comm: Comm) -> None:
        accepted.append(comm)
        await asyncio.Event().wait()

    def run() -> None:
        async def main() -> None:
            async with listen("inproc://", wait_forever) as listener:
                comm = await connect(listener.contact_address)
                while not accepted:
                    await asyncio.sleep(0)
                await comm.close()

        asyncio.run(main())

    await asyncio.to_thread(run)
    with pytest.raises(CommClosedError, match="cannot read"):
        await accepted[0].read()


# Listeners and addresses


def test_new_addresses_name_the_host_and_process_and_are_unique() -> None:
    addresses = [new_address() for _ in range(10)]
    assert len(set(addresses)) == 10
    for address in addresses:
        assert address.startswith(f"inproc://{get_ip()}/{os.getpid()}/")
        assert get_address_host(address) == get_ip()


@gen_test()
async def test_an_address_can_be_chosen() -> None:
    address = new_address()
    async with listen(address, echo) as listener:
        assert listener.listen_address == listener.contact_address == address
        comm = await connect(address)
        assert comm.peer_address == address
        assert comm.local_address.startswith("inproc://")
        assert comm.local_address != address
        assert comm.same_host
        await comm.close()


@gen_test()
async def test_a_listener_without_an_address_takes_a_new_one() -> None:
    listener = InProcListener("", echo)
    assert listener.listen_address.startswith(f"inproc://{get_ip()}/{os.getpid()}/")
    assert global_manager.get_listener_for(listener.address) is None
    async with listener:
        assert global_manager.get_listener_for(listener.address) is listener
    assert global_manager.get_listener_for(listener.address) is None


@pytest.mark.parametrize("address", ["foo", "a/b", "a/b/c/d", "1.2.3.4/x/1", ":5"])
def test_an_invalid_address_is_an_error(address: str) -> None:
    with pytest.raises(ValueError, match=f"invalid inproc address '{address}'"):
        global_manager.validate_address(address)
    with pytest.raises(ValueError, match=f"invalid inproc address '{address}'"):
        InProcListener(address, echo)


@pytest.mark.parametrize(
    "address",
    [f"1.2.3.4/{os.getpid()}/1", f"{get_ip()}/{os.getpid() + 1}/1"],
    ids=["other host", "other process"],
)
@gen_test()
async def test_addresses_of_other_processes_are_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="does not match host"):
        await connect(f"inproc://{address}", timeout=60)
    with pytest.raises(ValueError, match="does not match host"):
        get_address_host(f"inproc://{address}")


@gen_test()
async def test_connecting_without_a_listener_is_an_os_error_that_says_so() -> None:
    address = new_address()
    connector = InProcConnector(global_manager)
    with pytest.raises(OSError, match="no endpoint for inproc address"):
        await connector.connect(address.removeprefix("inproc://"))
    with pytest.raises(
        OSError, match=r"Timed out trying to connect to .* after 0\.05 s: .*no endpoint"
    ) as caught:
        await connect(address, timeout=0.05)
    assert "no endpoint for inproc address" in str(caught.value.__cause__)


@gen_test()
async def test_an_address_has_one_listener() -> None:
    address = new_address()
    async with listen(address, echo) as listener:
        await listener
        with pytest.raises(OSError, match=f"already listening on {address}"):
            await listen(address, echo)
    async with listen(address, echo):
        listener.stop()
        await (await connect(address)).close()


class Payload:
    """An object that can be referenced weakly."""


@gen_test()
async def test_a_message_that_was_read_is_released() -> None:
    async with INPROC.pair() as (one, two):
        # The reader waits for the first message, and finds the second.
        reading = asyncio.create_task(two.read())
        await asyncio.sleep(0)
        payload = Payload()
        alive = weakref.ref(payload)
        await one.write({"x": payload})
        await reading
        assert alive() is payload
        del payload, reading
        # The event loop refers to the awaited task until this one is suspended.
        await asyncio.sleep(0)
        assert alive() is None
        payload = Payload()
        alive = weakref.ref(payload)
        await one.write(payload)
        await two.read()
        del payload
        assert alive() is None


@gen_test()
async def test_a_garbage_collected_listener_does_not_listen() -> None:
    address = new_address()
    await listen(address, echo)
    gc.collect()
    assert global_manager.get_listener_for(address.removeprefix("inproc://")) is None


@gen_test()
async def test_a_connection_requested_before_the_listener_stopped_is_closed() -> None:
    listener = await listen("inproc://", echo)
    comm = await InProcConnector(global_manager).connect(
        listener.contact_address.removeprefix("inproc://")
    )
    listener.stop()
    await comm.write("never read")
    with pytest.raises(CommClosedError, match="closed by the peer"):
        await comm.read()


@gen_test()
async def test_a_stopped_listener_refuses_requests() -> None:
    listener = InProcListener("", echo)
    request = ConnectionRequest(Queue(), Queue(), asyncio.get_running_loop(), "client")
    with pytest.raises(OSError, match=f"{listener.listen_address} does not listen"):
        listener.connect_threadsafe(request)


def test_managers_do_not_share_listeners() -> None:
    listener = InProcListener("", echo)
    mine = Manager()
    mine.add_listener(listener.address, listener)
    assert mine.get_listener_for(listener.address) is listener
    assert global_manager.get_listener_for(listener.address) is None
    mine.remove_listener(listener.address)
    mine.remove_listener(listener.address)
    assert mine.get_listener_for(listener.address) is None


def test_the_backend() -> None:
    backend = InProcBackend()
    assert backend.manager is global_manager
    loc = global_manager.new_address()
    assert backend.resolve_address(loc) == loc
    assert backend.get_address_host(loc) == get_ip()
    local = backend.get_local_address_for(loc)
    assert local != loc
    global_manager.validate_address(local)
    listener = backend.get_listener(loc, echo, False, allow_offload=True)
    assert listener.address == loc
    assert not listener.deserialize
    assert isinstance(backend.get_connector(), InProcConnector)


def test_the_repr_of_a_comm_has_both_addresses() -> None:
    loop = asyncio.new_event_loop()
    comm = InProc("inproc://a", "inproc://b", Queue(), Queue(), loop, deserialize=False)
    assert repr(comm) == "<InProc  local=inproc://a remote=inproc://b>"
    assert not comm.deserialize
    comm.abort()
    assert repr(comm) == "<InProc (closed)  local=inproc://a remote=inproc://b>"
    loop.close()
