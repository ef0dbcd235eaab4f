"""Resolve references in docstrings by the rules of Python, so that Sphinx can be nitpicky.

A docstring names objects as its module does: `Comm` in ``distributed.core`` is the class of
``distributed.comm.core``.  Such a reference links to the place that documents the object, under
whichever name.  An object that exists and has no entry in the reference is shown as code.  All
other names stay unresolved, which is an error.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import get_node_source, make_refnode

_MISSING = object()
#: Where the short names on pages are looked up.
_ON_PAGES = (
    "distributed.core.",
    "distributed.core.Server.",
    "distributed.comm.",
    "distributed.protocol.",
    "distributed.batched.",
    "distributed.security.",
    "distributed.pages.",
    "distributed.testing.",
    "distributed.utils_test.",
)


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    if node.get("refdomain") != "py":
        return None
    for name in candidates(node):
        found = find(name)
        if found is not _MISSING:
            break
    else:
        return None
    place = documented(app).get(_identity(found))
    if place is None:
        return content.deepcopy()
    document, anchor = place
    return make_refnode(app.builder, node["refdoc"], document, anchor, content.deepcopy())


def candidates(node: pending_xref) -> Iterator[str]:
    """Yield the names that a reference may mean, the most local one first."""
    target = node["reftarget"].lstrip(".")
    module, class_ = node.get("py:module"), node.get("py:class")
    if module and class_:
        yield f"{module}.{class_}.{target}"
    # The source of a node ends with the name of the object that has the docstring.
    _, _, owner = (get_node_source(node) or "").partition("docstring of ")
    while owner:
        owner = owner.rpartition(".")[0]
        yield f"{owner}.{target}"
    if module:
        yield f"{module}.{target}"
    for place in ("", *_ON_PAGES):
        yield f"{place}{target}"


def find(name: str) -> Any:
    """Return the object of a dotted name within this package, or `_MISSING`."""
    parts = name.split(".")
    if parts[0] != "distributed":
        return _MISSING
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            annotations = getattr(found, "__annotations__", {})
            found = getattr(found, part, annotations.get(part, _MISSING))
            if found is _MISSING:
                return _MISSING
        return found
    return _MISSING


def _identity(found: Any) -> int | str:
    """Return the same for the same object, under whichever name it was found."""
    if isinstance(found, ModuleType):
        return found.__name__
    return id(inspect.unwrap(found)) if callable(found) else id(found)


def documented(app: Sphinx) -> dict[int | str, tuple[str, str]]:
    """Return the places of all objects that the documentation describes, by their identity."""
    if not hasattr(app, "_documented_objects"):
        places: dict[int | str, tuple[str, str]] = {}
        for name, entry in app.env.domains["py"].objects.items():
            found = find(name)
            if found is not _MISSING:
                places.setdefault(_identity(found), (entry.docname, entry.node_id))
        app._documented_objects = places  # type: ignore[attr-defined]
    documented_objects: dict[int | str, tuple[str, str]] = app._documented_objects  # type: ignore[attr-defined]
    return documented_objects


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("missing-reference", resolve, priority=900)  # after intersphinx
    return {"parallel_read_safe": True, "parallel_write_safe": True}
