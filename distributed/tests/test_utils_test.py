"""The helpers in distributed.utils_test."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import subprocess
import sys

import pytest

import distributed.config
from distributed.comm import listen
from distributed.utils_test import (
    assert_can_connect,
    assert_cannot_connect,
    async_poll_for,
    captured_logger,
    gen_test,
    has_ipv6,
    inc,
    poll_for,
    popen,
    throws,
)
from distributed.utils_test import assert_can_connect_from_everywhere_4 as everywhere_4
from distributed.utils_test import assert_can_connect_from_everywhere_4_6 as everywhere_4_6
from distributed.utils_test import assert_can_connect_from_everywhere_6 as everywhere_6
from distributed.utils_test import assert_can_connect_locally_4 as locally_4
from distributed.utils_test import assert_can_connect_locally_6 as locally_6

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this host does not support IPv6")

logger = logging.getLogger("distributed.test_utils_test")


# gen_test


def test_gen_test_runs_the_coroutine_and_returns_its_result():
    @gen_test()
    async def test():
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    assert test().is_closed()


@pytest.mark.parametrize("number", [1, 2])
@gen_test()
async def test_gen_test_takes_fixtures_and_parameters(tmp_path, number):
    assert tmp_path.is_dir()
    assert number in (1, 2)


def test_gen_test_keeps_name_and_docstring():
    @gen_test()
    async def test_it():
        """A docstring."""

    assert (test_it.__name__, test_it.__doc__) == ("test_it", "A docstring.")


def test_gen_test_is_for_coroutine_functions_only():
    with pytest.raises(TypeError, match="gen_test is for coroutine functions"):
        gen_test()(inc)


def test_gen_test_raises_the_error_of_the_test():
    with pytest.raises(RuntimeError, match="hello!"):
        gen_test()(raising)()


async def raising():
    throws(None)


def test_a_test_can_skip_itself_in_gen_test():
    @gen_test()
    async def test():
        pytest.skip("for a reason")

    with pytest.raises(pytest.skip.Exception, match="for a reason"):
        test()


def test_gen_test_sets_the_configuration_for_the_duration_of_the_test():
    key = "distributed.comm.timeouts.connect"
    before = distributed.config.get(key)

    @gen_test(config={key: "1234s"})
    async def test():
        return distributed.config.get(key)

    assert test() == "1234s"
    assert distributed.config.get(key) == before


def test_gen_test_shows_at_the_timeout_where_each_task_was_waiting():
    async def inner():
        await asyncio.Event().wait()

    async def background():
        await inner()

    @gen_test(timeout=0.05)
    async def test():
        task = asyncio.create_task(background(), name="the-background-task")
        await asyncio.gather(task)

    with pytest.raises(TimeoutError, match=r"did not finish within 0\.05 s") as info:
        test()
    for part in ("the-background-task", "in test_gen_test_shows", "<locals>.inner", "Event.wait"):
        assert part in str(info.value)
    assert __file__ in str(info.value)


def test_gen_test_keeps_the_error_of_a_cancelled_test_as_the_cause():
    @gen_test(timeout=0.05)
    async def test():
        try:
            await asyncio.Event().wait()
        finally:
            throws(None)

    with pytest.raises(TimeoutError) as info:
        test()
    assert isinstance(info.value.__cause__, RuntimeError)


def test_gen_test_cancels_and_reports_tasks_that_do_not_end():
    left = []

    @gen_test()
    async def test():
        left.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))
        await asyncio.sleep(0)

    with pytest.raises(
        AssertionError, match=r"left tasks behind .*\n  forgotten:\n.*in Event\.wait"
    ):
        test()
    assert left[0].cancelled()


def test_gen_test_waits_for_tasks_to_end():
    left = []

    @gen_test()
    async def test():
        left.append(asyncio.create_task(asyncio.sleep(0.01, result="done")))

    test()
    assert left[0].result() == "done"


def test_gen_test_adds_a_note_about_remaining_tasks_to_a_failure():
    left = []

    @gen_test()
    async def test():
        left.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))
        throws(None)

    with pytest.raises(RuntimeError, match="hello!") as info:
        test()
    assert "forgotten" in "".join(info.value.__notes__)


def test_gen_test_closes_async_generators():
    closed = []

    async def generator():
        try:
            yield 1
        finally:
            closed.append(True)

    kept = generator()

    @gen_test()
    async def test():
        await anext(kept)

    test()
    assert closed


# captured_logger


def test_captured_logger_captures_messages_instead_of_its_handlers():
    handler = logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    try:
        with captured_logger(logger, propagate=False) as log:
            logger.info("for %s", "you")
    finally:
        logger.removeHandler(handler)
    assert log.getvalue() == "for you\n"
    assert handler.stream.getvalue() == ""


def test_captured_logger_accepts_a_name_and_a_level():
    with captured_logger(logger.name, level=logging.ERROR) as log:
        logger.warning("too low")
        logger.error("just right")
    assert log.getvalue() == "just right\n"


@pytest.mark.parametrize(("propagate", "seen"), [(True, 1), (None, 1), (False, 0)])
def test_captured_logger_propagates_if_configured(caplog, propagate, seen):
    with captured_logger(logger, propagate=propagate):
        logger.error("up there")
    assert len(caplog.records) == seen


def test_captured_logger_restores_the_logger_after_an_error():
    before = logger.level, logger.handlers[:], logger.propagate
    with contextlib.suppress(RuntimeError), captured_logger(logger, logging.DEBUG, propagate=False):
        throws(None)
    assert (logger.level, logger.handlers, logger.propagate) == before


# Example handlers


def test_inc():
    assert inc(1) == 2


def test_throws():
    with pytest.raises(RuntimeError, match="hello!"):
        throws(1)


# Connections


async def handle_comm(comm):
    await comm.close()


@contextlib.asynccontextmanager
async def listen_on(host):
    listener = await listen(f"tcp://{host}:0", handle_comm)
    try:
        yield listener
    finally:
        listener.stop()


def port_of(listener):
    return int(listener.contact_address.rpartition(":")[2])


@gen_test()
async def test_connecting_to_a_listener_succeeds():
    async with listen_on("127.0.0.1") as listener:
        await assert_can_connect(listener.contact_address)
        with pytest.raises(AssertionError, match="was established, but should fail"):
            await assert_cannot_connect(listener.contact_address)


@gen_test()
async def test_connecting_to_a_closed_port_fails():
    async with listen_on("127.0.0.1") as listener:
        address = listener.contact_address
    await assert_cannot_connect(address, timeout=0.1)
    with pytest.raises(OSError, match=address):
        await assert_can_connect(address, timeout=0.1)


@gen_test()
async def test_an_error_other_than_the_expected_one_is_raised():
    with pytest.raises(ValueError, match="nosuch"):
        await assert_cannot_connect("nosuch://127.0.0.1:1", exception_class=OSError)


@pytest.mark.parametrize(
    ("host", "check"),
    [
        ("", everywhere_4_6),
        ("0.0.0.0", everywhere_4),
        ("127.0.0.1", locally_4),
        pytest.param("[::]", everywhere_6, marks=needs_ipv6),
        pytest.param("[::1]", locally_6, marks=needs_ipv6),
    ],
)
@gen_test()
async def test_a_check_passes_for_a_listener_at_exactly_these_addresses(host, check):
    async with listen_on(host) as listener:
        await check(port_of(listener), timeout=0.3)


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "check"),
    [
        ("127.0.0.1", everywhere_4_6),
        ("", everywhere_4),
        ("", locally_4),
        ("[::1]", everywhere_4),
        ("[::1]", locally_4),
        ("0.0.0.0", everywhere_6),
        ("127.0.0.1", locally_6),
        ("", locally_6),
    ],
)
@gen_test()
async def test_a_check_fails_for_a_listener_at_other_addresses(host, check):
    async with listen_on(host) as listener:
        with pytest.raises((AssertionError, OSError), match="tcp://"):
            await check(port_of(listener), timeout=0.3)


# Processes


def test_popen_captures_the_output_of_the_process():
    with popen(["python", "-c", "print('up')"], capture_output=True) as process:
        assert process.stdout.readline() == b"up\n"


def test_the_standard_input_can_be_closed_inside_popen():
    code = "import sys; print(len(sys.stdin.read()))"
    with popen(["python", "-c", code], capture_output=True, stdin=subprocess.PIPE) as process:
        process.stdin.write(b"12345")
        process.stdin.close()
        assert process.stdout.readline() == b"5\n"


def test_popen_interrupts_the_process_at_the_end():
    # If the signal arrives between two calls, Python may notice it only after the second one.
    waits = "import time\nprint('up', flush=True)\nwhile True: time.sleep(0.05)"
    with popen(["python", "-c", waits], capture_output=True) as process:
        process.stdout.readline()
    assert process.returncode == -2


def test_popen_kills_a_process_that_ignores_sigint_and_raises():
    stubborn = "import signal, time; signal.signal(2, signal.SIG_IGN); print(1, flush=True)"
    with (
        pytest.raises(subprocess.TimeoutExpired),
        popen(
            ["python", "-c", f"{stubborn}; time.sleep(60)"],
            capture_output=True,
            terminate_timeout=0.1,
        ) as process,
    ):
        process.stdout.readline()
    assert process.returncode == -9


@pytest.mark.parametrize("capture_output", [True, False])
def test_popen_prints_the_output_of_a_failed_process(capsys, capture_output):
    fails = "import sys; sys.exit('no such luck')"
    with popen(["python", "-c", fails], capture_output=capture_output) as process:
        process.wait()
    assert "no such luck" in capsys.readouterr().out


def test_popen_prints_the_output_if_the_block_raises(capsys):
    def block():
        with popen(["python", "-c", "print('before that')"]) as process:
            process.wait()
            throws(None)

    with pytest.raises(RuntimeError, match="hello!"):
        block()
    assert "before that" in capsys.readouterr().out


def test_popen_does_not_print_the_output_of_a_successful_process(capsys):
    with popen(["python", "-c", "print('fine')"]) as process:
        process.wait()
    assert capsys.readouterr().out == ""


def test_popen_finds_a_command_in_the_directory_of_the_interpreter():
    name = os.path.basename(sys.executable)
    with popen([name, "-c", "import sys; print(sys.prefix)"], capture_output=True) as process:
        assert process.stdout.read().decode().strip() == sys.prefix


# Polling


def test_poll_for_calls_the_predicate_until_it_is_true():
    answers = iter([False, False, True])
    poll_for(lambda: next(answers), timeout=5, period=0)
    assert list(answers) == []


def test_poll_for_fails_at_the_timeout():
    with pytest.raises(AssertionError, match=r"did not come true within 0\.01 s"):
        poll_for(lambda: False, timeout=0.01, period=0)


def test_poll_for_calls_fail_func_at_the_timeout():
    with pytest.raises(RuntimeError, match="hello!"):
        poll_for(lambda: False, timeout=0, period=0, fail_func=lambda: throws(None))


@gen_test()
async def test_async_poll_for_does_not_block_the_loop():
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, event.set)
    await async_poll_for(event.is_set, timeout=5, period=0.001)


@gen_test()
async def test_async_poll_for_accepts_a_coroutine_function():
    answers = iter([False, True])

    async def predicate():
        return next(answers)

    await async_poll_for(predicate, timeout=5, period=0)
    assert list(answers) == []


@gen_test()
async def test_async_poll_for_fails_at_the_timeout():
    with pytest.raises(AssertionError, match="did not come true"):
        await async_poll_for(lambda: False, timeout=0.01, period=0.001)
