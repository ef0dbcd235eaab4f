"""The tables in docs/explanation/security.rst name existing tests and show the defaults of the limits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distributed.base import config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "security.rst").read_text()


def rows(heading):
    """Return the rows of the last table below a heading, each a list of cells."""
    section = PAGE.split(f"\n{heading}\n=", 1)[1]
    section = re.split(r"\n\S[^\n]*\n=+\n", section, maxsplit=1)[0]
    table = section.split(".. list-table::")[1]
    return [re.split(r"\n     - ", row) for row in re.split(r"\n   \* - ", table)[2:]]


THREATS = rows("Threats and protections")
LIMITS = rows("Limits")


def named_in(threat):
    return re.findall(r"``(test_\w+)``", threat[2])


def defined_tests():
    found = set()
    for path in (ROOT / "distributed").rglob("test_*.py"):
        found.update(re.findall(r"^ *(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE))
    return found


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat[0].split("\n")[0])
def test_each_threat_has_a_protection_and_a_test(threat):
    what, protection, _ = threat
    assert what.strip()
    assert protection.strip()
    assert named_in(threat)


def test_each_named_test_exists():
    named = {name for threat in THREATS for name in named_in(threat)}
    assert named <= defined_tests()


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit[0])
def test_each_limit_has_the_default_on_the_page(limit):
    key, default, what = (cell.strip() for cell in limit)
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
    for key in re.findall(r"``(distributed\.[\w.-]+\w)(?::[^`]*)?``", PAGE):
        config.get(key)
