"""A warning if dask.distributed is installed into the same directory as this package.

Both packages have the import name ``distributed``, and pip does not refuse to install the second:
its files replace those of the first with the same name. ``distributed/core.py`` exists only in
dask.distributed, ``distributed/core/`` only here and in a grafted wheel of dask.distributed, from
which `distributed.graft` removes ``core.py``. So the directory and the file together mean that the
installation is mixed.
"""

from __future__ import annotations

import os
import warnings

__all__ = ["warn_if_mixed"]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def warn_if_mixed() -> None:
    """Warn if files of dask.distributed are between those of this package; look for one file."""
    if os.path.exists(os.path.join(_PACKAGE, "core.py")):
        warnings.warn(
            f"distributed-core and dask.distributed are both installed in {_PACKAGE}, and each has "
            "overwritten files of the other, so that neither works reliably. Uninstall both (pip "
            "uninstall distributed distributed-core) and install the one that you need. To run "
            "dask on this core, make one wheel of both: python -m distributed.graft, explained at "
            "https://distributed-core.readthedocs.io/en/stable/dask.html",
            stacklevel=2,
        )
