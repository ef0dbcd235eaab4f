"""The time that a process spends on a message: in ``recv``, in ``send``, and between them."""

from __future__ import annotations

import selectors
import socket
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any


class MessageTimer:
    """A context manager that measures the parts of the time for each message of this process.

    "Work" is the time between the return of the event loop's ``select`` and the first ``send``
    after it, without the time in ``recv``. It includes about half a microsecond for measuring.
    """

    def __init__(self) -> None:
        # when the first bytes since the last sent message became readable; 0 while sending
        self._woken = 0.0
        # seconds in these system calls since then
        self._receiving = 0.0
        self._sending = 0.0
        self._times: dict[str, list[float]] = {"work": [], "receiving": [], "sending": []}
        # (owner, name, function) of the functions that are wrapped, to restore them
        self._originals: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> MessageTimer:
        self._wrap(selectors.DefaultSelector, "select", self._selecting)
        for name in ("recv", "recv_into"):
            self._wrap(socket.socket, name, self._receives)
        for name in ("send", "sendmsg"):
            self._wrap(socket.socket, name, self._sends)
        return self

    def __exit__(self, *exc: object) -> None:
        while self._originals:
            owner, name, original = self._originals.pop()
            setattr(owner, name, original)

    def medians(self) -> dict[str, float]:
        """Return the median seconds per message: in ``recv``, in ``send``, and of work."""
        return {name: statistics.median(times) for name, times in self._times.items()}

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        self._originals.append((owner, name, original))
        setattr(owner, name, wrapper(original))

    def _selecting(self, select: Callable[..., Any]) -> Callable[..., Any]:
        def selecting(*args: Any) -> Any:
            ready = select(*args)
            if ready and not self._woken:
                self._times["sending"].append(self._sending)
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
                self._times["work"].append(begin - self._woken - self._receiving)
                self._times["receiving"].append(self._receiving)
                self._woken = 0.0
            try:
                return send(*args)
            finally:
                self._sending += perf_counter() - begin

        return sending
