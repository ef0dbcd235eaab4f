"""The figures of a server as metrics: names, values, formats, and the page that lists them."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from distributed.core import rpc
from distributed.core.figures import aggregate, figures
from distributed.pages import metrics
from distributed.pages.metrics import METRICS, FiguresCollector, MetricsHandler, openmetrics
from distributed.telemetry.loop_delay import measuring
from distributed.tests.servers import TCP, ask, connected, quiet, serving
from distributed.utils_test import async_poll_for, gen_test

prometheus_client = pytest.importorskip("prometheus_client")

from prometheus_client import parser as plain_parser  # noqa: E402
from prometheus_client.openmetrics import parser as openmetrics_parser  # noqa: E402

PAGE = Path(__file__).parents[3] / "docs" / "metrics.rst"


def parsed(text, parser=openmetrics_parser):
    """Return (name of a sample, labels) → value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(samples, name, **labels):
    return samples[name, frozenset(labels.items())]


def fail():
    raise ValueError("went wrong")


@asynccontextmanager
async def used_server():
    """Run a server that has answered three requests and measured a delay of its event loop."""
    with measuring() as delay:
        async with serving(TCP, {"fail": fail}) as server, rpc(server.address) as remote:
            await remote.echo(data=1)
            await remote.echo(data=2)
            with quiet(), pytest.raises(ValueError, match="went wrong"):
                await remote.fail()
            server._server_statistics.measure_tick()
            server._server_statistics.measure_tick()
            await async_poll_for(lambda: delay.count, timeout=10)
            yield server


@asynccontextmanager
async def http(handlers):
    """Serve *handlers* over HTTP on this event loop; yield the URL."""
    server = HTTPServer(Application(handlers))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.stop()
        await server.close_all_connections()


async def get(url, accept=None):
    headers = {} if accept is None else {"Accept": accept}
    return await AsyncHTTPClient(force_instance=True).fetch(url, headers=headers)


# Values


@gen_test()
async def test_both_formats_have_the_values_of_the_figures():
    async with used_server() as server:
        snapshot = figures(server)
        texts = openmetrics(snapshot), metrics.plain_text(snapshot)
    for text, parser in zip(texts, (openmetrics_parser, plain_parser), strict=True):
        samples = parsed(text, parser)
        requests = "dask_server_requests_total"
        assert value(samples, requests, op="echo", outcome="ok") == 2
        assert value(samples, requests, op="fail", outcome="ok") == 0
        assert value(samples, requests, op="fail", outcome="error") == 1
        assert value(samples, "dask_server_requests_in_progress", op="echo") == 0
        latency = "dask_server_request_duration_seconds"
        assert value(samples, f"{latency}_count", op="echo") == 2
        assert value(samples, f"{latency}_bucket", op="echo", le="+Inf") == 2
        assert value(samples, f"{latency}_bucket", op="echo", le="60.0") == 2
        seconds = snapshot["operations"]["echo"]["seconds"]
        assert value(samples, f"{latency}_sum", op="echo") == seconds
        traffic = snapshot["traffic"]["tcp"]
        assert (
            value(samples, "dask_server_transfer_incoming_bytes_total", transport="tcp")
            == traffic["bytes_received"]
            > 0
        )
        assert value(samples, "dask_server_transfer_outgoing_count_total", transport="tcp") == 3
        assert value(samples, "dask_server_connections", state="idle") == 1
        assert value(samples, "dask_server_connections", state="active") == 0
        assert value(samples, "dask_server_pool_connections_limit") == 512
        loop = snapshot["event_loop"]
        assert value(samples, "dask_server_event_loop_delay_seconds_sum") == loop["delay_sum"]
        assert value(samples, "process_resident_memory_bytes") == snapshot["process"]["memory"]
        (info,) = [dict(labels) for name, labels in samples if name == "dask_server_info"]
        assert info["address"] == snapshot["server"]["address"]
        assert info["type"] == "Server"


@gen_test()
async def test_all_metrics_have_samples_and_no_others_exist():
    async with used_server() as server:
        families = list(FiguresCollector(figures(server)).collect())
    assert {(family.name, family.type) for family in families} == {
        (metric.name, metric.kind) for metric in METRICS
    }
    for family in families:
        metric = next(metric for metric in METRICS if metric.name == family.name)
        assert family.samples
        assert family.documentation == metric.meaning
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


