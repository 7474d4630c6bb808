"""Sphinx: the pages of docs/ and the API from the docstrings; sphinx-build -W docs docs/_build."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp import __version__

project = "pdp"
author = "The PDP reproduction authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pdp {release}"
html_show_sphinx = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # docstrings mark code by single backticks
autodoc_mock_imports = ["safetensors"]  # so that the site is built where only the library is installed
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
autodoc_preserve_defaults = True
suppress_warnings = ["ref.python"]  # several rooms have a class of one name, Pattern or Method
_MARKED = re.compile(r"(`[^`]*`)")


def plain(app, what, name, obj, options, lines):
    """Docstrings are plain text: outside backticks |w|, 2 * x and name_ mean what they say."""
    for number, line in enumerate(lines):
        parts = _MARKED.split(line)
        parts[::2] = [re.sub(r"([|*\\])|_(?=\W|$)", lambda found: "\\" + found[0], part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app):
    app.connect("autodoc-process-docstring", plain)
