"""Properties of a ``ConnectionPool`` under any interleaving of events.

The first test replaces the transport, so that it decides in which event-loop iteration each attempt
to connect succeeds or fails.  The second test makes random calls of real servers.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from distributed import core
from distributed.core import Comm, CommClosedError, ConnectionPool, Server, Status
from distributed.tests.servers import quiet
from distributed.utils_test import gen_test

#: Derandomized, so that each run tests the same programs.
PROFILE = settings(derandomize=True, database=None, deadline=None)

ADDRESSES = [f"tcp://10.0.0.{i}:8786" for i in range(3)]

#: More event-loop iterations than any operation here takes to finish.
MANY_ITERATIONS = 30

#: The number of the call that an attempt to connect belongs to; tasks inherit it.
call_number: contextvars.ContextVar[int] = contextvars.ContextVar("call_number")


class Line(Comm):
    """A comm that carries no messages, open until it is closed."""

    def __init__(self, addr: str):
        super().__init__()
        self.addr = addr
        self._closed = False

    async def read(self, deserializers: Any = None) -> Any:
        raise NotImplementedError

    async def write(self, msg: Any, serializers: Any = None, on_error: str | None = None) -> int:
        raise NotImplementedError

    async def close(self) -> None:
        self._closed = True

    def abort(self) -> None:
        self._closed = True

    def closed(self) -> bool:
        return self._closed

    @property
    def local_address(self) -> str:
        return "tcp://10.0.0.100:1"

    @property
    def peer_address(self) -> str:
        return self.addr


class PoolMachine(RuleBasedStateMachine):
    """A pool, calls at any stage, and attempts to connect.

    The event loop runs only in the steps that let it run some iterations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        # All connections that were opened.
        self.lines: list[Line] = []
        # The pending attempts to connect: number of the call, and a future for the outcome.
        self.attempts: list[tuple[int, asyncio.Future[None]]] = []
        # The calls that are not done, by number: address and task.
        self.calls: dict[int, tuple[str, asyncio.Task[Comm]]] = {}
        self.numbers = itertools.count()
        # The calls that got a connection or a place since the last all_calls_come_to_rest().
        self.served: list[int] = []
        # The calls that waited at the last all_calls_come_to_rest().
        self.waited: set[int] = set()
        # The connections that calls got and have not returned, with their addresses.
        self.held: list[tuple[str, Comm]] = []
        # The calls that were cancelled, whose address was removed, or whose attempt failed.
        self.cancelled: set[int] = set()
        self.removed: set[int] = set()
        self.failed: set[int] = set()
        self.closing: asyncio.Task[None] | None = None
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(core, "connect", self.connect)

    async def connect(self, addr: str, *args: Any, **kwargs: Any) -> Comm:
        decided = self.loop.create_future()
        self.attempts.append((call_number.get(), decided))
        self.served.append(call_number.get())
        try:
            await decided
        finally:
            self.attempts = [entry for entry in self.attempts if entry[1] is not decided]
        line = Line(addr)
        self.lines.append(line)
        return line

    def turn(self, count: int) -> None:
        async def turns() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        self.collect_results()

    def collect_results(self) -> None:
        """Check the results of the calls that are done."""
        for number, (addr, task) in list(self.calls.items()):
            if not task.done():
                continue
            del self.calls[number]
            if task.cancelled():
                assert number in self.cancelled
            elif (error := task.exception()) is None:
                self.held.append((addr, task.result()))
                self.served.append(number)
            elif isinstance(error, CommClosedError):
                assert number in self.removed or self.closing is not None
                assert "gone" in str(error) or "closing" in str(error)
            else:
                assert str(error) == "refused"
                assert number in self.failed

    # Steps

    @initialize(limit=st.integers(1, 3))
    def make(self, limit: int) -> None:
        self.pool = ConnectionPool(limit=limit)
        self.loop.run_until_complete(self.pool.start())

    @rule(addr=st.sampled_from(ADDRESSES))
    def connect_to(self, addr: str) -> None:
        if self.pool.status is not Status.running:
            with pytest.raises(RuntimeError, match="ConnectionPool is closed"):
                self.loop.run_until_complete(self.pool.connect(addr))
            return
        number = next(self.numbers)
        context = contextvars.copy_context()
        context.run(call_number.set, number)
        task = self.loop.create_task(self.pool.connect(addr), context=context)
        self.calls[number] = addr, task

    @rule(turns=st.integers(1, 4))
    def the_loop_runs(self, turns: int) -> None:
        self.turn(turns)

    @property
    def undecided(self) -> list[tuple[int, asyncio.Future[None]]]:
        return [entry for entry in self.attempts if not entry[1].done()]

    @precondition(lambda self: self.undecided)
    @rule(data=st.data())
    def an_attempt_succeeds(self, data: st.DataObject) -> None:
        _, decided = data.draw(st.sampled_from(self.undecided))
        decided.set_result(None)

    @precondition(lambda self: self.undecided)
    @rule(data=st.data())
    def an_attempt_fails(self, data: st.DataObject) -> None:
        number, decided = data.draw(st.sampled_from(self.undecided))
        decided.set_exception(OSError("refused"))
        self.failed.add(number)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def a_call_is_cancelled(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.calls)))
        if self.calls[number][1].cancel():
            self.cancelled.add(number)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), close=st.booleans(), twice=st.booleans())
    def a_connection_is_returned(self, data: st.DataObject, close: bool, twice: bool) -> None:
        addr, comm = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if close:
            comm.abort()
        self.pool.reuse(addr, comm)
        if twice:
            self.pool.reuse(addr, comm)

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def a_peer_closes_a_connection(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.lines)).abort()

    @rule(addr=st.sampled_from(ADDRESSES))
    def an_address_is_removed(self, addr: str) -> None:
        self.removed.update(number for number, (to, _) in self.calls.items() if to == addr)
        self.pool.remove(addr, reason="gone")

    @rule()
    def idle_connections_are_collected(self) -> None:
        self.pool.collect()

    @rule(all_of_them=st.booleans())
    def old_connections_expire(self, all_of_them: bool) -> None:
        used = [comm for _, comm in self.held if not comm.closed()]
        self.pool._close_idle(0.0 if all_of_them else -1.0)
        assert not any(comm.closed() for comm in used)
        assert not (all_of_them and any(self.pool.available.values()))

    @rule(addr=st.sampled_from(ADDRESSES))
    def an_address_is_looked_up(self, addr: str) -> None:
        assert len(self.pool.available[addr]) + len(self.pool.occupied[addr]) <= self.pool.limit

    @precondition(lambda self: self.closing is None and len(self.lines) > 3)
    @rule()
    def the_pool_is_closed(self) -> None:
        self.closing = self.loop.create_task(self.pool.close())

    # Invariants

    @invariant()
    def the_numbers_are_right(self) -> None:
        self.pool._validate()
        idle = [comm for comms in self.pool.available.values() for comm in comms]
        used = [comm for comms in self.pool.occupied.values() for comm in comms]
        assert len({*idle, *used}) == len(idle) + len(used) == self.pool.open
        assert self.pool.active == len(used)
        for comms_of in (self.pool.available, self.pool.occupied):
            for addr, comms in comms_of.items():
                assert all(comm.addr == addr for comm in comms if isinstance(comm, Line))

    @invariant()
    def the_order_of_use_has_exactly_the_idle_connections(self) -> None:
        idle = {addr: comms for addr, comms in self.pool.available.items() if comms}
        assert {addr: set(comms) for addr, comms in self.pool._recent.items()} == idle

    @invariant()
    def the_limit_holds(self) -> None:
        taken = self.pool.open + self.pool._connecting_count
        assert taken <= self.pool.limit
        assert self.pool.semaphore._value == self.pool.limit - taken
        assert self.pool.semaphore.locked() == (taken == self.pool.limit)
        really_open = sum(not line.closed() for line in self.lines)
        assert really_open + len(self.attempts) <= self.pool.limit

    @invariant()
    def no_call_waits_while_a_place_is_free(self) -> None:
        if self.pool._pending_count:
            assert self.pool.semaphore.locked()
            assert not any(self.pool.available.values())

    @invariant()
    def each_open_connection_is_listed(self) -> None:
        known = {
            comm
            for comms_of in (self.pool.available, self.pool.occupied)
            for comms in comms_of.values()
            for comm in comms
        }
        assert {line for line in self.lines if not line.closed()} <= known

    @rule()
    def all_calls_come_to_rest(self) -> None:
        self.turn(MANY_ITERATIONS)
        assert set(self.calls).isdisjoint(self.cancelled)
        assert len(self.attempts) == self.pool._connecting_count
        assert len(self.calls) == self.pool._connecting_count + self.pool._pending_count
        tasks = sum(map(len, self.pool._connecting.values()))
        assert tasks == len(self.calls)
        assert len(asyncio.all_tasks(self.loop)) == 2 * tasks
        used = {comm for comms in self.pool.occupied.values() for comm in comms}
        assert used <= {comm for _, comm in self.held}
        # No later call overtook a call that has waited since the last rest.
        waiting = set(self.calls) - {number for number, _ in self.attempts}
        assert len(waiting) == self.pool._pending_count
        for number in self.waited & waiting:
            assert all(served < number for served in self.served)
        self.waited = waiting
        self.served.clear()

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self.finish()
        finally:
            self.patch.undo()
            self.loop.close()

    def finish(self) -> None:
        self.all_calls_come_to_rest()
        if self.closing is None:
            self.the_pool_is_closed()
        assert self.closing is not None
        self.loop.run_until_complete(self.closing)
        self.turn(MANY_ITERATIONS)
        assert not asyncio.all_tasks(self.loop)
        assert not self.calls
        assert not self.attempts
        assert all(line.closed() for line in self.lines)
        assert (self.pool.open, self.pool._connecting_count, self.pool._pending_count) == (0, 0, 0)
        assert not self.pool._connecting
        assert self.pool.semaphore._value == self.pool.limit
        self.pool._validate()


