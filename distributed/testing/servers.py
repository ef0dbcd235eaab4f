"""Servers in a thread of their own, for tests that are plain functions or coroutine functions.

`ServerThread` has an event loop in a thread. Servers and callers run on this loop, so a test does
not need one. It may also have its own, of any kind, and call the servers by their addresses.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from distributed.core import Server, rpc
from distributed.utils_test import end_tasks, other_tasks

__all__ = ["BlockingCalls", "RunningServer", "ServerThread"]

T = TypeVar("T")

#: Where a server listens by default.
_TCP = "tcp://127.0.0.1:0"

#: Stands for the end of a stream.
_END = object()


class ServerThread:
    """An event loop in a thread, and the servers and callers that run on it.

    A context manager: at its end, the callers and then the servers are closed, the last one first.

    Parameters
    ----------
    timeout
        Seconds before a call, a start or the end of the thread is a `TimeoutError`.

    Examples
    --------
    >>> with ServerThread() as thread:
    ...     server = thread.serve({"add": lambda x, y: x + y})
    ...     thread.rpc(server).add(x=1, y=2)
    3
    """

    # The state of the thread: `_thread` and `_loop` are None before the first use.  `_closing` and
    # `_contexts` belong to the loop.  `_thread` ends after `_closing` is set.

    def __init__(self, timeout: float = 30) -> None:
        self.timeout = timeout
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event
        self._contexts: AsyncExitStack
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def serve(
        self,
        server: Mapping[str, Callable[..., Any]] | Callable[..., Server | Awaitable[Server]],
        *addresses: str,
        **kwargs: Any,
    ) -> RunningServer:
        """Start a server, and return it when it listens.

        Parameters
        ----------
        server
            The handlers of a `Server`, or a class or function that returns one. A function may be
            a coroutine function; it is called on the event loop of the thread.
        *addresses
            Addresses to listen at; default: a free TCP port of the loopback interface, unless
            the server listens by itself when it starts.
        **kwargs
            Passed to the class or function; for handlers, to `Server`.

        Raises
        ------
        TypeError
            If ``server`` is an object that exists already: it belongs to another event loop.
        """
        if isinstance(server, Server):
            raise TypeError(
                f"{server!r} belongs to the event loop on which it was created; "
                "give its class, or a function that returns it"
            )
        return self.run(self._serve, server, addresses, kwargs)

    async def _serve(self, server: Any, addresses: tuple[str, ...], kwargs: Any) -> RunningServer:
        made = Server(server, **kwargs) if isinstance(server, Mapping) else server(**kwargs)
        if inspect.isawaitable(made) and not isinstance(made, Server):
            made = await made
        await self._contexts.enter_async_context(made)
        for address in addresses or (() if made.listeners else (_TCP,)):
            await made.listen(address)
        return RunningServer(made, self)

    def rpc(self, server: str | RunningServer, **kwargs: Any) -> BlockingCalls:
        """Return the operations of a server as functions that block until they are answered.

        Parameters
        ----------
        server
            An address, or what `serve` returned.
        **kwargs
            Passed to `distributed.core.rpc`, such as ``security``.
        """
        address = server if isinstance(server, str) else server.address
        return self.run(self._rpc, address, kwargs)

    async def _rpc(self, address: str, kwargs: Any) -> BlockingCalls:
        remote = await self._contexts.enter_async_context(rpc(address, **kwargs))
        return BlockingCalls(remote, self)

    def run(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Call a coroutine function on the event loop of the thread, and return its result.

        Raises
        ------
        TimeoutError
            After the timeout of this object. The call is cancelled.
        """
        loop = self._started()

        async def call() -> T:
            async with asyncio.timeout(self.timeout):
                return await function(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(call(), loop).result()

    def close(self) -> None:
        """Close callers and servers, and wait for the end of the thread.

        Raises
        ------
        AssertionError
            If tasks remain that do not end within a second. They are cancelled.
        TimeoutError
            If a server does not close within the timeout of this object.
        """
        if self._thread is None or self._loop is None:
            return
        thread, self._thread = self._thread, None
        if thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
        thread.join()
        self._ended.result()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._thread is None:
            if self._ended.done():
                raise RuntimeError("this ServerThread is closed")
            ready = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(ready,), name="distributed-servers", daemon=True
            )
            self._thread.start()
            ready.wait()
        assert self._loop is not None
        return self._loop

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._main(ready))
        except BaseException as error:  # noqa: BLE001  (raised by close)
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _main(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self._contexts = AsyncExitStack()
        ready.set()
        await self._closing.wait()
        async with asyncio.timeout(self.timeout):
            await self._contexts.aclose()
        if left := await end_tasks(other_tasks()):
            raise AssertionError(f"the servers left tasks behind that did not end:\n{left}")


class RunningServer:
    """A server that runs in a `ServerThread`.

    Attributes
    ----------
    server
        The `Server`. Use its methods by `run`, because it belongs to another thread.
    """

    def __init__(self, server: Server, thread: ServerThread) -> None:
        self.server = server
        self._thread = thread

    @property
    def address(self) -> str:
        """The address of the first listener."""
        return self.server.address

    def run(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Call a coroutine function on the event loop of the server, and return its result."""
        return self._thread.run(function, *args, **kwargs)

    def close(self) -> None:
        """Close the server before the end of the test."""
        self._thread.run(self.server.close)

    def __repr__(self) -> str:
        return f"<RunningServer {self.server!r}>"


class BlockingCalls:
    """The operations of a server, as functions that block until they are answered."""

    def __init__(self, remote: rpc, thread: ServerThread) -> None:
        self._remote = remote
        self._thread = thread

    def __getattr__(self, op: str) -> _BlockingOperation:
        if op.startswith("_"):
            raise AttributeError(op)
        return _BlockingOperation(self._remote, op, self._thread)

    def __repr__(self) -> str:
        return f"<BlockingCalls {self._remote!r}>"


class _BlockingOperation:
    def __init__(self, remote: rpc, op: str, thread: ServerThread) -> None:
        self._operation = getattr(remote, op)
        self._thread = thread

    def __call__(self, **kwargs: Any) -> Any:
        return self._thread.run(self._operation, **kwargs)

    def stream(self, **kwargs: Any) -> Iterator[Any]:
        """Call a streaming operation, and yield its items."""

        async def start() -> AsyncIterator[Any]:
            return aiter(self._operation.stream(**kwargs))

        items: Any = self._thread.run(start)
        try:
            while (item := self._thread.run(anext, items, _END)) is not _END:
                yield item
        finally:
            self._thread.run(items.aclose)
