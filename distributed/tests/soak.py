"""Many calls of all kinds beside hostile peers: every answer is right, and nothing grows.

``make soak`` runs this program for about three minutes.  It has three processes:

* a server, which also serves a stream of `BatchedSend`;
* a client, which calls it concurrently, with values of 0 bytes to 40 MB; some calls raise errors,
  some are cancelled, and some are streaming calls.  It compares each answer with the right one;
* this program, which attacks the server meanwhile, with messages of the tests of hostile peers.

After each round of calls, the program measures memory, objects, descriptors and tasks.  It fails if
one grows after a few rounds, if an answer is wrong, or if a logged error reached no caller.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from distributed.batched import BatchedSend
from distributed.comm.tests.raw_peers import message, packed, resident
from distributed.core import ConnectionPool, Server, connect, rpc
from distributed.protocol import allocation, to_serialize
from distributed.tests import test_hostile_messages as hostile
from distributed.tests.besieged import (
    ALLOCATOR,
    MB,
    Process,
    Siege,
    blob,
    chunks,
    end_of_input,
    give_memory_back,
    report,
    running,
)
from distributed.tests.test_hostile_peers import (
    GARBAGE,
    LIES,
    MIDDLES,
    NONSENSE,
    STREAMED,
    give,
    with_header,
)

MODULE = "distributed.tests.soak"

#: Number of calls that the client makes at a time.
CONCURRENT = 16

#: Maximum growth after the warm-up, by what is measured.  In a full run, one object of Python per
#: 50 calls exceeds it.  Resident memory varies: a timer of asyncio outlives its connection by up to
#: 30 s, and keeps a megabyte of Python's memory from being returned.
MAX_GROWTH = {"memory": 48 * MB, "blocks": 4_000, "descriptors": 0, "tasks": 0}

show: Callable[[str], object] = partial(print, flush=True)

#: Seconds to wait until all connections and tasks of a round have ended.
SETTLING = 10.0

#: Texts by which asyncio and Python log errors that reached no caller.
UNHANDLED = ("never retrieved", "never awaited", "was destroyed but", "Exception ignored in")

Footprint = dict[str, int]


def footprint() -> Footprint:
    """Return what this process uses, after giving unused memory back."""
    # Blocks whose pages the kernel may take at any time.
    allocation._kept.clear()
    give_memory_back()
    return {
        "memory": resident(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
        # Python's small objects.
        "blocks": sys.getallocatedblocks(),
    }


# The server's process


class Unlucky(Exception):
    """An error with an attribute."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def fail(number: int) -> None:
    raise Unlucky(number)


async def wait() -> None:
    await asyncio.Event().wait()


async def count(start: int, n: int) -> AsyncIterator[int]:
    for number in range(start, start + n):
        yield number


class Notes:
    """The end of a stream of numbers."""

    def __init__(self) -> None:
        self.received = 0

    def note(self, i: int = -1, x: Any = None) -> None:
        if x is not None:
            # The message of an attacker.
            return
        if i != self.received:
            raise ValueError(f"got message {i} in the place of message {self.received}")
        self.received += 1


async def serve(address: str) -> None:
    logging.basicConfig(level=logging.INFO)
    notes = Notes()
    handlers: dict[str, Callable[..., Any]] = {
        "fail": fail,
        "wait": wait,
        "count": count,
        "footprint": footprint,
        "received": lambda: notes.received,
        "blob": blob,
        "chunks": chunks,
    }
    async with Server(handlers, stream_handlers={"note": notes.note}) as server:
        await server.listen(address)
        report(address=server.address)
        await end_of_input()


# The client's process


