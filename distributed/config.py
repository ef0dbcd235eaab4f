"""Door to :mod:`distributed.base.config`, by the original's name."""

from typing import Any

from distributed.base import config as _config
from distributed.base.config import *  # noqa: F403
from distributed.base.log_setup import initialize_logging

__all__ = [*_config.__all__, "initialize_logging"]


def __getattr__(name: str) -> Any:
    """Return ``config`` or ``paths``, which are attributes of the module that is in use."""
    if name in ("config", "paths"):
        return getattr(_config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
