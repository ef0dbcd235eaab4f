"""The tables of what can stay on a device while it is sent.

The family "cuda" hands on device memory as it is, for transports that can carry it; over others the
same types travel in the family "dask", by way of the host's memory.  The tables themselves are with
the others in :mod:`distributed.protocol.dispatch`, the family is in
:mod:`distributed.protocol.families`; this module bears the name that the original has for them.
"""

from __future__ import annotations

from distributed.protocol.dispatch import cuda_deserialize, cuda_serialize

__all__ = ["cuda_deserialize", "cuda_serialize"]
