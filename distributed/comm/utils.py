"""Door to :mod:`~distributed.comm.offloading` and ``addressing``, by the original's name."""

from __future__ import annotations

import sys
from types import ModuleType

from distributed.comm import offloading
from distributed.comm.addressing import (
    ensure_concrete_host,
    get_tcp_server_address,
    get_tcp_server_addresses,
)
from distributed.comm.offloading import from_frames, to_frames

__all__ = [
    "OFFLOAD_THRESHOLD",  # noqa: F822 (a property of the module)
    "ensure_concrete_host",
    "from_frames",
    "get_tcp_server_address",
    "get_tcp_server_addresses",
    "to_frames",
]


class _Utils(ModuleType):
    """This module, whose ``OFFLOAD_THRESHOLD`` is read and assigned in `offloading`."""

    @property
    def OFFLOAD_THRESHOLD(self) -> int | None:
        return offloading.OFFLOAD_THRESHOLD

    @OFFLOAD_THRESHOLD.setter
    def OFFLOAD_THRESHOLD(self, value: int | None) -> None:
        offloading.OFFLOAD_THRESHOLD = value


sys.modules[__name__].__class__ = _Utils
