"""The pytest plugin, as users have it: without the settings of this project."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import distributed.testing
from distributed.core import Server, rpc
from distributed.testing import ServerThread
from distributed.tests.environments import ROOT, clean_environ, run_here
from distributed.tests.pages import blocks
from distributed.utils_test import gen_test

PAGE = ROOT / "docs" / "how-to" / "testing.rst"

USED = """
import asyncio, threading
import pytest
from distributed.core import Server, rpc

def add(x, y):
    return x + y

async def count(n):
    for i in range(n):
        yield i

def test_a_plain_function_calls_a_server(distributed_server, distributed_rpc):
    server = distributed_server({"add": add})
    assert distributed_rpc(server).add(x=1, y=2) == 3

def test_errors_of_handlers_are_raised(distributed_server, distributed_rpc):
    remote = distributed_rpc(distributed_server({"add": add}))
    with pytest.raises(TypeError, match="unsupported operand"):
        remote.add(x=1, y="two")

def test_streams_are_iterators(distributed_server, distributed_rpc):
    remote = distributed_rpc(distributed_server({"count": count}).address)
    assert list(remote.count.stream(n=3)) == [0, 1, 2]
    assert next(remote.count.stream(n=3)) == 0

def test_a_coroutine_calls_a_server(distributed_server):
    server = distributed_server({"add": add}, "inproc://")
    async def call():
        async with rpc(server.address) as remote:
            return await remote.add(x=1, y=2)
    assert asyncio.run(call()) == 3

def test_encrypted(distributed_server, distributed_rpc, distributed_security):
    server = distributed_server({"add": add}, "tls://127.0.0.1:0", security=distributed_security)
    assert server.address.startswith("tls://")
    assert distributed_rpc(server, security=distributed_security).add(x=1, y=2) == 3

def test_classes_and_functions(distributed_server, distributed_rpc):
    class Adder(Server):
        def __init__(self, more):
            super().__init__({"add": lambda x: x + more})
    async def make():
        return Adder(more=2)
    for server in (distributed_server(Adder, more=1), distributed_server(make)):
        assert distributed_rpc(server).add(x=1) > 1
        assert isinstance(server.server, Adder)

def test_closed_early(distributed_server):
    server = distributed_server({})
    server.close()
    assert server.server.status.name == "closed"

@pytest.mark.usefixtures("distributed_leak_check")
def test_nothing_is_left(distributed_server, distributed_rpc):
    assert distributed_rpc(distributed_server({"add": add})).add(x=1, y=2) == 3

def test_checked_after_the_servers_are_closed(distributed_server, distributed_leak_check):
    distributed_server({"add": add})

@pytest.mark.usefixtures("distributed_leak_check")
def test_leaking():
    threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()

def test_not_checked():
    threading.Thread(target=threading.Event().wait, name="allowed", daemon=True).start()

def test_leaving_a_task_behind(distributed_server, distributed_rpc):
    kept = []
    async def forget():
        kept.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))
    distributed_rpc(distributed_server({"forget": forget})).forget()
"""

LEAKING = {
    "test_leaking": "thread: <Thread(forgotten",
    "test_leaving_a_task_behind": "forgotten:\n",
}

CHECKED = """
import threading
import pytest

def start(name):
    threading.Thread(target=threading.Event().wait, name=name, daemon=True).start()

def test_leaking():
    start("forgotten")

def test_lasting():
    start("pool-1")

@pytest.mark.distributed_leaks_allowed
def test_allowed():
    start("allowed")
"""

UNUSED = """
import asyncio, os, subprocess, sys

def test_nothing_is_loaded_or_changed():
    loaded = {name for name in sys.modules if name.partition(".")[0] in ("distributed", "tornado")}
    assert loaded <= {LIGHT}
    assert asyncio.BaseEventLoop.__init__.__qualname__ == "BaseEventLoop.__init__"
    assert type(os.posix_spawn) is type(len)
