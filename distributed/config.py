"""Door to :mod:`distributed.base.config`, by the original's name."""

from typing import Any

from distributed.base import config as _config
from distributed.base.config import (
    DEFAULTS,
    Section,
    collect,
    get,
    get_bool,
    get_bytes,
    get_int,
    get_timedelta,
    merge,
    no_default,
    pop,
    refresh,
    serialize,
    set,
    update,
    update_defaults,
)

__all__ = [
    "DEFAULTS",
    "Section",
    "collect",
    "get",
    "get_bool",
    "get_bytes",
    "get_int",
    "get_timedelta",
    "merge",
    "no_default",
    "pop",
    "refresh",
    "serialize",
    "set",
    "update",
    "update_defaults",
]


def __getattr__(name: str) -> Any:
    """Give ``config`` and ``paths``, which depend on where the configuration is kept."""
    if name in ("config", "paths"):
        return getattr(_config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