def test_names_follow_the_conventions_of_prometheus():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"(dask_server|process|python)(_[a-z]+)*", metric.name)
        assert not metric.name.endswith(("_total", "_count_total", "_bucket", "_sum", "_created"))
        ends = [unit for unit in ("seconds", "bytes") if metric.name.endswith(f"_{unit}")]
        assert ([metric.unit] if metric.unit else []) == ends
        assert not metric.meaning.endswith(".")


def test_the_names_of_dask_are_used_where_dask_has_them():
    # As its scheduler and workers export them, with "scheduler" or "worker" for "server".
    of_dask = {
        ("tick_count", "counter"),
        ("tick_duration_maximum_seconds", "gauge"),
        ("transfer_incoming_count", "counter"),
        ("transfer_outgoing_count", "counter"),
        ("transfer_outgoing_bytes", "counter"),
    }
    ours = {(metric.name.removeprefix("dask_server_"), metric.kind) for metric in METRICS}
    assert of_dask <= ours


@gen_test()
async def test_hostile_names_of_operations_make_no_series():
    async with used_server() as server, connected(server) as comm:
        with quiet():
            await ask(comm, {"op": "first unknown"})
            before = parsed(openmetrics(figures(server)))
            for i in range(100):
                await ask(comm, {"op": f'invented{i}"}} 1\n# EOF'})
        after = parsed(openmetrics(figures(server)))
    assert after.keys() == before.keys()
    rejected = "dask_server_requests_rejected_total"
    assert value(after, rejected, reason="unknown-op") == 101


@gen_test()
async def test_the_names_of_own_operations_are_escaped():
    name = 'a "quoted"\\\nname}'
    async with serving(TCP, {name: lambda: 1}) as server, connected(server) as comm:
        await ask(comm, {"op": name})
        snapshot = figures(server)
    for text, parser in (
        (openmetrics(snapshot), openmetrics_parser),
        (metrics.plain_text(snapshot), plain_parser),
    ):
        samples = parsed(text, parser)
        assert value(samples, "dask_server_requests_total", op=name, outcome="ok") == 1


@gen_test()
async def test_the_figures_of_several_servers_have_the_series_of_one():
    async with used_server() as first, serving("inproc://") as second:
        both = parsed(openmetrics(aggregate([figures(first), figures(second)])))
        alone = parsed(openmetrics(figures(first)))
        addresses = {dict(labels)["address"] for n, labels in both if n == "dask_server_info"}
        assert addresses == {first.address, second.address}
    assert {name for name, _ in alone} == {name for name, _ in both}
    assert value(both, "dask_server_pool_connections_limit") == 1024


@gen_test()
async def test_a_registry_of_the_application_can_collect_the_figures():
    async with used_server() as server:
        registry = prometheus_client.CollectorRegistry()
        registry.register(FiguresCollector(partial(figures, server)))
        text = prometheus_client.generate_latest(registry)
        assert (
            value(parsed(text, plain_parser), "dask_server_requests_total", op="echo", outcome="ok")
            == 2
        )


# Over HTTP


@gen_test()
async def test_the_header_accept_chooses_the_format():
    async with used_server() as server:
        handler = ("/metrics", MetricsHandler, {"take": partial(figures, server)})
        async with http([handler]) as url:
            for accept, kind in (
                (None, "text/plain"),
                ("text/plain;version=0.0.4", "text/plain"),
                ("*/*", "text/plain"),
                ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "openmetrics"),
                ("application/json", "application/json"),
            ):
                response = await get(f"{url}/metrics", accept)
                assert kind in response.headers["Content-Type"]
                assert response.headers["Cache-Control"] == "no-store"
                if kind == "application/json":
                    assert json.loads(response.body)["operations"]["echo"]["count"] == 2
                    continue
                parser = openmetrics_parser if kind == "openmetrics" else plain_parser
                samples = parsed(response.body, parser)
                requests = "dask_server_requests_total"
                assert value(samples, requests, op="echo", outcome="ok") == 2


