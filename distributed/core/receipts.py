"""The receiving side of acknowledged streams; see :mod:`distributed.comm.acknowledgements`.

A server remembers for each *session*, a sequence of messages over any number of connections, how
many messages it has handled.  A message counts as handled once its handler was called, whether or
not that raised an error.  One connection at a time belongs to a session: if the sender has opened a
new one, no more messages of the old one are handled.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from operator import length_hint
from time import monotonic
from typing import Any

from distributed.base import config
from distributed.comm.acknowledgements import FEATURE, parse_number, parse_session
from distributed.comm.control import ControlError
from distributed.comm.core import Comm

#: Maximum number of messages that are handled before they are acknowledged together.
ACKNOWLEDGED_TOGETHER = 4096
#: Maximum number of seconds before a message that was handled is acknowledged.
ACKNOWLEDGED_AFTER = 2.0


class Session:
    """The number of messages that were handled, and the stream that receives more.

    Attributes
    ----------
    name
        The name that the sender chose.
    handled
        The number of the last message that was handled before the current batch of `receipts`.
    receipts
        Those of the stream that the session receives; None while there is no connection.
    ended_at
        The time since which there is no connection.
    """

    __slots__ = ("ended_at", "handled", "name", "receipts")

    def __init__(self, name: bytes, handled: int) -> None:
        self.name = name
        self.handled = handled
        self.receipts: Receipts | None = None
        self.ended_at = 0.0


class Sessions:
    """The sessions that one server remembers.

    Sessions without a connection are forgotten after ``distributed.comm.batched.session-timeout``,
    and the oldest ones if there are more than ``distributed.comm.batched.max-sessions``.
    """

    # A session is in `_sessions` if it is remembered, and also in `_ended`, in the order of
    # `ended_at`, if it has no connection.
    def __init__(self) -> None:
        self._sessions: dict[bytes, Session] = {}
        self._ended: OrderedDict[bytes, Session] = OrderedDict()
        self._limit = config.get_int("distributed.comm.batched.max-sessions")
        self._timeout = config.get_timedelta("distributed.comm.batched.session-timeout")

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, name: bytes, first: int) -> tuple[Session, bool]:
        """Return the session of this name, and whether it was known.

        Parameters
        ----------
        name
            The name of the session.
        first
            The number of the next message that the sender would send.
        """
        self._forget()
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = Session(name, first - 1)
            return session, False
        self._ended.pop(name, None)
        if session.receipts is not None:
            session.receipts.leave()
        # The sender has given up earlier messages if it does not offer the next one.
        session.handled = max(session.handled, first - 1)
        return session, True

    def end(self, session: Session) -> None:
        """Remember a session that has no connection any more."""
        session.receipts = None
        session.ended_at = monotonic()
        self._ended[session.name] = session

    def discard(self, session: Session) -> None:
        """Forget a session whose sender has opened another one on the same connection."""
        session.receipts = None
        del self._sessions[session.name]

    def _forget(self) -> None:
        """Forget the sessions that ended too long ago, and the oldest of too many."""
        ended = self._ended
        while ended:
            session = next(iter(ended.values()))
            too_many = self._limit is not None and len(ended) > self._limit
            too_old = self._timeout is not None and monotonic() - session.ended_at > self._timeout
            if not too_many and not too_old:
                return
            del ended[session.name], self._sessions[session.name]


class Receipts:
    """The acknowledgements of one stream that a server receives.

    Attributes
    ----------
    batch, size
        The iterator over the batch that is being handled, and the number of its messages.
    left
        Whether the sender has opened the session on another connection.
    """

    def __init__(self, comm: Comm, sessions: Sessions) -> None:
        self._comm = comm
        self._sessions = sessions
        # None until the sender opens one.
        self._session: Session | None = None
        # Whether the session was known; None once the sender was told.
        self._known: bool | None = None
        # Number of messages that were handled and are not acknowledged.
        self._unreported = 0
        # Runs while there is something to report later.
        self._timer: asyncio.TimerHandle | None = None
        self.batch: Iterator[Any] | None = None
        self.size = 0
        self.left = False
        assert comm.controls is not None
        comm.controls.handlers["open"] = self._open
        comm.controls.handlers["ask"] = self._ask

    def _open(self, args: tuple[Any, ...]) -> None:
        if len(args) != 2:
            raise ControlError("'open' has two arguments")
        name, first = parse_session(args[0]), parse_number(args[1])
        if first < 1:
            raise ControlError("the first message of a session has number 1")
        if self._session is not None:
            if self._session.name == name:
                raise ControlError("the session is open already")
            # A peer gets one session remembered per connection.
            self._sessions.discard(self._session)
        self._session, self._known = self._sessions.open(name, first)
        self._session.receipts = self
        self._unreported = 0
        self._report()

    def _ask(self, args: tuple[Any, ...]) -> None:
        self._report()

    def _handled(self) -> int:
        """Return the number of the last message of the session that was handled."""
        assert self._session is not None
        begun = 0 if self.batch is None else self.size - length_hint(self.batch)
        return self._session.handled + begun

    def end_batch(self) -> None:
        """Count the messages of a batch that was handled."""
        self.batch = None
        session = self._session
        if session is None:
            return
        session.handled += self.size
        self._unreported += self.size
        if self._unreported >= ACKNOWLEDGED_TOGETHER:
            self._report()
        elif self._timer is None:
            self._report_later()

    def _report_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(ACKNOWLEDGED_AFTER, self._report)

    def _report(self) -> None:
        """Tell the sender how many messages were handled."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        session = self._session
        if session is None:
            return
        if self._known is None:
            sent = self._comm.post_control("ack", session.name, self._handled())
        else:
            sent = self._comm.post_control("opened", session.name, self._handled(), self._known)
        if sent:
            self._known = None
            self._unreported = 0
        elif not self._comm.closed():
            # The peer has not received earlier data.
            self._report_later()

    def _stop(self) -> Session | None:
        """Count the messages of an incomplete batch, and release the session."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        session = self._session
        if session is not None:
            session.handled = self._handled()
            self._session = None
        return session

    def leave(self) -> None:
        """Handle no more messages of this connection, since the session has another one."""
        self._stop()
        self.left = True
        self._comm.abort()

    def close(self) -> None:
        """Acknowledge what was handled, at the end of the stream, before its comm closes."""
        if self._unreported or self._known is not None or self.batch is not None:
            self._report()
        session = self._stop()
        if session is not None:
            self._sessions.end(session)
        handlers = self._comm.controls.handlers if self._comm.controls is not None else {}
        # They refer to this object, which refers to the comm.
        for kind in ("open", "ask"):
            handlers.pop(kind, None)


def receipts_for(comm: Comm, sessions: Sessions) -> Receipts | None:
    """Return the receipts of the stream on *comm*; None if the peer wants none."""
    if comm.features.get(FEATURE) is None or comm.controls is None:
        return None
    return Receipts(comm, sessions)
