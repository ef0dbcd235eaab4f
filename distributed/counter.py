"""Door to :mod:`distributed.telemetry.counter`, by the original's name."""

from distributed.telemetry.counter import Counter, Digest

__all__ = ["Counter", "Digest"]