@gen_test()
async def test_the_metrics_of_the_application_are_there_too_unless_they_are_not_wanted():
    counter = prometheus_client.Counter("jobs_of_a_test", "Jobs")
    counter.inc(3)
    try:
        async with used_server() as server:
            take = {"take": partial(figures, server)}
            handlers = [
                ("/with", MetricsHandler, take),
                ("/without", MetricsHandler, {**take, "with_others": False}),
            ]
            async with http(handlers) as url:
                accept = "application/openmetrics-text;version=1.0.0"
                # The parser refuses names that occur twice, such as process_open_fds.
                with_others = parsed((await get(f"{url}/with", accept)).body)
                without = parsed((await get(f"{url}/without", accept)).body)
    finally:
        prometheus_client.REGISTRY.unregister(counter)
    assert value(with_others, "jobs_of_a_test_total") == 3
    assert "jobs_of_a_test_total" not in {name for name, _ in without}
    assert without.keys() <= with_others.keys()


@gen_test()
async def test_without_the_library_the_figures_are_answered_as_json(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    async with used_server() as server:
        handler = ("/metrics", MetricsHandler, {"take": partial(figures, server)})
        async with http([handler]) as url:
            response = await get(f"{url}/metrics", "application/openmetrics-text;version=1.0.0")
        answer = json.loads(response.body)
        assert response.headers["Content-Type"].startswith("application/json")
        assert "distributed-core[metrics]" in answer["note"]
        assert answer["operations"]["echo"]["outcomes"]["ok"] == 2
        for render in (openmetrics, metrics.plain_text):
            with pytest.raises(ImportError, match=r"distributed-core\[metrics\]"):
                render(figures(server))
        with pytest.raises(ImportError, match=r"distributed-core\[metrics\]"):
            await metrics.push("127.0.0.1:9", "job", figures(server))


class Recorder:
    """A collector that notes the thread in which it is called."""

    def __init__(self):
        self.threads = []

    def collect(self):
        self.threads.append(threading.get_ident())
        return ()


@gen_test()
async def test_a_scrape_renders_outside_of_the_event_loop():
    taken = []
    async with used_server() as server:

        def take():
            taken.append(threading.get_ident())
            return figures(server)

        recorder = Recorder()
        prometheus_client.REGISTRY.register(recorder)
        try:
            async with http([("/metrics", MetricsHandler, {"take": take})]) as url:
                recorder.threads.clear()
                await get(f"{url}/metrics")
        finally:
            prometheus_client.REGISTRY.unregister(recorder)
    here = threading.get_ident()
    assert taken == [here]
    assert recorder.threads
    assert here not in recorder.threads


@gen_test()
async def test_a_push_does_not_block_the_event_loop():
    received = asyncio.get_running_loop().create_future()

    class Gateway(RequestHandler):
        # On the event loop of the push, which therefore must not wait in this thread.
        def put(self, job):
            received.set_result((job, self.request.body))

    async with used_server() as server, http([("/metrics/job/(.*)", Gateway)]) as url:
        await metrics.push(url.removeprefix("http://"), "nightly", figures(server), timeout=30)
    job, body = await received
    assert job == "nightly"
    assert (
        value(parsed(body, plain_parser), "dask_server_requests_total", op="echo", outcome="ok")
        == 2
    )


# The page


def test_the_page_lists_exactly_these_metrics():
    rows = [
        [cell.strip() for cell in re.split(r"\n     -", row)]
        for row in re.split(r"\n   \* - ", PAGE.read_text().split("All metrics\n===", 1)[1])[2:]
    ]
    listed = {row[0].strip("`"): row[1:] for row in rows}
    suffix = {"counter": "_total", "info": "_info"}
    expected = {}
    for metric in METRICS:
        labels = ", ".join(f"``{label}``" for label in metric.labels)
        expected[metric.name + suffix.get(metric.kind, "")] = [
            metric.kind,
            labels,
            metric.unit,
            metric.meaning,
        ]
    listed = {name: [re.sub(r"\s+", " ", cell) for cell in row] for name, row in listed.items()}
    assert listed == expected
