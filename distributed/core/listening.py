"""The addresses at which a server listens: bind them, in order, also before the loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Protocol

from tornado.ioloop import IOLoop

from distributed.base import config
from distributed.base.event_loop import asyncio_loop_of
from distributed.base.logs import get_logger
from distributed.comm import listen, unparse_host_port
from distributed.comm.core import Listener

logger = get_logger("distributed.core")


class ListeningServer(Protocol):
    """The attributes of a server that :class:`Listeners` uses."""

    id: str
    deserialize: bool

    @property
    def io_loop(self) -> IOLoop: ...

    @property
    def _is_open(self) -> bool: ...

    def handle_comm(self, comm: Any) -> Any: ...

    async def _answer_stranger(self, msg: Any) -> dict[str, Any]: ...


class Listening:
    """An awaitable that ends when an address is bound, or raises the error of binding it.

    The address is bound as soon as the event loop runs, whether or not this object is awaited.
    If it is not awaited, an error is logged.
    """

    def __init__(self, bind: Callable[[], Any], server: ListeningServer, what: str):
        self._bind = bind
        # A description of the action, for the log.
        self._what = what
        # The task that runs `_bind`; None until the loop runs.
        self._task: asyncio.Task[None] | None = None
        # Whether the caller gets the error, so that it is not logged.
        self._awaited = False
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio_loop_of(server.io_loop).call_soon(self._begin)
        else:
            # At once, so that addresses are bound in the order of the calls.
            self._begin()

    def _begin(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = asyncio.create_task(self._bind())
            self._task.add_done_callback(self._done)
        return self._task

    def __await__(self) -> Generator[Any, None, None]:
        self._awaited = True
        return self._begin().__await__()

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None and not self._awaited:
            logger.error("%s failed", self._what, exc_info=task.exception())


class Listeners:
    """The listeners of one server."""

    # A task is in `_binding` from its start until its address is bound or stop() cancels it.
    def __init__(self, server: ListeningServer):
        self._server = server
        # In the order in which they were bound.
        self.bound: list[Listener] = []
        # What listen() has returned.
        self.requested: list[Listening] = []
        # Held while an address is bound, so that addresses are bound one after the other.
        self._lock = asyncio.Lock()
        # The tasks of _bind().
        self._binding: set[asyncio.Task[Any]] = set()

    def listen(self, addr: str, **kwargs: Any) -> Listening:
        """Listen at *addr*; *kwargs* are passed to :func:`distributed.comm.listen`."""
        what = f"{self._server.id}: listening at {addr}"
        listening = Listening(partial(self._bind, addr, kwargs), self._server, what)
        self.requested.append(listening)
        return listening

    async def _bind(self, addr: str, kwargs: dict[str, Any]) -> None:
        server = self._server
        task = asyncio.current_task()
        assert task is not None
        if config.get_bool("distributed.comm.auth.allow-health"):
            kwargs = {"answer_stranger": server._answer_stranger, **kwargs}
        self._binding.add(task)
        try:
            async with self._lock:
                if not server._is_open:
                    raise RuntimeError(f"cannot listen at {addr}: {server.id} is closed")
                self.bound.append(
                    await listen(addr, server.handle_comm, deserialize=server.deserialize, **kwargs)
                )
        except asyncio.CancelledError:
            if task in self._binding:
                raise
            raise RuntimeError(f"cannot listen at {addr}: {server.id} was stopped") from None
        finally:
            self._binding.discard(task)

    def leave_inherited(self) -> None:
        """Stop listening at the sockets that another process holds open for the next server."""
        for listener in self.bound:
            if getattr(listener, "is_inherited", False):
                listener.stop()

    def stop(self) -> None:
        """Stop listening; calls of :meth:`listen` that are in progress raise RuntimeError."""
        for task in self._binding:
            task.cancel()
        self._binding.clear()
        for listener in self.bound:
            listener.stop()


def address_to_listen_at(port_or_addr: int | str | tuple[str, int], default_host: str) -> str:
    """Return the address for a port (at *default_host*), a ``(host, port)`` or an address."""
    if isinstance(port_or_addr, int):
        return unparse_host_port(default_host, port_or_addr)
    if isinstance(port_or_addr, tuple):
        return unparse_host_port(*port_or_addr)
    if isinstance(port_or_addr, str):
        return port_or_addr
    raise TypeError(
        f"expected a port, (host, port), or an address to listen at, got {port_or_addr!r}"
    )
