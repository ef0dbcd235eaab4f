"""Clocks, and a meter that measures code without knowing who wants the result.

Code deep in the house (serialization, disk access, a thread of the offload pool) says what it
did through the process-wide `context_meter`: *seconds spent here*, *bytes read there*. Whoever
called it, however many frames above, hears of it through a callback that is bound to the calling
context; nobody needs to pass an object down. Where nobody listens, a measurement costs about a
microsecond and is dropped.

This module knows nothing of servers, messages or statistics; `distributed.telemetry.statistics`
is the listener that a ``Server`` brings.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import nan
from time import monotonic, perf_counter, process_time, thread_time, time
from types import MappingProxyType, TracebackType
from typing import Literal, TypeAlias

__all__ = [
    "ContextMeter",
    "DelayedMetricsLedger",
    "MeterOutput",
    "context_meter",
    "meter",
    "monotonic",
    "process_time",
    "thread_time",
    "time",
]

MetricCallback: TypeAlias = Callable[[Hashable, float, str], None]
"""Called with what was measured, how much, and its unit."""

_NO_CALLBACKS: Mapping[Hashable, MetricCallback] = MappingProxyType({})


@dataclass(slots=True)
class MeterOutput:
    """What a `meter` has measured. All three are NaN-free once the ``with`` block is left.

    Attributes
    ----------
    start, stop
        Readings of the clock at either end of the block.
    delta
        The result: ``stop - start``, less what inner measurements of the same unit have claimed,
        and no less than the floor.
    """

    start: float
    stop: float
    delta: float

    def _finish(self, stop: float, claimed: float, floor: float | Literal[False]) -> None:
        self.stop = stop
        delta = stop - self.start - claimed
        self.delta = delta if floor is False else max(float(floor), delta)


@contextmanager
def meter(
    func: Callable[[], float] = perf_counter, floor: float | Literal[False] = 0.0
) -> Iterator[MeterOutput]:
    """Measure how far a clock goes in a ``with`` block, and tell nobody else.

    Parameters
    ----------
    func
        The clock: any function without parameters that returns a number.
    floor
        The least that is returned as ``delta``, so that a clock that is set back never yields
        a negative duration; False for none.

    Examples
    --------
    >>> with meter() as m:
    ...     total = sum(range(1000))
    >>> m.delta >= 0
    True
    """
    output = MeterOutput(func(), nan, nan)
    try:
        yield output
    finally:
        output._finish(func(), 0, floor)


class ContextMeter:
    """Hands measurements to the callbacks of the context in which they are taken.

    Callbacks are bound to the `contextvars` context: a task started inside an `add_callback`
    block inherits them, as do `asyncio.to_thread` and `distributed.utils.offload`; a plain thread
    does not. There is one instance per process, `context_meter`, which pickles as itself.

    Examples
    --------
    >>> seen = []
    >>> with context_meter.add_callback(lambda label, value, unit: seen.append((label, value))):
    ...     context_meter.digest_metric("disk-read", 1024, "bytes")
    >>> context_meter.digest_metric("disk-read", 2048, "bytes")  # nobody listens
    >>> seen
    [('disk-read', 1024)]
    """

    # The only state: an immutable mapping per context, from a callback's key to the callback, in
    # the order of installation (outermost first). It is replaced as a whole, never changed, as
    # contexts that were copied from this one share it.
    __slots__ = ("_callbacks",)

    def __init__(self) -> None:
        self._callbacks: ContextVar[Mapping[Hashable, MetricCallback]] = ContextVar(
            "context_meter", default=_NO_CALLBACKS
        )

    def __reduce__(self) -> str:
        return "context_meter"

    @contextmanager
    def add_callback(
        self,
        callback: MetricCallback,
        *,
        key: Hashable | None = None,
        allow_offload: bool = False,
    ) -> Iterator[None]:
        """Call ``callback(label, value, unit)`` for whatever is measured inside the block.

        Callbacks that were installed further out are called too, and before this one.

        Parameters
        ----------
        callback
            What to call. What it raises is raised at the place that measured.
        key
            An installed callback with an equal key is replaced for the length of the block.
            Without it, every `add_callback` is a callback of its own.
        allow_offload
            False: the callback runs at once, in the thread that measured. True: it only ever
            runs in the thread that is installing it now, and what another thread measures
            reaches it through the running event loop a little later.

        Raises
        ------
        RuntimeError
            ``allow_offload`` was given where no event loop runs.
        """
        if allow_offload:
            callback = _in_this_thread(callback)
        if key is None:
            key = object()
        token = self._callbacks.set({**self._callbacks.get(), key: callback})
        try:
            yield
        finally:
            self._callbacks.reset(token)

    @contextmanager
    def clear_callbacks(self) -> Iterator[None]:
        """Let nobody hear of what is measured inside the block."""
        token = self._callbacks.set(_NO_CALLBACKS)
        try:
            yield
        finally:
            self._callbacks.reset(token)

    def digest_metric(self, label: Hashable, value: float, unit: str) -> None:
        """Tell every callback of this context that something was measured.

        Parameters
        ----------
        label
            What was measured: a string, or a tuple of strings from the general to the special.
        value
            How much.
        unit
            Of what: "seconds", "bytes", "count", … Seconds are additive: an inner measurement
            counts, and the meter around it leaves it out.
        """
        for callback in self._callbacks.get().values():
            callback(label, value, unit)

    def meter(
        self,
        label: Hashable,
        unit: str = "seconds",
        func: Callable[[], float] = perf_counter,
        floor: float | Literal[False] = 0.0,
    ) -> _ContextMeasurement:
        """Measure a ``with`` block and `digest_metric` the result, even if the block raises.

        What is digested in the same unit inside the block (by this thread or by another one that
        works on its behalf) is subtracted, so that nested meters add up to the time that passed.

        Parameters
        ----------
        label, unit
            As in `digest_metric`.
        func
            The clock to read at both ends of the block.
        floor
            The least to digest; False for no bound.

        Returns
        -------
        context manager
            yields a `MeterOutput`, which is complete when the block is left.

        Examples
        --------
        >>> seen = []
        >>> with context_meter.add_callback(lambda *metric: seen.append(metric)):
        ...     with context_meter.meter("outer", unit="steps", func=iter([0, 10]).__next__):
        ...         with context_meter.meter("inner", unit="steps", func=iter([3, 7]).__next__):
        ...             pass
        >>> seen
        [('inner', 4, 'steps'), ('outer', 6, 'steps')]
        """
        return _ContextMeasurement(self, label, unit, func, floor)


class _ContextMeasurement:
    """One `ContextMeter.meter` block. A class, as a generator costs three times as much."""

    # `_claimed` only ever grows, and by `list.append`, which other threads may do at any time.
    __slots__ = (
        "_claimed",
        "_floor",
        "_func",
        "_label",
        "_listening",
        "_meter",
        "_output",
        "_unit",
    )

    def __init__(
        self,
        meter: ContextMeter,
        label: Hashable,
        unit: str,
        func: Callable[[], float],
        floor: float | Literal[False],
    ) -> None:
        self._meter = meter
        self._label = label
        self._unit = unit
        self._func = func
        self._floor = floor
        self._claimed: list[float] = []

    def _claim(self, label: Hashable, value: float, unit: str) -> None:
        if unit == self._unit:
            self._claimed.append(value)

    def __enter__(self) -> MeterOutput:
        callbacks = self._meter._callbacks
        self._listening = callbacks.set({**callbacks.get(), self: self._claim})
        self._output = MeterOutput(self._func(), nan, nan)
        return self._output

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._meter._callbacks.reset(self._listening)
        output = self._output
        output._finish(self._func(), sum(self._claimed), self._floor)
        self._meter.digest_metric(self._label, output.delta, self._unit)


def _in_this_thread(callback: MetricCallback) -> MetricCallback:
    """A callback that runs in the calling thread's event loop, whoever calls it."""
    loop = asyncio.get_running_loop()
    thread_id = threading.get_ident()

    def call_or_send(label: Hashable, value: float, unit: str) -> None:
        if threading.get_ident() == thread_id:
            callback(label, value, unit)
        else:
            loop.call_soon_threadsafe(callback, label, value, unit)

    return call_or_send


