"""What every test in this tree gets: it fails if it leaves anything behind."""

from __future__ import annotations

pytest_plugins = ["distributed.tests.environments", "distributed.tests.leaks"]
