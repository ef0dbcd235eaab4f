"""A stopped peer ends what waits for it; a peer that is alive, however busy, never does."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from typing import Any

import pytest

from distributed import core
from distributed.base import config
from distributed.comm import keepalive
from distributed.comm.tests.raw_peers import HANDSHAKE, message, packed, raw_peer
from distributed.core import CommClosedError, rpc
from distributed.core.tests.test_idle_servers import CountingSelector, wakeups
from distributed.tests.besieged import besieged, running
from distributed.tests.servers import ADDRESSES, TCP, Gate, connected, serving, trusting
from distributed.utils_test import async_poll_for, captured_logger, gen_test

OVER_SOCKETS = [address for address in ADDRESSES if address != "inproc://"]
over_sockets = pytest.mark.parametrize("transport", OVER_SOCKETS)

INTERVAL = "distributed.comm.keepalive.interval"
TIMEOUT = "distributed.comm.keepalive.timeout"
TCP_TIMEOUT = "distributed.comm.timeouts.tcp"
#: Messages that a peer that does not read leaves in the kernel's buffers.
MUCH = bytes(20_000_000)


def short(interval: str = "20ms", timeout: str = "100ms") -> contextlib.AbstractContextManager[Any]:
    # Without the timeout of the kernel, signs of life begin at half of the timeout.
    return config.set({INTERVAL: interval, TIMEOUT: timeout, TCP_TIMEOUT: None})


@contextlib.asynccontextmanager
async def another_process(transport: str, timeout: str):
    """Run a server in another process, which is probed each 50 ms; yield it and an rpc."""
    names = (INTERVAL, TIMEOUT, TCP_TIMEOUT)
    variables = ["DASK_" + name.upper().replace(".", "__") for name in names]
    env = dict(zip(variables, ("50ms", timeout, "null"), strict=True))
    with running("serve", transport, env=env) as process, short("50ms", timeout):
        address = (await process.next_report())["address"]
        with trusting(transport), captured_logger("distributed.comm.keepalive"):
            async with rpc(address) as remote:
                yield process, remote


async def call(remote, begun):
    begun.set()
    await remote.wait()


async def stream(remote, begun):
    async for _ in remote.first.stream():
        begun.set()


async def read(remote, begun):
    async with remote.ignore.open() as comm:
        assert await comm.read() == "ready"
        begun.set()
        await comm.read()


async def write(remote, begun):
    async with remote.ignore.open() as comm:
        assert await comm.read() == "ready"
        begun.set()
        for _ in range(10):
            await comm.write(MUCH)


WAITS = [call, stream, read, write]


@over_sockets
@gen_test()
async def test_a_stopped_process_ends_all_that_waits_for_it(transport):
    async with another_process(transport, "600ms") as (process, remote):
        tasks = []
        for wait in WAITS:
            begun = asyncio.Event()
            tasks.append(asyncio.create_task(wait(remote, begun)))
            await begun.wait()
        process.popen.send_signal(signal.SIGSTOP)
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            process.popen.send_signal(signal.SIGCONT)
        for result in results:
            assert isinstance(result, CommClosedError)
            pattern = rf"{re.escape(remote.address)} is connected, .* for 0.6 s \('{TIMEOUT}'\)"
            assert re.search(pattern, str(result))
        # New calls work.
        assert await remote.echo(data=1) == 1


@over_sockets
@gen_test()
async def test_an_event_loop_that_is_blocked_for_less_than_the_timeout_is_alive(transport):
    async with another_process(transport, "10s") as (_, remote):
        assert await remote.block(seconds=0.3) is None
        [comm] = remote.comms
        assert comm._keepalive.error is None


@gen_test()
async def test_a_server_does_not_wait_for_ever_for_a_client_that_is_stopped():
    """Its kernel has accepted a part of the answer, and it answers no probe."""
    with short(), captured_logger("distributed.comm.keepalive") as log:
        async with serving(TCP, {"give": lambda: MUCH}) as server, raw_peer(server.address) as peer:
            await peer.send(message({**HANDSHAKE, "features": {"keepalive": [0.02, 0.02]}}))
            await peer.read_message()
            await peer.send(message({"op": "give"}))
            await async_poll_for(lambda: "no sign of life" in log.getvalue())
            await async_poll_for(lambda: not server._comms)


# Peers that are alive


@contextlib.contextmanager
def counting_signs(monkeypatch):
    """Count signs of life that any comm of this process receives."""
    signs: list[int] = []
    hear = keepalive.KeepAlive.hear

    def hearing(self):
        signs.append(1)
        hear(self)

    with monkeypatch.context() as patch:
        patch.setattr(keepalive.KeepAlive, "hear", hearing)
        yield signs


async def many(signs: list[int]) -> None:
    """Wait for more signs of life than fit into the timeout."""
    await async_poll_for(lambda: len(signs) >= 8, period=0.01)


@over_sockets
@gen_test()
async def test_a_long_handler_is_alive(transport, monkeypatch):
    gate = Gate()
    with short(), counting_signs(monkeypatch) as signs:
        async with serving(transport, {"wait": gate.handle}) as server, rpc(server.address) as r:
            waiting = await gate.enter(r.wait(key=5), 5)
            await many(signs)
            gate.open(5)
            assert await waiting == 5


@over_sockets
@gen_test()
async def test_a_stream_with_a_long_pause_is_alive(transport, monkeypatch):
    """The server has not read that the first item was consumed; the probes are behind that."""
    gate = Gate()

    async def count():
        yield 1
        await gate.handle()
        yield 2

    with short(), counting_signs(monkeypatch) as signs:
        async with serving(transport, {"count": count}) as server, rpc(server.address) as remote:
            items = remote.count.stream()
            assert await anext(items) == 1
            second = await gate.enter(anext(items))
            await many(signs)
            gate.open()
            assert await second == 2
            await items.aclose()


@over_sockets
@pytest.mark.parametrize("size", [10, 3_000_000])
@gen_test()
async def test_a_handler_that_does_not_read_is_alive(transport, size, monkeypatch):
    """Messages that fill the buffers wait before the probes; a write of the caller waits, too."""
    gate = Gate()

    async def later(comm):
        await gate.handle()
        sizes = [len(await comm.read()) for _ in range(10)]
        await comm.write(sizes)

    async def talk(remote):
        async with remote.later.open() as comm:
            for _ in range(10):
                await comm.write(bytes(size))
            return await comm.read()

    with short(), counting_signs(monkeypatch) as signs:
        async with serving(transport, {"later": later}) as server, rpc(server.address) as remote:
            talking = await gate.enter(talk(remote))
            await many(signs)
            gate.open()
            assert list(await talking) == [size] * 10


@over_sockets
@gen_test()
async def test_a_saturated_stream_is_alive(transport, monkeypatch):
    gate = Gate()
    with short(), config.set({"distributed.comm.max-stream-handlers": 1}):
        handlers = {"note": lambda data: gate.handle()}
        with counting_signs(monkeypatch) as signs:
            async with serving(transport, stream_handlers=handlers) as server:
                comm = await core.connect(server.address)
                await comm.write({"op": "connection_stream", "reply": False})
                await gate.enter(comm.write({"op": "note", "data": 1}))

                async def write():
                    for _ in range(10):
                        await comm.write({"op": "note", "data": bytes(3_000_000)})

                writing = asyncio.create_task(write())
                await many(signs)
                gate.open()
                await writing
                await comm.close()


@over_sockets
@pytest.mark.parametrize(
    ("count", "timeout"),
    # The kernel of the server has received all messages; or some wait at the caller.
    [(30, "100ms"), (120, "60s")],
)
@gen_test()
async def test_signs_of_life_lose_no_message_of_a_caller_that_has_left(transport, count, timeout):
    """Its kernel would answer by a reset, and drop the messages that the server has not received.

    Therefore signs of life begin only after the time at which its kernel drops them anyway.
    """
    if transport == "unix://":
        # The caller can leave only after the kernel has accepted all messages.
        count = min(count, 40)
    gate = Gate()
    got = []
    left = asyncio.Event()

    async def later(comm):
        await gate.handle()
        with contextlib.suppress(CommClosedError):
            while True:
                got.append((await comm.read())[0])
        left.set()

    with short("20ms", timeout):
        async with serving(transport, {"later": later}) as server, rpc(server.address) as remote:
            async with remote.later.open() as comm:
                for number in range(count):
                    await comm.write((number, bytes(3_000)))
                await gate.entered[None].wait()
            # Longer than it takes to send signs of life twice.
            for _ in range(5):
                await asyncio.sleep(0.02)
            gate.open()
            await left.wait()
            assert got == list(range(count))


@pytest.mark.parametrize("transport", [TCP, "ws://127.0.0.1:0"])
@gen_test()
async def test_a_slow_large_answer_is_alive(transport, monkeypatch):
    """The caller gets some bytes per interval, and no answer to its probes."""
    async with SlowRelay.serving(transport) as relay:
        with short("50ms", "200ms"), counting_signs(monkeypatch) as signs:
            async with rpc(relay.address) as remote:
                data = await remote.give()
        assert len(data) == SlowRelay.SIZE
        assert signs == []


class SlowRelay:
    """A relay that forwards some bytes of the answer each 30 ms, for 0.6 s."""

    SIZE = 200_000

    def __init__(self, target: str) -> None:
        self._target = target
        self.address = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(cls, transport):
        with short("50ms", "200ms"):
            async with serving(transport, {"give": lambda: bytes(cls.SIZE)}) as server:
                relay = cls(server.address)
                listener = await asyncio.start_server(relay._accept, "127.0.0.1", 0)
                port = listener.sockets[0].getsockname()[1]
                relay.address = f"{transport.partition(':')[0]}://127.0.0.1:{port}"
                try:
                    yield relay
                finally:
                    listener.close()
                    # The client has left.
                    await asyncio.gather(*relay._tasks)

    async def _accept(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        host, port = self._target.partition("://")[2].partition("/")[0].split(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(OSError):
            await asyncio.gather(self._forward(reader, up_writer), self._forward(up_reader, writer))

    async def _forward(self, reader, writer):
        try:
            while data := await reader.read(self.SIZE // 20):
                writer.write(data)
                if len(data) >= 2_000:
                    await asyncio.sleep(0.03)
        finally:
            writer.close()


# Nothing is sent, and no timer runs, if nothing waits


@over_sockets
def test_no_timer_runs_once_nothing_waits(transport):
    async def main(selector):
        gate = Gate()
        timers = keepalive._timers.setdefault(asyncio.get_running_loop(), {})
        async with serving(transport, {"wait": gate.handle}) as server, rpc(server.address) as r:
            waiting = await gate.enter(r.wait())
            assert list(timers) == [0.02]
            gate.open()
            await waiting
            await async_poll_for(lambda: not timers)
            assert await wakeups(selector, 0.1) <= 0
            # The next call is watched again.
            await r.echo(data=1)
            assert list(timers) == [0.02]

    selector = CountingSelector()

    def new_loop():
        return asyncio.SelectorEventLoop(selector)

    with short("20ms", "60ms"), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main(selector))


@gen_test()
async def test_one_timer_serves_all_calls():
    gate = Gate()
    async with serving(TCP, {"wait": gate.handle}) as server, core.ConnectionPool() as pool:
        tasks = [await gate.enter(pool(server.address).wait(key=i), i) for i in range(20)]
        [timer] = keepalive._timers[asyncio.get_running_loop()].values()
        assert len(timer._watched) == 20
        gate.open(*range(20))
        await asyncio.gather(*tasks)


@over_sockets
@gen_test()
async def test_nothing_is_sent_to_a_peer_that_has_not_agreed(transport):
    """For example to the original, which sends no "features"."""
    gate = Gate()
    with short("10ms", "20ms"):
        async with serving(transport, {"wait": gate.handle}) as server:
            comm = await core.connect(server.address, handshake_overrides={"features": None})
            assert comm.features == {}
            calling = core.send_recv(comm, op="wait")
            waiting = await gate.enter(calling)
            await asyncio.sleep(0.1)
            assert comm._keepalive is None
            assert not comm.peer_unwatched
            gate.open()
            assert await waiting is None
            await comm.close()


@gen_test()
async def test_a_server_sends_nothing_but_answers_to_a_peer_of_the_original():
    gate = Gate()
    with short("10ms", "20ms"):
        async with serving(TCP, {"wait": gate.handle}) as server, raw_peer(server.address) as peer:
            await peer.send(message(HANDSHAKE))
            await peer.read_message()
            await peer.send(message({"op": "wait", "reply": True}))
            await gate.entered[None].wait()
            # Unread messages do not make the server send signs of life.
            await peer.send(message({"op": "echo", "data": 7}) * 2)
            await asyncio.sleep(0.1)
            gate.open()
            received = await peer.read_exactly(len(message(None) + 2 * message(7)))
            assert received == message(None) + 2 * message(7)


@pytest.mark.parametrize("values", [(None, "20ms"), ("20ms", None)])
@gen_test()
async def test_null_on_either_side_turns_it_off(values):
    """Both sides take their offer from the configuration when the handshake begins."""
    client, server = values
    offers = {"features": {"keepalive": [0.02, 0.02]} if client else None}
    with config.set({INTERVAL: server}):
        async with serving(TCP) as serving_one:
            comm = await core.connect(serving_one.address, handshake_overrides=offers)
            assert "keepalive" not in comm.features
            assert not comm.peer_unwatched
            await comm.close()


def test_the_longer_interval_of_both_sides_counts():
    assert keepalive._agree((15, 30), (0.001, 0.001)) == (15, 30)
    assert keepalive._agree((15, 30), [60, 10]) == (60, 30)


@pytest.mark.parametrize("interval", [0, -1, True, "15s", None, float("nan"), float("inf"), [15]])
def test_an_invalid_interval_is_refused(interval):
    for offer in (interval, (interval, 30), (15, interval)):
        with pytest.raises(ValueError, match="expected"):
            keepalive._agree((15, 30), offer)


@gen_test()
async def test_a_timeout_below_two_intervals_counts_as_two():
    with short("100ms", "10ms"):
        async with serving(TCP) as server, connected(server) as comm:
            assert comm._kept_alive()._timeout == pytest.approx(0.205)


# Hostile peers

PROBE = packed(b"", b"\x92\xa5probe\xc2")


@gen_test()
async def test_a_flood_of_probes_gets_one_answer_per_half_interval():
    gate = Gate()
    with config.set({INTERVAL: "1h"}):
        async with serving(TCP, {"wait": gate.handle}) as server, raw_peer(server.address) as peer:
            await peer.send(message({**HANDSHAKE, "features": {"keepalive": [0.001, 0.001]}}))
            await peer.read_message()
            await peer.send(message({"op": "wait"}))
            await gate.entered[None].wait()
            await peer.send(PROBE * 10_000)
            assert await peer.read_message() == [b"", b"\x92\xa5alive\xc2"]
            gate.open()
            # The answer of the handler is the next message, and then that of the next request.
            assert await peer.read_message() == [b"\xc0"]
            await peer.send(PROBE * 10_000 + message({"op": "echo", "data": 1}))
            assert await peer.read_message() == [b"\x01"]


@pytest.mark.parametrize("is_reading", [True, False])
@gen_test(timeout=60)
async def test_a_flood_of_probes_does_not_delay_other_peers(is_reading):
    async with besieged() as siege:
        peers = []
        for _ in range(5):
            peer = await siege.connect()
            await peer.send(message({**HANDSHAKE, "features": {"keepalive": [15, 30], "calls": 1}}))
            await peer.read_message()
            if not is_reading:
                await peer.send(message({"op": "wait"}))
            peers.append(peer)
        flood = PROBE * 5_000
        for _ in range(8):
            await asyncio.gather(*(peer.send(flood) for peer in peers))
