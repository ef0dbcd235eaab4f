"""Answers that take more than one message, and handlers that are cancelled.

:mod:`distributed.core.requests` answers plain calls of handlers that do not take ``comm`` itself.
For all other calls of peers that have agreed to the feature (:mod:`distributed.core.call_info`), it
passes the call to an :class:`Answer`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from time import monotonic
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from distributed.base.buffers import nbytes
from distributed.base.logs import get_logger
from distributed.comm.core import Comm, CommClosedError
from distributed.core.call_info import END, CallInfo, items, unambiguous, written
from distributed.core.conversations import PassedComm
from distributed.core.deadlines import timeout
from distributed.core.mistakes import BadCall
from distributed.core.status import Status
from distributed.telemetry.request_counts import RequestCounts

__all__ = [
    "GENERATORS",
    "Answer",
    "DeadlineExceeded",
    "MarkingComm",
    "check_result",
    "is_coroutine",
    "is_run_to_completion",
    "result_of",
    "run_to_completion",
]

logger = get_logger("distributed.core")

#: The types of generators.
GENERATORS = frozenset({AsyncGeneratorType, GeneratorType})

#: Maximum number of items in one message.
_MAX_ITEMS = 256
#: Maximum number of bytes of small items in one message.
_MAX_BYTES = 65_536
#: Seconds that a producer may work before items that it has put are sent.
_WORK = 0.005
#: Types whose objects cannot be changed.
_CONSTANTS = frozenset({int, float, bool, str, bytes, type(None)})
_TEXTS = frozenset({str, bytes})
#: Maximum number of elements of a container that is copied.
_MAX_ELEMENTS = 64

#: An awaitable or an iterator that a handler has returned, or a plain value.
Result = Any


class DeadlineExceeded(TimeoutError):
    """The time that the caller of a handler allows is used up."""


def run_to_completion(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Let a handler run to its end although its caller is cancelled or its connection is lost.

    A decorator.  Without it, such a handler is cancelled if the caller runs this package; callers
    that run the original never cancel a handler.  A deadline of the caller still ends the handler.

    Examples
    --------
    >>> @run_to_completion
    ... async def save(data):
    ...     await asyncio.sleep(0)
    """
    handler.__run_to_completion__ = True  # type: ignore[attr-defined]
    return handler


def is_run_to_completion(handler: Callable[..., Any]) -> bool:
    """Return whether *handler* is decorated with :func:`run_to_completion`."""
    return getattr(handler, "__run_to_completion__", False) is True


def check_result(result: Result, op: str) -> None:
    """Raise an error unless *result*, an awaitable or a generator, can be awaited for an answer.

    Raises
    ------
    BadCall
        If it is a generator: only a streaming call can be answered by it.
    RuntimeError
        If it is an awaitable, but not a coroutine.
    """
    kind = type(result)
    if is_coroutine(result):
        return
    if kind not in GENERATORS:
        raise RuntimeError(
            f"Comm handler returned unknown awaitable. Expected coroutine, instead got {kind}"
        )
    if kind is GeneratorType:
        result.close()
    # An asynchronous generator that has not started needs no closing.
    raise BadCall(
        f"{op!r} answers by a stream: call it by `async for item in remote.{op}.stream(...)`"
    )


