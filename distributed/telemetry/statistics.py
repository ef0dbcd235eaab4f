"""What a server counts and measures about itself.

A `Statistics` object holds counters of operations, sums of measurements, the pulse of the event
loop and, once it is asked for, a `distributed.system_monitor.SystemMonitor`. It knows nothing of
servers or messages: its owner counts into it, starts the callbacks that `make_periodic_callbacks`
makes, and shows its attributes as its own. To make one costs microseconds; what is not used is not
paid for. All methods are for the thread of the owner's event loop.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import ParamSpec, TypeVar

from tornado.ioloop import PeriodicCallback

from distributed.base import config
from distributed.telemetry.counter import Counter, Digest, DigestType
from distributed.telemetry.meter import monotonic, time
from distributed.telemetry.monitor import SystemMonitor

__all__ = ["Statistics"]

# Where people who know the original look for, and filter, the warning of an unresponsive loop.
logger = logging.getLogger("distributed.core")

P = ParamSpec("P")
T = TypeVar("T")

# The components of counters and digests are meant to be shifted at this pace.
_SHIFT_INTERVAL = 5.0


class Statistics:
    """Counters, measurements and the pulse of the event loop of one server.

    Parameters
    ----------
    owner_name
        Whose they are: the name of the server's class, for the log.
    tick_limit
        Asked at each tick: for how many seconds may the event loop have been blocked before this
        is logged? None from it: any length. Default: ``distributed.admin.tick.limit``, as it is
        configured now.

    Attributes
    ----------
    counters
        Name → `Counter`; ``counters["op"].components[0]`` counts operations by name.
    digests
        Name → `distributed.counter.Digest`, or None where the library for that is missing.
    digests_total, digests_total_since_heartbeat, digests_max
        Name → the sum and the largest of what was given to `digest_metric`; the second one is
        cleared by the owner whenever it has reported it.

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

    # Besides the attributes above, which only `digest_metric`, `shift_counters` and the owner
    # change: `_monitor` is None until it is used; the rest is the state of the ticks. A tick
    # counts in `_tick_counter` and sets `_last_tick` (seconds since the epoch) and
    # `_last_tick_monotonic`; that one is None before the first tick after `reset_ticks`, which has
    # nothing to be compared with. A cycle compares `_tick_counter` and the clock with what they
    # were at the last cycle (`_last_cycle`: both), and sets `_tick_interval_observed`.
    __slots__ = (
        "_last_cycle",
        "_last_tick",
        "_last_tick_monotonic",
        "_monitor",
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
        self, owner_name: str, tick_limit: Callable[[], float | None] | None = None
    ) -> None:
        self.owner_name = owner_name
        self.counters: defaultdict[str, Counter] = defaultdict(Counter)
        self.digests: defaultdict[Hashable, DigestType] | None = (
            None if Digest is None else defaultdict(Digest)
        )
        self.digests_total: defaultdict[Hashable, float] = defaultdict(int)
        self.digests_total_since_heartbeat: defaultdict[Hashable, float] = defaultdict(int)
        self.digests_max: defaultdict[Hashable, float] = defaultdict(int)
        self._monitor: SystemMonitor | None = None
        self._tick_limit = _configured_tick_limit() if tick_limit is None else tick_limit
        self._tick_counter = 0
        self._tick_interval_observed = (
            config.get_timedelta("distributed.admin.tick.interval") or 0.0
        )
        self.reset_ticks()

    @property
    def monitor(self) -> SystemMonitor:
        """The monitor of this process and its host, made on first use."""
        if self._monitor is None:
            self._monitor = SystemMonitor()
        return self._monitor

    @monitor.setter
    def monitor(self, value: SystemMonitor) -> None:
        self._monitor = value

    def _update_monitor(self) -> None:
        self.monitor.update()

    def close(self) -> None:
        """Stop what the monitor may run in the background. All values stay readable."""
        if self._monitor is not None:
            self._monitor.close()

    def digest_metric(self, name: Hashable, value: float) -> None:
        """Take in a measurement.

        Parameters
        ----------
        name
            What was measured: a string, or a tuple like ``("get-data", "serialize", "seconds")``.
        value
            How much. Sums and maxima start from 0.
        """
        if self.digests is not None:
            self.digests[name].add(value)
        self.digests_total[name] += value
        self.digests_total_since_heartbeat[name] += value
        if value > self.digests_max[name]:
            self.digests_max[name] = value

    def shift_counters(self) -> None:
        """Let what was counted grow older by one step (see `distributed.counter`)."""
        for counter in self.counters.values():
            counter.shift()
        if self.digests is not None:
            for digest in self.digests.values():
                digest.shift()

    def reset_ticks(self) -> None:
        """Begin anew to measure ticks; for when the callbacks are (re)started.

        The time until the next tick is not held against the event loop.
        """
        self._last_tick = time()
        self._last_tick_monotonic: float | None = None
        self._last_cycle = (self._tick_counter, 0.0)

    def measure_tick(self) -> None:
        """Note that the event loop gets round to its callbacks, and log if it took too long.

        Digests the time since the last tick as "tick-duration", in seconds.
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
        if limit is not None and duration > limit:
            logger.warning(
                "Event loop was unresponsive in %s for %.2fs.  "
                "This is often caused by long-running GIL-holding "
                "functions or moving large chunks of data. "
                "This can cause timeouts and instability.",
                self.owner_name,
                duration,
            )

    def cycle_ticks(self) -> None:
        """Compute the time between ticks, in seconds, on average since the last cycle."""
        if self._last_tick_monotonic is None:
            return
        (last_counter, last_cycle), now = self._last_cycle, monotonic()
        self._last_cycle = (self._tick_counter, now)
        self._tick_interval_observed = (now - last_cycle) / max(
            1, self._tick_counter - last_counter
        )

    def make_periodic_callbacks(self) -> dict[str, PeriodicCallback]:
        """The callbacks that keep these statistics going, for the owner to start and stop.

        They can be made before the event loop runs. One whose interval is configured as null is
        left out.

        Returns
        -------
        dict
            ``"monitor"`` takes a sample of the `monitor`, ``"tick"`` and ``"ticks"`` are
            `measure_tick` and `cycle_ticks`, ``"shift_counters"`` is `shift_counters`.
        """
        intervals: dict[str, tuple[Callable[[], None], float | None]] = {
            "shift_counters": (self.shift_counters, _SHIFT_INTERVAL),
            "monitor": (
                self._update_monitor,
                config.get_timedelta("distributed.admin.system-monitor.interval"),
            ),
            "tick": (
                self.measure_tick,
                config.get_timedelta("distributed.admin.tick.interval"),
            ),
            "ticks": (
                self.cycle_ticks,
                config.get_timedelta("distributed.admin.tick.cycle"),
            ),
        }
        self.reset_ticks()
        return {
            name: PeriodicCallback(callback, interval * 1000)
            for name, (callback, interval) in intervals.items()
            if interval is not None
        }


def _configured_tick_limit() -> Callable[[], float | None]:
    limit = config.get_timedelta("distributed.admin.tick.limit")
    return lambda: limit
