"""The project's tables of rates as tables of a page."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from trebuchet.reports.edges import slices
from trebuchet.reports.runs import axes_of
from trebuchet.reports.section import Cell, Row, Table
from trebuchet.reports.thinning import every
from trebuchet.show.marks import in_key, in_row, marked
from trebuchet.show.rates import HERE, RATES, RateTable, of_sweep

MOST_ROWS = 600
"""Rows of one table on a page."""


def of_runs(ds: xr.Dataset) -> Table:
    """The table of a sweep: a row a rate, and a value of every other axis.

    Args:
        ds: Labelled runs.

    Returns:
        The table.
    """
    axes = axes_of(ds)
    headings: list[str] = []
    rows: list[Row] = []
    key: list[str] = []
    for at, part in slices(ds, axes):
        values = [ds[axis].values[i] if axis in ds.coords else i for axis, i in at.items()]
        before = [_cell_of(value) for value in values]
        shown = of_rates(of_sweep(part))
        headings = [*axes, *shown.headings]
        rows += [Row([*before, *row.cells], row.here, row.faint) for row in shown.rows]
        key = [*key, *(line for line in shown.said if line not in key)]
    return _cut(headings, rows, key)


def of_rates(shown: RateTable) -> Table:
    """A table of rates, as terminals and notebooks have it.

    Args:
        shown: The table.

    Returns:
        The same, for a page.
    """
    headings = [heading for heading in shown.headings() if heading]
    at = sum(name in RATES for name in shown.numbers.columns)
    rows = []
    texts = shown.cells()
    numbers = shown.numbers.to_numpy(float)
    for i, row in enumerate(texts):
        cells = [Cell(text, _value(numbers[i, j])) for j, text in enumerate(row)]
        if shown.phases is not None:
            marks = in_row(shown.phases[i])
            words = ", ".join(phase for phase in shown.phases[i] if phase)
            cells.insert(at, Cell(words, words or None, marks))
        here = shown.here is not None and bool(shown.here[i])
        faint = shown.faint is not None and bool(shown.faint[i])
        rows.append(Row(cells, here, faint))
    said = [f"{HERE} {shown.here_means}"] if shown.here is not None else []
    if names := in_key(shown.phases or []):
        said.append("  ".join(marked(name) for name in names))
    return _cut(headings, rows, said)


def _cut(headings: Sequence[str], rows: Sequence[Row], said: Sequence[str]) -> Table:
    keep = every(len(rows), MOST_ROWS)
    if len(keep) < len(rows):
        said = [*said, f"{len(keep)} of {len(rows)} rows are shown"]
    return Table(headings, [rows[i] for i in keep], said)


def _cell_of(value: object) -> Cell:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(f"{value:g}", float(value))
    return Cell(str(value), str(value))


def _value(value: float) -> float | None:
    """What to sort by: infinity is a number here, as large as any."""
    return None if np.isnan(value) else float(np.clip(value, -1e308, 1e308))
