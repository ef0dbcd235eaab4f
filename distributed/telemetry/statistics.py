"""Statistics of one server: counts, measurements, ticks of the event loop, the system monitor.

`Statistics` does not depend on servers or messages: its owner adds counts and measurements, and
starts and stops the callbacks of `make_periodic_callbacks`. Until they are started, nothing is
measured. Creating one takes microseconds; the system monitor is created at first use. Methods must
be called in the thread of the owner's event loop.

What is measured belongs to the process or to its event loop. The owners in one process share one
system monitor, those on one event loop share their timers, and a blocked loop is logged once.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable
from importlib import import_module

from tornado.ioloop import PeriodicCallback

from distributed.base import config
from distributed.base.logs import get_logger
from distributed.telemetry.counter import Counter, Digest, DigestType
from distributed.telemetry.meter import monotonic, time
from distributed.telemetry.monitor import SystemMonitor
from distributed.telemetry.process_monitor import process_monitor
from distributed.telemetry.timers import SharedCallback

__all__ = ["Statistics"]

# The original's logger for unresponsive event loops, which users filter by name.
logger = get_logger("distributed.core")


# Seconds between shifts of counters and digests; the interval of their first component.
_SHIFT_INTERVAL = 5.0

# Per thread, so per running event loop: `owners`, owner name → when it was last logged as blocked.
_unresponsive = threading.local()


class Statistics:
    """Counters, measurements and ticks of the event loop of one server.

    Parameters
    ----------
    owner_name
        The name of the server's class, for the log.
    tick_limit
        A function, called at each tick, that returns the maximum number of seconds between ticks
        before the event loop is logged as unresponsive, or None to log nothing. Default: the
        current value of ``distributed.admin.tick.limit``.
    make_monitor
        A function that creates a system monitor for this owner alone. Default: the monitor that
        the owners in this process share.

    Attributes
    ----------
    counters
        Name → `Counter`; ``counters["op"].components[0]`` counts operations by name.
    digests
        Name → `distributed.counter.Digest`, or None if its library is missing.
    digests_total, digests_max
        Name → the sum and the maximum of the values given to `digest_metric`.
    digests_total_since_heartbeat
        Name → the sum since the owner last cleared this mapping.

    Examples
    --------
    >>> statistics = Statistics("Server")
    >>> statistics.counters["op"].add("identity")
    >>> dict(statistics.counters["op"].components[0])
    {'identity': 1}
    >>> statistics.digest_metric("transfer", 2.5)
    >>> statistics.digest_metric("transfer", 1.5)
    >>> statistics.digests_total["transfer"], statistics.digests_max["transfer"]
    (4.0, 2.5)
    """

    # Invariant: `_shares_monitor` is true if and only if `_monitor` is that of the process, and
    # this object is one of its users until `close`.
    __slots__ = (
        "__weakref__",
        "_last_cycle",
        "_last_tick",
        "_last_tick_monotonic",
        "_make_monitor",
        "_monitor",
        "_monitor_fails",
        "_monitor_interval",
        "_shares_monitor",
        "_tick_counter",
        "_tick_interval_observed",
        "_tick_limit",
        "counters",
        "digests",
        "digests_max",
        "digests_total",
        "digests_total_since_heartbeat",
        "owner_name",
    )

    def __init__(
        self,
        owner_name: str,
        tick_limit: Callable[[], float | None] | None = None,
        make_monitor: Callable[[], SystemMonitor] | None = None,
    ) -> None:
        self.owner_name = owner_name
        self.counters: defaultdict[str, Counter] = defaultdict(Counter)
        self.digests: defaultdict[Hashable, DigestType] | None = (
            None if Digest is None else defaultdict(Digest)
        )
        self.digests_total: defaultdict[Hashable, float] = defaultdict(int)
        self.digests_total_since_heartbeat: defaultdict[Hashable, float] = defaultdict(int)
        self.digests_max: defaultdict[Hashable, float] = defaultdict(int)
        self._make_monitor = make_monitor
        # None until first use.
        self._monitor: SystemMonitor | None = None
        self._shares_monitor = False
        # Seconds between samples, or None to take none; set by make_periodic_callbacks().
        self._monitor_interval: float | None = None
        # Whether the newest attempt to take a sample failed.
        self._monitor_fails = False
        self._tick_limit = _configured_tick_limit() if tick_limit is None else tick_limit
        # Number of tick durations measured.
        self._tick_counter = 0
        # Seconds between ticks: the average of the last cycle, before that the configured value.
        self._tick_interval_observed = (
            config.get_timedelta("distributed.admin.tick.interval") or 0.0
        )
        self.reset_ticks()

    @property
    def monitor(self) -> SystemMonitor:
        """The monitor of this process and its host, created at first use."""
        if self._monitor is None:
            if self._make_monitor is not None:
                self._monitor = self._make_monitor()
            else:
                self._monitor = process_monitor.join(self)
                self._shares_monitor = True
        return self._monitor

    @monitor.setter
    def monitor(self, value: SystemMonitor) -> None:
        self._leave_shared_monitor()
        self._monitor = value

    def _leave_shared_monitor(self) -> None:
        if self._shares_monitor:
            self._shares_monitor = False
            process_monitor.leave(self)

    def prepare(self) -> None:
        """Import the libraries that the callbacks need, before the owner serves requests.

        Otherwise, the first call of a callback would block the event loop for their import.
        """
        if self._monitor_interval is not None:
            self._sample(lambda: self.monitor)
        if self.digests is not None:
            import_module("crick")

    def _update_monitor(self) -> None:
        self._sample(self._update)

    def _update(self) -> None:
        monitor = self.monitor
        if self._shares_monitor:
            process_monitor.sample(monitor, (self._monitor_interval or 0.0) / 2)
        else:
            monitor.update()

    def _sample(self, measure: Callable[[], object]) -> None:
        """Call *measure*; log the first of consecutive errors of the operating system."""
        try:
            measure()
        except OSError as exc:
            # Most often, the process has run out of file descriptors.
            if not self._monitor_fails:
                logger.warning(
                    "%s cannot measure the resources of its process: %s. It tries again every "
                    "%g s ('distributed.admin.system-monitor.interval'); further failures are not "
                    "logged.",
                    self.owner_name,
                    exc,
                    self._monitor_interval or 0.0,
                )
            self._monitor_fails = True
        else:
            self._monitor_fails = False

    def close(self) -> None:
        """Stop the background thread of the monitor, if any. All values stay readable."""
        if self._shares_monitor:
            self._leave_shared_monitor()
        elif self._monitor is not None:
            self._monitor.close()

    def digest_metric(self, name: Hashable, value: float) -> None:
        """Record a measurement.

        Parameters
        ----------
        name
            The quantity: a string, or a tuple like ``("get-data", "serialize", "seconds")``.
        value
            The value to record. Sums and maxima start from 0.
        """
        if self.digests is not None:
            self.digests[name].add(value)
        self.digests_total[name] += value
        self.digests_total_since_heartbeat[name] += value
        if value > self.digests_max[name]:
            self.digests_max[name] = value

    def shift_counters(self) -> None:
        """Shift all counters and digests to longer intervals (see `distributed.counter`)."""
        for counter in self.counters.values():
            counter.shift()
        if self.digests is not None:
            for digest in self.digests.values():
                digest.shift()

    def reset_ticks(self) -> None:
        """Restart the measurement of ticks, when the callbacks are (re)started.

        The time until the next tick is not measured.
        """
        # Time of the last tick, in seconds since the epoch.
        self._last_tick = time()
        # The same in seconds of the monotonic clock; None before the first tick.
        self._last_tick_monotonic: float | None = None
        # `_tick_counter` and the monotonic clock at the end of the last cycle.
        self._last_cycle = (self._tick_counter, 0.0)

    def measure_tick(self) -> None:
        """Measure the time since the last tick, and log a warning if it is above the limit.

        Records it as "tick-duration", in seconds.
        """
        now = monotonic()
        last, self._last_tick_monotonic = self._last_tick_monotonic, now
        self._last_tick = time()
        if last is None:
            self._last_cycle = (self._tick_counter, now)
            return
        self._tick_counter += 1
        duration = now - last
        self.digest_metric("tick-duration", duration)
        limit = self._tick_limit()
        if limit is not None and duration > limit and self._is_first_to_report(now, duration):
            logger.warning(
                "Event loop was unresponsive in %s for %.2fs.  "
                "This is often caused by long-running GIL-holding "
                "functions or moving large chunks of data. "
                "This can cause timeouts and instability.",
                self.owner_name,
                duration,
            )

    def _is_first_to_report(self, now: float, duration: float) -> bool:
        """Return whether no owner of this name on this event loop has logged the blocked time."""
        owners: dict[str, float] = _unresponsive.__dict__.setdefault("owners", {})
        # A report within the time that was blocked is about the same time.
        first = now - owners.get(self.owner_name, -math.inf) >= duration
        if first:
            owners[self.owner_name] = now
        return first

    def cycle_ticks(self) -> None:
        """Compute the average time between ticks since the last cycle, in seconds."""
        if self._last_tick_monotonic is None:
            return
        (last_counter, last_cycle), now = self._last_cycle, monotonic()
        self._last_cycle = (self._tick_counter, now)
        self._tick_interval_observed = (now - last_cycle) / max(
            1, self._tick_counter - last_counter
        )

    def make_periodic_callbacks(self) -> dict[str, PeriodicCallback]:
        """Create the callbacks that update these statistics, for the owner to start and stop.

        They can be created before the event loop runs. A callback whose interval is configured as
        null is omitted.

        Returns
        -------
        dict
            ``"monitor"`` takes a sample of the `monitor`, ``"tick"`` calls `measure_tick`,
            ``"ticks"`` calls `cycle_ticks`, ``"shift_counters"`` calls `shift_counters`.
        """

        def seconds(key: str) -> float | None:
            return config.get_timedelta(f"distributed.admin.{key}")

        self._monitor_interval = seconds("system-monitor.interval")
        intervals: dict[str, tuple[Callable[[], None], float | None]] = {
            "shift_counters": (self.shift_counters, _SHIFT_INTERVAL),
            "monitor": (self._update_monitor, self._monitor_interval),
            "tick": (self.measure_tick, seconds("tick.interval")),
            "ticks": (self.cycle_ticks, seconds("tick.cycle")),
        }
        self.reset_ticks()
        return {
            name: SharedCallback(callback, interval * 1000)
            for name, (callback, interval) in intervals.items()
            if interval is not None
        }


def _configured_tick_limit() -> Callable[[], float | None]:
    limit = config.get_timedelta("distributed.admin.tick.limit")
    return lambda: limit
