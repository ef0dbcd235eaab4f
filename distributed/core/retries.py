"""Repeating calls that failed, where a second execution of the handler is ruled out or harmless."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from distributed.base import config

__all__ = ["Retries", "is_marked", "not_executed", "unmarked"]

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


def not_executed(exc: E) -> E:
    """Mark *exc* as raised by a call whose handler was not started, and return it."""
    exc._handler_was_not_started = True  # type: ignore[attr-defined]
    return exc


def is_marked(exc: BaseException) -> bool:
    """Return whether *exc* has the mark of :func:`not_executed`."""
    return getattr(exc, "_handler_was_not_started", False)


def unmarked(exc: E) -> E:
    """Return *exc* without the mark of :func:`not_executed`."""
    vars(exc).pop("_handler_was_not_started", None)
    return exc


class Retries:
    """When, and how often, a failed call is repeated.

    Parameters
    ----------
    attempts, on, idempotent
        See :meth:`distributed.core.operations.RemoteCalls.retrying`.
    """

    def __init__(
        self,
        attempts: int,
        on: type[BaseException] | tuple[type[BaseException], ...],
        idempotent: bool,
    ) -> None:
        if type(attempts) is not int or attempts < 1:
            raise ValueError(f"attempts must be a number from 1, got {attempts!r}")
        kinds = on if isinstance(on, tuple) else (on,)
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(f"on must be one or several classes of exceptions, got {kind!r}")
        self.attempts = attempts
        self.on = kinds
        self.idempotent = idempotent
        self._first_delay = config.get_timedelta("distributed.comm.retry.delay.min") or 0
        self._longest_delay = config.get_timedelta("distributed.comm.retry.delay.max") or 0

    def allows(self, exc: BaseException) -> bool:
        """Return whether a call that raised *exc* may be repeated."""
        return isinstance(exc, self.on) and (self.idempotent or is_marked(exc))

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of *call*, which is repeated while it fails and may be repeated."""
        delay = self._first_delay
        for _ in range(self.attempts - 1):
            try:
                return await call()
            except self.on as exc:
                if not self.allows(exc):
                    raise
            # Full jitter: callers that failed together do not return together.
            await asyncio.sleep(random.uniform(0, min(delay, self._longest_delay)))
            delay *= 2
        return await call()
