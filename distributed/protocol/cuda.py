"""The tables of types whose memory can be sent without a copy in the host's memory.

The family "cuda" passes device memory on unchanged, for transports that can carry it; over all
others, the same types are sent by the family "dask" through the host's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed.protocol.dispatch import cuda_deserialize, cuda_serialize
from distributed.protocol.exceptions import HeaderError

__all__ = ["cuda_deserialize", "cuda_serialize", "only_frame"]


def only_frame(frames: Sequence[Any]) -> Any:
    """Return the frame of an object that is sent as one frame.

    Raises
    ------
    HeaderError
        If there is not exactly one frame.
    """
    if len(frames) != 1:
        raise HeaderError(f"device memory was sent as {len(frames)} frames instead of one")
    return frames[0]
