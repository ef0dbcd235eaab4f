"""Keep-alive: ending what waits for a peer whose process is stopped or whose event loop is wedged.

The kernel of a stopped process still acknowledges data, so the connection looks healthy.  Two peers
that agree upon the feature "keepalive" therefore exchange control messages
(:mod:`distributed.comm.control`), which an event loop answers without a task that reads:

``probe``
    From a side that waits for the peer: for the answer to a call, or until the peer accepts data.
``alive``
    The answer.  A side also sends it, once per interval, if it has held a message for long that no
    task reads: the probes behind that message are out of its sight.  Not at once, since the peer
    may have left with data that waits for this side to read.  The kernel of such a peer answers a
    sign of life by a reset, and drops the data.  It drops the data anyway after
    ``distributed.comm.timeouts.tcp``, so signs of life begin then.

Any byte that the peer sends or accepts counts as a sign of life as well.  If there is none for
``distributed.comm.keepalive.timeout`` after a probe, the connection ends with an error.

Comms that wait share one timer per event loop and interval.  A comm is put on its list when it
begins to wait, but not removed when the wait ends: the timer does that when it next expires.
Therefore, a call costs one attribute check, and the timer stops at most one interval after the last
wait.  No timer runs for a comm that waits for nothing.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from distributed.base.logs import get_logger
from distributed.comm.control import ControlledComm, common_handlers
from distributed.comm.handshake import Endpoint, register_feature
from distributed.comm.settings import settings

__all__ = ["FEATURE", "WatchfulComm"]

logger = get_logger(__name__)

#: The name of the feature in the handshake.  Its parameter is the interval, and the time after
#: which signs of life begin, in seconds.
FEATURE = "keepalive"
#: Maximum number of seconds that a peer may offer.
_MAX_SECONDS = 1e9
#: Minimum of the time limit, in intervals: a probe and its answer need one, and may come late.
_MIN_INTERVALS = 2


def _offer(comm: Endpoint) -> tuple[float, float] | None:
    return comm.configured.keepalive if comm.carries_controls else None


def _agree(ours: Any, theirs: Any) -> tuple[float, float]:
    if not isinstance(theirs, tuple | list) or len(theirs) != 2:
        raise ValueError(f"expected two numbers, got {theirs!r:.100}")
    for seconds in theirs:
        if type(seconds) not in (int, float) or not 0 < seconds <= _MAX_SECONDS:
            raise ValueError(f"expected a number of seconds, got {seconds!r:.100}")
    # A peer cannot make this side send more often than this side has configured.
    return max(ours[0], theirs[0]), max(ours[1], theirs[1])


register_feature(FEATURE, _offer, _agree)


class WatchfulComm(ControlledComm):
    """The part of a :class:`~distributed.comm.core.Comm` that notices a stopped peer."""

    features: Mapping[str, Any]
    #: Whether `watch_answer` has to be called before a read that awaits an answer.
    peer_unwatched: bool = False
    # The state of the keep-alive, once it was needed.
    _keepalive: KeepAlive | None = None

    def watch_answer(self) -> None:
        """Watch the peer while a task reads, because that read awaits an answer."""
        self.peer_unwatched = False
        self._kept_alive().start(answer=True)

    def watch_peer(self) -> None:
        """Watch the peer while written data waits; send signs of life while messages wait."""
        if FEATURE in self.features:
            self._kept_alive().start(answer=False)

    def _kept_alive(self) -> KeepAlive:
        keepalive = self._keepalive
        if keepalive is None:
            keepalive = self._keepalive = KeepAlive(self, *self.features[FEATURE])
        return keepalive

    @property
    def silence(self) -> TimeoutError | None:
        """The error for which this side has given the peer up; None if it has not."""
        return None if self._keepalive is None else self._keepalive.error

    def closed(self) -> bool:
        """See `Comm.closed`."""
        raise NotImplementedError

    @property
    def is_reading(self) -> bool:
        """See `Comm.is_reading`."""
        raise NotImplementedError

    @property
    def peer_address(self) -> str:
        """See `Comm.peer_address`."""
        raise NotImplementedError

    def is_writing(self) -> bool:
        """Return whether written data waits to be accepted by the system."""
        raise NotImplementedError

    def unread(self) -> object:
        """Return a value for the unread messages that hide control messages; None if none do.

        It changes when a task reads one of them.
        """
        raise NotImplementedError

    def progress(self) -> tuple[Any, ...]:
        """Return a value that changes when parts of a message are received, or waiting data sent.

        Data that the system accepts at once, such as a ping, does not show that the peer is alive.
        """
        raise NotImplementedError

    def give_up(self, error: TimeoutError) -> None:
        """Close the connection; reads and writes in progress raise a CommClosedError."""
        raise NotImplementedError


class KeepAlive:
    """The state of the keep-alive of one comm.

    Attributes
    ----------
    error
        The error for which this side has ended the connection; None if it has not.
    """

    # Invariant: `_listed` tells whether this is on the list of a timer.
    __slots__ = (
        "__weakref__",
        "_answered_at",
        "_awaits_answer",
        "_comm",
        "_delay",
        "_heard",
        "_hidden",
        "_interval",
        "_listed",
        "_progress",
        "_timeout",
        "_unanswered",
        "_unread",
        "error",
    )

    def __init__(self, comm: WatchfulComm, interval: float, delay: float) -> None:
        # The comm refers to this object.
        self._comm = weakref.ref(comm)
        self._interval = interval
        # Seconds for which a message is unread before signs of life begin.
        self._delay = delay
        minimum = _MIN_INTERVALS * interval
        self._timeout = max(settings().keepalive_timeout, minimum, delay + minimum)
        self._listed = False
        # Whether a task that reads awaits an answer.
        self._awaits_answer = False
        # What `WatchfulComm.progress` returned last.
        self._progress: tuple[Any, ...] = ()
        # Whether the peer has sent "alive" since the timer last expired.
        self._heard = False
        # Number of intervals since the first probe without a sign of life; None if there is none.
        self._unanswered: int | None = None
        # What `WatchfulComm.unread` returned last, and the number of intervals since it changed.
        self._unread: object = None
        self._hidden = 0
        # Time at which the last probe of the peer was answered.
        self._answered_at = float("-inf")
        self.error: TimeoutError | None = None

    def start(self, answer: bool) -> None:
        """Check the comm when the timer expires; *answer* tells whether a read awaits an answer."""
        if answer:
            self._awaits_answer = True
        comm = self._comm()
        if self._listed or comm is None:
            return
        self._listed = True
        self._heard = False
        self._unanswered = None
        self._progress = comm.progress()
        timers = _timers.setdefault(asyncio.get_running_loop(), {})
        timer = timers.get(self._interval)
        if timer is None:
            timer = timers[self._interval] = _Timer(self._interval, timers)
        timer.add(self)

    def check(self) -> bool:
        """Probe the peer, or give it up; return whether to check it again after the interval."""
        comm = self._comm()
        if comm is None or comm.closed():
            return False
        unread = comm.unread()
        self._hidden = self._hidden + 1 if unread == self._unread else 0
        self._unread = unread
        hidden = unread is not None
        if hidden and self._hidden * self._interval > self._delay:
            comm.post_control("alive")
        if not comm.is_reading:
            # The next read may not await an answer.
            self._awaits_answer = False
            comm.peer_unwatched = True
        if not (self._awaits_answer or comm.is_writing()):
            self._unanswered = None
            self._listed = hidden
            return hidden
        before, self._progress = self._progress, comm.progress()
        heard, self._heard = self._heard, False
        if hidden or heard or self._progress != before:
            self._unanswered = None
            return True
        # A late timer counts as one interval: this process was stopped or busy, not the peer.
        self._unanswered = 0 if self._unanswered is None else self._unanswered + 1
        silence = self._unanswered * self._interval
        if silence >= self._timeout:
            self.error = TimeoutError(
                f"{comm.peer_address} is connected, but has given no sign of life for "
                f"{silence:g} s ('distributed.comm.keepalive.timeout'); is its process stopped, or "
                "its event loop blocked?"
            )
            logger.warning("Closing %r: %s", comm, self.error, extra={"peer": comm.peer_address})
            comm.give_up(self.error)
            return False
        comm.post_control("probe")
        return True

    def answer(self) -> None:
        """Answer a probe, unless another one was answered just before."""
        comm = self._comm()
        now = asyncio.get_running_loop().time()
        if comm is not None and now - self._answered_at >= self._interval / 2:
            self._answered_at = now
            comm.post_control("alive")

    def hear(self) -> None:
        """Note a sign of life of the peer."""
        self._heard = True


class _Timer:
    """The timer of all comms of one event loop and interval that wait."""

    # Invariant: `_is_running` is true while `_watched` is not empty.  A comm that is freed leaves
    # `_watched` with its keep-alive.
    def __init__(self, interval: float, timers: dict[float, _Timer]) -> None:
        self._interval = interval
        self._timers = timers
        self._watched: WeakSet[KeepAlive] = WeakSet()
        self._is_running = False

    def add(self, keepalive: KeepAlive) -> None:
        self._watched.add(keepalive)
        if not self._is_running:
            self._is_running = True
            self._start()

    def _start(self) -> None:
        asyncio.get_running_loop().call_later(self._interval, self._expired)

    def _expired(self) -> None:
        watched = list(self._watched)
        for keepalive in watched:
            try:
                again = keepalive.check()
            except Exception:
                logger.exception("Cannot check whether a peer is alive")
                again = False
            if not again:
                self._watched.discard(keepalive)
        if self._watched:
            self._start()
        else:
            self._is_running = False
            del self._timers[self._interval]


# Event loop → interval in seconds → the timer that runs.
_timers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, _Timer]] = WeakKeyDictionary()


def _on_probe(comm: Any, args: tuple[Any, ...]) -> None:
    if FEATURE in comm.features:
        comm._kept_alive().answer()


def _on_alive(comm: Any, args: tuple[Any, ...]) -> None:
    if comm._keepalive is not None:
        comm._keepalive.hear()


common_handlers.update(probe=_on_probe, alive=_on_alive)