# Hypothesis takes minutes to shorten a failing program.
@pytest.mark.timeout(600)
def test_the_pool_keeps_its_invariants_under_any_interleaving():
    run_state_machine_as_test(
        PoolMachine, settings=settings(PROFILE, max_examples=100, stateful_step_count=60)
    )


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["call", "cancel", "break", "fail", "remove", "collect", "borrow"]),
        st.integers(0, 1),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=8,
)


class Programs:
    """Two real servers, and programs of steps that call them through one pool."""

    def __init__(self, pool: ConnectionPool):
        self.pool = pool
        self.addresses: list[str] = []
        self.removals = 0

    def check(self) -> None:
        self.pool._validate()
        assert self.pool.open + self.pool._connecting_count <= self.pool.limit

    async def echo(self, data: Any, turns: int) -> Any:
        self.check()
        for _ in range(turns):
            await asyncio.sleep(0)
        return data

    async def run(self, program: int, steps: list[tuple[str, int, int]]) -> None:
        for i, (what, which, turns) in enumerate(steps):
            before = self.removals
            try:
                await self.step((program, i), what, self.addresses[which], turns)
            except CommClosedError:
                assert what == "break" or self.removals > before
            self.check()

    async def step(self, own: tuple[int, int], what: str, addr: str, turns: int) -> None:
        remote = self.pool(addr)
        match what:
            case "call":
                assert await remote.echo(data=own, turns=turns) == own
            case "cancel":
                call = asyncio.create_task(remote.echo(data=own, turns=3))
                for _ in range(turns):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait([call])
                if not call.cancelled():
                    assert call.result() == own
            case "break":
                await remote.leave()
            case "fail":
                with pytest.raises(LookupError):
                    await remote.fail()
            case "remove":
                self.removals += 1
                self.pool.remove(addr)
            case "collect":
                self.pool.collect()
            case "borrow":
                comm = await self.pool.connect(addr)
                for _ in range(turns):
                    await asyncio.sleep(0)
                self.pool.reuse(addr, comm)


@settings(PROFILE, max_examples=60)
@given(limit=st.integers(1, 4), programs=st.lists(STEPS, min_size=1, max_size=8))
@gen_test()
async def test_each_call_of_real_servers_gets_its_own_answer(limit, programs):
    def fail() -> None:
        raise LookupError

    pool = await ConnectionPool(limit=limit)
    runner = Programs(pool)
    handlers = {"echo": runner.echo, "fail": fail, "leave": lambda comm: comm.abort()}
    with quiet():
        async with Server(handlers) as one, Server(handlers) as two:
            for server in (one, two):
                await server.listen("inproc://")
                runner.addresses.append(server.address)
            await asyncio.gather(*(runner.run(i, steps) for i, steps in enumerate(programs)))
            assert (pool.active, pool._connecting_count, pool._pending_count) == (0, 0, 0)
            assert not pool._connecting
            await pool.close()
    assert pool.open == 0
