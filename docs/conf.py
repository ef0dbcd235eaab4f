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
extensions = ["notebook", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # `name` is a link if the reference exists

html_theme = "furo"
html_title = f"distributed-core {release}"
html_static_path = ["_static"]
html_css_files = ["distributed.css"]
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
