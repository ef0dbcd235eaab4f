"""Serialization and offloading are measured by the context meter that roles share."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from distributed.base.event_loop import offload
from distributed.core.host import context_meter
from distributed.protocol import (
    Serialize,
    Serialized,
    ToPickle,
    deserialize_bytes,
    dumps,
    loads,
    serialize,
    serialize_bytes,
)
from distributed.utils_test import gen_test

WRITTEN = {"serialize": 1, "compress": 1}
READ = {"decompress": 1, "deserialize": 1}


class Measurements:
    """The number of measurements in seconds by label, and their values."""

    def __init__(self):
        self.counts = Counter()
        self.seconds = {}

    def __call__(self, label, value, unit):
        assert unit == "seconds"
        self.counts[label] += 1
        self.seconds[label] = self.seconds.get(label, 0) + value

    def of(self, func, *args, **kwargs):
        """Call *func*, and return its result and the number of measurements by label."""
        self.counts.clear()
        with context_meter.add_callback(self):
            result = func(*args, **kwargs)
        return result, dict(self.counts)


@pytest.fixture
def meter():
    return Measurements()


# The labels of each case are those of the original.
@pytest.mark.parametrize("codec", [None, "zlib"])
@pytest.mark.parametrize(
    "x",
    [b"abc", bytes(100_000), [1, b"2"], {"a": Counter()}, (b"a" * 50_000,) * 2],
    ids=lambda x: type(x).__name__,
)
def test_a_wrapped_value_is_measured(meter, codec, x):
    frames, written = meter.of(dumps, {"x": Serialize(x)}, context={"compression": codec})
    assert written == WRITTEN
    arrived, read = meter.of(loads, frames)
    assert arrived == {"x": x}
    assert read == READ


def test_arrays_whose_headers_are_cached_are_measured(meter):
    np = pytest.importorskip("numpy")
    x = np.arange(1000)
    loads(dumps({"x": Serialize(x)}))
    frames, written = meter.of(dumps, {"x": Serialize(x)})
    assert written == {"serialize": 1}
    arrived, read = meter.of(loads, frames)
    assert (arrived["x"] == x).all()
    assert read == {"deserialize": 1}


def test_pickled_values_are_measured_as_far_as_they_are_compressed(meter):
    np = pytest.importorskip("numpy")
    for x in (ToPickle(np.arange(1000)), np.arange(1000)):
        frames, written = meter.of(dumps, {"x": x})
        assert written == {"compress": 1}
        assert meter.of(loads, frames)[1] == {"decompress": 1}


def test_messages_without_such_values_are_not_measured(meter):
    frames, written = meter.of(dumps, {"op": "add", "x": [1, 2.5, "a"]})
    assert written == {}
    assert meter.of(loads, frames)[1] == {}


def test_values_that_are_passed_on_are_not_measured(meter):
    frames, written = meter.of(dumps, {"x": Serialized(*serialize(b"abc"))})
    assert written == {}
    assert meter.of(loads, frames, deserialize=False)[1] == {}


def test_stored_values_are_measured(meter):
    stored, written = meter.of(serialize_bytes, b"abc")
    assert written == WRITTEN
    assert meter.of(deserialize_bytes, stored)[1] == READ


def test_values_that_cannot_be_read_are_measured(meter):
    class Unreadable:
        def __reduce__(self):
            return divmod, (1, 0)

    frames = dumps({"x": Serialize(Unreadable())})
    with context_meter.add_callback(meter), pytest.raises(ZeroDivisionError):
        loads(frames)
    assert meter.counts == READ


@gen_test()
async def test_offloading_is_measured_without_the_serialization_in_the_thread(meter):
    x = [str(i) for i in range(30_000)]
    with context_meter.add_callback(meter), context_meter.meter("all"):
        await offload(dumps, {"x": Serialize(x)}, context={"compression": "zlib"})
    assert meter.counts.keys() == {"serialize", "compress", "offload", "all"}
    assert meter.seconds["offload"] < meter.seconds["serialize"]


def test_nothing_is_measured_before_the_core_is_imported():
    program = """
from distributed.base import metering
from distributed.protocol import Serialize, dumps
dumps(Serialize(b"a"))
assert not metering.is_metered()
import distributed.core
assert metering.measure.__self__ is distributed.core.host.context_meter
"""
    subprocess.run([sys.executable, "-c", program], check=True)
