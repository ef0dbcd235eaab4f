"""Floor 1: configuration, quantities, buffers, the offload thread, callables, host addresses."""

from __future__ import annotations

from distributed.base.installation import warn_if_mixed

# Here, since this folder is imported first and dask.distributed does not have it.
warn_if_mixed()
