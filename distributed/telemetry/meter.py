"""Clocks, and a meter whose measurements reach callbacks through the calling context.

Low-level code (serialization, disk access, the offload thread) reports seconds and bytes to the
process-wide `context_meter`. A caller receives them, however many frames above, through a callback
that it bound to its context, so that functions between need not pass an object. A measurement
without a callback costs about a microsecond and is dropped.

This module does not depend on servers, messages or statistics.
`distributed.core.metering` connects it to the statistics of a ``Server``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from math import nan
from time import monotonic, perf_counter, process_time, thread_time, time
from types import MappingProxyType
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
"""A function of the label, the value and the unit of a measurement."""

_NO_CALLBACKS: Mapping[Hashable, MetricCallback] = MappingProxyType({})


@dataclass(slots=True)
class MeterOutput:
    """The result of a `meter`. ``stop`` and ``delta`` are NaN until the ``with`` block ends.

    Attributes
    ----------
    start, stop
        Clock readings at the start and the end of the block.
    delta
        ``stop - start`` minus the inner measurements of the same unit, but at least the floor.
    """

    start: float
    stop: float
    delta: float

    def _finish(self, stop: float, inner: float, floor: float | Literal[False]) -> None:
        self.stop = stop
        delta = stop - self.start - inner
        self.delta = delta if floor is False else max(float(floor), delta)


@contextmanager
def meter(
    func: Callable[[], float] = perf_counter, floor: float | Literal[False] = 0.0
) -> Iterator[MeterOutput]:
    """Measure a ``with`` block without reporting the result to any callback.

    Parameters
    ----------
    func
        The clock: any function without parameters that returns a number.
    floor
        Minimum of ``delta``, so that a clock that is set back does not give a negative duration;
        False for no minimum.

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
    """A dispatcher of measurements to the callbacks of the current context.

    Callbacks are bound to the `contextvars` context: a task started inside an `add_callback`
    block inherits them, as do `asyncio.to_thread` and `distributed.utils.offload`; a plain thread
    does not. `context_meter` is the only instance in a process, and pickles as a reference.

    Examples
    --------
    >>> seen = []
    >>> with context_meter.add_callback(lambda label, value, unit: seen.append((label, value))):
    ...     context_meter.digest_metric("disk-read", 1024, "bytes")
    >>> context_meter.digest_metric("disk-read", 2048, "bytes")  # no callback
    >>> seen
    [('disk-read', 1024)]
    """

    __slots__ = ("_callbacks",)

    def __init__(self) -> None:
        # Key → callback, outermost first. A mapping is never changed, only replaced, because
        # contexts that were copied from this one share it.
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
        """Call ``callback(label, value, unit)`` for each measurement inside the block.

        Callbacks of enclosing blocks are called too, before this one.

        Parameters
        ----------
        callback
            The function to call. Its errors are raised in the code that measured.
        key
            In the block, this callback replaces an enclosing one with an equal key. Default: a
            key that is unique to this block.
        allow_offload
            False: the callback runs immediately, in the thread that measured. True: it runs only
            in the current thread; measurements of other threads reach it through the running
            event loop, in a later iteration.

        Raises
        ------
        RuntimeError
            If ``allow_offload`` is true and no event loop is running.
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
        """Drop all measurements inside the block."""
        token = self._callbacks.set(_NO_CALLBACKS)
        try:
            yield
        finally:
            self._callbacks.reset(token)

    def digest_metric(self, label: Hashable, value: float, unit: str) -> None:
        """Call every callback of this context with a measurement.

        Parameters
        ----------
        label
            The name of the quantity: a string, or a tuple of strings from general to specific.
        value
            Its value.
        unit
            Its unit: "seconds", "bytes", "count", … An enclosing `meter` subtracts values of its
            own unit.
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
        """Measure a ``with`` block and pass the result to `digest_metric`, even if it raises.

        Measurements inside the block with the same unit (in this thread, or in another one with
        this context) are subtracted, so that nested meters add up to the elapsed time.

        Parameters
        ----------
        label, unit
            As in `digest_metric`.
        func
            The clock to read at both ends of the block.
        floor
            Minimum of the result; False for no minimum.

        Returns
        -------
        context manager
            Yields a `MeterOutput`, which is complete when the block ends.

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


@dataclass(slots=True, eq=False)
class _ContextMeasurement:
    """One `ContextMeter.meter` block. A class, because a generator costs three times as much."""

    meter: ContextMeter
    label: Hashable
    unit: str
    func: Callable[[], float]
    floor: float | Literal[False]
    # Inner measurements of the same unit. Any thread may append one at any time.
    _inner: list[float] = field(default_factory=list, init=False)
    # Undoes the installation of `_subtract`.
    _token: Token[Mapping[Hashable, MetricCallback]] = field(init=False)
    _output: MeterOutput = field(init=False)

    def _subtract(self, label: Hashable, value: float, unit: str) -> None:
        if unit == self.unit:
            self._inner.append(value)

    def __enter__(self) -> MeterOutput:
        callbacks = self.meter._callbacks
        self._token = callbacks.set({**callbacks.get(), self: self._subtract})
        self._output = MeterOutput(self.func(), nan, nan)
        return self._output

    def __exit__(self, *exc_info: object) -> None:
        self.meter._callbacks.reset(self._token)
        output = self._output
        output._finish(self.func(), sum(self._inner), self.floor)
        self.meter.digest_metric(self.label, output.delta, self.unit)


def _in_this_thread(callback: MetricCallback) -> MetricCallback:
    """Return a callback that any thread may call, and that runs in the current thread."""
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
    """Measurements of a piece of work, kept until its outcome is known.

    The outcome often decides the labels of the measurements. The ledger reads the clock when it is
    created, records the measurements of `context_meter` inside `record` blocks (any number, in any
    tasks), and finally yields them together with the time that was not measured.

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

    __slots__ = ("func", "metrics", "start")

    def __init__(self, func: Callable[[], float] = perf_counter) -> None:
        self.func = func
        self.start = func()
        # (label, value, unit) of each recorded measurement; only `_callback` appends.
        self.metrics: list[tuple[Hashable, float, str]] = []

    def _callback(self, label: Hashable, value: float, unit: str) -> None:
        self.metrics.append((label, value, unit))

    @contextmanager
    def record(self, *, key: Hashable | None = None) -> Iterator[None]:
        """Record the measurements of `context_meter` inside the block.

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
        """Yield ``(label, value, unit)`` of each recorded measurement and of the remaining time.

        Parameters
        ----------
        coarse_time
            A label for *all* the time since the ledger was created, which replaces the
            measurements in seconds; for work that failed, for instance. False: yield the
            measurements in seconds, and the remaining time as "other".
        floor
            Minimum of the remaining time, in seconds; False for no minimum.
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
