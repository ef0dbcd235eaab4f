"""``ping``, ``bench``, and the figures of samples."""

from __future__ import annotations

import signal
import subprocess
from itertools import pairwise

import pytest

from distributed.cli import exit_codes
from distributed.cli.samples import histogram, histogram_lines, in_units, percentile, summary
from distributed.cli.tests import calculator
from distributed.cli.tests.conftest import ready_address
from distributed.utils_test import popen


def test_ping_shows_percentiles_and_a_histogram(cli, server):
    result = cli("ping", server, "-n", 20, "--size", "1kB")
    assert (result.code, result.err) == (0, "")
    assert result.lines[0] == f"20 round trips to {server}, 1,000 bytes each way"
    for name in ("min", "median", "p99", "max"):
        assert f"{name} " in result.lines[1]
    assert any("####" in line for line in result.lines[2:])


def test_ping_is_json_on_request(cli, server):
    found = cli("ping", server, "-n", 10, "--interval", "1ms", "--json").json
    seconds = found["seconds"]
    assert seconds["count"] == 10
    assert seconds["min"] <= seconds["median"] <= seconds["p99"] <= seconds["max"]
    assert sum(bucket["number"] for bucket in found["histogram"]) == 10


def test_ctrl_c_shows_the_round_trips_so_far(command, server):
    arguments = [*command, "ping", server, "-n", "1000000", "-i", "1ms"]
    while calculator.echoes.acquire(blocking=False):
        pass
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(5):
            assert calculator.echoes.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == exit_codes.INTERRUPTED
    assert f"round trips to {server}" in out
    assert err.strip() == ""


def test_ping_ends_at_its_time_limit(cli, server):
    result = cli("ping", server, "-n", 1_000_000, "-i", "1ms", "--timeout", "100ms")
    assert result.code == exit_codes.TIMED_OUT
    assert "round trips" in result.out


def test_bench_measures_the_echo_of_any_server(cli, server):
    args = ["--duration", "20ms", "--size", "100kB", "--concurrency", 3]
    result = cli("bench", server, *args)
    assert (result.code, result.err) == (0, "")
    assert " calls/s " in result.lines[1]
    assert "3 calls at a time" in result.lines[2]
    assert "there and back" in result.lines[3]
    assert "GB/s" in result.lines[3]


def test_bench_measures_each_direction_with_its_own_server(cli):
    args = ["bench", "--serve", "--listen", "tcp://127.0.0.1:0"]
    with popen(["python", "-m", "distributed.cli", *args], capture_output=True) as process:
        address = ready_address(process.stdout)
        options = ["--duration", "20ms", "--size", "100kB", "--concurrency", 2, "--json"]
        found = cli("bench", address, *options).json
    assert found["sequential"]["calls_per_second"] > 0
    assert found["concurrent"]["calls"] == 2
    assert found["bandwidth"]["message_bytes"] == 100_000
    for way in ("to_server", "from_server"):
        assert found["bandwidth"][way]["bytes_per_second"] > 0


def test_a_percentile_is_a_sample():
    samples = [float(i) for i in range(1, 101)]
    assert [percentile(samples, percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([3.0], 99) == 3


def test_the_summary_of_samples():
    assert summary([4.0, 1.0, 1.0]) == {
        "count": 3,
        "min": 1.0,
        "median": 1.0,
        "mean": 2.0,
        "p99": 4.0,
        "max": 4.0,
    }


@pytest.mark.parametrize(
    "samples", [[1.0], [1.0, 1.0], [1e-5, 1.0, 0.3, 0.3], [0.0, 1.0], [1.0, 1.3, 1.31, 2.0] * 9]
)
def test_each_sample_is_in_one_bucket_of_the_histogram(samples):
    buckets = histogram(samples)
    assert sum(bucket.number for bucket in buckets) == len(samples)
    assert buckets[0].start == min(samples)
    assert buckets[-1].end == pytest.approx(max(samples))
    for one, other in pairwise(buckets):
        assert one.end == pytest.approx(other.start)
    for bucket in buckets:
        found = sum(bucket.start <= it < bucket.end * (1 + 1e-9) for it in samples)
        assert found >= bucket.number
    assert len(histogram_lines(samples)) == len(buckets) <= 12


def test_durations_have_units():
    assert [in_units(it) for it in (0, 1e-7, 5e-5, 0.0025, 1.5, 3600)] == [
        *("0 us", "0.1 us", "50 us", "2.5 ms", "1.5 s", "3.6e+03 s")
    ]
