"""``examples/notebook/calls.ipynb`` runs, and its outputs are those that it shows."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "calls.ipynb"


async def run_cell(source, namespace):
    """Run a cell as IPython does: ``await`` works, and the value of a last expression is shown.

    Returns what the cell has printed, and the representation of that value, or None.
    """
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        await run_code(ast.Module(body, []), "exec", namespace)
        value = None
        if last is not None:
            value = await run_code(ast.Expression(last.value), "eval", namespace)
    return printed.getvalue(), None if value is None else repr(value)


async def run_code(tree, mode, namespace):
    code = compile(tree, NOTEBOOK.name, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, namespace)
    return await result if inspect.iscoroutine(result) else result


def shown(cell):
    """Return the same of a cell's outputs in the notebook."""
    printed, value = "", None
    for output in cell["outputs"]:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            printed += "".join(output["text"])
        elif output["output_type"] == "execute_result":
            value = "".join(output["data"]["text/plain"])
    return printed, value


def test_the_cells_of_the_notebook_print_what_it_shows():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if "outputs" in cell]
    assert len(cells) >= 8

    async def run():
        namespace = {"__name__": "__main__"}
        for cell in cells:
            source = "".join(cell["source"])
            assert await run_cell(source, namespace) == shown(cell), source

    asyncio.run(run())


def test_a_cell_that_fails_raises_its_error():
    with pytest.raises(ZeroDivisionError):
        asyncio.run(run_cell("x = 0\nawait_me = 1\n1 / x", {}))