class Answer:
    """The answer to one request.

    Parameters
    ----------
    comm
        The comm of the request.
    op
        The operation, for errors.
    info
        What the request carries.
    serializers
        The serialization families for the answer.
    counts
        Counts the streams and conversations.
    """

    def __init__(
        self,
        comm: Comm,
        op: str,
        info: CallInfo,
        serializers: Sequence[str] | None,
        counts: RequestCounts,
    ) -> None:
        self._comm = comm
        self._op = op
        self.info = info
        self._serializers = serializers
        self._counts = counts
        self._sender: ItemSender | None = None

    async def run(self, call: Callable[..., Result], with_comm: bool) -> Any:
        """Run a handler, write the messages before the last one, and return the last one.

        After the last message was written, call :meth:`finish`.

        Parameters
        ----------
        call
            Calls the handler, with the comm if *with_comm*.

        Raises
        ------
        DeadlineExceeded
            If the caller's time is used up; the handler was cancelled or not started.
        Exception
            The exception of the handler.
        """
        op, allowed = self._op, self.info.timeout
        if allowed is not None and allowed <= 0:
            raise DeadlineExceeded(f"the caller's time was used up before {op!r} started")
        if self.info.stream:
            answer = self._stream(call, with_comm)
        elif self.info.open:
            answer = self._converse(call, with_comm)
        else:
            answer = self._plain(call, with_comm)
        if allowed is None:
            return await answer
        limit = timeout(allowed)
        try:
            async with limit:
                return await answer
        except TimeoutError as exc:
            if limit.expired() and isinstance(exc.__cause__, asyncio.CancelledError):
                raise DeadlineExceeded(
                    f"{op!r} was cancelled after {allowed:.3g} s, the time that its caller allows"
                ) from None
            raise

    async def finish(self) -> None:
        """Wait until the caller has consumed the answer, if it is a stream."""
        if self._sender is not None:
            await self._sender.consumed()

    async def _converse(self, call: Callable[..., Result], with_comm: bool) -> Any:
        """Run a handler that keeps the comm until it returns."""
        op = self._op
        if not with_comm:
            raise BadCall(
                f"the handler of {op!r} does not take 'comm', so it cannot converse: call it by "
                f"`await remote.{op}(...)`, or by `remote.{op}.stream(...)` if it is a generator"
            )
        self._counts.conversations += 1
        try:
            await result_of(call(self._comm), op)
        finally:
            self._counts.conversations -= 1
        return Status.dont_reply

    async def _plain(self, call: Callable[..., Result], with_comm: bool) -> Any:
        """Run a handler that returns the answer, or writes it to its comm."""
        if not with_comm:
            return unambiguous(await result_of(call(), self._op))
        comm = MarkingComm(self._comm)
        return comm.last_message(await result_of(call(comm), self._op), self._op)

    async def _stream(self, call: Callable[..., Result], with_comm: bool) -> Any:
        """Write the items of a handler, and return the message for their end."""
        sender = self._sender = ItemSender(self._comm, self.info.stream, self._serializers)
        self._counts.answers += 1
        try:
            if with_comm:
                comm = _ItemComm(self._comm)
                comm.put = sender.put
                result = call(comm)
            else:
                result = call()
            producer = _produce(result, sender, self._op)
            await sender.run(producer, self._op)
        finally:
            self._counts.answers -= 1
            self._counts.items += sender.count
        return END


def is_coroutine(result: Result) -> bool:
    """Return whether *result* is a coroutine; a plain generator is none."""
    # Python 3.11's asyncio.iscoroutine() returns true for plain generators.
    if isinstance(result, GeneratorType):
        return inspect.isawaitable(result)
    return isinstance(result, Coroutine)


async def result_of(result: Result, op: str) -> Any:
    """Return the result of a handler, awaited if it is a coroutine."""
    kind = type(result)
    if hasattr(kind, "__await__") or kind in GENERATORS:
        check_result(result, op)
        result = await result
        if type(result) in GENERATORS:
            check_result(result, op)
    return result


class _HandlerComm(PassedComm):
    """The comm of a caller that sends nothing but its request."""

    async def read(self, deserializers: Sequence[str] | None = None) -> Any:
        raise RuntimeError(
            "the caller sends nothing more: to exchange messages with a handler, it opens a "
            "conversation, by `async with remote.<operation>.open(...) as comm`"
        )


class MarkingComm(_HandlerComm):
    """The comm that the handler of a plain call gets; it marks what the handler writes."""

    # Whether a message was written, and whether the next one is the whole answer: the handler has
    # returned Status.dont_reply before it wrote any, and a task that it left behind will.
    _has_written = False
    _awaits_answer = False

    async def write(
        self, msg: Any, serializers: Sequence[str] | None = None, on_error: str | None = None
    ) -> int:
        message = unambiguous(msg) if self._awaits_answer else written(msg)
        self._has_written, self._awaits_answer = True, False
        return await self._comm.write(message, serializers, on_error)

    def last_message(self, result: Result, op: str) -> Any:
        """Return the last message of the answer, after the handler has returned *result*.

        Raises
        ------
        TypeError
            If the handler has both written to its comm and returned a value.
        """
        if not self._has_written:
            self._awaits_answer = result is Status.dont_reply
            return unambiguous(result)
        if result is Status.dont_reply:
            return END
        raise TypeError(
            f"the handler of {op!r} has written to its comm, and has also returned a value: after "
            "writing the answer it must return Status.dont_reply; to write several messages, let "
            f"callers use `remote.{op}.stream(...)`"
        )


