"""``run`` and ``serve``: a server as a service, with signals and exit codes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager

import pytest

import distributed
from distributed.core import RequestRefused, Server, rpc, run, running, serve
from distributed.tests.servers import TCP
from distributed.utils_test import async_poll_for, captured_logger, gen_test


class Log:
    """The names of events, in their order."""

    def __init__(self):
        self.events: list[str] = []

    def service(self, name, hook=None):
        @asynccontextmanager
        async def service(server):
            self.events.append(f"enter {name}")
            # As many services do, it has a task group, which must be left in the task that entered.
            async with asyncio.TaskGroup() as group:
                task = group.create_task(asyncio.sleep(3600))
                if hook is not None:
                    await hook(server)
                yield
                task.cancel()
            self.events.append(f"leave {name}")

        return service


def kill(number=signal.SIGTERM):
    """A service that sends this process a signal once the server is ready."""

    @asynccontextmanager
    async def service(server):
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
        yield

    return service


@contextmanager
def lines(level=logging.ERROR):
    """Capture what this module logs, as lines."""
    found: list[str] = []
    with captured_logger("distributed.core", level=level) as log:
        yield found
    found += log.getvalue().splitlines()


# Starting and closing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_the_server_gracefully(number, capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    log = Log()
    server = Server({})
    assert run(server, TCP, services=[log.service("a"), log.service("b"), kill(number)]) == 0
    assert log.events == ["enter a", "enter b", "leave b", "leave a"]
    assert server.status.name == "closed"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert "Traceback" not in capfd.readouterr().err


def test_requests_in_progress_finish_before_services_are_left():
    log, caller = Log(), []

    async def work():
        os.kill(os.getpid(), signal.SIGTERM)
        await async_poll_for(lambda: server._refuses_requests)
        async with rpc(server.address) as remote:
            with pytest.raises(RequestRefused):
                await remote.echo()
        log.events.append("worked")
        return "done"

    async def call(server):
        async def calling():
            async with rpc(server.address) as remote:
                caller.append(await remote.work())

        caller.append(asyncio.create_task(calling()))

    server = Server({"work": work})
    assert run(server, TCP, services=[log.service("a", call)]) == 0
    assert log.events == ["enter a", "worked", "leave a"]
    assert caller[1:] == ["done"]


def test_the_server_may_be_made_by_a_function_of_any_kind():
    class Mine(Server):
        def __init__(self):
            assert asyncio.get_running_loop().is_running()
            super().__init__({})

    async def make():
        return Mine()

    for factory in (Mine, lambda: Mine(), make):
        with lines(logging.INFO) as log:
            assert run(factory, TCP, services=[kill()]) == 0
        assert log[0].startswith("Mine is ready at tcp://127.0.0.1:")
        assert "Received SIGTERM: Mine tcp://127.0.0.1:" in log[1]


def test_several_addresses_and_the_default_one():
    class Mine(Server):
        default_ip = "127.0.0.1"

    found = []

    @asynccontextmanager
    async def look(server):
        found.append([listener.listen_address.partition(":")[0] for listener in server.listeners])
        yield

    for addresses in ([TCP, "unix://"], (), ["unix://", ("127.0.0.1", 0)], "inproc://"):
        assert run(Mine({}), addresses, services=[look, kill()]) == 0
    assert found == [["tcp", "unix"], ["tcp"], ["unix", "tcp"], ["inproc"]]


def test_a_server_that_listens_already_needs_no_address():
    class Mine(Server):
        async def start_unsafe(self):
            await super().start_unsafe()
            await self.listen("inproc://")
            return self

    server = Mine({})
    assert run(server, services=[kill()]) == 0
    assert len(server.listeners) == 1


def test_a_server_that_closes_itself_ends_with_0():
    async def leave():
        server._ongoing_background_tasks.call_soon(server.close)

    @asynccontextmanager
    async def ask(server):
        async with rpc(server.address) as remote:
            await remote.leave()
        yield

    server = Server({"leave": leave})
    assert run(server, TCP, services=[ask]) == 0


def test_requests_that_do_not_finish_give_another_exit_code():
    async def endless():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    errors = []

    async def call(server):
        async def calling():
            async with rpc(server.address) as remote:
                with pytest.raises(RuntimeError, match="the server closes"):
                    await remote.endless()
                errors.append("told")

        errors.append(asyncio.create_task(calling()))

    with lines() as log:
        code = run(
            Server({"endless": endless}),
            TCP,
            services=[Log().service("a", call)],
            shutdown_timeout="20ms",
        )
    assert code == 3
    assert errors[1:] == ["told"]
    assert log == []


def test_the_configured_time_is_the_default(monkeypatch):
    async def endless():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    @asynccontextmanager
    async def call(server):
        async with rpc(server.address) as remote:
            task = asyncio.create_task(remote.endless())
            yield
            await asyncio.wait([task])
            assert task.exception() is not None

    with distributed.config.set({"distributed.server.shutdown-timeout": "20ms"}), lines():
        assert run(Server({"endless": endless}), TCP, services=[call]) == 3


# Failures


def taken():
    """Return a socket that listens, and its address."""
    sock = socket.create_server(("127.0.0.1", 0))
    return sock, f"tcp://127.0.0.1:{sock.getsockname()[1]}"


class Broken(Server):
    async def start_unsafe(self):
        raise KeyError("missing")


class Missing(Server):
    async def start_unsafe(self):
        raise FileNotFoundError(2, "No such file", "/data")


def make():
    return Server({})


def not_made():
    raise ZeroDivisionError("division by zero")


@asynccontextmanager
async def broken_service(server):
    raise LookupError("no page")
    yield


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            (lambda: Broken({}), TCP),
            1,
            r"Broken failed to start: KeyError: 'missing' (*test_running.py:",
        ),
        ((lambda: Missing({}), TCP), 1, "Missing failed to start: No such file"),
        ((not_made, TCP), 1, "the server could not be made: ZeroDivisionError: division by zero"),
        ((lambda: 5, TCP), 1, "the server could not be made: TypeError: * which is not a Server"),
        ((make, "tpc://:0"), 78, "Server cannot listen: unknown address scheme 'tpc'"),
        ((make, "tcp://h:x"), 78, "Server cannot listen: *h:x"),
        ((make, "fd://"), 78, "Server cannot listen: no socket for fd:// was passed"),
        ((make, "fd://99"), 78, "Server cannot listen: cannot listen at fd://99: file"),
    ],
)
def test_a_failure_to_start_is_one_line_and_an_exit_code(arguments, code, line, capfd):
    with lines() as log:
        assert run(*arguments) == code
    assert len(log) == 1, log
    for part in line.split("*"):
        assert part in log[0]
    assert capfd.readouterr().err == ""


def test_an_address_in_use_is_one_line_and_exit_code_1():
    sock, address = taken()
    server = Server({})
    with sock, lines() as log:
        assert run(server, [TCP, address]) == 1
    assert len(log) == 1
    assert log[0].startswith(f"Server failed to start: cannot listen at {address}: Address already")
    assert server.status.name == "closed"


def test_an_invalid_configuration_is_one_line_and_exit_code_78():
    with (
        distributed.config.set({"distributed.server.shutdown-timeout": "soon"}),
        lines() as log,
    ):
        assert run(lambda: Server({}), TCP) == 78
    assert len(log) == 1
    assert log[0].startswith("the configuration is invalid: ")
    assert "distributed.server.shutdown-timeout" in log[0]


def test_the_traceback_of_a_failure_is_logged_for_debugging():
    with captured_logger("distributed.core", level=logging.DEBUG) as log:
        assert run(Broken({}), TCP) == 1
    assert "Traceback" in log.getvalue()


@asynccontextmanager
async def misconfigured_service(server):
    await server.listen("tpc://:0")
    yield


@asynccontextmanager
async def service_with_broken_data(server):
    json.loads("{")
    yield


@pytest.mark.parametrize(
    ("service", "code", "line"),
    [
        # A restart does not help, and the line says what does: no place in the code is in it.
        (misconfigured_service, 78, r"unknown address scheme 'tpc' \(known schemes: [^)]*\)"),
        (service_with_broken_data, 1, r"JSONDecodeError: .* \(.*\.py:\d+\)"),
    ],
)
def test_the_exit_code_tells_whether_a_restart_may_start_a_service(service, code, line):
    with lines() as log:
        assert run(Server({}), TCP, services=[service]) == code
    assert len(log) == 1
    assert re.fullmatch(f"a service of Server failed to start: {line}", log[0])


def test_a_service_that_fails_to_start_ends_the_others():
    events = Log()
    with lines() as log:
        assert run(Server({}), TCP, services=[events.service("a"), broken_service]) == 1
    assert events.events == ["enter a", "leave a"]
    assert log[0].startswith("a service of Server failed to start: LookupError: no page")
    assert len(log) == 1


def test_a_service_that_fails_to_end_is_logged():
    @asynccontextmanager
    async def fails(server):
        yield
        raise LookupError("page")

    server = Server({})
    with lines() as log:
        assert run(server, TCP, services=[fails, kill()]) == 1
    assert "A service of Server" in log[0]
    assert "LookupError: page" in log[-1]
    assert server.status.name == "closed"


def test_a_server_that_fails_to_close_is_logged(monkeypatch):
    class Fails(Server):
        async def close(self, timeout=None, reason=""):
            await super().close(timeout, reason)
            raise LookupError("close")

    with lines() as log:
        assert run(Fails({}), TCP, services=[kill()]) == 1
    assert log[0].startswith("Fails tcp://127.0.0.1")
    assert log[0].endswith("failed to close")

    class Hangs(Server):
        async def close(self, timeout=None, reason=""):
            try:
                await asyncio.Event().wait()
            finally:
                await super().close(timeout, reason)

    monkeypatch.setattr(running, "CLOSE_LIMIT", 0.02)
    with lines() as log:
        assert run(Hangs({}), TCP, services=[kill()], shutdown_timeout=0) == 1
    assert log[0].endswith("failed to close")


def test_arguments_are_checked_at_once():
    with pytest.raises(TypeError, match="expected a Server, or a function that returns one"):
        run("tcp://127.0.0.1:0")
    with pytest.raises(ValueError, match="shutdown_timeout='soon' is not a duration"):
        run(Server({}), TCP, shutdown_timeout="soon")


# Where it runs


@gen_test()
async def test_run_in_an_event_loop_names_serve():
    with pytest.raises(RuntimeError, match="await serve"):
        run(Server({}))


def test_a_signal_while_the_server_starts_ends_the_start():
    class Slow(Server):
        async def start_unsafe(self):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    server = Slow({})
    with lines(logging.INFO) as log:
        assert run(server, TCP) == 0
    assert server.status.name == "failed"
    assert log[0] == "Received SIGTERM while Slow not-running was starting"
    assert "ERROR" not in "".join(log)


def test_a_server_whose_loop_was_chosen_before_runs_on_it():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        server = Server({})
        server.listen(TCP)
        assert run(server, services=[kill()]) == 0
        assert len(server.listeners) == 1
    finally:
        # run() has closed it.
        assert loop.is_closed()
        asyncio.set_event_loop(None)


def test_an_address_that_was_not_awaited_is_an_error_as_well():
    class Mine(Server):
        async def start_unsafe(self):
            await super().start_unsafe()
            self.listen(address)
            return self

    sock, address = taken()
    with sock, lines() as log:
        assert run(Mine({})) == 1
    assert len(log) == 1
    assert log[0].startswith(f"Mine failed to start: cannot listen at {address}")


def test_another_thread_can_run_a_server_and_handles_no_signals():
    codes, servers = [], []

    @asynccontextmanager
    async def end(server):
        assert signal.getsignal(signal.SIGTERM) is before
        server._ongoing_background_tasks.call_soon(server.close)
        yield

    before = signal.getsignal(signal.SIGTERM)
    servers.append(Server({}))
    thread = threading.Thread(target=lambda: codes.append(run(servers[0], TCP, services=[end])))
    thread.start()
    thread.join()
    assert codes == [0]


@gen_test()
async def test_one_signal_closes_all_servers_of_a_process():
    servers = [Server({}), Server({})]
    serving = [asyncio.create_task(serve(server, TCP)) for server in servers]
    await async_poll_for(lambda: all(server.listeners for server in servers))
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.gather(*serving) == [0, 0]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@gen_test()
async def test_cancelling_serve_closes_the_server():
    log, server = Log(), Server({})
    serving = asyncio.create_task(serve(server, TCP, services=[log.service("a")]))
    await async_poll_for(lambda: log.events)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert server.status.name == "closed"


# Whole processes

PROGRAM = """
import asyncio, atexit, sys, threading, time
from distributed.core import Server, rpc, run, running