context_meter = ContextMeter()


class DelayedMetricsLedger:
    """Keeps what was measured until it is known under which heading it belongs.

    A piece of work is often measured before it is known how it ends. The ledger notes the time
    when it is made, records what `context_meter` hears inside `record` blocks (any number of
    them, in any tasks), and in the end hands out all of it, together with the time that nobody
    has accounted for.

    Parameters
    ----------
    func
        The clock, in seconds.

    Examples
    --------
    >>> ledger = DelayedMetricsLedger(func=iter([100.0, 110.0]).__next__)
    >>> with ledger.record():
    ...     context_meter.digest_metric("deserialize", 4.0, "seconds")
    >>> list(ledger.finalize())
    [('deserialize', 4.0, 'seconds'), ('other', 6.0, 'seconds')]
    """

    # `metrics` grows in `_callback` alone; `start` never changes.
    __slots__ = ("func", "metrics", "start")

    def __init__(self, func: Callable[[], float] = perf_counter) -> None:
        self.func = func
        self.start = func()
        self.metrics: list[tuple[Hashable, float, str]] = []

    def _callback(self, label: Hashable, value: float, unit: str) -> None:
        self.metrics.append((label, value, unit))

    @contextmanager
    def record(self, *, key: Hashable | None = None) -> Iterator[None]:
        """Record what `context_meter` hears inside the block.

        Parameters
        ----------
        key
            As in `ContextMeter.add_callback`.
        """
        with context_meter.add_callback(self._callback, key=key):
            yield

    def finalize(
        self, coarse_time: str | Literal[False] = False, floor: float | Literal[False] = 0.0
    ) -> Iterator[tuple[Hashable, float, str]]:
        """Yield ``(label, value, unit)`` of all that was recorded, and of the rest of the time.

        Parameters
        ----------
        coarse_time
            A label under which *all* the time since the ledger was made is booked, in place of
            what was recorded in seconds; for work whose details turned out to be of no interest.
            False: what was recorded in seconds is yielded as it is, and what remains as "other".
        floor
            The least number of seconds to yield for the remainder; False for no bound.
        """
        elapsed = self.func() - self.start
        recorded = 0.0
        for label, value, unit in self.metrics:
            if unit == "seconds":
                recorded += value
                if coarse_time is not False:
                    continue
            yield label, value, unit
        if coarse_time is not False:
            label, remainder = coarse_time, elapsed
        else:
            label, remainder = "other", elapsed - recorded
        yield label, remainder if floor is False else max(float(floor), remainder), "seconds"
