"""Testing servers: a pytest plugin with fixtures and a leak check, and its parts for other tools.

pytest loads `distributed.testing.plugin` in every test run of an environment with this package, so
neither this module nor the plugin imports anything else before a fixture is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed.testing.servers import ServerThread

__all__ = ["ServerThread"]


def __getattr__(name: str) -> Any:
    if name == "ServerThread":
        from distributed.testing.servers import ServerThread

        return ServerThread
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