running.EXIT_LIMIT = 0.2
server = Server({{}})

async def ask(op):
    async with rpc(server.address) as remote:
        await getattr(remote, op)()

class Client:
    def __init__(self, server):
        pass
    async def __aenter__(self):
        self.task = asyncio.create_task(ask({op!r}))
    async def __aexit__(self, *args):
        self.task.cancel()

async def wait():
    print("ready", flush=True)
    await asyncio.Event().wait()

def block():
    print("ready", flush=True)
    while True:
        time.sleep(3600)

async def block_thread():
    await asyncio.to_thread(block)

server.handlers.update(wait=wait, block=block, block_thread=block_thread)
addresses = ["tcp://127.0.0.1:0", sys.argv[1]]
sys.exit(run(server, addresses, services=[Client], shutdown_timeout={time}))
"""


@contextmanager
def process(op, tmp_path, time="60"):
    """Run a server of which one handler runs until the process ends."""
    path = f"unix://{tmp_path}/s"
    command = [sys.executable, "-c", PROGRAM.format(op=op, time=time), path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        try:
            assert it.stdout is not None
            assert it.stdout.readline() == "ready\n"
            yield it
        finally:
            it.kill()


@pytest.mark.parametrize(
    ("op", "signals", "code"),
    [
        ("wait", [signal.SIGTERM, signal.SIGTERM], 143),
        ("wait", [signal.SIGINT, signal.SIGINT], 130),
        # The event loop is blocked.
        ("block", [signal.SIGINT, signal.SIGINT], 130),
    ],
)
def test_a_second_signal_ends_the_process_at_once(op, signals, code, tmp_path):
    with process(op, tmp_path) as it:
        it.send_signal(signals[0])
        # Signals of the same number that are pending are merged.
        handled(it.pid, signals[0])
        it.send_signal(signals[1])
        assert it.wait(10) == code
        assert "Traceback" not in it.stderr.read()
    # The socket file is removed.
    assert os.listdir(tmp_path) == []


def handled(pid, number):
    """Wait until no signal of this *number* is pending in a process."""
    while True:
        with open(f"/proc/{pid}/status") as file:
            pending = [line.split()[1] for line in file if line.startswith(("SigPnd", "ShdPnd"))]
        if not any(int(mask, 16) & (1 << (number - 1)) for mask in pending):
            return


CHILD = """
import sys, time
from distributed.core import Server, end_with_parent, run, running

