"""The table in docs/logging.rst lists every logger of the package and the levels of its lines."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from distributed.base.log_setup import DEFAULT_LEVELS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "logging.rst").read_text()

#: The levels of the methods of a logger.  `exception` logs at level ERROR.
METHODS = {
    "debug": "DEBUG",
    "info": "INFO",
    "warning": "WARNING",
    "error": "ERROR",
    "exception": "ERROR",
    "critical": "CRITICAL",
}


def rows(heading):
    """Return the rows of the table below a heading: the first cell, and the second one."""
    table = PAGE.split(f"\n{heading}\n=", 1)[1].split(".. list-table::", 1)[1].split("\n\n\n")[0]
    return [row.split("\n     - ", 1) for row in re.split(r"\n   \* - ", table)[2:]]


def levels_used():
    """Return the name of each logger → the levels of the lines that modules log with it."""
    found = defaultdict(set)
    for path in (ROOT / "distributed").rglob("*.py"):
        if "tests" in path.parts:
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [
            module if isinstance(node.args[0], ast.Name) else node.args[0].value
            for node in nodes
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "get_logger"
        ]
        assert len(names) <= 1, path
        for name in names:
            found[name] |= {
                METHODS[node.func.attr]
                for node in nodes
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
                and node.func.attr in METHODS
            }
    return found


USED = levels_used()
LISTED = {name.strip("`"): text for name, text in rows("Which logger says what")}


def test_the_page_lists_the_loggers_of_all_modules():
    assert set(LISTED) == set(USED)
    assert list(LISTED) == sorted(LISTED)


@pytest.mark.parametrize("name", USED)
def test_the_page_names_the_levels_of_a_logger(name):
    text = LISTED[name]
    if text.startswith("As ``"):
        text = LISTED[text.split("``")[1]]
    assert set(re.findall(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b", text)) >= USED[name]


def test_the_page_shows_the_default_levels():
    shown = {}
    for names, level in rows("Defaults"):
        for name in re.findall(r"``(\S+)``", names):
            shown[name] = level.strip().lower()
    assert shown == DEFAULT_LEVELS
