"""Names of parametrized tests that are the same in every process."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """Return ``str(value)`` without addresses in memory (also as ``reprlib`` shortens them)."""
    return re.sub(r" (object )?at 0x[0-9a-f]+|\.\.\.\.x[0-9a-f]+", "", str(value))