"""

#: Modules that pytest loads in each run of each user.
LIGHT = {
    "distributed",
    "distributed.base",
    "distributed.base.config_sources",
    "distributed.base.config_store",
    "distributed.base.installation",
    "distributed.base.log_setup",
    "distributed.base.version",
    "distributed.testing",
    "distributed.testing.plugin",
}


def run_pytest(directory: Path, source: str, ini: str = "") -> dict[str, str]:
    """Run a test file; return test → failure ("" if it passed)."""
    test_file, report = directory / "test_some.py", directory / "report.xml"
    test_file.write_text(source)
    (directory / "pytest.ini").write_text(f"[pytest]\n{ini}")
    options: list[str | Path] = ["--junit-xml", report, "-p", "no:cacheprovider"]
    # As the entry point does, whether or not the checkout is installed.
    options += ["-p", "distributed.testing.plugin", "--strict-markers", "--strict-config"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, test_file],
        cwd=directory,
        env=clean_environ({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert report.exists(), run.stdout + run.stderr
    failures: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        results = [*case.findall("failure"), *case.findall("error")]
        text = "".join(result.text or "" for result in results)
        failures[case.get("name", "?")] = failures.get(case.get("name", "?"), "") + text
    return failures


def test_servers_are_started_and_closed_and_leaks_are_named(tmp_path):
    failures = run_pytest(tmp_path, USED)
    assert len(failures) == USED.count("\ndef test_")
    for test, failure in failures.items():
        assert LEAKING.get(test, "") in failure
        assert bool(failure) == (test in LEAKING), failure


def test_the_check_of_each_test_is_an_option(tmp_path):
    ini = "distributed_leak_check = true\ndistributed_leak_deadline = 0.1\n"
    ini += "distributed_lasting_threads =\n    pool-\n"
    failures = run_pytest(tmp_path, CHECKED, ini)
    assert failures.keys() == {"test_leaking", "test_lasting", "test_allowed"}
    assert "thread: <Thread(forgotten" in failures.pop("test_leaking")
    assert not any(failures.values())


def test_before_a_fixture_is_used_nothing_is_loaded_or_changed(tmp_path):
    failures = run_pytest(tmp_path, UNUSED.replace("{LIGHT}", repr(LIGHT)))
    assert failures == {"test_nothing_is_loaded_or_changed": ""}


def test_the_plugin_imports_only_light_modules_of_this_package():
    code = """
        import json, sys
        import pytest
        before = set(sys.modules)
        import distributed.testing.plugin
        print(json.dumps(sorted(set(sys.modules) - before)))
    """
    loaded = set(json.loads(run_here(code).stdout))
    assert loaded - sys.stdlib_module_names == LIGHT


def test_the_tests_of_the_page_pass(tmp_path):
    tests = [block.source for block in blocks(PAGE) if block.language == "python"]
    assert len(tests) == 4
    failures = run_pytest(tmp_path, "\n".join(tests), "distributed_leak_check = true\n")
    assert len(failures) == 8
    assert not any(failures.values()), failures


# ServerThread, without pytest


def test_an_existing_server_is_a_type_error():
    @gen_test()
    async def make():
        return Server({})

    with ServerThread() as thread, pytest.raises(TypeError, match="belongs to the event loop"):
        thread.serve(make())


def test_the_error_of_a_start_is_raised_and_the_thread_continues():
    with ServerThread() as thread:
        server = thread.serve({})
        with pytest.raises(OSError, match="in use"):
            thread.serve({}, server.address)
        assert thread.rpc(server).echo(data=1) == 1


def test_a_call_that_takes_too_long_is_a_timeout_error():
    async def wait():
        await asyncio.Event().wait()

    with ServerThread() as thread:
        remote = thread.rpc(thread.serve({"wait": wait}))
        thread.timeout = 0.05
        with pytest.raises(TimeoutError):
            remote.wait()
        thread.timeout = 30


def test_a_closed_thread_cannot_be_used():
    with ServerThread() as thread:
        thread.serve({})
    thread.close()
    with pytest.raises(RuntimeError, match="this ServerThread is closed"):
        thread.serve({})


@gen_test()
async def test_a_coroutine_of_another_loop_calls_the_server():
    with ServerThread() as thread:
        server = thread.serve({}, "tcp://127.0.0.1:0", "unix://")
        for address in server.server.listeners:
            async with rpc(address.contact_address) as remote:
                assert await remote.echo(data=1) == 1


def test_the_package_offers_the_thread_by_name_only():
    assert distributed.testing.ServerThread is ServerThread
    with pytest.raises(AttributeError, match="no attribute 'Servers'"):
        _ = distributed.testing.Servers
