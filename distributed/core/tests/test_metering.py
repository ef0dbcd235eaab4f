"""Digesting the measurements of coroutine methods."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest

from distributed.core.metering import context_meter_to_server_digest
from distributed.telemetry.meter import context_meter
from distributed.telemetry.statistics import Statistics
from distributed.utils_test import async_poll_for, gen_test


class Measured(Statistics):
    @context_meter_to_server_digest("tag")
    async def method(self, x, *, y=1):
        """Return x and y."""
        context_meter.digest_metric("label", x, "seconds")
        context_meter.digest_metric(("a", "b"), y, "bytes")
        return x, y

    @context_meter_to_server_digest("tag")
    async def in_a_thread(self):
        await asyncio.to_thread(context_meter.digest_metric, "label", 1, "count")

    def digest_metric(self, name, value):
        self.thread = threading.current_thread()
        super().digest_metric(name, value)


@gen_test()
async def test_measurements_of_a_decorated_method_are_digested():
    server = Measured("Measured")
    assert await server.method(2, y=3) == (2, 3)
    assert server.digests_total == {("tag", "label", "seconds"): 2, ("tag", "a", "b", "bytes"): 3}


@gen_test()
async def test_measurements_outside_a_decorated_method_are_not_digested():
    server = Measured("Measured")
    await server.method(2)
    context_meter.digest_metric("label", 40, "seconds")
    assert server.digests_total[("tag", "label", "seconds")] == 2


@gen_test()
async def test_measurements_of_another_thread_are_digested_in_the_thread_of_the_loop():
    server = Measured("Measured")
    await server.in_a_thread()
    await async_poll_for(lambda: server.digests_total, period=0.001)
    assert server.digests_total == {("tag", "label", "count"): 1}
    assert server.thread is threading.main_thread()


def test_a_decorated_method_keeps_its_name_signature_and_kind():
    method = Measured("Measured").method
    assert method.__name__ == "method"
    assert method.__doc__ == "Return x and y."
    assert list(inspect.signature(method).parameters) == ["x", "y"]
    assert inspect.iscoroutinefunction(method)


def test_decorating_a_plain_method_is_an_error_that_suggests_async_def():
    def plain(self):
        pass

    with pytest.raises(TypeError, match="declare it with 'async def'"):
        context_meter_to_server_digest("tag")(plain)
