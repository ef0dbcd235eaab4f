"""Send snapshots of a server's figures to the browsers that watch.

One task makes the snapshots, and one snapshot serves all watchers.  The task runs only while there
is a watcher, so an unwatched server does no work.  A watcher that reads slowly misses snapshots:
it gets the newest one when it has read the previous one, and no queue grows.

The messages are server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html):

* ``hello``: first, the version of the page;
* ``describe``: then, and when the operations change, the result of ``Server.describe()``;
* ``figures``: then, at each interval, the result of `distributed.core.figures.figures`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from distributed.base.logs import get_logger
from distributed.base.text import shown_repr
from distributed.core.figures import figures
from distributed.core.server import Server
from distributed.telemetry.loop_delay import measuring

__all__ = ["Source", "Updates", "to_json"]

logger = get_logger(__name__)

#: Milliseconds before a browser connects again.
_RETRY = 1000


def to_json(value: Any) -> bytes:
    """Return a value as JSON; what JSON has no form for is shown as text.

    Examples
    --------
    >>> to_json({"a": {1}})
    b'{"a":"{1}"}'
    """
    return json.dumps(value, default=shown_repr, separators=(",", ":")).encode()


def _event(name: str, value: Any, head: str = "") -> bytes:
    return f"{head}event: {name}\ndata: ".encode() + to_json(value) + b"\n\n"


class Source:
    """The events of one server.

    Parameters
    ----------
    server
        The server.
    version
        The version of the page.  A browser that learns of another version loads the page again.
    """

    def __init__(self, server: Server, version: str) -> None:
        self._server = server
        #: The event that comes first.
        self.hello = _event("hello", {"version": version}, f"retry: {_RETRY}\n")
        # The operations of the last description, and its event; looking at signatures is slow.
        self._described: tuple[Any, ...] | None = None
        self._description = b""

    def figures(self) -> bytes:
        """Return the event of a new snapshot."""
        return _event("figures", figures(self._server))

    def description(self) -> bytes:
        """Return the event of the description; the same object until the operations change."""
        server = self._server
        described = (
            dict(server.handlers),
            dict(server.stream_handlers),
            frozenset(server.blocked_handlers),
        )
        if described != self._described:
            is_secret = "describe" in server.blocked_handlers
            self._description = _event("describe", {} if is_secret else server.describe())
            self._described = described
        return self._description


class Updates:
    """The browsers that watch one server.

    Parameters
    ----------
    source
        The events.
    interval
        Seconds between two snapshots.
    max_watchers
        Maximum number of watchers; None for no maximum.
    timeout
        Maximum seconds for a watcher to receive an event.
    """

    # `_task` makes snapshots while `_watchers` is not empty, and sets `_latest` to a new number and
    # the newest events.  Then it resolves `_next`, for which the watchers wait, and replaces it.
    def __init__(
        self, source: Source, interval: float, max_watchers: int | None, timeout: float
    ) -> None:
        self._source = source
        self._interval = interval
        self._max_watchers = max_watchers
        self._timeout = timeout
        self._watchers: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._latest: tuple[int, bytes, bytes] | None = None
        self._next: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def watchers(self) -> int:
        """The number of watchers."""
        return len(self._watchers)

    @property
    def is_full(self) -> bool:
        """Whether another watcher is refused."""
        limit = self._max_watchers
        return self._closed or (limit is not None and len(self._watchers) >= limit)

    def watch(self, send: Callable[[bytes], Awaitable[None]]) -> asyncio.Task[None]:
        """Send events to a new watcher, until the task that this returns is cancelled.

        Parameters
        ----------
        send
            Sends bytes to the watcher, and returns when these have left.

        Returns
        -------
        asyncio.Task
            It raises TimeoutError if the watcher does not read, or the error of *send*.
        """
        task = asyncio.create_task(self._watch(send))
        self._watchers.add(task)
        task.add_done_callback(self._leave)
        if self._task is None:
            self._next = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._make_snapshots())
        return task

    async def close(self) -> None:
        """End all watchers."""
        self._closed = True
        tasks = [*self._watchers]
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _watch(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        # Not wait_for(): up to Python 3.11 it may ignore that this task is cancelled.
        async with asyncio.timeout(self._timeout):
            await send(self._source.hello)
        number, known = 0, b""
        while True:
            while self._latest is None or self._latest[0] == number:
                assert self._next is not None
                # The future has other waiters: a watcher that is cancelled must not cancel it.
                await asyncio.shield(self._next)
            number, description, events = self._latest
            if description is not known:
                known, events = description, description + events
            async with asyncio.timeout(self._timeout):
                await send(events)

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._watchers.discard(task)
        if not self._watchers and self._task is not None:
            self._task.cancel()
            self._task = self._latest = None

    async def _make_snapshots(self) -> None:
        # Measuring the delay of the event loop needs a timer, so it ends with the last watcher.
        with measuring():
            await self._repeat_snapshots()

    async def _repeat_snapshots(self) -> None:
        number = 0
        while True:
            number += 1
            changed = self._next
            assert changed is not None
            try:
                description, events = self._source.description(), self._source.figures()
            except Exception as exc:  # noqa: BLE001
                # The watchers end with this error, and the next one starts a new task.
                changed.set_exception(exc)
                return
            self._latest = number, description, events
            self._next = asyncio.get_running_loop().create_future()
            changed.set_result(None)
            await asyncio.sleep(self._interval)
