"""``ChildProcess``: a program that is started again when it dies, and ends with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

import pytest

from distributed.core import ChildProcess
from distributed.utils_test import async_poll_for, captured_logger, gen_test

#: Ends when its input ends, as with `end_with_parent`.
WAITS = "import sys; sys.stdin.read()"
#: Ignores the end of its input, and starts a process that does so as well.  Both hold the pipe.
STUBBORN = """
import os, sys, time
pipe = os.open(sys.argv[1], os.O_WRONLY)
if os.fork():
    os.write(pipe, b"1")
time.sleep(3600)
"""


def python(code, *args):
    return [sys.executable, "-S", "-c", code, *args]


@contextlib.asynccontextmanager
async def running(*args, **kwargs):
    child = ChildProcess(*args, **kwargs)
    await child.start()
    try:
        yield child
    finally:
        await child.close(grace=0)


@contextlib.asynccontextmanager
async def stubborn(path):
    """Run the program; yield the child and a function that waits until its processes are gone."""
    os.mkfifo(path)
    async with running(python(STUBBORN, path)) as child:
        with await asyncio.to_thread(open, path, "rb", buffering=0) as pipe:
            assert await asyncio.to_thread(pipe.read, 1) == b"1"

            async def gone():
                assert await asyncio.to_thread(pipe.read) == b""

            yield child, gone


@gen_test()
async def test_a_child_is_started_again_until_it_ends_with_a_final_code(tmp_path):
    # It ends by the codes 0, 1 and 2.
    code = """
import pathlib, sys
file = pathlib.Path(sys.argv[1])
number = len(file.read_text())
file.write_text("." * (number + 1))
sys.exit(number)
"""
    (tmp_path / "runs").write_text("")
    with captured_logger("distributed.core") as log:
        async with running(python(code, str(tmp_path / "runs")), final=[2]) as child:
            assert await child.ended() == 2
            assert child.restarts == 2
    assert "ended with exit code 1, and is started again in 0.1 s" in log.getvalue()


@gen_test()
async def test_close_ends_a_child_gracefully_and_does_not_start_it_again():
    async with running(python(WAITS)) as child:
        ended = asyncio.create_task(child.ended())
        await asyncio.gather(child.close(grace=60), child.close(grace=60))
        assert await ended == 0
        assert child.restarts == 0
        assert child.pid == child.process.pid
        with pytest.raises(RuntimeError, match="started once"):
            await child.start()


@gen_test()
async def test_a_child_that_ignores_its_input_is_killed_with_what_it_has_started(tmp_path):
    async with stubborn(tmp_path / "pipe") as (child, gone):
        await child.close(grace=0)
        await gone()
        assert await child.ended() == -9


@gen_test()
async def test_a_close_that_is_cancelled_kills_at_once(tmp_path):
    async with stubborn(tmp_path / "pipe") as (child, gone):
        closing = asyncio.create_task(child.close(grace=3600))
        await async_poll_for(child.process.stdin.is_closing)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await gone()


@gen_test()
async def test_what_a_child_has_started_ends_when_it_dies(tmp_path):
    async with stubborn(tmp_path / "pipe") as (child, gone):
        # The next one would use the same pipe.
        os.unlink(tmp_path / "pipe")
        child.process.kill()
        await gone()
        await async_poll_for(lambda: child.restarts > 0)


@gen_test()
async def test_a_program_that_cannot_be_started_is_an_error_and_later_a_log_line(tmp_path):
    with pytest.raises(FileNotFoundError):
        await ChildProcess([tmp_path / "nothing"]).start()
    program = tmp_path / "program"
    program.symlink_to(sys.executable)
    with captured_logger("distributed.core") as log:
        async with running([program, "-S", "-c", WAITS]) as child:
            program.unlink()
            child.process.kill()
            await async_poll_for(lambda: child.restarts == 2)
            program.symlink_to(sys.executable)
            await async_poll_for(lambda: child.process.returncode is None)
    assert f"Cannot start {program} again" in log.getvalue()


@gen_test()
async def test_a_child_that_is_closed_while_it_is_started_ends():
    child = ChildProcess(python(WAITS))
    starting = asyncio.create_task(child.start())
    await asyncio.sleep(0)
    await child.close()
    with pytest.raises(RuntimeError, match="closed while it was started"):
        await starting
    assert await child.ended() is not None


@gen_test()
async def test_a_start_that_is_cancelled_leaves_no_process():
    child = ChildProcess(python(WAITS))
    starting = asyncio.create_task(child.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert child.pid is None
    await child.close()
    assert await child.ended() is None
