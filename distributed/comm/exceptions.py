"""The errors of a comm."""

from __future__ import annotations

__all__ = ["CommClosedError", "FatalCommClosedError"]


class CommClosedError(OSError):
    """The comm was closed, by either side, before the operation was complete."""


class FatalCommClosedError(CommClosedError):
    """The connection failed in a way that another attempt cannot change."""


# A pickled error names its module. The original has these two in `comm.core`.
CommClosedError.__module__ = FatalCommClosedError.__module__ = "distributed.comm.core"
