"""The hook through which low-level code is metered."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from distributed.base import metering
from distributed.base.event_loop import offload
from distributed.utils_test import gen_test


@pytest.fixture
def measured(monkeypatch):
    """The labels that were measured, in the order in which the measurements ended."""
    labels: list[str] = []

    @contextmanager
    def measure(label):
        try:
            yield
        finally:
            labels.append(label)

    monkeypatch.setattr(metering, "measure", measure)
    monkeypatch.setattr(metering, "is_metered", lambda: True)
    return labels


@metering.metered("double")
def double(x):
    return 2 * x


def test_each_call_of_a_metered_function_is_measured(measured):
    assert (double(2), double(x=3)) == (4, 6)
    assert measured == ["double", "double"]


def test_a_call_that_raises_is_measured(measured):
    with pytest.raises(TypeError):
        double(None)
    assert measured == ["double"]


def test_a_function_can_be_called_without_its_meter(measured):
    assert metering.unmetered(double)(2) == 4
    assert metering.unmetered(len) is len
    assert measured == []


def test_without_a_listener_nothing_is_measured(measured, monkeypatch):
    monkeypatch.setattr(metering, "is_metered", bool)
    assert double(2) == 4
    assert measured == []


@gen_test()
async def test_offloading_is_measured_around_the_measurements_of_the_function(measured):
    assert await offload(double, 2) == 4
    assert measured == ["double", "offload"]
