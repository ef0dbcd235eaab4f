"""One-way streams of messages: read them from a comm and call their handlers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from distributed.comm.core import Comm, CommClosedError

logger = logging.getLogger(__name__)


class StreamServer(Protocol):
    """The attributes of a server that :class:`Streams` uses."""

    stream_handlers: dict[str, Callable[..., Any]]
    _event_finished: asyncio.Event

    @property
    def _name_in_messages(self) -> str: ...

    def _cancels_current_task(self) -> bool: ...


class Streams:
    """The streams that one server receives."""

    def __init__(self, server: StreamServer):
        self._server = server
        # The comms on which a stream waits for its next message.
        self._idle: set[Comm] = set()

    async def handle(self, comm: Comm, extra: Mapping[str, Any] | None = None) -> None:
        """Call stream handlers with the messages from *comm* until the stream ends; close *comm*.

        See ``Server.handle_stream``.
        """
        server = self._server
        extra = dict(extra or {})
        comm.name = comm.name or "stream"
        logger.debug("Starting stream from %s to %s", comm.peer_address, server._name_in_messages)
        try:
            # Not `while not comm.closed()`: messages received before the end are still read.
            while True:
                self._idle.add(comm)
                try:
                    msgs = await comm.read()
                finally:
                    self._idle.discard(comm)
                for msg in msgs if isinstance(msgs, tuple | list) else (msgs,):
                    op = msg.pop("op", None) if isinstance(msg, dict) else None
                    handler = server.stream_handlers.get(op) if isinstance(op, str) else None
                    if handler is None or op == "close-stream":
                        if self._ends_stream(comm, op, msg):
                            return
                        continue
                    try:
                        result = handler(**extra, **msg) if extra else handler(**msg)
                        if result is None or not asyncio.iscoroutine(result):
                            continue
                        await result
                    except (Exception, asyncio.CancelledError) as exc:
                        if isinstance(exc, asyncio.CancelledError) and (
                            server._cancels_current_task()
                        ):
                            raise
                        logger.exception(
                            "Stream handler of op %s in %s failed on a message from %s",
                            op,
                            server._name_in_messages,
                            comm.peer_address,
                        )
                    if server._event_finished.is_set():
                        # The handler of this message has closed the server.
                        return
                # Release the memory of these messages before the next one arrives.
                msgs = msg = result = None
        except CommClosedError as exc:
            logger.debug(
                "Stream from %s to %s ended: %s", comm.peer_address, server._name_in_messages, exc
            )
        finally:
            await comm.close()

    def _ends_stream(self, comm: Comm, op: Any, msg: Any) -> bool:
        """Return whether a message without a handler ends the stream; log it if it does not."""
        name = self._server._name_in_messages
        if op == "close-stream":
            logger.debug("Stream from %s to %s was closed", comm.peer_address, name)
            return True
        # "OK" answers the request that turned this comm into a stream.
        if not (isinstance(msg, str) and msg == "OK"):
            logger.error(
                "%s has no stream handler for op %.500r in the stream from %s, and ignores %.500r",
                name,
                op,
                comm.peer_address,
                msg,
            )
        return False

    def abort_idle(self) -> None:
        """End the streams that wait for a message, without calling any handler."""
        for comm in list(self._idle):
            comm.abort()
