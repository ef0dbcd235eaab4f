"""The directive ``.. notebook:: PATH`` shows the cells of a Jupyter notebook with their outputs.

The text of a notebook may have paragraphs, literals in backquotes and one heading, which is left
out.  Nothing is executed.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Notebook(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        lines = []
        for cell in json.loads(Path(path).read_text())["cells"]:
            lines += _text_of(cell).splitlines() + [""]
        container = nodes.container(classes=["notebook"])
        self.state.nested_parse(StringList(lines, source=path), 0, container)
        return [container]


def _text_of(cell: dict[str, Any]) -> str:
    """Return a cell as reStructuredText."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        text = re.sub(r"^# .*\n*", "", source)
        return re.sub(r"`([^`]+)`", r"``\1``", text)
    text = _block("python", source)
    for output in cell["outputs"]:
        shown = output["text"] if "text" in output else output["data"]["text/plain"]
        text += "\n.. rst-class:: output\n\n" + _block("text", "".join(shown))
    return text


def _block(language: str, source: str) -> str:
    return f".. code-block:: {language}\n\n{textwrap.indent(source, '   ')}\n"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("notebook", Notebook)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
