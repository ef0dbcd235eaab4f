"""The networking core of dask.distributed, built anew.

Servers that answer operations, and objects that call them::

    from distributed import Server, rpc

What is named here is imported on first use, so that a lower floor alone
(``import distributed.protocol``, say) does not load those above it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distributed._version import __version__

if TYPE_CHECKING:
    from distributed.comm import CommClosedError, connect
    from distributed.core import Server, rpc
    from distributed.status import Status

__all__ = ["CommClosedError", "Server", "Status", "__version__", "connect", "rpc"]

_MODULES = {
    "CommClosedError": "distributed.comm",
    "connect": "distributed.comm",
    "Server": "distributed.core",
    "rpc": "distributed.core",
    "Status": "distributed.status",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
