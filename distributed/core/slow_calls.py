"""A log of slow calls.

A server logs the requests that take longer than ``distributed.admin.slow-call``.  A caller logs its
own slow calls with the interceptor :class:`SlowCalls`.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

from distributed.base import config
from distributed.base.logs import get_logger
from distributed.base.quantities import parse_timedelta
from distributed.core.interceptors import Call, Interceptor, Proceed, until_end

__all__ = ["SlowCalls", "configured"]

logger = get_logger("distributed.core")

_KINDS = {"value": "call", "stream": "stream", "conversation": "conversation"}


class SlowCalls:
    """An interceptor that logs calls, streams and conversations that take long, when they end.

    The time of a stream ends when its last item was consumed, and so includes the time that its
    consumer takes.

    Parameters
    ----------
    threshold
        Seconds, or text such as ``"500ms"``; calls that take at least this time are logged.

    Examples
    --------
    >>> async def use(address):
    ...     async with rpc(address, interceptors=[SlowCalls("500ms")]) as remote:
    ...         await remote.slow()
    """

    def __init__(self, threshold: float | str) -> None:
        seconds = parse_timedelta(threshold)
        if seconds is None or not seconds >= 0:
            raise ValueError(f"the threshold must be a time, got {threshold!r}")
        self.threshold: float = seconds

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        begin = perf_counter()

        def ended(exc: BaseException | None) -> None:
            seconds = perf_counter() - begin
            if seconds >= self.threshold:
                logger.warning(
                    "Slow %s: %.500r %s %s took %.3f s%s",
                    _KINDS[call.answer],
                    call.op,
                    "of" if call.side == "client" else "for",
                    call.address,
                    seconds,
                    "" if exc is None else f" and failed: {type(exc).__name__}",
                    extra={"peer": call.address, "op": call.op},
                )

        return await until_end(call, proceed, ended)

    def __repr__(self) -> str:
        return f"SlowCalls({self.threshold:g})"


def configured() -> tuple[Interceptor, ...]:
    """Return the interceptors that ``distributed.admin.slow-call`` demands: one or none."""
    threshold = config.get_timedelta("distributed.admin.slow-call")
    return () if threshold is None else (SlowCalls(threshold),)
