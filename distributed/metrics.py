"""Door to :mod:`distributed.telemetry.meter`, by the original's name."""

from distributed.telemetry.meter import (
    ContextMeter,
    DelayedMetricsLedger,
    MeterOutput,
    context_meter,
    meter,
    monotonic,
    process_time,
    thread_time,
    time,
)

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