class Client:
    """Calls of all kinds; each checks its answer."""

    def __init__(self, address: str, pool: ConnectionPool, rng: random.Random) -> None:
        self.address = address
        self.remote = pool(address)
        self.rng = rng
        # Number of calls of each kind in this round, and of the bytes sent.
        self.done: Counter[str] = Counter()
        self.material = rng.randbytes(48 * MB)

    def size(self) -> int:
        """Return a number of bytes: mostly few, rarely tens of MB."""
        chance = self.rng.random()
        for share, maximum in ((0.2, 1), (0.9, 2_000), (0.985, 64_000), (0.9995, MB)):
            if chance < share:
                return self.rng.randrange(maximum)
        return self.rng.randrange(40 * MB)

    def value(self, size: int) -> tuple[Any, Any]:
        """Return a value of about *size* bytes, and what an echo of it must be."""
        start = self.rng.randrange(len(self.material) - size)
        data = self.material[start : start + size]
        kind = self.rng.randrange(5)
        if kind == 0:
            return to_serialize(data), data
        if kind == 1:
            return (text := data.hex()[:size]), text
        if kind == 2:
            return [data, {"size": size, "start": start}], (data, {"size": size, "start": start})
        if kind == 3 and size < 100_000:
            return {*data, size}, {*data, size}
        return data, data

    async def echo(self, size: int | None = None) -> None:
        size = self.size() if size is None else size
        data, expected = self.value(size)
        check(await self.remote.echo(data=data), expected)
        self.done["bytes"] += size

    async def connect_and_echo(self) -> None:
        comm = await connect(self.address)
        data, expected = self.value(self.rng.randrange(1_000))
        await comm.write({"op": "echo", "data": data})
        check(await comm.read(), expected)
        await comm.close()

    async def error(self) -> None:
        number = self.rng.randrange(10**9)
        try:
            await self.remote.fail(number=number)
        except Unlucky as error:
            check(error.number, number)
        else:
            raise AssertionError("an error did not arrive")

    async def unknown(self) -> None:
        try:
            await self.remote.no_such_operation()
        except Exception as error:
            if "no_such_operation" not in str(error):
                raise
        else:
            raise AssertionError("an unknown operation was answered")

    async def cancelled(self) -> None:
        """Cancel a call, mostly before its answer arrives."""
        data, expected = self.value(self.rng.randrange(100_000))
        waits = self.rng.random() < 0.5
        call = self.remote.wait() if waits else self.remote.echo(data=data)
        try:
            async with asyncio.timeout(self.rng.random() * 0.005):
                check(await call, expected)
        except TimeoutError:
            pass

    async def stream(self) -> None:
        """Read a stream of items, in half of the calls to its end."""
        start, n = self.rng.randrange(10**6), self.rng.randrange(100)
        last = self.rng.choice([n, self.rng.randrange(n + 1)])
        got = []
        async for item in self.remote.count.stream(start=start, n=n):
            got.append(item)
            if len(got) >= last:
                break
        check(got[:last], [*range(start, start + last)])

    def kind(self) -> Callable[[], Awaitable[None]]:
        """Return the kind of the next call."""
        chance = self.rng.random()
        for share, kind in (
            (0.85, self.echo),
            (0.90, self.error),
            (0.91, self.unknown),
            (0.94, self.cancelled),
            (0.97, self.stream),
        ):
            if chance < share:
                return kind
        return self.connect_and_echo

    async def round(self, calls: int) -> dict[str, int]:
        """Make some calls, and return how many of each kind."""
        self.done.clear()

        async def work() -> None:
            while self.done["calls"] < calls:
                self.done["calls"] += 1
                kind = self.kind()
                self.done[kind.__name__] += 1
                await kind()

        async with asyncio.TaskGroup() as group:
            group.create_task(self.echo(20 * MB))
            for _ in range(CONCURRENT):
                group.create_task(work())
        return dict(self.done)


def check(answer: Any, expected: Any) -> None:
    """Raise an error if an answer is wrong."""
    if answer != expected:
        raise AssertionError(f"got {answer!r:.200} in the place of {expected!r:.200}")


