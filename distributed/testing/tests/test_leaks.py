"""The leak check, on a test file with one leak of each kind."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

SETUP_CFG = Path(__file__).parents[3] / "setup.cfg"

LEAKING_TESTS = """
import asyncio, gc, os, socket, subprocess, sys, threading

kept = []  # garbage is not a leak

def keep(leak):
    kept.append(leak)
    return leak

def test_pending_task():
    async def never_ends():
        await asyncio.Event().wait()
    loop = asyncio.new_event_loop()
    keep(loop.create_task(never_ends()))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

def test_open_loop():
    keep(asyncio.new_event_loop())

def test_listening_socket():
    keep(socket.create_server(("127.0.0.1", 0)))

def test_connected_socket():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        keep(socket.create_connection(listening.getsockname()))
        keep(listening.accept())

def test_unconnected_socket():
    keep(socket.socket())

def test_pipe():
    os.pipe()

def test_thread():
    threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()

def test_child_process():
    # It ends with the pytest process, which has the other end of its standard input.
    keep(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

def test_child_not_waited_for():
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, but is not reaped

def test_orphan():
    # It ends with the pytest process, as in test_child_process.
    start = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'])"
    parent = keep(subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE))
    parent.wait()

def test_task_destroyed():
    async def never_ends():
        await asyncio.get_running_loop().create_future()
    loop = asyncio.new_event_loop()
    loop.create_task(never_ends())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del loop
    gc.collect()

def test_never_awaited():
    asyncio.sleep(1)

def test_error_in_callback():
    def callback():
        raise ValueError("error in a callback")
    async def body():
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)
    asyncio.run(body())

def test_error_in_forgotten_task():
    async def fails():
        raise ValueError("error in a task")
    async def body():
        task = asyncio.create_task(fails())
        await asyncio.sleep(0)
    asyncio.run(body())

def test_error_in_tornado_callback():
    from tornado.ioloop import IOLoop
    def callback():
        raise ValueError("error in a callback of Tornado")
    async def body():
        IOLoop.current().add_callback(callback)
        await asyncio.sleep(0.01)
    asyncio.run(body())

def test_open_comm():
    from distributed.comm import connect, listen
    async def handle(comm):
        keep(comm)
    async def body():
        listener = await listen("inproc://", handle)
        keep(await connect(listener.contact_address))
        listener.stop()
    asyncio.run(body())

def test_inproc_listener():
    from distributed.comm import listen
    async def body():
        keep(await listen("inproc://", print))
    asyncio.run(body())

def test_open_rpc():
    from distributed.core import rpc
    async def body():
        keep(rpc("tcp://127.0.0.1:1"))
    asyncio.run(body())

def test_pool_with_open_comms():
    from distributed.core import ConnectionPool, Server
    async def body():
        async with Server({}) as server:
            await server.listen("inproc://")
            pool = keep(await ConnectionPool())
            comm = await pool.connect(server.address)
            pool.reuse(server.address, comm)
    asyncio.run(body())
"""

CLEAN_TESTS = """
import asyncio, logging, multiprocessing, select, socket, subprocess, sys, threading
import pytest
from distributed.utils import offload
from distributed.utils_test import captured_logger, gen_test

@pytest.fixture(scope="module")
def shared_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server

def test_nothing():
    pass

@gen_test()
async def test_async():
    await asyncio.sleep(0)

@gen_test()
async def test_offload_thread_stays():
    assert await offload(sum, [1, 2]) == 3

def test_fixture_of_the_module(shared_server):
    with socket.create_connection(shared_server.getsockname()):
        pass

def test_thread_that_ends_soon():
    threading.Timer(0.05, print).start()

def test_child_that_was_waited_for():
    subprocess.run([sys.executable, "-c", ""], check=True)

@pytest.mark.parametrize("code", ["", "import time; time.sleep(0.1)"])
def test_orphan_that_ends_soon(code):
    start = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    subprocess.run([sys.executable, "-c", start, code], check=True)

def test_process_of_multiprocessing():
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    process.close()

def test_garbage_cycle():
    cycle = [select.epoll()]
    cycle.append(cycle)

def test_captured_error():
    with captured_logger("asyncio", propagate=False) as log:
        logging.getLogger("asyncio").error("on purpose")
    assert "on purpose" in log.getvalue()
"""

#: Name of a leaking test → a part of its report.
LEAKS = {
    "test_pending_task": "pending task: Task-",
    "test_open_loop": "event loop, not closed: <_UnixSelectorEventLoop",
    "test_listening_socket": "socket that listens on ('127.0.0.1', ",
    "test_connected_socket": "connected to ('127.0.0.1', ",
    "test_unconnected_socket": "socket ('0.0.0.0', 0), not connected",
    "test_pipe": ": pipe:[",
    "test_thread": "thread: <Thread(forgotten, started daemon",
    "test_child_process": "-c input()",
    "test_child_not_waited_for": "(ended, but not waited for)",
    "test_orphan": "orphan process ",
    "test_task_destroyed": "Task was destroyed but it is pending!",
    "test_never_awaited": "coroutine 'sleep' was never awaited",
    "test_error_in_callback": "ValueError: error in a callback",
    "test_error_in_forgotten_task": "Task exception was never retrieved",
    "test_error_in_tornado_callback": "ValueError: error in a callback of Tornado",
    "test_open_comm": "open comm: <InProc ",
    "test_inproc_listener": "inproc listener: <",
    "test_open_rpc": "open rpc: <rpc to 'tcp://127.0.0.1:1'",
    "test_pool_with_open_comms": "connection pool with open comms: <ConnectionPool",
}


def run_pytest(directory: Path, source: str) -> dict[str, str]:
    """Run a test file with the project's settings; return test → failure ("" if it passed)."""
    test_file, report = directory / "test_some.py", directory / "report.xml"
    test_file.write_text(source)
    options: list[str | Path] = ["-c", SETUP_CFG, "--rootdir", directory, "--junit-xml", report]
    options += ["-p", "distributed.testing.plugin", "-p", "no:cacheprovider"]
    options += ["-o", "distributed_leak_deadline=0.3"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, test_file],
        cwd=SETUP_CFG.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert report.exists(), run.stdout + run.stderr
    return {
        case.get("name", "?"): "".join(
            result.text or "" for result in [*case.findall("failure"), *case.findall("error")]
        )
        for case in ET.parse(report).iter("testcase")
    }


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_pytest(tmp_path_factory.mktemp("leaking"), LEAKING_TESTS)


@pytest.mark.parametrize("test", LEAKS)
def test_a_leak_fails_its_test(failures, test):
    assert LEAKS[test] in failures[test]


def test_every_leaking_test_is_expected(failures):
    assert failures.keys() == LEAKS.keys()


def test_resources_that_end_in_time_or_last_by_design_are_not_leaks(tmp_path):
    failures = run_pytest(tmp_path, CLEAN_TESTS)
    assert failures
    assert not any(failures.values()), failures
