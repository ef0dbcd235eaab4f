"""The table of all metrics: names, types, units, labels, and where the figures have their values.

:mod:`distributed.pages.metrics` renders them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

__all__ = ["METRICS", "Figures", "Metric"]

#: A snapshot of the figures of a server, or of several.
Figures = Mapping[str, Any]

#: Values of labels and a value; for a histogram, the numbers per bucket and the sum.
Sample = tuple[Sequence[str], Any]


class Metric(NamedTuple):
    """One metric, and how to find its values in the figures.

    Attributes
    ----------
    name
        The name of the family: without ``_total``, ``_info`` and ``_bucket``.
    kind
        ``"gauge"``, ``"counter"``, ``"histogram"`` or ``"info"``.
    unit
        The unit, which is the end of the name; empty for plain numbers.
    labels
        The names of the labels.
    meaning
        The text for readers of the metrics.
    samples
        Returns the samples.  A sample whose value is None is left out.
    """

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    meaning: str
    samples: Callable[[Figures], Iterable[Sample]]


def _value(*path: str) -> Callable[[Figures], Iterable[Sample]]:
    """Return the samples of a metric without labels."""

    def samples(figures: Figures) -> Iterable[Sample]:
        value: Any = figures
        for name in path:
            value = value[name]
        yield (), value

    return samples


def _each(*path: str) -> Callable[[Figures], Iterable[Sample]]:
    """Return the samples of a metric whose label is the key of a dict."""

    def samples(figures: Figures) -> Iterable[Sample]:
        values: Any = figures
        for name in path:
            values = values[name]
        for key, value in values.items():
            yield (key,), value

    return samples


def _states(section: str, **states: str) -> Callable[[Figures], Iterable[Sample]]:
    """Return the samples of a metric whose label is a state: state → key of the section.

    ``idle`` stands for the open ones that are not active.
    """

    def samples(figures: Figures) -> Iterable[Sample]:
        values = figures[section]
        for state, key in states.items():
            value = values["open"] - values["active"] if key == "idle" else values[key]
            yield (state,), value

    return samples


def _traffic(key: str) -> Callable[[Figures], Iterable[Sample]]:
    def samples(figures: Figures) -> Iterable[Sample]:
        for transport, counts in figures["traffic"].items():
            yield (transport,), counts[key]

    return samples


def _operations(key: str) -> Callable[[Figures], Iterable[Sample]]:
    def samples(figures: Figures) -> Iterable[Sample]:
        for op, values in figures["operations"].items():
            yield (op,), values[key]

    return samples


def _outcomes(figures: Figures) -> Iterable[Sample]:
    for op, values in figures["operations"].items():
        for outcome, count in values["outcomes"].items():
            yield (op, outcome), count


def _latencies(figures: Figures) -> Iterable[Sample]:
    bounds = figures["latency_bounds"]
    for op, values in figures["operations"].items():
        yield (op,), _histogram(bounds, values["buckets"], values["seconds"])


def _delays(figures: Figures) -> Iterable[Sample]:
    loop = figures["event_loop"]
    if loop["delay_count"]:
        yield (), _histogram(figures["latency_bounds"], loop["delay_buckets"], loop["delay_sum"])


def _histogram(
    bounds: Sequence[float], numbers: Sequence[int], total: float
) -> tuple[list[tuple[str, float]], float]:
    """Return the cumulative buckets of a histogram, and the sum of its values."""
    names = [*map(str, bounds), "+Inf"]
    return list(zip(names, accumulate(numbers), strict=True)), total


def _info(figures: Figures) -> Iterable[Sample]:
    for server in figures.get("servers", [figures["server"]]):
        yield (server["type"], server["address"] or "", server["versions"]["distributed"]), 1


def _python(figures: Figures) -> Iterable[Sample]:
    yield (figures["server"]["versions"]["python"],), 1


def _generations(figures: Figures) -> Iterable[Sample]:
    for generation, number in enumerate(figures["process"]["gc_collections"]):
        yield (str(generation),), number


def _started(figures: Figures) -> Iterable[Sample]:
    yield (), figures["server"]["started"]


#: All metrics.  Names that dask's scheduler and workers have are used with their meaning.
METRICS: tuple[Metric, ...] = (
    Metric(
        *("dask_server", "info", "", ("type", "address", "version")),
        "The server: its class, its address and the version of distributed-core",
        _info,
    ),
    Metric(
        *("dask_server_start_time_seconds", "gauge", "seconds", ()),
        "Time at which the server started, since the epoch",
        _started,
    ),
    Metric(
        *("dask_server_connections", "gauge", "", ("state",)),
        "Incoming connections: with a request in progress, idle, or in the handshake",
        _states("connections", active="active", idle="idle", handshaking="handshaking"),
    ),
    Metric(
        *("dask_server_connections_accepted", "counter", "", ()),
        "Incoming connections that completed the handshake",
        _value("connections", "accepted"),
    ),
    Metric(
        *("dask_server_connections_refused", "counter", "", ("reason",)),
        "Incoming connections that were refused after the handshake",
        _each("connections", "refused"),
    ),
    Metric(
        *("dask_server_handshakes_failed", "counter", "", ("reason",)),
        "Incoming connections that did not complete the handshake",
        _each("connections", "failed"),
    ),
    Metric(
        *("dask_server_requests", "counter", "", ("op", "outcome")),
        "Requests that have ended, by operation and outcome",
        _outcomes,
    ),
    Metric(
        *("dask_server_requests_in_progress", "gauge", "", ("op",)),
        "Requests in progress",
        _operations("in_progress"),
    ),
    Metric(
        *("dask_server_requests_rejected", "counter", "", ("reason",)),
        "Requests for which no handler was started",
        _each("requests", "rejected"),
    ),
    Metric(
        *("dask_server_request_duration_seconds", "histogram", "seconds", ("op",)),
        "Time from the receipt of a request until its answer was written",
        _latencies,
    ),
    Metric(
        *("dask_server_streams", "gauge", "", ("kind",)),
        "One-way streams from peers, streaming calls and conversations in progress",
        lambda figures: [
            (("one-way",), figures["streams"]["open"]),
            (("streaming-call",), figures["streams"]["answers"]),
            (("conversation",), figures["streams"]["conversations"]),
        ],
    ),
    Metric(
        *("dask_server_streams_opened", "counter", "", ()),
        "One-way streams that peers have opened",
        _value("streams", "opened"),
    ),
    Metric(
        *("dask_server_streams_failed", "counter", "", ()),
        "One-way streams that the error of a handler has ended",
        _value("streams", "failed"),
    ),
    Metric(
        *("dask_server_stream_messages", "counter", "", ()),
        "Messages received in one-way streams",
        _value("streams", "messages"),
    ),
    Metric(
        *("dask_server_stream_handlers", "gauge", "", ()),
        "Coroutine handlers of one-way streams that run",
        _value("streams", "handlers"),
    ),
    Metric(
        *("dask_server_stream_items", "counter", "", ()),
        "Items sent in streaming calls that have ended",
        _value("streams", "items"),
    ),
    Metric(
        *("dask_server_transfer_incoming_bytes", "counter", "bytes", ("transport",)),
        "Bytes received, after the handshake",
        _traffic("bytes_received"),
    ),
    Metric(
        *("dask_server_transfer_incoming_count", "counter", "", ("transport",)),
        "Messages received, after the handshake",
        _traffic("messages_received"),
    ),
    Metric(
        *("dask_server_transfer_outgoing_bytes", "counter", "bytes", ("transport",)),
        "Bytes sent, after the handshake",
        _traffic("bytes_sent"),
    ),
    Metric(
        *("dask_server_transfer_outgoing_count", "counter", "", ("transport",)),
        "Messages sent, after the handshake",
        _traffic("messages_sent"),
    ),
    Metric(
        *("dask_server_writes_waiting", "gauge", "", ("transport",)),
        "Writes that wait for the peer to read (back-pressure)",
        _traffic("writes_waiting"),
    ),
    Metric(
        *("dask_server_write_waits", "counter", "", ("transport",)),
        "Writes that the socket did not accept at once",
        _traffic("waits"),
    ),
    Metric(
        *("dask_server_write_wait_seconds", "counter", "seconds", ("transport",)),
        "Time that writes have waited for the peer to read (back-pressure)",
        _traffic("seconds_waited"),
    ),
    Metric(
        *("dask_server_pool_connections", "gauge", "", ("state",)),
        "Connections to other servers: in use, idle, or being opened",
        _states("pool", active="active", idle="idle", connecting="connecting"),
    ),
    Metric(
        *("dask_server_pool_connections_limit", "gauge", "", ()),
        "Maximum number of connections to other servers",
        _value("pool", "limit"),
    ),
    Metric(
        *("dask_server_pool_calls_waiting", "gauge", "", ()),
        "Calls that wait for a connection of the pool",
        _value("pool", "waiting"),
    ),
    Metric(
        *("dask_server_pool_waits", "counter", "", ()),
        "Calls that had to wait for a connection of the pool",
        _value("pool", "waits"),
    ),
    Metric(
        *("dask_server_pool_wait_seconds", "counter", "seconds", ()),
        "Time that calls have waited for a connection of the pool",
        _value("pool", "seconds_waited"),
    ),
    Metric(
        *("dask_server_batched_streams", "gauge", "", ()),
        "Open BatchedSend objects on the event loop",
        _value("batched", "open"),
    ),
    Metric(
        *("dask_server_batched_queue_messages", "gauge", "", ()),
        "Messages that wait in BatchedSend objects",
        _value("batched", "messages"),
    ),
    Metric(
        *("dask_server_batched_queue_bytes", "gauge", "bytes", ()),
        "Approximate size of the messages that wait in BatchedSend objects",
        _value("batched", "bytes"),
    ),
    Metric(
        *("dask_server_batched_unacknowledged", "gauge", "", ()),
        "Messages of BatchedSend objects that the peer has not acknowledged",
        _value("batched", "unacknowledged"),
    ),
    Metric(
        *("dask_server_batched_batches_written", "counter", "", ()),
        "Batches that BatchedSend objects have written",
        _value("batched", "batches_written"),
    ),
    Metric(
        *("dask_server_batched_messages_written", "counter", "", ()),
        "Messages that BatchedSend objects have written",
        _value("batched", "messages_written"),
    ),
    Metric(
        *("dask_server_event_loop_delay_seconds", "histogram", "seconds", ()),
        "How late the timers of the event loop are, measured five times per second",
        _delays,
    ),
    Metric(
        *("dask_server_event_loop_delay_maximum_seconds", "gauge", "seconds", ()),
        "The longest delay of the event loop so far",
        _value("event_loop", "delay_max"),
    ),
    Metric(
        *("dask_server_tick_count", "counter", "", ()),
        "Ticks of the event loop, if the server's periodic callbacks are started",
        _value("ticks", "count"),
    ),
    Metric(
        *("dask_server_tick_duration_maximum_seconds", "gauge", "seconds", ()),
        "The longest time between two ticks so far",
        _value("ticks", "max"),
    ),
    Metric(
        *("process_cpu_seconds", "counter", "seconds", ()),
        "CPU time of the process, user and system",
        _value("process", "cpu_seconds"),
    ),
    Metric(
        *("process_resident_memory_bytes", "gauge", "bytes", ()),
        "Resident memory of the process",
        _value("process", "memory"),
    ),
    Metric(
        *("process_virtual_memory_bytes", "gauge", "bytes", ()),
        "Virtual memory of the process",
        _value("process", "virtual_memory"),
    ),
    Metric(
        *("process_open_fds", "gauge", "", ()),
        "Open file descriptors of the process",
        _value("process", "open_fds"),
    ),
    Metric(
        *("process_max_fds", "gauge", "", ()),
        "Maximum number of open file descriptors of the process",
        _value("process", "max_fds"),
    ),
    Metric(
        *("process_start_time_seconds", "gauge", "seconds", ()),
        "Time at which the process started, since the epoch",
        _value("process", "start_time"),
    ),
    Metric(
        *("python_threads", "gauge", "", ()),
        "Threads of Python in the process",
        _value("process", "threads"),
    ),
    Metric(
        *("python_gc_collections", "counter", "", ("generation",)),
        "Runs of the garbage collector, by generation",
        _generations,
    ),
    Metric(
        *("python_info", "gauge", "", ("version",)),
        "The version of Python",
        _python,
    ),
)
