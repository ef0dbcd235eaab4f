"""The queue between Tornado, which receives websocket messages, and the comm that reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cached_property

from tornado.iostream import StreamClosedError

from distributed.base.short_queue import AnyQueue, ShortQueue, grown
from distributed.base.text import shown
from distributed.comm.control import Controls, control_content
from distributed.comm.websocket_rules import Violation

__all__ = ["Inbox"]

#: Maximum number of received bytes that are not read yet, before receiving is paused.
_READ_AHEAD = 256 * 1024
#: Bytes of memory for a websocket message in addition to its data.
_OVERHEAD = 64


class Inbox:
    """The websocket messages that were received and are not read yet."""

    def __init__(self) -> None:
        #: Maximum number of unread bytes.  It is 0 until the handshake is done, so that each
        #: message is received only when it is read.
        self.room = 0
        #: The rule that the peer broke, because of which this side has closed the connection.
        self.violation: Violation | None = None
        #: The peer's close code and reason, None if it sent none.
        self.close_code: int | None = None
        self.close_reason: str | None = None
        # Oldest first.
        self._messages: AnyQueue[str | bytes] = ShortQueue()
        # Memory of `_messages`, in bytes.
        self._size = 0
        # Number of websocket messages of text in `_messages`.
        self._texts = 0
        #: Not None while a write waits: the peer's next message may then exceed `room`.  The
        #: function takes the unread websocket messages, their size in bytes, and how many of them
        #: are text.  It returns whether they begin with a complete message, or an invalid one.
        self.is_complete: Callable[[Sequence[str | bytes], int, int], bool] | None = None
        # Whether the write is done, and only the rest of the message is received.
        self._ahead_ends = False
        # Whether no more messages are accepted.
        self._ended = False
        #: The control messages of the comm; None if the peer sends none.
        self.controls: Controls | None = None
        # The reader waits for it while the inbox is empty.
        self._reader: asyncio.Future[None] | None = None
        # Tornado waits for it, and does not receive, while there are too many messages.
        self._paused: asyncio.Future[None] | None = None
        #: Called when the connection ends other than by `drop`; None for no callback.
        self.on_end: Callable[[], object] | None = None

    @cached_property
    def gone(self) -> asyncio.Event:
        """The event that is set once Tornado has released the connection."""
        # It takes 0.8 kB, so it is made at the first use.
        return asyncio.Event()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: str | bytes) -> asyncio.Future[None] | None:
        """Add a message; return the future to await before receiving the next one, if any."""
        if self._ended:
            return None
        if isinstance(message, str) and self.controls and self.controls.receive_early(message):
            return None
        self._messages.append(message)
        self._messages = grown(self._messages)
        self._size += len(message) + _OVERHEAD
        if type(message) is str:
            self._texts += 1
            self.receive_controls()
        self._wake(self._reader)
        if self._size <= self.room or not self._holds_enough():
            return None
        if self.controls is not None:
            self.controls.note_unread()
        self._paused = asyncio.get_running_loop().create_future()
        return self._paused

    def receive_controls(self) -> None:
        """Let the control messages take effect that are the oldest unread messages."""
        controls, messages = self.controls, self._messages
        if controls is None or not controls.watching:
            return
        while messages and isinstance(message := messages[0], str):
            if not controls.receive(control_content(message), in_order=False):
                return
            if self._ended:
                # The message was invalid, and the connection is closed.
                return
            messages.popleft()
            self._texts -= 1
            self._size -= len(message) + _OVERHEAD
        if not messages:
            self._wake(self._paused)

    async def get(self) -> tuple[str | bytes, bool]:
        """Return the next message, and whether this call waited for it.

        Raises
        ------
        StreamClosedError
            If the connection has ended and all messages were read.
        """
        waited = False
        while not self._messages:
            if self._ended:
                raise StreamClosedError
            self._wake(self._paused)
            waited = True
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._messages.popleft()
        if type(message) is str:
            self._texts -= 1
        self._size -= len(message) + _OVERHEAD
        if self._size < self.room // 2:
            self._wake(self._paused)
        return message, waited

    @property
    def is_paused(self) -> bool:
        """Whether receiving is paused, because there are too many unread bytes."""
        return self._paused is not None and not self._paused.done()

    def open(self) -> None:
        """Allow messages to be received before they are read."""
        self.room = _READ_AHEAD
        self._wake(self._paused)

    def _holds_enough(self) -> bool:
        """Return whether `room` limits what is received now."""
        if self.is_complete is not None:
            size = self._size - _OVERHEAD * len(self._messages)
            if not self.is_complete(self._messages, size, self._texts):
                return False
            if self._ahead_ends:
                self.is_complete = None
        return True

    def start_ahead(self, is_complete: Callable[[Sequence[str | bytes], int, int], bool]) -> None:
        """Begin to receive until *is_complete* returns true for the unread websocket messages."""
        self.is_complete = is_complete
        self._ahead_ends = False
        self.continue_ahead()

    def continue_ahead(self) -> None:
        """Receive again if the reader has taken a complete message and a write still waits."""
        if self.is_complete is None:
            return
        if self._ahead_ends:
            self.is_complete = None
        elif not self._holds_enough():
            self._wake(self._paused)

    def stop_ahead(self) -> None:
        """Limit the unread bytes by `room` again, after the message that has begun."""
        self._ahead_ends = True
        if not self._messages:
            self.is_complete = None

    def end(self) -> None:
        """Accept no more messages."""
        self._ended = True
        self._wake(self._reader)
        self._wake(self._paused)
        if self.controls is not None:
            self.controls.end()
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()

    def drop(self) -> None:
        """Accept no more messages, and discard the unread ones."""
        self._messages.clear()
        self._texts = 0
        self.on_end = None
        self.end()

    def closing(self) -> str:
        """Return the peer's close code and reason, for an error."""
        return (
            f"closed with code {self.close_code} (RFC 6455, section 7.4.1): "
            f"{shown(self.close_reason or 'no reason given')}"
        )

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
