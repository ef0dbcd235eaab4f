"""A server that is not called uses no CPU, and measures only what a role asks for."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import selectors

import pytest

from distributed.core import Server, rpc
from distributed.tests.environments import run_here
from distributed.tests.servers import TCP, TRANSPORTS, listen_args, trusting
from distributed.utils_test import gen_test


class CountingSelector(selectors.DefaultSelector):
    """The selector of an event loop; `wakeups` counts the event-loop iterations."""

    wakeups = 0

    def select(self, timeout=None):
        ready = super().select(timeout)
        self.wakeups += 1
        return ready


async def wakeups(selector, seconds=0.3):
    """Return the number of event-loop iterations while this task waits for a timer."""
    # Callbacks and timers of what happened before.
    await asyncio.sleep(0.02)
    loop = asyncio.get_running_loop()
    timer = loop.create_future()
    loop.call_later(seconds, timer.set_result, None)
    before = selector.wakeups
    await timer
    # The iteration of the timer, and the one that resumes this task.
    return selector.wakeups - before - 2


def run(main):
    selector = CountingSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        return runner.run(main(selector))


@TRANSPORTS
def test_an_idle_server_and_its_idle_connections_do_not_wake(transport):
    async def main(selector):
        async with Server({}) as server, Server({}) as client:
            with trusting(transport):
                await server.listen(transport, **listen_args(transport))
                assert await wakeups(selector) <= 0
                async with rpc(server.address) as remote:
                    await remote.identity()
                    await asyncio.gather(
                        *(client.rpc(server.address).echo(data=i) for i in range(5))
                    )
                    assert await wakeups(selector) <= 0

    run(main)


def test_servers_that_ask_for_measurements_wake_as_often_as_one():
    """The same timers serve all of them, so the number of iterations does not grow."""

    async def main(selector):
        async with contextlib.AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(Server({})) for _ in range(100)]
            servers[0].start_periodic_callbacks()
            loop = asyncio.get_running_loop()
            timers = len([handle for handle in loop._scheduled if not handle.cancelled()])
            for server in servers[1:]:
                server.start_periodic_callbacks()
            assert timers == len([handle for handle in loop._scheduled if not handle.cancelled()])
            assert await wakeups(selector) > 0
            assert all(server._tick_counter > 0 for server in servers)
            assert len({server.monitor for server in servers}) == 1

    run(main)


@gen_test()
async def test_nothing_is_measured_before_a_role_asks_for_it():
    async with Server({}) as server:
        await asyncio.sleep(0.05)
        assert not any(callback.is_running() for callback in server.periodic_callbacks.values())
        assert server._tick_counter == 0
        assert "tick-duration" not in server.digests_total
        assert server._server_statistics._monitor is None
        assert server.monitor.recent()["memory"] > 0


def test_a_bare_server_imports_no_library_for_measuring():
    run_here("""
        import asyncio, sys
        from distributed.core import Server
        async def main():
            async with Server({}):
                await asyncio.sleep(0)
        asyncio.run(main())
        assert not {"psutil", "crick", "numpy", "gilknocker"} & set(sys.modules)
    """)


@gen_test()
async def test_two_thousand_servers_start_answer_and_close():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = 2000
    if hard != resource.RLIM_INFINITY and hard < number + 500:
        pytest.skip(f"needs {number + 500} file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        servers = [Server({}) for _ in range(number)]
        for server in servers:
            await server.listen(TCP)
        await asyncio.gather(*servers)
        for server in servers[:: number // 20]:
            async with rpc(server.address) as remote:
                assert (await remote.identity())["id"] == server.id
        await asyncio.gather(*(server.close() for server in servers))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
