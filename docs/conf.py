# SPDX-License-Identifier: Apache-2.0
"""Sphinx's settings for `make docs`; warnings are errors there."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "man"))

import make_pages

from slurm_ch import __version__

# The man pages are pages of the documentation as well.
make_pages.write(os.path.join(os.path.dirname(os.path.abspath(__file__)), "man"))

project = "slurm_ch"
author = "The slurm_ch developers"
copyright = "The slurm_ch developers"
release = version = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.graphviz"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"slurm_ch {release}"
html_static_path: list[str] = []
graphviz_output_format = "svg"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False
# Options are written with two hyphens; typography would make them one dash.
smartquotes = False
