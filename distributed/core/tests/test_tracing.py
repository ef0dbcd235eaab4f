"""Spans of calls at both sides, as the exporter of OpenTelemetry's SDK receives them."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from distributed.core import ConnectionPool, Server, rpc
from distributed.core.tracing import tracing
from distributed.tests.environments import run_in
from distributed.tests.servers import TCP, TRANSPORTS, ask, connected, quiet, serving
from distributed.utils_test import async_poll_for, gen_test


class Spans:
    """The interceptor of both sides, and the spans that have ended."""

    def __init__(self):
        self.provider = TracerProvider()
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.interceptors = [tracing(self.provider)]

    def of(self, side, op=None):
        kind = SpanKind.CLIENT if side == "client" else SpanKind.SERVER
        return [
            span
            for span in self.exporter.get_finished_spans()
            if span.kind is kind and op in (None, span.name)
        ]

    async def both(self, op):
        """Return the two spans of a call, once both have ended."""
        await async_poll_for(lambda: self.of("client", op) and self.of("server", op))
        [client], [server] = self.of("client", op), self.of("server", op)
        assert server.parent.span_id == client.context.span_id
        assert server.context.trace_id == client.context.trace_id
        return client, server


@pytest.fixture
def spans():
    return Spans()


def traced(spans, transport=TCP, handlers=None, **kwargs):
    return serving(transport, handlers, interceptors=spans.interceptors, **kwargs)


async def count(n):
    for number in range(n):
        yield number


async def fail_after(n):
    for number in range(n):
        yield number
    raise ZeroDivisionError("after the items")


async def take_all(stream):
    return [item async for item in stream]


@TRANSPORTS
@gen_test()
async def test_a_call_has_a_span_at_each_side(transport, spans):
    async with (
        traced(spans, transport, {"add": lambda x, y: x + y}) as server,
        rpc(server.address, interceptors=spans.interceptors) as remote,
    ):
        assert await remote.add(x=1, y=2) == 3
    client, at_server = await spans.both("add")
    for span in (client, at_server):
        assert span.attributes["rpc.system"] == "distributed"
        assert span.attributes["rpc.method"] == "add"
        assert span.attributes["distributed.answer"] == "value"
        assert span.attributes["network.peer.address"]
        assert span.attributes["network.transport"] in ("tcp", "unix", "inproc")
        assert span.status.status_code is StatusCode.UNSET
    if transport == TCP:
        assert client.attributes["network.peer.port"] == server.port
    assert client.parent is None


@gen_test()
async def test_calls_of_a_handler_are_children_of_its_span(spans):
    async def outer(address):
        async with ConnectionPool(interceptors=spans.interceptors) as pool:
            await pool(address).inner()

    async def stream(address):
        yield 1
        async with ConnectionPool(interceptors=spans.interceptors) as pool:
            await pool(address).last()
        yield 2

    def nothing():
        pass

    handlers = {"outer": outer, "inner": nothing, "stream": stream, "last": nothing}
    async with (
        traced(spans, TCP, handlers) as server,
        rpc(server.address, interceptors=spans.interceptors) as remote,
    ):
        await remote.outer(address=server.address)
        assert [i async for i in remote.stream.stream(address=server.address)] == [1, 2]
    for op, called in (("outer", "inner"), ("stream", "last")):
        _, at_server = await spans.both(op)
        client, _ = await spans.both(called)
        assert client.parent.span_id == at_server.context.span_id


@pytest.mark.parametrize("how", ["value", "stream"])
@gen_test()
async def test_an_error_is_recorded_at_both_sides(spans, how):
    def fail():
        raise ZeroDivisionError("always")

    async with (
        traced(spans, TCP, {"fail": fail, "fail_after": fail_after}) as server,
        rpc(server.address, interceptors=spans.interceptors) as remote,
    ):
        call = remote.fail() if how == "value" else take_all(remote.fail_after.stream(n=3))
        with quiet(), pytest.raises(ZeroDivisionError):
            await call
    for span in await spans.both("fail" if how == "value" else "fail_after"):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "ZeroDivisionError"
        assert [event.name for event in span.events] == ["exception"]


@pytest.mark.parametrize("op", ["count", "plain"])
@gen_test()
async def test_the_span_of_a_stream_ends_with_the_stream(spans, op):
    handlers = {"count": count, "plain": lambda n: iter(range(n))}
    async with (
        traced(spans, TCP, handlers) as server,
        rpc(server.address, interceptors=spans.interceptors) as remote,
    ):
        stream = getattr(remote, op).stream(n=3)
        assert await anext(stream) == 0
        assert not spans.of("client")
        assert [item async for item in stream] == [1, 2]
    client, _ = await spans.both(op)
    assert client.attributes["distributed.answer"] == "stream"
    assert client.status.status_code is StatusCode.UNSET


@gen_test()
async def test_the_spans_of_a_stream_that_is_left_end(spans):
    async with (
        traced(spans, TCP, {"count": count}) as server,
        rpc(server.address, interceptors=spans.interceptors) as remote,
    ):
        async for item in remote.count.stream(n=10**9):
            if item == 3:
                break
        client, _ = await spans.both("count")
        assert client.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("fails", [False, True])
@gen_test()
async def test_the_span_of_a_conversation_ends_with_it(spans, fails):
    async def echo(comm):
        await comm.write(await comm.read())

    async with (
        traced(spans, TCP, {"repeat": echo}) as server,
        rpc(server.address, interceptors=spans.interceptors) as remote,
    ):
        failure = None
        try:
            async with remote.repeat.open() as comm:
                await comm.write("hello")
                assert await comm.read() == "hello"
                assert not spans.of("client")
                if fails:
                    raise KeyError("the caller's")
        except KeyError as exc:
            failure = exc
        client, _ = await spans.both("repeat")
    assert client.attributes["distributed.answer"] == "conversation"
    assert (client.status.status_code is StatusCode.ERROR) is (failure is not None) is fails


@gen_test()
async def test_the_spans_of_a_cancelled_call_end(spans):
    entered = asyncio.Event()

    async def wait():
        entered.set()
        await asyncio.Event().wait()

    async with (
        traced(spans, TCP, {"wait": wait}) as server,
        rpc(server.address, interceptors=spans.interceptors) as remote,
    ):
        call = asyncio.create_task(remote.wait())
        await entered.wait()
        call.cancel()
        await asyncio.wait([call])
        for span in await spans.both("wait"):
            assert span.attributes["error.type"] == "CancelledError"


@TRANSPORTS
@gen_test()
async def test_a_call_of_a_peer_without_tracing_begins_a_trace(transport, spans):
    # Neither the context of the listener nor that of the task that connects counts.
    with spans.provider.get_tracer("test").start_as_current_span("other"):
        async with traced(spans, transport) as server, connected(server) as comm:
            assert await ask(comm, {"op": "echo", "data": 1}) == 1
    [span] = spans.of("server")
    assert span.parent is None


@pytest.mark.parametrize("value", ["", "nonsense", "00-" + "0" * 1000, "\0", "é" * 10])
@gen_test()
async def test_nonsense_as_context_begins_a_trace(spans, value):
    async with traced(spans) as server, connected(server) as comm:
        metadata = {"traceparent": value, "tracestate": value, "baggage": value}
        info = {"metadata": metadata}
        assert await ask(comm, {"op": "echo", "data": 1, "call-info": info}) == 1
    [span] = spans.of("server")
    assert span.parent is None


def test_without_opentelemetry_the_error_says_what_to_install(bare_python):
    run = run_in(
        bare_python,
        "try:\n    import distributed.core.tracing\nexcept ModuleNotFoundError as exc:\n"
        "    print(exc, exc.name)",
    )
    assert "pip install 'distributed-core[tracing]'" in run.stdout


def test_a_server_with_interceptors_is_traced_without_a_provider():
    # The API alone makes spans that record nothing.
    assert Server({}, interceptors=[tracing()]).interceptors
