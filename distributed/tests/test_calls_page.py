"""The tables of ``docs/reference/calls.rst`` are complete; see also ``test_evidence_page.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed.tests import pages

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "calls.rst"


@pytest.mark.parametrize(
    "row", pages.rows(PAGE, "What happens when …"), ids=lambda row: row[0][:40]
)
def test_each_event_has_two_sides(row):
    assert len(row) == 3
    assert all(row)


def test_each_feature_has_a_row_for_both_directions():
    table = pages.rows(PAGE, "With the original")
    assert len(table) == 8
    assert all(len(row) == 3 and all(row) for row in table)
