"""The code in documentation pages and in docstrings runs and prints the output shown."""

from __future__ import annotations

import doctest
import importlib
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distributed.tests import pages, terminals

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "distributed"
REQUIRED = {"distributed", "tornado", "msgpack", "cloudpickle"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.rst") if "_build" not in page.parts),
]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if "tests" not in path.parts
]


def has_python(page):
    return any(block.language == "python" for block in pages.blocks(page))


def run_page(page):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "distributed.tests.pages", page],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if has_python(page) and not terminals.is_typed(page)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_code_of_a_page_runs_and_prints_the_output_shown(page):
    result = run_page(page)
    assert result.stderr == ""
    assert result.returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_code_block_names_a_known_language(page):
    unknown = {
        f"{page.name}:{block.line}: {block.language or 'no language'}"
        for block in pages.blocks(page)
        if block.language not in pages.LANGUAGES
    }
    assert not unknown


@pytest.fixture
def unchanged_logging():
    """Undo what the examples change of logging."""
    kept = [(x, x.level, x.propagate, list(x.handlers)) for x in loggers()]
    yield
    for logger in loggers():
        logger.setLevel(logging.NOTSET)
    for logger, level, propagate, handlers in kept:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


def loggers():
    existing = logging.root.manager.loggerDict.values()
    return [logging.root, *(x for x in existing if isinstance(x, logging.Logger))]


@pytest.mark.usefixtures("unchanged_logging")
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run_and_print_the_output_shown(name, capsys):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] in REQUIRED:
            raise
        pytest.skip(f"{name} needs {exc.name}, which is not installed")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert not result.failed, capsys.readouterr().out


def test_the_structure_page_shows_the_modules_of_the_package_and_of_core():
    tree = next(pages.blocks(ROOT / "docs" / "explanation" / "structure.rst"))
    shown = set()
    for line in tree.source.splitlines()[1:]:
        parent = PACKAGE / "core" if line.startswith("    ") else PACKAGE
        shown.update(parent / name for name in re.findall(r"\w+(?:\.py|/)", line))
    hidden = {"__init__.py", "__pycache__", "py.typed", "tests"}
    hidden |= {"utils_test.py"}
    existing = {*PACKAGE.iterdir(), *(PACKAGE / "core").iterdir()}
    assert shown == {path for path in existing if path.name not in hidden}


# the module ``pages``

RST = """
Some page
=========

.. code-block:: python

   import asyncio

   def f():
       return 1

Text that says ``f() = 1``.

.. code-block:: python
   :caption: a session

   >>> f()
   {first}
   >>> print("a b c")
   a ... c

.. code-block:: console

   $ rm -rf everything
"""

MARKDOWN = """
# Some page

```python
def f():
    return 1
```

```python
>>> f()
{first}
```

```console
$ rm -rf everything
```
"""


@pytest.fixture(params=["rst", "md"])
def write_page(request, tmp_path):
    def write(first):
        page = tmp_path / f"page.{request.param}"
        page.write_text((RST if request.param == "rst" else MARKDOWN).format(first=first))
        return page

    return write


def test_the_blocks_of_a_page_share_a_namespace(write_page):
    result = run_page(write_page(first="1"))
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_output_that_differs_from_the_page_fails(write_page):
    result = run_page(write_page(first="2"))
    assert result.returncode == 1
    assert "Expected:\n    2\nGot:\n    1" in result.stderr


def test_an_error_points_to_its_line_in_the_page(tmp_path):
    page = tmp_path / "page.rst"
    page.write_text("Page\n\n.. code-block:: python\n\n   x = 1\n   x.nothing\n")
    assert f'File "{page}", line 6' in run_page(page).stderr


def test_a_warning_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nimport warnings\nwarnings.warn('careful')\n```\n")
    result = run_page(page)
    assert "UserWarning: careful" in result.stderr
    assert result.returncode == 1


def test_the_language_of_each_block_is_found(write_page):
    assert [block.language for block in pages.blocks(write_page(first="1"))] == [
        "python",
        "python",
        "console",
    ]
