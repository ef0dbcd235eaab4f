"""Each row of the table of events in ``docs/reference/calls.rst`` names existing tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distributed.tests.interop import CASES
from distributed.tests.test_interop_page import defined

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "calls.rst").read_text()


def rows(heading):
    """Return the rows of the table below a heading, each a list of cells, without the header."""
    section = PAGE.split(f"\n{heading}\n=", 1)[1].split("\n\n\n", 1)[0]
    return [re.split(r"\n     -", row) for row in re.split(r"\n   \* -", section)[2:]]


@pytest.mark.parametrize("row", rows("What happens when …"), ids=lambda row: row[0].strip()[:40])
def test_each_event_has_two_sides_and_a_test(row):
    event, caller, server, tests = map(str.strip, row)
    assert event
    assert caller
    assert server
    named = set(re.findall(r"``(test_\w+)``", tests))
    assert named
    assert named <= defined()


def test_each_feature_has_a_row_for_both_directions():
    table = rows("With the original")
    assert len(table) == 8
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in table)


def test_the_cases_with_the_original_exist():
    text = PAGE.split("These rows are the cases", 1)[1].split("interop.py", 1)[0]
    named = set(re.findall(r"``(\w+)``", text))
    assert len(named) == 4
    assert named <= CASES.keys()
