"""Sphinx configuration of the documentation: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, installed or not

from distributed import __version__

project = "distributed-core"
author = "the distributed-core developers"
copyright = "the distributed-core developers"
version = release = __version__

sys.path.append(str(Path(__file__).with_name("_ext")))
extensions = [
    "existing_names",
    "notebook",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
default_role = "py:obj"  # `name` is a link if the reference exists

html_theme = "furo"
html_title = f"distributed-core {release}"
html_static_path = ["_static"]
html_css_files = ["distributed.css"]
html_js_files = ["tables.js"]
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
html_show_sourcelink = False
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# A reference to a name that does not exist is an error.
nitpicky = True
nitpick_ignore_regex = [
    # words of numpydoc that are not types, and lists of attributes in one line
    ("py:class", r"optional|sequence|.* .*|available|message_count|batch_count"),
    # names that modules import for type checkers only, and type variables
    ("py:class", r"IOLoop|TCPServer|Operations"),
    ("py:class", r".*\.[TP]|[TP]|_asyncio\.\w+"),
    # optional libraries
    ("py:.*", r"(opentelemetry|hypothesis|cloudpickle|numpy|np|_pytest|pytest)\..*"),
]
# scripts/inventories.py writes these files, so that building needs no network.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.inv"),
    "tornado": ("https://www.tornadoweb.org/en/stable", "inventories/tornado.inv"),
}
