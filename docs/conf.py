"""Sphinx configuration: MyST pages, the API from docstrings, warnings as errors."""

import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy.typing
from sphinx.util import logging

project = "trebuchet"
author = "the trebuchet authors"
copyright = "2026, the trebuchet authors"
version = release = installed_version("trebuchet")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_generated", "examples", "gallery/**/*.ipynb"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Each example is run when its text has changed; one that fails, or warns, ends the build.
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,  # seconds of one machine say nothing of another
    "write_computation_times": False,
    "capture_repr": (),
}

html_theme = "furo"
html_title = "trebuchet"
html_theme_options = {"source_repository": "", "navigation_with_keys": True}

# In reading order; index.md lists those that exist (the gallery is built from scripts).
PAGES = [
    "gallery/index", "concepts", "choosing", "training_loop", "sweeping", "report", "curvature",
    "extending", "paper", "beyond", "api", "faq", "log",
]  # fmt: skip


def list_pages(app, docname, source):
    """Fill in the table of contents."""
    if docname == "index":
        here = Path(app.srcdir)
        found = [page for page in PAGES if list(here.glob(f"{page}.*"))]
        source[0] = source[0].replace("%PAGES%", "\n".join(found))


def reread_index(app, env, added, changed, removed):
    """Read the index again in every build, since its list depends on which pages there are."""
    return ["index"]


_LITERAL = re.compile(r"(``.*?``)")


def escape_bars(app, what, name, obj, options, lines):
    """Keep |θ|² from being read as a reStructuredText substitution."""
    for i, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = _LITERAL.split(line)
        lines[i] = "".join(
            part if part.startswith("``") else part.replace("|", r"\|") for part in parts
        )


def draw_pictures(app):
    """Make the pictures of the pages on the paper and beyond it, unless they are there."""
    sys.path.insert(0, str(app.srcdir))
    import build_pictures  # only now: it imports trebuchet, and setup() must come before that

    build_pictures.build(Path(app.srcdir), logging.getLogger(__name__).info)


class ArrayLike:
    """Stands for NumPy's union of eight types, which signatures would otherwise spell out."""


def setup(app):
    ArrayLike.__module__ = "numpy.typing"
    numpy.typing.ArrayLike = ArrayLike  # before autodoc imports trebuchet
    app.connect("builder-inited", draw_pictures)
    app.connect("source-read", list_pages)
    app.connect("env-get-outdated", reread_index)
    app.connect("autodoc-process-docstring", escape_bars, priority=900)
