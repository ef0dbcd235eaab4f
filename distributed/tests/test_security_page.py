"""The tables of docs/explanation/security.rst are complete and show the defaults of the limits.

``test_evidence_page.py`` checks that each threat has tests.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distributed.base import config
from distributed.tests import pages

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "security.rst"
THREATS = pages.rows(PAGE, "Threats and protections")
LIMITS = pages.rows(PAGE, "Limits")


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat[0][:40])
def test_each_threat_has_a_protection(threat):
    assert len(threat) == 2
    assert all(threat)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit[0])
def test_each_limit_has_the_default_on_the_page(limit):
    key, default, what = limit
    value = config.DEFAULTS
    for part in key.strip("`").split("."):
        value = value[part]
    assert default.strip("`") == (value if isinstance(value, str) else json.dumps(value))
    assert what


def test_the_page_shows_each_limit():
    comm = config.DEFAULTS["distributed"]["comm"]
    limits = {f"distributed.comm.{key}" for key in comm if key.startswith("max-")}
    limits |= {f"distributed.comm.timeouts.{key}" for key in comm["timeouts"]}
    assert limits <= {limit[0].strip("`") for limit in LIMITS}


def test_each_mentioned_key_exists():
    for key in re.findall(r"``(distributed\.[\w.-]+\w)(?::[^`]*)?``", PAGE.read_text()):
        config.get(key)
