"""Sphinx's configuration, for `make docs`. The pages on algorithms and verbs are generated from docstrings."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

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
