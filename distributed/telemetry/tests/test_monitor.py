"""The system monitor and its probes."""

from __future__ import annotations

import contextlib
import importlib.machinery
import json
import mmap
import os
import resource
import sys
import threading
import time
import types

import pytest

from distributed.base import config
from distributed.telemetry.monitor import PsutilProbe, StandardProbe, SystemMonitor
from distributed.tests.environments import run_here, run_in

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture(params=["psutil", "standard library"])
def probe(request):
    if request.param == "psutil":
        pytest.importorskip("psutil")
        return PsutilProbe()
    return StandardProbe()


@pytest.fixture
def monitor(probe):
    monitor = SystemMonitor(monitor_gil_contention=False, probe=probe)
    yield monitor
    monitor.close()


def test_a_new_monitor_has_one_sample(monitor):
    assert monitor.count == 1
    assert monitor.recent()["memory"] > 0
    assert {len(values) for values in monitor.quantities.values()} == {1}


def test_update_returns_the_new_sample(monitor):
    sample = monitor.update()
    assert monitor.count == 2
    assert sample == monitor.recent()
    assert sample == {name: values[-1] for name, values in monitor.quantities.items()}


def test_every_sample_has_the_basic_quantities(monitor):
    assert list(monitor.update())[:3] == ["cpu", "memory", "time"]


@linux
def test_a_sample_has_the_quantities_of_the_original(probe):
    monitor = SystemMonitor(
        monitor_disk_io=True, monitor_host_cpu=True, monitor_gil_contention=False, probe=probe
    )
    expected = {
        "cpu",
        "memory",
        "time",
        "host_net_io.read_bps",
        "host_net_io.write_bps",
        "host_cpu.user",
        "host_cpu.system",
        "host_cpu.idle",
        "num_fds",
    }
    if monitor.monitor_disk_io:
        expected |= {"host_disk_io.read_bps", "host_disk_io.write_bps"}
    assert expected <= set(monitor.update())


def test_a_monitor_has_the_attributes_and_quantities_of_the_original(original_python):
    pytest.importorskip("psutil")
    program = """
import json
import mmap
from distributed.system_monitor import SystemMonitor
monitor = SystemMonitor(monitor_host_cpu=True, monitor_gil_contention=False)
names = [name for name in dir(monitor) if not name.startswith("_")]
print(json.dumps([names, list(monitor.recent()), list(monitor.range_query(0)), monitor.gpu_name]))
"""
    done = run_in(original_python, ["-c", program])
    names, recent, queried, gpu_name = json.loads(done.stdout)
    monitor = SystemMonitor(monitor_host_cpu=True, monitor_gil_contention=False)
    assert set(names) <= set(dir(monitor))
    if gpu_name is None:
        assert (set(monitor.recent()), set(monitor.range_query(0))) == (set(recent), set(queried))


def test_last_time_is_that_of_the_newest_sample_on_the_monotonic_clock(monitor):
    before = time.monotonic()
    monitor.update()
    assert before <= monitor.last_time <= time.monotonic()


def test_a_sample_has_the_memory_that_get_process_memory_returns(monitor):
    monitor.get_process_memory = lambda: 12345
    assert monitor.update()["memory"] == 12345
    assert monitor.recent()["memory"] == 12345


def test_proc_is_the_process_of_psutil(monitor):
    pytest.importorskip("psutil")
    assert monitor.proc.pid == os.getpid()
    assert monitor.proc is monitor.proc


def test_proc_is_none_without_psutil(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert SystemMonitor(monitor_gil_contention=False).proc is None


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="psutil is the only source")
def test_no_library_is_imported_to_take_samples():
    run_here("""
        import sys
        from distributed.telemetry.monitor import SystemMonitor
        before = set(sys.modules)
        monitor = SystemMonitor(monitor_gil_contention=False)
        monitor.update()
        assert set(sys.modules) == before
    """)


