"""`trebuchet report`: saved results as one page for somebody else."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trebuchet.cli.options import Overwrite, command
from trebuchet.cli.output import check_file, console
from trebuchet.errors import InputError

if TYPE_CHECKING:
    from trebuchet.reports.kinds import Maker
    from trebuchet.reports.section import Section


@command
def report(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Saved results of any kind: the folders that tb.save and the commands "
            "scan, sweep, paper and beyond write (scan.zarr, runs.zarr, fig4.zarr …).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.", metavar="FILE")] = Path(
        "report.html"
    ),
    title: Annotated[
        str | None,
        typer.Option(help="Of the page; says what is on it unless given.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Put saved results on one page of HTML to hand to a colleague.

    The file needs nothing: no network, no Python, no trebuchet; it is below
    5 MB, so that mail takes it. It says what was asked and what the answer is,
    shows phases, losses and the trace of every run (click a learning rate to
    see its runs alone), the table, the settings and versions, and the lines
    of code that make the result again.

    Try it:  trebuchet scan digits
             trebuchet report trebuchet-scan-digits/scan.zarr

    Several at once:  trebuchet report runs.zarr fig4.zarr --title "For Ada"
    """
    check_file(out, {}, overwrite=overwrite)
    from trebuchet.reports.door import write

    makers = [_maker(path) for path in paths]
    page = write(makers, out, title, overwrite=overwrite)
    size = page.stat().st_size / 1e6
    console().print(
        f"wrote {page} ({size:.1f} MB): open it in a browser", soft_wrap=True, markup=False
    )


def _maker(path: str) -> "Maker":
    """Who makes the section of a saved result, which says what it was read from."""
    from trebuchet.files import load
    from trebuchet.reports.door import results

    try:
        result = load(path)
    except InputError as error:  # under the name that is shown here
        raise InputError(f"paths: {str(error).removeprefix('path: ')}") from error
    (make,) = results("paths", [result])

    def told(points: int) -> "Section":
        section = make(points)
        return replace(section, asked=[*section.asked, ("read from", Path(path).name)])

    return told
