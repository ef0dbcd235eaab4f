"""Door to :mod:`distributed.telemetry.monitor`, by the original's name."""

from distributed.telemetry.monitor import SystemMonitor

__all__ = ["SystemMonitor"]
