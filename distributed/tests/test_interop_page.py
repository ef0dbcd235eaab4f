"""Each statement of ``docs/reference/coming-from-dask.rst`` names existing tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distributed.tests.interop import CASES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "coming-from-dask.rst").read_text()
SECTIONS = ["The same", "Better", "Different on purpose", "Absent", "In a cluster of the original"]


def rows(section):
    """Return the rows of a section's table, each a list of cells, without the header."""
    text = PAGE.split(f"\n{section}\n===", 1)[1].split("\n\n\n", 1)[0]
    table = text.split(".. list-table::", 1)[1]
    return [re.split(r"\n     -", row) for row in re.split(r"\n   \* -", table)[2:]]


ROWS = [(section, row) for section in SECTIONS for row in rows(section)]


def named(text):
    return set(re.findall(r"``((?:test_|interop\.)\w+)``", text))


def defined():
    tests = {f"interop.{name}" for name in CASES}
    for path in (ROOT / "distributed").rglob("test_*.py"):
        tests |= set(re.findall(r"^ *(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE))
    return tests


@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_has_a_table(section):
    assert rows(section)


@pytest.mark.parametrize("row", [row for _, row in ROWS], ids=lambda row: row[0].strip()[:40])
def test_each_row_names_tests_in_its_last_cell(row):
    assert named(row[-1])
    assert not named("".join(row[:-1]))


def test_each_named_test_exists():
    assert named(PAGE) <= defined()


def test_each_case_of_interop_is_named():
    assert {f"interop.{name}" for name in CASES} - {"interop.identity"} <= named(PAGE)
