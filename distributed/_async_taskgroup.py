"""Door to an error of :mod:`distributed.base.event_loop`, by the original's name."""

from distributed.base.event_loop import AsyncTaskGroupClosedError

__all__ = ["AsyncTaskGroupClosedError"]
