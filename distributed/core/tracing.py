"""Tracing: an OpenTelemetry span for each call, at the caller and at the server.

:func:`tracing` makes an interceptor for either side.  The span at the server is a child of the
span at the caller, whose context the request carries in the W3C format (``traceparent``), or in the
format that is configured for OpenTelemetry.  Calls of a handler are children of the handler's span.
Towards peers that run the original no context travels; each side then has spans of its own.

This module needs the API of OpenTelemetry (the extra ``tracing``).  What happens with the spans is
configured there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from distributed.comm import get_address_host_port, parse_address
from distributed.core.interceptors import Call, Interceptor, Proceed, until_end

try:
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        "distributed.core.tracing needs OpenTelemetry: pip install 'distributed-core[tracing]', "
        "or opentelemetry-api",
        name=exc.name,
    ) from exc

__all__ = ["tracing"]


def tracing(tracer_provider: trace.TracerProvider | None = None) -> Interceptor:
    """Return an interceptor that makes a span of each call; pass it to a server, rpc or pool.

    The span of a stream ends when its last item was consumed or its consumer has left, that of a
    conversation when it is over.  An exception is recorded in the span, whose status is then an
    error.

    The span is named as the operation and has these attributes: ``rpc.system`` ("distributed"),
    ``rpc.method``, ``network.peer.address`` and ``network.peer.port``, ``network.transport``,
    ``distributed.answer`` ("value", "stream" or "conversation"), and ``error.type`` after an
    exception.

    Parameters
    ----------
    tracer_provider
        Makes the spans; by default the global one.

    Examples
    --------
    >>> async def use(address):
    ...     async with rpc(address, interceptors=[tracing()]) as remote:
    ...         return await remote.add(x=1, y=2)
    """
    tracer = trace.get_tracer("distributed.core", tracer_provider=tracer_provider)

    async def intercept(call: Call, proceed: Proceed) -> Any:
        at_client = call.side == "client"
        span = tracer.start_span(
            call.op,
            context=None if at_client else propagate.extract(call.metadata, context=Context()),
            kind=trace.SpanKind.CLIENT if at_client else trace.SpanKind.SERVER,
            attributes=_attributes(call),
        )
        if at_client:
            propagate.inject(call.metadata, context=trace.set_span_in_context(span))

        def ended(exc: BaseException | None) -> None:
            if exc is not None:
                span.set_attribute("error.type", type(exc).__qualname__)
                span.record_exception(exc)
                span.set_status(trace.StatusCode.ERROR, f"{type(exc).__name__}: {exc}")
            span.end()

        def around() -> AbstractContextManager[Any]:
            return trace.use_span(span, record_exception=False, set_status_on_exception=False)

        return await until_end(call, proceed, ended, around)

    return intercept


def _attributes(call: Call) -> dict[str, str | int]:
    scheme, rest = parse_address(call.address)
    attributes: dict[str, str | int] = {
        "rpc.system": "distributed",
        "rpc.method": call.op,
        "distributed.answer": call.answer,
        "network.transport": scheme if scheme in ("unix", "inproc") else "tcp",
    }
    try:
        host, port = get_address_host_port(call.address)
    except (ValueError, NotImplementedError):
        attributes["network.peer.address"] = rest
    else:
        attributes["network.peer.address"] = host
        attributes["network.peer.port"] = port
    return attributes
