"""``docs/reference/evidence.rst`` names tests for each statement of other pages, and they exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from distributed.tests import pages
from distributed.tests.interop import CASES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EVIDENCE = DOCS / "reference" / "evidence.rst"

#: (page, section of the page) -> title of the section of the page of evidence
SECTIONS = {
    ("explanation/security.rst", "Threats and protections"): "Security",
    ("reference/calls.rst", "What happens when …"): "Calls",
    ("reference/coming-from-dask.rst", "The same"): "The same",
    ("reference/coming-from-dask.rst", "Better"): "Better",
    ("reference/coming-from-dask.rst", "Different on purpose"): "Different on purpose",
    ("reference/coming-from-dask.rst", "Absent"): "Absent",
    ("reference/coming-from-dask.rst", "In a cluster of the original"): (
        "In a cluster of the original"
    ),
}


def claims(page, section):
    """Return the statements of a section: the rows of its table, or the items of its list."""
    rows = pages.rows(DOCS / page, section) or pages.items(DOCS / page, section)
    return [row[1] if row[0] == "—" else row[0] for row in rows]


def shows(statement, claim):
    """Return whether a statement of the page of evidence is this claim, or its beginning."""
    if statement.endswith(" …"):
        return claim.startswith(statement.removesuffix(" …")) and claim != statement
    return claim == statement


def named(text):
    return set(re.findall(r"``((?:test_|interop\.)\w+(?:\.py)?)``", text))


@cache
def defined():
    """Return the names of all tests, of their files and of the cases of interop."""
    names = {f"interop.{name}" for name in CASES}
    for path in (ROOT / "distributed").rglob("test_*.py"):
        names.add(path.name)
        names.update(re.findall(r"^ *(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE))
    return names


CLAIMS = [
    (claim, title) for (page, section), title in SECTIONS.items() for claim in claims(page, section)
]


@pytest.mark.parametrize(("page", "section"), SECTIONS)
def test_each_section_has_statements(page, section):
    assert len(claims(page, section)) >= 3


@pytest.mark.parametrize(("claim", "title"), CLAIMS, ids=[claim[:40] for claim, _ in CLAIMS])
def test_each_statement_has_one_row_with_tests(claim, title):
    shown = [row[1] for row in pages.rows(EVIDENCE, title) if shows(row[0], claim)]
    assert len(shown) == 1, f"{EVIDENCE.name}, {title!r} has {len(shown)} rows for {claim!r}"
    assert named(shown[0])


@pytest.mark.parametrize("title", SECTIONS.values())
def test_each_row_is_about_a_statement(title):
    known = [claim for claim, its_title in CLAIMS if its_title == title]
    for row in pages.rows(EVIDENCE, title):
        assert any(shows(row[0], claim) for claim in known), row[0]


def test_each_named_test_exists():
    assert named(EVIDENCE.read_text()) <= defined()


def test_each_case_of_interop_is_named():
    cases = {f"interop.{name}" for name in CASES} - {"interop.identity"}
    assert cases <= named(EVIDENCE.read_text())


def test_no_other_page_names_a_test():
    for page in sorted(DOCS.rglob("*.rst")):
        if page != EVIDENCE and "_build" not in page.parts:
            assert not named(page.read_text()) & defined(), page.name


def test_a_statement_is_compared_with_its_beginning():
    assert shows("A peer …", "A peer connects")
    assert shows("A peer", "A peer")
    assert not shows("A peer", "A peer connects")
    assert not shows("The peer …", "A peer connects")
