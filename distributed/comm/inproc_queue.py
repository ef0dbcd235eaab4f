"""The queue that one direction of an ``inproc://`` connection consists of."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final


class QueueEmpty(Exception):
    """The queue has no item now."""


#: The last item of a queue that is finished.
EOF: Final = object()

_NO_DEFAULT: Final = object()


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    """Call *callback* in *loop*, unless that is closed; may be called from any thread."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        if not loop.is_closed():
            raise


class Queue:
    """An unbounded queue with one reader; writers may be in any thread.

    The reader may change from one event loop to another.

    Examples
    --------
    >>> queue = Queue()
    >>> queue.put_nowait("a")
    >>> queue.peek(), queue.get_nowait(), queue.peek("nothing")
    ('a', 'a', 'nothing')
    """

    # Items are taken in the reader's thread only.  There is no lock, because a comm's finalizer may
    # write at any statement.  Instead, a writer adds its item before it looks for a waiter, and a
    # reader sets its waiter before it looks for items: so one of them always sees the other.
    def __init__(self) -> None:
        #: Whether no more items will be read or written; the queue itself does not check it.
        self.finished = False
        # The items that are not read yet, oldest first.
        self._items: deque[Any] = deque()
        # The future of a `get` that has no item yet.  Only the reader's loop resolves it.
        self._waiter: asyncio.Future[Any] | None = None
        #: The function to call when the queue is finished, with the event loop to call it in.
        self.on_finish: tuple[asyncio.AbstractEventLoop, Callable[[], object]] | None = None

    def finish(self) -> None:
        """Add the last item, `EOF`; may be called from any thread."""
        self.finished = True
        self.put_nowait(EOF)
        on_finish, self.on_finish = self.on_finish, None
        if on_finish is not None:
            _call_soon(*on_finish)

    def get(self) -> asyncio.Future[Any]:
        """Return a future of the running loop for the next item; if cancelled, it takes none."""
        assert self._waiter is None or self._waiter.done(), "Only one reader allowed"
        waiter = asyncio.get_running_loop().create_future()
        self._waiter = waiter
        self._serve()
        return waiter

    def get_nowait(self) -> Any:
        """Remove and return the next item.

        Raises
        ------
        QueueEmpty
            If there is none.
        """
        try:
            return self._items.popleft()
        except IndexError:
            raise QueueEmpty from None

    def put_nowait(self, value: Any) -> None:
        """Add an item; may be called from any thread."""
        self._items.append(value)
        self._wake()

    put = put_nowait

    def peek(self, default: Any = _NO_DEFAULT) -> Any:
        """Return the next item without removing it.

        Raises
        ------
        QueueEmpty
            If there is none, and no *default*.
        """
        try:
            return self._items[0]
        except IndexError:
            if default is _NO_DEFAULT:
                raise QueueEmpty from None
            return default

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        loop = waiter.get_loop()
        if loop is asyncio._get_running_loop():
            self._serve()
        else:
            _call_soon(loop, self._serve)

    def _serve(self) -> None:
        """Give the next item to the waiter; called in the reader's thread."""
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self._items:
            # The future would keep the item until the next `get`.
            self._waiter = None
            waiter.set_result(self._items.popleft())
