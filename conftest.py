"""Plugins for every test: virtual environments as fixtures, and the leak check after each test."""

from __future__ import annotations

pytest_plugins = ["distributed.tests.environments", "distributed.tests.leaks"]