running.EXIT_LIMIT = 0.2

class Child(Server):
    async def start_unsafe(self):
        print("starting", flush=True)
        {start}
        return await super().start_unsafe()

end_with_parent()
sys.exit(run(lambda: Child({{}}), "inproc://", shutdown_timeout=0.1))
"""


@pytest.mark.parametrize(("start", "code"), [("pass", 0), ("time.sleep(3600)", 3)])
def test_a_child_process_ends_when_its_parent_closes_the_pipe(start, code):
    command = [sys.executable, "-c", CHILD.format(start=start)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            assert child.stdout.readline() == b"starting\n"
            child.stdin.close()
            assert child.wait(20) == code
            assert b"Traceback" not in child.stderr.read()
        finally:
            child.kill()


ANNOUNCING = """
import sys
from distributed.core import Server, announce, end_with_parent, run

end_with_parent()
sys.exit(run(lambda: Server({}), "tcp://127.0.0.1:0", services=[announce]))
"""


def test_a_parent_reads_the_address_that_a_child_announces():
    with subprocess.Popen(
        [sys.executable, "-c", ANNOUNCING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        try:
            address = child.stdout.readline().decode().strip()

            async def identity():
                async with rpc(address) as remote:
                    return await remote.identity()

            assert asyncio.run(identity())["type"] == "Server"
            child.stdin.close()
            assert child.wait(20) == 0
            assert child.stdout.read() == b""
        finally:
            child.kill()


EXITING = """
import atexit, threading
from distributed.core import exit_without_threads

atexit.register(print, "registered")
threading.Thread(target=threading.Event().wait).start()
print("exiting")
exit_without_threads({code})
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_exits_without_its_threads(code):
    done = subprocess.run(
        [sys.executable, "-c", EXITING.format(code=code)], capture_output=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (code, b"")
    # The output that was buffered is not lost.
    assert done.stdout == b"exiting\nregistered\n"


@pytest.mark.parametrize("op", ["block", "block_thread"])
def test_a_process_that_blocks_is_ended_after_the_time(op, tmp_path):
    with process(op, tmp_path, time="0.1") as it:
        it.send_signal(signal.SIGTERM)
        assert it.wait(10) == 3
        error = it.stderr.read()
        assert "The process does not end by itself, and is ended now; its threads were:" in error
        assert "Traceback" not in error
