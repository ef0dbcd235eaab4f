"""Acknowledged streams of messages: what a sender and a receiver tell each other.

The sender (:class:`~distributed.batched.BatchedSend`) keeps the messages that it has written until
the receiver (:meth:`Server.handle_stream <distributed.core.Server.handle_stream>`) acknowledges
them.  If the connection breaks, the sender starts again on a new one, learns which messages the
receiver has handled, and sends the others.  Both sides have to support this; they agree upon it as
the feature ``"acks"`` of the handshake, and use control messages (:mod:`distributed.comm.control`):

``open`` (session, first), ordered
    From the sender, before its first batch on a connection.  The next message of the session is
    message number *first*.
``opened`` (session, last, known)
    From the receiver, when it has come to ``open``.  It has handled the messages up to number
    *last*.  If *known* is false, it did not know the session.
``ack`` (session, last)
    From the receiver.  It has handled the messages up to number *last*.
``ask``, ordered
    From the sender, behind a batch: the receiver is to acknowledge now.

The messages of a session are numbered from 1.  A reader other than ``handle_stream`` has no handler
for ``open``, so the peer answers "unhandled", and the sender keeps nothing for that connection.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from distributed.comm.control import ControlError
from distributed.comm.handshake import Endpoint, register_feature

__all__ = ["FEATURE", "SentMessages", "parse_number", "parse_session"]

#: The name of the feature in the handshake.
FEATURE = "acks"
#: The version of the control messages that this module describes.
VERSION = 1

#: Size of the name of a session in bytes.
_SESSION_SIZE = 16
#: Maximum number of a message.
_MAX_NUMBER = 2**62


def _offer(comm: Endpoint) -> int | None:
    return VERSION if comm.configured.acknowledge and comm.carries_controls else None


def _agree(ours: Any, theirs: Any) -> int:
    for version in (ours, theirs):
        if type(version) is not int or not 1 <= version <= 1_000_000:
            raise ValueError(f"{version!r:.100} is not a version")
    return min(ours, theirs)


register_feature(FEATURE, _offer, _agree)


def parse_session(value: Any) -> bytes:
    """Return an argument of a control message that names a session.

    Raises
    ------
    ControlError
        If it does not.
    """
    if not isinstance(value, bytes) or len(value) != _SESSION_SIZE:
        raise ControlError(f"{value!r:.100} does not name a session")
    return value


def parse_number(value: Any) -> int:
    """Return an argument of a control message that is the number of a message, or 0.

    Raises
    ------
    ControlError
        If it is not.
    """
    if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
        raise ControlError(f"{value!r:.100} is not the number of a message")
    return value


class SentMessages:
    """The messages of a session that were written and are not acknowledged.

    Attributes
    ----------
    session
        The name of the session.
    first
        The number of the first message that is not acknowledged.
    count
        Number of messages that are kept.
    nbytes
        Their approximate size in bytes.
    unasked
        Approximate size in bytes of the batches since the receiver was asked to acknowledge.
    confirmed
        Whether the receiver has acknowledged anything, on this connection or an earlier one.

    Examples
    --------
    >>> sent = SentMessages()
    >>> sent.add(["a", "b"], 2)
    >>> sent.add(["c"], 1)
    >>> sent.acknowledge(1)
    >>> sent.first, sent.count, sent.nbytes
    (2, 2, 3)
    >>> sent.take()
    ['b', 'c']
    """

    # Invariants: `count` is the number of messages in `_batches` without the first `_done`, and
    # `nbytes` the sum of their sizes.  Message `first` has the index `_done` in the first batch.
    __slots__ = ("_batches", "_done", "confirmed", "count", "first", "nbytes", "session", "unasked")

    def __init__(self) -> None:
        self.session = os.urandom(_SESSION_SIZE)
        self.first = 1
        self.count = 0
        self.nbytes = 0
        self.unasked = 0
        self.confirmed = False
        # Each batch and its approximate size in bytes.
        self._batches: deque[tuple[list[Any], int]] = deque()
        # Number of messages of the first batch that are acknowledged.
        self._done = 0

    def add(self, batch: list[Any], nbytes: int) -> None:
        """Keep a batch that is about to be written."""
        self._batches.append((batch, nbytes))
        self.count += len(batch)
        self.nbytes += nbytes
        self.unasked += nbytes

    def withdraw(self) -> None:
        """Forget the last batch, which was not written."""
        if self._batches and self.count >= len(self._batches[-1][0]):
            batch, nbytes = self._batches.pop()
            self.count -= len(batch)
            self.nbytes -= nbytes

    def acknowledge(self, last: int) -> None:
        """Forget the messages up to number *last*.

        Raises
        ------
        ControlError
            If messages were acknowledged that were not written.
        """
        number = last - self.first + 1
        if number > self.count:
            raise ControlError(
                f"it acknowledges message {last:,}, but only {self.first + self.count - 1:,} "
                "messages were written"
            )
        if number <= 0:
            return
        self.first += number
        self.count -= number
        done = self._done + number
        batches = self._batches
        while batches and done >= len(batches[0][0]):
            batch, nbytes = batches.popleft()
            done -= len(batch)
            self.nbytes -= nbytes
        self._done = done

    def largest_batch(self) -> int:
        """Return the number of messages of the largest batch."""
        return max((len(batch) for batch, _ in self._batches), default=0)

    def take(self) -> list[Any]:
        """Remove and return the messages, in order; `first` is the number of the first one."""
        messages = [msg for batch, _ in self._batches for msg in batch][self._done :]
        self._batches.clear()
        self._done = self.count = self.nbytes = 0
        return messages
