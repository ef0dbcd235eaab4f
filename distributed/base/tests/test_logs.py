"""The loggers of this package: safe lines, and repeated lines that are counted."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import weakref

import pytest

from distributed.base import config, logs
from distributed.tests.environments import run_here
from distributed.utils_test import captured_logger, gen_test

NAME = "distributed.test.logs"
LIMIT = "distributed.admin.log-limit"

logger = logs.get_logger(NAME)


def report(text, *args, **kwargs):
    """Log from one statement."""
    logger.warning(text, *args, **kwargs)


def test_arguments_are_rendered_and_numbers_are_not():
    with captured_logger(NAME) as log:
        logger.info("%s %r %5.1f %d %.3s", "a\nb", ["\x1b"], 1.25, 7, "abcdef")
    assert log.getvalue() == "a\\nb ['\\x1b']   1.2 7 abc\n"


def test_a_text_that_was_formatted_before_is_escaped_too():
    with captured_logger(NAME) as log:
        logger.info("a\nb 100 %")
    assert log.getvalue() == "a\\nb 100 %\n"


def test_the_text_and_the_notes_of_an_exception_are_escaped():
    exc = ValueError("bad\nFORGED")
    exc.add_note("FORGED\x1b")
    with captured_logger(NAME) as log:
        logger.error("failed", exc_info=exc)
    assert log.getvalue() == "failed\nValueError: bad\\nFORGED\n  FORGED\\x1b\n"


def test_a_repeated_line_is_counted():
    with captured_logger(NAME) as log:
        for _ in range(1000):
            report("%s failed", "it")
        report("%s failed", "something else")
    assert log.getvalue().splitlines() == [
        "it failed",
        "… repeated 999 times: it failed",
        "something else failed",
    ]


def test_equal_lines_of_two_statements_are_logged():
    with captured_logger(NAME) as log:
        logger.info("again")
        logger.info("again")
    assert log.getvalue() == "again\nagain\n"


def test_different_lines_of_a_statement_are_counted_above_the_limit():
    with config.set({LIMIT: 1000}), captured_logger(NAME) as log:
        for i in range(10_000):
            report("line %d", i)
    lines = log.getvalue().splitlines()
    assert lines[0] == "line 0"
    assert 100 < len(lines) < 200
    assert lines[-1] == f"… and {10_000 - len(lines) + 1} more lines like this one: {lines[-2]}"


def test_without_a_limit_only_equal_lines_are_counted():
    with config.set({LIMIT: None}), captured_logger(NAME) as log:
        for i in range(10_000):
            report("line %d", i)
    assert log.getvalue().count("\n") == 10_000


def test_at_the_default_limit_no_statement_logs_more_than_200_kb():
    with captured_logger(NAME) as log:
        for i in range(1000):
            report("%s", f"{i} " + "x" * 10_000)
    assert 50_000 < len(log.getvalue()) < 200_000


@pytest.mark.parametrize("value", ["abc", [1]])
def test_lines_are_logged_also_if_the_limit_is_invalid(value):
    with config.set({LIMIT: value}), captured_logger(NAME) as log:
        report("a line")
    assert log.getvalue() == "a line\n"


def test_a_line_is_logged_again_after_the_interval(monkeypatch):
    monkeypatch.setattr(logs, "INTERVAL", 0)
    with captured_logger(NAME) as log:
        report("a line")
        report("a line")
    assert log.getvalue() == "a line\na line\n"


@gen_test()
async def test_the_count_is_logged_when_the_interval_ends(monkeypatch):
    monkeypatch.setattr(logs, "INTERVAL", 0.1)
    counted = asyncio.Event()

    class Notice(logging.Handler):
        def emit(self, record):
            if "repeated" in record.getMessage():
                counted.set()

    with captured_logger(NAME) as log:
        logger.addHandler(Notice())
        report("a line")
        report("a line")
        # Even a slow machine logs two lines within the interval, or logs the line again.
        if log.getvalue().count("a line") == 1:
            await counted.wait()
            assert "… repeated 1 times: a line" in log.getvalue()


def test_nothing_that_was_logged_is_kept():
    class Large(Exception):
        pass

    def fail():
        exc = Large("x")
        report("%s", exc, exc_info=exc)
        return weakref.ref(exc)

    # pytest keeps the records that it captures.
    with captured_logger(NAME, propagate=False):
        ref = fail()
        gc.collect()
        assert ref() is None


def test_rendering_an_argument_may_log():
    class Logs:
        def __str__(self):
            report("from within")
            return "outer"

    with captured_logger(NAME) as log:
        report("%s", Logs())
    assert log.getvalue() == "from within\nouter\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_logs_although_a_thread_was_logging():
    with logs._guard._lock:
        child = os.fork()
        if child == 0:
            report("from the child")
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_counts_are_logged_at_exit_and_a_closed_stream_is_not_an_error():
    result = run_here("""
        import io, logging, sys
        from distributed.base.logs import get_logger
        logger = get_logger("distributed.test")
        closed = io.StringIO()
        logger.addHandler(logging.StreamHandler(closed))
        logger.addHandler(logging.StreamHandler(sys.stdout))
        for _ in range(3):
            logger.warning("again")
        closed.close()
    """)
    assert result.stdout.splitlines() == ["again", "… repeated 2 times: again"]
    assert result.stderr == ""


def test_a_logger_has_one_filter_however_often_it_is_requested():
    assert logs.get_logger(NAME).filters == logs.get_logger(NAME).filters
    assert len(logs.get_logger(NAME).filters) == 1