class Noting:
    """The beginning of a stream of numbers."""

    def __init__(self) -> None:
        self.sent = 0
        self._stream = BatchedSend("2ms")

    async def start(self, address: str) -> None:
        comm = await connect(address)
        await comm.write({"op": "connection_stream", "reply": False})
        self._stream.start(comm)

    async def send(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            for _ in range(10):
                self._stream.send({"op": "note", "i": self.sent})
                self.sent += 1
            await self._stream.drain()
            await asyncio.sleep(0.005)

    @property
    def ended(self) -> bool:
        return self._stream.closed()

    async def close(self) -> None:
        await self._stream.close()


async def call(address: str, seed: int) -> None:
    """Do what the lines of the standard input say: ``round CALLS`` or ``measure``."""
    logging.basicConfig(level=logging.INFO)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    noting = Noting()
    async with ConnectionPool() as pool, rpc(address) as remote:
        client = Client(address, pool, random.Random(seed))
        await noting.start(address)
        while line := await commands.readline():
            command, *args = line.decode().split()
            if command == "round":
                ended = asyncio.Event()
                sending = asyncio.create_task(noting.send(ended))
                done = await client.round(int(args[0]))
                ended.set()
                await sending
                while (received := await remote.received()) < noting.sent and not noting.ended:
                    await asyncio.sleep(0.01)
                check(received, noting.sent)
                report(**done, noted=noting.sent)
            else:
                pool.collect()
                report(server=await remote.footprint(), client=footprint())
        await noting.close()


# The attackers


async def silence(siege: Siege, rng: random.Random) -> None:
    for _ in range(30):
        await siege.connect()


async def garbage(siege: Siege, rng: random.Random) -> None:
    for _ in range(10):
        stage = rng.choice(["handshake", "request", "body of a request", "stream"])
        await give(siege, stage, rng.choice([*GARBAGE, *map(packed, NONSENSE), *LIES]))


async def resets(siege: Siege, rng: random.Random) -> None:
    for _ in range(5):
        data, size = rng.choice(list(MIDDLES.values()))
        peer = await siege.connect()
        with contextlib.suppress(ConnectionError, EOFError):
            await peer.send(data)
            await peer.read_exactly(min(size, MB))
        peer.reset()


async def ask(siege: Siege, *requests: bytes) -> None:
    """Send requests, read the answers, and leave."""
    peer = await siege.after_handshake()
    with contextlib.suppress(ConnectionError, EOFError):
        for request in requests:
            await peer.send(request)
            await peer.read_message()
    peer.close()


async def equal_hashes(siege: Siege, rng: random.Random) -> None:
    await ask(
        siege, packed(hostile.a_request(hostile.a_map(hostile.COLLIDING[: rng.randrange(5_000)])))
    )


async def many_objects(siege: Siege, rng: random.Random) -> None:
    await ask(siege, packed(b"\x82\xa2op\xa3nop\xa4data" + hostile.MANY_OBJECTS["fewer maps"]))


async def bombs(siege: Siege, rng: random.Random) -> None:
    await ask(
        siege, hostile.inflating("zlib", [hostile.zeros("zlib", 5 * MB)] * rng.randrange(1, 5))
    )


async def wrong_headers(siege: Siege, rng: random.Random) -> None:
    lies = ({"num-sub-frames": 10**12}, {"split-offsets": [2**62]}, {"serializer": "no such"})
    await ask(siege, *(with_header(lie, b"abc") for lie in lies))


async def batches(siege: Siege, rng: random.Random) -> None:
    peer = await siege.after_handshake()
    with contextlib.suppress(ConnectionError):
        await peer.send(message({"op": "connection_stream", "reply": False}))
        await peer.send(message([rng.choice(list(STREAMED.values()))] * 10_000))
        await peer.send(message([{"op": "close-stream"}]))
        await peer.wait_closed()
    peer.close()


async def unread(siege: Siege, rng: random.Random) -> None:
    peer = await siege.after_handshake(receive_buffer=4096)
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(0.2):
            await peer.send(message({"op": "blob", "size": MB}) * 20)
            await asyncio.Event().wait()
    peer.close()


ATTACKS = (
    silence,
    garbage,
    resets,
    equal_hashes,
    many_objects,
    bombs,
    wrong_headers,
    batches,
    unread,
)


async def attack(siege: Siege, rng: random.Random, done: Counter[str]) -> None:
    """Attack until cancelled, for a third of the time."""
    while True:
        begin = time.monotonic()
        kind = rng.choice(ATTACKS)
        async with asyncio.timeout(30):
            await kind(siege, rng)
        done[kind.__name__] += 1
        await asyncio.sleep(2 * (time.monotonic() - begin))


# Rounds and their results


class Round(NamedTuple):
    """A round of calls, and what the processes used after it."""

    seconds: float
    done: Counter[str]
    attacks: int
    server: Footprint
    client: Footprint


def send(client: Process, command: str) -> None:
    assert client.popen.stdin is not None
    client.popen.stdin.write(f"{command}\n".encode())
    client.popen.stdin.flush()


async def make_round(siege: Siege, client: Process, calls: int, rng: random.Random) -> Round:
    """Let the client call and the attackers attack, then measure."""
    attacks: Counter[str] = Counter()
    attacking = asyncio.create_task(attack(siege, rng, attacks))
    begin = time.monotonic()
    send(client, f"round {calls}")
    answering = asyncio.create_task(client.next_report())
    await asyncio.wait([attacking, answering], return_when=asyncio.FIRST_COMPLETED)
    attacking.cancel()
    done = Counter(await answering)
    seconds = time.monotonic() - begin
    with contextlib.suppress(asyncio.CancelledError):
        await attacking
    siege.withdraw()
    return Round(seconds, done, attacks.total(), **await at_rest(client))


async def at_rest(client: Process) -> dict[str, Footprint]:
    """Measure until two measurements have the same number of tasks and descriptors."""

    async def measure() -> tuple[dict[str, Footprint], list[int]]:
        send(client, "measure")
        found = await client.next_report()
        kinds = ("tasks", "descriptors")
        return found, [found[side][kind] for side in ("server", "client") for kind in kinds]

    end = time.monotonic() + SETTLING
    found, numbers = await measure()
    while time.monotonic() < end:
        await asyncio.sleep(0.3)
        before = numbers
        found, numbers = await measure()
        if numbers == before:
            break
    return found


def growths(rounds: list[Round]) -> list[str]:
    """Describe what grew: the median of the last third of *rounds* exceeds that of the first."""
    third = max(1, len(rounds) // 3)
    found = []
    for side in ("server", "client"):
        for kind, limit in MAX_GROWTH.items():
            numbers = [getattr(one, side)[kind] for one in rounds]
            first, last = statistics.median(numbers[:third]), statistics.median(numbers[-third:])
            if last - first > limit:
                found.append(f"{kind} of the {side} grew from {first:,.0f} to {last:,.0f}")
    return found


HEADER = (
    "round  seconds   calls  errors  cancelled  streams  attacks"
    " | server: MB   blocks  fds  tasks | client: MB   blocks  fds  tasks"
)


def row(name: str, one: Round) -> str:
    done = one.done
    cells = [
        f"{name:>5}  {one.seconds:7.1f}  {done['calls']:6,}  {done['error'] + done['unknown']:6,}  "
        f"{done['cancelled']:9,}  {done['stream']:7,}  {one.attacks:7,} "
    ]
    cells += [
        f"{used['memory'] / MB:11.1f}  {used['blocks']:7,}  {used['descriptors']:3}  "
        f"{used['tasks']:5} "
        for used in (one.server, one.client)
    ]
    return "|".join(cells).rstrip()


async def soak(
    calls: int = 300_000,
    rounds: int = 10,
    warm_up: int = 2,
    address: str = "tcp://127.0.0.1:0",
    seed: int = 0,
) -> list[str]:
    """Run the program, and print its table.

    Parameters
    ----------
    calls, rounds
        Number of calls in total, and of the rounds in which they are made.
    warm_up
        Number of rounds that are not compared with the others.
    address
        The address at which the server listens.
    seed
        The same seed leads to the same calls and attacks, in an order that varies.

    Returns
    -------
    list of str
        What grew, or which errors were logged; empty if the run has succeeded.
    """
    rng = random.Random(seed)
    made: list[Round] = []
    with running("serve", address, env=ALLOCATOR, module=MODULE) as server:
        contact = (await server.next_report())["address"]
        with running("call", contact, str(seed), env=ALLOCATOR, module=MODULE) as client:
            show(HEADER)
            for number in range(rounds):
                siege = Siege(server, contact)
                made.append(await make_round(siege, client, -(-calls // rounds), rng))
                show(row(f"{number + 1}", made[-1]))
            logs = {"server": server.logged(), "client": client.logged()}
    total = sum((one.done for one in made), Counter())
    show(
        f"{total['calls']:,} calls in {sum(one.seconds for one in made):,.0f} s, "
        f"{total['bytes'] / MB:,.0f} MB echoed, {made[-1].done['noted']:,} messages of a stream, "
        f"{sum(one.attacks for one in made):,} attacks"
    )
    failures = growths(made[warm_up:])
    for side, log in logs.items():
        failures += [f"the {side} logged: {line}" for line in log.splitlines() if is_fault(line)]
    return failures


def is_fault(line: str) -> bool:
    """Return whether a line of a log reports an error that reached no caller."""
    return any(text in line for text in UNHANDLED)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make soak SOAK_ARGS=...", description=__doc__)
    parser.add_argument("--calls", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that are not compared")
    parser.add_argument("--address", default="tcp://127.0.0.1:0", help="where the server listens")
    parser.add_argument("--seed", type=int, default=0)
    failures = asyncio.run(soak(**vars(parser.parse_args(argv))))
    if failures:
        sys.exit("\n".join(failures))
    show("Every answer was right, and nothing grew.")


def run(argv: list[str]) -> None:
    """Run one of the three processes."""
    if argv[:1] == ["serve"]:
        asyncio.run(serve(argv[1]))
    elif argv[:1] == ["call"]:
        asyncio.run(call(argv[1], int(argv[2])))
    else:
        main(argv)


if __name__ == "__main__":
    # The processes exchange pickles of classes of this module, so it must have its full name.
    from distributed.tests import soak as this_module

    this_module.run(sys.argv[1:])
