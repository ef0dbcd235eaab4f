"""Runs the Python in a page of the documentation, as a reader would who types it in, top to bottom.

The convention, for reStructuredText (``.. code-block:: python``) and Markdown (```` ```python
````): the Python blocks of one page share one namespace and run in order, in a process of its own
in which warnings are errors. In a block with ``>>>`` prompts, what is printed must be what the
page shows (``...`` stands for anything). What the package logs is not part of that. Blocks in
other languages are not run, so each block must name one of the languages in `LANGUAGES`: nothing
escapes by a slip of the pen.

As a program, ``python -W error -m distributed.tests.pages PAGE`` runs one page.
"""

from __future__ import annotations

import doctest
import logging
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: What may stand in a page. Only "python" is run.
LANGUAGES = {"python", "console", "text", "yaml", "ini", "toml"}

_RST_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. (?:code-block|code|sourcecode)::[ ]*(?P<language>\S*)[ ]*\n"
    r"(?P<options>(?:(?P=indent) +:[\w-]+:.*\n)*)"
    r"(?P<body>(?:(?P=indent) +\S.*\n?|[ ]*\n)*)",
    re.MULTILINE,
)
_MARKDOWN_BLOCK = re.compile(
    r"^(?P<fence>```+)(?P<language>[^\n]*)\n(?P<body>(?:.*\n)*?)(?P=fence)[ ]*$", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    language: str
    line: int  #: of its first line of code, counted from 1
    source: str


def blocks(page: Path) -> Iterator[Block]:
    """All code blocks of a page, in order."""
    text = page.read_text()
    pattern = _MARKDOWN_BLOCK if page.suffix == ".md" else _RST_BLOCK
    for match in pattern.finditer(text):
        body = match["body"]
        empty = len(body) - len(body.lstrip("\n"))
        line = text.count("\n", 0, match.start("body") + empty) + 1
        yield Block(match["language"].strip(), line, textwrap.dedent(body).strip("\n") + "\n")


def run(page: Path) -> None:
    """Run the Python blocks of a page.

    Raises
    ------
    AssertionError
        When something printed is not what the page shows.
    Exception
        Whatever the page's code raises; its traceback points into the page.
    """
    logging.getLogger("distributed").addHandler(logging.NullHandler())
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            if ">>> " in block.source:
                _run_session(page, block, namespace)
            else:
                source = "\n" * (block.line - 1) + block.source
                exec(compile(source, page, "exec"), namespace)


def _run_session(page: Path, block: Block, namespace: dict[str, object]) -> None:
    session = doctest.DocTestParser().get_doctest(
        block.source, namespace, page.name, str(page), block.line - 1
    )
    session.globs = namespace  # a DocTest copies what it is given, and a page's blocks share theirs
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    if runner.run(session, out=report.append, clear_globs=False).failed:
        raise AssertionError("".join(report))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
