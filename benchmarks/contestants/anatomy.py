"""What one process does between being woken for a message and having sent its own."""

from __future__ import annotations

import selectors
import socket
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any


class Watch:
    """Notes, while it is entered, how long the process takes for each message, and for what.

    "Work" is what is done between the return of the event loop's ``select`` and the first ``send``
    after it, without what the system takes to receive. What it takes to note that itself, about
    half a microsecond, is included.
    """

    # State: `_woken` is when there was something to receive for the first time since the last
    # message was sent, or 0 once this one is being sent; `_receiving` and `_sending` are the times
    # in these system calls since then. `_originals` is what was replaced by what notes.

    def __init__(self) -> None:
        self._woken = 0.0
        self._receiving = 0.0
        self._sending = 0.0
        self._notes: dict[str, list[float]] = {"work": [], "receiving": [], "sending": []}
        self._originals: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Watch:
        self._replace(selectors.DefaultSelector, "select", self._selecting)
        for name in ("recv", "recv_into"):
            self._replace(socket.socket, name, self._receives)
        for name in ("send", "sendmsg"):
            self._replace(socket.socket, name, self._sends)
        return self

    def __exit__(self, *exc: object) -> None:
        while self._originals:
            owner, name, original = self._originals.pop()
            setattr(owner, name, original)

    def medians(self) -> dict[str, float]:
        """Seconds per message: in ``recv``, in ``send``, and of work besides."""
        return {name: statistics.median(notes) for name, notes in self._notes.items()}

    def _replace(self, owner: Any, name: str, noting: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        self._originals.append((owner, name, original))
        setattr(owner, name, noting(original))

    def _selecting(self, select: Callable[..., Any]) -> Callable[..., Any]:
        def selecting(*args: Any) -> Any:
            ready = select(*args)
            if ready and not self._woken:
                self._notes["sending"].append(self._sending)
                self._woken = perf_counter()
                self._receiving = self._sending = 0.0
            return ready

        return selecting

    def _receives(self, receive: Callable[..., Any]) -> Callable[..., Any]:
        def receiving(*args: Any) -> Any:
            begin = perf_counter()
            try:
                return receive(*args)
            finally:
                self._receiving += perf_counter() - begin

        return receiving

    def _sends(self, send: Callable[..., Any]) -> Callable[..., Any]:
        def sending(*args: Any) -> Any:
            begin = perf_counter()
            if self._woken:
                self._notes["work"].append(begin - self._woken - self._receiving)
                self._notes["receiving"].append(self._receiving)
                self._woken = 0.0
            try:
                return send(*args)
            finally:
                self._sending += perf_counter() - begin

        return sending
