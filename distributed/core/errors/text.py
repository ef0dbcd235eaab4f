"""What an exception says, in a bounded number of characters, whatever its methods do.

An exception is reported when something has gone wrong already: its ``str`` or ``repr`` may raise,
its message may fill the memory, its traceback may have ten thousand frames.  The functions here
never raise and never return more than they are asked for.  They know nothing of messages or
pickles.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback as tracebacks
from types import TracebackType

from distributed.base import config

logger = logging.getLogger(__name__)

MAX_ERROR_LENGTH_KEY = "distributed.admin.max-error-length"
DEFAULT_MAX_ERROR_LENGTH = 10_000


def traceback_note(text: str, origin: str) -> str:
    """Return the note that shows a traceback of another process where the error is printed."""
    where = f", from {origin}" if origin else ""
    return f"Remote traceback (most recent call last){where}:\n{text.rstrip()}"


def this_process() -> str:
    """Name this process for readers elsewhere."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def format_traceback(tb: TracebackType | None, limit: int) -> str:
    """Return the frames of a traceback as Python prints them; nothing for None."""
    try:
        return bounded("".join(tracebacks.format_tb(tb)), limit)
    except Exception as e:  # noqa: BLE001  (the source files, or memory, or the stack)
        return f"  (the traceback could not be formatted: {safe_repr(e)})\n"


def notes_of(exc: BaseException) -> list[str]:
    """Return the notes on an exception, PEP 678."""
    notes = getattr(exc, "__notes__", None)
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def type_name(obj: object) -> str:
    """Name the type of an object with its module."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def safe_str(exc: BaseException) -> str:
    """Return ``str(exc)``, or what can be said where that raises."""
    try:
        return str(exc)
    except Exception as e:  # noqa: BLE001  (a method of anybody's)
        return f"<{type_name(exc)} whose str() raises {type_name(e)}>"


def safe_repr(exc: BaseException) -> str:
    """Return ``repr(exc)``, or what can be said where that raises."""
    try:
        return repr(exc)
    except Exception as e:  # noqa: BLE001  (a method of anybody's)
        return f"<{type_name(exc)} whose repr() raises {type_name(e)}>"


def bounded(text: str, limit: int) -> str:
    """Leave out the middle of a text that is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    gap = f"\n… {len(text) - limit} characters left out, see {MAX_ERROR_LENGTH_KEY} …\n"
    room = max(limit - len(gap), 0)
    # The last frames are where it happened.
    head = room // 3
    return (text[:head] + gap + text[len(text) - (room - head) :])[-limit:] if limit else ""


def max_error_length() -> int:
    """Return how many characters of a message or traceback are reported."""
    try:
        value = config.get_bytes(MAX_ERROR_LENGTH_KEY)
    except (TypeError, ValueError):
        # The error that is being reported matters more than this one.
        logger.warning("Using %d for a length", DEFAULT_MAX_ERROR_LENGTH, exc_info=True)
        return DEFAULT_MAX_ERROR_LENGTH
    return sys.maxsize if value is None else value
