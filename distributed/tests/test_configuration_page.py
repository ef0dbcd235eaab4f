"""The list of configuration keys in the documentation is that of the table."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_list_of_keys_in_the_documentation_is_that_of_the_table():
    script = runpy.run_path(str(ROOT / "scripts" / "configuration_keys.py"))
    # If this fails: python scripts/configuration_keys.py
    assert script["PAGE"].read_text() == script["reference"]()


def test_the_configuration_page_shows_that_list():
    page = (ROOT / "docs" / "configuration.rst").read_text()
    assert ".. include:: configuration-keys.inc" in page
