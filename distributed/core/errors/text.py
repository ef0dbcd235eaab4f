"""Texts of exceptions, tracebacks and messages, of limited length and made without raising.

Only a `KeyboardInterrupt` or `SystemExit` is raised by these functions, since a signal may raise
them anywhere.
"""

from __future__ import annotations

import logging
import os
import reprlib
import socket
import sys
import traceback as tracebacks
from collections.abc import Callable
from itertools import islice
from types import TracebackType
from typing import Any

from distributed.base import config
from distributed.core.errors.frames import shorten

logger = logging.getLogger("distributed.core")

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


def type_name(obj: object) -> str:
    """Return the name of an object's type, with its module."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def safe_str(exc: BaseException) -> str:
    """Return ``str(exc)``, or a text that names the error if that raises."""
    return _safe(str, exc)


def safe_repr(exc: BaseException) -> str:
    """Return ``repr(exc)``, or a text that names the error if that raises."""
    return _safe(repr, exc)


def _safe(show: Callable[[object], str], exc: BaseException) -> str:
    try:
        return show(exc)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # noqa: BLE001  (any class may override these methods)
        return f"<{type_name(exc)} whose {show.__name__}() raises {type_name(e)}>"


class _Shown(reprlib.Repr):
    """Representations of plain values; other objects are shown by their type alone.

    A peer chooses the values, and the ``repr`` of an array with many axes may take minutes.
    """

    def __init__(self, limit: int):
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = limit
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 20

    def repr1(self, x: Any, level: int) -> str:
        cls = type(x)
        if cls in (str, bytes):
            shown = repr(x[: self.maxstring])
            return shown if len(x) <= self.maxstring else shown + "..."
        if cls is dict:
            if level <= 0:
                return "{...}"
            items = [
                f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
                for key, value in islice(x.items(), self.maxdict)
            ]
            return "{" + ", ".join(items + ["..."] * (len(x) > len(items))) + "}"
        if cls in (list, tuple, set, frozenset):
            return str(super().repr1(x, level))
        if cls in (int, float, bool, complex, type(None)):
            return repr(x)
        return f"<{type_name(x)}>"


def shown(value: object, limit: int) -> str:
    """Return a text for a value that a peer has sent, without calling code of a library.

    Parameters
    ----------
    value
        Any object.  Numbers, texts, bytes and collections are shown; others by their type alone.
    limit
        Maximum number of characters.

    Examples
    --------
    >>> from fractions import Fraction
    >>> shown({"op": ["x", Fraction(1)]}, 100)
    "{'op': ['x', <fractions.Fraction>]}"
    """
    return _Shown(limit).repr(value)[:limit]


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
