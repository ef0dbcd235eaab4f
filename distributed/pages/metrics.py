"""The figures of a server as metrics for Prometheus, in OpenMetrics or in its text format.

:func:`openmetrics` renders a snapshot (:mod:`distributed.core.figures`), :class:`MetricsHandler`
answers ``GET /metrics``, :func:`push` sends a snapshot to a gateway.  The snapshot is taken on the
event loop, which takes less than a millisecond; all else happens in a thread.

This needs the library ``prometheus_client``, from the extra ``metrics``.  Without it, the handler
answers with the same figures as JSON.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tornado.web import RequestHandler

from distributed.base.event_loop import offload
from distributed.pages.metric_table import METRICS, Figures

if TYPE_CHECKING:
    from prometheus_client import Metric as Family
    from prometheus_client.registry import Collector

__all__ = ["METRICS", "FiguresCollector", "MetricsHandler", "openmetrics", "plain_text", "push"]

_NO_LIBRARY = "metrics need the library prometheus_client: pip install 'distributed-core[metrics]'"


def _families(figures: Figures) -> Iterator[Family]:
    """Yield the metrics that have values, as objects of ``prometheus_client``."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
    )

    for name, kind, unit, labels, meaning, samples in METRICS:
        found = [(values, value) for values, value in samples(figures) if value is not None]
        if not found:
            continue
        if kind == "histogram":
            histogram = HistogramMetricFamily(name, meaning, labels=labels, unit=unit)
            for values, (buckets, total) in found:
                histogram.add_metric(values, buckets, total)
            yield histogram
        elif kind == "info":
            info = InfoMetricFamily(name, meaning)
            for values, _ in found:
                info.add_metric((), dict(zip(labels, values, strict=True)))
            yield info
        else:
            simple = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
            family = simple(name, meaning, labels=labels, unit=unit)
            for values, value in found:
                family.add_metric(values, value)
            yield family


class FiguresCollector:
    """A collector of ``prometheus_client`` whose metrics are the figures of servers.

    Parameters
    ----------
    figures
        A snapshot, or a function that returns one.  A registry calls it at each scrape, in the
        thread of the scrape.
    others
        A collector, such as ``prometheus_client.REGISTRY``, whose metrics are added, except those
        of names that the figures have.

    Examples
    --------
    >>> from prometheus_client import CollectorRegistry
    >>> def register(server):
    ...     CollectorRegistry().register(FiguresCollector(lambda: figures(server)))
    """

    def __init__(
        self, figures: Figures | Callable[[], Figures], others: Collector | None = None
    ) -> None:
        self._figures = figures
        self._others = others

    def describe(self) -> Iterable[Family]:
        """Return no metrics: a registry that collects at registration would call the server."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Yield the metrics."""
        figures = self._figures() if callable(self._figures) else self._figures
        names = set()
        for family in _families(figures):
            names.add(family.name)
            yield family
        if self._others is not None:
            for family in self._others.collect():
                if family.name not in names:
                    yield family


def openmetrics(figures: Figures, others: Collector | None = None) -> bytes:
    """Render a snapshot of figures in the format OpenMetrics.

    Parameters
    ----------
    figures
        A result of :func:`distributed.core.figures.figures` or
        :func:`distributed.core.figures.aggregate`.
    others
        As for :class:`FiguresCollector`.

    Raises
    ------
    ImportError
        If ``prometheus_client`` is not installed.
    """
    _check_library()
    from prometheus_client.openmetrics.exposition import generate_latest

    rendered: bytes = generate_latest(FiguresCollector(figures, others))
    return rendered


def plain_text(figures: Figures, others: Collector | None = None) -> bytes:
    """Render a snapshot of figures in the text format of Prometheus; see :func:`openmetrics`."""
    _check_library()
    from prometheus_client.exposition import generate_latest

    rendered: bytes = generate_latest(FiguresCollector(figures, others))
    return rendered


class MetricsHandler(RequestHandler):
    """Answers ``GET /metrics``.

    The header ``Accept`` chooses OpenMetrics (``application/openmetrics-text``), JSON
    (``application/json``) or, by default, the text format of Prometheus.

    Parameters
    ----------
    take
        Returns a snapshot of figures; called on the event loop, for each request.
    with_others
        Whether to add the metrics of the application, those in ``prometheus_client.REGISTRY``.

    Examples
    --------
    >>> from functools import partial
    >>> from tornado.web import Application
    >>> from distributed.core.figures import figures
    >>> def application(server):
    ...     return Application([("/metrics", MetricsHandler, {"take": partial(figures, server)})])
    """

    def initialize(self, take: Callable[[], Figures], with_others: bool = True) -> None:
        """Take the parameters."""
        self._take = take
        self._with_others = with_others

    def compute_etag(self) -> None:
        """Return None: each answer differs from the one before."""

    async def get(self) -> None:
        """Answer with the metrics."""
        figures = self._take()
        accept = self.request.headers.get("Accept", "")
        if _prefers_json(accept) or not is_installed():
            if not is_installed():
                figures = {"note": f"{_NO_LIBRARY}; these are the figures as JSON", **figures}
            content_type, body = "application/json; charset=utf-8", await offload(_as_json, figures)
        else:
            from prometheus_client import REGISTRY, exposition

            encoder, content_type = exposition.choose_encoder(accept)
            others = REGISTRY if self._with_others else None
            body = await offload(encoder, FiguresCollector(figures, others))
        self.set_header("Content-Type", content_type)
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        await self.finish(body)


def is_installed() -> bool:
    """Return whether ``prometheus_client`` is installed."""
    return find_spec("prometheus_client") is not None


def _check_library() -> None:
    if not is_installed():
        raise ImportError(_NO_LIBRARY)


def _prefers_json(accept: str) -> bool:
    kinds = [part.partition(";")[0].strip() for part in accept.split(",")]
    return "application/json" in kinds and "application/openmetrics-text" not in kinds


def _as_json(figures: Figures) -> bytes:
    return json.dumps(figures, allow_nan=False).encode()


async def push(gateway: str, job: str, figures: Figures, **kwargs: Any) -> None:
    """Send a snapshot of figures to a Pushgateway, without blocking the event loop.

    Parameters
    ----------
    gateway, job, kwargs
        As for ``prometheus_client.push_to_gateway``, such as ``grouping_key`` and ``timeout``.
    figures
        The snapshot.

    Raises
    ------
    OSError
        If the gateway does not accept it.
    ImportError
        If ``prometheus_client`` is not installed.
    """
    _check_library()
    from prometheus_client import push_to_gateway

    collector: Any = FiguresCollector(figures)
    # Not in the offload thread: (de)serialization would wait for the gateway.
    await asyncio.to_thread(push_to_gateway, gateway, job, collector, **kwargs)
