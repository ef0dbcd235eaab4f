"""Text from peers in the log: no forged lines, no control characters, and a limited size."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import logging
import re
import socket
import sys
from pathlib import Path

import pytest

import distributed
from distributed import core
from distributed.base import logs
from distributed.comm.auth import Authentication
from distributed.comm.tests.raw_peers import HANDSHAKE, message, raw_peer, raw_server
from distributed.core import rpc
from distributed.tests.servers import TRANSPORTS, ask, connected, serving
from distributed.utils_test import gen_test

#: The beginning of a line that a peer tries to put into the log.
FORGED = "2026-01-01 ERROR"

EVIL = f"x\n{FORGED} forged\r\x1b[2J\x1b]0;title\x07\x85\u2028{FORGED}\u202e\x00"
#: The same without the null character, which cannot be in the name of a file.
LINES = EVIL.replace("\x00", "")

#: Also too long for a log.
NAME = EVIL + 1_000_000 * "n"
HUGE = EVIL + 20_000_000 * "n"

TOKEN = b"0123456789abcdef"

#: Maximum size of what one attack may log, in characters.
MOST = 100_000


@contextlib.contextmanager
def whole_log():
    """Capture the lines of all loggers at level DEBUG, and check them."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield log
        logs.flush()
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
    check(log.getvalue())


def check(text, most=MOST):
    """Check a text that may show values of a peer."""
    forged = [line for line in text.splitlines() if line.startswith(FORGED)]
    assert not forged
    assert all(c.isprintable() or c == "\n" for c in text)
    assert len(text) < most


def refuse(x):
    raise ValueError(f"bad argument {x}")


async def cancel(x):
    raise asyncio.CancelledError(x)


async def break_off(x):
    raise core.CommClosedError(x)


HANDLERS = {"refuse": refuse, "cancel": cancel, "break_off": break_off}

REQUESTS = {
    "unknown op": {"op": NAME},
    "op that is not text": {"op": [NAME, NAME]},
    "unknown argument": {"op": "echo", NAME: 1},
    "error of the handler": {"op": "refuse", "x": NAME},
    "cancelled handler": {"op": "cancel", "x": NAME},
    "handler that reports a closed comm": {"op": "break_off", "x": NAME},
    "no op": {NAME: NAME},
    "not a map": NAME,
    "serializers": {"op": "echo", "serializers": [NAME]},
}


@TRANSPORTS
@gen_test()
async def test_a_request_cannot_forge_or_flood_the_log(transport):
    async with serving(transport, HANDLERS) as server:
        for request in REQUESTS.values():
            with whole_log(), contextlib.suppress(OSError):
                async with connected(server) as comm:
                    await ask(comm, request)


@gen_test()
async def test_requests_of_20_mb_are_shortened_in_the_log():
    async with serving("tcp://127.0.0.1:0", HANDLERS) as server, connected(server) as comm:
        for request in ({"op": HUGE}, {"op": "echo", HUGE: 1}, {"op": "refuse", "x": HUGE}):
            with whole_log():
                await ask(comm, request)


@TRANSPORTS
@gen_test()
async def test_the_log_shows_which_request_failed(transport):
    async with serving(transport, HANDLERS) as server, connected(server) as comm:
        with whole_log() as log:
            await ask(comm, {"op": EVIL})
            await ask(comm, {"op": "refuse", "x": EVIL})
    assert f"No handler for op 'x\\n{FORGED} forged\\r\\x1b[2J" in log.getvalue()
    assert f"\nValueError: bad argument x\\n{FORGED} forged\\r\\x1b[2J" in log.getvalue()
    # The lines of a traceback stay lines.
    assert re.search(
        r'^  File ".*", line \d+, in refuse\n    raise ValueError', log.getvalue(), re.M
    )


@TRANSPORTS
@gen_test()
async def test_a_message_of_a_stream_cannot_forge_or_flood_the_log(transport):
    async with serving(transport, stream_handlers={"refuse": refuse}) as server:
        for op in ({"op": NAME}, {"op": [NAME]}, NAME, {"op": "refuse", "x": NAME}):
            with whole_log() as log:
                async with connected(server) as comm:
                    await comm.write({"op": "connection_stream", "reply": False})
                    await comm.write([op, {"op": "close-stream"}])
                    with pytest.raises(OSError, match=r"."):
                        await comm.read()
            assert "x\\n2026" in log.getvalue()