class _ItemComm(_HandlerComm):
    """The comm that the handler of a streaming call gets; what the handler writes are items."""

    #: Adds an item to the stream.
    put: Callable[[Any], Awaitable[None]]

    async def write(
        self, msg: Any, serializers: Sequence[str] | None = None, on_error: str | None = None
    ) -> int:
        await self.put(msg)
        return nbytes(msg) if isinstance(msg, bytes | bytearray | memoryview) else 1


async def _produce(result: Result, sender: ItemSender, op: str) -> None:
    """Put the items of a handler's result, or wait until the handler has written its items."""
    if is_coroutine(result):
        result = await result
    if hasattr(result, "__aiter__"):
        iterator = aiter(result)
        try:
            async for item in iterator:
                await sender.put(item)
        finally:
            if hasattr(iterator, "aclose"):
                await iterator.aclose()
    elif isinstance(result, Iterator):
        try:
            for item in result:
                await sender.put(item)
        finally:
            if hasattr(result, "close"):
                result.close()
    elif result is not Status.dont_reply and not (result is None and sender.count):
        raise BadCall(
            f"{op!r} does not stream but returns a value: call it by `await remote.{op}(...)`"
        )


class ItemSender:
    """Sends the items of a stream: several small ones in one message, and none too early.

    The producer of the items waits while a full message waits to be sent.  A message waits while
    the caller has not consumed `window` earlier ones.  So the memory of a stream is limited by
    ``window + 2`` messages, whose size is that of one item, or at most `_MAX_BYTES`.

    Parameters
    ----------
    comm
        The comm of the stream.
    window
        Number of messages that the caller accepts before it has consumed them.
    serializers
        The serialization families for the items.
    """

    # The task that answers the request writes; the producer and the reader of credits are tasks of
    # their own.  Both call `_notify` when they change the state that the writer waits for.
    def __init__(self, comm: Comm, window: int, serializers: Sequence[str] | None) -> None:
        self.comm = comm
        self.window = window
        self.serializers = serializers
        #: Number of items so far.
        self.count = 0
        # The items that are not sent, and their approximate size in bytes.
        self._items: list[Any] = []
        self._size = 0
        # Number of messages that the caller has not consumed.
        self._unconsumed = 0
        # Reads credits while there are such messages.
        self._reader: asyncio.Task[None] | None = None
        # The writer waits for `_change`, and tasks of the handler that put items wait for `_sent`.
        self._change: asyncio.Future[None] | None = None
        self._sent: list[asyncio.Future[None]] = []
        # The error of the connection, if the caller has left.
        self._failure: CommClosedError | None = None
        # Whether no more items are sent.
        self._ended = False
        # The time when the producer last waited.
        self._resumed = monotonic()

    async def put(self, item: Any) -> None:
        """Add an item, and wait while there is no room for another one.

        If the item can change, this returns when it has been written.
        """
        if self._ended:
            raise CommClosedError("cannot write to the caller of a stream that has ended")
        self.count += 1
        kept = _constant(item)
        if kept is None and item is not None:
            self._items.append(item)
            self._size = _MAX_BYTES
        else:
            self._items.append(kept)
            self._size += _size(kept)
        self._notify()
        if self._size >= _MAX_BYTES or len(self._items) >= _MAX_ITEMS:
            sent = asyncio.get_running_loop().create_future()
            self._sent.append(sent)
            await sent
            self._resumed = monotonic()
        elif monotonic() - self._resumed > _WORK:
            # A generator that computes its items may never wait; let the writer run.
            await asyncio.sleep(0)
            self._resumed = monotonic()

    async def run(self, produce: Coroutine[Any, Any, None], op: str) -> None:
        """Send the items that *produce* puts, until it ends; raise its exception.

        Raises
        ------
        CommClosedError
            If the caller leaves.  As after any error, *produce* is cancelled then.
        """
        producer = asyncio.create_task(produce, name=f"stream of {op}")
        producer.add_done_callback(self._notify)
        try:
            while self._failure is None:
                if self._items and self._unconsumed < self.window:
                    await self._send()
                elif not self._items and producer.done():
                    return producer.result()
                else:
                    await self._wait()
            raise self._failure
        finally:
            try:
                if not producer.done():
                    await _end(producer)
            finally:
                self._close()
                # The task refers to its error, and that to this frame: a cycle with this variable.
                del producer

    def _close(self) -> None:
        """Refuse further items, also of tasks that the handler has left behind."""
        self._ended = True
        self._failure = None
        for sent in self._sent:
            if not sent.done():
                sent.set_exception(CommClosedError("the stream has ended"))

    async def consumed(self) -> None:
        """Wait until the caller has consumed all items, or has left."""
        if self._reader is not None:
            await self._reader

    async def _send(self) -> None:
        """Write the items that are ready."""
        ready, self._items, self._size = self._items, [], 0
        waiting = len(self._sent)
        try:
            await self._write(ready)
        except Exception:
            # Only the last item can be one that cannot be serialized.
            if len(ready) > 1 and not self.comm.closed():
                await self._write(ready[:-1])
            raise
        written, self._sent = self._sent[:waiting], self._sent[waiting:]
        for sent in written:
            if not sent.done():
                sent.set_result(None)

    async def _write(self, ready: list[Any]) -> None:
        await self.comm.write(items(ready), serializers=self.serializers, on_error="raise")
        self._unconsumed += 1
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_credits(), name="credits of a stream")

    async def _read_credits(self) -> None:
        """Read a message from the caller for each message that it has not consumed."""
        try:
            while self._unconsumed:
                await self.comm.read()
                self._unconsumed -= 1
                self._notify()
        except CommClosedError as exc:
            self._failure = exc
            self._notify()
        except Exception as exc:  # noqa: BLE001  (reading may raise any error)
            self.comm.abort()
            self._failure = CommClosedError(f"received no valid message in {self.comm!r}: {exc}")
            self._notify()
        self._reader = None

    async def _wait(self) -> None:
        """Wait until :meth:`_notify` is called."""
        self._change = asyncio.get_running_loop().create_future()
        try:
            await self._change
        finally:
            self._change = None

    def _notify(self, _: object = None) -> None:
        """Wake the writer if it waits."""
        if self._change is not None and not self._change.done():
            self._change.set_result(None)


