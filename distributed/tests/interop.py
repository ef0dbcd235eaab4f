"""A server and a client that run unchanged on this package and on the original.

The program imports only names that both packages have. `distributed.tests.test_interop_messages`
runs it as ``server`` in an environment with one of them, and as ``client`` in an environment with
the other, and reports the outcome of each of the `CASES`. The environments have no pytest.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import traceback
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from distributed.batched import BatchedSend
from distributed.core import ConnectionPool, Server, Status, connect, rpc
from distributed.protocol import Serialize, Serialized, to_serialize
from distributed.security import Security

MB = 2**20
KEY_PAIR = ("cert", "key")

#: name → coroutine function that takes a `Client`, and raises if the server misbehaves
CASES: dict[str, Callable[[Client], Awaitable[None]]] = {}


class Unusual(Exception):
    """An error with an attribute, of a class that both sides can import."""

    def __init__(self, message: str, code: int):
        super().__init__(message, code)
        self.code = code


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("cannot be pickled")


def security(address: str) -> Security | None:
    """Return the `Security` that an address needs, with the certificate for tests."""
    if not address.startswith(("tls:", "wss:")):
        return None
    pem = str(Path(__file__).resolve().parent / "data" / "localhost.pem")
    files = {f"tls_{role}_{part}": pem for role in ("client", "scheduler") for part in KEY_PAIR}
    return Security(tls_ca_file=pem, require_encryption=True, **files)


# The server


async def serve(address: str) -> None:
    """Listen on *address*, print the actual address, and run until the standard input ends."""
    # The test reads one line: log lines would fill the pipe. Errors are returned to the caller.
    logging.disable(logging.CRITICAL)
    notes: list[Any] = []
    noted = asyncio.Condition()
    kept: dict[str, Any] = {}

    def fail(kind: str) -> None:
        def inner() -> None:
            if kind == "unusual":
                raise Unusual("out of order", 17)
            if kind == "unpicklable":
                raise Unpicklable("this error cannot be sent")
            raise KeyError("missing", 5)

        inner()

    async def note(x: Any) -> None:
        async with noted:
            notes.append(x)
            noted.notify_all()

    async def wait_for_notes(n: int) -> list[Any]:
        async with noted:
            await noted.wait_for(lambda: len(notes) >= n)
        taken, notes[:] = notes[:], []
        return taken

    async def count(comm: Any, n: int) -> str:
        for i in range(n):
            await comm.write(i)
        return "done"

    async def numbers(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def talk(comm: Any) -> None:
        while (message := await comm.read()) != "bye":
            await comm.write([message])

    async def subscribe(comm: Any, n: int) -> Status:
        stream = BatchedSend(interval="1ms")
        stream.start(comm)
        for i in range(n):
            stream.send({"op": "news", "i": i})
        await stream.close()
        return Status.dont_reply

    async def cancelled() -> None:
        raise asyncio.CancelledError

    def keep(name: str, data: Any) -> str:
        kept[name] = data
        return type(data).__name__

    handlers: dict[str, Callable[..., Any]] = {
        "add": lambda x, y: x + y,
        "checksum": lambda data: [len(data), zlib.crc32(data)],
        "make": lambda n: to_serialize(bytes(n)),
        "wrap": lambda data: to_serialize(data),
        "agreed": lambda comm: comm.handshake_options["compression"],
        "fail": fail,
        "note": note,
        "wait_for_notes": wait_for_notes,
        "count": count,
        "numbers": numbers,
        "talk": talk,
        "subscribe": subscribe,
        "keep": keep,
        "give": lambda name: kept.pop(name),
        "where_are_others": lambda: relay.address,
        "never": lambda: asyncio.sleep(600),
        "lock": lambda: threading.Lock(),
        "cancelled": cancelled,
    }
    secure = security(address)
    args = secure.get_listen_args("scheduler") if secure else {}
    server = Server(handlers, stream_handlers={"note": note})
    relay = Server(handlers, deserialize=False)
    for each in (server, relay):
        await each
        await each.listen(address, **args)
    sys.stdout.write(f"{server.address}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for each in (server, relay):
        await each.close()


# The callers


class Client:
    """The argument of a case: the server's address, and connections to it."""

    def __init__(self, address: str, options: dict[str, Any]):
        self.address = address
        self.options = options
        secure = security(address)
        self.args = secure.get_connection_args("client") if secure else {}
        self.remote = self.rpc(address)

    def rpc(self, address: str, **kwargs: Any) -> Any:
        return rpc(address, connection_args=self.args, **kwargs)

    async def connect(self, **kwargs: Any) -> Any:
        return await connect(self.address, **kwargs, **self.args)