@TRANSPORTS
@gen_test()
async def test_a_handshake_cannot_forge_or_flood_the_log(transport):
    text = EVIL + 20_000 * "n"
    handshakes = (
        {"pickle-protocol": text, "compression": text},
        {"auth": {"scheme": text, text: text}},
        {"compression": {text: text}, text: text},
    )
    async with serving(transport) as server:
        for overrides in handshakes:
            with whole_log(), contextlib.suppress(OSError, ValueError):
                comm = await core.connect(server.address, handshake_overrides=overrides)
                await comm.close()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "unix://"])
@gen_test()
async def test_bytes_in_place_of_a_handshake_cannot_forge_or_flood_the_log(address):
    evil = EVIL.encode()
    async with serving(address) as server:
        for data in (evil, message(EVIL), message([EVIL]), message({**HANDSHAKE, "auth": EVIL})):
            with whole_log() as log:
                async with raw_peer(server.address) as peer:
                    await peer.send(data + 100 * b"\n")
                    peer.sock.shutdown(socket.SHUT_WR)
                    await peer.wait_closed()
            assert "failed before it began" in log.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names exist on Linux only")
@gen_test()
async def test_the_name_of_a_peers_socket_cannot_forge_a_line_of_the_log():
    seen = []

    async def look(comm):
        seen.append((comm.peer_address, repr(comm)))
        raise ValueError(comm.peer_address)

    async with serving("unix://", {"look": look}) as server:
        with whole_log() as log, socket.socket(socket.AF_UNIX) as sock:
            sock.bind("\0" + EVIL + "\udcff".encode(errors="surrogateescape").decode("latin-1"))
            sock.connect(server.address.removeprefix("unix://"))
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, message(HANDSHAKE) + message({"op": "look"}))
            while not seen:
                await loop.sock_recv(sock, 2**16)
    assert "x\\n2026" in log.getvalue()
    for text in seen[0]:
        check(text)


@gen_test()
async def test_an_http_request_cannot_forge_or_flood_the_log():
    evil = EVIL.encode()
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    requests = (
        b"GET /\x1b[2J\x07 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /" + evil + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + evil + b"\r\n\r\n",
        b"GET /\x1b[2J" + 60_000 * b"n" + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: http://\x1b[2J\r\n" + upgrade + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: \x1b[2J\r\n" + upgrade + b"\r\n",
        b"G\x1b[2JT / HTTP/1.1\r\n\r\n",
    )
    async with serving("ws://127.0.0.1:0") as server:
        for request in requests:
            with whole_log():
                async with raw_peer(server.address) as peer:
                    await peer.send(request)
                    peer.sock.shutdown(socket.SHUT_WR)
                    await peer.wait_closed()


def answer(data):
    async def serve(peer):
        await peer.handshake()
        await peer.read_message()
        await peer.send(data)

    return serve


@gen_test()
async def test_an_answer_of_a_server_cannot_forge_or_flood_the_log_of_its_client():
    error = {"status": "uncaught-error", "exception": None, "traceback": None}
    lines = 100_000 * f"{FORGED}\n"
    answers = (
        {**error, "exception_text": NAME},
        {**error, "exception_text": "short", "traceback_text": lines},
        {**error, "exception": NAME},
        {**error, "exception": NAME.encode()},
        {**error, "exception_text": [NAME]},
    )
    for data in answers:
        async with raw_server(answer(message(data))) as where:
            with whole_log() as log:
                async with rpc(f"tcp://{where}") as remote:
                    with pytest.raises(Exception, match=r".") as caught:
                        await remote.anything()
                logs.get_logger("distributed.test").error("%r", caught.value, exc_info=caught.value)
            assert log.getvalue().count("\n") < 200
            # The error itself may have several lines, as a remote traceback does.
            for text in (str(caught.value), *getattr(caught.value, "__notes__", ())):
                assert all(c.isprintable() or c == "\n" for c in text)
                assert len(text) < MOST


