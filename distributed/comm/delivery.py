"""The sending side of an acknowledged stream; see :mod:`distributed.comm.acknowledgements`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from distributed.base.logs import get_logger
from distributed.comm.acknowledgements import (
    FEATURE,
    SentMessages,
    parse_number,
    parse_session,
)
from distributed.comm.control import ControlError, Controls
from distributed.comm.core import Comm

__all__ = ["Delivery"]

logger = get_logger(__name__)

#: Number of bytes after which the peer is asked to acknowledge at once, so that large messages are
#: not kept for long.
ASK_AFTER_BYTES = 4_000_000

#: Number of messages of a batch that needs no limit.
LARGE_BATCH = 10_000

#: Maximum number of seconds that a sender that closes waits for acknowledgements, and the same
#: while it is not known whether the peer acknowledges.
CLOSING_SECONDS, UNCONFIRMED_SECONDS = 30.0, 5.0

#: Maximum number of bytes that are kept while it is not known whether the peer acknowledges.
UNCONFIRMED_BYTES = 64_000_000


class Delivery:
    """What a sender knows about the delivery of its messages, over several connections.

    The sender calls `open` on each new comm, `sent.add` before it writes a batch, and `failed` if
    that fails.  If `sent.unasked` exceeds `ASK_AFTER_BYTES`, it calls `ask`.  When a comm has
    closed, it puts the messages of `take_back` in front of those that wait.

    Parameters
    ----------
    notify
        Called when the peer has acknowledged messages and when the connection has ended.

    Attributes
    ----------
    sent
        The messages that are not acknowledged; None if the peer does not acknowledge any.
    is_open
        Whether a session is open, and its connection has not ended.
    batch_limit
        Maximum number of messages of the next batch; None for no limit.  When a connection breaks,
        it becomes a quarter of the largest batch, and each acknowledgement doubles it.  Otherwise a
        batch that is larger than what a bad connection carries would never arrive.
    """

    # `_doubt` is not empty from `take_back` until the peer has told which messages it has handled.
    # It has the number `sent.first`, and `sent` is empty then.
    def __init__(self, notify: Callable[[], None]) -> None:
        self.sent: SentMessages | None = None
        self.is_open = False
        self.batch_limit: int | None = None
        self._notify = notify
        # The messages that may have been handled.  The sender has them, too, in front of others.
        self._doubt: list[Any] = []
        # Number of messages of `_doubt` whose write has ended.
        self._doubt_written = 0
        # Number of messages whose write has failed.
        self._incomplete = 0
        # The control messages of the comm that the session was opened on, while it is open.
        self._controls: Controls | None = None
        # The number of messages of `_doubt` that were handled; not done until the peer tells.
        self._answer: asyncio.Future[int] | None = None
        # Woken by acknowledgements and by the end of the connection; None while no task waits.
        self._change: asyncio.Future[None] | None = None

    def forget(self) -> None:
        """Forget all messages: what was written counts as delivered."""
        self.sent = None
        self._doubt = []
        self._incomplete = 0

    def awaits(self) -> bool:
        """Return whether the peer acknowledges messages, and has not acknowledged all of them."""
        return self.sent is not None and self.sent.confirmed and self.sent.count > 0

    def patience(self) -> float:
        """Return the maximum number of seconds to wait for acknowledgements before closing."""
        return CLOSING_SECONDS if self.awaits() else UNCONFIRMED_SECONDS

    # Opening the session

    async def open(self, comm: Comm, waiting: list[Any]) -> int:
        """Open the session on a new comm.

        Parameters
        ----------
        comm
            The comm.
        waiting
            The messages that the sender will write, in order.

        Returns
        -------
        int
            Number of messages at the beginning of *waiting* that the peer has handled already.  To
            learn it, the method waits for the peer, but only if there is any doubt.
        """
        self._leave()
        controls = comm.controls
        if controls is None or FEATURE not in comm.features:
            # The next connection may acknowledge again, but not these messages.
            self.forget()
            return 0
        doubt = self._doubt
        if self.sent is None or not _begins_with(waiting, doubt):
            # A new session, also because the caller has changed the waiting messages.
            self.sent = SentMessages()
            doubt = self._doubt = []
        self.sent.unasked = 0
        self._answer = asyncio.get_running_loop().create_future()
        self._controls = controls
        self.is_open = True
        controls.handlers["opened"] = self._opened
        controls.handlers["ack"] = self._acknowledged
        controls.handlers["unhandled"] = self._unhandled
        controls.watch(self._ended)
        comm.post_control("open", self.sent.session, self.sent.first, ordered=True)
        if not doubt:
            return 0
        handled = await self._answer
        return handled if _begins_with(waiting, doubt) else 0

    def _leave(self) -> None:
        """Ignore the control messages, and the end, of the connection before this one."""
        self.is_open = False
        controls, self._controls = self._controls, None
        if controls is not None:
            for kind in ("opened", "ack", "unhandled"):
                controls.handlers.pop(kind, None)
            controls.unwatch()

    def _opened(self, args: tuple[Any, ...]) -> None:
        if len(args) != 3 or type(args[2]) is not bool:
            raise ControlError("'opened' has three arguments, and the last one is true or false")
        last, known = parse_number(args[1]), args[2]
        sent = self._session(args[0])
        if sent is None:
            return
        doubt, self._doubt = self._doubt, []
        if doubt:
            handled = max(last - sent.first + 1, 0)
            if handled > len(doubt):
                raise ControlError(f"message {last:,} was not sent, and cannot have been handled")
            if not known:
                logger.warning(
                    "The receiver of a stream was replaced, or has forgotten the stream: %d "
                    "messages are sent again, although they may have been handled",
                    len(doubt),
                )
            sent.first += handled
            self._tell(handled)
        else:
            sent.acknowledge(last)
        sent.confirmed = True
        self._changed()

    def _unhandled(self, args: tuple[Any, ...]) -> None:
        """Forget the messages: the peer reads the comm in a way that does not acknowledge."""
        if len(args) < 2 or args[0] != "open":
            return
        sent = self._session(args[1])
        if sent is not None:
            # If an earlier connection acknowledged, these messages are not delivered.
            self._tell(0 if sent.confirmed else self._doubt_written)
            self.forget()
            self._changed()

    def _tell(self, handled: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(handled)

    def _session(self, name: Any) -> SentMessages | None:
        """Return `sent` if it belongs to the session of this name."""
        name = parse_session(name)
        sent = self.sent
        return sent if sent is not None and sent.session == name else None

    # Messages

    def ask(self, comm: Comm) -> None:
        """Ask the peer to acknowledge at once."""
        sent = self.sent
        if sent is None:
            return
        sent.unasked = 0
        if sent.confirmed:
            comm.post_control("ask", ordered=True)
        elif sent.nbytes > UNCONFIRMED_BYTES:
            self.forget()

    def failed(self, batch: list[Any], comm: Comm) -> int:
        """Note the failure of a write to *comm*.

        Returns
        -------
        int
            Number of messages of the batch that are kept, because the peer may have read them.
        """
        sent = self.sent
        if sent is None:
            return 0
        if comm.closed():
            self._incomplete = min(len(batch), sent.count)
            return len(batch)
        sent.withdraw()
        return 0

    def _acknowledged(self, args: tuple[Any, ...]) -> None:
        if len(args) != 2:
            raise ControlError("'ack' has two arguments")
        last = parse_number(args[1])
        sent = self._session(args[0])
        if sent is not None:
            sent.acknowledge(last)
            sent.confirmed = True
            if self.batch_limit is not None:
                limit = 2 * self.batch_limit
                self.batch_limit = limit if limit < LARGE_BATCH else None
            self._changed()

    def take_back(self) -> list[Any]:
        """Return the messages that were not acknowledged on a comm that is closed now."""
        sent = self.sent
        if sent is None or not sent.count:
            return []
        self.batch_limit = max(1, sent.largest_batch() // 4)
        messages = sent.take()
        self._doubt = list(messages)
        self._doubt_written = len(messages) - self._incomplete
        self._incomplete = 0
        return messages

    # Waiting

    def _ended(self) -> None:
        # Controls and this object refer to each other.
        self._leave()
        # There is no answer: nothing is written to this comm any more.
        self._tell(0)
        self._changed()

    def _changed(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)
        self._notify()

    async def change(self, timeout: float) -> None:
        """Wait until `notify` is called, for at most *timeout* seconds."""
        if self._change is None or self._change.done():
            self._change = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._change}, timeout=timeout)


def _begins_with(messages: list[Any], first: list[Any]) -> bool:
    return len(first) <= len(messages) and all(
        a is b for a, b in zip(first, messages, strict=False)
    )
