"""Sphinx's configuration, for `make docs`. The pages on algorithms and verbs are generated from docstrings."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sphinx.application import Sphinx

from dsgd_mpi import __version__

project = "dsgd_mpi"
author = "the authors of dsgd_mpi"
version = release = __version__
extensions = ["sphinx.ext.autodoc", "catalogue"]
html_theme = "alabaster"
html_theme_options = {"page_width": "1320px", "body_max_width": "1080px", "code_font_size": "0.8em",
                      "description": "How should SGD be spread over many processors?"}
html_show_copyright = False
default_role = "code"                       # the docstrings' `names`
highlight_language = "text"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Array": "Array"}
autodoc_preserve_defaults = True
exclude_patterns = ["_build"]


def setup(app: Sphinx) -> None:
    """The README's pictures are named from where it lies, and shown in a page of this folder."""
    def from_here(app: Sphinx, path: Path, page: str, content: list[str]) -> None:
        content[0] = content[0].replace(".. image:: docs/", ".. image:: ")
    app.connect("include-read", from_here)