@gen_test()
async def test_the_handshake_of_a_server_cannot_forge_or_flood_the_log_of_its_client():
    text = EVIL + 20_000 * "n"

    def greet(*messages):
        async def serve(peer):
            for data in messages:
                await peer.send(message(data))
                await peer.read_message()

        return serve

    def challenge():
        return {**HANDSHAKE, "auth": Authentication(TOKEN, "server", None).challenge()}

    auth = {"scheme": text, "challenge": text}
    hostile = (
        [text],
        [{text: text}],
        [{**HANDSHAKE, "auth": auth}],
        [challenge(), {"refused": text}],
        [challenge(), {"refused": [text] * 9}],
        [challenge(), {"proof": text}],
    )
    for messages in hostile:
        async with raw_server(greet(*messages)) as where:
            with whole_log(), pytest.raises(OSError, match=r".") as caught:
                await core.connect(f"tcp://{where}", token=TOKEN, timeout="1s")
            check(str(caught.value))


@gen_test()
async def test_an_http_server_cannot_forge_or_flood_the_log_of_its_client():
    answers = (
        b"HTTP/1.1 403 \x1b[2J\x07forged\r\n\r\n",
        b"HTTP/1.1 403 " + 60_000 * b"n" + b"\r\n\r\n",
        b"HTTP/1.1 101 \x1b[2J\r\nConnection: Upgrade\r\nUpgrade: \x1b[2J\r\n\r\n",
        b"HTTP/1.1 \x1b[2J\r\n\r\n",
    )
    for data in answers:

        async def serve(peer, data=data):
            await peer.read_until(b"\r\n\r\n")
            await peer.send(data)
            peer.sock.shutdown(socket.SHUT_WR)

        async with raw_server(serve) as where:
            with whole_log(), pytest.raises(OSError, match=r".") as caught:
                await core.connect(f"ws://{where}", timeout="100ms")
            check(str(caught.value))
            check(str(caught.value.__cause__))


@gen_test()
async def test_an_address_that_a_peer_gave_cannot_forge_a_line_of_an_error():
    for address in (
        EVIL,
        NAME,
        f"tcp://{EVIL}:1",
        f"{EVIL}://a",
        f"inproc://{EVIL}",
        f"ws://{NAME}",
        f"ws://127.0.0.1:1/{LINES}",
        f"unix:///{LINES}",
    ):
        with whole_log(), pytest.raises((OSError, ValueError), match=r".") as caught:
            await core.connect(address, timeout="100ms")
        check(str(caught.value))


@gen_test()
async def test_messages_without_a_handler_are_counted_in_the_log():
    count = 20_000
    async with serving("tcp://127.0.0.1:0") as server, connected(server) as comm:
        with whole_log() as log:
            await comm.write({"op": "connection_stream", "reply": False})
            await comm.write([{"op": "none"}] * count + [{"op": "close-stream"}])
            with pytest.raises(OSError, match=r"."):
                await comm.read()
    lines = [line for line in log.getvalue().splitlines() if "no stream handler" in line]
    assert len(lines) == 2
    assert f"… repeated {count - 1} times: " in lines[1] or f"and {count - 1} more" in lines[1]


@gen_test()
async def test_an_error_that_repeats_is_counted_until_the_log_is_flushed():
    async with serving("tcp://127.0.0.1:0", HANDLERS) as server, connected(server) as comm:
        with whole_log() as log:
            for _ in range(3):
                await ask(comm, {"op": "refuse", "x": 1})
            logs.flush()
            await ask(comm, {"op": "refuse", "x": 1})
    assert log.getvalue().count("ValueError: bad argument 1") == 2
    assert "… repeated 2 times: Exception while handling op refuse" in log.getvalue()


def test_each_logger_of_the_package_renders_text_of_peers_safely():
    root = Path(distributed.__file__).parent
    allowed = {"base/log_setup.py", "base/logs.py", "utils_test.py"}
    # These set levels and handlers, and log nothing.
    allowed |= {"cli/program.py", "testing/leaks.py"}
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if "tests/" in name or name in allowed:
            continue
        used = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        unsafe = {"logging.getLogger", *(f"logging.{level}" for level in LEVELS)} & used
        assert not unsafe, f"{name}: use distributed.base.logs.get_logger"


LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")
