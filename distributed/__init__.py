"""The networking core of dask.distributed, rebuilt.

Servers that answer operations, and objects that call them::

    from distributed import Server, rpc

The names of this module are imported on first use, so that importing a lower floor alone (such as
``distributed.protocol``) does not load those above it.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from distributed.base.log_setup import apply_at_import
from distributed.base.version import __version__

if TYPE_CHECKING:
    from distributed.comm import CommClosedError, connect
    from distributed.core import Server, rpc
    from distributed.core.status import Status
    from distributed.security import Security

__all__ = ["CommClosedError", "Security", "Server", "Status", "__version__", "connect", "rpc"]

_MODULES = {
    "CommClosedError": "distributed.comm",
    "connect": "distributed.comm",
    "Server": "distributed.core",
    "rpc": "distributed.core",
    "Security": "distributed.security",
    "Status": "distributed.core",
}

#: Submodules that are available after ``import distributed`` alone, as with the original.
_SUBMODULES = frozenset(
    {
        "batched",
        "comm",
        "config",
        "core",
        "counter",
        "diskutils",
        "metrics",
        "protocol",
        "security",
        "system_monitor",
        "utils",
    }
)

#: Names of the original that this package lacks.  Looking one up raises AttributeError, because
#: dask and other callers then do without it; ``from distributed import ...`` raises ImportError.
_ELSEWHERE = frozenset(
    {
        "Actor",
        "Client",
        "CompatibleExecutor",
        "Event",
        "Future",
        "KilledWorker",
        "LocalCluster",
        "Lock",
        "MultiLock",
        "Nanny",
        "Queue",
        "SSHCluster",
        "Scheduler",
        "Semaphore",
        "SpecCluster",
        "Variable",
        "Worker",
        "as_completed",
        "default_client",
        "fire_and_forget",
        "get_client",
        "get_task_stream",
        "get_worker",
        "performance_report",
        "progress",
        "rejoin",
        "secede",
        "wait",
        "worker_client",
    }
)

apply_at_import()


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        message = (
            f"module {__name__!r} has no attribute {name!r}: this is distributed-core, the "
            f"networking core alone. {name} is in dask.distributed, which has the same import "
            "name; install it into another environment, or put this core into it: "
            "python -m distributed.graft --help"
        )
        # The import statement looks names up here first.  It replaces the message of an
        # AttributeError by its own, but not that of an ImportError.
        if sys._getframe(1).f_code.co_name == "_handle_fromlist":
            raise ImportError(message, name=__name__)
        raise AttributeError(message)
    if name in _SUBMODULES:
        return importlib.import_module(f"distributed.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_SUBMODULES})
