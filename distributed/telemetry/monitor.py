"""A short history of what this process and its host use: processor, memory, network, disk.

`SystemMonitor` keeps the numbers; a *probe* gets them: `PsutilProbe` where psutil is installed,
otherwise `StandardProbe`, which reads ``/proc`` and leaves out what the platform does not tell.
Nothing is measured unless `SystemMonitor.update` is called, which takes a fraction of a
millisecond (a ``Server`` calls it every ``distributed.admin.system-monitor.interval``).
"""

from __future__ import annotations

import os
import resource
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any, Final, Protocol, TypeAlias

from distributed.base import config
from distributed.telemetry.meter import monotonic, process_time, time

__all__ = ["Counters", "Probe", "PsutilProbe", "StandardProbe", "SystemMonitor"]


Counters: TypeAlias = Mapping[str, float]
"""Numbers that only grow, by the names under which their growth per second is recorded."""


class Probe(Protocol):
    """Where the numbers come from. None stands for what this platform does not tell."""

    def memory(self) -> int:
        """The resident memory of this process, in bytes."""

    def num_fds(self) -> int | None:
        """How many file descriptors this process has open."""

    def net_io(self) -> Counters | None:
        """Bytes over all network interfaces of the host: "read_bps" and "write_bps"."""

    def disk_io(self) -> Counters | None:
        """Bytes from and to all disks of the host: "read_bps" and "write_bps"."""

    def host_cpu(self) -> Counters | None:
        """Seconds that all processors of the host together have spent: "user", "idle", …"""


class PsutilProbe:
    """Asks psutil."""

    def __init__(self) -> None:
        self._psutil = import_module("psutil")
        self._process = self._psutil.Process()

    def memory(self) -> int:
        return int(self._process.memory_info().rss)

    def num_fds(self) -> int | None:
        return int(self._process.num_fds())

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
        except (OSError, NotImplementedError, RuntimeError):  # as psutil does in some containers
            return None
        if counters is None:
            return None
        return {"read_bps": counters.read_bytes, "write_bps": counters.write_bytes}

    def host_cpu(self) -> Counters | None:
        times: Counters = self._psutil.cpu_times()._asdict()
        return times


class StandardProbe:
    """Reads ``/proc``, and knows of memory and descriptors alone where there is none.

    Parameters
    ----------
    proc
        Where the proc file system is mounted.
    """

    # proc(5), /proc/stat: the columns of the line "cpu", in 1/SC_CLK_TCK of a second.
    _CPU_COLUMNS = (
        "user",
        "nice",
        "system",
        "idle",
        "iowait",
        "irq",
        "softirq",
        "steal",
        "guest",
        "guest_nice",
    )
    # A sector of /proc/diskstats is 512 bytes, whatever the disk's own sectors are.
    _SECTOR = 512

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._page_size = os.sysconf("SC_PAGE_SIZE")
        self._clock_ticks = os.sysconf("SC_CLK_TCK")

    def _lines(self, name: str) -> list[str]:
        try:
            with open(os.path.join(self._proc, name)) as file:
                return file.readlines()
        except OSError:
            return []

    def memory(self) -> int:
        for line in self._lines("self/statm"):
            return int(line.split()[1]) * self._page_size
        # All that POSIX offers is the peak; in KiB, but in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def num_fds(self) -> int | None:
        for directory in (os.path.join(self._proc, "self/fd"), "/dev/fd"):
            try:
                return len(os.listdir(directory)) - 1  # listing it takes a descriptor too
            except OSError:
                continue
        return None

    def net_io(self) -> Counters | None:
        lines = self._lines("net/dev")[2:]
        if not lines:
            return None
        # A long interface name leaves no space after its colon.
        columns = [line.rpartition(":")[2].split() for line in lines]
        return {
            "read_bps": sum(int(column[0]) for column in columns),
            "write_bps": sum(int(column[8]) for column in columns),
        }

    def disk_io(self) -> Counters | None:
        rows = [line.split() for line in self._lines("diskstats")]
        # A partition's traffic is counted by its disk already; sysfs lists whole disks alone.
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


def _default_probe() -> Probe:
    return PsutilProbe() if find_spec("psutil") is not None else StandardProbe()


def _start_gil_knocker() -> Any:
    """A running ``gilknocker.KnockKnock``, or None where that library is not installed."""
    if find_spec("gilknocker") is None:
        return None
    interval = config.get_timedelta("distributed.admin.system-monitor.gil.interval") or 0.001
    knocker = import_module("gilknocker").KnockKnock(polling_interval_micros=int(interval * 1e6))
    knocker.start()
    return knocker


class _FromConfiguration:
    """The type of the default of ``maxlen``, whose None has a meaning of its own."""


_FROM_CONFIGURATION: Final = _FromConfiguration()


