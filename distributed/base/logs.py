"""The loggers of this package, whose lines peers can neither forge nor multiply.

`get_logger` returns the logger that ``logging.getLogger`` would return, with one filter:

* Each argument of a line is rendered by :mod:`distributed.base.text`: as one printable line, of
  limited length.  So is each exception, apart from the line breaks of a traceback.
* A line that is logged again by the same statement is counted.  So are all lines of a statement
  that logged ``distributed.admin.log-limit`` characters within `INTERVAL` seconds.  A line with the
  count follows when another line is logged or the interval ends.

A statement that logs is identified by its file and line number, so their number is limited.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import numbers
import os
import threading
import time
from functools import cached_property
from typing import Any

from distributed.base import config
from distributed.base.log_setup import give_way
from distributed.base.text import max_shown_length, shown, shown_exception, shown_repr

__all__ = ["INTERVAL", "flush", "get_logger"]

#: Seconds within which equal lines of a statement are counted, and after which the count is logged.
INTERVAL = 10.0

#: Maximum number of characters of an argument, as a multiple of those shown of a peer's value: the
#: text of an error may contain several.
_ARGUMENT = 4

_LIMIT_KEY = "distributed.admin.log-limit"
_DEFAULT_LIMIT = 100_000
_ERROR_KEY = "distributed.admin.max-error-length"
_DEFAULT_ERROR_LENGTH = 10_000


class _Limits:
    """Limits of what is logged, each in characters; infinite for none."""

    def __init__(self) -> None:
        self.statement = _size(_LIMIT_KEY, _DEFAULT_LIMIT)
        self.exception = _size(_ERROR_KEY, _DEFAULT_ERROR_LENGTH)


def _size(key: str, default: int) -> float:
    try:
        value = config.get_bytes(key)
    except (LookupError, TypeError, ValueError):
        # Logging the line matters more than this setting.
        return default
    return float("inf") if value is None else value


_limits = config.Section("distributed.admin", _Limits)


class _Argument:
    """An argument of a log line, rendered once, although each handler formats the line."""

    def __init__(self, value: Any) -> None:
        self._value = value

    @cached_property
    def _str(self) -> str:
        return shown(self._value, _ARGUMENT * max_shown_length())

    @cached_property
    def _repr(self) -> str:
        return shown_repr(self._value, _ARGUMENT * max_shown_length())

    def __str__(self) -> str:
        return self._str

    def __repr__(self) -> str:
        return self._repr


class _Statement:
    """What one statement has logged since `begin`."""

    __slots__ = ("begin", "hidden", "last", "same", "spent")

    def __init__(self, now: float) -> None:
        self.begin = now
        # Number of characters rendered, also of lines that were only counted.
        self.spent = 0
        # Logger, level and text of the line that was logged last.  A record would keep the objects
        # of its arguments and of its traceback alive.
        self.last: tuple[str, int, str] | None = None
        # Number of records since then that were only counted, and whether all have its text.
        self.hidden = 0
        self.same = True

    def count(self) -> logging.LogRecord | None:
        """Return a record of the number of records that were only counted, and reset it."""
        if self.last is None or not self.hidden:
            return None
        name, level, text = self.last
        how = "… repeated %d times: %s" if self.same else "… and %d more lines like this one: %s"
        what = shown(text.partition("\n")[0], max_shown_length())
        args = (self.hidden, what)
        self.hidden, self.same = 0, True
        result = logging.LogRecord(name, level, __file__, 0, how, args, None)
        result.__dict__["is_count"] = True
        return result


class _Guard(logging.Filter):
    """The filter of all loggers of this package.  The module's docstring has its rules."""

    # `_statements` and its values change with `_lock` held only.  Rendering and logging, which may
    # call any code, happen without it.
    def __init__(self) -> None:
        super().__init__()
        self._statements: dict[tuple[str, int], _Statement] = {}
        # Reentrant: the garbage collector may call a finalizer that logs at any time.
        self._lock = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        if "is_count" in record.__dict__:
            return True
        if not give_way(record):
            return False
        key = record.pathname, record.lineno
        now = time.monotonic()
        limits = _limits()
        count = None
        with self._lock:
            statement = self._statements.get(key)
            if statement is None or now - statement.begin >= INTERVAL:
                count = None if statement is None else statement.count()
                statement = self._statements[key] = _Statement(now)
            is_over = statement.spent >= limits.statement
            if is_over:
                self._hide(key, statement, False)
        _log(count)
        if is_over:
            return False
        text = _render(record, limits)
        with self._lock:
            statement.spent += len(text)
            if statement.last is not None and statement.last[2] == text:
                self._hide(key, statement, True)
                return False
            count = statement.count()
            statement.last = record.name, record.levelno, text
        _log(count)
        return True

    def _hide(self, key: tuple[str, int], statement: _Statement, same: bool) -> None:
        """Count a record instead of logging it."""
        statement.same = statement.same and same
        statement.hidden += 1
        if statement.hidden == 1:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                # The count is logged with the next line of this statement, or at exit.
                return
            loop.call_later(INTERVAL, self._flush, key)

    def _flush(self, key: tuple[str, int]) -> None:
        with self._lock:
            statement = self._statements.get(key)
            count = None if statement is None else statement.count()
        _log(count)

    def forget(self) -> None:
        """Forget all lines in a forked process, where another thread may have held the lock."""
        self._lock = threading.RLock()
        self._statements = {}

    def flush(self) -> None:
        with self._lock:
            counts = [statement.count() for statement in self._statements.values()]
            self._statements.clear()
        for count in counts:
            _log(count)


def _log(record: logging.LogRecord | None) -> None:
    if record is not None:
        logging.getLogger(record.name).handle(record)


def _render(record: logging.LogRecord, limits: _Limits) -> str:
    """Make a record show its arguments and its exception safely, and return its text."""
    args = record.args
    if isinstance(args, tuple):
        record.args = tuple(
            arg if isinstance(arg, numbers.Number) else _Argument(arg) for arg in args
        )
    text = record.getMessage()
    safe = shown(text, 2 * _ARGUMENT * max_shown_length())
    if safe != text:
        # A message that was formatted before it was logged.
        record.msg, record.args, text = safe, (), safe
    exc = record.exc_info[1] if record.exc_info else None
    if exc is not None:
        # A formatter uses this text instead of making its own.
        length = 2**62 if limits.exception == float("inf") else int(limits.exception)
        record.exc_text = shown_exception(exc, length)
        text = f"{text}\n{record.exc_text}"
    return text


_guard = _Guard()


def get_logger(name: str) -> logging.Logger:
    """Return the logger of this name, which renders its lines safely and counts repeated ones.

    Examples
    --------
    >>> logger = get_logger("distributed.example")
    >>> logger.warning("no handler for %s", "x\\nERROR forged")
    """
    logger = logging.getLogger(name)
    logger.addFilter(_guard)
    return logger


def flush() -> None:
    """Log all counts now, and forget which lines were logged before."""
    _guard.flush()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_guard.forget)


def _flush_at_exit() -> None:
    # A program, or its test runner, may have closed the streams of its handlers.  `logging` ignores
    # that, too, when it closes the handlers at exit.
    logging.raiseExceptions = False
    flush()


# Before the handlers are closed, since `logging` registered its own function earlier.
atexit.register(_flush_at_exit)
