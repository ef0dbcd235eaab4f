"""What a server tells the service manager that started it (sd_notify(3)).

The manager receives the messages as datagrams at the Unix domain socket that the environment
variable ``NOTIFY_SOCKET`` names.  Without that variable, all functions do nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from distributed.base.logs import get_logger

__all__ = ["notify", "watched"]

logger = get_logger("distributed.core")


def notify(*assignments: str) -> bool:
    """Send *assignments*, such as ``"READY=1"``, to the service manager; return whether it did.

    An error is logged: a server that cannot reach its manager still serves its callers.
    """
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return False
    if name[0] not in "/@" or not hasattr(socket, "AF_UNIX"):
        logger.warning("NOTIFY_SOCKET=%s is not supported: it must be a path or an @name", name)
        return False
    # "@" stands for the null character before an abstract name.
    target = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            # The manager may be too busy to read; the event loop must not wait for it.
            sock.setblocking(False)
            sock.sendto("\n".join(assignments).encode(), target)
    except OSError as exc:
        logger.warning("Cannot send %s to NOTIFY_SOCKET=%s: %s", assignments[0], name, exc)
        return False
    return True


def _watchdog_interval() -> float | None:
    """Return the seconds within which the manager expects a sign of life, or None for no limit."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        # It is meant for the parent process.
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() and int(text) > 0 else None


@contextmanager
def watched() -> Iterator[None]:
    """Show the service manager that the event loop runs, if it wants to know (``WatchdogSec=``)."""
    interval = _watchdog_interval()
    if interval is None:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def tell() -> None:
        nonlocal timer
        notify("WATCHDOG=1")
        timer = loop.call_later(interval / 2, tell)

    tell()
    try:
        yield
    finally:
        timer.cancel()
