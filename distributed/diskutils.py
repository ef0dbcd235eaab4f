"""Door to :mod:`distributed.scratch.workspace`, by the original's name."""

from distributed.scratch.workspace import (
    DIR_LOCK_EXT,
    WorkDir,
    WorkSpace,
    is_locking_enabled,
    safe_unlink,
)

__all__ = ["DIR_LOCK_EXT", "WorkDir", "WorkSpace", "is_locking_enabled", "safe_unlink"]
