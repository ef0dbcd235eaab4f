"""Busy polling: an event loop that waits for a message does not sleep for some time."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

import distributed.config
from distributed.comm import busy_polling
from distributed.comm.busy_polling import BusyPolling
from distributed.comm.settings import settings
from distributed.core import rpc
from distributed.tests.servers import ADDRESSES, TCP, Gate, serving
from distributed.utils_test import gen_test

KEY = "distributed.comm.busy-poll"

OVER_SOCKETS = pytest.mark.parametrize("transport", [a for a in ADDRESSES if a != "inproc://"])


class Clock:
    """The time of busy polling, in place of that of the system; it counts the looks at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.looks = 0
        monkeypatch.setattr(BusyPolling, "clock", lambda _: self.look())

    def look(self) -> float:
        self.looks += 1
        return self.now


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def sleeps(monkeypatch):
    """Return a function that starts to note with which timeouts the event loop waits."""

    def watch():
        timeouts = []
        selector = asyncio.get_running_loop()._selector
        select = selector.select

        def noting(timeout=None):
            timeouts.append(timeout)
            return select(timeout)

        monkeypatch.setattr(selector, "select", noting)
        return timeouts

    return watch


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def polling_here():
    return busy_polling._polling.get(asyncio.get_running_loop())


@gen_test()
async def test_it_is_off_by_default():
    async with serving(TCP) as server, rpc(server.address) as remote:
        await remote.echo(data=1)
        (comm,) = remote.comms
        assert comm._busy_polling is None
        assert polling_here() is None


@gen_test()
async def test_zero_turns_it_off():
    with distributed.config.set({KEY: 0}):
        async with serving(TCP) as server, rpc(server.address) as remote:
            await remote.echo(data=1)
            assert polling_here() is None


@OVER_SOCKETS
@gen_test()
async def test_a_loop_with_a_waiting_caller_polls_until_the_time_is_over(transport, clock, sleeps):
    gate = Gate()
    with distributed.config.set({KEY: "50us"}):
        async with serving(transport, {"wait": gate.handle}) as server, rpc(server.address) as own:
            call = await gate.enter(own.wait())
            timeouts = sleeps()
            polling = polling_here()
            assert polling.is_polling
            # As long as the time does not pass.
            await turns(20)
            assert polling.is_polling
            assert set(timeouts) == {0}
            clock.now += 49e-6
            await turns()
            assert polling.is_polling
            clock.now += 2e-6
            await turns()
            assert not polling.is_polling
            gate.open()
            await call


@gen_test()
async def test_each_wait_begins_the_time_again_and_waits_share_one_loop(clock):
    polling = BusyPolling()
    for _ in range(100):
        polling.poll_for(0.5)
    await turns()
    clock.looks = 0
    await turns(10)
    # One look per iteration.
    assert clock.looks == 10
    clock.now += 0.4
    polling.poll_for(0.5)
    # A shorter one does not end a longer one.
    polling.poll_for(0.01)
    clock.now += 0.4
    await turns()
    assert polling.is_polling
    clock.now += 0.2
    await turns()
    assert not polling.is_polling
    polling.poll_for(0.5)
    assert polling.is_polling
    clock.now += 1
    await turns()
    assert not polling.is_polling


@OVER_SOCKETS
@gen_test()
async def test_other_calls_and_timers_proceed_while_the_loop_polls(transport, clock):
    gate = Gate()
    with distributed.config.set({KEY: "1ms"}):
        async with serving(transport, {"wait": gate.handle}) as server, rpc(server.address) as own:
            call = await gate.enter(own.wait())
            # The time does not pass, so the loop polls all the time.
            polling = polling_here()
            fired = asyncio.Event()
            asyncio.get_running_loop().call_later(0.001, fired.set)
            answers = await asyncio.gather(*(own.echo(data=i) for i in range(20)))
            assert answers == list(range(20))
            await fired.wait()
            assert polling.is_polling
            assert not call.done()
            clock.now += 1
            gate.open()
            await call


def test_an_event_loop_that_is_closed_is_freed():
    async def use():
        with distributed.config.set({KEY: "10ms"}):
            polling, seconds = BusyPolling.configured(settings())
        polling.poll_for(seconds)
        assert BusyPolling.configured(settings()) is None
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(use())
    gc.collect()
    assert loop() is None


@pytest.mark.parametrize("value", ["1s", "50", "-50us", "soon"])
def test_a_value_that_makes_no_sense_is_refused(value):
    with distributed.config.set({KEY: value}), pytest.raises(ValueError, match=KEY):
        distributed.config.get_timedelta(KEY)
