"""Texts of exceptions, tracebacks and messages, of limited length and made without raising.

Only a `KeyboardInterrupt` or `SystemExit` is raised by these functions, since a signal may raise
them anywhere.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback as tracebacks
from types import TracebackType

from distributed.base import config
from distributed.base.logs import get_logger
from distributed.base.text import safely
from distributed.core.errors.frames import shorten

logger = get_logger("distributed.core")

#: Configuration key of the maximum number of characters in a text.
MAX_ERROR_LENGTH_KEY = "distributed.admin.max-error-length"
DEFAULT_MAX_ERROR_LENGTH = 10_000


def traceback_note(text: str, origin: str) -> str:
    """Return a note for an exception that shows its traceback in another process."""
    where = f", from {origin}" if origin else ""
    return f"Remote traceback (most recent call last){where}:\n{text.rstrip()}"


def this_process() -> str:
    """Return a name of this process that is understood on other hosts."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def format_traceback(tb: TracebackType | None, limit: int) -> str:
    """Return the user's frames of a traceback as Python prints them; an empty text for None."""
    try:
        return bounded("".join(tracebacks.format_tb(shorten(tb))), limit)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # noqa: BLE001  (unreadable source, no memory, ...)
        return f"  (the traceback could not be formatted: {safe_repr(e)})\n"


def notes_of(exc: BaseException) -> list[str]:
    """Return the notes of an exception (PEP 678)."""
    notes = getattr(exc, "__notes__", None)
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def safe_str(exc: BaseException) -> str:
    """Return ``str(exc)``, or a text that names the error if that raises."""
    return safely(str, exc)


def safe_repr(exc: BaseException) -> str:
    """Return ``repr(exc)``, or a text that names the error if that raises."""
    return safely(repr, exc)


def bounded(text: str, limit: int) -> str:
    """Return a text without its middle if it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    gap = f"\n… {len(text) - limit} characters left out, see {MAX_ERROR_LENGTH_KEY} …\n"
    room = max(limit - len(gap), 0)
    # The last frames, where the error was raised, get the larger part.
    head = room // 3
    return (text[:head] + gap + text[len(text) - (room - head) :])[-limit:] if limit else ""


def max_error_length() -> int:
    """Return the maximum number of characters of a message or traceback."""
    try:
        value = config.get_bytes(MAX_ERROR_LENGTH_KEY)
    except (TypeError, ValueError):
        # Reporting the exception matters more than this setting.
        logger.warning(
            "%s is not a size; using %d",
            MAX_ERROR_LENGTH_KEY,
            DEFAULT_MAX_ERROR_LENGTH,
            exc_info=True,
        )
        return DEFAULT_MAX_ERROR_LENGTH
    return sys.maxsize if value is None else value