def case(function: Callable[[Client], Awaitable[None]]) -> Callable[[Client], Awaitable[None]]:
    CASES[function.__name__] = function
    return function


def same(a: Any, b: Any) -> bool:
    """Return whether two values, also of numpy and pandas, are equal and have equal types."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "equals"):
        return a.equals(b) and str(getattr(a, "dtypes", "")) == str(getattr(b, "dtypes", ""))
    if hasattr(a, "dtype"):
        return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
    return a == b


async def raised(call: Awaitable[Any]) -> Any:
    """Return the exception that a call raises."""
    try:
        result = await call
    except Exception as exc:  # noqa: BLE001 (the case checks its type)
        return exc
    raise AssertionError(f"no error but {result!r}")


@case
async def results(client: Client) -> None:
    assert await client.remote.add(x=1, y=2) == 3
    assert await client.remote.add(x="a", y="b") == "ab"
    value = {"t": (1, 2.5, None), "s": {1, 2}, "b": b"b", 3: Status.running, "c": 1 + 2j}
    assert same(await client.remote.echo(data=value), value)


@case
async def wrapped_values(client: Client) -> None:
    big = bytes(range(256)) * 1000
    nested = {"a": (big, {"k": bytearray(b"x")}), "f": frozenset([1]), "l": (1, (2, ()))}
    # Elements of long collections are pickled together by this package, not by the original.
    rows, keys = [[i / 7, (i, [str(i)])] for i in range(1000)], {(i, "k"): 0 for i in range(1000)}
    for x in (nested, [nested, [1]], rows, keys, set(range(1000)), [*rows, b"bytes"]):
        assert same(await client.remote.wrap(data=to_serialize(x)), x)
    # Without a wrapper, the answer is plain msgpack.
    assert same(await client.remote.echo(data=[Serialize([1, {"k": [2]}])]), ((1, {"k": (2,)}),))


@case
async def numpy_arrays(client: Client) -> None:
    import numpy as np

    a = np.arange(24, dtype="<i8").reshape(2, 3, 4)
    for x in (
        *(a, a.T, a[:, ::2], a[::-1], np.asfortranarray(a), a.astype(">f4"), np.array(5)),
        *(np.empty((0, 3)), np.array(["ab", "c"]), np.array(["2020-01-01"], "M8[ns]")),
        *(np.array([1, "a", None], object), np.broadcast_to(np.arange(3.0), (500, 3))),
        *(np.zeros(2, [("a", "i4"), ("b", "U2")]), np.ones(1_000_000)),
    ):
        assert same(await client.remote.wrap(data=to_serialize(x)), x), x
        assert same(await client.remote.wrap(data={"k": [to_serialize(x)]}), {"k": (x,)}), x
        assert same(await client.remote.echo(data={"k": x}), {"k": x}), x


@case
async def pandas_frames(client: Client) -> None:
    import numpy as np
    import pandas as pd

    frame = pd.DataFrame(
        {
            "i": np.arange(6),
            "f": np.linspace(0, 1, 6),
            "s": list("abcabc"),
            "t": pd.date_range("2020", periods=6),
            "c": pd.Categorical(list("xyxyxy")),
        }
    )
    for x in (frame, frame.i, frame.index, frame[::2], frame.groupby("s").f.sum()):
        assert same(await client.remote.wrap(data=to_serialize(x)), x), x
        assert same(await client.remote.echo(data={"k": {"x": x}}), {"k": {"x": x}}), x


@case
async def arrays_that_are_a_whole_answer(client: Client) -> None:
    import numpy as np

    x = np.arange(3)
    if client.options["server_is_the_original"]:
        # It compares the result of a handler, and the comparison of an array has no truth value.
        assert isinstance(await raised(client.remote.echo(data=x)), OSError)
    else:
        assert same(await client.remote.echo(data=x), x)


@case
async def nested_data(client: Client) -> None:
    import numpy as np
    import pandas as pd

    x = {
        "arrays": [np.arange(5), (np.ones(100_000), {"deep": np.array(["a"])})],
        "frame": pd.DataFrame({"a": [1.5, None]}),
        ("tuple", 1): {"bytes": b"b" * 200_000, "set": {1, 2}, "none": None},
    }
    assert same(await client.remote.wrap(data=to_serialize(x)), x)


@case
async def errors(client: Client) -> None:
    exc = await raised(client.remote.fail(kind="builtin"))
    assert type(exc) is KeyError, repr(exc)
    assert exc.args == ("missing", 5)
    assert await client.remote.add(x=1, y=2) == 3


@case
async def errors_of_the_program(client: Client) -> None:
    exc = await raised(client.remote.fail(kind="unusual"))
    assert type(exc).__name__ == "Unusual"
    assert (exc.args, exc.code) == (("out of order", 17), 17)


@case
async def remote_tracebacks(client: Client) -> None:
    exc = await raised(client.remote.fail(kind="builtin"))
    shown = "".join(traceback.format_exception(exc))
    assert "in fail" in shown, shown
    assert "in inner" in shown, shown
    assert 'raise KeyError("missing", 5)' in shown, shown


@case
async def errors_that_cannot_be_pickled(client: Client) -> None:
    exc = await raised(client.remote.fail(kind="unpicklable"))
    assert "this error cannot be sent" in str(exc), repr(exc)
    assert await client.remote.add(x=1, y=2) == 3


@case
async def results_that_cannot_be_pickled(client: Client) -> None:
    exc = await raised(client.remote.lock())
    if client.options["server_is_the_original"]:
        assert isinstance(exc, OSError), repr(exc)
    else:
        assert type(exc) is TypeError, repr(exc)
        assert "lock" in str(exc)
    assert await client.remote.add(x=1, y=2) == 3


@case
async def handlers_that_are_cancelled(client: Client) -> None:
    exc = await raised(client.remote.cancelled())
    if client.options["server_is_the_original"]:
        assert isinstance(exc, OSError), repr(exc)
    else:
        assert type(exc) is RuntimeError, repr(exc)
        assert "'cancelled'" in str(exc)
    assert await client.remote.add(x=1, y=2) == 3


@case
async def malformed_requests(client: Client) -> None:
    for request in ("no map", {"x": 1}):
        comm = await client.connect()
        await comm.write(request)
        if client.options["server_is_the_original"]:
            assert isinstance(await raised(comm.read()), OSError)
        else:
            assert (await comm.read())["status"] == "uncaught-error"
            await comm.write({"op": "add", "x": 1, "y": 2})
            assert await comm.read() == 3
        await comm.close()


@case
async def arguments_that_do_not_fit(client: Client) -> None:
    exc = await raised(client.remote.add(x=1, z=2))
    assert type(exc) is TypeError, repr(exc)
    assert "'z'" in str(exc)


@case
async def ops_that_do_not_exist(client: Client) -> None:
    if client.options["server_is_the_original"]:
        assert await client.remote.no_such_op(x=1) is None
    else:
        exc = await raised(client.remote.no_such_op(x=1))
        assert type(exc) is ValueError, repr(exc)
        assert "no_such_op" in str(exc)
        assert client.address in str(exc)
    assert await client.remote.add(x=1, y=2) == 3


@case
async def no_reply(client: Client) -> None:
    assert await client.remote.note(x="quiet", reply=False) is None
    assert await client.remote.add(x=1, y=2) == 3
    assert await client.remote.wait_for_notes(n=1) == ("quiet",)


@case
async def close_after_the_answer(client: Client) -> None:
    comm = await client.connect()
    await comm.write({"op": "add", "x": 1, "y": 2, "close": True, "reply": True})
    assert await comm.read() == 3
    assert isinstance(await raised(comm.read()), OSError)
    await comm.close()
    assert await client.remote.add(x=1, y=2, close=True) == 3
    assert await client.remote.add(x=2, y=2) == 4


@case
async def op_close(client: Client) -> None:
    comm = await client.connect()
    await comm.write({"op": "close", "reply": True})
    assert await comm.read() == "OK"
    assert isinstance(await raised(comm.read()), OSError)
    await comm.close()


@case
async def several_messages_as_an_answer(client: Client) -> None:
    comm = await client.connect()
    await comm.write({"op": "count", "n": 3, "reply": True})
    assert [await comm.read() for _ in range(4)] == [0, 1, 2, "done"]
    await comm.close()


#: Whether this program runs with the original.
ORIGINAL = not hasattr(rpc, "within")


async def serves_original(client: Client) -> bool:
    comm = await client.connect()
    await comm.close()
    return "features" not in comm.remote_info


@case
async def streaming_calls(client: Client) -> None:
    if ORIGINAL:
        error = await raised(client.remote.numbers(n=3))
        # The original's own server cannot pickle a generator.
        assert "remote.numbers.stream(...)" in str(error) or await serves_original(client)
    elif await serves_original(client):
        # Without a message for the end of a stream, all messages of the handler are items.
        items = []
        async for item in client.remote.count.stream(n=3):
            items.append(item)
            if item == "done":
                break
        assert items == [0, 1, 2, "done"]
    else:
        assert [item async for item in client.remote.numbers.stream(n=3)] == [0, 1, 2]
    assert await client.remote.add(x=20, y=1) == 21


@case
async def conversations(client: Client) -> None:
    if ORIGINAL:
        comm = await client.connect()
        await comm.write({"op": "talk"})
    else:
        comm = await (conversation := client.remote.talk.open()).__aenter__()
    await comm.write("hello")
    assert list(await comm.read()) == ["hello"]
    await comm.write("bye")
    if ORIGINAL:
        assert await comm.read() is None
        await comm.close()
    else:
        await conversation.__aexit__(None, None, None)
    assert await client.remote.add(x=20, y=1) == 21


@case
async def deadlines(client: Client) -> None:
    await client.remote.add(x=1, y=2)
    if ORIGINAL:
        call = asyncio.wait_for(client.remote.never(), 0.05)
    else:
        call = client.remote.within("50ms").never()
    error = await raised(call)
    assert type(error) is asyncio.TimeoutError, error
    assert await client.remote.add(x=20, y=1) == 21


@case
async def retries_and_descriptions(client: Client) -> None:
    serves = await serves_original(client)
    # The original answers None, as for each operation that does not exist.
    assert await client.remote.health() == (None if serves else {"status": "serving"})
    if ORIGINAL:
        return
    assert await client.remote.retrying(attempts=3).add(x=20, y=1) == 21
    if serves:
        error = await raised(client.remote.describe())
        assert type(error) is NotImplementedError
        assert "runs dask.distributed, which does not describe its operations" in str(error)
    else:
        assert (await client.remote.describe())["operations"]["numbers"]["streams"]


@case
async def identity(client: Client) -> None:
    identity = await client.remote.identity()
    assert identity["type"] == "Server"
    assert identity["id"].startswith("Server-")


@case
async def connection_pools(client: Client) -> None:
    async with ConnectionPool(limit=5, connection_args=client.args) as pool:
        calls = (pool(client.address).add(x=i, y=i) for i in range(50))
        assert await asyncio.gather(*calls) == [2 * i for i in range(50)]
        assert 1 <= pool.open <= 5
        assert type(await raised(pool(client.address).fail(kind="builtin"))) is KeyError
        assert pool.active == 0


@case
async def cancelled_calls(client: Client) -> None:
    call = asyncio.ensure_future(client.remote.never())
    while not client.remote.comms or all(client.remote.comms.values()):
        await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert await client.remote.add(x=20, y=1) == 21


@case
async def streams_to_the_server(client: Client) -> None:
    stream = BatchedSend(interval="2ms")
    comm = await client.connect()
    await comm.write({"op": "connection_stream", "reply": False})
    stream.start(comm)
    for i in range(1000):
        stream.send({"op": "note", "x": i})
    assert await client.remote.wait_for_notes(n=1000) == tuple(range(1000))
    stream.send({"op": "close-stream"})
    await stream.close()


@case
async def streams_from_the_server(client: Client) -> None:
    comm = await client.connect()
    await comm.write({"op": "subscribe", "n": 1000})
    received: list[int] = []
    while len(received) < 1000:
        received += [message["i"] for message in await comm.read()]
    assert received == list(range(1000))
    await comm.close()


@case
async def values_passed_on_unread(client: Client) -> None:
    value = {"x": [1, b"y" * 100_000], "z": ("t", {2})}
    async with client.rpc(client.address, deserialize=False) as unread:
        parcel = await unread.wrap(data=to_serialize(value))
        assert isinstance(parcel, Serialized), type(parcel)
        assert same(await client.remote.wrap(data=parcel), value)


@case
async def values_that_the_server_does_not_read(client: Client) -> None:
    value = {"x": [1, b"y" * 100_000], "z": ("t", {2})}
    async with client.rpc(await client.remote.where_are_others()) as relay:
        assert await relay.keep(name="parcel", data=to_serialize(value)) == "Serialized"
        assert same(await relay.give(name="parcel"), value)


@case
async def compression(client: Client) -> None:
    wanted = client.options["compression"]
    assert await client.remote.agreed() == wanted
    comm = await client.connect()
    assert comm.handshake_options["compression"] == wanted
    data = b"compressible " * 100_000
    written = await comm.write({"op": "echo", "data": to_serialize(data), "reply": True})
    assert await comm.read() == data
    assert (written < len(data) / 10) == (wanted is not None), written
    await comm.close()


@case
async def handshake_overrides(client: Client) -> None:
    overrides = {
        "compression": "none that the other side names",
        "pickle-protocol": 4,
        "unknown": 1,
        "features": {"unknown": [1, {"x": b"y"}]},
    }
    comm = await client.connect(handshake_overrides=overrides)
    assert comm.handshake_options == {"compression": None, "pickle-protocol": 4}
    await comm.write({"op": "agreed", "reply": True})
    assert await comm.read() is None
    await comm.close()


@case
async def large_messages(client: Client) -> None:
    size = client.options["large"] * MB
    data = bytearray(b"0123456789abcdef") * (size // 16)
    assert await client.remote.checksum(data=to_serialize(data)) == (size, zlib.crc32(data))
    del data
    answer = await client.remote.make(n=size)
    assert len(answer) == size
    assert not any(answer[:: MB // 2])


async def call(address: str, options: dict[str, Any]) -> None:
    """Run all cases and print a JSON map from the name of each to "" or a traceback."""
    outcomes = {}
    for name, function in CASES.items():
        client = Client(address, options)
        try:
            async with asyncio.timeout(60):
                await function(client)
            outcomes[name] = ""
        except Exception:  # noqa: BLE001 (the test shows it)
            outcomes[name] = traceback.format_exc()
        finally:
            await client.remote.close_rpc()
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    role, address, *rest = sys.argv[1:]
    asyncio.run(serve(address) if role == "server" else call(address, json.loads(rest[0])))
