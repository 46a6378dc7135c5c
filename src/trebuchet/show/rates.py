"""The table of rates, of sweeps and scans: one row a rate, one coloured mark a seed."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import xarray as xr
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from trebuchet.results.cells import axes_of, cells_of
from trebuchet.results.summary import shown_phases, table
from trebuchet.show.marks import MARKS, NOTEBOOK, coloured, in_key, in_row, marked
from trebuchet.show.numbers import count, number

HEADINGS: dict[str, str] = {
    "lr": "η",
    "lr_ratio": "ηλ₀",
    "peak_ratio": "peak L/L₀",
    "recovery_step": "lands at",
    "steps": "steps",
    "loss": "last L",
    "loss_max": "peak L",
    "loss_final": "train L",
    "test_loss_final": "test L",
    "ratio_final": "ηλ end",
    "weight_norm_ratio": "|θ|²/|θ₀|²",
    "sparsity": "sparsity",
}
RATES = ("lr", "lr_ratio")
"""What a row is named by; the phase stands beside it."""
COUNTS = {"steps", "recovery_step"}
PHASE = "phase"
HERE = "▶"
SPELT = {
    "ηλ": "eta*lambda", "η": "eta", "λ": "lambda", "θ": "theta", "₀": "0", "²": "^2",
    "–": "-", "∞": "inf", HERE: ">",
}  # fmt: skip
"""What headings and cells have instead on a stream that is no Unicode."""
ASCII_HEAD = box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)
_RIGHT = '<td style="text-align:right">'
_SHADE = "background:#E3F3EC;color:#222222;font-weight:bold"


@dataclass(frozen=True, slots=True, eq=False)
class RateTable:
    """A table of rates, for ``rich.print`` and, by `html`, for notebooks.

    Numbers have three digits, "–" for a missing and "∞" for an infinite one. On a stream that is no
    Unicode, letters take the place of the marks.

    Attributes:
        numbers: One row a rate, columns as in `HEADINGS`; one that no heading is known for keeps
            its name.
        phases: One row a rate, the phase of each seed, "dropped", or "" where it was not run; None
            for no such column.
        here: Rows to point out, a flag a row; None for none.
        here_means: What the flag says, for the key.
        faint: Rows that matter less, a flag a row.
        axes: Columns before the rates, which may hold words.

    Example:
        >>> frame = pd.DataFrame({"lr_ratio": [1.0, 14.0], "loss_max": [0.5, 30.25]})
        >>> shown = RateTable(frame, [["lazy", "lazy"], ["lazy", "catapult"]])
        >>> Console(width=60, color_system=None).print(shown)
        ηλ₀  phase  peak L
        ───────────────────
          1  ● ●       0.5
         14  ● ▲      30.2
        ● lazy  ▲ catapult
    """

    numbers: pd.DataFrame
    phases: Sequence[Sequence[str]] | None = None
    here: Sequence[bool] | None = None
    here_means: str = ""
    faint: Sequence[bool] | None = None
    axes: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich prints."""
        yield self._rows(letters=options.ascii_only)
        yield from self._key(letters=options.ascii_only)

    def _rows(self, *, letters: bool) -> Table:
        lines = ASCII_HEAD if letters else box.SIMPLE_HEAD
        shown = Table(box=lines, padding=(0, 1, 0, 0), show_edge=False)
        spelt = _spelt if letters else str
        for heading in self.headings():
            left = heading in {"", PHASE}
            shown.add_column(spelt(heading), justify="left" if left else "right", no_wrap=True)
        for i, row in enumerate(self.cells()):
            here = self.here is not None and self.here[i]
            cells = [spelt(cell) for cell in row]
            first, rest = cells[: self._named_by()], cells[self._named_by() :]
            shown.add_row(
                *([Text(spelt(HERE) if here else "", style="bold green")] if self.here else []),
                *first,
                *([self._marks(i, letters=letters)] if self.phases is not None else []),
                *rest,
                style="bold" if here else "dim" if self.faint and self.faint[i] else None,
            )
        return shown

    def html(self) -> str:
        """The table for a notebook.

        Returns:
            HTML, with the key below.
        """
        parts = ["<table><thead><tr>"]
        parts += [f"<th>{html.escape(heading)}</th>" for heading in self.headings()]
        parts.append("</tr></thead><tbody>")
        for i, cells in enumerate(self.cells()):
            here = self.here is not None and self.here[i]
            parts.append(f'<tr style="{_SHADE}">' if here else "<tr>")
            if self.here is not None:
                parts.append(f"<td>{HERE if here else ''}</td>")
            told = [f"{_RIGHT}{html.escape(cell)}</td>" for cell in cells]
            if self.phases is not None:
                marks = "&nbsp;".join(_span(*piece) for piece in in_row(self.phases[i]))
                cell = f'<td style="text-align:left;font-family:monospace">{marks}&emsp;</td>'
                told.insert(self._named_by(), cell)
            parts += [*told, "</tr>"]
        key = [f"{HERE} {html.escape(self.here_means)}"] if self.here is not None else []
        key += [_span(name, marked(name)) for name in in_key(self.phases or [])]
        parts.append("</tbody></table>")
        return "".join(parts) + (f"<p>{' &emsp; '.join(key)}</p>" if key else "")

    def headings(self) -> list[str]:
        """What stands above each column, from left to right."""
        names = [_heading(str(name)) for name in self.numbers.columns]
        if self.phases is not None:
            names.insert(self._named_by(), PHASE)
        return names if self.here is None else ["", *names]

    def cells(self) -> list[list[str]]:
        """The numbers as text, row by row."""
        names = list(self.numbers.columns)
        tell = [count if name in COUNTS else number for name in names]
        rows = self.numbers.itertuples(index=False, name=None)
        return [
            [
                f"{v:g}" if name in self.axes and not isinstance(v, str)
                else v if isinstance(v, str) else told(float(v))
                for name, told, v in zip(names, tell, row, strict=True)
            ]
            for row in rows
        ]  # fmt: skip

    def _named_by(self) -> int:
        return sum(name in {*RATES, *self.axes} for name in self.numbers.columns)

    def _marks(self, row: int, *, letters: bool) -> Text:
        assert self.phases is not None
        pieces = in_row(self.phases[row], letters=letters)
        return Text(" ").join(coloured(*piece) for piece in pieces)

    def _key(self, *, letters: bool) -> Iterator[Text]:
        """Below the rows, a line for what is pointed out and one for the marks."""
        if self.here is not None:
            pointer = _spelt(HERE) if letters else HERE
            yield Text(f"{pointer} {self.here_means}", style="green")
        if names := in_key(self.phases or []):
            yield Text("  ").join(coloured(name, marked(name, letters=letters)) for name in names)


def of_sweep(ds: xr.Dataset) -> RateTable:
    """The table of runs over rates and seeds.

    Args:
        ds: A results dataset, labelled or not.

    Returns:
        The numbers of ``trebuchet.table``, medians over seeds, with the phase of each seed.

    Raises:
        InputError: If it is no dataset of runs.
    """
    frame = table(ds).drop(columns="phases", errors="ignore")
    axes = axes_of(ds)
    if "phase" not in ds:
        return RateTable(frame, axes=axes)
    phases = [row for _, cell in cells_of(ds) for row in shown_phases(cell).tolist()]
    return RateTable(frame, phases, axes=axes)


def _heading(name: str) -> str:
    if name.startswith("sparsity_"):
        return f"sparsity {name.removeprefix('sparsity_')}"
    return HEADINGS.get(name, name.removeprefix("optimizer."))


def _spelt(text: str) -> str:
    for sign, word in SPELT.items():
        text = text.replace(sign, word)
    return text


def _span(name: str, text: str) -> str:
    if name not in MARKS:
        return "&nbsp;"
    return f'<span style="color:{NOTEBOOK[name]}">{html.escape(text)}</span>'
