"""Objects that this core shares with the roles above it and with code that uses both.

The original's Scheduler, Worker, Nanny and Client can run on this core.  Their own modules then
stand behind the doors (``distributed.metrics`` and others).  An object that must be the same for
them and for this core is looked up here, by its faithful name, and nowhere else.
"""

from __future__ import annotations

import sys
from typing import Any

from distributed._async_taskgroup import AsyncTaskGroupClosedError
from distributed.comm import Comm
from distributed.metrics import context_meter

__all__ = ["AsyncTaskGroupClosedError", "connect", "context_meter", "replaceable"]


def replaceable(name: str, default: Any) -> Any:
    """Return the attribute *name* of ``distributed.core``, or *default* if it has none.

    Code written for the original replaces ``distributed.core.connect`` and
    ``distributed.core.tick_maximum_delay``, so both are looked up at each use.
    """
    return vars(sys.modules["distributed.core"]).get(name, default)


async def connect(addr: str, *args: Any, **kwargs: Any) -> Comm:
    """Connect to *addr* by ``distributed.core.connect``, looked up now."""
    comm: Comm = await vars(sys.modules["distributed.core"])["connect"](addr, *args, **kwargs)
    return comm
