"""The table of a scan for terminals and notebooks: one row a rate, one coloured mark a seed."""

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from trebuchet._types import Phase
from trebuchet.phases.scanning.tables import DROPPED
from trebuchet.plots.style import DARK_RED, GREY, PHASE_COLOURS

if TYPE_CHECKING:
    from trebuchet.phases.scan_result import Scan

MARKS: dict[str, str] = {
    Phase.LAZY: "●", Phase.CATAPULT: "▲", Phase.DIVERGENT: "✕", Phase.COLLAPSED: "■",
    Phase.UNSETTLED: "?", DROPPED: "○",
}  # fmt: skip
"""A seed's phase in one character, for those who do not see its colour."""

NAMES = {**{str(phase): str(phase) for phase in Phase}, DROPPED: "dropped"}

TERMINAL: dict[str, str] = {
    Phase.LAZY: "cyan", Phase.CATAPULT: "yellow", Phase.DIVERGENT: "red",
    Phase.COLLAPSED: "magenta", Phase.UNSETTLED: "bright_black", DROPPED: "bright_black",
}  # fmt: skip

NOTEBOOK: dict[str, str] = {
    # Darker than in pictures where the hue is too light to read as text.
    **PHASE_COLOURS, Phase.LAZY: "#1F78A8", Phase.CATAPULT: "#A36F00",
    Phase.DIVERGENT: DARK_RED, DROPPED: GREY,
}  # fmt: skip
_RIGHT = '<td style="text-align:right">'
_SHADE = "#E3F3EC"

HERE = "▶"
_HERE_KEY = f"{HERE} nearest to the suggestion, of the longest runs"


@dataclass(frozen=True, slots=True)
class Row:
    """One rate, as text.

    Attributes:
        nearest: Whether it is nearest to the suggestion, of the rates that came furthest.
        verdict: Its phase, or "dropped".
        seeds: The same by seed; empty: not run.
        cells: The other columns, by heading.
    """

    nearest: bool
    verdict: str
    seeds: tuple[str, ...]
    cells: dict[str, str]


def rows(scan: "Scan") -> list[Row]:
    """Lay out the table of rates; columns in which nothing is known are left out.

    Args:
        scan: The scan.

    Returns:
        One a rate, ascending.
    """
    table = scan.table
    seeds = [name for name in table if str(name).startswith("phase_seed")]
    optional = [
        (heading, name)
        for heading, name in (("ηλ at end", "lr_ratio_final"), ("sparsity", "sparsity"))
        if table[name].notna().any()
    ]
    # Nearest of the rates that came furthest: a trial of a few steps says nothing of this one.
    furthest = table["steps"] == table["steps"].max()
    away = [
        abs(math.log(rate / scan.suggestion.rate)) if far else math.inf
        for rate, far in zip(table["rate"], furthest, strict=True)
    ]
    found = []
    for row, distance in zip(table.to_dict("records"), away, strict=True):
        cells = {
            "rate": _number(row["rate"], 3),
            "peak / start": _number(row["peak_ratio"], 3),
            "lands at": _number(row["recovery_step"], 9),
            "steps": str(row["steps"]),
            "last loss": _number(row["loss"], 4),
            **{heading: _number(row[name], 3) for heading, name in optional},
        }
        verdict = DROPPED if row["status"] == DROPPED else str(row["phase"])
        of_seeds = tuple(str(row[name]) for name in seeds)
        found.append(Row(distance == min(away), verdict, of_seeds, cells))
    return found


def in_terminal(scan: "Scan") -> Table:
    """The table for ``rich.print``.

    Args:
        scan: The scan.

    Returns:
        With the key to its marks as caption.
    """
    laid = rows(scan)
    table = Table(
        title="learning rates", title_justify="left", caption_justify="left", padding=(0, 1, 0, 0)
    )
    first, *others = laid[0].cells
    table.add_column("")
    table.add_column(first, justify="right", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    if _several(laid):
        table.add_column("seeds", no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    for row in laid:
        marks = [Text(MARKS.get(s, " "), style=TERMINAL.get(s, "")) for s in row.seeds]
        table.add_row(
            Text(HERE if row.nearest else "", style="bold green"), row.cells[first],
            Text(NAMES[row.verdict], style=TERMINAL[row.verdict]),
            *([Text(" ").join(marks)] if _several(laid) else []),
            *(row.cells[heading] for heading in others),
            style="bold" if row.nearest else "dim" if row.verdict == DROPPED else None,
        )  # fmt: skip
    key = Text(_HERE_KEY, style="green")
    for name in _met(laid):
        key.append("   ")
        key.append(f"{MARKS[name]} {NAMES[name]}", style=TERMINAL[name])
    table.caption = key
    return table


def in_notebook(scan: "Scan") -> str:
    """The table for a notebook.

    Args:
        scan: The scan.

    Returns:
        HTML.
    """
    laid = rows(scan)
    first, *others = laid[0].cells
    headings = ["", first, "phase", *(["seeds"] if _several(laid) else []), *others]
    parts = ["<table><thead><tr>", *(f"<th>{html.escape(h)}</th>" for h in headings)]
    parts.append("</tr></thead><tbody>")
    for row in laid:
        shade = f' style="background:{_SHADE};color:#222222;font-weight:bold"'
        parts.append(f"<tr{shade if row.nearest else ''}>")
        parts.append(
            f"<td>{HERE if row.nearest else ''}</td>{_RIGHT}{html.escape(row.cells[first])}"
        )
        parts.append(f"</td><td>{_coloured(row.verdict, NAMES[row.verdict])}</td>")
        if _several(laid):
            marks = "&nbsp;".join(
                _coloured(s, MARKS[s]) if s in MARKS else "&nbsp;" for s in row.seeds
            )
            parts.append(f'<td style="text-align:left;font-family:monospace">{marks}&emsp;</td>')
        parts += [f"{_RIGHT}{html.escape(row.cells[heading])}</td>" for heading in others]
        parts.append("</tr>")
    key = " &emsp; ".join(_coloured(name, f"{MARKS[name]} {NAMES[name]}") for name in _met(laid))
    parts.append(f"</tbody></table><p>{_HERE_KEY} &emsp; {key}</p>")
    return "".join(parts)


def _several(laid: list[Row]) -> bool:
    return len(laid[0].seeds) > 1


def _met(laid: list[Row]) -> list[str]:
    """The marks that the key must explain."""
    if not _several(laid):
        return []
    seen = {phase for row in laid for phase in row.seeds}
    return [name for name in MARKS if name in seen]


def _coloured(phase: str, text: str) -> str:
    return f'<span style="color:{NOTEBOOK[phase]}">{html.escape(text)}</span>'


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return ""
    return "∞" if value == math.inf else f"{value:.{digits}g}"