async def _end(producer: asyncio.Task[None]) -> None:
    """Cancel the task of a handler, and wait for its end; cancel it again if this is cancelled."""
    interruption = None
    while not producer.done():
        producer.cancel()
        try:
            await asyncio.wait([producer])
        except asyncio.CancelledError as exc:
            interruption = exc
    if not producer.cancelled() and (failure := producer.exception()) is not None:
        logger.error("%s failed when it was cancelled", producer.get_name(), exc_info=failure)
    if interruption is not None:
        raise interruption


def _constant(item: Any) -> Any:
    """Return *item* or a copy of it, if it is small and the result cannot change; else None.

    Examples
    --------
    >>> _constant({"x": 1}), _constant([1, "a"]), _constant([[1]]), _constant(bytearray(b"x"))
    ({'x': 1}, [1, 'a'], None, None)
    """
    kind = type(item)
    if kind in _CONSTANTS:
        return item
    if kind is tuple or kind is list or kind is dict:
        elements = item.values() if kind is dict else item
        if len(item) <= _MAX_ELEMENTS and all(type(it) in _CONSTANTS for it in elements):
            return item if kind is tuple else item.copy()
    return None


def _size(item: Any) -> int:
    """Return the approximate size in bytes of a result of :func:`_constant`."""
    kind = type(item)
    if kind is str or kind is bytes:
        return len(item)
    if kind is tuple or kind is list or kind is dict:
        elements = item.values() if kind is dict else item
        return sum(len(it) if type(it) in _TEXTS else 8 for it in elements)
    return 8
