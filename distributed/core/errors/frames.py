"""The frames of a traceback that are useful to the user of a server.

A traceback of a handler begins with frames of this core and of the event loop.  In a call of
another server, more of them stand between the user's frames; and roles such as a worker add
their own.  :func:`shorten` leaves these frames out, except those after the user's last frame: they
show where the error was raised.  The log of the server has them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import tornado

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

#: The folders whose files are this core.
_CORE = frozenset(
    os.path.join(_PACKAGE, *folder.split("/"))
    for folder in (
        *("base", "comm", "core", "core/errors", "protocol", "scratch", "security", "telemetry"),
    )
)

#: Beginnings of the file names of the event loop.
_LOOP = tuple(
    os.path.dirname(os.path.abspath(module.__file__ or "")) + os.sep
    for module in (asyncio, concurrent.futures, tornado)
)

#: Beginnings of the file names of roles: the original's modules, which may stand on this core.
_ROLES = tuple(
    os.path.join(_PACKAGE, name)
    for name in (
        *("_async_taskgroup.py", "_concurrent_futures_thread.py", "batched.py", "client.py"),
        *("nanny.py", "scheduler", "threadpoolexecutor.py", "utils.py", "worker"),
    )
)


def _is_core(filename: str) -> bool:
    return filename.startswith(_LOOP) or os.path.dirname(filename) in _CORE


def _is_role(filename: str) -> bool:
    return filename.startswith(_ROLES)


def frames_of(tb: TracebackType | None) -> list[TracebackType]:
    """Return the entries of a traceback, the outermost first."""
    entries = []
    while tb is not None:
        entries.append(tb)
        tb = tb.tb_next
    return entries


def traceback_of(entries: Sequence[TracebackType]) -> TracebackType | None:
    """Return a traceback with these entries."""
    tb: TracebackType | None = None
    for entry in reversed(entries):
        if entry.tb_next is not tb:
            entry = TracebackType(tb, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
        tb = entry
    return tb


def shorten(tb: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of the event loop, of this core and of roles.

    Those after the user's last frame are kept.  Without a frame of the user, the frames of roles
    are kept; without these, the last frame alone.

    Examples
    --------
    >>> def handler():
    ...     return 1 / 0
    >>> async def call():
    ...     return handler()
    >>> try:
    ...     asyncio.run(call())
    ... except ZeroDivisionError as e:
    ...     kept = frames_of(shorten(e.__traceback__))
    >>> [entry.tb_frame.f_code.co_name for entry in kept]
    ['<module>', 'call', 'handler']
    """
    entries = frames_of(tb)
    names = [entry.tb_frame.f_code.co_filename for entry in entries]
    core = [_is_core(name) for name in names]
    for skipped in ([a or _is_role(b) for a, b in zip(core, names, strict=True)], core):
        if not all(skipped):
            last = len(skipped) - 1 - skipped[::-1].index(False)
            kept = [e for i, e in enumerate(entries) if i > last or not skipped[i]]
            return traceback_of(kept)
    return traceback_of(entries[-1:])


def without_middle(entries: Sequence[Any], n: int) -> list[Any]:
    """Return about *n* entries of a traceback, a third of them from its beginning."""
    if n >= len(entries):
        return list(entries)
    n = max(n, 1)
    head = n // 3
    return [*entries[:head], *entries[len(entries) - (n - head) :]]
