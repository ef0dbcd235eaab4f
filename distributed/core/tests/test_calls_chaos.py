"""Calls and streams with random cancellations, deadlines and restarts of their server.

By default a part of the full number runs, which is 20,000 calls and 2,000 streams:
``CHAOS_CALLS=20000 python -m pytest distributed/core/tests/test_calls_chaos.py``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import textwrap
from collections import Counter

import pytest

from distributed.comm.core import Comm
from distributed.core import CommClosedError, ConnectionPool, Server, Status, rpc
from distributed.tests.environments import ROOT
from distributed.tests.servers import TCP, quiet
from distributed.utils_test import async_poll_for, gen_test, popen

#: Number of calls; there is a stream for each ten of them.
CALLS = int(os.environ.get("CHAOS_CALLS", "500"))
#: Number of callers at a time, and of restarts of the server.
CALLERS, RESTARTS = 100, 8


class Handlers:
    """The handlers, and how many of them have started and ended."""

    def __init__(self):
        self.started = Counter[str]()
        self.ended = Counter[str]()

    def counted(self, name):
        self.started[name] += 1
        return Ending(self.ended, name)

    async def wait(self, token, turns):
        with self.counted("wait"):
            for _ in range(turns):
                await asyncio.sleep(0)
            return token

    async def write(self, comm, token, turns):
        with self.counted("write"):
            await comm.write(token)
            for _ in range(turns):
                await asyncio.sleep(0)
            return Status.dont_reply

    async def numbers(self, token, n, turns):
        with self.counted("numbers"):
            try:
                for number in range(n):
                    yield token, number
                    if number % 7 == 0:
                        await asyncio.sleep(0)
            finally:
                # The cleanup waits, too.
                for _ in range(turns):
                    await asyncio.sleep(0)

    async def chat(self, comm, token):
        with self.counted("chat"):
            while True:
                await comm.write((token, await comm.read()))

    def handlers(self):
        return {name: getattr(self, name) for name in ("wait", "write", "numbers", "chat")}


class Ending:
    def __init__(self, ended, name):
        self.ended = ended
        self.name = name

    def __enter__(self):
        pass

    def __exit__(self, *exc_info):
        self.ended[self.name] += 1


class Chaos:
    """Servers at one address, one after the other, and callers that use them at random."""

    def __init__(self):
        self.random = random.Random(7)
        self.handlers = Handlers()
        self.server = Server({})
        self.address = ""
        self.outcomes = Counter[str]()

    async def start(self, address):
        self.server = await Server(self.handlers.handlers())
        await self.server.listen(address)
        self.address = self.server.address

    async def restart(self, kill):
        old = self.server
        if kill:
            # As if the process had ended: its connections end at once.
            old.stop()
            for comm in list(old._comms):
                comm.abort()
        closing = asyncio.create_task(old.close(timeout=0 if kill else 0.05))
        if not kill:
            # Requests that arrive now are refused.
            await asyncio.sleep(0)
        await closing
        await self.start(self.address)

    async def call(self, remote, token):
        op = self.random.choice(["wait", "write"])
        call = remote.call(op, token=token, turns=self.random.randrange(20))
        assert await call == token

    async def stream(self, remote, token):
        n = self.random.choice([1, 10, 1000])
        leave_at = self.random.choice([None, None, 0, n // 2])
        expected = 0
        stream = remote.numbers.stream(token=token, n=n, turns=self.random.randrange(20))
        async for item in stream:
            assert item == (token, expected)
            expected += 1
            if item[1] == leave_at:
                return
        assert expected == n

    async def talk(self, remote, token):
        async with remote.chat.open(token=token) as comm:
            for word in range(self.random.randrange(5)):
                await comm.write(word)
                assert await comm.read() == (token, word)

    async def use(self, remote, kind, token):
        """Make a call that may end in any way but with a wrong answer."""
        disturbed = self.random.random()
        if disturbed < 0.2:
            remote = remote.within(self.random.uniform(0, 0.01))
        elif disturbed < 0.4:
            remote = remote.retrying(attempts=3)
        task = asyncio.create_task(getattr(self, kind)(remote, token))
        if disturbed > 0.7:
            for _ in range(self.random.randrange(60)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert disturbed > 0.7
            self.outcomes["cancelled"] += 1
        except TimeoutError:
            assert disturbed < 0.2
            self.outcomes["timeout"] += 1
        except OSError as exc:
            self.outcomes[type(exc).__name__] += 1
        else:
            self.outcomes["done"] += 1


@pytest.mark.parametrize("transport", [TCP, "inproc://", "unix://"])
@gen_test(timeout=1200)
async def test_no_answer_is_wrong_and_nothing_leaks_whatever_happens(transport):
    before = asyncio.all_tasks()
    chaos = Chaos()
    await chaos.start(transport)
    work = ["call"] * CALLS + ["stream"] * (CALLS // 10) + ["talk"] * (CALLS // 20)
    chaos.random.shuffle(work)
    jobs = iter(enumerate(work))
    done = 0

    async def caller(remote):
        nonlocal done
        for token, kind in jobs:
            await chaos.use(remote, kind, token)
            done += 1

    with quiet():
        async with ConnectionPool(limit=CALLERS // 2) as pool, rpc(chaos.address, limit=30) as own:
            remotes = [pool(chaos.address), own]
            callers = [asyncio.create_task(caller(remotes[i % 2])) for i in range(CALLERS)]
            for restart in range(1, RESTARTS):
                while done < restart * len(work) // RESTARTS:
                    await asyncio.wait(callers, timeout=0.001)
                    if all(task.done() for task in callers):
                        break
                await chaos.restart(kill=restart % 2 == 0)
            await asyncio.gather(*callers)
            assert pool.active == 0
            assert all(own.comms.values())
            assert await own.wait(token="last", turns=0) == "last"
        await async_poll_for(lambda: chaos.handlers.started == chaos.handlers.ended)
        await async_poll_for(lambda: not chaos.server._comms)
        await chaos.server.close()
    assert sum(chaos.outcomes.values()) == len(work)
    # It was chaos indeed.
    for outcome in ("done", "cancelled", "timeout", "CommClosedError"):
        assert chaos.outcomes[outcome], outcome
    gc.collect()
    assert not [comm for comm in Comm._instances if not comm.closed()]
    await async_poll_for(lambda: asyncio.all_tasks() == before)


SERVER = textwrap.dedent("""
    import asyncio, sys
    from distributed.core import Server

    async def wait():
        await asyncio.Event().wait()

    async def count():
        yield 0
        await asyncio.Event().wait()

    async def main():
        async with Server({"wait": wait, "count": count}) as server:
            await server.listen(sys.argv[1])
            print(server.address, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
""")


@gen_test(timeout=60)
async def test_calls_and_streams_of_a_killed_server_fail_and_later_ones_reach_the_next():
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [os.path.basename(sys.executable), "-c", SERVER]
    with popen([*command, TCP], capture_output=True, env=env) as process:
        address = process.stdout.readline().decode().strip()
        async with rpc(address) as remote:
            stream = remote.count.stream()
            assert await anext(stream) == 0
            call = asyncio.create_task(remote.wait())
            assert await remote.echo(data=1) == 1
            # The call has its connection.
            await async_poll_for(lambda: [*remote.comms.values()].count(False) == 2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            with pytest.raises(CommClosedError):
                await anext(stream)
            with pytest.raises(CommClosedError):
                await call
            with popen([*command, address], capture_output=True, env=env) as following:
                assert following.stdout.readline().decode().strip() == address
                assert await remote.echo(data=2) == 2
                assert await take_first(remote.count.stream()) == 0
                following.send_signal(signal.SIGKILL)
                following.wait()


async def take_first(stream):
    async with stream:
        return await anext(stream)
