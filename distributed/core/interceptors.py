"""Interceptors: functions around the calls of one side.

An interceptor is a coroutine function that takes a :class:`Call` and a function ``proceed``.
``await proceed()`` makes the call, or calls the next interceptor; its result is the answer.  An
interceptor can measure, log, refuse (by raising), change the arguments or the answer, or repeat the
call.

At a caller, pass interceptors to ``rpc`` or ``ConnectionPool``; at a server, to ``Server``.  The
first one is the outermost.

Examples
--------
>>> async def log_failures(call, proceed):
...     try:
...         return await proceed()
...     except Exception as exc:
...         print(call.op, "failed:", exc)
...         raise
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self, TypeAlias

__all__ = [
    "Call",
    "InterceptedStream",
    "Interceptor",
    "Proceed",
    "check_interceptors",
    "intercept",
    "until_end",
]


@dataclass(slots=True)
class Call:
    """One call, as interceptors see it."""

    #: The operation.
    op: str
    #: The keyword arguments of the handler; may be changed before ``proceed``.
    arguments: dict[str, Any]
    #: The address of the other side.
    address: str
    #: Which side this is.
    side: Literal["client", "server"]
    #: The answer: one value, a stream of items, or a conversation over the comm.  The result of
    #: ``proceed`` is the value or an asynchronous iterator.  For a conversation it is the comm at
    #: the caller, and the unused result of the handler at the server.
    answer: Literal["value", "stream", "conversation"] = "value"
    #: Names and texts that travel with the request, if both sides run this package; otherwise
    #: they are dropped.  A caller's interceptors may add some before ``proceed``.
    metadata: dict[str, str] = field(default_factory=dict)
    #: For a conversation at the caller: functions that are called at its end, with the exception
    #: that ended it or None.
    at_end: list[Callable[[BaseException | None], object]] = field(default_factory=list)


#: Makes a call, or calls the next interceptor.
Proceed: TypeAlias = Callable[[], Awaitable[Any]]
#: See the docstring of the module.
Interceptor: TypeAlias = Callable[[Call, Proceed], Awaitable[Any]]


def check_interceptors(interceptors: Sequence[Interceptor]) -> tuple[Interceptor, ...]:
    """Return *interceptors* as a tuple.

    Raises
    ------
    TypeError
        If they are not a sequence of callables.
    """
    checked = tuple(interceptors)
    for interceptor in checked:
        if not callable(interceptor):
            raise TypeError(
                "an interceptor must be a coroutine function with the parameters (call, proceed), "
                f"got {interceptor!r}"
            )
    return checked


def intercept(
    interceptors: Sequence[Interceptor], call: Call, make: Callable[[Call], Awaitable[Any]]
) -> Awaitable[Any]:
    """Make a call through interceptors.

    Parameters
    ----------
    interceptors
        The outermost first.
    call
        The call.
    make
        Makes the call, with the arguments and the metadata that it has then.
    """
    proceed: Proceed = partial(make, call)
    for interceptor in reversed(interceptors):
        proceed = partial(interceptor, call, proceed)
    return proceed()


async def until_end(
    call: Call,
    proceed: Proceed,
    ended: Callable[[BaseException | None], object],
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Any:
    """Make a call, and report when it has ended; for interceptors that measure.

    Parameters
    ----------
    call, proceed
        The arguments of the interceptor.
    ended
        Called once, with the exception that ended the call or None: for a stream, when its last
        item was consumed or its consumer has left; for a conversation, when it is over.
    around
        Makes a context manager that is around the call, and around each step of a stream.

    Returns
    -------
    object
        The result of *proceed*, for the interceptor to return.

    Examples
    --------
    >>> async def log_ends(call, proceed):
    ...     return await until_end(call, proceed, lambda exc: print(call.op, "ended"))
    """
    try:
        with around():
            result = await proceed()
    except BaseException as exc:
        ended(exc)
        raise
    if call.answer == "stream" and (hasattr(result, "__aiter__") or isinstance(result, Iterator)):
        return _until_end_of_stream(result, ended, around)
    if call.answer == "conversation" and call.side == "client":
        call.at_end.append(ended)
    else:
        ended(None)
    return result


async def _until_end_of_stream(
    items: Any,
    ended: Callable[[BaseException | None], object],
    around: Callable[[], AbstractContextManager[Any]],
) -> AsyncIterator[Any]:
    failure = None
    try:
        items = aiter(items) if hasattr(items, "__aiter__") else _asynchronous(items)
        while True:
            try:
                # Not around the ``yield``: the consumer has a context of its own.
                with around():
                    item = await anext(items)
            except StopAsyncIteration:
                break
            yield item
    except GeneratorExit:
        # The consumer has left.
        raise
    except BaseException as exc:
        failure = exc
        raise
    finally:
        try:
            if hasattr(items, "aclose"):
                await items.aclose()
        finally:
            ended(failure)


async def _asynchronous(items: Iterator[Any]) -> AsyncIterator[Any]:
    try:
        for item in items:
            yield item
    finally:
        if hasattr(items, "close"):
            items.close()


class InterceptedStream:
    """The items of a streaming call that is made through interceptors.

    Parameters
    ----------
    begin
        Makes the call through the interceptors; its result is an asynchronous iterator.
    """

    def __init__(self, begin: Callable[[], Awaitable[AsyncIterator[Any]]]) -> None:
        self._begin = begin
        self._items: AsyncIterator[Any] | None = None
        self._begun = self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._items is None:
            if self._begun:
                raise StopAsyncIteration
            self._begun = True
            self._items = aiter(await self._begin())
            if self._closed:
                # Meanwhile, by another task.
                await self.aclose()
                raise StopAsyncIteration
        return await anext(self._items)

    async def aclose(self) -> None:
        """End the stream; if it has not ended, the handler is cancelled."""
        self._begun = self._closed = True
        items, self._items = self._items, None
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
