"""Pings for idle websockets: one timer for all of an event loop.

Pings keep proxies from closing an idle connection.  They expect no answer: a peer that is busy or
does not read sends none, although it is still connected.  The kernel detects a dead peer, as on
any TCP connection, since it does not acknowledge the pings.

A websocket that has sent something since the last turn gets no ping.  With a timer for each, a
server with thousands of idle connections would wake hundreds of times per second.
"""

from __future__ import annotations

import asyncio
from typing import Protocol
from weakref import WeakKeyDictionary

__all__ = ["Pinged", "Turns", "turns_of_loop"]

#: Maximum number of websockets that get a ping in one event-loop iteration.
_TOGETHER = 100


class Pinged(Protocol):
    """A websocket that can send pings."""

    def is_closing(self) -> bool:
        """Return whether this side or the peer is closing it."""

    def bytes_sent(self) -> int | None:
        """Return the number of bytes sent so far; None if data waits to be sent."""

    def send_ping(self) -> None:
        """Send a ping."""


class Turns:
    """The turns in which websockets of one event loop get pings.

    A websocket that has sent nothing since the last turn gets one.

    Parameters
    ----------
    interval
        Seconds between two turns.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        # Each websocket with the number of bytes that it had sent at its last turn.
        self._sent: dict[Pinged, int | None] = {}
        # Those whose turn is now.
        self._due: list[Pinged] = []
        # Calls `_turn` or `_continue`; None while there are no websockets.
        self._timer: asyncio.Handle | None = None

    def add(self, websocket: Pinged) -> None:
        """Include an open websocket of the running event loop."""
        self._sent[websocket] = websocket.bytes_sent()
        if self._timer is None:
            self._schedule()

    def discard(self, websocket: Pinged) -> None:
        """Leave a websocket out from now on; do nothing if it is not included."""
        self._sent.pop(websocket, None)
        if not self._sent and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._due = []

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._turn)

    def _turn(self) -> None:
        self._due = list(self._sent)
        self._continue()

    def _continue(self) -> None:
        together, self._due = self._due[-_TOGETHER:], self._due[:-_TOGETHER]
        for websocket in together:
            if websocket not in self._sent:
                continue
            if websocket.is_closing():
                del self._sent[websocket]
                continue
            sent = websocket.bytes_sent()
            # Data that waits to be sent keeps the connection busy as well as a ping.
            if sent is not None and sent == self._sent[websocket]:
                websocket.send_ping()
                sent = websocket.bytes_sent()
            if websocket in self._sent:
                self._sent[websocket] = sent
        if self._due:
            self._timer = asyncio.get_running_loop().call_soon(self._continue)
        elif self._sent:
            self._schedule()
        else:
            self._timer = None


#: event loop → seconds between turns → the turns
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, Turns]] = WeakKeyDictionary()


def turns_of_loop(interval: float) -> Turns:
    """Return the turns of the running event loop, *interval* seconds apart."""
    by_interval = _turns.setdefault(asyncio.get_running_loop(), {})
    turns = by_interval.get(interval)
    if turns is None:
        turns = by_interval[interval] = Turns(interval)
    return turns
