"""The programs in ``examples/foundations`` and ``examples/roles`` work as documented."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from distributed.core import rpc
from distributed.utils_test import async_poll_for, gen_test, poll_for, popen

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DOCUMENT = Path(__file__).parent / "data" / "foundations.rst"
PROMPT = ">>> "
#: Makes programs import this checkout, whether it is installed or not, and log warnings only.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "DASK_LOGGING__DISTRIBUTED": "warning"}


def blocks(document: str) -> list[str]:
    """Return the Python programs of a page: its code blocks without prompts and output."""
    indented = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", document)
    return [without_session(textwrap.dedent(block)) for block in indented]


def without_session(block: str) -> str:
    lines, printed = [], False
    for line in block.strip("\n").split("\n"):
        if line.startswith(PROMPT):
            lines.append(line.removeprefix(PROMPT))
            printed = True
        elif not line or not printed:
            lines.append(line)
            printed = False
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("index", "name"), list(enumerate(["server.py", "client.py", "client_rpc.py"]))
)
def test_an_example_is_the_code_block_of_the_document(index, name):
    programs = blocks(DOCUMENT.read_text())
    assert len(programs) == 3
    assert (EXAMPLES / "foundations" / name).read_text() == programs[index]


def port_is_free():
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", 8888)) == errno.ECONNREFUSED


def wait_for_the_port():
    poll_for(
        port_is_free,
        timeout=30,  # another run of these tests may be using it
        fail_func=lambda: pytest.fail("port 8888, which the examples use, is taken by a process"),
    )


def run_demo():
    return subprocess.run(
        [sys.executable, EXAMPLES / "demo.py"],
        capture_output=True,
        text=True,
        timeout=100,
        env=ENVIRONMENT,
    )


def test_the_output_of_the_demo_is_that_of_the_document():
    wait_for_the_port()
    demo = run_demo()
    assert demo.stderr == ""
    with_loop = "examples/with_event_loop.py " if sys.version_info >= (3, 14) else ""
    assert demo.stdout.split("\n") == [
        "$ python examples/foundations/server.py &",
        f"$ python {with_loop}examples/foundations/client.py",
        "3",
        "1",
        "2",
        "3",
        f"$ python {with_loop}examples/foundations/client_rpc.py",
        "3",
        "",
    ]
    assert demo.returncode == 0


def test_the_demo_fails_with_a_message_if_its_port_is_taken():
    wait_for_the_port()
    with socket.create_server(("", 8888)):
        demo = run_demo()
    assert demo.returncode == 1
    assert "port 8888, which the examples use, is taken by another process" in demo.stderr
    assert demo.stdout == ""


@contextlib.contextmanager
def role(name, *args, logs=""):
    """Run a role and yield the address that it prints; interrupt it after the block."""
    command = ["python", str(EXAMPLES / "roles" / name), *args]
    with popen(command, capture_output=True, env=ENVIRONMENT) as process:
        yield process.stdout.readline().decode().strip()
        process.send_signal(signal.SIGINT)
        logged = process.stdout.read().decode()
        assert logs in logged if logs else logged == ""
        assert process.wait() == 0


async def working(scheduler, *, other_than=None):
    """Wait until a worker has sent heartbeats; return its address and process id."""
    found = []

    async def one_is_alive():
        workers = await scheduler.list_workers()
        found[:] = [
            (address, info["pid"])
            for address, info in workers.items()
            if info["heartbeats"] >= 2 and address != other_than
        ]
        return found

    await async_poll_for(one_is_alive, timeout=20)
    return found[0]


@gen_test(timeout=60)
async def test_the_roles_work_together_and_the_nanny_replaces_a_killed_worker():
    with role("scheduler.py", "tcp://127.0.0.1:0") as scheduler_address:
        with role("nanny.py", scheduler_address, logs="is started again") as nanny_address:
            async with rpc(scheduler_address) as scheduler, rpc(nanny_address) as nanny:
                first, pid = await working(scheduler)
                assert await nanny.worker() == {"pid": pid, "restarts": 0}
                assert await scheduler.compute(x=1) == 2

                os.kill(pid, signal.SIGKILL)

                second, new_pid = await working(scheduler, other_than=first)
                assert await nanny.worker() == {"pid": new_pid, "restarts": 1}
                assert (await scheduler.list_workers()).keys() == {second}
                assert await scheduler.compute(x=2) == 3
        async with rpc(scheduler_address) as scheduler:

            async def all_have_left():
                return not await scheduler.list_workers()

            await async_poll_for(all_have_left)


def ended(pid):
    """Return whether a process has ended; it may be a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@gen_test(timeout=60)
async def test_a_worker_ends_with_its_nanny(how):
    with role("scheduler.py", "tcp://127.0.0.1:0") as address:
        command = ["python", str(EXAMPLES / "roles" / "nanny.py"), address]
        with popen(command, capture_output=True, env=ENVIRONMENT) as nanny:
            async with rpc(address) as scheduler:
                _, pid = await working(scheduler)
                nanny.send_signal(how)
                await async_poll_for(lambda: ended(pid))
            # 0, or -9 after SIGKILL.
            assert nanny.wait() == (-how if how is signal.SIGKILL else 0)


@gen_test(timeout=60)
async def test_a_scheduler_closes_when_it_is_terminated():
    with popen(
        ["python", str(EXAMPLES / "roles" / "scheduler.py"), "tcp://127.0.0.1:0"],
        capture_output=True,
        env=ENVIRONMENT,
    ) as scheduler:
        assert scheduler.stdout.readline().startswith(b"tcp://")
        scheduler.terminate()
        assert scheduler.wait() == 0


@gen_test(timeout=60)
async def test_compute_without_workers_is_an_error():
    error = "no worker is registered"
    with role("scheduler.py", "tcp://127.0.0.1:0", logs=error) as address:
        async with rpc(address) as scheduler:
            with pytest.raises(RuntimeError, match=error):
                await scheduler.compute(x=1)


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_the_progress_of_a_long_job_is_shown(with_tqdm):
    argv = [EXAMPLES / "calls" / "progress.py"]
    if with_tqdm:
        pytest.importorskip("tqdm")
    else:
        code = f"import runpy, sys; sys.modules['tqdm'] = None; runpy.run_path({str(argv[0])!r}, "
        argv = ["-c", code + "run_name='__main__')"]
    run = subprocess.run(
        [sys.executable, "-W", "error", *argv],
        capture_output=True,
        text=True,
        timeout=100,
        env=ENVIRONMENT,
    )
    assert run.stdout == "333332833333500000\n"
    assert ("1000000/1000000" if with_tqdm else "1000000 of 1000000") in run.stderr
    assert run.returncode == 0