class SystemMonitor:
    """A record of the use of this process and its host, sample by sample.

    Every parameter that is left out is read from the configuration, under
    ``distributed.admin.system-monitor``.

    Parameters
    ----------
    maxlen
        How many samples to keep; None for all (``log-length``).
    monitor_disk_io
        Whether to record the traffic of the host's disks (``disk``).
    monitor_host_cpu
        Whether to record the use of the host's processors (``host-cpu``).
    monitor_gil_contention
        Whether to record how contended the interpreter lock is (``gil.enabled``). It takes the
        library ``gilknocker``, which runs a thread; without it this is not recorded.
    probe
        What measures. Default: psutil if it is installed, else the standard library.

    Attributes
    ----------
    count
        How many samples were taken. There is one as soon as the monitor is made.
    quantities
        Name → the samples kept, oldest first, all of the same length:

        =============================  ====================================================
        ``cpu``                        use of processors by this process: 100.0 is one of them
        ``memory``                     resident memory of this process, in bytes
        ``time``                       when the sample was taken, in seconds since the epoch
        ``host_net_io.read_bps``       bytes per second since the last sample; also
                                       ``.write_bps``, and both of ``host_disk_io``
        ``host_cpu.user``, …           how many processors were in use for this, on average
                                       since the last sample
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

    # All state changes in `update`: `count` grows by one, every deque of `quantities` gets one
    # value, and `_last_*` are the readings of that sample, as rates are differences between two
    # readings (at the first one they are 0). What was not to be had when the monitor was made is
    # never asked for again, and what fails later counts as not having grown: so all deques have
    # the same length.

    def __init__(
        self,
        maxlen: int | _FromConfiguration | None = _FROM_CONFIGURATION,
        monitor_disk_io: bool | None = None,
        monitor_host_cpu: bool | None = None,
        monitor_gil_contention: bool | None = None,
        *,
        probe: Probe | None = None,
    ) -> None:
        if isinstance(maxlen, _FromConfiguration):
            kept = config.get_int("distributed.admin.system-monitor.log-length")
        else:
            kept = maxlen
        if monitor_disk_io is None:
            monitor_disk_io = config.get_bool("distributed.admin.system-monitor.disk")
        if monitor_host_cpu is None:
            monitor_host_cpu = config.get_bool("distributed.admin.system-monitor.host-cpu")
        if monitor_gil_contention is None:
            monitor_gil_contention = config.get_bool("distributed.admin.system-monitor.gil.enabled")

        self._probe = _default_probe() if probe is None else probe
        sources = {"host_net_io": self._probe.net_io}
        if monitor_disk_io:
            sources["host_disk_io"] = self._probe.disk_io
        if monitor_host_cpu:
            sources["host_cpu"] = self._probe.host_cpu
        self._last_time = monotonic()
        self._last_cpu = process_time()
        self._last_counters: dict[str, Counters] = {}
        for name, read in sources.items():
            counters = read()
            if counters is not None:
                self._last_counters[name] = counters
        self._sources = {name: sources[name] for name in self._last_counters}
        self._tells_fds = self._probe.num_fds() is not None
        self._gil_knocker = _start_gil_knocker() if monitor_gil_contention else None

        self.monitor_net_io = "host_net_io" in self._sources
        self.monitor_disk_io = "host_disk_io" in self._sources
        self.monitor_host_cpu = "host_cpu" in self._sources
        self.monitor_gil_contention = self._gil_knocker is not None

        # `recent` needs one sample at least.
        self.maxlen = kept if kept is None else max(1, kept)
        self.count = 0
        self.quantities: dict[str, deque[float]] = {}
        self.update()

    def __repr__(self) -> str:
        sample = self.recent()
        return (
            f"<SystemMonitor: cpu: {sample['cpu']:.1f} memory: {sample['memory'] / 1e6:.1f} MB"
            + (f" fds: {sample['num_fds']}>" if "num_fds" in sample else ">")
        )

    def get_process_memory(self) -> int:
        """The resident memory of this process now, in bytes."""
        return self._probe.memory()

    def update(self) -> dict[str, float]:
        """Take a sample.

        Returns
        -------
        dict
            the new value of each of `quantities`.
        """
        sample = dict(self._measure())
        for name, value in sample.items():
            if name not in self.quantities:
                self.quantities[name] = deque(maxlen=self.maxlen)
            self.quantities[name].append(value)
        self.count += 1
        return sample

    def _measure(self) -> Iterator[tuple[str, float]]:
        now, cpu = monotonic(), process_time()
        elapsed, self._last_time = now - self._last_time, now
        used, self._last_cpu = cpu - self._last_cpu, cpu

        def rate(difference: float) -> float:
            return difference / elapsed if self.count and elapsed > 0 else 0.0

        yield "cpu", round(100 * rate(used), 1)
        yield "memory", self._probe.memory()
        yield "time", time()
        for source, read in self._sources.items():
            before = self._last_counters[source]
            after = self._last_counters[source] = read() or before
            for name in before:
                yield f"{source}.{name}", rate(after[name] - before[name])
        if self._gil_knocker is not None:
            yield "gil_contention", self._gil_knocker.contention_metric
            self._gil_knocker.reset_contention_metric()
        if self._tells_fds:
            fds = self._probe.num_fds()
            yield "num_fds", self.quantities["num_fds"][-1] if fds is None else fds

    def recent(self) -> dict[str, float]:
        """The newest value of each of `quantities`."""
        return {name: values[-1] for name, values in self.quantities.items()}

    def range_query(self, start: int) -> dict[str, list[float]]:
        """The samples from number ``start`` on, as far as they are still kept.

        Parameters
        ----------
        start
            What `count` was at the last query, to get what is new since.

        Returns
        -------
        dict
            name → values, oldest first; empty lists if there is nothing new.
        """
        wanted = max(0, self.count - start)
        return {
            name: list(islice(values, max(0, len(values) - wanted), None))
            for name, values in self.quantities.items()
        }

    def close(self) -> None:
        """Stop what runs in the background. The samples stay; `update` goes on working."""
        if self._gil_knocker is not None:
            self._gil_knocker.stop()
