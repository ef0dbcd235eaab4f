"""A short history of the resources used by this process and its host: CPU, memory, network, disk.

`SystemMonitor` keeps the samples. A *probe* takes them: `StandardProbe`, which reads ``/proc``, or
`PsutilProbe` on a platform without ``/proc`` if psutil is installed. A quantity that the platform
does not provide is omitted. A sample is taken only by `SystemMonitor.update`, in less than a
millisecond (a ``Server`` whose periodic callbacks are started calls it every
``distributed.admin.system-monitor.interval``).
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any, Final, Protocol, TypeAlias

from distributed.base import config
from distributed.telemetry.meter import monotonic, process_time, time

try:
    import resource
except ImportError:  # Windows
    _HAS_RESOURCE = False
else:
    _HAS_RESOURCE = True

__all__ = ["Counters", "Probe", "PsutilProbe", "StandardProbe", "SystemMonitor"]


Counters: TypeAlias = Mapping[str, float]
"""Name → a number that only increases; the monitor records the increase per second."""


class Probe(Protocol):
    """A source of measurements. None means that the platform does not provide the quantity.

    OSError means that it cannot be measured now, for instance without a free file descriptor.
    """

    def memory(self) -> int:
        """Return the resident memory of this process, in bytes."""

    def num_fds(self) -> int | None:
        """Return the number of open file descriptors of this process."""

    def net_io(self) -> Counters | None:
        """Return bytes over all network interfaces of the host: "read_bps" and "write_bps"."""

    def disk_io(self) -> Counters | None:
        """Return bytes from and to all disks of the host: "read_bps" and "write_bps"."""

    def host_cpu(self) -> Counters | None:
        """Return seconds spent by all CPUs of the host together: "user", "idle", …"""


class PsutilProbe:
    """A probe that uses psutil."""

    def __init__(self) -> None:
        self._psutil = import_module("psutil")
        self.process = self._psutil.Process()

    def memory(self) -> int:
        return int(self.process.memory_info().rss)

    def num_fds(self) -> int | None:
        return int(self.process.num_fds())

    def net_io(self) -> Counters | None:
        try:
            counters = self._psutil.net_io_counters()
        except OSError:  # a sandbox that hides /proc/net
            return None
        if counters is None:
            return None
        return {"read_bps": counters.bytes_recv, "write_bps": counters.bytes_sent}

    def disk_io(self) -> Counters | None:
        try:
            counters = self._psutil.disk_io_counters()
        except (OSError, NotImplementedError, RuntimeError):  # raised in some containers
            return None
        if counters is None:
            return None
        return {"read_bps": counters.read_bytes, "write_bps": counters.write_bytes}

    def host_cpu(self) -> Counters | None:
        times: Counters = self._psutil.cpu_times()._asdict()
        return times


class StandardProbe:
    """A probe that reads ``/proc``; without it, only memory and descriptors are available.

    On Windows, the memory is 0.

    Parameters
    ----------
    proc
        The mount point of the proc file system.
    """

    # Columns of the line "cpu" in /proc/stat, in 1/SC_CLK_TCK seconds: see proc(5).
    _CPU_COLUMNS = (
        *("user", "nice", "system", "idle", "iowait"),
        *("irq", "softirq", "steal", "guest", "guest_nice"),
    )
    # Bytes per sector in /proc/diskstats, independent of the sector size of the disk.
    _SECTOR = 512

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        # Only Windows lacks sysconf() and the module resource. It has no /proc either.
        self._page_size = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        self._clock_ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0

    def _lines(self, name: str) -> list[str]:
        try:
            with open(os.path.join(self._proc, name)) as file:
                return file.readlines()
        except OSError as exc:
            _raise_if_exhausted(exc)
            return []

    def memory(self) -> int:
        for line in self._lines("self/statm"):
            return int(line.split()[1]) * self._page_size
        if not _HAS_RESOURCE:
            return 0
        # POSIX provides only the peak: in KiB, except on macOS, where it is in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def num_fds(self) -> int | None:
        for directory in (os.path.join(self._proc, "self/fd"), "/dev/fd"):
            try:
                return len(os.listdir(directory)) - 1  # the listing itself opens a descriptor
            except OSError as exc:
                _raise_if_exhausted(exc)
        return None

    def net_io(self) -> Counters | None:
        lines = self._lines("net/dev")[2:]
        if not lines:
            return None
        # After a long interface name, there is no space between the colon and the number.
        columns = [line.rpartition(":")[2].split() for line in lines]
        return {
            "read_bps": sum(int(column[0]) for column in columns),
            "write_bps": sum(int(column[8]) for column in columns),
        }

    def disk_io(self) -> Counters | None:
        rows = [line.split() for line in self._lines("diskstats")]
        # The counters of a disk include its partitions; /sys/block lists only whole disks.
        disks = [row for row in rows if os.path.exists(f"/sys/block/{row[2].replace('/', '!')}")]
        if not disks:
            return None
        return {
            "read_bps": sum(int(row[5]) for row in disks) * self._SECTOR,
            "write_bps": sum(int(row[9]) for row in disks) * self._SECTOR,
        }

    def host_cpu(self) -> Counters | None:
        for line in self._lines("stat"):
            name, *ticks = line.split()
            if name == "cpu":
                return {
                    column: int(tick) / self._clock_ticks
                    for column, tick in zip(self._CPU_COLUMNS, ticks, strict=False)
                }
        return None


def _raise_if_exhausted(exc: OSError) -> None:
    """Raise *exc* if no file descriptor was free, which is not a property of the platform."""
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        raise exc


def _default_probe() -> Probe:
    # Both give the same values where there is /proc. The import of psutil takes several
    # milliseconds, which an event loop would wait for.
    if os.path.exists("/proc/self/statm") or find_spec("psutil") is None:
        return StandardProbe()
    return PsutilProbe()


def _start_gil_knocker() -> Any:
    """Return a running ``gilknocker.KnockKnock``, or None if that library is not installed."""
    if find_spec("gilknocker") is None:
        return None
    interval = config.get_timedelta("distributed.admin.system-monitor.gil.interval") or 0.001
    knocker = import_module("gilknocker").KnockKnock(polling_interval_micros=int(interval * 1e6))
    knocker.start()
    return knocker


class _FromConfiguration:
    """The type of the default of ``maxlen``, because None means unlimited."""


_FROM_CONFIGURATION: Final = _FromConfiguration()


class SystemMonitor:
    """A series of samples of the resources used by this process and its host.

    The defaults are keys of ``distributed.admin.system-monitor`` in the configuration.

    Parameters
    ----------
    maxlen
        Maximum number of samples to keep; None: unlimited (``log-length``).
    monitor_disk_io
        Whether to record the traffic of the host's disks (``disk``).
    monitor_host_cpu
        Whether to record the CPU time of the host (``host-cpu``).
    monitor_gil_contention
        Whether to record contention for the GIL (``gil.enabled``). This needs the library
        ``gilknocker``, which runs a thread; without the library it is not recorded.
    probe
        The source of measurements. Default: ``/proc``; on a platform without it, psutil if it is
        installed.

    Attributes
    ----------
    count
        Number of samples taken; at least 1.
    last_time
        Monotonic time of the newest sample, in seconds.
    cumulative_gil_contention
        Seconds of contention for the GIL since the monitor was created.
    proc
        The ``psutil.Process`` of this process, created at first use; None without psutil.
    gpu_name, gpu_memory_total
        None and -1: this monitor does not measure GPUs.
    quantities
        Name → the samples kept, oldest first, all of the same length:

        =============================  ====================================================
        ``cpu``                        CPU use of this process in percent of one CPU
        ``memory``                     resident memory of this process, in bytes
        ``time``                       time of the sample, in seconds since the epoch
        ``host_net_io.read_bps``       bytes per second since the last sample; also
                                       ``.write_bps``, and both of ``host_disk_io``
        ``host_cpu.user``, …           average number of CPUs in this state since the last
                                       sample
        ``gil_contention``             from 0 (none) to 1
        ``num_fds``                    open file descriptors of this process
        =============================  ====================================================

    Examples
    --------
    >>> monitor = SystemMonitor(maxlen=100)
    >>> sample = monitor.update()
    >>> sample["memory"] > 0
    True
    >>> len(monitor.range_query(0)["cpu"])
    2
    """

    # Invariant: all deques of `quantities` have the same length, while `_lock` is not held. Each
    # `update` appends one value to each: a source that gave None at creation is never read, and one
    # that gives None or OSError later counts as unchanged. A rate is the difference of two
    # readings, and 0 in the first sample.

    gpu_name: str | None = None
    gpu_memory_total: int = -1

    def __init__(
        self,
        maxlen: int | _FromConfiguration | None = _FROM_CONFIGURATION,
        monitor_disk_io: bool | None = None,
        monitor_host_cpu: bool | None = None,
        monitor_gil_contention: bool | None = None,
        *,
        probe: Probe | None = None,
    ) -> None:
        section = "distributed.admin.system-monitor"
        if isinstance(maxlen, _FromConfiguration):
            maxlen = config.get_int(f"{section}.log-length")
        if monitor_disk_io is None:
            monitor_disk_io = config.get_bool(f"{section}.disk")
        if monitor_host_cpu is None:
            monitor_host_cpu = config.get_bool(f"{section}.host-cpu")
        if monitor_gil_contention is None:
            monitor_gil_contention = config.get_bool(f"{section}.gil.enabled")

        # Held while `quantities` is changed or read: the servers of a process share a monitor.
        self._lock = threading.Lock()
        self._probe = _default_probe() if probe is None else probe
        sources = {"host_net_io": self._probe.net_io}
        if monitor_disk_io:
            sources["host_disk_io"] = self._probe.disk_io
        if monitor_host_cpu:
            sources["host_cpu"] = self._probe.host_cpu
        # Readings of the last sample: clocks in seconds, and the counters of each source.
        self.last_time = monotonic()
        self._last_cpu = process_time()
        readings = {name: read() for name, read in sources.items()}
        self._last_counters = {name: read for name, read in readings.items() if read is not None}
        # Name → the function of the probe that reads its counters.
        self._sources = {name: sources[name] for name in self._last_counters}
        # Whether the probe can count file descriptors.
        self._has_num_fds = self._probe.num_fds() is not None
        # The thread of gilknocker; None if the library is missing or not wanted.
        self._gil_knocker = _start_gil_knocker() if monitor_gil_contention else None
        # The newest value of "gil_contention", from 0 to 1.
        self._last_gil_contention = 0.0
        self.cumulative_gil_contention = 0.0

        self.monitor_net_io = "host_net_io" in self._sources
        self.monitor_disk_io = "host_disk_io" in self._sources
        self.monitor_host_cpu = "host_cpu" in self._sources
        self.monitor_gil_contention = self._gil_knocker is not None

        # `recent` needs at least one sample.
        self.maxlen = None if maxlen is None else max(1, maxlen)
        self.count = 0
        self.quantities: dict[str, deque[float]] = {}
        self.update()

    def __repr__(self) -> str:
        sample = self.recent()
        return (
            f"<SystemMonitor: cpu: {sample['cpu']:.1f} memory: {sample['memory'] / 1e6:.1f} MB"
            + (f" fds: {sample['num_fds']}>" if "num_fds" in sample else ">")
        )

    @cached_property
    def proc(self) -> Any:
        if find_spec("psutil") is None:
            return None
        return getattr(self._probe, "process", None) or import_module("psutil").Process()

    def get_process_memory(self) -> int:
        """Return the current resident memory of this process, in bytes.

        `update` records the result. Code that knows the memory better, such as a test of a worker's
        memory limits, may replace this method.
        """
        return self._probe.memory()

    def update(self) -> dict[str, float]:
        """Take a sample.

        Returns
        -------
        dict
            The new value of each of `quantities`.
        """
        with self._lock:
            sample = dict(self._measure())
            for name, value in sample.items():
                if name not in self.quantities:
                    self.quantities[name] = deque(maxlen=self.maxlen)
                self.quantities[name].append(value)
            self.count += 1
        return sample

    def _measure(self) -> Iterator[tuple[str, float]]:
        now, cpu = monotonic(), process_time()
        elapsed, self.last_time = now - self.last_time, now
        used, self._last_cpu = cpu - self._last_cpu, cpu

        def rate(difference: float) -> float:
            return difference / elapsed if self.count and elapsed > 0 else 0.0

        yield "cpu", round(100 * rate(used), 1)
        yield "memory", self._read_or_last("memory", self.get_process_memory)
        yield "time", time()
        for source, read in self._sources.items():
            before = self._last_counters[source]
            try:
                after = self._last_counters[source] = read() or before
            except OSError:
                after = before
            for name in before:
                yield f"{source}.{name}", rate(after[name] - before[name])
        if self._gil_knocker is not None:
            self._last_gil_contention = self._gil_knocker.contention_metric
            self._gil_knocker.reset_contention_metric()
            self.cumulative_gil_contention += self._last_gil_contention * elapsed
            yield "gil_contention", self._last_gil_contention
        if self._has_num_fds:
            yield "num_fds", self._read_or_last("num_fds", self._probe.num_fds)

    def _read_or_last(self, name: str, read: Callable[[], float | None]) -> float:
        """Return ``read()``, or the newest value of the quantity *name* if it cannot be read."""
        try:
            value = read()
        except OSError:
            if not self.count:
                raise
            value = None
        return self.quantities[name][-1] if value is None else value

    def recent(self) -> dict[str, float]:
        """Return the newest value of each of `quantities`."""
        with self._lock:
            return {name: values[-1] for name, values in self.quantities.items()}

    def range_query(self, start: int) -> dict[str, list[float]]:
        """Return the samples from number ``start`` on that are still kept.

        Parameters
        ----------
        start
            The `count` at the last query, to get the samples taken since.

        Returns
        -------
        dict
            Name → values, oldest first; empty lists if there are no new samples.
        """
        with self._lock:
            wanted = max(0, self.count - start)
            return {
                name: list(islice(values, max(0, len(values) - wanted), None))
                for name, values in self.quantities.items()
            }

    def close(self) -> None:
        """Stop the thread of gilknocker, if any. Samples stay readable, and `update` works."""
        if self._gil_knocker is not None:
            self._gil_knocker.stop()