@contextlib.contextmanager
def no_free_descriptor():
    """Use up the file descriptors of this process, with a low limit, during a block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = []
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_free_file_descriptor_a_sample_repeats_the_last_values(monitor):
    before = monitor.update()
    with no_free_descriptor():
        sample = monitor.update()
    assert set(sample) == set(before)
    assert (sample["memory"], sample["num_fds"]) == (before["memory"], before["num_fds"])
    lengths = {len(values) for values in monitor.quantities.values()}
    assert lengths == {monitor.count}
    assert monitor.update()["num_fds"] > 0


def test_a_monitor_created_without_a_free_file_descriptor_is_an_error_and_can_be_repeated():
    names = set(SystemMonitor(monitor_gil_contention=False).quantities)
    with no_free_descriptor(), pytest.raises(OSError, match="Too many open files"):
        SystemMonitor(monitor_gil_contention=False, probe=StandardProbe())
    assert set(SystemMonitor(monitor_gil_contention=False).quantities) == names


def test_time_is_the_time_of_day(monitor):
    assert abs(monitor.update()["time"] - time.time()) < 60


def test_cpu_is_in_percent_of_one_cpu(monitor):
    start = time.monotonic()
    monitor.update()
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:
        pass
    cpu = monitor.update()["cpu"]
    elapsed = time.monotonic() - start
    assert 100 * 0.2 / elapsed - 1 < cpu < 100 * (os.cpu_count() or 1) + 50


def test_memory_is_the_resident_memory_of_this_process(monitor):
    before = monitor.get_process_memory()
    # pages from the kernel: an allocator could hand out memory that is resident already
    with mmap.mmap(-1, 64 * 1024 * 1024) as block:
        block[::4096] = b"x" * len(block[::4096])
        assert monitor.get_process_memory() - before > 48 * 1024 * 1024


@linux
def test_num_fds_counts_open_descriptors(monitor):
    before = monitor.update()["num_fds"]
    with open(os.devnull), open(os.devnull):
        assert monitor.update()["num_fds"] == before + 2


@linux
def test_network_traffic_is_a_rate(probe):
    import socket

    monitor = SystemMonitor(
        monitor_disk_io=False, monitor_gil_contention=False, probe=probe, maxlen=10
    )
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind(("127.0.0.1", 0))
        for _ in range(100):
            sender.sendto(bytes(10_000), receiver.getsockname())
    assert monitor.update()["host_net_io.write_bps"] > 0


def test_range_query_returns_new_samples(monitor):
    for _ in range(3):
        monitor.update()
    start = monitor.count
    new = [monitor.update(), monitor.update()]
    for name, values in monitor.range_query(start).items():
        assert values == [sample[name] for sample in new]


def test_range_query_from_the_start_returns_all_samples(monitor):
    monitor.update()
    everything = {name: list(values) for name, values in monitor.quantities.items()}
    assert monitor.range_query(0) == everything


@pytest.mark.parametrize("ahead", [0, 1, 100])
def test_range_query_returns_empty_lists_without_new_samples(monitor, ahead):
    result = monitor.range_query(monitor.count + ahead)
    assert set(result) == set(monitor.quantities)
    assert all(values == [] for values in result.values())


def test_old_samples_are_dropped():
    monitor = SystemMonitor(maxlen=3, monitor_gil_contention=False)
    times = [monitor.update()["time"] for _ in range(7)]
    assert monitor.count == 8
    assert monitor.range_query(0)["time"] == times[-3:]
    assert monitor.range_query(7)["time"] == times[-1:]


def test_the_newest_sample_is_always_kept():
    monitor = SystemMonitor(maxlen=0, monitor_gil_contention=False)
    assert monitor.recent()["memory"] > 0


def test_maxlen_none_keeps_all_samples():
    monitor = SystemMonitor(maxlen=None, monitor_gil_contention=False)
    assert monitor.quantities["time"].maxlen is None


def test_defaults_are_read_from_the_configuration():
    with config.set(
        {
            "distributed.admin.system-monitor.log-length": 5,
            "distributed.admin.system-monitor.disk": False,
            "distributed.admin.system-monitor.host-cpu": True,
            "distributed.admin.system-monitor.gil.enabled": False,
        }
    ):
        monitor = SystemMonitor()
    assert monitor.maxlen == 5
    assert not monitor.monitor_disk_io
    assert not monitor.monitor_gil_contention
    assert monitor.monitor_host_cpu == (StandardProbe().host_cpu() is not None)


def test_memory_and_cpu_time_are_measured_without_proc(tmp_path):
    probe = StandardProbe(proc=str(tmp_path))
    monitor = SystemMonitor(monitor_host_cpu=True, monitor_gil_contention=False, probe=probe)
    sample = monitor.update()
    assert set(sample) - {"num_fds"} == {"cpu", "memory", "time"}
    assert sample["memory"] > 1_000_000


def test_a_source_that_fails_later_counts_as_unchanged(tmp_path):
    (tmp_path / "stat").write_text("cpu  100 0 50 1000\n")
    probe = StandardProbe(proc=str(tmp_path))
    monitor = SystemMonitor(monitor_host_cpu=True, monitor_gil_contention=False, probe=probe)
    (tmp_path / "stat").unlink()
    assert monitor.update()["host_cpu.user"] == 0
    assert {len(values) for values in monitor.quantities.values()} == {2}


def test_proc_files_are_parsed_as_described_in_proc_5(tmp_path):
    (tmp_path / "stat").write_text("cpu  100 1 50 1000\ncpu0 1 1 1 1\n")
    (tmp_path / "net").mkdir()
    (tmp_path / "net/dev").write_text(
        "Inter-|   Receive                |  Transmit\n"
        " face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n"
        "    lo: 1000 1 0 0 0 0 0 0 2000 1 0 0 0 0 0 0\n"
        "wlp0s20f3:30 1 0 0 0 0 0 0 40 1 0 0 0 0 0 0\n"
    )
    probe = StandardProbe(proc=str(tmp_path))
    ticks = os.sysconf("SC_CLK_TCK")
    assert probe.host_cpu() == {
        "user": 100 / ticks,
        "nice": 1 / ticks,
        "system": 50 / ticks,
        "idle": 1000 / ticks,
    }
    assert probe.net_io() == {"read_bps": 1030, "write_bps": 2040}


@linux
def test_the_standard_library_and_psutil_agree():
    pytest.importorskip("psutil")
    ours, theirs = StandardProbe(), PsutilProbe()
    assert ours.memory() == pytest.approx(theirs.memory(), rel=0.05)
    # psutil counts the descriptor that it opens to count them.
    count = ours.num_fds()
    assert count is not None
    assert theirs.num_fds() in {count, count + 1}
    for name in ("net_io", "disk_io", "host_cpu"):
        first, middle, last = (getattr(probe, name)() for probe in (ours, theirs, ours))
        assert set(first) == set(middle)
        for key, value in middle.items():
            # Idle time can decrease by a tick between two readings: proc(5).
            assert first[key] - 0.05 <= value <= last[key] + 0.05


def test_gil_contention_is_recorded_with_its_library():
    pytest.importorskip("gilknocker")
    monitor = SystemMonitor(monitor_gil_contention=True)
    try:
        assert monitor.monitor_gil_contention
        assert 0 <= monitor.update()["gil_contention"] <= 1
    finally:
        monitor.close()
    assert 0 <= monitor.update()["gil_contention"] <= 1


class HalfContended:
    """A stand-in for ``gilknocker.KnockKnock``: every second wait for the GIL has to wait."""

    contention_metric = 0.5

    def __init__(self, polling_interval_micros):
        pass

    def start(self):
        pass

    def reset_contention_metric(self):
        pass

    def stop(self):
        pass


def test_gil_contention_is_added_up_in_seconds(monkeypatch):
    library = types.ModuleType("gilknocker")
    library.__spec__ = importlib.machinery.ModuleSpec("gilknocker", None)
    library.KnockKnock = HalfContended
    monkeypatch.setitem(sys.modules, "gilknocker", library)
    monitor = SystemMonitor(monitor_gil_contention=True)
    start, contention = monitor.last_time, monitor.cumulative_gil_contention
    for _ in range(3):
        assert monitor.update()["gil_contention"] == 0.5
    expected = 0.5 * (monitor.last_time - start)
    assert monitor.cumulative_gil_contention - contention == pytest.approx(expected)


def test_gil_contention_is_omitted_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "gilknocker", None)
    monitor = SystemMonitor(monitor_gil_contention=True)
    assert not monitor.monitor_gil_contention
    assert "gil_contention" not in monitor.update()


def test_without_psutil_the_standard_library_measures(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monitor = SystemMonitor(monitor_gil_contention=False)
    assert isinstance(monitor._probe, StandardProbe)
    assert monitor.update()["memory"] > 0


def test_a_monitor_does_not_start_a_thread(monitor):
    before = threading.active_count()
    monitor.update()
    assert threading.active_count() == before


def test_the_repr_shows_the_newest_sample(monitor):
    assert repr(monitor).startswith("<SystemMonitor: cpu: ")
    assert " MB" in repr(monitor)
