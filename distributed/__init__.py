"""The networking core of dask.distributed, built anew."""

from __future__ import annotations

from distributed._version import __version__

__all__ = ["__version__"]
