"""The networking core of dask.distributed, built anew.

Servers that answer operations, and objects that call them::

    from distributed import Server, rpc
"""

from __future__ import annotations

from distributed._version import __version__
from distributed.comm import CommClosedError, connect
from distributed.core import Server, rpc
from distributed.security import Security
from distributed.status import Status

__all__ = ["CommClosedError", "Security", "Server", "Status", "__version__", "connect", "rpc"]
