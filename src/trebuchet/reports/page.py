"""One page of HTML that needs nothing else: no network, no file beside it."""

import base64
import gzip
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.resources import files

import jinja2
from markupsafe import Markup

from trebuchet.reports.runs import look
from trebuchet.reports.section import Section
from trebuchet.scans.tables import WORST_FIRST
from trebuchet.show.marks import MARKS

SCRIPTS = ("helpers.js", "charts.js", "view.js", "page.js")
"""Parts of one script, in order."""


def html(title: str, sections: Sequence[Section]) -> str:
    """The page.

    Everything that is not of this folder is escaped: in the markup by Jinja, in the data by its
    ``tojson``, which leaves no ``<`` and no ``&`` as they are.

    Args:
        title: Of the page.
        sections: One a result.

    Returns:
        HTML.
    """
    now = datetime.now(UTC)
    drawn = any(section.runs for section in sections)
    return _template().render(
        title=title,
        sections=sections,
        made=f"{now.day} {now:%B %Y}",
        version=version("trebuchet"),
        look=look(),
        cautious=[str(phase) for phase in WORST_FIRST],
        marks={str(name): mark for name, mark in MARKS.items()},
        # Of this folder, not of anybody's result.
        style=Markup(_text("page.css")),
        script=Markup("".join(_text(name) for name in SCRIPTS)),
        plotly=plotly() if drawn else "",
        data=[section.runs for section in sections],
    )  # fmt: skip


@cache
def plotly() -> str:
    """Plotly's own bundle, compressed: 4.8 MB as it is, 2 MB so; browsers inflate it themselves.

    Returns:
        Base64 of gzip.
    """
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii")


@cache
def _template() -> jinja2.Template:
    """The template, read once; a name that it does not know is an error."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.from_string(_text("page.html"))


def _text(name: str) -> str:
    return files("trebuchet.reports").joinpath("templates", name).read_text(encoding="utf-8")
