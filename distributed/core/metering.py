"""Give the measurements of a coroutine method to the server that the method belongs to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from distributed.base.callables import iscoroutinefunction
from distributed.core.host import context_meter

__all__ = ["HasDigestMetric", "context_meter_to_server_digest"]

P = ParamSpec("P")
T = TypeVar("T")


class HasDigestMetric(Protocol):
    """An object that takes measurements, such as a ``Server``."""

    def digest_metric(self, name: Hashable, value: float) -> None: ...


S = TypeVar("S", bound=HasDigestMetric)


def context_meter_to_server_digest(
    digest_tag: str,
) -> Callable[
    [Callable[Concatenate[S, P], Awaitable[T]]], Callable[Concatenate[S, P], Awaitable[T]]
]:
    """Decorate a coroutine method, so that ``self.digest_metric`` gets its measurements.

    Each call of `context_meter.digest_metric` during the method, also in the offload thread, is
    recorded under the name ``(digest_tag, label, unit)``; a label that is a tuple becomes part of
    that tuple.

    Parameters
    ----------
    digest_tag
        The first element of each name.

    Raises
    ------
    TypeError
        If the method is not a coroutine function.

    Examples
    --------
    >>> import asyncio
    >>> from distributed.telemetry.statistics import Statistics
    >>> class Reader(Statistics):
    ...     @context_meter_to_server_digest("read")
    ...     async def read(self):
    ...         context_meter.digest_metric("disk", 512, "bytes")
    >>> reader = Reader("Reader")
    >>> asyncio.run(reader.read())
    >>> dict(reader.digests_total)
    {('read', 'disk', 'bytes'): 512}
    """

    def decorate(
        method: Callable[Concatenate[S, P], Awaitable[T]],
    ) -> Callable[Concatenate[S, P], Awaitable[T]]:
        if not iscoroutinefunction(method):
            raise TypeError(
                f"context_meter_to_server_digest({digest_tag!r}) needs a coroutine method, but got "
                f"{method!r}: declare it with 'async def'"
            )

        @wraps(method)
        async def metered(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
            def digest(label: Hashable, value: float, unit: str) -> None:
                labels = label if isinstance(label, tuple) else (label,)
                self.digest_metric((digest_tag, *labels, unit), value)

            # allow_offload: calls in the offload thread reach `digest` in the thread of the loop.
            with context_meter.add_callback(digest, allow_offload=True):
                return await method(self, *args, **kwargs)

        return metered

    return decorate
