"""Write ``docs/configuration-keys.inc``, the list of configuration keys, from their table.

Usage: ``python scripts/configuration_keys.py``, after a change in
``distributed/base/config_keys.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distributed.base.config_keys import KEYS

PAGE = Path(__file__).parents[1] / "docs" / "configuration-keys.inc"


def shown(default: Any) -> str:
    """Return a default as it stands in a YAML file."""
    return default if isinstance(default, str) else json.dumps(default)


def reference() -> str:
    """Return the definition list of all keys, in reStructuredText."""
    lines = [
        ".. Written by scripts/configuration_keys.py from distributed/base/config_keys.py.",
        "",
    ]
    for key, (default, kind, meaning) in KEYS.items():
        lines += [
            f"``{key}``",
            f"   {meaning}",
            f"   Default: ``{shown(default)}``. Allowed: {kind.allowed}.",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
